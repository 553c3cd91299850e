"""`python -m tools.train_demo_models [judge] [policy]`: train the tiny models, into the package."""

from __future__ import annotations

import argparse
import itertools
import random
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor

from rlaif.demo.world import Voice
from tools.train_demo_models.card import write_card
from tools.train_demo_models.copying import copy_loss, draw_copies
from tools.train_demo_models.examples import Example, Mix, judge_lessons, policy_lessons
from tools.train_demo_models.hints import Hints
from tools.train_demo_models.loop import Schedule, loss_of, train
from tools.train_demo_models.models import load_model, new_model, save_model, sharpen
from tools.train_demo_models.packing import Batch, Packer, batches
from tools.train_demo_models.tokenizer import VOCABULARY, load_tokenizer, save_tokenizer, train_tokenizer

MODELS = Path(__file__).resolve().parents[2] / "rlaif/demo/models"
SEED = 20


class Phase(NamedTuple):
    """A part of a model's schooling."""

    mix: Mix
    schedule: Schedule
    text: float = 0.0
    """Weight of predicting every token; 0 for a model that learns without `hints`."""
    joined: float = 0.0
    """Share of sentences that are two wordings in one (see `Voice`)."""
    blank: float = 0.0
    """Share of tokens blanked out in comparisons (see `batches`)."""


class Plan(NamedTuple):
    """One model to make."""

    lessons: Callable[[Voice, Mix], Iterator[list[Example]]]
    shape: dict[str, int]
    copying: Schedule | None
    """Of the first lesson (see `copying`), if there is one."""
    phases: tuple[Phase, ...]
    sharpness: float = 1.0
    """Factor of all logits after training: temperature 1 is then what temperature 1 / `sharpness` was."""


PLANS = {
    "judge": Plan(
        judge_lessons,
        {"width": 192, "layers": 4, "inner": 512, "heads": 4, "head": 64},
        Schedule(170, learning_rate=0.01, matrix_rate=0.02, warmup=20),
        (
            Phase(Mix(44, 24, 32), Schedule(2400, learning_rate=2e-3, matrix_rate=0.012), text=0.05),
            Phase(
                Mix(40, 20, 40),
                Schedule(1500, learning_rate=1.5e-3, matrix_rate=0.01),
                0.02,
                joined=0.35,
                blank=0.1,
            ),
            Phase(
                Mix(40, 8, 14, score=18, rank=20),
                Schedule(1300, learning_rate=1.5e-3, matrix_rate=0.01),
                0.02,
                joined=0.35,
                blank=0.1,
            ),
        ),
    ),
    "policy": Plan(
        policy_lessons,
        {"width": 128, "layers": 4, "inner": 384, "heads": 4, "head": 32},
        None,
        (Phase(Mix(), Schedule(700)),),
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

    Phase 0 starts from random weights; a later phase goes on with the weights and the tokenizer in `folder`.
    """
    torch.manual_seed(SEED + first)
    if first == 0:
        tokenizer = train_tokenizer(corpus(12000))
        save_tokenizer(tokenizer, folder)
    else:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    packer = Packer(load_tokenizer(folder))
    model = new_model(**plan.shape) if first == 0 else load_model(folder)
    model.set_attn_implementation("eager")  # the only one that shows its attention, which training looks at
    log(f"{name}: {sum(weight.numel() for weight in model.parameters()):,} parameters")
    if first == 0 and plan.copying is not None:
        log(f"{name}: copying")
        rng = random.Random(SEED)
        train(model, lambda: copy_loss(model, draw_copies(rng, VOCABULARY)), plan.copying, log)
        save_model(model, tokenizer, folder)
    for number, phase in enumerate(plan.phases[first:], start=first):
        log(f"{name}: phase {number}")
        torch.manual_seed(SEED + 1 + number)
        rows = map(packer.pack, plan.lessons(Voice(random.Random(SEED + 1 + number), joined=phase.joined), phase.mix))
        found = batches(rows, phase.schedule.tokens, blank=phase.blank)
        hints = Hints(plan.shape["width"], phase.text) if phase.text else None
        train(model, partial(_next_loss, model, found, hints), phase.schedule, log, hints)
        if number == len(plan.phases) - 1:
            sharpen(model, plan.sharpness)
        save_model(model, tokenizer, folder)
    log(f"{name}: saved to {folder}")


def _next_loss(model: Any, found: Iterator[Batch], hints: Hints | None) -> Tensor:
    return loss_of(model, next(found), hints)


def log(text: str) -> None:
    """A line of progress."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    """Make the models named on the command line, or both, and measure them for the model card."""
    parser = argparse.ArgumentParser(prog="python -m tools.train_demo_models", description=main.__doc__)
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
