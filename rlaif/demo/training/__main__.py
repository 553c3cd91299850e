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
from rlaif.demo.training.loop import Schedule, train
from rlaif.demo.training.models import new_model, save_model
from rlaif.demo.training.packing import Packer, batches
from rlaif.demo.training.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer

MODELS = Path(__file__).resolve().parents[1] / "models"
SEED = 20


class Plan(NamedTuple):
    """One model to make."""

    lessons: Callable[[Voice], Iterator[list[Example]]]
    shape: dict[str, int]
    schedule: Schedule


PLANS = {
    "judge": Plan(judge_lessons, {"width": 192, "layers": 4, "inner": 512}, Schedule(1000)),
    "policy": Plan(policy_lessons, {"width": 128, "layers": 4, "inner": 384, "head": 32}, Schedule(700)),
}


def corpus(examples: int) -> Iterator[str]:
    """Texts for the tokenizer: questions and answers of both models."""
    for lessons in (judge_lessons, policy_lessons):
        groups = lessons(Voice(random.Random(SEED)))
        for example in itertools.islice(itertools.chain.from_iterable(groups), examples):
            yield example.messages[0].content
            yield example.answer


def make(name: str, plan: Plan, tokenizer: Tokenizer, folder: Path) -> None:
    """Train one model and save it to `folder`."""
    torch.manual_seed(SEED)
    save_tokenizer(tokenizer, folder)
    packer = Packer(load_tokenizer(folder))
    rows = map(packer.pack, plan.lessons(Voice(random.Random(SEED + 1))))
    model = new_model(**plan.shape)
    log(f"{name}: {sum(weight.numel() for weight in model.parameters()):,} parameters")
    started = time.monotonic()
    train(model, batches(rows, plan.schedule.tokens), plan.schedule, log)
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
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    given: Any = parser.parse_args()
    torch.set_num_threads(given.threads)
    tokenizer = train_tokenizer(corpus(12000))
    for name in given.names or PLANS:
        make(name, PLANS[name], tokenizer, given.to / name)
    if all((given.to / name / "model.safetensors").exists() for name in PLANS):
        write_card(given.to)


if __name__ == "__main__":
    main()
