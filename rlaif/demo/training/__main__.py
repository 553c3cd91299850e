"""`python -m rlaif.demo.training [judge] [policy]`: train the tiny world's models and write them into the package."""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer

from rlaif.demo.grammar import Voice
from rlaif.demo.training.card import write_card
from rlaif.demo.training.examples import Example, judge_lessons, policy_lessons
from rlaif.demo.training.hints import Hints
from rlaif.demo.training.loop import Schedule, train
from rlaif.demo.training.models import load_model, new_model, save_model, sharpen
from rlaif.demo.training.packing import Packer, batches
from rlaif.demo.training.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer

MODELS = Path(__file__).resolve().parents[1] / "models"
SEED = 20


class Phase(NamedTuple):
    """A part of a model's schooling."""

    mix: tuple[int, int, int]
    """Weights of compare, critique and revise questions."""
    schedule: Schedule
    text: float
    """Weight of predicting every token (see `hints`)."""


class Plan(NamedTuple):
    """One model to make."""

    lessons: Callable[[Voice, tuple[int, int, int]], Iterator[list[Example]]]
    shape: dict[str, int]
    phases: tuple[Phase, ...]
    sharpness: float = 1.0
    """Factor of all logits after training: temperature 1 is then what temperature 1 / `sharpness` was."""


# The judge first learns to compare, which is the hard part and needs undivided attention, and then the rest beside it.
PLANS = {
    "judge": Plan(
        judge_lessons,
        {"width": 192, "layers": 4, "inner": 512},
        (
            Phase((100, 0, 0), Schedule(1200, learning_rate=1e-3, matrix_rate=0.01), text=0.1),
            Phase((50, 35, 15), Schedule(800, learning_rate=1e-3, matrix_rate=0.01), text=0.1),
        ),
    ),
    "policy": Plan(
        policy_lessons,
        {"width": 128, "layers": 4, "inner": 384, "head": 32},
        (Phase((0, 0, 0), Schedule(700), text=0.0),),
        sharpness=1.35,
    ),
}


def corpus(examples: int) -> Iterator[str]:
    """Texts for the tokenizer: questions and answers of both models."""
    for lessons in (judge_lessons, policy_lessons):
        groups = lessons(Voice(random.Random(SEED)))
        for example in itertools.islice(itertools.chain.from_iterable(groups), examples):
            yield example.messages[0].content
            yield example.answer


def make(name: str, plan: Plan, folder: Path, first: int) -> None:
    """Train one model, from phase `first` on, and save it to `folder`.

    A later phase goes on with the weights and the tokenizer in `folder`.
    """
    torch.manual_seed(SEED + first)
    if first == 0:
        tokenizer = train_tokenizer(corpus(12000))
        save_tokenizer(tokenizer, folder)
    else:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    packer = Packer(load_tokenizer(folder))
    model = new_model(**plan.shape) if first == 0 else load_model(folder)
    log(f"{name}: {sum(weight.numel() for weight in model.parameters()):,} parameters")
    started = time.monotonic()
    for number, phase in enumerate(plan.phases[first:], start=first):
        log(f"{name}: phase {number}")
        rows = map(packer.pack, plan.lessons(Voice(random.Random(SEED + 1 + number)), phase.mix))
        hints = Hints(plan.shape["width"], phase.text) if phase.text else None
        train(model, batches(rows, phase.schedule.tokens), phase.schedule, log, hints)
        if number == len(plan.phases) - 1:
            sharpen(model, plan.sharpness)
        save_model(model, tokenizer, folder)
    log(f"{name}: saved to {folder} after {time.monotonic() - started:.0f} seconds")


def log(text: str) -> None:
    """A line of progress."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    """Make the models named on the command line, or both, and measure them for the model card."""
    parser = argparse.ArgumentParser(prog="python -m rlaif.demo.training", description=main.__doc__)
    parser.add_argument("names", nargs="*", metavar="MODEL", help="judge or policy (default: both)")
    parser.add_argument("--to", type=Path, default=MODELS, help="folder to write to")
    parser.add_argument("--phase", type=int, default=0, help="first phase to run, on the weights already there")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    given: Any = parser.parse_args()
    torch.set_num_threads(given.threads)
    for name in given.names or PLANS:
        make(name, PLANS[name], given.to / name, given.phase)
    if all((given.to / name / "model.safetensors").exists() for name in PLANS):
        write_card(given.to)


if __name__ == "__main__":
    main()
