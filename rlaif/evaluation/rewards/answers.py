"""The answers that best-of-n chooses from: drawn from a policy, or given in a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import JsonValue

from rlaif.errors import UserError
from rlaif.evaluation.naming import sha256_known
from rlaif.evaluation.runs import TABLE, run_samples
from rlaif.inference.ask import Tally, ask
from rlaif.inference.base import ModelSource, Question
from rlaif.records import Failure, Prompt, Sample
from rlaif.samples.inputs import Oddities, read_prompts
from rlaif.samples.plan import given_samples, sample_questions, sample_record
from rlaif.samples.rows import read_rows
from rlaif.settings import ModelSettings, PolicySettings
from rlaif.store import Table, read_records

REPLIES = ("responses", "completions", "answers", "outputs", "response", "completion", "answer", "output")
"""Columns in which answers are looked for, in this order."""


@dataclass(frozen=True)
class Drawn:
    """Answers to draw from a policy."""

    source: ModelSource
    settings: PolicySettings
    """`samples` answers to each prompt; `model` names them."""
    prompts: str
    """File or `datasets` name."""
    column: str | None = None
    limit: int | None = None

    @property
    def data(self) -> str:
        """Where the prompts come from."""
        return self.prompts

    @property
    def name(self) -> str:
        """What wrote the answers."""
        return self.source.name

    @property
    def identity(self) -> JsonValue:
        """What they depend on."""
        how = self.settings.model_dump(mode="json", exclude=set(ModelSettings.model_fields))
        return [self.source.name, how, sha256_known(self.prompts) or self.prompts, self.column, self.limit]

    def read(self, oddities: Oddities | None = None) -> Iterator[Prompt]:
        """The prompts."""
        found = read_prompts(self.prompts, column=self.column, limit=self.limit, oddities=oddities)
        return (prompt.model_copy(update={"responses": ()}) for prompt in found)

    def questions(self, prompt: Prompt) -> list[Question]:
        """Those behind the answers to a prompt."""
        return sample_questions(prompt, self.settings, self.source.name)


@dataclass(frozen=True)
class Given:
    """Answers that lie in a file: a run folder or its samples.jsonl, or rows of a prompt with a list of answers."""

    path: str
    column: str | None = None
    """Of the answers."""
    prompt_column: str | None = None
    samples: int | None = None
    """The first so many of each prompt; without it as many as most prompts have."""
    limit: int | None = None

    @property
    def data(self) -> str:
        """Where the answers come from."""
        return self.path

    @property
    def name(self) -> str:
        """What wrote the answers."""
        return self.path

    @property
    def identity(self) -> JsonValue:
        """What they depend on."""
        path = Path(self.path).expanduser()
        file = str(path / TABLE if path.is_dir() else path)
        return [sha256_known(file) or self.path, self.column, self.prompt_column, self.samples, self.limit]


class Answers(NamedTuple):
    """A prompt with its answers, all of them there."""

    prompt: Prompt
    samples: tuple[Sample, ...]


@dataclass
class Pool:
    """All prompts that have the same number of answers."""

    answers: list[Answers] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    """Prompts, by reason."""
    oddities: Oddities = field(default_factory=Oddities)
    """Rows of the file, by reason."""

    @property
    def truncated(self) -> float | None:
        """Share of the answers that were cut off; None where nobody says."""
        ends = [sample.finish_reason for each in self.answers for sample in each.samples if sample.finish_reason]
        return ends.count("length") / len(ends) if ends else None


async def draw(
    wanted: Drawn, prompts: Sequence[Prompt], samples: Table[Sample], failures: Table[Failure], **options: Any
) -> Tally:
    """Ask the policy for the answers that are missing; `options` go to `ask`."""
    questions = (question for prompt in prompts for question in wanted.questions(prompt))
    return await ask(questions, wanted.source, samples, sample_record, failures, **options)


def drawn_pool(wanted: Drawn, prompts: Sequence[Prompt], samples: Table[Sample]) -> Pool:
    """The answers on disk; a prompt with one that could not be drawn is left out."""
    pool = Pool()
    for prompt in prompts:
        found = [samples.get(question.id) for question in wanted.questions(prompt)]
        whole = tuple(sample for sample in found if sample is not None)
        if len(whole) == len(found):
            pool.answers.append(Answers(prompt, whole))
        else:
            pool.left_out["an answer could not be drawn"] += 1
    return pool


def given_pool(wanted: Given) -> Pool:
    """The answers of a file; a prompt that has fewer than the others is left out.

    Raises UserError where there are none.
    """
    pool = Pool()
    found = list(_given(wanted, pool.oddities))
    if not found:
        raise UserError("holds no answers", where=wanted.path, mend="give prompts with `responses`, or a run folder")
    sizes = Counter(len(each.samples) for each in found)
    wanted_size = wanted.samples or max(sizes, key=lambda size: (sizes[size], size))
    for each in found:
        if len(each.samples) >= wanted_size:
            pool.answers.append(Answers(each.prompt, each.samples[:wanted_size]))
        else:
            pool.left_out[f"fewer than {wanted_size} answers"] += 1
    if not pool.answers:
        what = f"no prompt has {wanted_size} answers; the most that one has are {max(sizes)}"
        raise UserError(what, where=wanted.path, mend="lower --samples")
    return pool


def _given(wanted: Given, oddities: Oddities) -> Iterator[Answers]:
    path = Path(wanted.path).expanduser()
    file = path / TABLE if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        raise UserError("the folder holds no samples.jsonl", where=wanted.path, mend="give a file, or a run folder")
    if file.name == TABLE and (beside := file.with_name("prompts.jsonl")).is_file():
        yield from _of_run(beside, file, wanted.limit)
        return
    column = wanted.column or _column(wanted.path)
    # Rows of one prompt come together, so that a file with an answer a row is read as well.
    together: dict[str, list[Prompt]] = {}
    for prompt in read_prompts(
        wanted.path, column=wanted.prompt_column, responses=column, oddities=oddities, with_answers=True
    ):
        if prompt.id in together or wanted.limit is None or len(together) < wanted.limit:
            together.setdefault(prompt.id, []).append(prompt)
    for parts in together.values():
        responses = tuple(given for part in parts for given in part.responses)
        whole = parts[0].model_copy(update={"responses": responses})
        yield Answers(whole, tuple(given_samples(whole)))


def _of_run(prompts: Path, samples: Path, limit: int | None) -> Iterator[Answers]:
    """The samples of a run, by their prompts."""
    of_prompt = run_samples(samples)
    found = (prompt for prompt in read_records(prompts, Prompt) if prompt.id in of_prompt)
    for at, prompt in enumerate(found):
        if at == limit:
            return
        yield Answers(prompt, tuple(sample for _, sample in sorted(of_prompt[prompt.id].items())))


def _column(path: str) -> str:
    """The column of the answers, by the first row."""
    _, row = next(read_rows(path), (0, None))
    names = [str(name) for name in row] if isinstance(row, dict) else []
    found = next((name for name in REPLIES if name in names), None)
    if found is None:
        held = f"columns: {', '.join(names)}" if names else "the rows are not objects"
        mend = "needed: a prompt with `responses`; --responses-column names another"
        raise UserError(f"no answers that can be recognised ({held})", where=path, mend=mend)
    return found
