"""Best-of-n curves: what the response with the highest of n rewards is worth by a measure that never saw the reward.

The expected value of the best of n is estimated without bias from N > n responses by averaging over all subsets of
size n (Nakano et al. 2021, arXiv:2112.09332, appendix I), so one set of N responses gives the whole curve. Where the
reward keeps rising with n and the other measure falls, the reward model is over-optimised.

The other measure is a judge's mean grade (`Grading`) or a function of the caller's (`CustomMeasure`).
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from pydantic import JsonValue

from rlaif.config.judge_templates import SHIPPED, Judge, Templates
from rlaif.constitution import Constitution
from rlaif.evaluation.judge_metrics import LEAST_PAIRS
from rlaif.evaluation.reports import BestOf, BestOfN, Gold
from rlaif.evaluation.reward_scores import Answers
from rlaif.feedback.judge import Criterion, criteria_of
from rlaif.feedback.scoring import readable, score_question, score_record
from rlaif.inference.base import ModelSource, Question, StageStats, ask
from rlaif.records import Failure, Messages, Prompt, Sample, Score
from rlaif.stats import average, mean
from rlaif.store import Table

LEAST_PROMPTS = 10
"""With fewer prompts the intervals are too narrow to call anything over-optimised."""
MOST_CORRELATION = 0.5
"""Absolute correlation of reward and length: above it length explains a quarter of the variance of the rewards, and a
policy exploits that."""
MOST_LEFT_OUT = 0.1
"""Share of the prompts of best-of-n: over it, the remaining prompts do not represent all."""
MOST_CUT = 0.2
"""Share of the answers cut off at the limit: over it, the other measure mostly sees incomplete texts."""
FEW_PROMPTS = 30
"""With fewer prompts the intervals are wide."""


def chances(rewards: Sequence[float], n: int) -> list[float]:
    """For each response, in the order given, the probability that it is the best of n sampled without replacement.

    With the N responses sorted by reward, the i-th (from 1) is the best of a subset with probability
    C(i - 1, n - 1) / C(N, n). Responses of equal reward share theirs evenly.
    Raises ValueError for an n that is not between 1 and N.
    """
    count = len(rewards)
    if not 1 <= n <= count:
        raise ValueError(f"n is {n}, with {count} answers")
    subsets = math.comb(count, n)
    probabilities = [0.0] * count
    ordered = sorted(range(count), key=lambda at: rewards[at])
    below = 0
    for _, tied in itertools.groupby(ordered, key=lambda at: rewards[at]):
        places = list(tied)
        up_to = below + len(places)
        # The sum of C(i - 1, n - 1) over these places; whole numbers until the last division.
        share = (math.comb(up_to, n) - math.comb(below, n)) / (subsets * len(places))
        for at in places:
            probabilities[at] = share
        below = up_to
    return probabilities


def best_of(rewards: Sequence[float], values: Sequence[float], n: int) -> float:
    """The expected value of the response with the highest reward among n."""
    return math.fsum(chance * value for chance, value in zip(chances(rewards, n), values, strict=True))


def kl_of(n: int) -> float:
    """Nats from the policy to its best-of-n: ln n - (n - 1)/n.

    As in Stiennon et al. 2020 (arXiv:2009.01325, appendix G.3); an upper bound where responses can be equal (Beirami et
    al. 2024, arXiv:2401.01879).
    """
    return math.log(n) - (n - 1) / n


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`."""
    return [2**power for power in range(most.bit_length())]


class Rated(NamedTuple):
    """The responses to one prompt, in any order."""

    rewards: tuple[float, ...]
    golds: tuple[float, ...]
    """The other measure of each."""
    lengths: tuple[int, ...]
    """Characters of each."""


def curve_of(
    rated: Sequence[Rated],
    *,
    policy: str,
    measure: str,
    left_out: Mapping[str, int] | None = None,
    truncated: float | None = None,
) -> BestOfN:
    """The curve over n = 1, 2, 4, ... up to the number of responses to a prompt, which is the same for all prompts.

    Intervals are over prompts. Raises ValueError where there is no prompt, or where the numbers of responses differ.
    """
    sizes = {len(each.rewards) for each in rated}
    if len(sizes) != 1:
        raise ValueError(f"every prompt needs the same number of answers, not {sorted(sizes) or 'none'}")
    (samples,) = sizes
    steps = powers_of_two(samples)
    golds = {n: [best_of(each.rewards, each.golds, n) for each in rated] for n in steps}
    best_n = max(steps, key=lambda n: mean(golds[n]))  # of equals the smallest
    drop = None
    if best_n != steps[-1]:
        differences = [best - last for best, last in zip(golds[best_n], golds[steps[-1]], strict=True)]
        drop = average(differences, range(len(rated)))
    return BestOfN(
        policy=policy,
        measure=measure,
        prompts=len(rated),
        samples=samples,
        left_out=dict(left_out or {}),
        truncated=truncated,
        points=tuple(_point(rated, n, golds[n]) for n in steps),
        best_n=best_n,
        drop=drop,
        overoptimised=drop is not None and drop.low > 0 and len(rated) >= LEAST_PROMPTS,
    )


def _point(rated: Sequence[Rated], n: int, golds: Sequence[float]) -> BestOf:
    """One point of the curve.

    The reward is the gain over the mean of the prompt's responses, as prompts differ more in reward than responses do.
    """
    spread = statistics.pstdev([reward for each in rated for reward in each.rewards]) or 1.0
    gains = [(best_of(each.rewards, each.rewards, n) - mean(each.rewards)) / spread for each in rated]
    return BestOf(
        n=n,
        kl=kl_of(n),
        reward=average(gains, range(len(rated))),
        gold=average(golds, range(len(rated))),
        length=mean([best_of(each.rewards, each.lengths, n) for each in rated]),
    )


Measure = Callable[[Messages, str], float]
"""The value of a response in a conversation, the higher the better; NaN where there is none."""

Metric = Callable[[Prompt, Sample], float | None]
"""The measure of one response; None where there is none."""


@dataclass(frozen=True)
class CustomMeasure:
    """A measure that the caller supplies."""

    name: str
    measure: Measure

    @property
    def identity(self) -> JsonValue:
        """What its values depend on, as far as it is known."""
        return self.name

    def metric(self) -> Metric:
        """The measure of a response; None where it is no finite number."""

        def value_of(prompt: Prompt, sample: Sample) -> float | None:
            value = float(self.measure(prompt.messages, sample.text))
            return value if math.isfinite(value) else None

        return value_of


@dataclass(frozen=True)
class Grading:
    """A judge's grades, from 0 to 9, mean over the principles by their weights.

    A grade is the expected value over the probabilities of the digits (arXiv:2309.00267, section 2.2.2).
    """

    judge: ModelSource
    constitution: Constitution
    principles: Literal["each", "all"] = "each"
    """One question per principle, or one about all of them."""
    max_chars: int = 12_000
    """Longer conversations and responses are cut in the middle."""
    min_mass: float = 0.5
    """A grade with less probability on the digits cannot be read."""
    templates: Templates = SHIPPED
    """Prompt templates of the judge."""
    max_failed: float = 0.5
    """Stop when more than this share of the questions failed."""

    @property
    def name(self) -> str:
        """For people."""
        return f"mean grade by {self.judge.name} under `{self.constitution.name}` (0 to 9)"

    @property
    def identity(self) -> JsonValue:
        """What its values depend on."""
        hashes: list[JsonValue] = [self.templates.hashes["score"]] if "score" in self.templates.own else []
        return [self.judge.name, self.constitution.hash, self.principles, self.max_chars, self.min_mass, *hashes]

    @functools.cached_property
    def _criteria(self) -> tuple[Criterion, ...]:
        return criteria_of(self.constitution, self.principles)

    def max_questions(self, answers: Sequence[Answers]) -> int:
        """The number of questions when no grade is on disk."""
        return len(self._criteria) * sum(len(group.samples) for group in answers)

    async def ask(
        self, answers: Sequence[Answers], scores: Table[Score], failures: Table[Failure], **options: Any
    ) -> StageStats:
        """Ask the judge for the missing grades; `options` go to `ask`."""
        # All questions about one response are adjacent, so a server's prefix cache covers all but the principle.
        questions = (
            self._question(group.prompt, sample, criterion)
            for group in answers
            for sample in group.samples
            for criterion in self._criteria
        )
        return await ask(questions, self.judge, scores, score_record, failures, max_failed=self.max_failed, **options)

    def metric(self, scores: Table[Score]) -> Metric:
        """The mean of the grades on disk; None, never 0, where one is missing or unreadable."""

        def value_of(prompt: Prompt, sample: Sample) -> float | None:
            total = 0.0
            for criterion in self._criteria:
                score = scores.get(self._question(prompt, sample, criterion).id)
                if score is None or score.value is None or not readable(score, min_mass=self.min_mass):
                    return None
                total += criterion.weight * score.value
            return total / sum(criterion.weight for criterion in self._criteria)

        return value_of

    def _question(self, prompt: Prompt, sample: Sample, criterion: Criterion) -> Question:
        judge = Judge(self.judge.name, self.templates)
        return score_question(prompt, sample, criterion, judge, max_chars=self.max_chars)


def best_of_n_warnings(gold: Gold | None, best_of_n: BestOfN | None, *, raw: bool = False) -> tuple[str, ...]:
    """The warnings about a reward model or its report, most important first.

    `raw` says that the model was trained on raw text and now gets its chat template.
    """
    messages = list(_gold_warnings(gold)) if gold is not None else []
    if raw:
        messages.append(
            "the model was trained on raw text, and conversations are given to it in its chat template: train it with "
            "`template: chat`, or for dialogues try --template plain"
        )
    return (*messages, *(_curve_warnings(best_of_n) if best_of_n is not None else ()))


def _gold_warnings(gold: Gold) -> Iterator[str]:
    best = gold.best_baseline
    if not gold.beats_baselines and gold.gain is not None and best is not None:
        points = [f"{100 * each:+.1f}" for each in (gold.gain.value, gold.gain.low, gold.gain.high)]
        yield f"no better than `{best.name}`: {points[0]} points ({points[1]} to {points[2]})"
    total = gold.pairs + sum(gold.no_reward.values())
    if gold.trained_on:
        yield (
            f"{gold.trained_on:,} of the {total:,} gold pairs stand in the data that the model was trained on: "
            "the accuracy is no measure for new pairs"
        )
    if gold.length_correlation is not None and abs(gold.length_correlation) > MOST_CORRELATION:
        liked = "longer" if gold.length_correlation > 0 else "shorter"
        yield f"the reward follows length (correlation {gold.length_correlation:+.2f}): a policy learns to be {liked}"
    if gold.no_reward:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in gold.no_reward.items())
        yield f"{sum(gold.no_reward.values()):,} of the {total:,} gold pairs have no reward ({reasons})"
    if gold.truncated:
        yield f"in {gold.truncated:.1%} of the pairs the conversation was too long, and lost its beginning"
    if gold.pairs < LEAST_PAIRS:
        yield f"only {gold.pairs} pairs: the intervals are wide"


def _curve_warnings(curve: BestOfN) -> Iterator[str]:
    if curve.overoptimised and curve.drop is not None:
        drop = curve.drop
        yield (
            f"over-optimised: from best-of-{curve.best_n} to best-of-{curve.points[-1].n} the other measure falls by "
            f"{drop.value:.2f} ({drop.low:.2f} to {drop.high:.2f}) while the reward rises"
        )
    left_out = sum(curve.left_out.values())
    if left_out > MOST_LEFT_OUT * (left_out + curve.prompts):
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in curve.left_out.items())
        yield f"best-of-n leaves out {left_out:,} of {left_out + curve.prompts:,} prompts ({reasons})"
    if curve.truncated is not None and curve.truncated > MOST_CUT:
        yield f"{curve.truncated:.0%} of the answers were cut off at the limit of tokens"
    if curve.prompts < LEAST_PROMPTS:
        yield f"best-of-n on only {curve.prompts} prompts: too few to call it over-optimised or not"
    elif curve.prompts < FEW_PROMPTS:
        yield f"best-of-n on only {curve.prompts} prompts: the intervals are wide"
