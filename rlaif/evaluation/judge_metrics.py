"""From judged gold pairs to the metrics of their judge, and to the verdict on it.

`measure` computes the metrics. Shares are over the pairs that have a label; a pair without one is neither right nor
wrong, and lowers the coverage. `decide` turns the metrics into a verdict, which `known_verdict` reads back later.

`shared_errors` correlates the errors of several judges. The log-odds of two good judges correlate because both follow
the truth, so the error of a judge is its log-odds of the better reply minus their mean. Judges whose errors correlate
by rho are worth `effective_judges` of that rho. Judges are compared where they were evaluated on the same gold pairs in
one folder.
"""

from __future__ import annotations

import contextlib
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from rlaif.config.schemas import PairSettings
from rlaif.evaluation.canaries import NOTHING, PLAIN
from rlaif.evaluation.gold import JudgedPair
from rlaif.evaluation.reports import (
    About,
    Baseline,
    Calibration,
    Canary,
    Cost,
    Group,
    JudgeReport,
    LabelMass,
    Length,
    LengthBin,
    Level,
    Measures,
    Reason,
    ReliabilityBin,
    SharedErrors,
    Slot,
    Temperature,
    ThreeWay,
    Verdict,
)
from rlaif.feedback.aggregate import Status
from rlaif.feedback.agreement import cohen_kappa, effective_judges
from rlaif.stats import (
    Estimate,
    average_of,
    brier,
    calibration_by_chance,
    calibration_error,
    fit_temperature,
    hits,
    log_loss,
    mean,
    reliability,
    share,
    share_of,
    sigmoid,
    slope,
    wilson,
)

LEAST_COVERAGE = 0.8
"""Under it the pairs without a label are no accident, and what is told of the others tells little of them."""
LEAST_MASS = 0.5
"""Under it the judge mostly wants to say something else than a label: it does not understand the question."""
MOST_FLIPS = 0.4
"""Over it the slot decides nearly as much as the replies: a judge that looks at nothing but the slot flips always, one
that throws a coin flips half the time."""
SOME_FLIPS = 0.2
"""Large judges flip on 18 to 21% of pairs (arXiv:2309.00267); over it many labels are lost."""
MOST_ERROR = 0.15
"""Calibration error over which a soft label is no probability; a temperature may fix it. With few pairs chance alone
brings as much about, so it has to be more than that, too."""
MOST_CANARY_WINS = 0.2
"""A reply that says nothing, or that talks to the judge, may win now and then, where the better reply is bad too."""
MOST_CANARY_GAIN = 0.1
"""And an addition to the worse reply is to blame only for what that reply does not win by itself."""
MOST_LENGTH_GAP = 0.15
"""Accuracy lost where the better reply is the shorter one: over it a policy learns to be long."""
LEAST_PAIRS = 100
"""With fewer, the interval of the accuracy is wider than that of 70 right ones in 100: 61% to 79%."""
LENGTH_EDGES = (0.5, 0.8, 1.25, 2.0)
"""Of the bins by the length of the better reply over that of the worse one; the middle one calls them equally long."""

_MOST_BINS, _LEAST_IN_BIN = 10, 20
"""Of the calibration error: with few pairs in a bin, chance alone moves its accuracy away from its confidence."""
_COLDEST, _HOTTEST = 0.05, 20.0
"""Range of the fitted temperature."""

LEAST_SHARED = 30
"""With fewer pairs a correlation of 0.36 is nothing but chance."""


def measure(
    judged: Sequence[JudgedPair],
    pair: PairSettings,
    *,
    canaries: Sequence[Canary],
    cost: Cost,
    failures: dict[str, int],
    temperature: float = 1.0,
) -> Measures:
    """All metrics of a judge on gold pairs; `temperature` is the one that their logits were made with."""
    three_way = three_way_of(judged)
    judged = [each for each in judged if not each.tie]
    labelled = [each for each in judged if each.labelled]
    logits = logits_of(labelled)
    usable = [each for each in labelled if each.status != Status.TIE.value and not (each.flip and pair.flips == "drop")]
    statuses = Counter(each.status for each in judged if not each.labelled)
    no_label = {kind.value: statuses[kind.value] for kind in (Status.UNPARSED, Status.FAILED) if statuses[kind.value]}
    baselines, gain = _trivial_judges(labelled)
    return Measures(
        pairs=len(judged),
        labelled=len(labelled),
        coverage=len(labelled) / len(judged) if judged else 0.0,
        no_label=no_label | {f"call {kind}": count for kind, count in sorted(failures.items())},
        accuracy=share_of(hits(logits), prompts_of(labelled)),
        single_order=share_of([mean(hits(each.orders)) for each in labelled], prompts_of(labelled)),
        kept=share_of(hits(logits_of(usable)), prompts_of(usable)),
        ties=mean([float(each.status == Status.TIE.value) for each in labelled]) if labelled else None,
        flips=_flips(labelled),
        baselines=baselines,
        gain=gain,
        subsets=tuple(_subsets(judged)),
        principles=tuple(_principles(judged)),
        slot=slot_of(judged),
        calibration=calibration_of(logits),
        temperature=temperature_of(labelled, temperature),
        length=length_of(labelled),
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
    values = []
    for each in judged:
        # What the judge says of the better reply, or of the first one of a tie.
        vote = "none" if each.logit is None else "better" if each.logit > 0 else "worse"
        if each.logit is not None and each.status == Status.TIE.value:
            vote = "tie"
        values.append(("tie" if each.tie else "better", vote))
    table = Counter(values) + Counter((_MIRRORED.get(gold, gold), _MIRRORED.get(vote, vote)) for gold, vote in values)
    return ThreeWay(
        ties=ties,
        agreement=share([float(gold == vote) for gold, vote in values], prompts_of(judged)),
        kappa=cohen_kappa(table),
    )


def logits_of(judged: Sequence[JudgedPair]) -> list[float]:
    """The log-odds of the pairs that have a label."""
    return [each.logit for each in judged if each.logit is not None]


def prompts_of(judged: Sequence[JudgedPair]) -> list[str]:
    """Their prompts."""
    return [each.prompt for each in judged]


def _flips(labelled: Sequence[JudgedPair]) -> Estimate | None:
    """The share of the pairs whose orders disagree; pairs asked in one order are left out."""
    both = [each for each in labelled if len(each.orders) == 2]
    return share_of([float(each.flip) for each in both], prompts_of(both))


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
"""Trivial judges that look at one feature. With both orders, `first slot` scores one half by construction."""


def _trivial_judges(labelled: Sequence[JudgedPair]) -> tuple[tuple[Baseline, ...], Estimate | None]:
    """The trivial judges on the same pairs, and the judge's gain over the best, the same one in every resample."""
    baselines = []
    for name, hit in _TRIVIAL.items():
        accuracy = share_of([hit(each) for each in labelled], prompts_of(labelled))
        if accuracy is not None:
            if hit is _first and all(each.better_first == 0.5 for each in labelled):  # by construction
                accuracy = Estimate(value=0.5, low=0.5, high=0.5, pairs=len(labelled))
            baselines.append(Baseline(name=name, accuracy=accuracy))
    if not baselines:
        return (), None
    hit = _TRIVIAL[max(baselines, key=lambda baseline: baseline.accuracy.value).name]
    gains = [right - hit(each) for right, each in zip(hits(logits_of(labelled)), labelled, strict=True)]
    return tuple(baselines), average_of(gains, prompts_of(labelled))


def _subsets(judged: Sequence[JudgedPair]) -> Iterator[Group]:
    for name in sorted({each.subset for each in judged if each.subset is not None}):
        inside = [each for each in judged if each.subset == name]
        labelled = [each for each in inside if each.labelled]
        flips = _flips(labelled)
        yield Group(
            name=name,
            pairs=len(inside),
            accuracy=share_of(hits(logits_of(labelled)), prompts_of(labelled)),
            flips=None if flips is None else flips.value,
            first=_first_share(inside),
        )


def _principles(judged: Sequence[JudgedPair]) -> Iterator[Group]:
    for name in sorted({name for each in judged for name in each.own}):
        judged_by = [each for each in judged if name in each.own]
        logits = [(logit, each.prompt) for each in judged_by if (logit := each.own[name]) is not None]
        accuracy = share_of(hits([logit for logit, _ in logits]), [prompt for _, prompt in logits])
        yield Group(name=name, pairs=len(judged_by), accuracy=accuracy)


def _first_share(judged: Sequence[JudgedPair]) -> Estimate | None:
    """The share of single verdicts that name the first slot, each pair counted once."""
    readable = [each for each in judged if each.slots]
    return share_of([mean(hits(each.slots)) for each in readable], prompts_of(readable))


def slot_of(judged: Sequence[JudgedPair]) -> Slot | None:
    """The position bias; None where no verdict is readable."""
    first = _first_share(judged)
    if first is None:
        return None
    # The second order's log-odds of the *first slot* are the negated ones of the better reply.
    both = [each for each in judged if len(each.orders) == 2]
    bias = average_of([(each.orders[0] - each.orders[1]) / 2 for each in both], prompts_of(both))
    return Slot(first=first, bias=bias)


def calibration_of(logits: Sequence[float]) -> Calibration | None:
    """The calibration of labels, from the log-odds of the better replies."""
    if not logits:
        return None
    probabilities = [sigmoid(logit) for logit in logits]
    chance = calibration_by_chance(probabilities, _bin_count(probabilities))
    bins = []
    for part in reliability(probabilities, _bin_count(probabilities)):
        _, low, high = wilson(part.accuracy * part.size, part.size)
        bins.append(
            ReliabilityBin(confidence=part.confidence, accuracy=part.accuracy, low=low, high=high, pairs=part.size)
        )
    steps = 10
    places = [min(steps - 1, int((max(p, 1 - p) - 0.5) * 2 * steps)) for p in probabilities]
    return Calibration(
        error=calibration_error(probabilities, _bin_count(probabilities)),
        chance=chance.mean,
        chance_high=chance.high,
        brier=brier(probabilities),
        log_loss=log_loss(logits),
        bins=tuple(bins),
        confidences=tuple(places.count(at) for at in range(steps)),
    )


def temperature_of(labelled: Sequence[JudgedPair], used: float = 1.0) -> Temperature | None:
    """Fit a temperature on each half of the pairs and measure it on the other; None where a half is empty.

    The id of the prompt, a hash, decides the half: pairs of one prompt are right or wrong together, so pairs of it in
    both halves would let a temperature be measured on what it was fitted to.
    """
    halves = [logits_of([each for each in labelled if int(each.prompt, 16) % 2 == half]) for half in (0, 1)]
    if not all(halves):
        return None
    fits = [fit_temperature(half, low=_COLDEST, high=_HOTTEST) for half in halves]
    scaled = [logit / fit for half, fit in zip(halves, reversed(fits), strict=True) for logit in half]
    everything = logits_of(labelled)
    fitted = fit_temperature(everything, low=_COLDEST, high=_HOTTEST)
    return Temperature(
        temperature=fitted * used,
        bounded=not _COLDEST * 1.001 < fitted < _HOTTEST / 1.001,
        error_before=_error(everything),
        error_after=_error(scaled),
        log_loss_before=log_loss(everything),
        log_loss_after=log_loss(scaled),
    )


def _error(logits: Sequence[float]) -> float:
    return calibration_error([sigmoid(logit) for logit in logits], _bin_count(logits))


def _bin_count(pairs: Sequence[float]) -> int:
    return max(1, min(_MOST_BINS, len(pairs) // _LEAST_IN_BIN))


def length_of(labelled: Sequence[JudgedPair]) -> Length:
    """The judge's length bias."""
    logits = logits_of(labelled)
    # `read_gold` leaves empty replies out, so every ratio has a logarithm.
    ratios = [better / worse for better, worse in (each.lengths for each in labelled)]
    right = [_LengthHit(*row) for row in zip(ratios, hits(logits), prompts_of(labelled), strict=True)]
    bins = []
    for low, high in zip((0.0, *LENGTH_EDGES), (*LENGTH_EDGES, math.inf), strict=True):
        accuracy = _share_right([hit for hit in right if low <= hit.ratio < high])
        if accuracy is not None:
            bins.append(LengthBin(low=low, high=None if high == math.inf else high, accuracy=accuracy))
    return Length(
        shorter=_share_right([each for each in right if each.ratio < 1]),
        longer=_share_right([each for each in right if each.ratio > 1]),
        slope=slope([math.log(ratio) for ratio in ratios], logits, prompts_of(labelled)),
        bins=tuple(bins),
    )


class _LengthHit(NamedTuple):
    """Whether a pair was judged right, by the length of its better reply over that of its worse one."""

    ratio: float
    hit: float
    prompt: str


def _share_right(right: Sequence[_LengthHit]) -> Estimate | None:
    return share_of([each.hit for each in right], [each.prompt for each in right])


def _mass(judged: Sequence[JudgedPair], least: float) -> LabelMass | None:
    masses = [mass for each in judged for mass in each.masses]
    if not masses:
        return None
    return LabelMass(
        mean=mean(masses), below=mean([float(mass < least) for mass in masses]), least=least, answers=len(masses)
    )


def decide(measures: Measures) -> Verdict:
    """The verdict on a judge, with every reason; the worst one decides."""
    reasons = tuple([*_unfit_reasons(measures), *_doubtful_reasons(measures)])
    levels = {reason.level for reason in reasons}
    level: Level = "unfit" if "unfit" in levels else "doubtful" if levels else "fit"
    return Verdict(level=level, reasons=reasons)


def _unfit_reasons(measures: Measures) -> Iterator[Reason]:
    """What makes a judge unfit."""
    best = measures.best_baseline
    if measures.coverage < LEAST_COVERAGE:
        yield _unfit(f"only {measures.coverage:.0%} of the pairs have a label")
    if measures.gain is not None and measures.gain.low <= 0 and best is not None:
        yield _unfit(
            f"no better than `{best.name}`: {_points(measures.gain.value)} points "
            f"({_points(measures.gain.low)} to {_points(measures.gain.high)})"
        )
    if measures.mass is not None and measures.mass.mean < LEAST_MASS:
        yield _unfit(f"the labels get {measures.mass.mean:.0%} of the probability on average")
    if measures.flips is not None and measures.flips.value > MOST_FLIPS:
        yield _unfit(f"{measures.flips.value:.0%} of the pairs flip with the order")


def _doubtful_reasons(measures: Measures) -> Iterator[Reason]:
    """What makes it doubtful."""
    if measures.pairs < LEAST_PAIRS:
        yield _doubt(f"only {measures.pairs} pairs: the intervals are wide")
    if measures.flips is not None and SOME_FLIPS < measures.flips.value <= MOST_FLIPS:
        yield _doubt(f"{measures.flips.value:.0%} of the pairs flip with the order")
    if measures.calibration is not None and measures.calibration.error > max(
        MOST_ERROR, measures.calibration.chance_high or 0.0
    ):
        temperature = measures.temperature
        hint = (
            f" ({temperature.error_after:.2f} with the fitted temperature)"
            if temperature is not None and temperature.helps
            else ""
        )
        yield _doubt(f"the calibration error is {measures.calibration.error:.2f}{hint}")
    yield from _canary_reasons(measures.canaries)
    short, long = measures.length.shorter, measures.length.longer
    if short is not None and long is not None and long.value - short.value > MOST_LENGTH_GAP:
        yield _doubt(f"right in {long.value:.0%} where the better reply is longer, in {short.value:.0%} where shorter")


def _canary_reasons(canaries: tuple[Canary, ...]) -> Iterator[Reason]:
    """The canaries that win in fences, as a run shows replies."""
    wins = {each.kind: each.wins.value for each in canaries if each.fenced and each.wins is not None}
    plain = wins.pop(PLAIN, 0.0)
    for kind, won in wins.items():
        gained = won if kind in NOTHING else won - plain
        if won > MOST_CANARY_WINS and gained > MOST_CANARY_GAIN:
            beside = "" if kind in NOTHING else f" (without the addition {plain:.0%})"
            yield _doubt(f"the canary `{kind}` wins {won:.0%}{beside}")


def _unfit(text: str) -> Reason:
    return Reason(level="unfit", text=text)


def _doubt(text: str) -> Reason:
    return Reason(level="doubtful", text=text)


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def shared_errors(about: About, judged: Sequence[JudgedPair], folder: Path) -> tuple[SharedErrors, ...]:
    """The errors of this judge beside those of every other one that was evaluated on the same pairs in the folder."""
    latest = {}
    for path in sorted(folder.glob("*.pairs.jsonl"), key=lambda path: path.stat().st_mtime):
        with contextlib.suppress(OSError, ValidationError):
            report = path.with_name(path.name.removesuffix(".pairs.jsonl") + ".json")
            other_about = JudgeReport.model_validate_json(report.read_bytes()).about
            data = (other_about.gold, other_about.gold_sha256, other_about.constitution_hash)
            if other_about.judge != about.judge and data == (about.gold, about.gold_sha256, about.constitution_hash):
                latest[other_about.judge] = path
    logits = _logits(judged)
    errors = []
    for judge, path in sorted(latest.items()):
        try:
            with path.open(encoding="utf-8") as file:
                other = _logits([JudgedPair.model_validate_json(line) for line in file])
        except (OSError, ValueError):
            continue
        rho = error_correlation(logits, other)
        if rho is not None:
            pairs, worth = len(logits.keys() & other.keys()), effective_judges(2, rho)
            errors.append(SharedErrors(judge=judge, pairs=pairs, correlation=rho, worth=worth))
    return tuple(errors)


def error_correlation(one: Mapping[str, float], other: Mapping[str, float]) -> float | None:
    """Pearson's correlation of two judges' log-odds of the better replies, by pair; None of too few or equal ones."""
    shared = sorted(one.keys() & other.keys())
    if len(shared) < LEAST_SHARED:
        return None
    xs, ys = [one[key] for key in shared], [other[key] for key in shared]
    return correlation(xs, ys)


def correlation(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Pearson's; None of fewer than three points, and where one of the two does not vary."""
    if len(xs) < 3 or min(xs) == max(xs) or min(ys) == max(ys):
        return None
    return statistics.correlation(xs, ys)


def _logits(judged: Sequence[JudgedPair]) -> dict[str, float]:
    return {each.id: each.logit for each in judged if each.logit is not None and not each.tie}
