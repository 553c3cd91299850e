"""From judged gold pairs to what is said about their judge. Pure: no model, no files.

How far the errors of several judges go together, which only known answers tell.

The log-odds of two good judges correlate because both see the truth. What is left of a judge's log-odds of the better
reply when their mean is taken off is its error; judges whose errors correlate by rho are worth `effective_judges` of
that rho. Judges meet here where they were evaluated on the same gold pairs, in one folder.

Whether labels should be made with a judge: rules over what was measured, and the verdicts known from earlier.

From judged gold pairs to what is said about their judge. Pure: no model, no files.

Shares are over pairs that have a label. A pair without one is neither right nor wrong; the coverage tells of it.
"""

from __future__ import annotations

import contextlib
import glob
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
    word_of,
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

LEAST_SHARED = 30
"""With fewer pairs a correlation of 0.36 is nothing but chance."""


def shared_errors(about: About, judged: Sequence[JudgedPair], folder: Path) -> tuple[SharedErrors, ...]:
    """The errors of this judge beside those of every other one that was evaluated on the same pairs in the folder."""
    own = _logits(judged)
    found = []
    for judge, path in sorted(_others(about, folder).items()):
        other = _logits(_pairs(path))
        rho = error_correlation(own, other)
        if rho is not None:
            worth = effective_judges(2, rho)
            found.append(SharedErrors(judge=judge, pairs=len(own.keys() & other.keys()), correlation=rho, worth=worth))
    return tuple(found)


def error_correlation(one: Mapping[str, float], other: Mapping[str, float]) -> float | None:
    """Pearson's correlation of two judges' log-odds of the better replies, by pair; None of too few or equal ones."""
    shared = sorted(one.keys() & other.keys())
    if len(shared) < LEAST_SHARED:
        return None
    xs, ys = [one[key] for key in shared], [other[key] for key in shared]
    return None if min(xs) == max(xs) or min(ys) == max(ys) else statistics.correlation(xs, ys)


def _logits(judged: Sequence[JudgedPair]) -> dict[str, float]:
    return {each.id: each.logit for each in judged if each.logit is not None and not each.tie}


def _others(about: About, folder: Path) -> dict[str, Path]:
    """By judge, the pairs of its latest evaluation on the same data."""
    reports = sorted(folder.glob("*.pairs.jsonl"), key=lambda path: path.stat().st_mtime)
    found = {}
    for pairs in reports:
        with contextlib.suppress(OSError, ValidationError):
            path = pairs.with_name(pairs.name.removesuffix(".pairs.jsonl") + ".json")
            told = JudgeReport.model_validate_json(path.read_bytes()).about
            same = (told.gold, told.gold_sha256, told.constitution_hash)
            if told.judge != about.judge and same == (about.gold, about.gold_sha256, about.constitution_hash):
                found[told.judge] = pairs
    return found


def _pairs(path: Path) -> list[JudgedPair]:
    try:
        with path.open(encoding="utf-8") as file:
            return [JudgedPair.model_validate_json(line) for line in file]
    except (OSError, ValueError):
        return []


FOLDER = Path("runs/judges")
"""Where evaluations are kept, and looked for."""

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

EXIT_CODES: dict[Level, int] = {"fit": 0, "doubtful": 3, "unfit": 4}


def decide(found: Measures) -> Verdict:
    """The verdict on a judge, with every reason; the worst one decides."""
    reasons = tuple([*_against(found), *_doubts(found)])
    levels = {reason.level for reason in reasons}
    level: Level = "unfit" if "unfit" in levels else "doubtful" if levels else "fit"
    return Verdict(level=level, reasons=reasons)


def _against(found: Measures) -> Iterator[Reason]:
    """What makes a judge unfit."""
    best = found.best_baseline
    if found.coverage < LEAST_COVERAGE:
        yield _unfit(f"only {found.coverage:.0%} of the pairs have a label")
    if found.gain is not None and found.gain.low <= 0 and best is not None:
        yield _unfit(
            f"no better than `{best.name}`: {_points(found.gain.value)} points "
            f"({_points(found.gain.low)} to {_points(found.gain.high)})"
        )
    if found.mass is not None and found.mass.mean < LEAST_MASS:
        yield _unfit(f"the labels get {found.mass.mean:.0%} of the probability on average")
    if found.flips is not None and found.flips.value > MOST_FLIPS:
        yield _unfit(f"{found.flips.value:.0%} of the pairs flip with the order")


def _doubts(found: Measures) -> Iterator[Reason]:
    """What makes it doubtful."""
    if found.pairs < LEAST_PAIRS:
        yield _doubt(f"only {found.pairs} pairs: the intervals are wide")
    if found.flips is not None and SOME_FLIPS < found.flips.value <= MOST_FLIPS:
        yield _doubt(f"{found.flips.value:.0%} of the pairs flip with the order")
    if found.calibration is not None and found.calibration.error > max(
        MOST_ERROR, found.calibration.chance_high or 0.0
    ):
        cooled = found.temperature
        hint = f" ({cooled.error_after:.2f} with the fitted temperature)" if cooled is not None and cooled.helps else ""
        yield _doubt(f"the calibration error is {found.calibration.error:.2f}{hint}")
    yield from _canary_doubts(found.canaries)
    short, long = found.length.shorter, found.length.longer
    if short is not None and long is not None and long.value - short.value > MOST_LENGTH_GAP:
        yield _doubt(f"right in {long.value:.0%} where the better reply is longer, in {short.value:.0%} where shorter")


def _canary_doubts(canaries: tuple[Canary, ...]) -> Iterator[Reason]:
    """As a run shows replies: in fences."""
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


def known_reports(judge: str, constitution_hash: str, folder: Path = FOLDER) -> list[JudgeReport]:
    """The evaluations of a judge under a constitution, the latest last."""
    try:
        paths = sorted(folder.glob(f"{glob.escape(word_of(judge))}*.json"), key=lambda path: path.stat().st_mtime)
    except OSError:
        return []
    about = judge, constitution_hash
    found = [report for path in paths if (report := _report(path)) is not None]
    return [each for each in found if (each.about.judge, each.about.constitution_hash) == about]


def known_verdict(judge: str, constitution_hash: str, folder: Path = FOLDER) -> Verdict | None:
    """What earlier evaluations found of a judge under a constitution; None where there was none.

    Of every gold file the latest, and of those the worst, as a judge that is good on one gold file does not fix what
    it got wrong on another.
    """
    latest = {report.about.gold: report.verdict for report in known_reports(judge, constitution_hash, folder)}
    return max(latest.values(), key=lambda verdict: EXIT_CODES[verdict.level], default=None)


def _report(path: Path) -> JudgeReport | None:
    try:
        return JudgeReport.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


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
