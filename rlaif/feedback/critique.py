"""The critique stage: the judge's notes on every sample that is compared, under the criteria of its matchups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from rlaif.config.judge_templates import Judge
from rlaif.config.schemas import CritiqueSettings, RunSettings
from rlaif.constitution import Constitution
from rlaif.errors import UserError
from rlaif.feedback.judge import Criterion, Matchup, Notes
from rlaif.feedback.prompts import Shot, critique_messages
from rlaif.inference.base import Output, Question
from rlaif.records import Critique, Prompt, Sample, Sampling
from rlaif.text import without_thinking


class Reviewed(Protocol):
    """What a sample is reviewed under: a criterion or a principle."""

    @property
    def id(self) -> str:
        """Written into the critique."""
        ...

    @property
    def critique(self) -> str | None:
        """The request to the reviewer."""
        ...


def critique_question(
    prompt: Prompt,
    sample: Sample,
    criterion: Reviewed,
    settings: CritiqueSettings,
    judge: Judge,
    *,
    max_chars: int,
    shots: Sequence[Shot] = (),
) -> Question:
    """The question behind the critique of one sample under one criterion, which must have a request for it."""
    request = criterion.critique
    assert request is not None, f"`{criterion.id}` has no request for a critique"
    return Question(
        "critique",
        judge.name,
        critique_messages(
            prompt.messages, sample.text, request, max_chars=max_chars, shots=shots, templates=judge.templates
        ),
        Sampling(max_tokens=settings.max_tokens, temperature=settings.temperature),
        about={"prompt": prompt.id, "sample": sample.id, "principle": criterion.id},
    )


def critique_questions(
    prompt: Prompt, pairings: Sequence[Matchup], settings: CritiqueSettings, judge: Judge, *, max_chars: int
) -> list[Question]:
    """One question for every sample and criterion that occur together, each once."""
    wanted = {
        (sample.id, criterion.id): (sample, criterion)
        for matchup in pairings
        for sample in (matchup.left, matchup.right)
        for criterion in matchup.criteria
    }
    return [
        critique_question(prompt, sample, criterion, settings, judge, max_chars=max_chars)
        for sample, criterion in wanted.values()
    ]


def notes_on(
    prompt: Prompt, find: Callable[[str], Critique | None], settings: CritiqueSettings, judge: Judge, *, max_chars: int
) -> Notes:
    """The critiques that the comparisons of a prompt show; `find` looks each one up by its id, once."""
    cached: dict[tuple[str, str], str | None] = {}

    def notes(sample: Sample, criterion: Criterion) -> str | None:
        key = (sample.id, criterion.id)
        if key not in cached:
            critique = find(critique_question(prompt, sample, criterion, settings, judge, max_chars=max_chars).id)
            cached[key] = None if critique is None else without_thinking(critique.text).strip()
        return cached[key]

    return notes


def critique_record(question: Question, output: Output) -> Critique:
    """The record of one critique."""
    return Critique(
        id=question.id,
        prompt=str(question.about["prompt"]),
        sample=str(question.about["sample"]),
        principle=str(question.about["principle"]),
        judge=question.model,
        text=without_thinking(output.text).strip(),
        finish_reason=output.finish_reason,
        prompt_tokens=output.prompt_tokens,
        completion_tokens=output.completion_tokens,
    )


def require_critiques(settings: RunSettings, constitution: Constitution) -> None:
    """Raise UserError where a principle has no request for the critiques that are to be written under it."""
    for principle in constitution.principles:
        if principle.critique is None:
            raise UserError(
                f"principle `{principle.id}` has no `critique`, which this run asks for",
                where=settings.constitution,
                hint="write one, or set `compare.critique` and `critique.enabled` to false",
            )
