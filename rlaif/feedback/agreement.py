"""How far the judges of a panel agree, and how often each is right.

How often each judge of a panel is right, told without known answers from who sides with whom.

The model of Dawid and Skene (1979, Applied Statistics 28:20-28): every comparison has a true answer, and judge j states
it with chance a_j, independently of the others. Which reply is called `left` means nothing here, so both answers are
equally likely beforehand and a judge's table of confusions has one free number, a_j. Fitted by their EM; three judges
are the least that can tell.

It rests on the independence, which judges of like training do not have: errors that most of them share pass for the
truth, and whoever shares them for right. A diagnosis, no measurement: `rlaif evaluate judge` measures.

How far the judges of a panel agree, and how many independent judges they are worth at least.

Counted one comparison after another: memory holds the judges' counters, never the comparisons. Which of two replies is
called `left` means nothing, so every comparison counts in both orientations, once as it is and once mirrored: no
measure depends on the naming, and the log-odds of every judge have mean 0.

The judges of a panel are alike more often than its size suggests: nine from seven families were worth about two
independent votes (arXiv:2605.29800). Without known answers, what judges rightly see alike cannot be told from errors
that they share: the correlation holds both, so `effective_at_least` is no more than a lower bound, and the lower the
better the judges are. It ranks no panels: five good judges with errors of their own may have 1.2, five poor ones that
share half of theirs 1.4. `rlaif evaluate judge` knows the answers, and tells how errors go together.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlaif.feedback.aggregate import Comparison, Status
from rlaif.stats import sigmoid

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


_MIRRORED = {"left": "right", "right": "left", "tie": "tie"}
_SIGNS = {"left": 1, "right": -1}

Table = Mapping[tuple[str, str], float]
"""How often one judge said the first value and another one the second."""


@dataclass(frozen=True, slots=True)
class Part:
    """One judge beside the panel that it belongs to."""

    judge: str
    agrees: int
    """Labelled comparisons whose label it shares."""
    opposes: int
    """Those that it would have labelled the other way."""
    abstains: int
    """Those that are a tie to it, or where it has no readable verdict."""
    flips: int
    """Comparisons, labelled or not, where its own two orders disagree."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """A panel's agreement over a run. Measures are None where the answers do not define them."""

    judges: tuple[Part, ...]
    comparisons: int
    """Those with a verdict, left, right or a tie, of two judges at least."""
    kappa: float | None
    """Cohen's kappa, for a panel of two."""
    alpha: float | None
    """Krippendorff's alpha, for a larger one."""
    correlation: float | None
    """Mean over all two judges of the correlation of their log-odds."""
    effective_at_least: float | None
    """Lower bound of the effective number of judges."""
    accuracies: tuple[float, ...] | None = None
    """How often each judge is right by Dawid and Skene's model (see `crowd`), of three or more."""


def cohen_kappa(table: Table) -> float | None:
    """Agreement of two judges beyond chance: (p_o - p_e) / (1 - p_e) (Cohen 1960, Educ. Psychol. Meas. 20:37-46).

    `p_o` is the share of equal values, and `p_e = sum_c p1(c) p2(c)` what the two judges' own shares of the values
    would bring about by chance. None where chance alone makes all values equal.
    """
    total = sum(table.values())
    if not total:
        return None
    first, second = _sums(table, 0), _sums(table, 1)
    observed = sum(count for (one, other), count in table.items() if one == other) / total
    chance = sum(count * second.get(value, 0.0) for value, count in first.items()) / total**2
    return None if chance == 1 else (observed - chance) / (1 - chance)


def coincidences(values: Sequence[str]) -> dict[tuple[str, str], float]:
    """What one unit's values add to the table of `krippendorff_alpha`: nothing where fewer than two judges spoke.

    Every ordered pair of different judges' values counts `1 / (m - 1)`, `m` being the number of values.
    """
    found: dict[tuple[str, str], float] = {}
    for pair in itertools.permutations(values, 2):
        found[pair] = found.get(pair, 0.0) + 1 / (len(values) - 1)
    return found


def krippendorff_alpha(table: Table, *, mirrored: bool = False) -> float | None:
    """Agreement of any number of judges with missing values: 1 - D_o / D_e for nominal values.

    From the table of coincidences `o`, with `n_c` its row sums and `n` their sum:
    `alpha = 1 - (n - 1) sum_{c != k} o_ck / sum_{c != k} n_c n_k` (Krippendorff 2011, "Computing Krippendorff's
    Alpha-Reliability"). 0.8 and above is good, 0.667 tentative. None where all values are equal.

    Its n - 1 takes account of shares that are estimated from n values, of which none is drawn twice. A `mirrored` table
    has every value and its mirror image: the shares of the sides are equal by construction, and a value would be told
    to disagree by chance with its own image. So there n stands for n - 1: chance is 1 - sum of squared shares.
    """
    rows = _sums(table, 0)
    total = sum(rows.values())
    expected = total**2 - sum(count**2 for count in rows.values())
    if expected <= 0:
        return None
    observed = sum(count for (one, other), count in table.items() if one != other)
    return 1 - (total if mirrored else total - 1) * observed / expected


def _sums(table: Table, at: int) -> dict[str, float]:
    """How often each value is the first (`at` 0) or the second (1) of a pair."""
    sums: dict[str, float] = {}
    for pair, count in table.items():
        sums[pair[at]] = sums.get(pair[at], 0.0) + count
    return sums


def effective_judges(judges: int, correlation: float) -> float:
    """How many independent judges a panel is worth: k / (1 + (k - 1) rho) (Kish 1965, Survey Sampling).

    `correlation` is the mean over all two judges, of their errors where these are known. At 1 the panel is worth one
    judge, at 0 as many as it has. Below 0, where judges contradict each other, the formula would give more than there
    are; then it is as many as there are.
    """
    return judges / (1 + (judges - 1) * max(correlation, 0.0))


class Counting:
    """Counts the comparisons of a panel one by one."""

    def __init__(self, judges: Sequence[str]) -> None:
        """`judges` are their names, in the order in which their comparisons will come."""
        self._judges = list(judges)
        self._parts = [Counter[str]() for _ in judges]
        self._said: dict[tuple[str, str], float] = {}
        """Of two judges, what the first and the second said; of more, the coincidences of their values."""
        self._products: dict[tuple[int, int], tuple[float, float, float]] = {}
        self._patterns: Counter[Pattern] = Counter()
        self.comparisons = 0

    def add(self, panel: Comparison, owns: Sequence[Comparison]) -> None:
        """Count one comparison: the panel's, and each judge's own."""
        sides = [_side(own) for own in owns]
        for own, side, counts in zip(owns, sides, self._parts, strict=True):
            counts["flips"] += own.flip
            if panel.status is Status.LABELLED:
                counts["abstains" if side in (None, "tie") else "agrees" if side == _side(panel) else "opposes"] += 1
        self._patterns[canonical([_SIGNS.get(side or "", 0) for side in sides])] += 1
        self._count_values([side for side in sides if side is not None])
        for (at, one), (by, other) in itertools.combinations(enumerate(owns), 2):
            if one.readable and other.readable:
                self._count_product((at, by), one.logit, other.logit)

    def _count_values(self, values: Sequence[str]) -> None:
        self.comparisons += len(values) > 1
        for each in (values, [_MIRRORED[value] for value in values]):
            for pair, count in self._pairs_of(each).items():
                self._said[pair] = self._said.get(pair, 0.0) + count

    def _pairs_of(self, values: Sequence[str]) -> Mapping[tuple[str, str], float]:
        if len(values) < 2:
            return {}
        return {(values[0], values[1]): 1.0} if len(self._judges) == 2 else coincidences(values)

    def _count_product(self, pair: tuple[int, int], one: float, other: float) -> None:
        squares, others, products = self._products.get(pair, (0.0, 0.0, 0.0))
        self._products[pair] = squares + one**2, others + other**2, products + one * other

    def result(self) -> Agreement:
        """What was counted."""
        two, correlation = len(self._judges) == 2, self._correlation()
        return Agreement(
            judges=tuple(
                Part(name, counts["agrees"], counts["opposes"], counts["abstains"], counts["flips"])
                for name, counts in zip(self._judges, self._parts, strict=True)
            ),
            comparisons=self.comparisons,
            kappa=cohen_kappa(self._said) if two else None,
            alpha=None if two else krippendorff_alpha(self._said, mirrored=True),
            correlation=correlation,
            effective_at_least=None if correlation is None else effective_judges(len(self._judges), correlation),
            accuracies=accuracies(self._patterns),
        )

    def _correlation(self) -> float | None:
        """Pearson's correlation of means 0, sum(xy) / sqrt(sum(xx) sum(yy)), averaged over the pairs that have one."""
        found = [xy / math.sqrt(xx * yy) for xx, yy, xy in self._products.values() if xx > 0 and yy > 0]
        return sum(found) / len(found) if found else None


def _side(own: Comparison) -> str | None:
    """What a comparison says: `left`, `right`, `tie`, or nothing."""
    if not own.readable:
        return None
    return "tie" if own.status is Status.TIE else "left" if own.logit > 0 else "right"
