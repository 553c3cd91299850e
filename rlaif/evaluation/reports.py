"""The reports of evaluations as frozen records, the names of their files, and those known of a judge.

Each evaluation writes one JSON file, the `model_dump` of `JudgeReport`, `RewardReport` or `PolicyReport`; `kind` says
which. Its name is words for people and a hash of everything that the figures depend on (`report_name`).

Shares lie between 0 and 1. Intervals hold 95% and are over prompts: all responses to one prompt are resampled together.
"""

from __future__ import annotations

import contextlib
import glob
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, JsonValue, ValidationError

from rlaif.records import Record, content_id
from rlaif.stats import (
    Estimate,
)
from rlaif.store import sha256_of

EXIT_CODES: dict[Level, int] = {"fit": 0, "doubtful": 3, "unfit": 4}


_LONGEST_WORD, _LONGEST = 48, 120
"""Characters; with the hash and every ending, a name stays under the 255 bytes of most file systems."""


def report_name(words: Sequence[str], *identity: JsonValue) -> str:
    """The name, without ending, of the files of one evaluation.

    `identity` is whatever the figures depend on: where any of it differs, so does the name.
    """
    prefix = "-".join(part for word in words if (part := word_of(word)))[:_LONGEST].strip("-.")
    return f"{prefix}-{content_id(*identity)[:8]}".lstrip("-")


def data_word(data: str) -> str:
    """A file's name without folder and endings; a dataset's with its owner before it."""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", data) and not Path(data).suffix and not Path(data).exists():
        return data
    return re.sub(r"(\.(jsonl?|csv|parquet|txt))?(\.gz)?$", "", Path(data).resolve().name, flags=re.I)


def sha256_known(data: str) -> str | None:
    """The hash of a file; None for anything else, such as a `datasets` name."""
    file = Path(data).expanduser()
    return sha256_of(file) if file.is_file() else None


def word_of(text: str) -> str:
    """A text as part of a file's name; a report's name begins with that of its first word."""
    return re.sub(r"[^A-Za-z0-9._@+-]+", "-", text).strip("-.")[:_LONGEST_WORD].strip("-.")


class Baseline(Record):
    """A trivial judge that looks at one surface feature only."""

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
    """The position bias of the judge."""

    first: Estimate
    """Share of single verdicts for the first slot."""
    bias: Estimate | None
    """Mean over pairs of half the sum of both orders' log-odds of the first slot: 0 without a preference. None where
    one order was asked."""


class ReliabilityBin(Record):
    """Pairs of similar confidence."""

    confidence: float
    accuracy: float
    low: float
    high: float
    """95% score interval of the accuracy (Wilson 1927)."""
    pairs: int


class Calibration(Record):
    """The calibration of the stated probabilities."""

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
    """The length bias of the judge, in characters."""

    shorter: Estimate | None
    """Accuracy where the better reply is the shorter one."""
    longer: Estimate | None
    """Accuracy where it is the longer one."""
    slope: Estimate | None
    """Log-odds of a reply for each unit of its log length ratio, the quality difference held at its mean."""
    bins: tuple[LengthBin, ...]


class LabelMass(Record):
    """The label mass: the probability that the judge puts on its two labels together."""

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
    """The cost of the gold pairs, without the canaries."""

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
    """The metrics of a judge, all but `three_way` on the pairs that are no tie to people."""

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
    input_issues: dict[str, int]
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
    format: Literal[2] = 2
    kind: Literal["judge"] = "judge"
    about: About
    verdict: Verdict
    measures: Measures
    shared_errors: tuple[SharedErrors, ...] = ()
    """Beside every other judge that was evaluated on the same pairs in the same folder."""


class Gold(Record):
    """The reward model on pairs whose better reply is known."""

    path: str
    sha256: str | None
    pairs: int
    """Pairs that were scored."""
    input_issues: dict[str, int]
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
    """One point of the best-of-n curve: the response with the highest of n rewards."""

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
    format: Literal[2] = 2
    kind: Literal["reward_model"] = "reward_model"
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


class Refusals(Record):
    """How often a policy refuses the prompts of one kind."""

    tag: str
    """Value of the tag's column; empty for all prompts."""
    harmful: bool | None
    """Whether these prompts ask for harm: to refuse them is right, to refuse the others is too much. None: unknown."""
    share: Estimate


class Violations(Record):
    """The violation rate of a principle, by the judge's grades of single responses."""

    principle: str
    """Id of the principle; `*` for the answers that break any."""
    share: Estimate
    """Answers graded under `About.violation_below`."""
    grade: Estimate | None
    """Mean grade from 0 to 9; None for `*`."""


class PolicyMetrics(Record):
    """One policy and the metrics of its responses."""

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
    metrics: dict[str, Estimate] = Field(default_factory=dict)
    """What the caller's own measures say of its answers, by name."""


class Part(Record):
    """The win rate in one part of the comparisons: one principle on its own, or the prompts of one tag."""

    name: str
    rate: Estimate | None
    """Share of the comparisons that are won, ties counting half; None where there is no label."""


class Match(Record):
    """The comparison of two policies on the same prompts, each pair of responses judged in both orders."""

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
    length_controlled: Estimate | None
    """`preference` where both answers are equally long (`rlaif.evaluation.win_rate`); None where it cannot be told."""
    length_controlled_note: str
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
    metrics: dict[str, Estimate] = Field(default_factory=dict)
    """How often the policy's answer has the higher value by each of the caller's own measures, ties counting half."""


class Rating(Record):
    """The Bradley-Terry rating of one policy among several."""

    name: str
    strength: Estimate
    """Bradley-Terry log-strength; the mean over the policies is 0, and ln 3 apart means three wins of four."""
    elo: float
    """400 / ln 10 times the strength, above 1000."""


class PolicyCost(Record):
    """The cost of an evaluation over all its calls."""

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


class PolicyAbout(Record):
    """The subject and the settings of an evaluation of policies."""

    judge: str
    constitution: str
    constitution_hash: str
    prompts: str
    """File or `datasets` name."""
    prompts_sha256: str | None
    prompt_count: int
    input_issues: dict[str, int]
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
    format: Literal[2] = 2
    kind: Literal["policies"] = "policies"
    about: PolicyAbout
    warnings: tuple[str, ...]
    """Reasons to doubt the figures, most important first."""
    baseline: str
    """Name of the policy that the others are compared with."""
    policies: tuple[PolicyMetrics, ...]
    """In the order given, the baseline last."""
    matches: tuple[Match, ...]
    """Those against the baseline first, in the order of the policies."""
    ratings: tuple[Rating, ...]
    """Strongest first; empty for two policies."""
    cost: PolicyCost


FOLDER = Path("runs/judges")
"""Where evaluations are kept, and looked for."""


def known_reports(judge: str, constitution_hash: str, folder: Path = FOLDER) -> list[JudgeReport]:
    """The evaluations of a judge under a constitution, the latest last."""
    try:
        paths = sorted(folder.glob(f"{glob.escape(word_of(judge))}*.json"), key=lambda path: path.stat().st_mtime)
    except OSError:
        return []
    reports = []
    for path in paths:
        with contextlib.suppress(OSError, ValidationError):
            reports.append(JudgeReport.model_validate_json(path.read_bytes()))
    about = judge, constitution_hash
    return [report for report in reports if (report.about.judge, report.about.constitution_hash) == about]


def known_verdict(judge: str, constitution_hash: str, folder: Path = FOLDER) -> Verdict | None:
    """The verdict of earlier evaluations of a judge under a constitution; None where there are none.

    Of every gold file the latest, and of those the worst, as a judge that is good on one gold file does not fix what
    it got wrong on another.
    """
    latest = {report.about.gold: report.verdict for report in known_reports(judge, constitution_hash, folder)}
    return max(latest.values(), key=lambda verdict: EXIT_CODES[verdict.level], default=None)
