"""Aggregation: the ordered judgements about a pair become one probability, or the reason why there is none.

Each order gives a logit, `log P(first) - log P(second)`. Over the principles the logits of one order are averaged by
weight; then the two orders are averaged, the second one negated, and squashed once. Averaging logits, not
probabilities, cancels a position bias that adds to the logit exactly (arXiv:2309.00267 averages probabilities).

`shares` and `moves` attribute a comparison to its principles: each principle's own comparison, and its part of the
weight.

A panel averages the log-odds of its judges by weight, order by order, and then the two orders, as one judge's
principles are averaged. Each judge's votes are first folded as if it judged alone; its flips are marked and not left
out. Pooling by the mean is one of the two ways of the panel of Verga et al. (2024, arXiv:2404.18796). A panel of one
is its judge.

**Position bias.** Where one order is asked, a bias that adds to the logit stays in the label, but not hidden: in

    log P(first) - log P(second) = s_first - s_second + b + noise

the order is drawn by hash, so the difference of the strengths has either sign with equal chance, and only b is left on
average. So the mean of all logits estimates b without bias, whatever the strengths are, and whether or not principles
differ from call to call. It is a noisy mean, as a confident judge's logits are wide; within a prompt the strengths can
be estimated too and taken off. Hence Bradley and Terry's strengths (1952) with a common term for the slot (Davidson and
Beaver 1977), fitted to the logits themselves, which are what a soft label gives, with a ridge on the strengths:
b = sum 1'Wy / sum 1'W1 over prompts, W = I - B (B'B + ridge)^-1 B', where B has a row for every call, +1 at its first
and -1 at its second sample. Since the signs of B are random, this has no bias under any ridge: a ridge too small or too
large costs precision alone. With a single pair a prompt it is the plain mean again. The standard error is robust:
prompts are independent, calls within one are not taken to be. What is removed is the estimate shrunk by its own
uncertainty (positive-part shrinkage: James and Stein 1961), so that a judge without a bias, or a run too small to tell,
is left nearly as it is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

from pydantic import JsonValue

from rlaif.config.schemas import CompareSettings, PairSettings
from rlaif.records import Judgement, Verdict
from rlaif.stats import sigmoid

TEXT_TEMPERATURE = 1.6
"""What the log-odds of a verdict in words are divided by before any temperature that a user sets or fits.

Judges that name a label without a probability are less sure than 0.99: on LLMBar, where both orders agree, GPT-4 is
right in 0.98 of the pairs of one subset and 0.81 of another, ChatGPT in 0.94 and LLaMA 2 in 0.89. The temperatures that
make these most likely are 1.2, 3.2, 1.6 and 2.2.
"""
HARD_LOGIT = math.log(0.99 / 0.01) / TEXT_TEMPERATURE
"""What a text verdict counts: 0.946, over-confident still for many judges until `rlaif evaluate judge` fits their own
temperature; the same for every verdict, so that one order's opposite verdict brings the mean back to one half."""

_SIGNS: Mapping[str, float] = {Verdict.FIRST: 1.0, Verdict.SECOND: -1.0, Verdict.TIE: 0.0}
_MAX_LOGIT = 30.0
"""Logits are clipped here: a label with no probability at all must not outweigh every other principle."""


class Status(StrEnum):
    """What became of a comparison."""

    LABELLED = "labelled"
    TIE = "tie"
    FLIP = "flip"
    """The orders disagree, and `flips: drop` is set."""
    UNPARSED = "unparsed"
    """No principle has a readable verdict in every order: off-menu text, or too little label mass."""
    FAILED = "failed"
    """A judge call has no answer yet; run again to ask it."""


@dataclass(frozen=True, slots=True)
class Vote:
    """One principle's evidence: its judgements with the pair's left sample first, and with it second."""

    principle: str
    weight: float
    forward: Judgement | None
    backward: Judgement | None
    wanted: tuple[bool, bool] = (True, True)
    """Which orders were asked at all (`orders: random` asks one)."""
    temperature: float = 1.0
    """What its logits are divided by (`compare.temperature`)."""
    slot: float = 0.0
    """What the judge adds to the logit of the first slot, to be taken off (`compare.position_bias`)."""

    @property
    def judgements(self) -> list[Judgement | None]:
        """The judgements of the orders that were asked, None where the call has no answer."""
        orders = zip((self.forward, self.backward), self.wanted, strict=True)
        return [judgement for judgement, wanted in orders if wanted]


@dataclass(frozen=True, slots=True)
class Comparison:
    """An unordered pair with its orders and principles folded; everything is about `left` being better."""

    left: str
    right: str
    status: Status
    logit: float = 0.0
    flip: bool = False
    hard: bool = False
    principles: tuple[str, ...] = ()
    """Those that count in the label."""
    flips: tuple[str, ...] = ()
    """Principles whose own two orders disagree."""
    judgements: tuple[str, ...] = ()
    orders: tuple[float, ...] = ()
    """The log-odds by each order that was asked: with `left` first, and with it second. Their mean is `logit`."""

    @property
    def probability(self) -> float:
        """Probability that `left` is better."""
        return sigmoid(self.logit)

    @property
    def readable(self) -> bool:
        """Whether it has a probability: an answer to every question, and a label in every order that was asked."""
        return self.status not in (Status.UNPARSED, Status.FAILED)


def first_logit(judgement: Judgement, *, min_mass: float, temperature: float = 1.0, slot: float = 0.0) -> float | None:
    """Log-odds that the sample in the first slot is better, or None where the judgement has no label.

    After the cut, `slot` is taken off and the rest is divided by `temperature` (Guo et al. 2017, arXiv:1706.04599);
    text verdicts are treated alike, but for a stated tie, which stays one.
    """
    return logit_of(
        judgement.verdict,
        judgement.logprobs,
        judgement.label_mass,
        min_mass=min_mass,
        temperature=temperature,
        slot=slot,
    )


def logit_of(
    verdict: str,
    logprobs: tuple[float, float] | None,
    label_mass: float | None,
    *,
    min_mass: float,
    temperature: float = 1.0,
    slot: float = 0.0,
) -> float | None:
    """`first_logit` of what a judgement holds."""
    if logprobs is None:
        sign = _SIGNS.get(verdict)
        return sign if sign is None or sign == 0 else (sign * HARD_LOGIT - slot) / temperature
    if label_mass is None or label_mass < min_mass:
        return None
    first, second = logprobs
    if math.isnan(first) or math.isnan(second) or first == second == -math.inf:
        return None
    return (max(-_MAX_LOGIT, min(_MAX_LOGIT, first - second)) - slot) / temperature


def fold(
    left: str, right: str, votes: Iterable[Vote], *, min_mass: float, margin: float, drop_flips: bool
) -> Comparison:
    """Fold the votes on one pair.

    `margin` is the distance from one half under which a probability is a tie. A principle counts only where every
    order that was asked has a label: half a principle would bring its slot bias with it.
    """
    votes = list(votes)
    judgements = [judgement for vote in votes for judgement in vote.judgements]
    ids = tuple(judgement.id for judgement in judgements if judgement is not None)
    if None in judgements:
        return Comparison(left, right, Status.FAILED, judgements=ids)
    read = [(vote, logits) for vote in votes if (logits := _left_logits(vote, min_mass))]
    if not read:
        return Comparison(left, right, Status.UNPARSED, judgements=ids)
    total = sum(vote.weight for vote, _ in read)
    orders = [sum(vote.weight * logits[at] for vote, logits in read) / total for at in range(len(read[0][1]))]
    logit = sum(orders) / len(orders)
    flip = disagree(orders)
    return Comparison(
        left,
        right,
        status_of(logit, flip=flip, margin=margin, drop_flips=drop_flips),
        logit=logit,
        flip=flip,
        hard=any(row is not None and row.logprobs is None for vote, _ in read for row in vote.judgements),
        principles=tuple(vote.principle for vote, _ in read),
        flips=tuple(vote.principle for vote, logits in read if disagree(logits)),
        judgements=ids,
        orders=tuple(orders),
    )


def _left_logits(vote: Vote, min_mass: float) -> list[float]:
    """Log-odds for the left sample, one an order asked; empty where an order has no label."""
    logits: list[float] = []
    for judgement, sign in ((vote.forward, 1.0), (vote.backward, -1.0)):
        if judgement is None:
            continue
        logit = first_logit(judgement, min_mass=min_mass, temperature=vote.temperature, slot=vote.slot)
        if logit is None:
            return []
        logits.append(sign * logit)
    return logits


def status_of(logit: float, *, flip: bool, margin: float, drop_flips: bool) -> Status:
    """What becomes of a pair with these log-odds, whose two orders disagree where `flip` is set."""
    if flip and drop_flips:
        return Status.FLIP
    return Status.TIE if abs(sigmoid(logit) - 0.5) < margin or logit == 0 else Status.LABELLED


def disagree(logits: Sequence[float]) -> bool:
    """Whether one order prefers the left sample, and the other the right one."""
    return min(logits) < 0 < max(logits)


def folded(
    left: str, right: str, votes: Sequence[Vote], pair: PairSettings, *, drop_flips: bool | None = None
) -> Comparison:
    """`fold` under a run's thresholds; `drop_flips` overrules its `pair.flips`."""
    drop = pair.flips == "drop" if drop_flips is None else drop_flips
    return fold(left, right, votes, min_mass=pair.min_label_mass, margin=pair.margin, drop_flips=drop)


class Share(NamedTuple):
    """One principle's part of a comparison. The parts `weight * comparison.logit` add up to the whole logit."""

    principle: str
    weight: float
    """Its part of the weight of all principles with a verdict on this pair; 0 where it has none itself."""
    comparison: Comparison
    """The comparison as this principle alone would have it; flips are marked and not left out."""

    @property
    def readable(self) -> bool:
        """Whether the principle has a label in every order that was asked."""
        return self.comparison.readable

    @property
    def logit(self) -> float:
        """What it adds to the comparison's logit."""
        return self.weight * self.comparison.logit


def shares(left: str, right: str, votes: Sequence[Vote], pair: PairSettings) -> list[Share]:
    """Every vote by itself, in the order of the votes."""
    single = [(vote, folded(left, right, [vote], pair, drop_flips=False)) for vote in votes]
    total = sum(vote.weight for vote, comparison in single if comparison.readable)
    return [
        Share(vote.principle, vote.weight / total if comparison.readable else 0.0, comparison)
        for vote, comparison in single
    ]


def moves(before: Sequence[Share], after: Sequence[Share], origin: float) -> dict[str, float]:
    """How far each principle moved a comparison whose logit was `origin`; the moves add up to the whole.

    Shares are measured from the old logit, not from 0: so an added principle answers for its whole effect, and the
    others for nothing where they only make room for it.
    """
    by_principle: dict[str, float] = {}
    for shared, sign in ((before, -1), (after, 1)):
        for share in shared:
            move = sign * share.weight * (share.comparison.logit - origin)
            by_principle[share.principle] = by_principle.get(share.principle, 0.0) + move
    return by_principle


class JudgeVotes(NamedTuple):
    """One judge's votes on a pair."""

    weight: float
    """Share in the panel's label."""
    votes: Sequence[Vote]
    """One a principle, with the judge's own calibration in their temperature."""


class PanelVerdict(NamedTuple):
    """A pair as the panel sees it, and as each judge does."""

    panel: Comparison
    by_judge: tuple[Comparison, ...]
    """In the order of the judges; flips are marked and not left out, unless the panel has a single judge."""


def aggregate_panel(left: str, right: str, ballots: Sequence[JudgeVotes], pair: PairSettings) -> PanelVerdict:
    """Fold the ballots on a pair under a run's thresholds."""
    if len(ballots) == 1:
        alone = folded(left, right, ballots[0].votes, pair)
        return PanelVerdict(alone, (alone,))
    by_judge = tuple(folded(left, right, ballot.votes, pair, drop_flips=False) for ballot in ballots)
    return PanelVerdict(pooled([ballot.weight for ballot in ballots], by_judge, pair), by_judge)


def pooled(weights: Sequence[float], by_judge: Sequence[Comparison], pair: PairSettings) -> Comparison:
    """The judges' comparisons of one pair as one.

    It has no label where a judge lacks an answer, or where no majority of the judges has a readable verdict. Its two
    orders disagree where the judges' mean log-odds do, whatever the single judges' do. A principle flips where it does
    for most of the judges that count it.
    """
    judgements = tuple(key for comparison in by_judge for key in comparison.judgements)
    unlabelled = Comparison(by_judge[0].left, by_judge[0].right, Status.UNPARSED, judgements=judgements)
    if any(comparison.status is Status.FAILED for comparison in by_judge):
        return replace(unlabelled, status=Status.FAILED)
    read = [(weight, row) for weight, row in zip(weights, by_judge, strict=True) if row.readable]
    if 2 * len(read) <= len(by_judge):
        return unlabelled
    total = sum(weight for weight, _ in read)
    orders = tuple(sum(weight * row.orders[at] for weight, row in read) / total for at in range(len(read[0][1].orders)))
    logit, flip = sum(orders) / len(orders), disagree(orders)
    counted = Counter(name for _, row in read for name in row.principles)
    flips = Counter(name for _, row in read for name in row.flips)
    return replace(
        unlabelled,
        status=status_of(logit, flip=flip, margin=pair.margin, drop_flips=pair.flips == "drop"),
        logit=logit,
        flip=flip,
        hard=any(row.hard for _, row in read),
        principles=tuple(counted),
        flips=tuple(name for name, count in counted.items() if 2 * flips[name] > count),
        orders=orders,
    )


_RIDGE = 1.0
"""Variance of the noise over that of the strengths."""

Row = tuple[str, str, float]
"""First sample, second sample, log-odds of the first."""


class PositionBias(NamedTuple):
    """How much a judge adds to the log-odds of whatever stands first."""

    estimate: float
    standard_error: float | None
    """None where there are fewer than two prompts to estimate it from."""
    judgements: int
    prompts: int

    @property
    def removed(self) -> float:
        """What is taken off the log-odds of the first slot."""
        if self.standard_error is None or self.estimate == 0:
            return 0.0
        return self.estimate * max(0.0, 1 - (self.standard_error / self.estimate) ** 2)


def position_bias(prompts: Iterable[Iterable[Judgement | None]], *, min_mass: float) -> PositionBias:
    """The bias in the judgements of one judge, given prompt by prompt; those without a label are left out.

    One pass, with six sums in memory. The logits are those before any temperature.
    """
    sums = [0.0] * 5
    judgements = groups = 0
    for of_prompt in prompts:
        rows: list[Row] = []
        for row in of_prompt:
            logit = None if row is None else first_logit(row, min_mass=min_mass)
            if row is not None and logit is not None:
                rows.append((row.first, row.second, logit))
        if not rows:
            continue
        weight, total = _weight_and_total(rows)
        judgements, groups = judgements + len(rows), groups + 1
        for at, value in enumerate((weight, total, weight * weight, weight * total, total * total)):
            sums[at] += value
    weight, total, square, cross, totals = sums
    if not groups or weight <= 0:
        return PositionBias(0.0, None, judgements, groups)
    estimate = total / weight
    if groups == 1:
        return PositionBias(estimate, None, judgements, groups)
    spread = max(0.0, totals - 2 * estimate * cross + estimate * estimate * square)
    error = math.sqrt(spread * groups / (groups - 1)) / weight
    return PositionBias(estimate, error, judgements, groups)


def _weight_and_total(rows: Sequence[Row]) -> tuple[float, float]:
    """1'W1 and 1'Wy of one prompt."""
    import numpy as np

    names = {name: None for first, second, _ in rows for name in (first, second)}
    place = {name: at for at, name in enumerate(names)}
    signs = np.zeros((len(rows), len(place)))
    for at, (first, second, _) in enumerate(rows):
        signs[at, place[first]], signs[at, place[second]] = 1.0, -1.0
    logits, ones = np.array([logit for *_, logit in rows]), np.ones(len(rows))
    fitted = signs @ np.linalg.solve(
        signs.T @ signs + _RIDGE * np.eye(len(place)), signs.T @ np.column_stack([ones, logits])
    )
    return float(ones @ (ones - fitted[:, 0])), float(ones @ (logits - fitted[:, 1]))


def removes_bias(compare: CompareSettings) -> bool:
    """Whether a position bias is to be estimated and taken off: in both orders it cancels by itself."""
    return compare.orders == "random" and compare.position_bias == "removed"


def bias_summary(estimates: Mapping[str, PositionBias]) -> JsonValue:
    """The estimates as a manifest records them."""
    return {name: {**bias._asdict(), "removed": bias.removed} for name, bias in estimates.items()}
