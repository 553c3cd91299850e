"""How often the 95% intervals of `rlaif evaluate policy` hold the truth, in evaluations whose truth is known.

    python tests/bench/coverage.py [SIMULATIONS]

Each prompt has an ease of its own and four pairs of answers, or one; the policy's answers are longer on average, the
judge likes length and errs on every pair. The truth of a figure is what it comes to over 50,000 prompts. Sure judges
(`sure`: nearly every preference is close to 0 or 1) are tried too. Beside an interval stands the percentile bootstrap
over prompts that it replaces. Exit code 1 where a share lies outside 93% to 97% by more than chance explains; at equal
length it may be more, as those intervals count what the slope may be off by.

Then the length-controlled win rate where the judge's taste for length and the difficulty of prompts go together, which
one policy's comparisons cannot tell apart: told, not judged. Last, with the shared data, the models of AlpacaEval 2.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rlaif.evaluation.policy_metrics import (  # noqa: E402
    Compared,
    match_of,
)
from rlaif.evaluation.ratings import Won, ratings  # noqa: E402
from rlaif.evaluation.win_rate import _newton as newton  # noqa: E402
from rlaif.evaluation.win_rate import length_controlled  # noqa: E402
from rlaif.stats import Estimate  # noqa: E402
from tests.support import DATA  # noqa: E402

Numbers = np.ndarray[Any, np.dtype[np.float64]]

SIMULATIONS = 1000
LARGE = 50_000
"""Prompts that stand for all prompts."""
EACH = 4
"""Pairs of answers a prompt, where a design says nothing else."""
MARGIN = 0.05
LENGTH = 0.8
"""What length adds to the log-odds at most."""
LEAST, MOST = 0.93, 0.97


class Design(NamedTuple):
    """One kind of evaluation."""

    prompts: int
    rate: float
    """The true win rate."""
    noise: float
    """Standard deviation of the log-odds of a pair about its prompt's."""
    each: int = EACH
    """Pairs of answers a prompt."""

    def __str__(self) -> str:
        sure = ", sure" if self.noise > 3 else ""
        return f"{self.prompts} prompts, {self.each} each, {self.rate:.0%}{sure}"


DESIGNS = [Design(prompts, rate, 1.5) for prompts in (50, 200) for rate in (0.5, 0.65, 0.9)]
DESIGNS += [Design(50, rate, 8.0) for rate in (0.5, 0.9)]
DESIGNS += [Design(prompts, 0.9, noise, 1) for prompts, noise in ((50, 1.5), (50, 8.0), (200, 8.0))]


class Drawn(NamedTuple):
    """Log-odds, what they would be at equal length, and length differences, [prompts, pairs]."""

    logits: Numbers
    equal: Numbers
    gaps: Numbers


def drawn(design: Design, shift: float, prompts: int, rng: np.random.Generator) -> Drawn:
    """An evaluation of so many prompts."""
    ease = rng.normal(0, design.noise / 1.5, (prompts, 1))
    gaps = np.round(20 + 80 * rng.normal(0, 1, (prompts, 1)) + 120 * rng.normal(0, 1, (prompts, design.each)))
    errors = rng.normal(0, design.noise, (prompts, design.each))
    equal = shift + ease + errors
    return Drawn(equal + LENGTH * np.tanh(gaps / 146.0), equal, gaps)


def shift_of(design: Design) -> float:
    """The mean log-odds that give the true win rate, by bisection on one large evaluation."""
    large = drawn(design, 0.0, LARGE, np.random.default_rng(7))
    low, high = -40.0, 40.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if sigmoid(large.logits + middle).mean() < design.rate else (low, middle)
    return (low + high) / 2


def sigmoid(x: Numbers) -> Numbers:
    """The logistic function."""
    half: Numbers = (1 + np.tanh(x / 2)) / 2
    return half


def figures(found: Drawn) -> dict[str, Estimate]:
    """What the evaluation tells of a match; where lengths lie too far apart, nothing of equal length."""
    said = sigmoid(found.logits)
    rows = [
        Compared.model_construct(
            policy="a", baseline="b", prompt=str(prompt), index=at, tag=None, samples=("x", "y"), status="labelled",
            probability=float(said[prompt, at]), flip=False, principles={},
            lengths=(1000 + int(found.gaps[prompt, at]), 1000),
        )
        for prompt in range(len(said))
        for at in range(said.shape[1])
    ]  # fmt: skip
    match = match_of("a", "b", rows, margin=MARGIN, principles=())
    told = {
        "win rate": match.win_rate, "at equal length": match.length_controlled, "wins": match.wins,
        "preference": match.preference,
    }  # fmt: skip
    return {name: each for name, each in told.items() if each is not None}


def truth_of(large: Drawn) -> dict[str, float]:
    """What the figures come to over all prompts."""
    said = sigmoid(large.logits)
    won, lost = said - 0.5 >= MARGIN, 0.5 - said >= MARGIN
    ends = np.where(won, 1.0, np.where(lost, 0.0, 0.5))
    return {
        "win rate": float(ends.mean()), "at equal length": float(sigmoid(large.equal).mean()),
        "wins": float(won.mean()), "preference": float(said.mean()),
    }  # fmt: skip


def percentiles(found: Drawn, rng: np.random.Generator) -> dict[str, tuple[float, float]]:
    """The plain bootstrap over prompts, for comparison."""
    said = sigmoid(found.logits)
    won, lost = said - 0.5 >= MARGIN, 0.5 - said >= MARGIN
    parts = {"win rate": (0.5 + (won * 0.5) - (lost * 0.5)).mean(axis=1), "wins": won.mean(axis=1)}
    at = rng.integers(0, len(said), (1000, len(said)))
    return {name: tuple(np.quantile(each[at].mean(axis=1), [0.025, 0.975])) for name, each in parts.items()}


COMPARISONS = 400


def mixed(taste: float, difficulty: float, centre: float, simulations: int) -> tuple[float, float]:
    """Where prompts that make the policy's answers longer suit it better: the share of intervals at equal length that
    hold the truth, and the share of evaluations that have one.

    Length adds up to `taste` to the log-odds, a standard deviation of length goes with `difficulty`, and the mean
    difference is `centre` standard deviations.
    """

    def evaluation(count: int, rng: np.random.Generator) -> tuple[Numbers, Numbers, Numbers]:
        spread = rng.normal(0, 1, count)
        equal = difficulty * spread + rng.normal(0, 0.75, count)
        gaps = centre + spread
        return sigmoid(equal), sigmoid(equal + taste * np.tanh(gaps)), gaps

    truth = float(evaluation(LARGE * 4, rng_of(3))[0].mean())
    rng, given, held = rng_of(4), 0, 0
    for _ in range(simulations):
        _, said, gaps = evaluation(COMPARISONS, rng)
        told = length_controlled(list(said), list(gaps), resamples=300)
        if told.interval is not None:
            given += 1
            held += told.interval[0] <= truth <= told.interval[1]
    return held / max(given, 1), given / simulations


def alpaca() -> Iterator[str]:
    """Each model of AlpacaEval 2 in the shared data: published figure, ours or why there is none, the plain fit."""
    with (DATA / "alpacaeval/alpacaeval2-lc.csv").open() as file:
        published = {row["model"]: float(row["lc_alpacaeval"] or "nan") for row in csv.DictReader(file)}
    found: dict[str, tuple[list[float], list[float]]] = {}
    with gzip.open(DATA / "alpacaeval/alpacaeval2-numbers.csv.gz", "rt") as file:
        for row in csv.DictReader(file):
            said, gaps = found.setdefault(row["model"], ([], []))
            said.append(float(row["preference"]))
            gaps.append(float(row["length_model"]) - float(row["length_baseline"]))
    yield "| model | published | length-controlled | plain fit |"
    yield "|---|---|---|---|"
    off: list[float] = []
    for model, (said, gaps) in found.items():
        told = length_controlled(said, gaps, resamples=200)
        x = np.tanh(np.array(gaps) / np.std(gaps))
        theta, phi = newton(x, np.array(said), np.ones((1, len(said))))
        plain = 100 * float(sigmoid(theta[0] + 0 * x).mean())
        ours = "withheld" if told.length_controlled is None else f"{100 * told.length_controlled:.1f}"
        if told.length_controlled is None:
            off.append(abs(plain - published[model]))
        yield f"| {model} | {published[model]:.1f} | {ours} | {plain:.1f} (phi {phi[0]:.2f}) |"
    yield f"the plain fit of the {len(off)} withheld is {np.mean(off):.1f} points off on average"


STRENGTHS = {"strong": 0.8, "middle": 0.0, "weak": -0.8}


def tournament(prompts: int, rng: np.random.Generator) -> list[Won]:
    """Three policies, all of whose answers meet; an answer's quality counts in both its matches."""
    names = list(STRENGTHS)
    quality = np.array(list(STRENGTHS.values())) + rng.normal(0, 1.0, (prompts, EACH, 3))
    quality = quality + rng.normal(0, 0.7, (prompts, 1, 3))
    return [
        Won(names[one], names[two], str(prompt), float(p))
        for one, two in ((0, 1), (0, 2), (1, 2))
        for prompt, row in enumerate(sigmoid(quality[..., one] - quality[..., two] + rng.normal(0, 1, (prompts, EACH))))
        for p in row
    ]


def matches(design: Design, simulations: int) -> Iterator[tuple[str, float, float | None]]:
    """For every figure the share of intervals that hold the truth, and that of the plain bootstrap."""
    shift = shift_of(design)
    truth = truth_of(drawn(design, shift, LARGE, np.random.default_rng(7)))
    held, told, plain = dict.fromkeys(truth, 0), dict.fromkeys(truth, 0), dict.fromkeys(("win rate", "wins"), 0)
    rng = np.random.default_rng(9)
    for _ in range(simulations):
        found = drawn(design, shift, design.prompts, rng)
        for name, each in figures(found).items():
            told[name] += 1
            held[name] += each.low <= truth[name] <= each.high
        for name, (low, high) in percentiles(found, rng).items():
            plain[name] += low <= truth[name] <= high
    for name, count in held.items():
        yield name, count / told[name], plain[name] / simulations if name in plain else None


def strengths(prompts: int, simulations: int) -> float:
    """Share of the intervals of all three strengths that hold the truth."""
    names = list(STRENGTHS)
    truth = {each.name: each.strength.value for each in ratings(names, tournament(LARGE // 2, rng_of(1)), resamples=2)}
    rng, held = rng_of(2), 0
    for _ in range(simulations):
        for each in ratings(names, tournament(prompts, rng), resamples=500):
            held += each.strength.low <= truth[each.name] <= each.strength.high
    return held / (simulations * len(names))


def rng_of(seed: int) -> np.random.Generator:
    """Reproducible chance."""
    return np.random.default_rng(seed)


def mixtures(simulations: int = 200) -> None:
    """Print the coverage at equal length for each taste, difficulty and mean difference."""
    print(
        f"\n{COMPARISONS} comparisons, {simulations} simulations each: intervals at equal length that hold the truth\n"
    )
    print("| taste | difficulty | mean difference | coverage | given |")
    print("|---|---|---|---|---|")
    for taste, difficulty, centre in itertools.product((0.0, 1.0, 2.0), (0.0, 0.4, 0.75), (-0.4, -0.2, 0.0, 0.2, 0.4)):
        coverage, given = mixed(taste, difficulty, centre, simulations)
        print(f"| {taste} | {difficulty} | {centre} | {coverage:.1%} | {given:.0%} |", flush=True)


def main() -> int:
    """Print the table; returns 1 where an interval is too narrow or too wide."""
    simulations = int(sys.argv[1]) if len(sys.argv) > 1 else SIMULATIONS
    slack = 2.6 * math.sqrt(0.95 * 0.05 / simulations)
    off = 0
    print(f"{simulations} simulated evaluations each\n")
    print("| evaluation | figure | intervals that hold the truth | percentile bootstrap |")
    print("|---|---|---|---|")

    def told(design: str, name: str, share: float, plain: float | None) -> bool:
        beside = "" if plain is None else f"{plain:.1%}"
        print(f"| {design} | {name} | {share:.1%} | {beside} |", flush=True)
        most = 1.0 if name == "at equal length" else MOST + slack
        return not LEAST - slack <= share <= most

    for design in DESIGNS:
        off += sum(told(str(design), *each) for each in matches(design, simulations))
    for prompts in (50, 200):
        off += told(f"{prompts} prompts, three policies", "Bradley-Terry", strengths(prompts, simulations), None)
    mixtures()
    if DATA.is_dir():
        print("\n" + "\n".join(alpaca()))
    return int(off > 0)


if __name__ == "__main__":
    sys.exit(main())
