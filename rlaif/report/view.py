"""What the page shows, apart from how: plain frozen records.

What the page shows, apart from how: plain frozen records, so that every number on the page can be asked for here.

Shares lie between 0 and 1. None says that a thing is not known, never that it is zero.

What the page shows of trainings and evaluations: plain frozen records.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, JsonValue

from rlaif.evaluation.reports import JudgeReport, PolicyReport, RewardReport
from rlaif.records import Record

Level = Literal["serious", "caution", "note"]


class Warning(Record):
    """One thing to know before the figures are believed."""

    level: Level
    what: str
    hint: str
    where: str = ""
    """Id of the section that tells more."""


class Missing(Record):
    """A part that is not there, and what makes it."""

    what: str
    command: str


class Histogram(Record):
    """Counts between edges; the last bin has both its ends."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def total(self) -> int:
        """Everything counted."""
        return sum(self.counts)


class Stage(Record):
    """A stage of the last session."""

    name: str
    asked: int
    answered: int
    known: int
    """On disk already."""
    failed: dict[str, int]
    seconds: float | None


class Principle(Record):
    """A principle, and what it did to the labels."""

    id: str
    text: str | None = None
    """Its question; None where the constitution of the run cannot be read any more."""
    weight: float | None = None
    labels: int | None = None
    """Labels that it counts in."""
    compared: int | None = None
    """Comparisons in which it has a readable verdict in every order that was asked."""
    agreed: int | None = None
    """Labels whose direction it has too, alone."""
    opposed: int | None = None
    """Labels against whose direction it is, alone."""
    decided: int | None = None
    """Labels that would go the other way, or be even, without it."""
    flips: int | None = None
    """Comparisons where its own two orders disagree."""


class Slot(Record):
    """A judge and the slot."""

    judge: str
    verdicts: int
    """Readable answers that name a side, of its questions in the plan."""
    first: float | None
    """Share of them for the first slot."""
    bias: float | None
    """Mean log-odds of the first slot; in both orders this leaves the labels untouched."""
    removed: float | None = None
    """What was taken off the labels, where pairs were asked in one order."""


class Panelist(Record):
    """A judge of a panel."""

    judge: str
    agrees: int
    opposes: int
    abstains: int
    flips: int
    accuracy: float | None
    """If all err independently (Dawid and Skene 1979)."""


class Panel(Record):
    """How the judges of a panel agree."""

    judges: tuple[Panelist, ...]
    comparisons: int
    measure: str
    agreement: float | None
    correlation: float | None
    effective_at_least: float | None


class Verdicts(Record):
    """The judge's answers, all of them; those to questions of earlier settings are left out where the plan is known."""

    judgements: int
    unused: int
    """On disk, and no part of the present plan."""
    unparsed: int
    truncated: int
    low_mass: int
    """With less than `pair.min_label_mass` on the labels."""
    hard: int
    """Text verdicts, without probabilities."""
    mass: Histogram | None
    mass_mean: float | None
    slots: tuple[Slot, ...]


class Side(Record):
    """Lengths of replies, in characters."""

    median: float
    mean: float
    counts: tuple[int, ...]
    """By the bins of `Lengths.edges`."""


class Lengths(Record):
    """The chosen replies beside the rejected ones."""

    edges: tuple[int, ...]
    chosen: Side
    rejected: Side
    longer: float
    """Share of the pairs whose chosen reply is longer."""
    shorter: float


class Data(Record):
    """From samples to pairs, over everything that is on disk."""

    prompts: int
    samples: int
    blank: int
    truncated: int
    ranked: int | None = None
    """Prompts with a ranking."""
    distinct: int | None = None
    """Samples that are ranked: equal texts of a prompt count once."""
    comparisons: dict[str, int] = Field(default_factory=dict)
    """By what became of them: `labelled`, `tie`, `flip`, `unparsed`, `failed`."""
    flipped: int = 0
    """Comparisons whose orders disagree, left out or not."""
    confidence: dict[str, Histogram] = Field(default_factory=dict)
    """max(p, 1 - p) of the comparisons with a probability, by what became of them."""
    pairs: int = 0
    pairs_flipped: int = 0
    pairs_hard: int = 0
    without_pair: int | None = None
    """Ranked prompts without a pair."""
    margins: Histogram | None = None
    """Of the pairs."""
    lengths: Lengths | None = None
    ranks: dict[str, int] = Field(default_factory=dict)
    """Pairs by `chosen rank>rejected rank`."""
    revised_pairs: int = 0
    demonstrations: int = 0
    uses: dict[str, int] = Field(default_factory=dict)
    """Revisions by what came of them."""
    revised: dict[str, int] = Field(default_factory=dict)
    """Counts of the revisions' manifest."""


class Examples(Record):
    """Prompts to browse, as they go into the page."""

    total: int
    """Prompts that there are."""
    shown: int
    chosen: dict[str, int]
    """How many were taken for what."""
    cut: int
    """Texts that were cut."""
    longest: int
    """Characters after which a text is cut."""
    items: tuple[dict[str, Any], ...]
    principles: tuple[str, ...]
    judges: tuple[str, ...]


class About(Record):
    """What this is."""

    title: str
    kind: Literal["run", "training", "evaluation"]
    finished: bool
    next: str
    """The command that goes on; empty where nothing has to be."""
    when: str
    """UTC, by the date of the file that was written last; empty where unknown."""
    policy: str | None = None
    judge: str | None = None
    constitution: str | None = None
    constitution_hash: str | None = None
    made_by: str | None = None


class Provenance(Record):
    """To make it again."""

    versions: dict[str, str]
    hashes: dict[str, str]
    changed: tuple[str, ...]
    """Files that are not those of the manifest any more."""
    settings: str
    """The resolved settings, as YAML."""
    commands: tuple[str, ...]


class Page(Record):
    """Everything on the page."""

    about: About
    warnings: tuple[Warning, ...]
    missing: tuple[Missing, ...]
    principles: tuple[Principle, ...] = ()
    description: str = ""
    """Of the constitution."""
    constitution_note: str = ""
    counts: dict[str, int] = Field(default_factory=dict)
    failures: dict[str, int] = Field(default_factory=dict)
    stages: tuple[Stage, ...] = ()
    seconds: float | None = None
    """Of the last session."""
    input_issues: dict[str, int] = Field(default_factory=dict)
    announced: tuple[str, ...] = ()
    """What the run itself says against its labels."""
    verdicts: Verdicts | None = None
    panel: Panel | None = None
    data: Data | None = None
    examples: Examples | None = None
    trainings: tuple[Training, ...] = ()
    policies: tuple[Policies, ...] = ()
    rewards: tuple[Rewards, ...] = ()
    judges: tuple[Judges, ...] = ()
    provenance: Provenance


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
