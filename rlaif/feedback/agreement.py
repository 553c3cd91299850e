"""Agreement of a panel's judges: kappa, alpha, correlation, effective number of judges, and each judge's accuracy.

`AgreementCounter` counts one comparison after another: memory holds the judges' counters, never the comparisons. Which
of two responses is called `left` means nothing, so every comparison counts in both orientations, once as it is and once
mirrored: no measure depends on the naming, and the log-odds of every judge have mean 0.

The judges of a panel are alike more often than its size suggests: nine from seven families were worth about two
independent votes (arXiv:2605.29800). Without known labels, what judges rightly see alike cannot be told from errors
that they share: the correlation holds both, so `effective_at_least` is no more than a lower bound, and the lower the
better the judges are. It ranks no panels: five good judges with errors of their own may have 1.2, five poor ones that
share half of theirs 1.4. `rlaif evaluate judge` has the labels, and measures how errors go together.

`accuracies` is the model of Dawid and Skene (1979, Applied Statistics 28:20-28): every comparison has a true label, and
judge j states it with chance a_j, independently of the other judges. Both labels are equally likely beforehand, so a
judge's table of confusions has one free number, a_j. It is fitted by their EM, and needs three judges. It rests on the
independence, which judges of like training do not have: errors that most of them share pass for the truth, and whoever
shares them for right. It is a diagnosis and no measurement; `rlaif evaluate judge` measures.
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
"""Each judge's verdict on one comparison: 1 left, -1 right, 0 a tie or none."""

Table = Mapping[tuple[str, str], float]
"""How often one judge has the first value and another one the second."""

_MIRRORED = {"left": "right", "right": "left", "tie": "tie"}
_SIGNS = {"left": 1, "right": -1}
_MAX_ROUNDS = 1000
_TOLERANCE = 1e-9
"""EM stops when no accuracy changes by more in one round."""


@dataclass(frozen=True, slots=True)
class JudgeAgreement:
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
    """A panel's agreement over a run. Measures are None where the verdicts do not define them."""

    judges: tuple[JudgeAgreement, ...]
    comparisons: int
    """Those with a verdict, left, right or a tie, of two judges at least."""
    kappa: float | None
    """Cohen's kappa, for a panel of two."""
    alpha: float | None
    """Krippendorff's alpha, for a larger one."""
    correlation: float | None
    """Mean over all pairs of judges of the correlation of their log-odds."""
    effective_at_least: float | None
    """Lower bound of the effective number of judges."""
    accuracies: tuple[float, ...] | None = None
    """How often each judge is right by Dawid and Skene's model (see `accuracies`), of three or more."""


class AgreementCounter:
    """Counts the comparisons of a panel one by one."""

    def __init__(self, judges: Sequence[str]) -> None:
        """`judges` are their names, in the order in which their comparisons will come."""
        self._judges = list(judges)
        self._counts = [Counter[str]() for _ in judges]
        self._table: dict[tuple[str, str], float] = {}
        """Of two judges, the verdicts of the first and of the second; of more, the coincidences of their values."""
        self._products: dict[tuple[int, int], tuple[float, float, float]] = {}
        """By two judges, the sums of xx, yy and xy over the logits x and y of both."""
        self._patterns: Counter[Pattern] = Counter()
        self.comparisons = 0

    def add(self, panel: Comparison, by_judge: Sequence[Comparison]) -> None:
        """Count one comparison: the panel's, and each judge's own."""
        sides = [_side(comparison) for comparison in by_judge]
        for comparison, side, counts in zip(by_judge, sides, self._counts, strict=True):
            counts["flips"] += comparison.flip
            if panel.status is Status.LABELLED:
                counts["abstains" if side in (None, "tie") else "agrees" if side == _side(panel) else "opposes"] += 1
        self._patterns[canonical([_SIGNS.get(side or "", 0) for side in sides])] += 1
        self._count_values([side for side in sides if side is not None])
        for (at, one), (by, other) in itertools.combinations(enumerate(by_judge), 2):
            if one.readable and other.readable:
                xx, yy, xy = self._products.get((at, by), (0.0, 0.0, 0.0))
                x, y = one.logit, other.logit
                self._products[at, by] = xx + x**2, yy + y**2, xy + x * y

    def _count_values(self, values: Sequence[str]) -> None:
        if len(values) < 2:
            return
        self.comparisons += 1
        for side in (values, [_MIRRORED[value] for value in values]):
            pairs = {(side[0], side[1]): 1.0} if len(self._judges) == 2 else coincidences(side)
            for pair, count in pairs.items():
                self._table[pair] = self._table.get(pair, 0.0) + count

    def result(self) -> Agreement:
        """The agreement over everything counted."""
        # Pearson's correlation of means 0, averaged over the pairs of judges that have one.
        pearson = [xy / math.sqrt(xx * yy) for xx, yy, xy in self._products.values() if xx > 0 and yy > 0]
        two, correlation = len(self._judges) == 2, sum(pearson) / len(pearson) if pearson else None
        return Agreement(
            judges=tuple(
                JudgeAgreement(name, counts["agrees"], counts["opposes"], counts["abstains"], counts["flips"])
                for name, counts in zip(self._judges, self._counts, strict=True)
            ),
            comparisons=self.comparisons,
            kappa=cohen_kappa(self._table) if two else None,
            alpha=None if two else krippendorff_alpha(self._table, mirrored=True),
            correlation=correlation,
            effective_at_least=None if correlation is None else effective_judges(len(self._judges), correlation),
            accuracies=accuracies(self._patterns),
        )


def _side(comparison: Comparison) -> str | None:
    """The verdict of a comparison: `left`, `right`, `tie`, or None."""
    if not comparison.readable:
        return None
    return "tie" if comparison.status is Status.TIE else "left" if comparison.logit > 0 else "right"


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
    """What one unit's values add to the table of `krippendorff_alpha`: nothing where fewer than two judges have one.

    Every ordered pair of different judges' values counts `1 / (m - 1)`, `m` being the number of values.
    """
    table: dict[tuple[str, str], float] = {}
    for pair in itertools.permutations(values, 2):
        table[pair] = table.get(pair, 0.0) + 1 / (len(values) - 1)
    return table


def krippendorff_alpha(table: Table, *, mirrored: bool = False) -> float | None:
    """Agreement of any number of judges with missing values: 1 - D_o / D_e for nominal values.

    From the table of coincidences `o`, with `n_c` its row sums and `n` their sum:
    `alpha = 1 - (n - 1) sum_{c != k} o_ck / sum_{c != k} n_c n_k` (Krippendorff 2011, "Computing Krippendorff's
    Alpha-Reliability"). 0.8 and above is good, 0.667 tentative. None where all values are equal.

    Its n - 1 takes account of shares that are estimated from n values, of which none is drawn twice. A `mirrored` table
    has every value and its mirror image: the shares of the sides are equal by construction, and a value would
    disagree by chance with its own image. So there n stands for n - 1: chance is 1 - sum of squared shares.
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

    `correlation` is the mean over all pairs of judges, of their errors where these are known. At 1 the panel is worth
    one judge, at 0 as many as it has. Below 0, where judges contradict each other, the formula would give more than
    there are; then it is as many as there are.
    """
    return judges / (1 + (judges - 1) * max(correlation, 0.0))


def canonical(values: Sequence[int]) -> Pattern:
    """The pattern or its mirror image, whichever has 1 first: both say the same."""
    sign = next((value for value in values if value), 1)
    return tuple(sign * value for value in values)


def accuracies(patterns: Mapping[Pattern, int]) -> tuple[float, ...] | None:
    """a_j of every judge, from how often each pattern came (of five judges there are at most 122).

    A right and a wrong verdict are added to each judge's, so that none is certain. None where fewer than three judges
    ever had a verdict on the same comparison.
    """
    informative = {pattern: count for pattern, count in patterns.items() if sum(map(abs, pattern)) >= LEAST_JUDGES}
    if not informative:
        return None
    judges = range(len(next(iter(informative))))
    estimates = tuple(0.75 for _ in judges)  # equal, so that the first round goes by the majority
    for _ in range(_MAX_ROUNDS):
        weights = [math.log(accuracy / (1 - accuracy)) for accuracy in estimates]
        right, total = [1.0 for _ in judges], [2.0 for _ in judges]
        for pattern, count in informative.items():
            left = sigmoid(sum(weight * value for weight, value in zip(weights, pattern, strict=True)))
            for judge in judges:
                if pattern[judge]:
                    total[judge] += count
                    right[judge] += count * (left if pattern[judge] > 0 else 1 - left)
        before, estimates = estimates, tuple(part / whole for part, whole in zip(right, total, strict=True))
        if max(abs(new - old) for new, old in zip(estimates, before, strict=True)) < _TOLERANCE:
            break
    return estimates
