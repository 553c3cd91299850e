"""`rlaif evaluate`: how good a model is at its part, beside trivial baselines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import click

from rlaif.cli.lazy import Entry, LazyGroup


class _Commands(LazyGroup):
    entries: ClassVar[Mapping[str, Entry]] = {
        "judge": Entry("rlaif.cli.evaluate_judge", "judge", "A judge on pairs whose better reply is known."),
        "policy": Entry("rlaif.cli.evaluate_policy", "policy", "Policies beside each other on the same prompts."),
        "reward": Entry("rlaif.cli.evaluate_reward", "reward", "A reward model on such pairs, and by best-of-n."),
    }


@click.command(cls=_Commands)
def evaluate() -> None:
    """Measure a model beside trivial baselines, with intervals."""
