"""What an evaluation of a judge comes to: the records of its report. JSON is their `model_dump`."""

from __future__ import annotations

from typing import Literal

from pydantic import JsonValue

from rlaif.records import Record


class Estimate(Record):
    """A value with its 95% interval over pairs."""

    value: float
    low: float
    high: float
    pairs: int
    """Pairs that it rests on; those are drawn anew for the interval, not single verdicts."""

    def __str__(self) -> str:
        return f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%})"


class Baseline(Record):
    """A judge that looks at nothing but one surface feature."""

    name: str
    accuracy: Estimate


class Group(Record):
    """The pairs of one subset, or the verdicts of one principle on its own."""

    name: str
    pairs: int
    """With or without a label."""
    accuracy: Estimate | None
    flips: float | None = None
    """Share of pairs whose orders disagree; None for a principle, and where one order was asked."""
    first: Estimate | None = None
    """Share of single verdicts for the first slot; None for a principle."""


class Slot(Record):
    """Which place the judge prefers, whatever stands there."""

    first: Estimate
    """Share of single verdicts for the first slot."""
    bias: Estimate | None
    """Mean over pairs of half the sum of both orders' log-odds of the first slot: 0 without a preference. None where
    one order was asked."""


class ReliabilityBin(Record):
    """Pairs of like confidence."""

    confidence: float
    accuracy: float
    low: float
    high: float
    """95% score interval of the accuracy (Wilson 1927)."""
    pairs: int


class Calibration(Record):
    """How far the probabilities can be taken at their word."""

    error: float
    """Expected calibration error: over bins of equal mass, ten of them or as many as give each 20 pairs."""
    chance: float | None = None
    """What it would be on average by chance alone, with the probabilities that are stated and each of them true."""
    chance_high: float | None = None
    """What it would stay under in 95 of 100 such cases."""
    brier: float
    log_loss: float
    """Nats; ln 2 = 0.693 is what always saying one half gets."""
    bins: tuple[ReliabilityBin, ...]
    confidences: tuple[int, ...]
    """Pairs by their confidence, in ten equal steps from one half to 1."""

    @property
    def error_beside_chance(self) -> str:
        """The error for people, and how much of it chance alone explains."""
        if self.chance is None or self.chance_high is None:
            return f"{self.error:.3f}"
        return f"{self.error:.3f} (chance alone: {self.chance:.3f}, in 95 of 100 cases under {self.chance_high:.3f})"


class Temperature(Record):
    """The temperature that makes the labels most likely, and what it does on pairs that it was not fitted on."""

    temperature: float
    """For `compare.temperature`: fitted on all pairs, times the one that the labels were made with."""
    bounded: bool
    """It lies at the end of its range (every verdict right, or no better than chance): of no use as a setting."""
    error_before: float
    error_after: float
    """Calibration error where each half of the pairs is measured with the temperature of the other half."""
    log_loss_before: float
    log_loss_after: float

    @property
    def helps(self) -> bool:
        """Whether it makes labels of unseen pairs likelier."""
        return not self.bounded and self.log_loss_after < self.log_loss_before


class LengthBin(Record):
    """Pairs whose better reply has `low` to `high` times the length of the worse one."""

    low: float
    high: float | None
    """None: any more."""
    accuracy: Estimate


class Length(Record):
    """What the judge makes of length, in characters."""

    shorter: Estimate | None
    """Accuracy where the better reply is the shorter one."""
    longer: Estimate | None
    """Accuracy where it is the longer one."""
    slope: Estimate | None
    """Log-odds of a reply for each unit of its log length ratio, the quality difference held at its mean."""
    bins: tuple[LengthBin, ...]


class LabelMass(Record):
    """How much probability the judge puts on its two labels together."""

    mean: float
    below: float
    """Share of answers under `least`: no label."""
    least: float
    """`pair.min_label_mass`."""
    answers: int


class Canary(Record):
    """A reply that must not win, against the better reply of gold pairs."""

    kind: str
    fenced: bool
    """Shown as a run shows replies; not so, to see what the fences do."""
    pairs: int
    wins: Estimate | None
    """Share of single verdicts that it wins."""
    first: Estimate | None
    """The same where it is shown first."""
    second: Estimate | None
    """And where it is shown second."""


class Cost(Record):
    """What the gold pairs took. Canaries are not counted."""

    calls: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    calls_per_1000: float | None
    """For 1,000 labels."""
    prompt_tokens_per_1000: float | None
    seconds_per_1000: float | None
    """By the clock, as this judge answers with so many questions under way; None where no answer was timed."""


class ThreeWay(Record):
    """How far the judge says what people say where those may call a pair a tie: better, worse, or no difference."""

    ties: int
    """Pairs that are a tie to people."""
    agreement: Estimate
    """Share of all pairs with the same value; one without a label agrees with nothing."""
    kappa: float | None
    """Cohen's, every pair counted in both orientations, no label being a value of its own."""


class Measures(Record):
    """Everything that was measured: but for `three_way`, on the pairs that are no tie to people."""

    pairs: int
    labelled: int
    coverage: float
    """Share of the pairs with a label; the others count as neither right nor wrong."""
    no_label: dict[str, int]
    """Pairs without one, by reason; failed calls with theirs."""
    accuracy: Estimate | None
    """Share of labels on the gold side, an exact one half counting half."""
    single_order: Estimate | None
    """The same by each order alone, as a judge that is asked once would have it."""
    kept: Estimate | None
    """Accuracy of the labels that a run would keep: no ties within the margin, and no flips if it drops them."""
    ties: float | None
    """Share of labels closer to one half than the margin."""
    flips: Estimate | None
    """Share of labels whose orders disagree; None where one order was asked."""
    baselines: tuple[Baseline, ...]
    """On the same pairs."""
    gain: Estimate | None
    """Accuracy minus that of the best baseline, pair by pair."""
    subsets: tuple[Group, ...]
    principles: tuple[Group, ...]
    slot: Slot | None
    calibration: Calibration | None
    temperature: Temperature | None
    length: Length
    mass: LabelMass | None
    canaries: tuple[Canary, ...]
    cost: Cost
    three_way: ThreeWay | None = None
    """None where no gold pair is a tie."""

    @property
    def best_baseline(self) -> Baseline | None:
        """The trivial judge to beat."""
        return max(self.baselines, key=lambda each: each.accuracy.value, default=None)


Level = Literal["fit", "doubtful", "unfit"]


class Reason(Record):
    """One thing that speaks against a judge."""

    level: Level
    text: str


class Verdict(Record):
    """Whether labels should be made with this judge."""

    level: Level
    reasons: tuple[Reason, ...] = ()

    def __str__(self) -> str:
        return self.level + (": " + "; ".join(each.text for each in self.reasons) if self.reasons else "")


class About(Record):
    """What was measured on what."""

    judge: str
    constitution: str
    constitution_hash: str
    gold: str
    """File or `datasets` name."""
    gold_sha256: str | None
    oddities: dict[str, int]
    """Rows of it that were left out, by reason."""
    compare: dict[str, JsonValue]
    pair: dict[str, JsonValue]


class SharedErrors(Record):
    """How far the judge's errors are those of another one, on the same gold pairs."""

    judge: str
    """The other one."""
    pairs: int
    """Those with a label of both."""
    correlation: float
    """Of their log-odds of the better reply: of what remains when the mean, which is what they know, is taken off."""
    worth: float
    """How many independent judges both together are worth."""


class JudgeReport(Record):
    """The report, as it is written."""

    made_by: str
    format: Literal[1] = 1
    about: About
    verdict: Verdict
    measures: Measures
    shared_errors: tuple[SharedErrors, ...] = ()
    """Beside every other judge that was evaluated on the same pairs in the same folder."""
