"""The judge as the reward: direct RLAIF, without a reward model in between (arXiv:2309.00267, section 2.2.2)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from rlaif.config.judge_templates import SHIPPED, Judge, Templates
from rlaif.constitution import Constitution
from rlaif.errors import ModelError
from rlaif.feedback.judge import WHOLE, criteria_of
from rlaif.feedback.scoring import readable, score_question, score_record
from rlaif.inference.base import Background, Model, ModelSource, Output, Question
from rlaif.records import Messages, Prompt, Sample
from rlaif.rl.experience import Reward, Scores

_BEST = 9
"""The highest grade."""
_DETAIL_CHARS = 200


class JudgeReward(Reward):
    """The judge's grade of every response, from 0 to 1: the mean over the principles, by their weights.

    A grade is the expectation over the digits 0 to 9, by their log-probabilities, divided by 9. Each principle is one
    question, and one part; with `all` the whole constitution is one question, and the part is called `all`. Where one
    grade of a response fails, or cannot be read, the response has no score: never 0, which would be trained on.

    The time limit of a question is a setting of the judge. Its connections live in a thread of their own, and stay open
    from call to call.
    """

    def __init__(
        self,
        judge: ModelSource,
        constitution: Constitution,
        principles: Literal["each", "all"] = "each",
        *,
        max_chars: int = 12_000,
        min_mass: float = 0.5,
        templates: Templates = SHIPPED,
    ) -> None:
        """Open the judge. Conversations and responses longer than `max_chars` are cut in the middle, and a grade with
        less than `min_mass` probability on the digits cannot be read, as in a run. `templates` are the words of the
        question.

        Raises UserError or ModelError with what is wrong with the judge.
        """
        self._criteria = criteria_of(constitution, principles)
        self._form, self._max_chars, self._min_mass = Judge(judge.name, templates), max_chars, min_mass
        self._judge, self._background, self._closed = judge, Background("judge"), False
        try:
            self._model = self._background.run(judge.open())
        except BaseException:
            self.close()
            raise

    def __call__(self, prompts: Sequence[Messages], responses: Sequence[str]) -> Scores:
        """One score from 0 to 1 a response, None where the judge failed; one part a principle, from 0 to 1 as well.

        Equal questions are asked once. Raises ModelError where the judge cannot go on, or where no response has a
        score.
        """
        if self._closed:
            raise ModelError("the judge was closed")
        by_response = [self._questions(*pair) for pair in zip(prompts, responses, strict=True)]
        questions = {question.id: question for row in by_response for question in row}
        outputs = self._background.run(_outputs(self._model, list(questions.values())))
        grades, failures = self._grades(questions, outputs)
        rows = [[grades[question.id] for question in row] for row in by_response]
        weights = [criterion.weight for criterion in self._criteria]
        total: list[float | None] = []
        for row in rows:
            read = [grade for grade in row if grade is not None]
            complete = len(read) == len(row)
            weighted = (weight * grade for weight, grade in zip(weights, read, strict=False))
            total.append(sum(weighted) / sum(weights) if complete else None)
        if total and all(score is None for score in total):
            ((kind, count),) = Counter(kind for kind, _ in failures).most_common(1)
            detail = next(detail for other, detail in failures if other == kind)[:_DETAIL_CHARS]
            what = f"the judge {self._form.name} gave none of {len(total)} responses a score"
            raise ModelError(f"{what}: {kind} {count} of {len(failures)} times ({detail})")
        names = ("all" if criterion.id == WHOLE else criterion.id for criterion in self._criteria)
        return Scores(total, {name: [row[at] for row in rows] for at, name in enumerate(names)})

    def _questions(self, messages: Messages, response: str) -> list[Question]:
        """The questions about one response, adjacent so that a server's prefix cache holds all but the principle."""
        prompt = Prompt(id="", messages=messages, source="")
        sample = Sample(id="", prompt="", index=0, text=response, policy="")
        return [
            score_question(prompt, sample, criterion, self._form, max_chars=self._max_chars)
            for criterion in self._criteria
        ]

    def _grades(
        self, questions: Mapping[str, Question], outputs: Mapping[str, Output]
    ) -> tuple[dict[str, float | None], list[tuple[str, str]]]:
        """By question the grade from 0 to 1, or None; and the kind and the detail of every failure."""
        grades: dict[str, float | None] = {}
        failures: list[tuple[str, str]] = []
        for key, question in questions.items():
            output, grades[key] = outputs[key], None
            if output.failure is not None:
                failures.append((output.failure, output.detail))
                continue
            score = score_record(question, output)
            if readable(score, min_mass=self._min_mass) and score.value is not None:
                grades[key] = score.value / _BEST
            elif score.label_mass is None:
                failures.append(("unreadable", f"no grade, but `{score.text}`"))
            else:
                failures.append(("unreadable", f"less than {self._min_mass:g} probability on the digits"))
        return grades, failures

    def close(self) -> None:
        """Close the judge, stop a server that was started for it, and end its thread."""
        if not self._closed:
            self._closed = True
            self._background.close(self._judge.close())


async def _outputs(model: Model, questions: Sequence[Question]) -> dict[str, Output]:
    """The outputs by question, in batches, with as many concurrent calls as the model takes."""
    outputs: dict[str, Output] = {}
    starts = iter(range(0, len(questions), model.batch_size))

    async def worker() -> None:
        for start in starts:
            batch = questions[start : start + model.batch_size]
            batch_outputs = await model.answer(batch)
            outputs.update(zip((question.id for question in batch), batch_outputs, strict=True))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(model.concurrency, -(-len(questions) // model.batch_size))):
                group.create_task(worker())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return outputs
