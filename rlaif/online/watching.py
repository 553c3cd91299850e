"""What stands beside an online training: the watch with its rules, and now and then the held-out judge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, Self

from rlaif.asking import load_templates
from rlaif.constitution import load_constitution
from rlaif.errors import UserError
from rlaif.inference.source import LazyModel
from rlaif.online.heldout import HeldOut, HeldOutJudge
from rlaif.online.keeping import save_best
from rlaif.online.loop import Loop
from rlaif.online.responses import Asked
from rlaif.online.rewards.choose import has_judge
from rlaif.online.settings import OnlineSettings
from rlaif.online.watch import Alarm, Watch
from rlaif.training.folder import first_process

_START = 1_000_000_000
"""The number of the step whose noise the held-out answers are drawn with: the same at every look."""


class Watching:
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
        self._watch = Watch(settings.watch)
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
            raise UserError(what, where="held_out.judge", mend="set `held_out.judge.model`")
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
                line |= {"held_out/win_rate": found.win_rate, "held_out/controlled": found.controlled}
                if found.note:
                    line["held_out/note"] = found.note
                if found.controlled is None:
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
        return [response.text for response in self._loop.players.sampler.sample(self._held, 1, _START)]

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
