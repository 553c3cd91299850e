"""Best-of-n: what the response with the highest of n rewards is worth by another measure.

Best-of-n from a fixed number of answers: what the best of n would be, over all ways to draw n of them.

Drawing n answers and taking the one with the highest reward is estimated without bias from N > n answers by averaging
over all subsets of n (Nakano et al. 2021, arXiv:2112.09332, appendix I), so that one set of N answers gives the whole
curve. Pure functions of plain sequences.

From answers with a reward and another measure to the curve of best-of-n. Pure: no model, no files.

The measure that does not see the reward: a judge's mean grade of an answer, or whatever the caller brings.

What speaks against a reward model, or against believing its figures: rules over what was measured.
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
from rlaif.feedback.matchups import Criterion, criteria_of
from rlaif.feedback.scoring import readable, score_question, score_record
from rlaif.inference.base import ModelSource, Question, StageStats, ask
from rlaif.records import Failure, Messages, Prompt, Sample, Score
from rlaif.stats import Estimate, average, mean
from rlaif.store import Table


def chances(rewards: Sequence[float], n: int) -> list[float]:
    """For each answer, in the order given, the probability that it is the best of n drawn without replacement.

    With the N answers sorted by reward, the i-th (from 1) is the best of a subset with probability
    C(i - 1, n - 1) / C(N, n). Answers of equal reward share theirs evenly, as where a draw decides among the best.
    Raises ValueError for an n that is not between 1 and N.
    """
    count = len(rewards)
    if not 1 <= n <= count:
        raise ValueError(f"n is {n}, with {count} answers")
    ways = math.comb(count, n)
    found = [0.0] * count
    ordered = sorted(range(count), key=lambda at: rewards[at])
    below = 0
    for _, tied in itertools.groupby(ordered, key=lambda at: rewards[at]):
        places = list(tied)
        up_to = below + len(places)
        # The sum of C(i - 1, n - 1) over these places; whole numbers until the last division.
        share = (math.comb(up_to, n) - math.comb(below, n)) / (ways * len(places))
        for at in places:
            found[at] = share
        below = up_to
    return found


def best_of(rewards: Sequence[float], values: Sequence[float], n: int) -> float:
    """The expected value of the answer that has the highest reward among n."""
    return math.fsum(chance * value for chance, value in zip(chances(rewards, n), values, strict=True))


def kl_of(n: int) -> float:
    """Nats from the policy to its best-of-n: ln n - (n - 1)/n.

    As in Stiennon et al. 2020 (arXiv:2009.01325, appendix G.3); an upper bound where answers can be equal (Beirami et
    al. 2024, arXiv:2401.01879).
    """
    return math.log(n) - (n - 1) / n


def doubled(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`."""
    return [2**power for power in range(most.bit_length())]


LEAST_PROMPTS = 10
"""With fewer, their errors show too little of the doubt: nothing is called over-optimised."""


class Rated(NamedTuple):
    """The answers to one prompt, in any order."""

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
    """The curve over n = 1, 2, 4, ... up to the answers of a prompt, of which all prompts have equally many.

    Intervals are over prompts. Raises ValueError where there is no prompt, or where their numbers of answers differ.
    """
    sizes = {len(each.rewards) for each in rated}
    if len(sizes) != 1:
        raise ValueError(f"every prompt needs the same number of answers, not {sorted(sizes) or 'none'}")
    (samples,) = sizes
    steps = doubled(samples)
    golds = {n: [best_of(each.rewards, each.golds, n) for each in rated] for n in steps}
    best_n = max(steps, key=lambda n: mean(golds[n]))  # of equals the smallest
    drop = _paired(golds[best_n], golds[steps[-1]]) if best_n != steps[-1] else None
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
    """Prompt by prompt the gain over the mean of its own answers: prompts differ more in reward than answers do."""
    spread = statistics.pstdev([reward for each in rated for reward in each.rewards]) or 1.0
    gains = [(best_of(each.rewards, each.rewards, n) - mean(each.rewards)) / spread for each in rated]
    return BestOf(
        n=n,
        kl=kl_of(n),
        reward=average(gains, range(len(rated))),
        gold=average(golds, range(len(rated))),
        length=mean([best_of(each.rewards, each.lengths, n) for each in rated]),
    )


def _paired(one: Sequence[float], other: Sequence[float]) -> Estimate:
    return average([first - second for first, second in zip(one, other, strict=True)], range(len(one)))


Measure = Callable[[Messages, str], float]
"""A number for an answer in a conversation, the higher the better; NaN where there is none."""

Metric = Callable[[Prompt, Sample], float | None]
"""The measure of one answer; None where there is none."""


@dataclass(frozen=True)
class Own:
    """A measure that the caller brings."""

    name: str
    measure: Measure

    @property
    def identity(self) -> JsonValue:
        """What its values depend on, as far as that can be told."""
        return self.name

    def metric(self) -> Metric:
        """The measure of an answer; None where it is no finite number."""

        def of(prompt: Prompt, sample: Sample) -> float | None:
            value = float(self.measure(prompt.messages, sample.text))
            return value if math.isfinite(value) else None

        return of


@dataclass(frozen=True)
class Grading:
    """A judge's grades, from 0 to 9, mean over the principles by their weights.

    A grade is the expectation over the digits (arXiv:2309.00267, section 2.2.2).
    """

    judge: ModelSource
    constitution: Constitution
    principles: Literal["each", "all"] = "each"
    """Every principle a question of its own, or all in one."""
    max_chars: int = 12_000
    """Longer conversations and answers are cut in the middle."""
    min_mass: float = 0.5
    """A grade with less probability on the digits cannot be read."""
    templates: Templates = SHIPPED
    """In whose words it is asked."""
    max_failed: float = 0.5
    """Stop when more than this share of the questions failed."""

    @property
    def name(self) -> str:
        """For people."""
        return f"mean grade by {self.judge.name} under `{self.constitution.name}` (0 to 9)"

    @property
    def identity(self) -> JsonValue:
        """What its values depend on."""
        own: list[JsonValue] = [self.templates.hashes["score"]] if "score" in self.templates.own else []
        return [self.judge.name, self.constitution.hash, self.principles, self.max_chars, self.min_mass, *own]

    @functools.cached_property
    def _asked_as(self) -> Judge:
        return Judge(self.judge.name, self.templates)

    @functools.cached_property
    def _criteria(self) -> tuple[Criterion, ...]:
        return criteria_of(self.constitution, self.principles)

    def most(self, answers: Sequence[Answers]) -> int:
        """Questions at most."""
        return len(self._criteria) * sum(len(each.samples) for each in answers)

    async def ask(
        self, answers: Sequence[Answers], scores: Table[Score], failures: Table[Failure], **options: Any
    ) -> StageStats:
        """Ask for the grades that are missing; `options` go to `ask`."""
        questions = (question for each in answers for sample in each.samples for question in self._asked(each, sample))
        return await ask(questions, self.judge, scores, score_record, failures, max_failed=self.max_failed, **options)

    def metric(self, scores: Table[Score]) -> Metric:
        """The mean grade on disk; None where one is missing or cannot be read: it is never 0."""

        def of(prompt: Prompt, sample: Sample) -> float | None:
            total = 0.0
            for criterion in self._criteria:
                score = scores.get(self._question(prompt, sample, criterion).id)
                if score is None or score.value is None or not readable(score, min_mass=self.min_mass):
                    return None
                total += criterion.weight * score.value
            return total / sum(criterion.weight for criterion in self._criteria)

        return of

    def _asked(self, answers: Answers, sample: Sample) -> Iterator[Question]:
        """Those of one answer next to each other: a server's cache then holds all but the principle."""
        return (self._question(answers.prompt, sample, criterion) for criterion in self._criteria)

    def _question(self, prompt: Prompt, sample: Sample, criterion: Criterion) -> Question:
        return score_question(prompt, sample, criterion, self._asked_as, max_chars=self.max_chars)


MOST_CORRELATION = 0.5
"""Of reward and length, in size: over it a quarter of the rewards' variance is length, and a policy will find that."""
MOST_LEFT_OUT = 0.1
"""Share of the prompts of best-of-n: over it, what is told of the others tells little of them."""
MOST_CUT = 0.2
"""Share of the answers cut off at the limit: over it, the other measure is that of halves."""
FEW_PROMPTS = 30


def best_of_n_warnings(gold: Gold | None, best_of_n: BestOfN | None, *, raw: bool = False) -> tuple[str, ...]:
    """The warnings, most important first; `raw` says that a model learned raw text and now gets its chat template."""
    found = list(_gold(gold)) if gold is not None else []
    if raw:
        found.append(
            "the model was trained on raw text, and conversations are given to it in its chat template: train it with "
            "`template: chat`, or for dialogues try --template plain"
        )
    return (*found, *(_best_of(best_of_n) if best_of_n is not None else ()))


def _gold(gold: Gold) -> Iterator[str]:
    best = gold.best_baseline
    if not gold.beats_baselines and gold.gain is not None and best is not None:
        points = [f"{100 * each:+.1f}" for each in (gold.gain.value, gold.gain.low, gold.gain.high)]
        yield f"no better than `{best.name}`: {points[0]} points ({points[1]} to {points[2]})"
    if gold.trained_on:
        yield (
            f"{gold.trained_on:,} of the {_all(gold):,} gold pairs stand in the data that the model was trained on: "
            "the accuracy is no measure for new pairs"
        )
    if gold.length_correlation is not None and abs(gold.length_correlation) > MOST_CORRELATION:
        liked = "longer" if gold.length_correlation > 0 else "shorter"
        yield f"the reward follows length (correlation {gold.length_correlation:+.2f}): a policy learns to be {liked}"
    if gold.no_reward:
        told = ", ".join(f"{count:,} {reason}" for reason, count in gold.no_reward.items())
        yield f"{sum(gold.no_reward.values()):,} of the {_all(gold):,} gold pairs have no reward ({told})"
    if gold.truncated:
        yield f"in {gold.truncated:.1%} of the pairs the conversation was too long, and lost its beginning"
    if gold.pairs < LEAST_PAIRS:
        yield f"only {gold.pairs} pairs: the intervals are wide"


def _all(gold: Gold) -> int:
    return gold.pairs + sum(gold.no_reward.values())


def _best_of(found: BestOfN) -> Iterator[str]:
    if found.overoptimised and found.drop is not None:
        drop = found.drop
        yield (
            f"over-optimised: from best-of-{found.best_n} to best-of-{found.points[-1].n} the other measure falls by "
            f"{drop.value:.2f} ({drop.low:.2f} to {drop.high:.2f}) while the reward rises"
        )
    left_out = sum(found.left_out.values())
    if left_out > MOST_LEFT_OUT * (left_out + found.prompts):
        told = ", ".join(f"{count:,} {reason}" for reason, count in found.left_out.items())
        yield f"best-of-n leaves out {left_out:,} of {left_out + found.prompts:,} prompts ({told})"
    if found.truncated is not None and found.truncated > MOST_CUT:
        yield f"{found.truncated:.0%} of the answers were cut off at the limit of tokens"
    if found.prompts < LEAST_PROMPTS:
        yield f"best-of-n on only {found.prompts} prompts: too few to call it over-optimised or not"
    elif found.prompts < FEW_PROMPTS:
        yield f"best-of-n on only {found.prompts} prompts: the intervals are wide"
