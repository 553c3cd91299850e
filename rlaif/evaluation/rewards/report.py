"""What an evaluation of a reward model comes to: the records of its report. JSON is their `model_dump`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlaif.evaluation.report import Baseline, Calibration, Estimate, Group, Length, Temperature
from rlaif.records import Record


class Gold(Record):
    """The reward model on pairs whose better reply is known."""

    path: str
    sha256: str | None
    pairs: int
    """Pairs that were scored."""
    oddities: dict[str, int]
    """Rows that were left out, by reason."""
    no_reward: dict[str, int] = Field(default_factory=dict)
    """Pairs with a reply that has no reward, by reason (`too-long`, `blank`, ...): neither right nor wrong."""
    truncated: float
    """Share of the scored pairs whose conversation was too long with one of the replies, and lost its beginning."""
    accuracy: Estimate | None
    """Share of pairs whose better reply has the higher reward, equal rewards counting half."""
    margin: Estimate | None
    """Mean reward of the better reply less that of the worse one, in the model's own units."""
    calibration: Calibration | None
    """Of sigmoid(margin), which is the probability of the better reply under Bradley-Terry."""
    temperature: Temperature | None = None
    """What rewards would have to be divided by for those probabilities to come true; `helps` says whether it is of use.
    It changes no order."""
    length: Length
    """What the model makes of length, as for a judge."""
    length_correlation: float | None
    """Pearson correlation of reward and length in characters over all replies; None where either does not vary."""
    baselines: tuple[Baseline, ...]
    gain: Estimate | None
    """Accuracy minus that of the best baseline, pair by pair."""
    subsets: tuple[Group, ...]
    trained_on: int | None = None
    """Pairs that stand in the data that the model was trained on, perhaps among those held out there; None where that
    cannot be told."""

    @property
    def best_baseline(self) -> Baseline | None:
        """The trivial judge to beat."""
        return max(self.baselines, key=lambda each: each.accuracy.value, default=None)

    @property
    def beats_baselines(self) -> bool:
        """Whether the accuracy is above that of the best baseline: the interval of the gain leaves 0 out."""
        return self.gain is not None and self.gain.low > 0


class BestOf(Record):
    """What choosing the answer with the highest reward among n does."""

    n: int
    kl: float
    """Nats from the policy: ln n - (n - 1)/n (an upper bound, Stiennon et al. 2020; Beirami et al. 2024)."""
    reward: Estimate
    """Mean reward of the chosen answer, less the mean of all answers, in deviations of all rewards."""
    gold: Estimate
    """The same by the other measure, which does not see the reward; in its own units, not shifted."""
    length: float
    """Mean length of the chosen answer, in characters."""


class BestOfN(Record):
    """The curve of best-of-n: where the reward rises and the other measure falls, the reward is over-optimised."""

    policy: str
    measure: str
    """What the other measure is: the judge's mean grade (0 to 9), or what the caller brought."""
    prompts: int
    """Prompts whose answers all have a reward and a value of the other measure; the intervals are over these."""
    samples: int
    """Answers of each prompt."""
    left_out: dict[str, int] = Field(default_factory=dict)
    """Prompts that were left out, by reason."""
    truncated: float | None = None
    """Share of the answers cut off at the limit; None where that is not known."""
    points: tuple[BestOf, ...]
    best_n: int
    """The n with the highest value of the other measure."""
    drop: Estimate | None = None
    """By how much the other measure is higher at its best n than at the largest, prompt by prompt; None where the
    largest n is the best. The best n is chosen on the same prompts, so that a small drop is no surprise."""
    overoptimised: bool
    """The other measure falls significantly after its best: the interval of the paired difference leaves 0 out."""


class RewardReport(Record):
    """The report, as it is written."""

    made_by: str
    format: Literal[1] = 1
    model: str
    """Identity of the reward model."""
    folder: str
    """Folder or hub name, as it was given."""
    template: str = "chat"
    """How conversations became texts: `chat` by the chat template, `plain` as a dialogue, `text` as they stand."""
    warnings: tuple[str, ...]
    """What speaks against the model, or against believing the figures; most important first."""
    gold: Gold | None
    best_of_n: BestOfN | None
