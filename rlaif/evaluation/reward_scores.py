"""Responses and their rewards: the reward model as a scorer, and the responses that best-of-n chooses from.

`RewardModel` scores replies in conversations one by one. Replies to one prompt share its computation, and equal
replies are computed once. Texts become tokens as in the model's training: by the chat template, or, for a model trained
on dialogues as text, as such a dialogue. Rewards are stored by content id, so a second call computes nothing.

Best-of-n takes its responses from a policy (`Drawn`) or from a file (`Given`); both become a `Pool`, in which every
prompt has the same number of responses.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from pydantic import JsonValue

from rlaif.config.schemas import ModelSettings, PolicySettings
from rlaif.data.conversations import Turn
from rlaif.data.files import read_rows
from rlaif.data.prompts import InputIssues, read_prompts
from rlaif.errors import ModelError, UserError
from rlaif.evaluation.gold import TABLE, run_samples
from rlaif.evaluation.reports import sha256_known
from rlaif.feedback.sampling import given_samples, sample_questions, sample_record
from rlaif.inference.base import ModelSource, Question, StageStats, ask
from rlaif.inference.model_folder import identity
from rlaif.progress import Progress
from rlaif.records import Failure, Messages, Prompt, Record, Sample, content_id
from rlaif.store import Table, read_records
from rlaif.training.tokenize import text_format_of

if TYPE_CHECKING:
    from rlaif.training.examples import Example, Template
    from rlaif.training.score import Apart
    from rlaif.training.tokenize import Group, Tokens

_BATCH = 64
"""Replies between two writes: the most that an interrupt loses."""

REPLIES = ("responses", "completions", "answers", "outputs", "response", "completion", "answer", "output")
"""Columns that may hold the responses, in order of precedence."""


class Reward(Record):
    """The reward of one reply, or the reason why it has none."""

    id: str
    """Of the model, how texts become tokens, the prompt and the reply."""
    prompt: str
    """Prompt id."""
    model: str
    reward: float | None
    truncated: bool = False
    """The conversation lost its beginning, as it was too long with this reply."""
    reason: str = ""
    """Why there is no reward."""


class Scorer(Protocol):
    """A scorer of replies, such as `RewardModel`."""

    name: str

    def key(self, reply: Reply) -> str:
        """The content id of a reply's reward."""
        ...

    def score(self, replies: Sequence[Reply]) -> list[Scored]:
        """The rewards, in order."""
        ...


async def compute_rewards(
    replies: Iterable[Reply], scorer: Scorer, table: Table[Reward], *, stage: str, progress: Progress
) -> StageStats:
    """Score the replies that `table` does not hold, equal ones once, and append their rewards as they come.

    Yields to the event loop after every batch, so that an interrupt gets through.
    """
    by_key = {scorer.key(reply): reply for reply in replies}
    missing = iter([(key, reply) for key, reply in by_key.items() if key not in table])
    stats = StageStats(stage, planned=len(by_key), known=sum(key in table for key in by_key))
    progress.begin(stage, len(by_key))
    start = time.perf_counter()
    while batch := list(itertools.islice(missing, _BATCH)):
        scored = scorer.score([reply for _, reply in batch])
        table.append(
            Reward(id=key, prompt=reply.prompt, model=scorer.name, **score._asdict())
            for (key, reply), score in zip(batch, scored, strict=True)
        )
        stats.answered += len(batch)
        stats.seconds = time.perf_counter() - start
        stats.report_to(progress)
        await asyncio.sleep(0)
    progress.end(stats.stage, stats.summary)
    return stats


class Reply(NamedTuple):
    """A reply in a conversation."""

    prompt: str
    """Prompt id."""
    messages: Messages
    text: str


class Scored(NamedTuple):
    """A reply with its reward, or without one."""

    reward: float | None
    """In the model's own unit, the mean taken off that it was centred on; None where it cannot be scored."""
    truncated: bool = False
    """The conversation lost its beginning, as it was too long with this reply."""
    reason: str = ""
    """Why there is no reward: `blank`, `half-character`, `too-long`, `template`, ..."""


class RewardModel:
    """A reward model, loaded when the first reply is scored; its name is known before."""

    def __init__(
        self,
        folder: str,
        *,
        template: Template | None = None,
        template_options: Mapping[str, Any] | None = None,
        max_length: int | None = None,
        tokens: int = 8192,
        device: Literal["auto", "cpu"] = "auto",
    ) -> None:
        """`folder` may be a hub name. `template`, `template_options` and `max_length` are those of the training unless
        they are given (`auto` and `chat`: the chat template; `plain`: dialogues as text); `tokens` is what fits into
        memory at once.

        Raises UserError where there is no model.
        """
        self.folder = folder
        self.name = identity(folder, rewards=True)
        self._template, self._max_length, self._tokens, self._device = template, max_length, tokens, device
        self._options, self._learned = template_options, text_format_of(folder).asked(template)
        self._limits: Tokens | None = None
        self._rewards: Apart | None = None

    def key(self, reply: Reply) -> str:
        """The content id of a reply's reward: of the model, how texts become tokens, the prompt and the reply."""
        return content_id("reward", self.name, *self.reading, reply.prompt, reply.text)

    @property
    def reading(self) -> tuple[JsonValue, ...]:
        """The template, its options and the limit of tokens that were given, and the form that was learned."""
        learned = [self._learned.template, self._learned.seam] if self._learned.template == "text" else []
        return (self._template, self._max_length, *([dict(self._options)] if self._options else []), *learned)

    @property
    def template(self) -> Literal["chat", "plain", "text"]:
        """How conversations become texts."""
        return "chat" if self._learned.template == "auto" else self._learned.template

    def open(self) -> None:
        """Load the model. Raises UserError for one that is none, or that cannot read conversations."""
        if self._rewards is not None:
            return
        from rlaif.training.reward_model import load
        from rlaif.training.score import Apart

        loaded = load(self.folder, self._device)
        if self.template == "chat" and not getattr(loaded.tokenizer, "chat_template", None):
            hint = "save a chat_template.jinja in its folder, or read dialogues as text with --template plain"
            raise UserError(
                "the reward model has no chat template, and prompts are messages", where=self.folder, hint=hint
            )
        self._limits = loaded.tokens(self._max_length, self._options)
        self._rewards = Apart(loaded, self._tokens)

    def close(self) -> None:
        """Let go of the model's memory."""
        self._limits = self._rewards = None

    def score(self, replies: Sequence[Reply]) -> list[Scored]:
        """The rewards, in order. Raises ModelError where one is no finite number: the model is broken."""
        self.open()
        assert self._rewards is not None
        scores: dict[int, Scored] = {}
        groups: dict[int, Group] = {}
        examples = []
        for at, reply in enumerate(replies):
            reason = _unreadable(reply)
            turns = tuple(Turn(message.role, message.content) for message in reply.messages)
            example = None if reason else self._learned.example(str(at), turns, reply.text)
            if example is None:
                scores[at] = Scored(None, reason=reason or "no-form")
            else:
                examples.append(example)
        for at, group, scored in self._tokenized(examples):
            scores[at] = scored
            if group is not None:
                groups[at] = group
        for at, reward in zip(groups, self._rewards(list(groups.values())), strict=True):
            if not math.isfinite(reward):
                shown = replies[at].text[:60]
                raise ModelError(f"{self.folder}: the reward of {shown!r} is {reward}: the model is broken")
            scores[at] = scores[at]._replace(reward=reward)
        return [scores[at] for at in range(len(replies))]

    def _tokenized(self, examples: Sequence[Example]) -> Iterator[tuple[int, Group | None, Scored]]:
        """Each example's index and tokens, and whether it was truncated; None and the reason where it is unusable."""
        from rlaif.training.examples import RowCounts

        assert self._limits is not None
        row_counts, cut, usable = RowCounts(), 0, set()
        # Each example is counted just before it is yielded, so an increase of the count belongs to it.
        for example, group in self._limits.with_examples(examples, row_counts):
            usable.add(example.id)
            yield int(example.id), group, Scored(None, truncated=row_counts.truncated > cut)
            cut = row_counts.truncated
        for example in examples:
            if example.id not in usable:
                alone = RowCounts()
                list(self._limits.groups([example], alone))
                yield int(example.id), None, Scored(None, reason=next(iter(alone.left_out), "unusable"))


def _unreadable(reply: Reply) -> str:
    """Why a reply cannot be scored: it is blank, or a text holds a lone surrogate; empty where it can."""
    try:
        for text in (reply.text, *(message.content for message in reply.messages)):
            text.encode()
    except UnicodeEncodeError:
        return "half-character"
    return "" if reply.text.strip() else "blank"


@dataclass(frozen=True)
class Drawn:
    """Responses to sample from a policy."""

    source: ModelSource
    settings: PolicySettings
    """`samples` responses to each prompt; `model` names their policy."""
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
        """The policy."""
        return self.source.name

    @property
    def identity(self) -> JsonValue:
        """What the responses depend on."""
        sampling = self.settings.model_dump(mode="json", exclude=set(ModelSettings.model_fields))
        return [self.source.name, sampling, sha256_known(self.prompts) or self.prompts, self.column, self.limit]

    def read(self, input_issues: InputIssues | None = None) -> Iterator[Prompt]:
        """The prompts."""
        prompts = read_prompts(self.prompts, column=self.column, limit=self.limit, input_issues=input_issues)
        return (prompt.model_copy(update={"responses": ()}) for prompt in prompts)

    def questions(self, prompt: Prompt) -> list[Question]:
        """The requests for the responses to a prompt."""
        return sample_questions(prompt, self.settings, self.source.name)


@dataclass(frozen=True)
class Given:
    """Responses in a file: a run folder or its samples.jsonl, or rows of a prompt and a list of responses."""

    path: str
    column: str | None = None
    """Of the responses."""
    prompt_column: str | None = None
    samples: int | None = None
    """The first so many of each prompt; without it as many as most prompts have."""
    limit: int | None = None

    @property
    def data(self) -> str:
        """Where the responses come from."""
        return self.path

    @property
    def name(self) -> str:
        """The file."""
        return self.path

    @property
    def identity(self) -> JsonValue:
        """What the responses depend on."""
        path = Path(self.path).expanduser()
        file = str(path / TABLE if path.is_dir() else path)
        return [sha256_known(file) or self.path, self.column, self.prompt_column, self.samples, self.limit]


class Answers(NamedTuple):
    """A prompt with all its responses."""

    prompt: Prompt
    samples: tuple[Sample, ...]

    def replies(self) -> list[Reply]:
        """The responses as replies to score."""
        return [Reply(self.prompt.id, self.prompt.messages, sample.text) for sample in self.samples]


@dataclass
class Pool:
    """The prompts that have the same number of responses."""

    answers: list[Answers] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    """Prompts, by reason."""
    input_issues: InputIssues = field(default_factory=InputIssues)
    """Rows of the file, by reason."""

    @property
    def truncated(self) -> float | None:
        """Share of the responses that were cut off; None where no finish reason is known."""
        reasons = [sample.finish_reason for group in self.answers for sample in group.samples if sample.finish_reason]
        return reasons.count("length") / len(reasons) if reasons else None


async def draw(
    wanted: Drawn, prompts: Sequence[Prompt], samples: Table[Sample], failures: Table[Failure], **options: Any
) -> StageStats:
    """Sample the missing responses from the policy; `options` go to `ask`."""
    questions = (question for prompt in prompts for question in wanted.questions(prompt))
    return await ask(questions, wanted.source, samples, sample_record, failures, **options)


def drawn_pool(wanted: Drawn, prompts: Sequence[Prompt], samples: Table[Sample]) -> Pool:
    """The responses on disk; a prompt with one that could not be sampled is left out."""
    pool = Pool()
    for prompt in prompts:
        responses = [samples.get(question.id) for question in wanted.questions(prompt)]
        present = tuple(sample for sample in responses if sample is not None)
        if len(present) == len(responses):
            pool.answers.append(Answers(prompt, present))
        else:
            pool.left_out["an answer could not be drawn"] += 1
    return pool


def given_pool(wanted: Given) -> Pool:
    """The responses of a file; a prompt that has fewer than the others is left out.

    Raises UserError where there are none.
    """
    pool = Pool()
    groups = list(_read_groups(wanted, pool.input_issues))
    if not groups:
        raise UserError("holds no answers", where=wanted.path, hint="give prompts with `responses`, or a run folder")
    sizes = Counter(len(group.samples) for group in groups)
    size = wanted.samples or max(sizes, key=lambda count: (sizes[count], count))
    for group in groups:
        if len(group.samples) >= size:
            pool.answers.append(Answers(group.prompt, group.samples[:size]))
        else:
            pool.left_out[f"fewer than {size} answers"] += 1
    if not pool.answers:
        message = f"no prompt has {size} answers; the most that one has are {max(sizes)}"
        raise UserError(message, where=wanted.path, hint="lower --samples")
    return pool


def _read_groups(wanted: Given, input_issues: InputIssues) -> Iterator[Answers]:
    path = Path(wanted.path).expanduser()
    file = path / TABLE if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        raise UserError("the folder holds no samples.jsonl", where=wanted.path, hint="give a file, or a run folder")
    if file.name == TABLE and (beside := file.with_name("prompts.jsonl")).is_file():
        by_prompt = run_samples(file)
        sampled = (prompt for prompt in read_records(beside, Prompt) if prompt.id in by_prompt)
        for prompt in itertools.islice(sampled, wanted.limit):
            yield Answers(prompt, tuple(sample for _, sample in sorted(by_prompt[prompt.id].items())))
        return
    column = wanted.column or _response_column(wanted.path)
    # Rows of one prompt are merged, so a file with one response per row is read as well.
    merged: dict[str, list[Prompt]] = {}
    for prompt in read_prompts(
        wanted.path, column=wanted.prompt_column, responses=column, input_issues=input_issues, with_answers=True
    ):
        if prompt.id in merged or wanted.limit is None or len(merged) < wanted.limit:
            merged.setdefault(prompt.id, []).append(prompt)
    for parts in merged.values():
        responses = tuple(response for part in parts for response in part.responses)
        prompt = parts[0].model_copy(update={"responses": responses})
        yield Answers(prompt, tuple(given_samples(prompt)))


def _response_column(path: str) -> str:
    """The column that holds the responses, judging by the first row."""
    _, row = next(read_rows(path), (0, None))
    names = [str(name) for name in row] if isinstance(row, dict) else []
    column = next((name for name in REPLIES if name in names), None)
    if column is None:
        columns = f"columns: {', '.join(names)}" if names else "the rows are not objects"
        hint = "needed: a prompt with `responses`; --responses-column names another"
        raise UserError(f"no answers that can be recognised ({columns})", where=path, hint=hint)
    return column
