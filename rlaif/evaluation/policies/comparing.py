"""Two policies' answers to the same prompts put to the judge, and what its answers say about each pair of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from rlaif.asking import Judge
from rlaif.comparisons.fold import Comparison, Status
from rlaif.comparisons.plan import compare_questions, votes
from rlaif.comparisons.shares import Share, folded, shares
from rlaif.inference.base import Question
from rlaif.records import Judgement, Prompt, Record, Sample
from rlaif.samples.meetings import Criterion, Meeting, draw
from rlaif.settings import CompareSettings, PairSettings

Answered = Mapping[str, Mapping[str, Sequence[Sample | None]]]
"""By policy and prompt id, the answers by their index; None where one is missing."""

NO_LABEL = ("missing", "unparsed", "failed")


class Compared(Record):
    """One pair of answers: the i-th of a policy and the i-th of its opponent to the same prompt. A line of
    NAME.comparisons.jsonl."""

    policy: str
    baseline: str
    prompt: str
    index: int
    tag: str | None
    samples: tuple[str | None, str | None]
    """Ids of the policy's answer and of the other's; None where one is missing."""
    status: Literal["labelled", "tie", "identical", "unparsed", "failed", "missing"]
    """`tie`: nearer to one half than the margin; `identical`: one text, not asked; the last three have no label."""
    probability: float | None
    """That the policy's answer is better, one half where both are the same; None without a label."""
    flip: bool
    """The two orders disagree."""
    principles: dict[str, float | None]
    """The same by each principle on its own."""
    lengths: tuple[int, int] | None
    """Characters of both; None where one is missing."""


class _Bout(NamedTuple):
    policy: str
    baseline: str
    at: int
    left: Sample | None
    right: Sample | None


class Plan(NamedTuple):
    """What is compared."""

    prompts: Sequence[Prompt]
    answers: Answered
    pairs: Sequence[tuple[str, str]]
    """Policies that meet: who is told of, and against whom."""
    samples: int
    criteria: tuple[Criterion, ...]
    asked: CompareSettings
    read: PairSettings
    judge: Judge
    tag_of: Callable[[Prompt], str | None]

    def questions(self) -> Iterator[Question]:
        """Everything to ask; all about one prompt together, for the server's prefix cache."""
        for prompt in self.prompts:
            yield from self._questions(prompt, self._bouts(prompt))

    def compared(self, answer_of: Callable[[str], Judgement | None]) -> Iterator[Compared]:
        """What the answers on disk, found by the ids of their questions, say about every pair."""
        for prompt in self.prompts:
            bouts = self._bouts(prompt)
            questions = self._questions(prompt, bouts)
            for bout in bouts:
                yield self._compared(prompt, bout, questions, answer_of)

    def _bouts(self, prompt: Prompt) -> list[_Bout]:
        return [
            _Bout(one, other, index, _nth(self.answers[one], prompt, index), _nth(self.answers[other], prompt, index))
            for one, other in self.pairs
            for index in range(self.samples)
        ]

    def _questions(self, prompt: Prompt, bouts: Sequence[_Bout]) -> list[Question]:
        met = [self._meeting(bout.left, bout.right) for bout in bouts if bout.left and bout.right and not _alike(bout)]
        return list(compare_questions(prompt, met, self.asked, self.judge))

    def _meeting(self, left: Sample, right: Sample) -> Meeting:
        one = self.asked.principles == "one"
        return Meeting(left, right, (draw(self.criteria, (left.id, right.id)),) if one else self.criteria)

    def _compared(
        self,
        prompt: Prompt,
        bout: _Bout,
        questions: Sequence[Question],
        answer_of: Callable[[str], Judgement | None],
    ) -> Compared:
        left, right = bout.left, bout.right
        about = {"policy": bout.policy, "baseline": bout.baseline, "prompt": prompt.id, "index": bout.at}
        about |= {"tag": self.tag_of(prompt), "samples": (left.id if left else None, right.id if right else None)}
        if left is None or right is None:
            silent: dict[str, object] = {
                "status": "missing",
                "probability": None,
                "flip": False,
                "principles": {},
                "lengths": None,
            }
            return Compared.model_validate(about | silent)
        about["lengths"] = (len(left.text), len(right.text))
        meeting = self._meeting(left, right)
        if _alike(bout):
            evens = {criterion.id: 0.5 for criterion in meeting.criteria}
            even = {"status": "identical", "probability": 0.5, "flip": False, "principles": evens}
            return Compared.model_validate(about | even)
        ((_, cast),) = votes([meeting], questions, answer_of, self.asked)
        said = folded(left.id, right.id, cast, self.read)
        return Compared.model_validate(about | _told(said, shares(left.id, right.id, cast, self.read)))


def _told(said: Comparison, parts: Sequence[Share]) -> dict[str, object]:
    silent = said.status in (Status.UNPARSED, Status.FAILED)
    return {
        "status": said.status.value,
        "probability": None if silent else said.probability,
        "flip": said.flip,
        "principles": {part.principle: part.own.probability if part.readable else None for part in parts},
    }


def _nth(answers: Mapping[str, Sequence[Sample | None]], prompt: Prompt, index: int) -> Sample | None:
    own = answers.get(prompt.id, ())
    return own[index] if index < len(own) else None


def _alike(bout: _Bout) -> bool:
    return bool(bout.left and bout.right and bout.left.text.strip() == bout.right.text.strip())
