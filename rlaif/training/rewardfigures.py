"""What the rewards of a file come to: how they are spread, whether they follow length, which are highest and lowest."""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from rlaif.evaluation.intervals import wilson
from rlaif.evaluation.metrics import hits, mean
from rlaif.evaluation.report import Estimate
from rlaif.records import Record
from rlaif.training.intake import Intake, LeftOut
from rlaif.training.responses import Answered
from rlaif.training.texts import Example


class Scored(NamedTuple):
    """A response with a reward."""

    reward: float
    length: int
    """Tokens."""


class Spread(Record):
    """How rewards are spread."""

    mean: float
    std: float
    """Of this file, not an estimate for more of its kind."""
    min: float
    quartile: float
    median: float
    third_quartile: float
    max: float


class Shown(Record):
    """A response and its reward."""

    id: str
    reward: float
    prompt: str
    """What was said last before it."""
    response: str


class Figures(Record):
    """What the rewards of a file come to."""

    model: str
    data: str
    rows: int
    """Rows read."""
    responses: int
    """Responses with a reward, those of pairs included."""
    left_out: tuple[LeftOut, ...]
    """Rows or responses without a reward, most frequent reason first."""
    truncated: int
    """Responses whose prompt lost its beginning, as both together are longer than the limit."""
    rewards: Spread
    length_correlation: float | None
    """Pearson's, of reward and tokens of the response."""
    accuracy: Estimate | None
    """Share of pairs whose chosen response has the higher reward; equal ones count half. Only of preference data."""
    margin: float | None
    """Mean of the rewards of chosen less those of rejected responses."""
    centered_by: float
    """What was taken off all rewards: the mean over the demonstrations that the model was centred on."""
    highest: tuple[Shown, ...]
    lowest: tuple[Shown, ...]


class Tally:
    """Counts rewards as they come in; of the texts it keeps the extremes only."""

    def __init__(self, top: int) -> None:
        self.rewards, self.lengths, self.margins = array("d"), array("d"), array("d")
        self._top, self._extremes = top, _Extremes(top)

    def add(self, row: Answered, scored: Sequence[Scored | None]) -> None:
        """Take in the responses of a row."""
        for reply, each in zip(row.replies, scored, strict=True):
            if each is not None and reply.example is not None:
                self.rewards.append(each.reward)
                self.lengths.append(each.length)
                self._extremes.add(each.reward, row.id, reply.example)
        if row.paired and scored[0] is not None and scored[1] is not None:
            self.margins.append(scored[0].reward - scored[1].reward)

    def figures(self, model: str, data: str, intake: Intake, centered_by: float) -> Figures:
        """All of it as a record."""
        return Figures(
            model=model,
            data=data,
            rows=intake.rows,
            responses=len(self.rewards),
            left_out=intake.reasons(),
            truncated=intake.truncated,
            rewards=_spread(self.rewards),
            length_correlation=_correlation(self.rewards, self.lengths),
            accuracy=_accuracy(self.margins),
            margin=mean(self.margins) if self.margins else None,
            centered_by=centered_by,
            highest=self._extremes.highest(),
            lowest=self._extremes.lowest(),
        )


class _Extremes:
    """The highest and the lowest few; of equals those that came first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._heaps: tuple[list[tuple[float, int, Shown]], list[tuple[float, int, Shown]]] = ([], [])

    def add(self, reward: float, name: str, example: Example) -> None:
        self._count += 1
        for heap, key in zip(self._heaps, (reward, -reward), strict=True):
            if len(heap) < self._most:
                heapq.heappush(heap, (key, -self._count, _shown(reward, name, example)))
            elif heap and key > heap[0][0]:
                heapq.heapreplace(heap, (key, -self._count, _shown(reward, name, example)))

    def highest(self) -> tuple[Shown, ...]:
        return tuple(shown for _, _, shown in sorted(self._heaps[0], key=lambda each: each[:2], reverse=True))

    def lowest(self) -> tuple[Shown, ...]:
        return tuple(shown for _, _, shown in sorted(self._heaps[1], key=lambda each: each[:2], reverse=True))


def _shown(reward: float, name: str, example: Example) -> Shown:
    prompt = example.prompt if isinstance(example.prompt, str) else example.prompt[-1].content
    return Shown(id=name, reward=reward, prompt=prompt, response=example.completions[0])


def _spread(rewards: Sequence[float]) -> Spread:
    import numpy as np

    low, quartile, median, third, high = (float(each) for each in np.percentile(rewards, [0, 25, 50, 75, 100]))
    return Spread(
        mean=mean(rewards),
        std=float(np.std(rewards)),
        min=low,
        quartile=quartile,
        median=median,
        third_quartile=third,
        max=high,
    )


def _correlation(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    import numpy as np

    if len(xs) < 3 or min(xs) == max(xs) or min(ys) == max(ys):
        return None
    return float(np.corrcoef(xs, ys)[0, 1])


def _accuracy(margins: Sequence[float]) -> Estimate | None:
    if not margins:
        return None
    share = wilson(sum(hits(margins)), len(margins))
    return Estimate(value=share.value, low=share.low, high=share.high, pairs=len(margins))
