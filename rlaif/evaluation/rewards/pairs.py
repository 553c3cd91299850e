"""Gold pairs with the rewards of both replies, and what they come to. Pure: no model, no files.

A reward model is measured as a judge is: its margin, the better reply's reward less the worse one's, is its log-odds
of the better reply under Bradley-Terry. It sees one reply at a time, so that there is no slot to prefer.
"""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from rlaif.comparisons.fold import Status
from rlaif.evaluation.gold import GoldPair
from rlaif.evaluation.intervals import average_of
from rlaif.evaluation.judged import JudgedPair
from rlaif.evaluation.measures import measure
from rlaif.evaluation.report import Cost
from rlaif.evaluation.rewards.report import Gold
from rlaif.evaluation.rewards.scorer import Reply
from rlaif.evaluation.rewards.table import Reward
from rlaif.records import Record
from rlaif.samples.inputs import prompt_id
from rlaif.settings import PairSettings

_NO_COST = Cost(
    calls=0,
    prompt_tokens=0,
    cached_tokens=0,
    completion_tokens=0,
    calls_per_1000=None,
    prompt_tokens_per_1000=None,
    seconds_per_1000=None,
)


class ScoredPair(Record):
    """A gold pair with its rewards."""

    id: str
    """Of the gold pair."""
    source: str
    """File and line of the gold pair."""
    prompt: str
    """Id of its prompt."""
    subset: str | None
    better_reward: float | None
    worse_reward: float | None
    margin: float | None
    """The first less the second; None where one is missing."""
    truncated: bool
    """The conversation was too long with one of the replies, and lost its beginning."""
    reason: str
    """Why there is no margin."""
    lengths: tuple[int, int]
    """Characters of the better and of the worse reply."""


def replies_of(pair: GoldPair) -> tuple[Reply, Reply]:
    """The better and the worse reply of a pair."""
    prompt = prompt_id(pair.prompt)
    return Reply(prompt, pair.prompt, pair.better), Reply(prompt, pair.prompt, pair.worse)


def scored_pair(pair: GoldPair, reward_of: Callable[[Reply], Reward | None]) -> ScoredPair:
    """A pair with the rewards on disk, which are found by their ids."""
    better, worse = (reward_of(reply) for reply in replies_of(pair))
    values = [None if each is None else each.reward for each in (better, worse)]
    reasons = [each.reason for each in (better, worse) if each is not None and each.reason]
    whole = values[0] is not None and values[1] is not None
    return ScoredPair(
        id=pair.id,
        source=pair.source,
        prompt=prompt_id(pair.prompt),
        subset=pair.subset,
        better_reward=values[0],
        worse_reward=values[1],
        margin=values[0] - values[1] if values[0] is not None and values[1] is not None else None,
        truncated=any(each is not None and each.truncated for each in (better, worse)),
        reason="" if whole else (reasons or ["not scored"])[0],
        lengths=(len(pair.better), len(pair.worse)),
    )


def gold_of(
    pairs: Sequence[ScoredPair],
    *,
    path: str,
    sha256: str | None = None,
    oddities: dict[str, int] | None = None,
    trained_on: int | None = None,
) -> Gold:
    """Everything about the rewards of gold pairs. Pairs without a margin are neither right nor wrong."""
    said = [pair for pair in pairs if pair.margin is not None]
    found = measure(
        [_as_judged(pair) for pair in pairs], PairSettings(), canaries=(), cost=_NO_COST, failures={}
    )  # of what it finds, slots and flips mean nothing here
    return Gold(
        path=path,
        sha256=sha256,
        pairs=len(said),
        oddities=oddities or {},
        no_reward=dict(Counter(pair.reason for pair in pairs if pair.margin is None)),
        truncated=sum(pair.truncated for pair in said) / len(said) if said else 0.0,
        accuracy=found.accuracy,
        margin=average_of([pair.margin for pair in said if pair.margin is not None], [pair.prompt for pair in said]),
        calibration=found.calibration,
        temperature=found.temperature,
        length=found.length,
        length_correlation=correlation([length for pair in said for length in pair.lengths], list(_rewards(said))),
        baselines=tuple(each for each in found.baselines if "slot" not in each.name),
        gain=found.gain,
        subsets=found.subsets,
        trained_on=trained_on,
    )


def correlation(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Pearson's; None of fewer than three points, and where one of the two does not vary."""
    if len(xs) < 3 or min(xs) == max(xs) or min(ys) == max(ys):
        return None
    return statistics.correlation(xs, ys)


def _rewards(said: Iterable[ScoredPair]) -> Iterator[float]:
    values = itertools.chain.from_iterable((pair.better_reward, pair.worse_reward) for pair in said)
    return (value for value in values if value is not None)


def _as_judged(pair: ScoredPair) -> JudgedPair:
    """A pair as a judge's that was asked once: the margin is the log-odds."""
    return JudgedPair(
        id=pair.id,
        source=pair.source,
        prompt=pair.prompt,
        subset=pair.subset,
        status=(Status.FAILED if pair.margin is None else Status.LABELLED).value,
        logit=pair.margin,
        orders=() if pair.margin is None else (pair.margin,),
        better_first=0.5,
        flip=False,
        own={},
        slots=(),
        masses=(),
        lengths=pair.lengths,
    )
