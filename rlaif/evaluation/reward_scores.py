"""Responses scored by a reward model, and where they come from.

Rewards are kept by content id, so that a second call computes nothing: plan, score what is missing, append.

A reward model that scores replies to conversations, one by one, and says of each how it fitted.

Replies to one prompt share its computation, and equal ones are computed once. Texts become tokens as in the model's
training: by the chat template, or, for one trained on dialogues as text, as such a dialogue.

The answers that best-of-n chooses from: drawn from a policy, or given in a file.
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
from rlaif.training.text_format import text_format_of

if TYPE_CHECKING:
    from rlaif.training.examples import Example, Group, Template
    from rlaif.training.score import Apart
    from rlaif.training.tokenize import Tokens

_AT_ONCE = 64
"""Replies between two writes: what an interrupt loses at most."""


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
    """What scores replies; `rlaif.evaluation.reward_scores.RewardModel` is one."""

    name: str

    def key(self, reply: Reply) -> str:
        """The content id of a reply's reward."""
        ...

    def score(self, replies: Sequence[Reply]) -> list[Scored]:
        """The rewards, in order."""
        ...


async def keep_rewards(
    replies: Iterable[Reply], scorer: Scorer, table: Table[Reward], *, stage: str, progress: Progress
) -> StageStats:
    """Score the replies that `table` does not hold, equal ones once, and append their rewards as they come.

    Gives way after every few of them, so that an interrupt is heard.
    """
    wanted = {scorer.key(reply): reply for reply in replies}
    missing = iter([(key, reply) for key, reply in wanted.items() if key not in table])
    tally = StageStats(stage, planned=len(wanted), known=sum(key in table for key in wanted))
    progress.begin(stage, len(wanted))
    start = time.perf_counter()
    while batch := list(itertools.islice(missing, _AT_ONCE)):
        scored = scorer.score([reply for _, reply in batch])
        table.append(
            Reward(id=key, prompt=reply.prompt, model=scorer.name, **each._asdict())
            for (key, reply), each in zip(batch, scored, strict=True)
        )
        tally.answered += len(batch)
        tally.seconds = time.perf_counter() - start
        tally.report_to(progress)
        await asyncio.sleep(0)  # an interrupt comes in here
    progress.end(tally.stage, tally.summary)
    return tally


class Reply(NamedTuple):
    """What is scored: a reply in a conversation."""

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
        found: dict[int, Scored] = {}
        groups: dict[int, Group] = {}
        examples = []
        for at, reply in enumerate(replies):
            reason = _unreadable(reply)
            example = None if reason else self._example(at, reply)
            if example is None:
                found[at] = Scored(None, reason=reason or "no-form")
            else:
                examples.append(example)
        for at, group, scored in self._fitted(examples):
            found[at] = scored
            if group is not None:
                groups[at] = group
        for at, reward in zip(groups, self._rewards(list(groups.values())), strict=True):
            if not math.isfinite(reward):
                shown = replies[at].text[:60]
                raise ModelError(f"{self.folder}: the reward of {shown!r} is {reward}: the model is broken")
            found[at] = found[at]._replace(reward=reward)
        return [found[at] for at in range(len(replies))]

    def _example(self, at: int, reply: Reply) -> Example | None:
        turns = tuple(Turn(message.role, message.content) for message in reply.messages)
        return self._learned.example(str(at), turns, reply.text)

    def _fitted(self, examples: Sequence[Example]) -> Iterator[tuple[int, Group | None, Scored]]:
        """Each as tokens, and whether it lost something; those that cannot be used with the reason."""
        from rlaif.training.dataset_report import RowCounts

        assert self._limits is not None
        row_counts, cut, kept = RowCounts(), 0, set()
        # Examples come one by one, in order, each counted just before: what the count grew by belongs to it.
        for example, group in self._limits.with_examples(examples, row_counts):
            kept.add(example.id)
            yield int(example.id), group, Scored(None, truncated=row_counts.truncated > cut)
            cut = row_counts.truncated
        for example in examples:
            if example.id not in kept:
                alone = RowCounts()
                list(self._limits.groups([example], alone))
                yield int(example.id), None, Scored(None, reason=next(iter(alone.left_out), "unusable"))


def _unreadable(reply: Reply) -> str:
    """Why a reply cannot be scored: it says nothing, or a text holds half a surrogate pair; empty where it can."""
    try:
        for text in (reply.text, *(message.content for message in reply.messages)):
            text.encode()
    except UnicodeEncodeError:
        return "half-character"
    return "" if reply.text.strip() else "blank"


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

    def read(self, input_issues: InputIssues | None = None) -> Iterator[Prompt]:
        """The prompts."""
        found = read_prompts(self.prompts, column=self.column, limit=self.limit, input_issues=input_issues)
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
    input_issues: InputIssues = field(default_factory=InputIssues)
    """Rows of the file, by reason."""

    @property
    def truncated(self) -> float | None:
        """Share of the answers that were cut off; None where nobody says."""
        ends = [sample.finish_reason for each in self.answers for sample in each.samples if sample.finish_reason]
        return ends.count("length") / len(ends) if ends else None


async def draw(
    wanted: Drawn, prompts: Sequence[Prompt], samples: Table[Sample], failures: Table[Failure], **options: Any
) -> StageStats:
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
    found = list(_given(wanted, pool.input_issues))
    if not found:
        raise UserError("holds no answers", where=wanted.path, hint="give prompts with `responses`, or a run folder")
    sizes = Counter(len(each.samples) for each in found)
    wanted_size = wanted.samples or max(sizes, key=lambda size: (sizes[size], size))
    for each in found:
        if len(each.samples) >= wanted_size:
            pool.answers.append(Answers(each.prompt, each.samples[:wanted_size]))
        else:
            pool.left_out[f"fewer than {wanted_size} answers"] += 1
    if not pool.answers:
        what = f"no prompt has {wanted_size} answers; the most that one has are {max(sizes)}"
        raise UserError(what, where=wanted.path, hint="lower --samples")
    return pool


def _given(wanted: Given, input_issues: InputIssues) -> Iterator[Answers]:
    path = Path(wanted.path).expanduser()
    file = path / TABLE if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        raise UserError("the folder holds no samples.jsonl", where=wanted.path, hint="give a file, or a run folder")
    if file.name == TABLE and (beside := file.with_name("prompts.jsonl")).is_file():
        yield from _of_run(beside, file, wanted.limit)
        return
    column = wanted.column or _column(wanted.path)
    # Rows of one prompt come together, so that a file with an answer a row is read as well.
    together: dict[str, list[Prompt]] = {}
    for prompt in read_prompts(
        wanted.path, column=wanted.prompt_column, responses=column, input_issues=input_issues, with_answers=True
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
        hint = "needed: a prompt with `responses`; --responses-column names another"
        raise UserError(f"no answers that can be recognised ({held})", where=path, hint=hint)
    return found
