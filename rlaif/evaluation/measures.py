"""From judged gold pairs to what is said about their judge. Pure: no model, no files.

Shares are over pairs that have a label. A pair without one is neither right nor wrong; the coverage tells of it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from rlaif.comparisons.agreement import cohen_kappa
from rlaif.comparisons.fold import Status, sigmoid
from rlaif.evaluation.intervals import average_of, share, share_of, slope, wilson
from rlaif.evaluation.judged import JudgedPair
from rlaif.evaluation.metrics import (
    brier,
    calibration_by_chance,
    calibration_error,
    fit_temperature,
    hits,
    log_loss,
    mean,
    reliability,
)
from rlaif.evaluation.report import (
    Baseline,
    Calibration,
    Canary,
    Cost,
    Estimate,
    Group,
    LabelMass,
    Length,
    LengthBin,
    Measures,
    ReliabilityBin,
    Slot,
    Temperature,
    ThreeWay,
)
from rlaif.settings import PairSettings

LENGTH_EDGES = (0.5, 0.8, 1.25, 2.0)
"""Of the bins by the length of the better reply over that of the worse one; the middle one calls them equally long."""

_MOST_BINS, _LEAST_IN_BIN = 10, 20
"""Of the calibration error: with few pairs in a bin, chance alone moves its accuracy away from its confidence."""

_COLDEST, _HOTTEST = 0.05, 20.0
"""Range of the fitted temperature."""


def measure(
    judged: Sequence[JudgedPair],
    pair: PairSettings,
    *,
    canaries: Sequence[Canary],
    cost: Cost,
    failures: dict[str, int],
    temperature: float = 1.0,
) -> Measures:
    """Everything about a judge, from what it said about gold pairs; `temperature` is the one in their logits."""
    three_way = three_way_of(judged)
    judged = [each for each in judged if not each.tie]
    said = [each for each in judged if each.labelled]
    logits = logits_of(said)
    kept = [each for each in said if each.status != Status.TIE.value and not (each.flip and pair.flips == "drop")]
    baselines = tuple(_baselines(said))
    return Measures(
        pairs=len(judged),
        labelled=len(said),
        coverage=len(said) / len(judged) if judged else 0.0,
        no_label=_no_label(judged, failures),
        accuracy=share_of(hits(logits), prompts_of(said)),
        single_order=share_of([mean(hits(each.orders)) for each in said], prompts_of(said)),
        kept=share_of(hits(logits_of(kept)), prompts_of(kept)),
        ties=mean([float(each.status == Status.TIE.value) for each in said]) if said else None,
        flips=_flips(said),
        baselines=baselines,
        gain=_gain(said, baselines),
        subsets=tuple(_subsets(judged)),
        principles=tuple(_principles(judged)),
        slot=slot_of(judged),
        calibration=calibration_of(logits),
        temperature=temperature_of(said, temperature),
        length=length_of(said),
        mass=_mass(judged, pair.min_label_mass),
        canaries=tuple(canaries),
        cost=cost,
        three_way=three_way,
    )


_MIRRORED = {"better": "worse", "worse": "better"}


def three_way_of(judged: Sequence[JudgedPair]) -> ThreeWay | None:
    """The agreement of judge and people over better, worse and tie; None where people see no tie."""
    ties = sum(each.tie for each in judged)
    if not ties:
        return None
    values = [("tie" if each.tie else "better", _value_of(each)) for each in judged]
    table = Counter(values) + Counter((_MIRRORED.get(gold, gold), _MIRRORED.get(said, said)) for gold, said in values)
    return ThreeWay(
        ties=ties,
        agreement=share([float(gold == said) for gold, said in values], prompts_of(judged)),
        kappa=cohen_kappa(table),
    )


def _value_of(each: JudgedPair) -> str:
    """What the judge says of the better reply, or of the first one of a tie."""
    if each.logit is None:
        return "none"
    return "tie" if each.status == Status.TIE.value else "better" if each.logit > 0 else "worse"


def logits_of(said: Sequence[JudgedPair]) -> list[float]:
    """The log-odds of the pairs that have a label."""
    return [each.logit for each in said if each.logit is not None]


def prompts_of(judged: Sequence[JudgedPair]) -> list[str]:
    """Their prompts."""
    return [each.prompt for each in judged]


def _flips(said: Sequence[JudgedPair]) -> Estimate | None:
    """The share of the pairs whose orders disagree; pairs asked in one order are left out."""
    both = [each for each in said if len(each.orders) == 2]
    return share_of([float(each.flip) for each in both], prompts_of(both))


def _no_label(judged: Sequence[JudgedPair], failures: dict[str, int]) -> dict[str, int]:
    found = {status.value: 0 for status in (Status.UNPARSED, Status.FAILED)}
    for each in judged:
        if not each.labelled:
            found[each.status] += 1
    told = {kind: count for kind, count in found.items() if count}
    return told | {f"call {kind}": count for kind, count in sorted(failures.items())}


def _longer(each: JudgedPair) -> float:
    better, worse = each.lengths
    return hits([float(better - worse)])[0]


def _first(each: JudgedPair) -> float:
    return each.better_first


_TRIVIAL: dict[str, Callable[[JudgedPair], float]] = {
    "longer wins": _longer,
    "shorter wins": lambda each: 1 - _longer(each),
    "first slot wins": _first,
}
"""What judges get that look at one thing. Asked in both orders, `first slot` gets one half by construction."""


def _baselines(said: Sequence[JudgedPair]) -> Iterator[Baseline]:
    for name, hit in _TRIVIAL.items():
        accuracy = share_of([hit(each) for each in said], prompts_of(said))
        if accuracy is not None:
            if hit is _first and all(each.better_first == 0.5 for each in said):  # by construction, and in no doubt
                accuracy = Estimate(value=0.5, low=0.5, high=0.5, pairs=len(said))
            yield Baseline(name=name, accuracy=accuracy)


def _gain(said: Sequence[JudgedPair], baselines: Sequence[Baseline]) -> Estimate | None:
    """Against the best baseline, which is the same one in every draw."""
    if not baselines:
        return None
    hit = _TRIVIAL[max(baselines, key=lambda each: each.accuracy.value).name]
    own = hits(logits_of(said))
    return average_of([right - hit(each) for right, each in zip(own, said, strict=True)], prompts_of(said))


def _subsets(judged: Sequence[JudgedPair]) -> Iterator[Group]:
    for name in sorted({each.subset for each in judged if each.subset is not None}):
        inside = [each for each in judged if each.subset == name]
        said = [each for each in inside if each.labelled]
        flips = _flips(said)
        yield Group(
            name=name,
            pairs=len(inside),
            accuracy=share_of(hits(logits_of(said)), prompts_of(said)),
            flips=None if flips is None else flips.value,
            first=_first_share(inside),
        )


def _principles(judged: Sequence[JudgedPair]) -> Iterator[Group]:
    for name in sorted({name for each in judged for name in each.own}):
        asked = [each for each in judged if name in each.own]
        told = [(logit, each.prompt) for each in asked if (logit := each.own[name]) is not None]
        accuracy = share_of(hits([logit for logit, _ in told]), [prompt for _, prompt in told])
        yield Group(name=name, pairs=len(asked), accuracy=accuracy)


def _first_share(judged: Sequence[JudgedPair]) -> Estimate | None:
    """The share of single verdicts that name the first slot, each pair counted once."""
    told = [each for each in judged if each.slots]
    return share_of([mean(hits(each.slots)) for each in told], prompts_of(told))


def slot_of(judged: Sequence[JudgedPair]) -> Slot | None:
    """The preference for a place; None where nothing can be read."""
    first = _first_share(judged)
    if first is None:
        return None
    # The second order's log-odds of the *first slot* are the negated ones of the better reply.
    both = [each for each in judged if len(each.orders) == 2]
    bias = average_of([(each.orders[0] - each.orders[1]) / 2 for each in both], prompts_of(both))
    return Slot(first=first, bias=bias)


def calibration_of(logits: Sequence[float]) -> Calibration | None:
    """The calibration of labels, by the log-odds of the better replies."""
    if not logits:
        return None
    probabilities = [sigmoid(logit) for logit in logits]
    chance = calibration_by_chance(probabilities, _bin_count(probabilities))
    return Calibration(
        error=calibration_error(probabilities, _bin_count(probabilities)),
        chance=chance.mean,
        chance_high=chance.high,
        brier=brier(probabilities),
        log_loss=log_loss(logits),
        bins=tuple(_bins(probabilities)),
        confidences=tuple(_counts([max(p, 1 - p) for p in probabilities])),
    )


def _bins(probabilities: Sequence[float]) -> Iterator[ReliabilityBin]:
    for each in reliability(probabilities, _bin_count(probabilities)):
        _, low, high = wilson(each.accuracy * each.size, each.size)
        yield ReliabilityBin(confidence=each.confidence, accuracy=each.accuracy, low=low, high=high, pairs=each.size)


def _counts(confidences: Sequence[float], steps: int = 10) -> list[int]:
    places = [min(steps - 1, int((each - 0.5) * 2 * steps)) for each in confidences]
    return [places.count(at) for at in range(steps)]


def temperature_of(said: Sequence[JudgedPair], used: float = 1.0) -> Temperature | None:
    """Fit a temperature on each half of the pairs and measure it on the other; None where a half is empty.

    Halved by the hash that the id of their prompt is: pairs of one prompt are right or wrong together, so that one in
    either half would let a temperature be measured on what it was fitted to.
    """
    halves = [logits_of([each for each in said if int(each.prompt, 16) % 2 == half]) for half in (0, 1)]
    if not all(halves):
        return None
    fits = [fit_temperature(half, low=_COLDEST, high=_HOTTEST) for half in halves]
    cooled = [logit / fit for half, fit in zip(halves, reversed(fits), strict=True) for logit in half]
    everything = logits_of(said)
    fitted = fit_temperature(everything, low=_COLDEST, high=_HOTTEST)
    return Temperature(
        temperature=fitted * used,
        bounded=not _COLDEST * 1.001 < fitted < _HOTTEST / 1.001,
        error_before=_error(everything),
        error_after=_error(cooled),
        log_loss_before=log_loss(everything),
        log_loss_after=log_loss(cooled),
    )


def _error(logits: Sequence[float]) -> float:
    return calibration_error([sigmoid(logit) for logit in logits], _bin_count(logits))


def _bin_count(pairs: Sequence[float]) -> int:
    return max(1, min(_MOST_BINS, len(pairs) // _LEAST_IN_BIN))


def length_of(said: Sequence[JudgedPair]) -> Length:
    """The judge's liking for length."""
    logits = logits_of(said)
    # A reply of no characters is none (`read_gold` leaves it out), so that every ratio has a logarithm.
    ratios = [better / worse for better, worse in (each.lengths for each in said)]
    right = [_Right(*each) for each in zip(ratios, hits(logits), prompts_of(said), strict=True)]
    return Length(
        shorter=_share_right([each for each in right if each.ratio < 1]),
        longer=_share_right([each for each in right if each.ratio > 1]),
        slope=slope([math.log(ratio) for ratio in ratios], logits, prompts_of(said)),
        bins=tuple(_length_bins(right)),
    )


class _Right(NamedTuple):
    """Whether a pair was judged right, by the length of its better reply over that of its worse one."""

    ratio: float
    hit: float
    prompt: str


def _share_right(right: Sequence[_Right]) -> Estimate | None:
    return share_of([each.hit for each in right], [each.prompt for each in right])


def _length_bins(right: Sequence[_Right]) -> Iterator[LengthBin]:
    for low, high in zip((0.0, *LENGTH_EDGES), (*LENGTH_EDGES, math.inf), strict=True):
        accuracy = _share_right([each for each in right if low <= each.ratio < high])
        if accuracy is not None:
            yield LengthBin(low=low, high=None if high == math.inf else high, accuracy=accuracy)


def _mass(judged: Sequence[JudgedPair], least: float) -> LabelMass | None:
    masses = [mass for each in judged for mass in each.masses]
    if not masses:
        return None
    return LabelMass(
        mean=mean(masses), below=mean([float(m < least) for m in masses]), least=least, answers=len(masses)
    )
