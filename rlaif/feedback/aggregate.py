"""All ordered judgements about a pair become one probability, or the reason why there is none.

Folding: all ordered judgements about one pair of samples become one probability, or the reason why there is none.

Each order gives a logit, `log P(first) - log P(second)`. Over the principles the logits of one order are averaged by
weight; then the two orders are averaged, the second one negated, and squashed once. Averaging logits, not
probabilities, cancels a slot bias that adds to the logit exactly (arXiv:2309.00267 averages probabilities).

Who says what in a folded comparison: every principle on its own, and its part of the weight.

A panel: several judges' comparisons of one pair become one.

Each judge's own answers are folded as if it judged alone, its flips told but not left out. Then the judges' log-odds
are averaged by weight, order by order, and the two orders after that, as the principles of a single judge are. Pooling
by the mean is one of the two ways of the panel of Verga et al. (2024, arXiv:2404.18796). A panel of one is its judge.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

from rlaif.config.schemas import PairSettings
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
_MOST = 30.0
"""Logits are cut here: a label with no probability at all must not outweigh every other principle."""


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
    def asked(self) -> list[Judgement | None]:
        """The judgements of the orders that were asked, None where the call has no answer."""
        return [each for each, wanted in zip((self.forward, self.backward), self.wanted, strict=True) if wanted]


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
    return (max(-_MOST, min(_MOST, first - second)) - slot) / temperature


def fold(
    left: str, right: str, votes: Iterable[Vote], *, min_mass: float, margin: float, drop_flips: bool
) -> Comparison:
    """Fold the votes on one pair.

    `margin` is the distance from one half under which a probability is a tie. A principle counts only where every
    order that was asked has a label: half a principle would bring its slot bias with it.
    """
    votes = list(votes)
    ids = tuple(each.id for vote in votes for each in vote.asked if each is not None)
    if any(each is None for vote in votes for each in vote.asked):
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
        hard=any(each is not None and each.logprobs is None for vote, _ in read for each in vote.asked),
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


class Share(NamedTuple):
    """One principle's part of a comparison. The parts `weight * own.logit` add up to the comparison's logit."""

    principle: str
    weight: float
    """Its part of the weight of all principles with a verdict on this pair; 0 where it has none itself."""
    own: Comparison
    """The comparison as this principle alone would have it; flips are told but not left out."""

    @property
    def readable(self) -> bool:
        """Whether the principle has a label in every order that was asked."""
        return _readable(self.own)

    @property
    def logit(self) -> float:
        """What it adds to the comparison's logit."""
        return self.weight * self.own.logit


def folded(left: str, right: str, votes: Sequence[Vote], pair: PairSettings) -> Comparison:
    """The votes on a pair folded under a run's thresholds."""
    return _folded(left, right, votes, pair, drop_flips=pair.flips == "drop")


def shares(left: str, right: str, votes: Sequence[Vote], pair: PairSettings) -> list[Share]:
    """Every vote on its own, in the order of the votes."""
    owns = [_folded(left, right, [vote], pair, drop_flips=False) for vote in votes]
    total = sum(vote.weight for vote, own in zip(votes, owns, strict=True) if _readable(own))
    return [
        Share(vote.principle, vote.weight / total if _readable(own) else 0.0, own)
        for vote, own in zip(votes, owns, strict=True)
    ]


def moves(before: Sequence[Share], after: Sequence[Share], origin: float) -> dict[str, float]:
    """How far each principle moved a comparison whose logit was `origin`; the moves add up to the whole.

    Shares are measured from the old logit, not from 0: so an added principle answers for its whole effect, and the
    others for nothing where they only make room for it.
    """
    found: dict[str, float] = {}
    for shared, sign in ((before, -1), (after, 1)):
        for share in shared:
            move = sign * share.weight * (share.own.logit - origin)
            found[share.principle] = found.get(share.principle, 0.0) + move
    return found


def _folded(left: str, right: str, votes: Sequence[Vote], pair: PairSettings, *, drop_flips: bool) -> Comparison:
    return fold(left, right, votes, min_mass=pair.min_label_mass, margin=pair.margin, drop_flips=drop_flips)


def _readable(own: Comparison) -> bool:
    return own.status not in (Status.UNPARSED, Status.FAILED)


class JudgeVotes(NamedTuple):
    """What one judge said about a pair."""

    weight: float
    """Share in the panel's label."""
    votes: Sequence[Vote]
    """One a principle, with the judge's own calibration in their temperature."""


class PanelVerdict(NamedTuple):
    """A pair as the panel sees it, and as each judge does."""

    panel: Comparison
    owns: tuple[Comparison, ...]
    """In the order of the judges; flips are told and not left out, unless there is one judge, who is the panel."""


def aggregate_panel(left: str, right: str, ballots: Sequence[JudgeVotes], pair: PairSettings) -> PanelVerdict:
    """Fold the ballots on a pair under a run's thresholds."""
    if len(ballots) == 1:
        alone = folded(left, right, ballots[0].votes, pair)
        return PanelVerdict(alone, (alone,))
    soft = pair.model_copy(update={"flips": "soft"})
    owns = tuple(folded(left, right, ballot.votes, soft) for ballot in ballots)
    return PanelVerdict(pooled([ballot.weight for ballot in ballots], owns, pair), owns)


def pooled(weights: Sequence[float], owns: Sequence[Comparison], pair: PairSettings) -> Comparison:
    """The judges' own comparisons of one pair as one.

    It has no label where a judge lacks an answer, or where no majority of the judges has a readable verdict. Its two
    orders disagree where the judges' mean log-odds do, whatever the single judges' do; of a principle the same is said
    where it holds for most of the judges that count it.
    """
    known = replace(owns[0], judgements=tuple(key for own in owns for key in own.judgements))
    if any(own.status is Status.FAILED for own in owns):
        return Comparison(known.left, known.right, Status.FAILED, judgements=known.judgements)
    read = [(weight, own) for weight, own in zip(weights, owns, strict=True) if own.readable]
    if 2 * len(read) <= len(owns):
        return Comparison(known.left, known.right, Status.UNPARSED, judgements=known.judgements)
    total = sum(weight for weight, _ in read)
    orders = tuple(sum(weight * own.orders[at] for weight, own in read) / total for at in range(len(read[0][1].orders)))
    logit = sum(orders) / len(orders)
    counted = [[own for _, own in read if name in own.principles] for name in _principles(read)]
    return replace(
        known,
        status=status_of(logit, flip=disagree(orders), margin=pair.margin, drop_flips=pair.flips == "drop"),
        logit=logit,
        flip=disagree(orders),
        hard=any(own.hard for _, own in read),
        principles=_principles(read),
        flips=tuple(
            name
            for name, by in zip(_principles(read), counted, strict=True)
            if 2 * sum(name in own.flips for own in by) > len(by)
        ),
        orders=orders,
    )


def _principles(read: Sequence[tuple[float, Comparison]]) -> tuple[str, ...]:
    """Those that count for any of the judges."""
    return tuple(dict.fromkeys(name for _, own in read for name in own.principles))
