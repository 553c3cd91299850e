"""What the page shows of trainings and evaluations: plain frozen records."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, JsonValue

from rlaif.evaluation.policies.report import PolicyReport
from rlaif.evaluation.report import JudgeReport
from rlaif.evaluation.rewards.report import RewardReport
from rlaif.records import Record


class Training(Record):
    """One training."""

    name: str
    """Its folder, relative to that of the page."""
    method: str
    kind: str
    """The loss, or the algorithm."""
    status: Literal["finished", "stopped", "unfinished", "damaged"]
    model: str
    """What it started from."""
    settings: dict[str, JsonValue]
    told: dict[str, JsonValue]
    """The settings that are not at their defaults."""
    data_hash: str
    data_note: str = ""
    """What is known of these data."""
    version: str
    steps: int | None
    planned: int | None
    seconds: float | None
    figures: dict[str, tuple[float | None, float | None]]
    """The last ones by name: in training, and held out."""
    alarms: tuple[str, ...] = ()
    held_out: tuple[dict[str, float | None], ...] = ()
    """The held-out judge's looks: step, win_rate, controlled, which is None where it could not be told."""
    history: tuple[dict[str, Any], ...] = ()
    command: str = ""
    """To make it again, or to go on with it."""


class Versus(Record):
    """One comparison of two policies' answers, to read."""

    prompt: str
    tag: str | None
    policy: str
    baseline: str
    answer: str
    other: str
    status: str
    probability: float | None
    """That the policy's answer is better."""
    principles: dict[str, float | None] = Field(default_factory=dict)


class Policies(Record):
    """An evaluation of policies."""

    path: str
    report: PolicyReport
    examples: tuple[Versus, ...] = ()
    compared: int = 0
    """Comparisons that the examples are taken from."""
    models: dict[str, str] = Field(default_factory=dict)
    """By player, which model it was, where another evaluation has another one of that name."""
    stale: tuple[str, ...] = ()
    """Players whose folder holds another model by now."""


class Rewards(Record):
    """An evaluation of a reward model."""

    path: str
    report: RewardReport
    stale: bool = False
    """The folder holds another model by now."""


class Judges(Record):
    """An evaluation of a judge."""

    path: str
    report: JudgeReport
    labeller: bool
    """It is the judge of this run, under its constitution."""
