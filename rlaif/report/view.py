"""The records that the report page shows: frozen data, without a trace of how they are drawn.

`rlaif.report.page.build_page` fills a `Page`, and `rlaif.report.render` turns it into HTML, so every number on the page
can be read from here. Shares lie between 0 and 1. None says that a value is unknown, never that it is zero.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, JsonValue

from rlaif.evaluation.reports import JudgeReport, PolicyReport, RewardReport
from rlaif.records import Record

Level = Literal["serious", "caution", "note"]


class Warning(Record):
    """One thing to know before trusting the metrics."""

    level: Level
    message: str
    hint: str
    where: str = ""
    """Id of the section with the details."""


class Missing(Record):
    """A part that the folder lacks, and the command that makes it."""

    part: str
    command: str


class Histogram(Record):
    """Counts between edges; the last bin is closed on both sides."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def total(self) -> int:
        """The sum of the counts."""
        return sum(self.counts)


class Stage(Record):
    """The requests of one stage in the last session."""

    name: str
    requests: int
    completed: int
    cached: int
    """On disk before the session."""
    failed: dict[str, int]
    seconds: float | None


class Principle(Record):
    """A principle, and its influence on the labels."""

    id: str
    text: str | None = None
    """Its question; None where the constitution of the run is no longer readable."""
    weight: float | None = None
    labels: int | None = None
    """Labels that it counts in."""
    compared: int | None = None
    """Comparisons in which it has a readable verdict in every requested order."""
    agreed: int | None = None
    """Labels with the same sign as the principle's own verdict."""
    opposed: int | None = None
    """Labels with the opposite sign."""
    decided: int | None = None
    """Labels that would change sign, or become ties, without it."""
    flips: int | None = None
    """Comparisons in which its verdict changes when the order is swapped."""


class Slot(Record):
    """The position bias of one judge."""

    judge: str
    verdicts: int
    """Readable verdicts that prefer a side, of the judgements in the plan."""
    first: float | None
    """Share of them for the first slot."""
    bias: float | None
    """Mean log-odds of the first slot; it cancels out of labels made in both orders."""
    removed: float | None = None
    """Log-odds subtracted from the labels, where pairs were judged in one order."""


class Panelist(Record):
    """A judge of a panel."""

    judge: str
    agrees: int
    opposes: int
    abstains: int
    flips: int
    accuracy: float | None
    """Under independent errors (Dawid and Skene 1979)."""


class Panel(Record):
    """How the judges of a panel agree."""

    judges: tuple[Panelist, ...]
    comparisons: int
    measure: str
    agreement: float | None
    correlation: float | None
    effective_at_least: float | None


class Verdicts(Record):
    """All judgements of the run; where the plan is known, those of earlier settings are left out."""

    judgements: int
    unused: int
    """On disk, but not in the current plan."""
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
    """Lengths of responses, in characters."""

    median: float
    mean: float
    counts: tuple[int, ...]
    """By the bins of `Lengths.edges`."""


class Lengths(Record):
    """Lengths of the chosen and of the rejected responses."""

    edges: tuple[int, ...]
    chosen: Side
    rejected: Side
    longer: float
    """Share of the pairs whose chosen response is longer."""
    shorter: float


class Data(Record):
    """Counts from samples to pairs, over everything on disk."""

    prompts: int
    samples: int
    blank: int
    truncated: int
    ranked: int | None = None
    """Prompts with a ranking."""
    distinct: int | None = None
    """Ranked samples; equal texts of a prompt count once."""
    comparisons: dict[str, int] = Field(default_factory=dict)
    """By status: `labelled`, `tie`, `flip`, `unparsed`, `failed`."""
    flipped: int = 0
    """Comparisons whose two orders disagree, whether or not they were dropped."""
    confidence: dict[str, Histogram] = Field(default_factory=dict)
    """max(p, 1 - p) of the comparisons with a probability, by status."""
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
    """Revisions by their use."""
    revised: dict[str, int] = Field(default_factory=dict)
    """Counts of the revisions' manifest."""


class Examples(Record):
    """Prompts to browse, in the form of the page's JSON."""

    total: int
    """All prompts of the run."""
    shown: int
    chosen: dict[str, int]
    """Number of prompts by the reason for which they are shown."""
    cut: int
    """Number of truncated texts."""
    longest: int
    """Characters after which a text is truncated."""
    items: tuple[dict[str, Any], ...]
    principles: tuple[str, ...]
    judges: tuple[str, ...]


class About(Record):
    """The header of the page."""

    title: str
    kind: Literal["run", "training", "evaluation"]
    finished: bool
    next: str
    """The command that resumes unfinished work; empty where there is none."""
    when: str
    """UTC time of the newest result file; empty where unknown."""
    policy: str | None = None
    judge: str | None = None
    constitution: str | None = None
    constitution_hash: str | None = None
    made_by: str | None = None


class Provenance(Record):
    """What it takes to reproduce the folder."""

    versions: dict[str, str]
    hashes: dict[str, str]
    changed: tuple[str, ...]
    """Files that no longer match the manifest."""
    settings: str
    """The resolved settings, as YAML."""
    commands: tuple[str, ...]


class Training(Record):
    """One training."""

    name: str
    """Its folder, relative to that of the page."""
    method: str
    kind: str
    """The loss, or the algorithm."""
    status: Literal["finished", "stopped", "unfinished", "damaged"]
    model: str
    """The model that it started from."""
    settings: dict[str, JsonValue]
    overrides: dict[str, JsonValue]
    """The settings that differ from their defaults."""
    data_hash: str
    data_note: str = ""
    """Where the data are in this folder, or that they changed."""
    version: str
    steps: int | None
    planned: int | None
    seconds: float | None
    metrics: dict[str, tuple[float | None, float | None]]
    """The last values by label: on training and on held-out data."""
    alarms: tuple[str, ...] = ()
    held_out: tuple[dict[str, float | None], ...] = ()
    """Held-out evaluations: step, win_rate, and length_controlled, which is None where it has no estimate."""
    history: tuple[dict[str, Any], ...] = ()
    command: str = ""
    """The command that repeats or resumes the training."""


class Versus(Record):
    """One comparison of two policies' responses, to read."""

    prompt: str
    tag: str | None
    policy: str
    baseline: str
    response: str
    baseline_response: str
    status: str
    probability: float | None
    """That the policy's response is better."""
    principles: dict[str, float | None] = Field(default_factory=dict)


class Policies(Record):
    """An evaluation of policies."""

    path: str
    report: PolicyReport
    examples: tuple[Versus, ...] = ()
    compared: int = 0
    """Number of comparisons from which the examples are taken."""
    models: dict[str, str] = Field(default_factory=dict)
    """The model of each policy whose name stands for another model in another evaluation."""
    stale: tuple[str, ...] = ()
    """Policies whose folder now holds another model."""


class Rewards(Record):
    """An evaluation of a reward model."""

    path: str
    report: RewardReport
    stale: bool = False
    """Whether the folder now holds another model."""


class Judges(Record):
    """An evaluation of a judge."""

    path: str
    report: JudgeReport
    labeller: bool
    """Whether it is the judge of this run, under its constitution."""


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
    """Warnings that the run itself recorded."""
    verdicts: Verdicts | None = None
    panel: Panel | None = None
    data: Data | None = None
    examples: Examples | None = None
    trainings: tuple[Training, ...] = ()
    policies: tuple[Policies, ...] = ()
    rewards: tuple[Rewards, ...] = ()
    judges: tuple[Judges, ...] = ()
    provenance: Provenance
