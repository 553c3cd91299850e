"""The responses of every policy to every prompt: sampled where they are missing, or read from a file.

A file is joined to the prompts by their content, never by row number. It holds a prompt with one response or a list of
them (under common column names), dialogues whose last turn is the response, or the samples.jsonl of a run, whose
prompts have ids. A blank response counts as one; a row without any is missing.
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
"""Columns of the prompt besides those that `rlaif.data.prompts` recognizes."""
_REPLIES = ("response", "completion", "responses", "completions", "answer", "answers", "output", "outputs")
_TALKS = ("messages", "conversations")
_TEXTS = ("text", "content", "response", "completion", "output", "generated_text")
"""Keys of the response in an object."""
_SAMPLE = frozenset({"prompt", "text", "policy", "index"})


class GivenAnswer(NamedTuple):
    """One response of a file."""

    text: str
    finish_reason: str | None = None
    """`length` where it was cut off; None where the file does not say."""


Answers = dict[str, list[GivenAnswer | None]]
"""By prompt id, in the order of the file; None where a response has no text."""


def read_answers(path: Path) -> Answers:
    """The responses of a file by prompt id. Raises UserError where none are recognized."""
    rows = read_rows(path)
    first = next(rows, None)
    if first is None:
        raise UserError("holds no rows", where=path)
    rows = itertools.chain([first], rows)
    if isinstance(first[1], dict) and first[1].keys() >= _SAMPLE:
        return {
            prompt: [
                None if sample is None else GivenAnswer(sample.text, sample.finish_reason)
                for sample in map(samples.get, range(max(samples) + 1))
            ]
            for prompt, samples in run_samples(path, rows).items()
        }
    return _read_rows(rows, path, first[0], first[1])


def _read_rows(rows: Rows, path: Path, line: int, first: object) -> Answers:
    reply, prompt = _find_columns(path, first)
    form = recognise(first, str(path), line, prompt, None)
    answers: Answers = {}
    for _, row in rows:
        try:
            parsed = form.read(row, lambda _: None)  # issues of other columns do not concern the responses
        except InvalidRowError:
            continue
        texts = [response.text for response in parsed.responses] if reply is None else _texts(row, reply)
        answers.setdefault(prompt_id(parsed.messages), []).extend(
            None if text is None else GivenAnswer(text) for text in texts
        )
    if not any(answer is not None for group in answers.values() for answer in group):
        raise UserError("no row holds a prompt with an answer", where=path)
    return answers


def _find_columns(path: Path, row: object) -> tuple[str | None, str | None]:
    """The columns of response and prompt; None for a response that ends a dialogue, and for a recognized prompt."""
    if not isinstance(row, dict):
        raise UserError("its rows are not objects", where=path, hint="give rows with `prompt` and `response`")
    conversation = next((name for name in _TALKS if name in row), None)
    prompt = None if "prompt" in row or conversation else next((name for name in _PROMPTS if name in row), None)
    reply = next((name for name in _REPLIES if name in row and name != prompt), None)
    if reply is None and ("prompt" in row or conversation is None):
        columns = ", ".join(map(str, row)) or "none"
        hint = "give rows with `prompt` and `response` or `responses`, or dialogues in `messages`"
        raise UserError(f"no answers that can be recognised (columns: {columns})", where=path, hint=hint)
    return reply, prompt


def _texts(row: object, name: str) -> Iterator[str | None]:
    """The responses of a row: a text, an object with one, or a list of either; None for text that UTF-8 cannot encode.

    JSON can write a lone surrogate, which no judge accepts.
    """
    cell = row.get(name) if isinstance(row, dict) else None
    for value in cell if isinstance(cell, list) else [cell]:
        text = value if isinstance(value, str) else None
        if isinstance(value, dict):
            text = next((value[key] for key in _TEXTS if isinstance(value.get(key), str)), None)
        try:
            (text or "").encode()
        except UnicodeEncodeError:
            text = None
        yield text.strip() if text is not None else None


def require_known(answers: Answers, prompts: Sequence[str], path: Path) -> None:
    """Raise UserError where the file answers none of the prompts."""
    if not any(prompt in answers for prompt in prompts):
        message = f"answers none of the {len(prompts):,} prompts (it has answers to {len(answers):,} others)"
        raise UserError(message, where=path, hint="is it the file for these prompts? They are joined by their texts")


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
    def sampled(self) -> bool:
        """Whether its answers come from a model."""
        return self.contestant.model is not None

    def present(self) -> list[Sample]:
        """All answers there are."""
        return [sample for group in self.answers.values() for sample in group if sample is not None]

    @property
    def missing(self) -> int:
        """Answers that are not there."""
        return sum(sample is None for group in self.answers.values() for sample in group)


def identity_of(contestant: PolicySpec) -> str:
    """The source of its responses: the model with the fingerprint of its files, its name on a server, or the file."""
    if contestant.model is None:
        return str(contestant.answers)
    return model_name(contestant.model)


def require_distinct(contestants: Sequence[PolicySpec]) -> None:
    """Raise UserError where two servers call their models by one name: one's answers would pass for the other's."""
    servers: dict[str, tuple[str, str]] = {}
    for contestant in contestants:
        url = None if contestant.model is None else contestant.model.base_url or contestant.model.launch
        if url is None:
            continue
        name = identity_of(contestant)
        other, other_url = servers.setdefault(name, (contestant.name, url.rstrip("/")))
        if other_url != url.rstrip("/"):
            message = (
                f"`{other}` and `{contestant.name}` are both called `{name}` by their servers, which makes them one"
            )
            raise UserError(message, where=url, hint="serve them under different names (`--served-model-name`)")


def tag_of(settings: EvaluateSettings) -> Callable[[Prompt], str | None]:
    """The kind of a prompt, as the text in its column; None where there is none."""

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
            message = f"no prompt has `{value}` in the column `{settings.tag}`"
            raise UserError(message, where=wanted.path, hint=nearest(value, kinds) if kinds else "")
    return prompts


def read_responses(contestant: PolicySpec, settings: EvaluateSettings, prompts: Sequence[Prompt]) -> Gathered:
    """The answers in a policy's file, the first `samples` to every prompt. Raises UserError where there are none."""
    path = contestant.answers
    assert path is not None
    answers = read_answers(path)
    require_known(answers, [prompt.id for prompt in prompts], path)
    gathered = Gathered(contestant, str(path))
    for prompt in prompts:
        texts = answers.get(prompt.id, [])[: settings.samples]
        samples = [
            None
            if answer is None
            else Sample(
                id=content_id(GIVEN, str(path), prompt.id, at, answer.text),
                prompt=prompt.id,
                index=at,
                text=answer.text,
                policy=str(path),
                finish_reason=answer.finish_reason,
            )
            for at, answer in enumerate(texts)
        ]
        gathered.answers[prompt.id] = samples + [None] * (settings.samples - len(samples))
    if not gathered.present():
        raise UserError("has no answer to any of the prompts", where=path)
    return gathered


async def sample_responses(
    contestant: PolicySpec,
    settings: EvaluateSettings,
    prompts: Sequence[Prompt],
    samples: Table[Sample],
    failures: Table[Failure],
    folder: Path,
    progress: Progress,
) -> tuple[Gathered, StageStats]:
    """Sample the missing responses of a model, which is loaded only where there are any, and closed again.

    Raises ModelError where the model cannot go on, or gives no response at all.
    """
    assert contestant.model is not None
    source = LazyModel(
        contestant.model, log=log_of(folder, contestant.name), say=progress.note,
        rehearsals=lambda: rehearsals(prompts[:1], settings.system, "system"),
    )  # fmt: skip
    policy = settings.sampling_for(contestant.model.model)
    stage = f"sample {contestant.name}"
    progress.begin(stage, len(prompts) * settings.samples)
    try:
        missing = (question for prompt in prompts for question in sample_questions(prompt, policy, source.name))
        stats = await ask(
            missing, source, samples, sample_record, failures,
            stage=stage, max_failed=settings.max_failed, progress=progress,
        )  # fmt: skip
    finally:
        await source.close()
    progress.end(stats.stage, stats.summary)
    gathered = Gathered(contestant, source.name)
    for prompt in prompts:
        questions = sample_questions(prompt, policy, source.name)
        gathered.answers[prompt.id] = [samples.get(question.id) for question in questions]
        gathered.failed.update(reason_of(question.id, failures) for question in questions if question.id not in samples)
    if not gathered.present():
        reasons = ", ".join(f"{reason} {count}" for reason, count in gathered.failed.most_common())
        raise ModelError(f"`{contestant.name}` gave no answer ({reasons}); see {failures.path}, and run this again")
    return gathered, stats


def reason_of(question: str, failures: Table[Failure]) -> str:
    """Why a question has no answer."""
    failure = failures.get(question)
    return failure.reason if failure is not None else "not asked"
