"""The responses to compare: from models, or from a file, joined by what the prompt says.

Answers from a file, joined to prompts by what the prompt says, never by the place in the file.

Known are a prompt with one answer or a list of them (the usual names of columns), dialogues whose last turn is the
answer, and the samples.jsonl of a run, whose prompts are told by their ids. A blank answer is one; none at all is not.

The answers of every policy to every prompt: drawn where they are missing, or read from a file.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rlaif.data.files import Rows, read_rows
from rlaif.data.prompts import InputIssues, InvalidRowError, prompt_id, read_prompts, recognise
from rlaif.errors import ModelError, UserError, nearest
from rlaif.evaluation.gold import run_samples
from rlaif.evaluation.kl import log_of
from rlaif.evaluation.policy_specs import EvaluateSettings, PolicySpec
from rlaif.feedback.sampling import GIVEN, rehearsals, sample_questions, sample_record
from rlaif.inference.base import StageStats, ask
from rlaif.inference.models import LazyModel, model_name
from rlaif.progress import Progress
from rlaif.records import Failure, Prompt, Sample, content_id
from rlaif.store import Table

_PROMPTS = ("instruction", "question", "query")
"""Columns of the prompt beside those that prompts are read from anyway."""
_REPLIES = ("response", "completion", "responses", "completions", "answer", "answers", "output", "outputs")
_TALKS = ("messages", "conversations")
_TEXTS = ("text", "content", "response", "completion", "output", "generated_text")
"""Where an answer stands in an object."""
_SAMPLE = frozenset({"prompt", "text", "policy", "index"})


class GivenAnswer(NamedTuple):
    """One answer of a file."""

    text: str
    finish_reason: str | None = None
    """`length` where it was cut off; None where the file does not say."""


Answers = dict[str, list[GivenAnswer | None]]
"""By prompt id, in the order of the file; None where an answer has no text."""


def read_answers(path: Path) -> Answers:
    """The answers of a file by prompt id. Raises UserError where there are none to be recognised."""
    rows = read_rows(path)
    first = next(rows, None)
    if first is None:
        raise UserError("holds no rows", where=path)
    rows = itertools.chain([first], rows)
    if isinstance(first[1], dict) and first[1].keys() >= _SAMPLE:
        return _of_run(rows, path)
    return _of_rows(rows, path, first[0], first[1])


def _of_run(rows: Rows, path: Path) -> Answers:
    """The samples of a run: their prompts are named by content already."""
    return {
        prompt: [
            None if own is None else GivenAnswer(own.text, own.finish_reason)
            for own in map(found.get, range(max(found) + 1))
        ]
        for prompt, found in run_samples(path, rows).items()
    }


def _of_rows(rows: Rows, path: Path, line: int, first: object) -> Answers:
    reply, prompt = _columns(path, first)
    form = recognise(first, str(path), line, prompt, None)
    found: Answers = {}
    for _, row in rows:
        try:
            read = form.read(row, _nothing)
        except InvalidRowError:
            continue
        texts = [each.text for each in read.responses] if reply is None else list(_texts(row, reply))
        found.setdefault(prompt_id(read.messages), []).extend(
            None if text is None else GivenAnswer(text) for text in texts
        )
    if not any(each is not None for given in found.values() for each in given):
        raise UserError("no row holds a prompt with an answer", where=path)
    return found


def _columns(path: Path, row: object) -> tuple[str | None, str | None]:
    """The columns of answer and prompt; None for an answer that ends a dialogue, and a prompt that is recognised."""
    if not isinstance(row, dict):
        raise UserError("its rows are not objects", where=path, hint="give rows with `prompt` and `response`")
    connection = next((name for name in _TALKS if name in row), None)
    prompt = None if "prompt" in row or connection else next((name for name in _PROMPTS if name in row), None)
    reply = next((name for name in _REPLIES if name in row and name != prompt), None)
    if reply is None and ("prompt" in row or connection is None):
        held = ", ".join(map(str, row)) or "none"
        hint = "give rows with `prompt` and `response` or `responses`, or dialogues in `messages`"
        raise UserError(f"no answers that can be recognised (columns: {held})", where=path, hint=hint)
    return reply, prompt


def _texts(row: object, name: str) -> Iterator[str | None]:
    """The answers of a row: a text, an object with one, or a list of either."""
    value = row.get(name) if isinstance(row, dict) else None
    yield from map(_text, value if isinstance(value, list) else [value])


def _text(value: object) -> str | None:
    if isinstance(value, dict):
        value = next((value[name] for name in _TEXTS if isinstance(value.get(name), str)), None)
    return value.strip() if isinstance(value, str) and _encodes(value) else None


def _encodes(text: str) -> bool:
    """JSON can write half a surrogate pair, which no judge takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _nothing(_: str) -> None:
    """What is odd about other columns of these rows is nothing to their answers."""


def require_known(answers: Answers, prompts: Sequence[str], path: Path) -> None:
    """Raise UserError where the answers are to none of the prompts."""
    if not any(prompt in answers for prompt in prompts):
        what = f"answers none of the {len(prompts):,} prompts (it has answers to {len(answers):,} others)"
        raise UserError(what, where=path, hint="is it the file for these prompts? They are joined by their texts")


@dataclass
class Gathered:
    """One policy with its answers."""

    contestant: PolicySpec
    identity: str
    """Of the model, or the file."""
    answers: dict[str, list[Sample | None]] = field(default_factory=dict)
    """By prompt id; None where one is missing."""
    failed: Counter[str] = field(default_factory=Counter)
    """Questions without an answer, by reason."""

    @property
    def name(self) -> str:
        """The contestant's."""
        return self.contestant.name

    @property
    def drawn(self) -> bool:
        """Whether its answers come from a model."""
        return self.contestant.model is not None

    def found(self) -> list[Sample]:
        """All answers there are."""
        return [each for own in self.answers.values() for each in own if each is not None]

    @property
    def missing(self) -> int:
        """Answers that are not there."""
        return sum(each is None for own in self.answers.values() for each in own)


def identity_of(contestant: PolicySpec) -> str:
    """What its answers come from: the model with the fingerprint of its files, its name on a server, or the file."""
    if contestant.model is None:
        return str(contestant.answers)
    return model_name(contestant.model)


def require_told_apart(contestants: Sequence[PolicySpec]) -> None:
    """Raise UserError where two servers call their models by one name: one's answers would pass for the other's."""
    known: dict[str, tuple[str, str]] = {}
    for each in contestants:
        place = None if each.model is None else each.model.base_url or each.model.launch
        if place is None:
            continue
        name = identity_of(each)
        other, where = known.setdefault(name, (each.name, place.rstrip("/")))
        if where != place.rstrip("/"):
            what = f"`{other}` and `{each.name}` are both called `{name}` by their servers, which makes them one"
            raise UserError(what, where=place, hint="serve them under different names (`--served-model-name`)")


def tag_of(settings: EvaluateSettings) -> Callable[[Prompt], str | None]:
    """The kind of a prompt, as a text: what stands in its column; None where nothing does."""

    def tag(prompt: Prompt) -> str | None:
        value = None if settings.tag is None else prompt.metadata.get(settings.tag)
        return str(value).lower() if isinstance(value, bool) else None if value is None else str(value)

    return tag


def prompts_of(settings: EvaluateSettings, input_issues: InputIssues) -> list[Prompt]:
    """The prompts, each once, with the column that tells kinds of them apart.

    Raises UserError where there are none, there is no such column, or a harmful kind never occurs.
    """
    wanted = settings.prompts
    read = read_prompts(
        wanted.path, column=wanted.column, limit=wanted.limit, input_issues=input_issues, keep=settings.tag
    )
    prompts = [prompt.model_copy(update={"responses": ()}) for prompt in read]
    tag = tag_of(settings)
    kinds = {kind for prompt in prompts if (kind := tag(prompt)) is not None}
    for value in settings.harmful:
        if value not in kinds:
            what = f"no prompt has `{value}` in the column `{settings.tag}`"
            raise UserError(what, where=wanted.path, hint=nearest(value, kinds) if kinds else "")
    return prompts


def given_answers(contestant: PolicySpec, settings: EvaluateSettings, prompts: Sequence[Prompt]) -> Gathered:
    """The answers in a policy's file, the first `samples` to every prompt. Raises UserError where there are none."""
    path = contestant.answers
    assert path is not None
    answers = read_answers(path)
    require_known(answers, [prompt.id for prompt in prompts], path)
    found = Gathered(contestant, str(path))
    for prompt in prompts:
        own = answers.get(prompt.id, [])[: settings.samples]
        blank: list[GivenAnswer | None] = [None] * (settings.samples - len(own))
        found.answers[prompt.id] = [
            None if each is None else _given(each, prompt, at, str(path)) for at, each in enumerate([*own, *blank])
        ]
    if not found.found():
        raise UserError("has no answer to any of the prompts", where=path)
    return found


def _given(answer: GivenAnswer, prompt: Prompt, index: int, path: str) -> Sample:
    return Sample(
        id=content_id(GIVEN, path, prompt.id, index, answer.text),
        prompt=prompt.id,
        index=index,
        text=answer.text,
        policy=path,
        finish_reason=answer.finish_reason,
    )


async def drawn_answers(
    contestant: PolicySpec,
    settings: EvaluateSettings,
    prompts: Sequence[Prompt],
    samples: Table[Sample],
    failures: Table[Failure],
    folder: Path,
    progress: Progress,
) -> tuple[Gathered, StageStats]:
    """Draw what is missing of a model's answers; it is loaded or started only where something is, and closed again.

    Raises ModelError where the model cannot go on, or gives no answer at all.
    """
    assert contestant.model is not None
    source = LazyModel(
        contestant.model, log=log_of(folder, contestant.name), say=progress.note,
        rehearsals=lambda: rehearsals(prompts[:1], settings.system, "system"),
    )  # fmt: skip
    policy = settings.drawn_from(contestant.model.model)
    stage = f"sample {contestant.name}"
    progress.begin(stage, len(prompts) * settings.samples)
    try:
        questions = (each for prompt in prompts for each in sample_questions(prompt, policy, source.name))
        tally = await ask(
            questions, source, samples, sample_record, failures,
            stage=stage, max_failed=settings.max_failed, progress=progress,
        )  # fmt: skip
    finally:
        await source.close()
    progress.end(tally.stage, tally.summary)
    found = Gathered(contestant, source.name)
    for prompt in prompts:
        own = sample_questions(prompt, policy, source.name)
        found.answers[prompt.id] = [samples.get(question.id) for question in own]
        found.failed.update(reason_of(question.id, failures) for question in own if question.id not in samples)
    if not found.found():
        told = ", ".join(f"{reason} {count}" for reason, count in found.failed.most_common())
        raise ModelError(f"`{contestant.name}` gave no answer ({told}); see {failures.path}, and run this again")
    return found, tally


def reason_of(question: str, failures: Table[Failure]) -> str:
    """Why a question has no answer."""
    failure = failures.get(question)
    return failure.reason if failure is not None else "not asked"
