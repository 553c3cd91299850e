"""Whether labels should be made with a judge: rules over what was measured, and the verdicts known from earlier."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from rlaif.evaluation.canaries import NOTHING, PLAIN
from rlaif.evaluation.naming import word_of
from rlaif.evaluation.report import Canary, JudgeReport, Level, Measures, Reason, Verdict

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
        mend = f" ({cooled.error_after:.2f} with the fitted temperature)" if cooled is not None and cooled.helps else ""
        yield _doubt(f"the calibration error is {found.calibration.error:.2f}{mend}")
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
