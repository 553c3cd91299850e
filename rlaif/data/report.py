"""What the doctor found, as frozen records: `Report.model_dump()` is the JSON of `rlaif data check --format json`."""

from __future__ import annotations

from typing import Literal

from rlaif.records import Record

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")


class Finding(Record):
    """One rule that rows break."""

    level: Level
    """`error`: training would break or learn nonsense; `warning`: it would learn something unmeant; `note`: to know."""
    rule: str
    count: int
    """Rows that break it; for a rule about the whole file, the rows that it was measured on."""
    share: float
    """`count` over the rows read."""
    lines: tuple[int, ...]
    """The first lines (row numbers in Parquet and on the hub); none for a rule about the whole file."""
    what: str
    mend: str


class Lengths(Record):
    """How much longer the chosen replies are, in characters without the space around them."""

    pairs: int
    chosen_longer: float | None
    """Share of the pairs; None for unpaired data."""
    rejected_longer: float | None
    median_chosen: int
    median_rejected: int
    effect_size: float | None
    """Cohen's d of log(1 + length): the difference of the means over the pooled standard deviation of both sides."""
    auc: float
    """Length alone as a reward: P(a chosen reply is longer than a rejected one) + P(equal) / 2, over all of either."""


class Labels(Record):
    """What the labels carry: soft labels of pairs, or the classes of unpaired data."""

    rows: int
    half: float | None = None
    """Share of soft labels that are exactly 0.5."""
    certain: float | None = None
    """Share that are exactly 0 or 1."""
    entropy: float | None = None
    """Mean entropy of the soft labels in bits: 0 where all are certain, 1 where all are 0.5."""
    desirable: float | None = None
    """Share of desirable replies, in unpaired data."""


class Refusals(Record):
    """Shares of replies that open like an English refusal."""

    chosen: float
    rejected: float


class Truncation(Record):
    """What a limit on the tokens of prompt and reply together cuts."""

    max_length: int
    tokenizer: str | None
    """None: estimated at four characters a token."""
    prompt: float
    """Share of the rows whose prompt alone fills the limit."""
    chosen: float | None
    rejected: float | None


class Overlap(Record):
    """Rows that share words with an evaluation set."""

    path: str
    items: int
    rows: int


class Report(Record):
    """What the doctor says about one file."""

    path: str
    shape: str | None
    """`preference`, `dialogues`, `rated`, `unpaired`; None where it is none of them."""
    columns: tuple[str, ...]
    """Columns of the first row."""
    rows: int
    usable: int
    """Rows that could be read as a prompt with its replies."""
    worst: Level | None
    findings: tuple[Finding, ...]
    """Errors first, then by count."""
    lengths: Lengths | None = None
    labels: Labels | None = None
    refusals: Refusals | None = None
    truncation: Truncation | None = None
    overlaps: tuple[Overlap, ...] = ()
