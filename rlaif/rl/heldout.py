"""The held-out judge: a judge that is not the reward compares the policy with its start on held-out prompts.

The policy learns to please the reward, so the reward cannot measure progress. A judge that is not trained on can. It
compares the two responses to each held-out prompt as a run compares samples: under every principle, in both orders,
aggregated into one probability a prompt; identical responses are a tie and cost no call.

The training is synchronous and models are not: the judge lives on an event loop in a thread of its own.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import JsonValue

from rlaif.config.judge_templates import SHIPPED, Judge, Templates
from rlaif.config.schemas import CompareSettings, PairSettings
from rlaif.constitution import Constitution
from rlaif.data.prompts import prompt_id
from rlaif.errors import ModelError
from rlaif.evaluation.win_rate import length_controlled
from rlaif.feedback.aggregate import Comparison, Status, folded
from rlaif.feedback.judge import Matchup, compare_questions, criteria_of, judge_asked, judgement, votes
from rlaif.inference.base import Background, ModelSource, Question, ask
from rlaif.progress import Progress
from rlaif.records import Failure, Judgement, Messages, Prompt, Record, Sample, content_id
from rlaif.stats import mean
from rlaif.store import Table, lock_folder

STAGE = "held-out"
"""Where the prompts come from, and the stage that failures name."""


class HeldOut(Record):
    """The policy against its start on the held-out prompts, by a judge that is not the reward."""

    step: int
    """Updates that the policy had seen."""
    win_rate: float
    """Mean probability that the policy's response is better. Principles that see no difference between two responses
    pull it towards one half: compare it between steps, and read `wins` and `losses` for how often the policy is ahead.
    """
    win_rate_error: float
    """Standard error of `win_rate`."""
    length_controlled: float | None
    """The same at equal length of both responses (see `rlaif.evaluation.win_rate`); None where the comparisons do not
    determine it, as of a policy whose responses are far shorter than its start's; `note` then gives the reason."""
    interval: tuple[float, float] | None
    """95%, of `length_controlled`."""
    error: float | None
    """Standard error of `length_controlled`."""
    wins: int
    ties: int
    """Identical responses, and preferences within the margin of one half."""
    losses: int
    compared: int
    """Prompts with a preference."""
    identical: int
    """Those of them whose two responses are the same text."""
    failed: int
    """Prompts with a judge call that failed."""
    unreadable: int
    """Prompts whose judge outputs have no label."""
    flips: float
    """Share of the judged prompts whose two orders disagree."""
    length: float
    """Mean length of the policy's responses, in characters, over the prompts that were compared."""
    start_length: float
    """The same of the start."""
    judge: str
    note: str = ""
    """Why there is no `length_controlled`, or a caveat."""

    def plain(self) -> dict[str, JsonValue]:
        """A line of JSON lines; `HeldOut.model_validate` reads it again."""
        return self.model_dump(mode="json")


class HeldOutJudge:
    """Compares responses of a policy with those of its start.

    Judgements are stored in `folder` (`judgements.jsonl`, `failures.jsonl`) by the content id of their question: a
    resumed training repeats no call, and one process alone can write there.
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

        Each question is under one principle, or under all with `compare.principles: all`, always in both orders. `pair`
        defines a readable label and a tie; `templates` are the words of the questions. `say` receives a note on the
        prompt form of the judge, and `progress` is called from another thread. Raises UserError where another process
        writes in `folder`.
        """
        compare = compare or CompareSettings()
        self._source, self._criteria = judge, criteria_of(constitution, compare.principles)
        self._folder, self._templates, self._say = folder, templates, say or (lambda _: None)
        self._judge: Judge | None = None
        self._compare = compare.model_copy(update={"orders": "both"})
        self._pair, self._max_failed, self._progress = pair or PairSettings(), max_failed, progress
        with contextlib.ExitStack() as stack:
            stack.enter_context(lock_folder(folder))
            self._judgements = stack.enter_context(contextlib.closing(Table(folder / "judgements.jsonl", Judgement)))
            self._failures = stack.enter_context(contextlib.closing(Table(folder / "failures.jsonl", Failure)))
            self._background = Background(STAGE)
            self._open = stack.pop_all()
        self._closed = False

    @property
    def name(self) -> str:
        """Identity of the judge, which should differ from the reward's."""
        return self._source.name

    def preferences(
        self, prompts: Sequence[Messages], start: Sequence[str], policy: Sequence[str]
    ) -> list[float | None]:
        """For every prompt the probability that the policy's response is better than the start's.

        None where a call failed or no label can be read. Raises ModelError when the judge cannot go on or too many
        prompts stay without a preference, UserError when it cannot be opened, ValueError where the lists differ in
        length or the judge is closed.
        """
        comparisons = self._comparisons(prompts, start, policy)
        return [comparison.probability if comparison.readable else None for comparison in comparisons]

    def look(self, step: int, prompts: Sequence[Messages], start: Sequence[str], policy: Sequence[str]) -> HeldOut:
        """Compare one response a prompt, and aggregate. Raises as `preferences` does; ValueError also of no prompt."""
        if not prompts:
            raise ValueError("no prompt to compare answers to")
        comparisons = self._comparisons(prompts, start, policy)
        compared = [at for at, comparison in enumerate(comparisons) if comparison.readable]
        policy_lengths, start_lengths = ([len(side[at]) for at in compared] for side in (policy, start))
        rate = length_controlled(
            [comparisons[at].probability for at in compared],
            [length - other for length, other in zip(policy_lengths, start_lengths, strict=True)],
            [prompt_id(prompts[at]) for at in compared],
            margin=self._pair.margin,
        )
        statuses = Counter(comparison.status for comparison in comparisons)
        judged = [comparison for comparison in comparisons if comparison.judgements and comparison.readable]
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
            compared=len(compared),
            identical=len(compared) - len(judged),
            failed=statuses[Status.FAILED],
            unreadable=statuses[Status.UNPARSED],
            flips=mean([float(comparison.flip) for comparison in judged]) if judged else 0.0,
            length=mean(policy_lengths),
            start_length=mean(start_lengths),
            judge=self.name,
            note=rate.note,
        )

    def close(self) -> None:
        """Close the judge, its files and its thread; a second time does nothing."""
        if self._closed:
            return
        self._closed = True
        with self._open:
            self._background.close(self._source.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _comparisons(
        self, prompts: Sequence[Messages], start: Sequence[str], policy: Sequence[str]
    ) -> list[Comparison]:
        if not len(prompts) == len(start) == len(policy):
            raise ValueError("one answer of the start and one of the policy a prompt")
        if self._closed:
            raise ValueError("this judge is closed")
        judge = Judge(self.name, self._templates)
        if any(one.strip() != other.strip() for one, other in zip(policy, start, strict=True)):
            if self._judge is None:
                form = judge_asked(
                    self._source, self._templates, self._compare, self._folder, self._judgements, self._say
                )
                self._judge = self._background.run(form)
            judge = self._judge
        matchups = []
        for messages, policy_text, start_text in zip(prompts, policy, start, strict=True):
            prompt = Prompt(id=prompt_id(messages), messages=messages, source=STAGE)
            left, right = _sample(prompt, "policy", policy_text), _sample(prompt, "start", start_text)
            matchup = Matchup(left, right, self._criteria)
            same = left.text.strip() == right.text.strip()
            matchups.append((matchup, () if same else list(compare_questions(prompt, [matchup], self._compare, judge))))
        self._background.run(
            ask(
                (question for _, questions in matchups for question in questions),
                self._source,
                self._judgements,
                judgement,
                self._failures,
                stage=STAGE,
                progress=self._progress,
            )
        )
        comparisons = [self._comparison(*pair) for pair in matchups]
        unread = [pair[1] for pair, row in zip(matchups, comparisons, strict=True) if not row.readable]
        if len(unread) > self._max_failed * len(prompts) or (unread and len(unread) == len(prompts)):
            raise self._no_verdicts(unread, len(prompts))
        return comparisons

    def _comparison(self, matchup: Matchup, questions: Sequence[Question]) -> Comparison:
        """The verdict on one prompt; without a question, its two responses are identical."""
        left, right = matchup.left, matchup.right
        if not questions:
            return Comparison(left.id, right.id, Status.TIE)
        ((_, prompt_votes),) = votes([matchup], questions, self._judgements.get, self._compare)
        return folded(left.id, right.id, prompt_votes, self._pair)

    def _no_verdicts(self, unread: Sequence[Sequence[Question]], prompts: int) -> ModelError:
        """The error of `unread` prompts without a verdict, given by their questions."""
        keys = [question.id for questions in unread for question in questions]
        failures = [self._failures.get(key) for key in keys if key not in self._judgements]
        reasons = Counter(failure.reason for failure in failures if failure is not None)
        counts = ", ".join(f"{kind} {count}" for kind, count in reasons.most_common()) or "no label in its answers"
        return ModelError(
            f"the held-out judge {self.name} has no verdict on {len(unread)} of {prompts} prompts ({counts}); see "
            f"{self._failures.path} and {self._judgements.path.name}, fix the cause and resume the training"
        )


def _sample(prompt: Prompt, side: str, text: str) -> Sample:
    return Sample(id=content_id(STAGE, side, prompt.id, text), prompt=prompt.id, index=0, text=text, policy=side)
