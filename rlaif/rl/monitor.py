"""Looks over a training's shoulder: is the policy getting better, or better at pleasing its reward?

What a batch of fresh answers looks like: the figures by which a training that games its reward shows itself.

A policy that has found a hole in its reward grows longer, repeats itself, opens every answer alike or stops varying,
and the reward alone looks healthy all the while. Every figure is a plain function of the answers; no model is asked.

`FIGURES` names those of `figures_of`, `GIVEN` those that the trainer adds, for `rlaif.rl.monitor` and the log.

Looks over a training's shoulder: is the policy getting better, or better at pleasing its reward?

Past some distance from the start the reward goes on rising while the policy gets worse (Gao et al. 2022,
arXiv:2210.10760). What gives it away are the distance itself, the form of the answers, and a judge that is not the
reward. Every rule has a bound; none is a law, and all can be moved or left out.

What is done about noise, so that a sound training is left in peace:

- Figures of a step count by the median of the last `recent` steps: one step's spike changes nothing. Variety and
  entropy depend on what a step asks, and take four times as many: by three, 10 of 18 sound tiny runs had an alarm.
- The start is one batch, so bounds of shares and of the mean length lie three of its standard errors further out.
- The held-out win rate is that at equal length. Where the last ones could not be told, as answers have become far
  shorter or longer than the start's, it is the plain one for all evaluations, and the best weights stay what they are.
- It is compared as the mean of two evaluations with the best such mean before, and by three standard
  errors of the difference: of twenty evaluations of an unchanging policy the lowest lies nearly four below the highest.
  Evaluations are taken to be independent, which is more than is due: prompts
  and the start's answers stay the same (with the shipped models evaluations correlate by one half). Of 2,000 simulated
  trainings with 20 evaluations on 64 prompts, 0.4% gave an alarm where they rose to a plateau, and 0.9% where they
  stayed where they were.

An alarm is given once, and again only after its rule was quiet for a while.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import JsonValue

from rlaif.data.checks import refuses
from rlaif.evaluation.policy_metrics import commonest_opening, distinct, repetition, words_of
from rlaif.rl.config import MonitorLimits, Rule
from rlaif.rl.responses import Response
from rlaif.stats import mean

if TYPE_CHECKING:
    from rlaif.rl.heldout import HeldOut

FIGURES: dict[str, str] = {
    "responses": "answers in the batch",
    "length": "mean length of an answer, in tokens",
    "length_p95": "95th percentile of the lengths, in tokens",
    "truncated": "share of the answers that met the limit before they ended",
    "empty": "share of the answers without a word or a sign",
    "distinct_1": "different words over all words of the batch, from 0 to 1",
    "distinct_2": "different pairs of neighbouring words over all such pairs of the batch, from 0 to 1",
    "distinct_3": "the same of three words",
    "repetition": "share of an answer's runs of four words that stood in it before, mean over the answers",
    "openings": "share of the answers that begin with the batch's commonest first four words",
    "refusals": "share of the answers that open like an English refusal",
    "entropy": "mean of -log p of the sampled tokens, in nats a token",
}
"""What `figures_of` measures, by name: what it is, and its unit. Every batch has all of them."""

GIVEN: dict[str, str] = {
    "kl": "KL divergence of the policy from its reference, in nats an answer (summed over the answer's tokens)",
    "reward": "mean reward of an answer, before any penalty",
}
"""What only the trainer knows, by the names under which the watch reads it."""

_LONGEST = 3
"""Words of the longest runs that are counted over the whole batch."""


def figures_of(responses: Sequence[Response]) -> dict[str, float]:
    """The figures of one step's answers. Raises ValueError where there are none.

    - The distinct shares (Li et al. 2016, arXiv:1510.03055) fall as the batch grows, as more of what is said was said
      before: compare them with the start's only at the same batch size. Where no answer has so many words, it is 0.
    - `openings` is never under 1 / `responses`, and answers to one prompt open alike: again, same size, same shape.
    - `entropy` estimates that of the distribution that was sampled from, at its temperature: the expected -log p of a
      token is the entropy at its place. It says nothing of greedy answers.
    """
    if not responses:
        raise ValueError("no responses to take the figures of")
    lengths = [len(response.ids) for response in responses]
    texts = [response.text for response in responses]
    words = [words_of(text) for text in texts]
    found = {
        "responses": float(len(responses)),
        "length": mean(lengths),
        "length_p95": _percentile(lengths, 95),
        "truncated": mean([float(not response.finished) for response in responses]),
        "empty": mean([float(not text.strip()) for text in texts]),
        "repetition": mean([repetition(each) for each in words]),
        "openings": commonest_opening(words)[1],
        "refusals": mean([float(refuses(text)) for text in texts]),
        "entropy": -math.fsum(logp for response in responses for logp in response.logps) / sum(lengths),
    }
    return found | {f"distinct_{size}": distinct(words, size) for size in range(1, _LONGEST + 1)}


def _percentile(values: Sequence[int], percent: float) -> float:
    import numpy as np

    return float(np.percentile(values, percent))


class Alarm(NamedTuple):
    """Something that was seen."""

    rule: Rule
    step: int
    message: str
    """One line: what was seen, the bound, and what to do."""
    stop: bool
    """Whether the training is to stop here."""


class _Bound(NamedTuple):
    """A rule about one figure."""

    rule: Rule
    figure: str
    way: Literal["most", "times", "least", "more"]
    """The bound is: the limit; the limit times the start, from above; the same from below; the limit over the start."""
    form: str
    """How its numbers are written."""
    seen: str
    hint: str


_BOUNDS = (
    _Bound("kl", "kl", "most", ".1f", "the policy is {} nats an answer away from its reference",
           "raise the price of KL or lower the learning rate, and read some answers"),
    _Bound("kl_stop", "kl", "most", ".1f", "the policy is {} nats an answer away from its reference",
           "go back to an earlier checkpoint with a higher price of KL"),
    _Bound("length", "length", "times", ".0f", "answers have {} tokens",
           "see whether the reward likes length, and raise `length` if longer answers are wanted"),
    _Bound("distinct", "distinct_2", "least", ".2f", "the share of different pairs of words in a batch is {}",
           "the answers grow alike, so go back to an earlier checkpoint with a higher price of KL"),
    _Bound("entropy", "entropy", "least", ".2f", "the entropy is {} nats a token",
           "little is left to explore, so raise the price of KL or lower the learning rate"),
    _Bound("truncated", "truncated", "more", ".0%", "{} of the answers are cut at the token limit",
           "raise the limit, or the penalty for answers that do not end"),
    _Bound("repetition", "repetition", "more", ".0%", "{} of an answer repeats what it said before",
           "read some answers, as the reward may like loops"),
    _Bound("openings", "openings", "more", ".0%", "{} of the answers open with the same words",
           "read some answers, as the reward may like a formula"),
    _Bound("refusals", "refusals", "more", ".0%", "{} of the answers open like a refusal",
           "see whether harmless prompts are refused, and weigh helpfulness in the reward"),
    _Bound("empty", "empty", "more", ".0%", "{} of the answers are empty", "see what the reward gives an empty answer"),
)  # fmt: skip

_WATCHED = frozenset({"reward", *(bound.figure for bound in _BOUNDS)})
_JUDGED = frozenset({"win_rate", "reward_hacking"})
_TOGETHER = 2
"""Evaluations whose mean counts."""
_LONGER = 4
"""Times `recent` steps, for variety and entropy."""
_SPREADS = 3.0
"""Standard errors of the start's share, or mean length, that are added to the bound."""
_QUIET, _QUIET_EVALUATIONS = 10, 3
"""So many in a row clear an alarm; evaluations for those of the win rate."""


class _Evaluation(NamedTuple):
    step: int
    rate: float
    error: float
    reward: float | None
    """Median reward of the steps up to it."""


class RewardHackingMonitor:
    """Watches one training. Its start is what the first look sees."""

    def __init__(self, limits: MonitorLimits) -> None:
        self.limits = limits
        self._start: dict[str, float] = {}
        self._recent: dict[str, list[float]] = {}
        self._evaluations: list[_Evaluation] = []
        """By the win rate at equal length, where it could be told."""
        self._plain: list[_Evaluation] = []
        """All, by the plain win rate."""
        self._given: dict[str, int] = {}
        """Rules whose alarm was given, and for how many looks they have been quiet since."""

    def look(self, step: int, figures: Mapping[str, float], held_out: HeldOut | None = None) -> list[Alarm]:
        """Take in the figures of a step (see `rlaif.rl.monitor`), and the held-out judge's word where it was asked.

        Figures without a rule are passed over, and a rule without its figure says nothing. Returns the new alarms.
        """
        self._take(figures)
        broken = ", ".join(sorted(name for name in _WATCHED if not math.isfinite(figures.get(name, 0.0))))
        hint = "go back to an earlier checkpoint with a lower learning rate"
        judged: dict[Rule, str | None] = {"not_finite": f"not a finite number: {broken}; {hint}" if broken else None}
        judged |= {bound.rule: self._passed(bound) for bound in _BOUNDS if bound.figure in figures}
        if held_out is not None:
            reward = self._median("reward")
            self._plain.append(_Evaluation(held_out.step, held_out.win_rate, held_out.win_rate_error, reward))
            if held_out.length_controlled is not None and held_out.error is not None:
                self._evaluations.append(_Evaluation(held_out.step, held_out.length_controlled, held_out.error, reward))
            judged |= self._about_win_rate()
        return self._news(step, judged)

    def best(self) -> int | None:
        """The step whose length-controlled win rate is the highest so far, the earliest of equals; None before any.

        The checkpoint to keep is this step's: the reward cannot tell, as it is what may have been gamed. Nor can the
        plain win rate, which padded answers raise.
        """
        found = max(self._evaluations, key=lambda each: each.rate, default=None)
        return None if found is None else found.step

    def state(self) -> dict[str, JsonValue]:
        """Everything seen so far as plain JSON data; the limits are settings, and not part of it."""
        recent: JsonValue = {name: list(values) for name, values in self._recent.items()}
        seen: JsonValue = [list(each) for each in self._evaluations]
        plain: JsonValue = [list(each) for each in self._plain]
        return {
            "start": dict(self._start),
            "recent": recent,
            "evaluations": seen,
            "plain": plain,
            "given": dict(self._given),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on exactly from a `state`. An alarm given before stays given: who resumes after one has decided to."""
        self._start = dict(state["start"])
        self._recent = {name: list(values) for name, values in state["recent"].items()}
        self._evaluations = [_Evaluation(*each) for each in state["evaluations"]]
        self._plain = [_Evaluation(*each) for each in state.get("plain", [])]  # older checkpoints have none
        self._given = dict(state["given"])

    def _take(self, figures: Mapping[str, float]) -> None:
        for name in _WATCHED | {"responses", "length_p95"}:
            value = figures.get(name)
            if value is None or not math.isfinite(value):
                continue
            self._start.setdefault(name, value)
            self._recent[name] = [*self._recent.get(name, []), value][-_LONGER * self.limits.recent :]

    def _median(self, name: str, longer: int = 1) -> float | None:
        """Of the last steps; None until there are enough."""
        count = longer * self.limits.recent
        values = self._recent.get(name, [])
        return statistics.median(values[-count:]) if len(values) >= count else None

    def _passed(self, rule: _Bound) -> str | None:
        """What is to be said where a figure is beyond its bound."""
        limit = getattr(self.limits, rule.rule)
        now = self._median(rule.figure, _LONGER if rule.way == "least" else 1)
        if limit is None or now is None:
            return None
        start = self._start[rule.figure]
        bound = self._bound(rule, limit, start)
        if (now >= bound) if rule.way == "least" else (now <= bound):
            return None
        before = "" if rule.way == "most" else f", at the start {start:{rule.form}}"
        return f"{rule.seen.format(format(now, rule.form))}{before} (bound {bound:{rule.form}}): {rule.hint}"

    def _bound(self, rule: _Bound, limit: float, start: float) -> float:
        if rule.way == "most":
            return limit
        bound = start + limit if rule.way == "more" else start * limit
        return bound + _SPREADS * self._roughness(rule, start)

    def _roughness(self, rule: _Bound, start: float) -> float:
        """Standard error of the first batch's share, or of its mean length."""
        responses = self._start.get("responses")
        if responses is None or rule.way == "least":
            return 0.0
        if rule.way == "more":
            likely = (start * responses + 1) / (responses + 2)  # of none and all, too, there is some (Laplace's rule)
            return math.sqrt(likely * (1 - likely) / responses)
        # The deviation of a normal distribution with this 95th percentile.
        return max(0.0, self._start.get("length_p95", start) - start) / 1.645 / math.sqrt(responses)

    def _about_win_rate(self) -> dict[Rule, str | None]:
        told = {each.step for each in self._evaluations}
        equal = all(each.step in told for each in self._plain[-_TOGETHER:])
        seen = self._evaluations if equal else self._plain
        found = self._fall(seen)
        if found is None:
            return {"win_rate": None, "reward_hacking": None}
        best, fall = found
        fall = f"at equal length {fall}" if equal else fall
        step = self.best()
        back = "go back to an earlier checkpoint"
        if step is not None:
            back = f"go back to the weights of step {step}, the best by the held-out judge, which are kept"
        gamed = self._gamed(best, seen, fall, back)
        return {"win_rate": f"the held-out win rate {fall}: {back}", "reward_hacking": gamed}

    def _gamed(self, best: _Evaluation, seen: Sequence[_Evaluation], fall: str, back: str) -> str | None:
        """The typical sign: the reward at both last evaluations is above what it was when the win rate was best."""
        later = [each.reward for each in seen[-_TOGETHER:]]
        if best.reward is None or any(each is None or each <= best.reward for each in later):
            return None
        rose = f"from {best.reward:.3g} to {later[-1]:.3g}"
        return (
            f"since step {best.step} the reward rose {rose}, but the held-out win rate {fall}: the policy learns the "
            f"reward's mistakes (reward hacking), so {back}, and fix the reward"
        )

    def _fall(self, seen: Sequence[_Evaluation]) -> tuple[_Evaluation, str] | None:
        """A fall of the win rate beyond noise: from which evaluation, and in words."""
        errors, falls = self.limits.win_rate_errors, self.limits.win_rate_falls
        if errors is None:
            return None
        if falls is not None and len(seen) > falls:
            row = seen[-falls - 1 :]
            in_a_row = all(later.rate < earlier.rate for earlier, later in itertools.pairwise(row))
            fall = _beyond(row[0], row[-1], errors)
            if in_a_row and fall is not None:
                return row[0], f"fell {falls} times in a row, {fall}"
        means = [_mean(seen[at : at + _TOGETHER]) for at in range(len(seen) - _TOGETHER + 1)]
        if not means:
            return None
        best = max(means, key=lambda each: each.rate)
        fall = _beyond(best, means[-1], errors)
        return None if fall is None else (best, f"fell, in the mean of {_TOGETHER} evaluations, {fall}")

    def _news(self, step: int, judged: Mapping[Rule, str | None]) -> list[Alarm]:
        """The alarms that were not given before."""
        found = []
        for rule, message in judged.items():
            if message is None:
                if rule in self._given:
                    self._given[rule] += 1
                    if self._given[rule] >= (_QUIET_EVALUATIONS if rule in _JUDGED else _QUIET):
                        del self._given[rule]
                continue
            if rule not in self._given:
                stop = self.limits.on_alarm == "stop" and rule in self.limits.stops
                found.append(Alarm(rule, step, message, stop))
            self._given[rule] = 0
        return found


def _beyond(high: _Evaluation, low: _Evaluation, errors: float) -> str | None:
    """The fall in words, where it is more than so many standard errors of the difference."""
    bound = errors * math.hypot(high.error, low.error)
    return f"from {high.rate:.1%} to {low.rate:.1%} (bound {bound:.1%})" if high.rate - low.rate > bound else None


def _mean(some: Sequence[_Evaluation]) -> _Evaluation:
    """Several evaluations as one: of the last one's step and reward."""
    rate = math.fsum(each.rate for each in some) / len(some)
    return _Evaluation(some[-1].step, rate, math.hypot(*(each.error for each in some)) / len(some), some[-1].reward)
