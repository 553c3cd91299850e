"""A judge that is not the reward, asked now and then about responses to held-out prompts.

A judge that is not the reward: does it still prefer the policy's answers to those of its start?

The reward is what the policy learns to please, so the reward cannot say whether that did any good. A judge that no
reward hears can. It compares the answers to held-out prompts as a run compares samples: under every principle, in both
orders, folded into one probability a prompt; identical answers are a draw and cost no call.

The training is synchronous and models are not: the judge lives on an event loop in a thread of its own.

What stands beside an online training: the watch with its rules, and now and then the held-out judge.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from pydantic import JsonValue

from rlaif.config.judge_templates import SHIPPED, Judge, Templates, load_templates
from rlaif.config.schemas import CompareSettings, PairSettings
from rlaif.constitution import Constitution, load_constitution
from rlaif.data.prompts import prompt_id
from rlaif.errors import ModelError, UserError
from rlaif.evaluation.win_rate import length_controlled
from rlaif.feedback.aggregate import Comparison, Status, folded
from rlaif.feedback.judge import compare_questions, judgement, votes
from rlaif.feedback.matchups import Matchup, criteria_of
from rlaif.feedback.prompt_forms import judge_asked
from rlaif.inference.background import Background
from rlaif.inference.base import ModelSource, Question, ask
from rlaif.inference.models import LazyModel
from rlaif.progress import Progress, first_process
from rlaif.records import Failure, Judgement, Messages, Prompt, Record, Sample, content_id
from rlaif.rl.checkpoint import save_best
from rlaif.rl.config import OnlineSettings
from rlaif.rl.monitor import Alarm, RewardHackingMonitor
from rlaif.rl.responses import Asked
from rlaif.rl.rewards import has_judge
from rlaif.rl.trainer import Loop
from rlaif.stats import mean
from rlaif.store import Table, lock_folder

STAGE = "held-out"
"""Where the prompts come from, and the stage that failures name."""


class HeldOut(Record):
    """The policy against its start on the held-out prompts, by a judge that is not the reward."""

    step: int
    """Updates that the policy had seen."""
    win_rate: float
    """Mean probability that the policy's answer is better. Principles that see no difference between two answers draw
    it towards one half: it is for comparing steps, and `wins` and `losses` say how often the policy is ahead."""
    win_rate_error: float
    """Standard error of `win_rate`."""
    length_controlled: float | None
    """The same where both answers are equally long (see `rlaif.evaluation.win_rate`); None where the comparisons cannot
    tell, as of a policy that answers far more briefly than its start, and `note` says why."""
    interval: tuple[float, float] | None
    """95%, of `length_controlled`."""
    error: float | None
    """Standard error of `length_controlled`."""
    wins: int
    ties: int
    """Identical answers, and preferences within the margin of one half."""
    losses: int
    compared: int
    """Prompts with a preference."""
    identical: int
    """Those of them whose two answers are the same text."""
    failed: int
    """Prompts with a question that got no answer."""
    unreadable: int
    """Prompts whose answers have no label in them."""
    flips: float
    """Share of the judged prompts whose two orders disagree."""
    length: float
    """Mean length of the policy's answers, in characters; of the prompts that were compared."""
    start_length: float
    """The same of the start's."""
    judge: str
    note: str = ""
    """Why there is no `length_controlled`, or what to know of it."""

    def plain(self) -> dict[str, JsonValue]:
        """A line of JSON lines; `HeldOut.model_validate` reads it again."""
        return self.model_dump(mode="json")


class _Case(NamedTuple):
    """One prompt whose two answers meet: `left` is the policy's."""

    matchup: Matchup
    questions: Sequence[Question]


class HeldOutJudge:
    """Compares answers of a policy with those of its start.

    Answers are kept in `folder` (`judgements.jsonl`, `failures.jsonl`) by the content id of their question: a resumed
    training asks nothing twice, and one process alone can write there.
    """

    def __init__(
        self,
        judge: ModelSource,
        constitution: Constitution,
        folder: Path,
        *,
        compare: CompareSettings | None = None,
        pair: PairSettings | None = None,
        max_failed: float = 0.5,
        templates: Templates = SHIPPED,
        say: Callable[[str], None] | None = None,
        progress: Progress | None = None,
    ) -> None:
        """The judge is opened by the first question, and closed by `close`.

        It is asked under every principle, one by one, or under all in one question with `compare.principles: all`, and
        in both orders. `pair` says what a readable label and what a tie is; `templates` are
        its words. `say` hears of the form in which it is asked, `progress` is told from another thread.
        Raises UserError where another process writes in `folder`.
        """
        compare = compare or CompareSettings()
        self._judge, self._criteria = judge, criteria_of(constitution, compare.principles)
        self._folder, self._templates, self._say = folder, templates, say or (lambda _: None)
        self._asked: Judge | None = None
        self._compare = compare.model_copy(update={"orders": "both"})
        self._pair, self._max_failed, self._progress = pair or PairSettings(), max_failed, progress
        with contextlib.ExitStack() as stack:
            stack.enter_context(lock_folder(folder))
            self._answers = stack.enter_context(contextlib.closing(Table(folder / "judgements.jsonl", Judgement)))
            self._failures = stack.enter_context(contextlib.closing(Table(folder / "failures.jsonl", Failure)))
            self._background = Background(STAGE)
            self._open = stack.pop_all()
        self._closed = False

    @property
    def name(self) -> str:
        """Identity of the judge: to be another one than the reward's."""
        return self._judge.name

    def preferences(
        self, prompts: Sequence[Messages], start: Sequence[str], policy: Sequence[str]
    ) -> list[float | None]:
        """For every prompt the probability that the policy's answer is better than the start's.

        None where a call failed or no label can be read. Raises ModelError when the judge cannot go on or too many
        prompts stay without a preference, UserError when it cannot be opened, ValueError where the lists differ in
        length or the judge is closed.
        """
        return [each.probability if each.readable else None for each in self._compared(prompts, start, policy)]

    def look(self, step: int, prompts: Sequence[Messages], start: Sequence[str], policy: Sequence[str]) -> HeldOut:
        """Compare all answers, one a prompt, and sum up. Raises as `preferences` does; ValueError also of no prompt."""
        if not prompts:
            raise ValueError("no prompt to compare answers to")
        found = self._compared(prompts, start, policy)
        known = [at for at, each in enumerate(found) if each.readable]
        lengths = [(len(policy[at]), len(start[at])) for at in known]
        rate = length_controlled(
            [found[at].probability for at in known],
            [own - other for own, other in lengths],
            [prompt_id(prompts[at]) for at in known],
            margin=self._pair.margin,
        )
        statuses = Counter(each.status for each in found)
        judged = [each for each in found if each.judgements and each.readable]
        return HeldOut(
            step=step,
            win_rate=rate.raw,
            win_rate_error=rate.raw_error,
            length_controlled=rate.length_controlled,
            interval=rate.interval,
            error=rate.error,
            wins=rate.wins,
            ties=rate.ties,
            losses=rate.losses,
            compared=len(known),
            identical=len(known) - len(judged),
            failed=statuses[Status.FAILED],
            unreadable=statuses[Status.UNPARSED],
            flips=mean([float(each.flip) for each in judged]) if judged else 0.0,
            length=mean([own for own, _ in lengths]),
            start_length=mean([other for _, other in lengths]),
            judge=self.name,
            note=rate.note,
        )

    def close(self) -> None:
        """Close the judge, its files and its thread; a second time does nothing."""
        if self._closed:
            return
        self._closed = True
        with self._open:
            self._background.close(self._judge.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _compared(self, prompts: Sequence[Messages], start: Sequence[str], policy: Sequence[str]) -> list[Comparison]:
        if not len(prompts) == len(start) == len(policy):
            raise ValueError("one answer of the start and one of the policy a prompt")
        if self._closed:
            raise ValueError("this judge is closed")
        differ = any(one.strip() != other.strip() for one, other in zip(policy, start, strict=True))
        asked = self._asked_as() if differ else Judge(self.name, self._templates)
        cases = [self._case(asked, *each) for each in zip(prompts, policy, start, strict=True)]
        questions = (question for case in cases for question in case.questions)
        self._background.run(
            ask(
                questions,
                self._judge,
                self._answers,
                judgement,
                self._failures,
                stage=STAGE,
                progress=self._progress,
            )
        )
        found = [self._comparison(case) for case in cases]
        self._stop_if_hopeless(cases, found)
        return found

    def _asked_as(self) -> Judge:
        if self._asked is None:
            form = judge_asked(self._judge, self._templates, self._compare, self._folder, self._answers, self._say)
            self._asked = self._background.run(form)
        return self._asked

    def _case(self, asked: Judge, messages: Messages, policy: str, start: str) -> _Case:
        prompt = Prompt(id=prompt_id(messages), messages=messages, source=STAGE)
        matchup = Matchup(_sample(prompt, "policy", policy), _sample(prompt, "start", start), self._criteria)
        if _alike(matchup):
            return _Case(matchup, ())
        return _Case(matchup, list(compare_questions(prompt, [matchup], self._compare, asked)))

    def _comparison(self, case: _Case) -> Comparison:
        left, right = case.matchup.left, case.matchup.right
        if _alike(case.matchup):
            return Comparison(left.id, right.id, Status.TIE)
        ((_, cast),) = votes([case.matchup], case.questions, self._answers.get, self._compare)
        return folded(left.id, right.id, cast, self._pair)

    def _stop_if_hopeless(self, cases: Sequence[_Case], found: Sequence[Comparison]) -> None:
        silent = [case for case, each in zip(cases, found, strict=True) if not each.readable]
        if not silent or (len(silent) <= self._max_failed * len(cases) and len(silent) < len(cases)):
            return
        asked = [question.id for case in silent for question in case.questions]
        failures = [self._failures.get(key) for key in asked if key not in self._answers]
        reasons = Counter(each.reason for each in failures if each is not None)
        told = ", ".join(f"{kind} {count}" for kind, count in reasons.most_common()) or "no label in its answers"
        raise ModelError(
            f"the held-out judge {self.name} has no verdict on {len(silent)} of {len(cases)} prompts ({told}); see "
            f"{self._failures.path} and {self._answers.path.name}, fix the cause and resume the training"
        )


def _sample(prompt: Prompt, side: str, text: str) -> Sample:
    return Sample(id=content_id(STAGE, side, prompt.id, text), prompt=prompt.id, index=0, text=text, policy=side)


def _alike(matchup: Matchup) -> bool:
    return matchup.left.text.strip() == matchup.right.text.strip()


_START = 1_000_000_000
"""The number of the step whose noise the held-out answers are drawn with: the same at every look."""


class Monitoring:
    """Looks at every step's figures; asks the held-out judge every so many steps; says when to stop."""

    def __init__(
        self,
        settings: OnlineSettings,
        held: Sequence[Asked],
        loop: Loop,
        judge: HeldOutJudge | None,
        note: Callable[[str], None],
    ) -> None:
        self._settings, self._held, self._loop, self._judge, self._note = settings, held, loop, judge, note
        self._watch = RewardHackingMonitor(settings.monitor)
        self._start: list[str] = []
        self._alarms: list[str] = []
        self.kept_best: int | None = None
        """The step whose weights are kept as the best, where a held-out judge tells."""

    @classmethod
    @contextmanager
    def opened(
        cls, settings: OnlineSettings, held: Sequence[Asked], loop: Loop, note: Callable[[str], None]
    ) -> Iterator[Self]:
        """With its judge, which is closed at the end. Raises UserError where there is none to ask."""
        judge = settings.held_out.judge or settings.judge
        if not settings.held_out.every or not first_process():
            yield cls(settings, held, loop, None, note)
            return
        if judge is None:
            what = "`held_out.every` needs a judge"
            raise UserError(what, where="held_out.judge", hint="set `held_out.judge.model`")
        if has_judge(settings.reward) and settings.judge is not None and judge.model == settings.judge.model:
            note("the held-out judge is the reward's own: it is no independent witness; set `held_out.judge`")
        source = LazyModel(judge, log=settings.folder / "held-out.log", say=note)
        constitution = load_constitution(settings.constitution)
        folder, templates = settings.folder / "held-out", load_templates(judge.templates)
        with closing(HeldOutJudge(source, constitution, folder, templates=templates, say=note)) as found:
            yield cls(settings, held, loop, found, note)

    def begin(self) -> None:
        """Draw the start's answers, unless they are known from before."""
        if self._settings.held_out.every and not self._start:
            self._start = self._answers()

    def look(self, done: int, line: dict[str, Any]) -> bool:
        """Look at the figures of a step, and add the held-out judge's; returns whether the training is to end.

        A win rate at equal length that cannot be told is None, so that no earlier one passes for it.
        """
        every = self._settings.held_out.every
        found = None
        if every and done % every == 0:
            found = self._compared(done)
            if found is not None:
                line |= {"held_out/win_rate": found.win_rate, "held_out/length_controlled": found.length_controlled}
                if found.note:
                    line["held_out/note"] = found.note
                if found.length_controlled is None:
                    self._note(f"step {done}: no held-out win rate at equal length: {found.note}")
        alarms = self._watch.look(done, line, found) if first_process() else []
        for alarm in alarms:
            self._tell(alarm)
        if found is not None and self._watch.best() == done:
            save_best(self._settings.folder, done, self._loop)
            self.kept_best = done
        return self._loop.any_process(any(alarm.stop for alarm in alarms))

    def _compared(self, done: int) -> HeldOut | None:
        answers = self._answers()
        if self._judge is None:
            return None
        return self._judge.look(done, [each.messages for each in self._held], self._start, answers)

    def _answers(self) -> list[str]:
        return [response.text for response in self._loop.networks.sampler.sample(self._held, 1, _START)]

    def _tell(self, alarm: Alarm) -> None:
        text = f"step {alarm.step}: {alarm.message}"
        self._alarms.append(text)
        self._note(text)

    def state(self) -> dict[str, Any]:
        """What a resumed training restores."""
        return {
            "rules": self._watch.state(),
            "start": self._start,
            "alarms": self._alarms,
            "best": self.kept_best,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self._watch.restore(state["rules"])
        self._start = list(state["start"])
        self._alarms, self.kept_best = list(state["alarms"]), state["best"]

    def told(self) -> list[Any]:
        """Every alarm, a line each."""
        return list(self._alarms)
