"""How often each judge of a panel is right, told without known answers from who sides with whom.

The model of Dawid and Skene (1979, Applied Statistics 28:20-28): every comparison has a true answer, and judge j states
it with chance a_j, independently of the others. Which reply is called `left` means nothing here, so both answers are
equally likely beforehand and a judge's table of confusions has one free number, a_j. Fitted by their EM; three judges
are the least that can tell.

It rests on the independence, which judges of like training do not have: errors that most of them share pass for the
truth, and whoever shares them for right. A diagnosis, no measurement: `rlaif evaluate judge` measures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rlaif.comparisons.fold import sigmoid

LEAST_JUDGES = 3

Pattern = tuple[int, ...]
"""What each judge said of one comparison: 1 left, -1 right, 0 a tie or nothing."""

_ROUNDS = 1000
_CLOSE = 1e-9
"""Change of all accuracies in one round, under which they have settled."""


def canonical(values: Sequence[int]) -> Pattern:
    """The pattern or its mirror image, whichever has 1 first: both say the same."""
    sign = next((value for value in values if value), 1)
    return tuple(sign * value for value in values)


def accuracies(patterns: Mapping[Pattern, int]) -> tuple[float, ...] | None:
    """a_j of every judge, from how often each pattern came (of five judges there are at most 122).

    A right and a wrong answer are added to each judge's, so that none is certain. None where fewer than three judges
    ever spoke together.
    """
    told = {pattern: count for pattern, count in patterns.items() if sum(map(abs, pattern)) >= LEAST_JUDGES}
    if not told:
        return None
    judges = range(len(next(iter(told))))
    found = tuple(0.75 for _ in judges)  # equal, so that the first round goes by the majority
    for _ in range(_ROUNDS):
        weights = [math.log(accuracy / (1 - accuracy)) for accuracy in found]
        right, asked = [1.0 for _ in judges], [2.0 for _ in judges]
        for pattern, count in told.items():
            left = sigmoid(sum(weight * value for weight, value in zip(weights, pattern, strict=True)))
            for judge in judges:
                if pattern[judge]:
                    asked[judge] += count
                    right[judge] += count * (left if pattern[judge] > 0 else 1 - left)
        before, found = found, tuple(one / total for one, total in zip(right, asked, strict=True))
        if max(abs(new - old) for new, old in zip(found, before, strict=True)) < _CLOSE:
            break
    return found
