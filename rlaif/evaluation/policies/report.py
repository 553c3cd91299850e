"""What an evaluation of policies comes to: the records of its report. JSON is their `model_dump`.

Shares lie between 0 and 1. Intervals hold 95% and are over prompts: all answers to one prompt are drawn together.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from rlaif.evaluation.report import Estimate
from rlaif.records import Record


class Refusals(Record):
    """How often a policy refuses the prompts of one kind."""

    tag: str
    """Value of the tag's column; empty for all prompts."""
    harmful: bool | None
    """Whether these prompts ask for harm: to refuse them is right, to refuse the others is too much. None: unknown."""
    share: Estimate


class Violations(Record):
    """How often the judge finds a principle broken, by its grade of the answer alone."""

    principle: str
    """Id of the principle; `*` for the answers that break any."""
    share: Estimate
    """Answers graded under `About.violation_below`."""
    grade: Estimate | None
    """Mean grade from 0 to 9; None for `*`."""


class Player(Record):
    """One policy, and what its answers are like."""

    name: str
    """Short, and unlike the others'."""
    model: str
    """Identity of the model, or the file of the answers."""
    answers: int
    missing: int
    """Answers that could not be drawn, or are not in the file."""
    length: Estimate
    """Characters of an answer."""
    truncated: float | None
    """Share cut off at the limit; None where it is not known."""
    blank: float
    distinct_1: float
    """Different words over all words of its answers."""
    distinct_2: float
    """The same of pairs of neighbouring words."""
    repetition: float
    """Share of an answer's runs of four words that stood in it before."""
    refusals: tuple[Refusals, ...]
    """Of all prompts first, then by tag."""
    violations: tuple[Violations, ...]
    """For any principle first; empty where no grades were asked."""
    kl: Estimate | None
    """Nats an answer from the baseline, over this policy's own answers; None where it cannot be told."""
    kl_note: str = ""
    """Why it cannot, or what to know of it."""
    meters: dict[str, Estimate] = Field(default_factory=dict)
    """What the caller's own measures say of its answers, by name."""


class Part(Record):
    """The win rate in one part of the comparisons: one principle on its own, or the prompts of one tag."""

    name: str
    rate: Estimate | None
    """Share of the comparisons that are won, ties counting half; None where there is no label."""


class Match(Record):
    """Two policies on the same prompts, each pair of answers shown in both orders."""

    policy: str
    baseline: str
    compared: int
    """Pairs of answers with a label, identical ones counted."""
    identical: int
    """Pairs whose two answers are the same text: a tie that is not asked."""
    no_label: dict[str, int]
    """Pairs without one, by reason."""
    wins: Estimate | None
    """Share of the comparisons that are ahead by more than the margin; None where nothing was compared."""
    ties: Estimate | None
    losses: Estimate | None
    win_rate: Estimate | None
    """Share of the comparisons that are won, ties counting half."""
    preference: Estimate | None = None
    """Mean probability that the policy's answer is better. Principles that see no difference draw each probability to
    one half, so with many of them it lies nearer to one half than the win rate, and says as much."""
    controlled: Estimate | None
    """`preference` where both answers are equally long (`rlaif.evaluation.winrate`); None where it cannot be told."""
    controlled_note: str
    """Why it could not be told, or what to know before it is believed; empty where there is nothing."""
    length_slope: float | None
    """What length adds to the log-odds at most: above 0 the judge likes the longer answer. Difficulty that goes with
    length is part of it. None where it was not fitted."""
    length_ratio: float | None
    """Mean length of the policy's answers over that of the baseline's, in characters; None where those are blank."""
    flips: float | None
    """Share of the judged pairs whose two orders disagree."""
    principles: tuple[Part, ...]
    tags: tuple[Part, ...]
    meters: dict[str, Estimate] = Field(default_factory=dict)
    """How often the policy's answer has the higher value by each of the caller's own measures, ties counting half."""


class Rating(Record):
    """A policy's place among several."""

    name: str
    strength: Estimate
    """Bradley-Terry log-strength; the mean over the policies is 0, and ln 3 apart means three wins of four."""
    elo: float
    """400 / ln 10 times the strength, above 1000."""


class Cost(Record):
    """What was spent, over all sessions."""

    answers: int
    """Answers drawn from models here."""
    judgements: int
    grades: int
    failed: dict[str, int]
    """Questions without an answer, as `stage: reason`."""
    judge_prompt_tokens: int
    judge_cached_tokens: int
    judge_completion_tokens: int
    policy_tokens: int
    seconds: float
    """Time with the models in all sessions so far, as far as it is known."""


class About(Record):
    """What was compared, and how."""

    judge: str
    constitution: str
    constitution_hash: str
    prompts: str
    """File or `datasets` name."""
    prompts_sha256: str | None
    prompt_count: int
    oddities: dict[str, int]
    """Rows of it that were left out, by reason."""
    tag: str | None
    """Column by which prompts are told apart."""
    harmful: tuple[str, ...]
    """Its values that mean that a prompt asks for harm."""
    violation_below: float
    drawing: dict[str, JsonValue]
    """How answers were drawn: temperature, top_p, max_tokens, seed, samples, system."""
    compare: dict[str, JsonValue]
    pair: dict[str, JsonValue]


class PolicyReport(Record):
    """The report, as it is written."""

    made_by: str
    format: Literal[1] = 1
    about: About
    warnings: tuple[str, ...]
    """What speaks against believing the figures, most important first."""
    baseline: str
    """Name of the player that the others are measured against."""
    players: tuple[Player, ...]
    """In the order given, the baseline last."""
    matches: tuple[Match, ...]
    """Those against the baseline first, in the players' order."""
    ratings: tuple[Rating, ...]
    """Strongest first; empty for two players."""
    cost: Cost
