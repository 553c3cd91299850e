"""The answers of every policy to every prompt: drawn where they are missing, or read from a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlaif.errors import ModelError, UserError, nearest
from rlaif.evaluation.judging import Watch
from rlaif.evaluation.policies.answers import GivenAnswer, read_answers, require_known
from rlaif.evaluation.policies.contestants import Contestant
from rlaif.evaluation.policies.distance import log_of
from rlaif.evaluation.policies.settings import EvaluateSettings
from rlaif.inference.ask import Tally, ask
from rlaif.inference.source import LazyModel, model_name
from rlaif.records import Failure, Prompt, Sample, content_id
from rlaif.samples.inputs import Oddities, read_prompts
from rlaif.samples.plan import GIVEN, rehearsals, sample_questions, sample_record
from rlaif.store import Table


@dataclass
class Gathered:
    """One policy with its answers."""

    contestant: Contestant
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


def identity_of(contestant: Contestant) -> str:
    """What its answers come from: the model with the fingerprint of its files, its name on a server, or the file."""
    if contestant.model is None:
        return str(contestant.answers)
    return model_name(contestant.model)


def require_told_apart(contestants: Sequence[Contestant]) -> None:
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
            raise UserError(what, where=place, mend="serve them under different names (`--served-model-name`)")


def tag_of(settings: EvaluateSettings) -> Callable[[Prompt], str | None]:
    """The kind of a prompt, as a text: what stands in its column; None where nothing does."""

    def tag(prompt: Prompt) -> str | None:
        value = None if settings.tag is None else prompt.metadata.get(settings.tag)
        return str(value).lower() if isinstance(value, bool) else None if value is None else str(value)

    return tag


def prompts_of(settings: EvaluateSettings, oddities: Oddities) -> list[Prompt]:
    """The prompts, each once, with the column that tells kinds of them apart.

    Raises UserError where there are none, there is no such column, or a harmful kind never occurs.
    """
    wanted = settings.prompts
    read = read_prompts(wanted.path, column=wanted.column, limit=wanted.limit, oddities=oddities, keep=settings.tag)
    prompts = [prompt.model_copy(update={"responses": ()}) for prompt in read]
    tag = tag_of(settings)
    kinds = {kind for prompt in prompts if (kind := tag(prompt)) is not None}
    for value in settings.harmful:
        if value not in kinds:
            what = f"no prompt has `{value}` in the column `{settings.tag}`"
            raise UserError(what, where=wanted.path, mend=nearest(value, kinds) if kinds else "")
    return prompts


def given_answers(contestant: Contestant, settings: EvaluateSettings, prompts: Sequence[Prompt]) -> Gathered:
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
    contestant: Contestant,
    settings: EvaluateSettings,
    prompts: Sequence[Prompt],
    samples: Table[Sample],
    failures: Table[Failure],
    folder: Path,
    watch: Watch,
) -> tuple[Gathered, Tally]:
    """Draw what is missing of a model's answers; it is loaded or started only where something is, and closed again.

    Raises ModelError where the model cannot go on, or gives no answer at all.
    """
    assert contestant.model is not None
    source = LazyModel(
        contestant.model, log=log_of(folder, contestant.name), say=watch.note,
        rehearsals=lambda: rehearsals(prompts[:1], settings.system, "system"),
    )  # fmt: skip
    policy = settings.drawn_from(contestant.model.model)
    stage = f"sample {contestant.name}"
    watch.begin(stage, len(prompts) * settings.samples)
    try:
        questions = (each for prompt in prompts for each in sample_questions(prompt, policy, source.name))
        tally = await ask(
            questions, source, samples, sample_record, failures,
            stage=stage, max_failed=settings.max_failed, progress=watch.progress,
        )  # fmt: skip
    finally:
        await source.close()
    watch.end(tally)
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
