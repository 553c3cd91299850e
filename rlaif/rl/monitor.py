"""Monitoring of an online training: alarms for reward hacking, and evaluations by the held-out judge.

Past some distance from the start the reward goes on rising while the policy gets worse (Gao et al. 2022,
arXiv:2210.10760). The signs are the distance itself, the form of the responses, and a judge that is not the reward.
Every rule has a bound; none is a law, and all can be moved or left out.

Noise, so that a sound training raises no alarm:

- Metrics of a step count by the median of the last `recent` steps: one step's spike changes nothing. Variety and
  entropy depend on the prompts of a step, and take four times as many steps: with three, 10 of 18 sound tiny runs had
  an alarm.
- The start is one batch, so bounds of shares and of the mean length lie three of its standard errors further out.
- The held-out win rate is length-controlled. Where the last evaluations have none, because responses have become far
  shorter or longer than the start's, all evaluations count by their plain win rate, and the best weights stay as they
  are.
- The mean of two evaluations is compared with the best such mean before, by three standard errors of the difference:
  of twenty evaluations of an unchanging policy the lowest lies nearly four below the highest. The standard errors take
  evaluations as independent, which overstates the noise of the difference: prompts and the start's responses stay the
  same (with the shipped models evaluations correlate by one half). Of 2,000 simulated trainings with 20 evaluations on
  64 prompts, 0.4% gave an alarm where they rose to a plateau, and 0.9% where they stayed at their first value.

A rule gives its alarm once, and again only after it was quiet for a while.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any, Literal, NamedTuple, Self

from pydantic import JsonValue

from rlaif.config.judge_templates import load_templates
from rlaif.constitution import load_constitution
from rlaif.errors import UserError
from rlaif.inference.models import LazyModel
from rlaif.progress import first_process
from rlaif.rl.config import MonitorLimits, OnlineSettings, Rule
from rlaif.rl.experience import TokenizedPrompt
from rlaif.rl.heldout import HeldOut, HeldOutJudge
from rlaif.rl.rewards import has_judge
from rlaif.rl.trainer import OnlineTrainer, save_best

TRAINER_METRICS: dict[str, str] = {
    "kl": "KL divergence of the policy from its reference, in nats per response (summed over the answer's tokens)",
    "reward": "mean reward of an answer, before any penalty",
}
"""What the trainer adds to `RESPONSE_METRICS`, by the names under which the monitor reads it."""

_EVALUATIONS_AVERAGED = 2
"""Evaluations whose mean counts."""
_LONGER_WINDOW = 4
"""Times `recent` steps, for variety and entropy."""
_START_ERRORS = 3.0
"""Standard errors of the start's share, or mean length, that are added to the bound."""
_QUIET, _QUIET_EVALUATIONS = 10, 3
"""So many in a row clear an alarm; evaluations for those of the win rate."""


class Alarm(NamedTuple):
    """A rule that a training has broken."""

    rule: Rule
    step: int
    message: str
    """One line: the observation, the bound, and what to do."""
    stop: bool
    """Whether the training is to stop here."""


class _Bound(NamedTuple):
    """A rule about one metric."""

    rule: Rule
    metric: str
    kind: Literal["most", "times", "least", "more"]
    """The bound is: the limit; the limit times the start, from above; the same from below; the limit over the start."""
    number_format: str
    observation: str
    hint: str


_BOUNDS = (
    _Bound("kl", "kl", "most", ".1f", "the policy is {} nats per response away from its reference",
           "raise the KL coefficient or lower the learning rate, and read some responses"),
    _Bound("kl_stop", "kl", "most", ".1f", "the policy is {} nats per response away from its reference",
           "go back to an earlier checkpoint with a higher KL coefficient"),
    _Bound("length", "length", "times", ".0f", "responses have {} tokens",
           "see whether the reward likes length, and raise `length` if longer responses are wanted"),
    _Bound("distinct", "distinct_2", "least", ".2f", "the share of different pairs of words in a batch is {}",
           "the responses become alike, so go back to an earlier checkpoint with a higher KL coefficient"),
    _Bound("entropy", "entropy", "least", ".2f", "the entropy is {} nats per token",
           "little is left to explore, so raise the KL coefficient or lower the learning rate"),
    _Bound("truncated", "truncated", "more", ".0%", "{} of the responses are cut at the token limit",
           "raise the limit, or the penalty for responses that do not end"),
    _Bound("repetition", "repetition", "more", ".0%", "{} of a response repeats earlier text",
           "read some responses, as the reward may like loops"),
    _Bound("openings", "openings", "more", ".0%", "{} of the responses open with the same words",
           "read some responses, as the reward may like a formula"),
    _Bound("refusals", "refusals", "more", ".0%", "{} of the responses open like a refusal",
           "see whether harmless prompts are refused, and weigh helpfulness in the reward"),
    _Bound("empty", "empty", "more", ".0%", "{} of the responses are empty", "check the reward of an empty response"),
)  # fmt: skip

_MONITORED = frozenset({"reward", *(bound.metric for bound in _BOUNDS)})
_WIN_RATE_RULES = frozenset({"win_rate", "reward_hacking"})


class _Evaluation(NamedTuple):
    """One evaluation by the held-out judge, or the mean of several."""

    step: int
    rate: float
    error: float
    reward: float | None
    """Median reward of the steps up to it."""


class RewardHackingMonitor:
    """The rules of one training, whose start is the first step that it sees."""

    def __init__(self, limits: MonitorLimits) -> None:
        self.limits = limits
        self._start: dict[str, float] = {}
        self._recent: dict[str, list[float]] = {}
        self._length_controlled: list[_Evaluation] = []
        """By the length-controlled win rate, where there was one."""
        self._plain: list[_Evaluation] = []
        """All, by the plain win rate."""
        self._alarmed: dict[str, int] = {}
        """Rules whose alarm was given, and for how many calls they have been quiet since."""

    def look(self, step: int, metrics: Mapping[str, float], held_out: HeldOut | None = None) -> list[Alarm]:
        """Take in the metrics of a step, and the held-out judge's evaluation where there is one.

        Metrics without a rule are ignored, and a rule without its metric is not checked. Returns the new alarms.
        """
        for name in _MONITORED | {"responses", "length_p95"}:
            value = metrics.get(name)
            if value is not None and math.isfinite(value):
                self._start.setdefault(name, value)
                self._recent[name] = [*self._recent.get(name, []), value][-_LONGER_WINDOW * self.limits.recent :]
        broken = ", ".join(sorted(name for name in _MONITORED if not math.isfinite(metrics.get(name, 0.0))))
        hint = "go back to an earlier checkpoint with a lower learning rate"
        messages: dict[Rule, str | None] = {"not_finite": f"not a finite number: {broken}; {hint}" if broken else None}
        messages |= {bound.rule: self._check_bound(bound) for bound in _BOUNDS if bound.metric in metrics}
        if held_out is not None:
            reward = self._median("reward")
            self._plain.append(_Evaluation(held_out.step, held_out.win_rate, held_out.win_rate_error, reward))
            rate, error = held_out.length_controlled, held_out.error
            if rate is not None and error is not None:
                self._length_controlled.append(_Evaluation(held_out.step, rate, error, reward))
            messages |= self._check_win_rate()
        return self._new_alarms(step, messages)

    def best(self) -> int | None:
        """The step whose length-controlled win rate is the highest so far, the earliest of equals; None before any.

        The checkpoint to keep is this step's: the reward cannot tell, as it is what may have been gamed. Nor can the
        plain win rate, which padded responses raise.
        """
        best = max(self._length_controlled, key=lambda evaluation: evaluation.rate, default=None)
        return None if best is None else best.step

    def state(self) -> dict[str, JsonValue]:
        """The history of the rules as plain JSON data; the limits are settings, and not part of it."""
        return {
            "start": dict(self._start),
            "recent": {name: list(values) for name, values in self._recent.items()},
            "evaluations": [list(evaluation) for evaluation in self._length_controlled],
            "plain": [list(evaluation) for evaluation in self._plain],
            "given": dict(self._alarmed),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state`. An alarm given before is not repeated: whoever resumes after one has decided to."""
        self._start = dict(state["start"])
        self._recent = {name: list(values) for name, values in state["recent"].items()}
        self._length_controlled = [_Evaluation(*row) for row in state["evaluations"]]
        self._plain = [_Evaluation(*row) for row in state.get("plain", [])]  # older checkpoints have none
        self._alarmed = dict(state["given"])

    def _median(self, name: str, window: int = 1) -> float | None:
        """Of the last `window` times `recent` steps; None until there are enough."""
        count = window * self.limits.recent
        values = self._recent.get(name, [])
        return statistics.median(values[-count:]) if len(values) >= count else None

    def _check_bound(self, rule: _Bound) -> str | None:
        """The message where a metric is beyond its bound."""
        limit = getattr(self.limits, rule.rule)
        now = self._median(rule.metric, _LONGER_WINDOW if rule.kind == "least" else 1)
        if limit is None or now is None:
            return None
        start = bound = self._start[rule.metric]
        if rule.kind == "most":
            bound = limit
        else:
            bound = start + limit if rule.kind == "more" else start * limit
            bound += _START_ERRORS * self._start_error(rule, start)
        if (now >= bound) if rule.kind == "least" else (now <= bound):
            return None
        form = rule.number_format
        before = "" if rule.kind == "most" else f", at the start {start:{form}}"
        return f"{rule.observation.format(format(now, form))}{before} (bound {bound:{form}}): {rule.hint}"

    def _start_error(self, rule: _Bound, start: float) -> float:
        """Standard error of the first batch's share, or of its mean length."""
        responses = self._start.get("responses")
        if responses is None or rule.kind == "least":
            return 0.0
        if rule.kind == "more":
            likely = (start * responses + 1) / (responses + 2)  # above 0 for shares of 0 and 1 too (Laplace's rule)
            return math.sqrt(likely * (1 - likely) / responses)
        # The deviation of a normal distribution with this 95th percentile.
        return max(0.0, self._start.get("length_p95", start) - start) / 1.645 / math.sqrt(responses)

    def _check_win_rate(self) -> dict[Rule, str | None]:
        """The messages of the rules about the held-out win rate."""
        controlled_steps = {evaluation.step for evaluation in self._length_controlled}
        controlled = all(evaluation.step in controlled_steps for evaluation in self._plain[-_EVALUATIONS_AVERAGED:])
        evaluations = self._length_controlled if controlled else self._plain
        fall = self._fall(evaluations)
        if fall is None:
            return {"win_rate": None, "reward_hacking": None}
        best, text = fall
        text = f"(length-controlled) {text}" if controlled else text
        step = self.best()
        back = "go back to an earlier checkpoint"
        if step is not None:
            back = f"go back to the weights of step {step}, the best by the held-out judge, which are kept"
        hacking = None
        # Reward hacking: at both last evaluations the reward is above what it was when the win rate was best.
        rewards = [evaluation.reward for evaluation in evaluations[-_EVALUATIONS_AVERAGED:]]
        if best.reward is not None and all(reward is not None and reward > best.reward for reward in rewards):
            hacking = (
                f"since step {best.step} the reward rose from {best.reward:.3g} to {rewards[-1]:.3g}, but the held-out "
                f"win rate {text}: the policy learns the reward's mistakes (reward hacking), so {back}, and fix the "
                "reward"
            )
        return {"win_rate": f"the held-out win rate {text}: {back}", "reward_hacking": hacking}

    def _fall(self, evaluations: Sequence[_Evaluation]) -> tuple[_Evaluation, str] | None:
        """A fall of the win rate beyond noise: from which evaluation, and in words."""
        errors, falls = self.limits.win_rate_errors, self.limits.win_rate_falls
        if errors is None:
            return None
        if falls is not None and len(evaluations) > falls:
            last = evaluations[-falls - 1 :]
            in_a_row = all(later.rate < earlier.rate for earlier, later in itertools.pairwise(last))
            fall = _beyond(last[0], last[-1], errors)
            if in_a_row and fall is not None:
                return last[0], f"fell {falls} times in a row, {fall}"
        count = _EVALUATIONS_AVERAGED
        means = [_average(evaluations[at : at + count]) for at in range(len(evaluations) - count + 1)]
        if not means:
            return None
        best = max(means, key=lambda evaluation: evaluation.rate)
        fall = _beyond(best, means[-1], errors)
        return None if fall is None else (best, f"fell, in the mean of {count} evaluations, {fall}")

    def _new_alarms(self, step: int, messages: Mapping[Rule, str | None]) -> list[Alarm]:
        """The alarms that were not given before."""
        alarms = []
        for rule, message in messages.items():
            if message is None:
                if rule in self._alarmed:
                    self._alarmed[rule] += 1
                    if self._alarmed[rule] >= (_QUIET_EVALUATIONS if rule in _WIN_RATE_RULES else _QUIET):
                        del self._alarmed[rule]
                continue
            if rule not in self._alarmed:
                stop = self.limits.on_alarm == "stop" and rule in self.limits.stops
                alarms.append(Alarm(rule, step, message, stop))
            self._alarmed[rule] = 0
        return alarms


def _beyond(high: _Evaluation, low: _Evaluation, errors: float) -> str | None:
    """The fall in words, where it is more than `errors` standard errors of the difference."""
    bound = errors * math.hypot(high.error, low.error)
    return f"from {high.rate:.1%} to {low.rate:.1%} (bound {bound:.1%})" if high.rate - low.rate > bound else None


def _average(evaluations: Sequence[_Evaluation]) -> _Evaluation:
    """Several evaluations as one: of the last one's step and reward."""
    last = evaluations[-1]
    rate = math.fsum(evaluation.rate for evaluation in evaluations) / len(evaluations)
    error = math.hypot(*(evaluation.error for evaluation in evaluations)) / len(evaluations)
    return _Evaluation(last.step, rate, error, last.reward)


_START = 1_000_000_000
"""The step number whose noise samples the held-out responses: the same at every evaluation."""


class Monitoring:
    """The monitor of a training with its held-out judge, which evaluates the policy every `held_out.every` steps."""

    def __init__(
        self,
        settings: OnlineSettings,
        prompts: Sequence[TokenizedPrompt],
        trainer: OnlineTrainer,
        judge: HeldOutJudge | None,
        note: Callable[[str], None],
    ) -> None:
        """`prompts` are the held-out ones; without a `judge`, this process samples responses but evaluates none."""
        self._settings, self._prompts, self._trainer, self._judge, self._note = settings, prompts, trainer, judge, note
        self._monitor = RewardHackingMonitor(settings.monitor)
        self._start: list[str] = []
        self.alarms: list[str] = []
        """All alarms so far, a line each."""
        self.best_step: int | None = None
        """The step whose weights are saved as the best by the held-out judge."""

    @classmethod
    @contextmanager
    def opened(
        cls,
        settings: OnlineSettings,
        prompts: Sequence[TokenizedPrompt],
        trainer: OnlineTrainer,
        note: Callable[[str], None],
    ) -> Iterator[Self]:
        """With its judge, which is closed at the end. Raises UserError where a judge is needed and none is set."""
        judge = settings.held_out.judge or settings.judge
        if not settings.held_out.every or not first_process():
            yield cls(settings, prompts, trainer, None, note)
            return
        if judge is None:
            what = "`held_out.every` needs a judge"
            raise UserError(what, where="held_out.judge", hint="set `held_out.judge.model`")
        if has_judge(settings.reward) and settings.judge is not None and judge.model == settings.judge.model:
            note("the held-out judge is the reward's own: it is no independent witness; set `held_out.judge`")
        source = LazyModel(judge, log=settings.folder / "held-out.log", say=note)
        constitution = load_constitution(settings.constitution)
        folder, templates = settings.folder / "held-out", load_templates(judge.templates)
        with closing(HeldOutJudge(source, constitution, folder, templates=templates, say=note)) as held_out_judge:
            yield cls(settings, prompts, trainer, held_out_judge, note)

    def begin(self) -> None:
        """Sample the start's responses, unless they were restored."""
        if self._settings.held_out.every and not self._start:
            self._start = self._sample()

    def look(self, done: int, line: dict[str, Any]) -> bool:
        """Check the metrics of a step, and add the held-out judge's to them; returns whether to stop the training.

        A missing length-controlled win rate is logged as None, so that no earlier one is taken for it.
        """
        every = self._settings.held_out.every
        evaluation = self._evaluate(done) if every and done % every == 0 else None
        if evaluation is not None:
            line["held_out/win_rate"] = evaluation.win_rate
            line["held_out/length_controlled"] = evaluation.length_controlled
            if evaluation.note:
                line["held_out/note"] = evaluation.note
            if evaluation.length_controlled is None:
                self._note(f"step {done}: no length-controlled held-out win rate: {evaluation.note}")
        alarms = self._monitor.look(done, line, evaluation) if first_process() else []
        for alarm in alarms:
            self.alarms.append(f"step {alarm.step}: {alarm.message}")
            self._note(self.alarms[-1])
        if evaluation is not None and self._monitor.best() == done:
            save_best(self._settings.folder, done, self._trainer)
            self.best_step = done
        return self._trainer.any_process(any(alarm.stop for alarm in alarms))

    def _evaluate(self, done: int) -> HeldOut | None:
        responses = self._sample()
        if self._judge is None:
            return None
        return self._judge.look(done, [prompt.messages for prompt in self._prompts], self._start, responses)

    def _sample(self) -> list[str]:
        """One response to every held-out prompt."""
        return [response.text for response in self._trainer.networks.sampler.sample(self._prompts, 1, _START)]

    def state(self) -> dict[str, Any]:
        """What a resumed training restores."""
        return {
            "rules": self._monitor.state(),
            "start": self._start,
            "alarms": self.alarms,
            "best": self.best_step,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a `state`."""
        self._monitor.restore(state["rules"])
        self._start = list(state["start"])
        self.alarms, self.best_step = list(state["alarms"]), state["best"]
