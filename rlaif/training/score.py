"""Rewards of a reward model for responses: for any code (`rewards_of`), and for a file of them (`rlaif score`).

A file may be a run's folder or its samples.jsonl (joined with the prompts beside it), preference data in every shape
that `rlaif train reward` takes, a prompt with one response or a list of them, conversations whose last turn is the
response, or plain texts. Responses keep the order of the file and are tokenized as for training. A row that cannot be
scored stays in its place, without a reward, and is counted. `ScoreStats` sums up the file: how its rewards are spread,
whether they follow length, which are highest and lowest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
import itertools
import json
import math
import sys
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import ValidationError

from rlaif.data.conversations import UnreadableValueError
from rlaif.data.files import Rows
from rlaif.data.formats import Shape, first_known, recognise, settled, usual
from rlaif.data.prompts import InvalidPromptError, PromptColumns, joined_prompt, parts_of
from rlaif.errors import ModelError, RecordError, UserError, nearest
from rlaif.records import Prompt, Record, Sample
from rlaif.stats import Estimate, hits, mean, wilson
from rlaif.store import draft_of, read_records
from rlaif.training.batches import lay_out, split
from rlaif.training.dataset import PAIR_FILES, file_of
from rlaif.training.examples import Alone, Example, LeftOut, Row, RowCounts, Sides, Template, demonstrated, sides
from rlaif.training.forward import ForwardPath, compute, mean_of, select_forward_path
from rlaif.training.reward_model import Loaded, load
from rlaif.training.tokenize import Group, TextFormat, Tokens

FILES = ("samples.jsonl", *PAIR_FILES)
"""What is read of a folder."""

_PROMPTS = ("prompt", "instruction", "question", "query")
_REPLIES = ("response", "completion", "responses", "completions", "answer", "answers", "output", "outputs")
_CONVERSATIONS = ("messages", "conversations")
_TEXTS = ("response", "text", "content", "completion", "output", "generated_text")
"""Where a response stands in an object of a list of them."""
_SAMPLE = frozenset({"prompt", "text", "policy", "index"})
"""Columns that tell a record of samples.jsonl."""
_SINGLE_RESPONSE = Shape("unpaired", {"prompt": "prompt", "completion": "completion", "label": "label"})


_ROWS = 5_000
"""Rows whose responses are sorted by length and scored together; their rewards are then written."""
_MOST_COMPLETIONS = 8
"""Responses that share one prompt in a row: attention costs the square of a row's length, so more of them cost more."""


class Reply(NamedTuple):
    """One response."""

    given: Any
    """As it stands in the row."""
    example: Example | None
    """As texts; None where the row cannot be used."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A row: a prompt with responses to it."""

    id: str
    line: int
    prompt: Any
    """As it stands in the row; of dialogues what they share."""
    replies: tuple[Reply, ...]
    """Of preference data chosen and rejected."""
    paired: bool


class Columns(NamedTuple):
    """What the user calls columns; None looks for the usual names."""

    reply: str | None = None
    prompt: str | None = None


USUAL = Columns()


class _Form(NamedTuple):
    """How the rows of a file are read."""

    kind: Literal["pair", "replies", "messages", "text", "sample"]
    prompt: str = "prompt"
    reply: str = ""
    shape: Shape | None = None
    parts: tuple[str, ...] = ()
    """Other columns that are part of the prompt."""


def responses(
    path: str | Path,
    template: Template = "auto",
    row_counts: RowCounts | None = None,
    columns: Columns = USUAL,
) -> Iterator[Answered]:
    """The rows of a file, a run's folder or a `datasets` name. Raises UserError where there are no responses in it."""
    path, row_counts = file_of(path, FILES), row_counts or RowCounts()
    form, rows = first_known(path, lambda row: _form(row, columns))
    if form is None:
        _, first = next(rows, (0, None))
        raise UserError("holds no rows", where=path) if first is None else _unknown(path, first, columns)
    if form.shape is not None:
        form = form._replace(shape=settled(form.shape, path))
    if form.kind == "sample":
        rows, form = _with_prompts(rows, path), _Form("replies", "prompt", "response")
    for line, row in rows:
        row_counts.rows += 1
        yield _read_row(row, form, template, row_counts, f"{Path(path).name}:{line}", line)


def _form(row: object, columns: Columns) -> _Form | None:
    if not isinstance(row, dict):
        return None
    if columns != USUAL:
        return _response_form(
            row, (columns.prompt,) if columns.prompt else _PROMPTS, (columns.reply,) if columns.reply else _REPLIES
        )
    if row.keys() >= _SAMPLE:
        return _Form("sample")
    shape = recognise(row)
    sided = ("chosen" in row and "rejected" in row) or (shape is not None and shape.sided is not None)
    if not sided and (form := _response_form(row, _PROMPTS, _REPLIES)) is not None:
        return form
    conversation = next((name for name in _CONVERSATIONS if isinstance(row.get(name), (list, str))), None)
    if not sided and conversation is not None:
        return _Form("messages", reply=conversation)
    if shape is not None and shape.kind in ("preference", "dialogues"):
        return _Form("pair", shape.columns.get("prompt", ""), shape=shape)
    return _Form("text", reply="text") if "text" in row else None


def _response_form(row: Row, prompts: Sequence[str], replies: Sequence[str]) -> _Form | None:
    prompt = next((name for name in prompts if name in row), None)
    reply = next((name for name in replies if name in row and name != prompt), None)
    return (
        None
        if prompt is None or reply is None
        else _Form("replies", prompt, reply, parts=parts_of(map(str, row), prompt, (reply,)))
    )


def _unknown(path: str | Path, row: object, columns: Columns) -> UserError:
    names = tuple(map(str, row)) if isinstance(row, dict) else ()
    for name, flag in ((columns.reply, "--column"), (columns.prompt, "--prompt-column")):
        if name is not None and name not in names:
            return UserError(f"no column `{name}` ({flag})", where=path, hint=nearest(name, names))
    held = f"columns: {', '.join(names)}" if names else "the rows are not objects"
    needed = "needed: prompt with response or responses; or prompt, chosen, rejected; or messages; or text"
    hint = f"{needed}; --prompt-column and --column name others"
    return UserError(f"no responses that can be recognised ({held})", where=path, hint=hint)


def _with_prompts(rows: Rows, path: str | Path) -> Rows:
    """Samples as rows with the messages of their prompts."""
    beside = Path(path).expanduser().with_name("prompts.jsonl")
    if not beside.is_file():
        hint = "give the run's folder, or rows with `prompt` and `response`"
        raise UserError("samples name their prompts by id, and no prompts.jsonl lies beside", where=path, hint=hint)
    prompts = {prompt.id: prompt.messages for prompt in read_records(beside, Prompt)}
    for line, row in rows:
        try:
            sample = Sample.model_validate(row)
        except ValidationError as error:
            raise RecordError(path, line, error.errors()[0]["msg"]) from None
        if sample.prompt not in prompts:
            raise UserError(f"no prompt `{sample.prompt}` in prompts.jsonl", where=path, line=line)
        messages = [message.model_dump() for message in prompts[sample.prompt]]
        yield line, {"id": sample.id, "prompt": messages, "response": sample.text}


def _read_row(row: object, form: _Form, template: Template, row_counts: RowCounts, name: str, line: int) -> Answered:
    try:
        if not isinstance(row, dict):
            raise UnreadableValueError("type")
        row_id = row.get("id")
        name = str(row_id) if isinstance(row_id, (str, int)) and not isinstance(row_id, bool) and row_id != "" else name
        if form.kind == "pair":
            return _read_pair(row, form, template, name, line)
        if form.kind != "replies":
            return _read_whole(row, form, template, name, line)
        raw = _response_list(row.get(form.reply))
        prompt = _read_prompt(row, form)
    except UnreadableValueError as error:
        row_counts.leave_out(str(error), line)
        prompt = row.get(form.prompt) if isinstance(row, dict) else None
        blank = (Reply(None, None),) * (2 if form.kind == "pair" else 1)
        return Answered(name, line, prompt, blank, form.kind == "pair")
    replies = tuple(_read_response(prompt, response, template, row_counts, line) for response in raw)
    return Answered(name, line, prompt, replies, paired=False)


def _read_prompt(row: Row, form: _Form) -> Any:
    if form.prompt not in row:
        return None
    try:
        return joined_prompt(row, PromptColumns(form.prompt, form.parts))
    except InvalidPromptError:
        raise UnreadableValueError("prompt-part") from None


def _read_pair(row: Row, form: _Form, template: Template, name: str, line: int) -> Answered:
    assert form.shape is not None
    both, row = sides(row, form.shape, template), usual(row, form.shape)
    given = [row[form.shape.columns[side]] for side in ("chosen", "rejected")]
    texts = (both.chosen or "", both.rejected or "")
    replies = (Reply(*each) for each in zip(given, (_example(both, text, line) for text in texts), strict=True))
    prompt = row[form.prompt] if form.prompt else _plain_prompt(both)
    return Answered(name, line, prompt, tuple(replies), paired=True)


def _read_whole(row: Row, form: _Form, template: Template, name: str, line: int) -> Answered:
    """A conversation or a text that holds its response."""
    texts = demonstrated(row, Alone("messages" if form.kind == "messages" else "text", form.reply), template)
    text = texts.chosen or ""
    return Answered(name, line, _plain_prompt(texts), (Reply(text, _example(texts, text, line)),), paired=False)


def _response_list(value: Any) -> list[Any]:
    """The responses of a row: one, or those of a list. Messages in a list are one response."""
    if value is None:
        raise UnreadableValueError("missing")
    if not isinstance(value, list) or (value and isinstance(value[0], dict) and {"role", "from"} & value[0].keys()):
        return [value]
    if not value:
        raise UnreadableValueError("empty-reply")
    return value


def _read_response(prompt: Any, given: Any, template: Template, row_counts: RowCounts, line: int) -> Reply:
    text = given
    if isinstance(given, dict) and "role" not in given:
        text = next((given[name] for name in _TEXTS if isinstance(given.get(name), str)), None)
        # As for training: nothing in rated completions tells where the instruction ends, so they are messages.
        prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    try:
        texts = sides({"prompt": prompt, "completion": text, "label": True}, _SINGLE_RESPONSE, template)
    except UnreadableValueError as error:
        row_counts.leave_out(str(error), line)
        return Reply(given, None)
    return Reply(given, _example(texts, texts.chosen or "", line))


def _example(texts: Sides, text: str, line: int) -> Example:
    return Example("", texts.prompt, (text,), {}, line)


def _plain_prompt(texts: Sides) -> Any:
    return texts.prompt if isinstance(texts.prompt, str) else [turn._asdict() for turn in texts.prompt]


class Scored(NamedTuple):
    """A response with a reward."""

    reward: float
    length: int
    """Tokens."""


class Spread(Record):
    """How rewards are spread."""

    mean: float
    std: float
    """Of this file, not an estimate for more of its kind."""
    min: float
    quartile: float
    median: float
    third_quartile: float
    max: float


class Shown(Record):
    """A response and its reward."""

    id: str
    reward: float
    prompt: str
    """What was said last before it."""
    response: str


class Figures(Record):
    """What the rewards of a file come to."""

    model: str
    data: str
    rows: int
    """Rows read."""
    responses: int
    """Responses with a reward, those of pairs included."""
    left_out: tuple[LeftOut, ...]
    """Rows or responses without a reward, most frequent reason first."""
    truncated: int
    """Responses whose prompt lost its beginning, as both together are longer than the limit."""
    rewards: Spread
    length_correlation: float | None
    """Pearson's, of reward and tokens of the response."""
    accuracy: Estimate | None
    """Share of pairs whose chosen response has the higher reward; equal ones count half. Only of preference data."""
    margin: float | None
    """Mean of the rewards of chosen less those of rejected responses."""
    centered_by: float
    """What was taken off all rewards: the mean over the demonstrations that the model was centred on."""
    highest: tuple[Shown, ...]
    lowest: tuple[Shown, ...]


class ScoreStats:
    """Counts rewards as they come in; of the texts it keeps the extremes only."""

    def __init__(self, top: int) -> None:
        self.rewards, self.lengths, self.margins = array("d"), array("d"), array("d")
        self._top, self._extremes = top, _Extremes(top)

    def add(self, row: Answered, scored: Sequence[Scored | None]) -> None:
        """Take in the responses of a row."""
        for reply, result in zip(row.replies, scored, strict=True):
            if result is not None and reply.example is not None:
                self.rewards.append(result.reward)
                self.lengths.append(result.length)
                self._extremes.add(result.reward, row.id, reply.example)
        if row.paired and scored[0] is not None and scored[1] is not None:
            self.margins.append(scored[0].reward - scored[1].reward)

    def figures(self, model: str, data: str, row_counts: RowCounts, centered_by: float) -> Figures:
        """All of it as a record."""
        accuracy = None
        if self.margins:
            share = wilson(sum(hits(self.margins)), len(self.margins))
            accuracy = Estimate(value=share.value, low=share.low, high=share.high, pairs=len(self.margins))
        return Figures(
            model=model,
            data=data,
            rows=row_counts.rows,
            responses=len(self.rewards),
            left_out=row_counts.reasons(),
            truncated=row_counts.truncated,
            rewards=_spread_of(self.rewards),
            length_correlation=_correlation(self.rewards, self.lengths),
            accuracy=accuracy,
            margin=mean(self.margins) if self.margins else None,
            centered_by=centered_by,
            highest=self._extremes.highest(),
            lowest=self._extremes.lowest(),
        )


class _Extremes:
    """The highest and the lowest few; of equals those that came first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._heaps: tuple[list[tuple[float, int, Shown]], list[tuple[float, int, Shown]]] = ([], [])

    def add(self, reward: float, name: str, example: Example) -> None:
        self._count += 1
        for heap, key in zip(self._heaps, (reward, -reward), strict=True):
            if len(heap) < self._most:
                heapq.heappush(heap, (key, -self._count, _shown(reward, name, example)))
            elif heap and key > heap[0][0]:
                heapq.heapreplace(heap, (key, -self._count, _shown(reward, name, example)))

    def highest(self) -> tuple[Shown, ...]:
        return tuple(shown for _, _, shown in sorted(self._heaps[0], key=lambda entry: entry[:2], reverse=True))

    def lowest(self) -> tuple[Shown, ...]:
        return tuple(shown for _, _, shown in sorted(self._heaps[1], key=lambda entry: entry[:2], reverse=True))


def _shown(reward: float, name: str, example: Example) -> Shown:
    prompt = example.prompt if isinstance(example.prompt, str) else example.prompt[-1].content
    return Shown(id=name, reward=reward, prompt=prompt, response=example.completions[0])


def _spread_of(rewards: Sequence[float]) -> Spread:
    import numpy as np

    low, quartile, median, third, high = (float(value) for value in np.percentile(rewards, [0, 25, 50, 75, 100]))
    return Spread(
        mean=mean(rewards),
        std=float(np.std(rewards)),
        min=low,
        quartile=quartile,
        median=median,
        third_quartile=third,
        max=high,
    )


def _correlation(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    import numpy as np

    if len(xs) < 3 or min(xs) == max(xs) or min(ys) == max(ys):
        return None
    return float(np.corrcoef(xs, ys)[0, 1])


@torch.no_grad()
def rewards_of(
    model: Any,
    groups: Sequence[Group],
    *,
    tokens: int = 8192,
    forward_path: ForwardPath | None = None,
    centered: bool = True,
    narrow: bool = False,
) -> list[float]:
    """The reward of every completion, in the order of the groups, which `forward_path` computes.

    `tokens` is what fits into memory at once. A model that was centred has its mean taken off, unless `centered` is
    false. `narrow` computes in bfloat16, and keeps weights and rewards in float32, as the training did.
    """
    if not groups:
        return []
    shared = sorted(groups, key=lambda group: -len(group.completions))
    forward_path = forward_path or select_forward_path(
        model, shared[:2], "rewards"
    )  # those of several responses show whether sharing works
    device = next(model.parameters()).device
    by_group: dict[int, list[float]] = {}
    was_training = model.training
    model.eval()
    for part in split(groups, tokens, forward_path.layout):
        some = [groups[at] for at in part]
        with torch.autocast(device.type, torch.bfloat16, enabled=narrow):
            rewards = iter(
                compute(model, lay_out(some, forward_path.layout).to(device), forward_path, "rewards").tolist()
            )
        for at, group in zip(part, some, strict=True):
            by_group[at] = list(itertools.islice(rewards, len(group.completions)))
    model.train(was_training)
    mean = mean_of(model) if centered else 0.0
    return [reward - mean for at in range(len(groups)) for reward in by_group[at]]


def rewards_apart(model: Any, singles: Sequence[Group], *, tokens: int = 8192, **options: Any) -> list[float]:
    """The rewards of groups of one completion each, in their order; `options` go to `rewards_of`.

    Equal ones are computed once, and those of one prompt share it.
    """
    equal: dict[tuple[bytes, bytes], list[int]] = {}
    for at, single in enumerate(singles):
        (completion,) = single.completions
        equal.setdefault((_bytes(single.prompt), _bytes(completion)), []).append(at)
    of_prompt: dict[bytes, list[int]] = {}
    for (prompt, _), places in equal.items():
        of_prompt.setdefault(prompt, []).append(places[0])
    parts = [part for firsts in of_prompt.values() for part in _pack_completions(firsts, singles, tokens)]
    groups = [
        Group(singles[part[0]].id, singles[part[0]].prompt, tuple(singles[at].completions[0] for at in part))
        for part in parts
    ]
    rewards = rewards_of(model, groups, tokens=tokens, **options)
    by_first = dict(zip(itertools.chain.from_iterable(parts), rewards, strict=True))
    by_place = {at: by_first[places[0]] for places in equal.values() for at in places}
    return [by_place[at] for at in range(len(singles))]


class Apart:
    """`rewards_apart` call after call, for one model: how it computes them is found out once, and once more with the
    first prompt of several replies, as only those show whether sharing works."""

    def __init__(self, loaded: Loaded, tokens: int) -> None:
        self._model, self._tokens, self._narrow = loaded.model, tokens, loaded.narrow
        self._forward_paths: dict[bool, ForwardPath] = {}
        """By whether replies that share a prompt were tried."""

    def __call__(self, singles: Sequence[Group]) -> list[float]:
        """The rewards of groups of one completion each, in their order."""
        if not singles:
            return []
        return rewards_apart(
            self._model, singles, tokens=self._tokens, forward_path=self._forward_path(singles), narrow=self._narrow
        )

    def _forward_path(self, singles: Sequence[Group]) -> ForwardPath:
        if True in self._forward_paths:
            return self._forward_paths[True]
        of_prompt: dict[tuple[int, ...], dict[tuple[int, ...], None]] = {}
        for single in singles:
            of_prompt.setdefault(tuple(single.prompt), {})[tuple(single.completions[0])] = None
        groups = sorted(
            (Group("", prompt, tuple(several)) for prompt, several in of_prompt.items()),
            key=lambda group: -len(group.completions),
        )
        shares = len(groups[0].completions) > 1
        if shares not in self._forward_paths:
            self._forward_paths[shares] = select_forward_path(self._model, groups[:2], "rewards")
        return self._forward_paths[shares]


def _bytes(ids: Sequence[int]) -> bytes:
    return array("i", ids).tobytes()


def _pack_completions(places: Sequence[int], singles: Sequence[Group], tokens: int) -> Iterator[list[int]]:
    """Groups of one prompt in parts of similar length that are computed as one row each."""
    part: list[int] = []
    used = 0
    for at in sorted(places, key=lambda at: len(singles[at].completions[0])):
        size = len(singles[at].completions[0])
        if part and (len(part) == _MOST_COMPLETIONS or used + size > tokens):
            yield part
            part = []
        used = used + size if part else singles[at].tokens
        part.append(at)
    yield part


def score(
    name: str,
    data: str | Path,
    *,
    output: Path | None = None,
    columns: Columns = USUAL,
    template: Template | None = None,
    template_options: Mapping[str, Any] | None = None,
    max_length: int | None = None,
    tokens: int = 8192,
    limit: int | None = None,
    top: int = 5,
    centered: bool = True,
    device: str = "auto",
    on_rows: Callable[[int], None] | None = None,
) -> Figures:
    """Score the responses of a file by the reward model `name`, write a row for each to `output`, and sum them up.

    `template`, `template_options` and `max_length` are those of the model's training unless they are given. Raises
    UserError for what the user can fix, ModelError where a reward is no number.
    """
    loaded = load(name, device)
    row_counts, learned = RowCounts(), loaded.learned.asked(template)
    rows = responses(data, learned.reading, row_counts, columns)
    limits = loaded.tokens(max_length, template_options)
    scorer = _Scorer(loaded, limits, learned, row_counts, tokens, centered)
    tally = ScoreStats(top)
    with contextlib.ExitStack() as stack:
        file = None
        if output is not None:
            draft = stack.enter_context(draft_of(output))
            # Half a surrogate pair, which UTF-8 has no bytes for, becomes the escape that JSON has for it.
            file = stack.enter_context(draft.open("w", encoding="utf-8", errors="backslashreplace", newline="\n"))
        while chunk := list(itertools.islice(rows, min(_ROWS, (limit or sys.maxsize) - row_counts.rows))):
            for row, scored in zip(chunk, scorer.scored(chunk), strict=True):
                tally.add(row, scored)
                if file is not None:
                    file.writelines(
                        json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in _output_rows(row, scored)
                    )
            if on_rows is not None:
                on_rows(row_counts.rows)
        if not tally.rewards:
            why = "; ".join(f"{left.count:,} where {left.what}" for left in row_counts.reasons()[:3])
            hint = "raise --max-length" if "too-long" in row_counts.left_out else ""
            raise UserError(f"no response in {row_counts.rows:,} rows can be scored: {why}", where=data, hint=hint)
    return tally.figures(name, str(data), row_counts, mean_of(loaded.model) if centered else 0.0)


class _Scorer:
    """Rows in, their rewards out; how the model computes them is found out once."""

    def __init__(
        self, loaded: Loaded, limits: Tokens, learned: TextFormat, row_counts: RowCounts, tokens: int, centered: bool
    ) -> None:
        self._model, self._limits, self._learned, self._row_counts = loaded.model, limits, learned, row_counts
        self._options: dict[str, Any] = {"tokens": tokens, "centered": centered, "narrow": loaded.narrow}

    def scored(self, rows: Sequence[Answered]) -> list[list[Scored | None]]:
        """The rewards of each row's responses; None for one that cannot be scored."""
        places = [(at, number) for at, row in enumerate(rows) for number in range(len(row.replies))]
        examples = (
            dataclasses.replace(example, id=f"{at} {number}")
            for at, number in places
            if (example := self._as_trained(rows[at].replies[number].example)) is not None
        )
        groups = {example.id: group for example, group in self._limits.with_examples(examples, self._row_counts)}
        rewards = rewards_apart(self._model, list(groups.values()), **self._options)
        for key, reward in zip(groups, rewards, strict=True):
            if not math.isfinite(reward):
                row = rows[int(key.partition(" ")[0])]
                raise ModelError(f"the reward of `{row.id}` (line {row.line}) is {reward}: the model is broken")
        scored = {
            key: Scored(reward, len(group.completions[0]))
            for (key, group), reward in zip(groups.items(), rewards, strict=True)
        }
        return [[scored.get(f"{at} {number}") for number in range(len(row.replies))] for at, row in enumerate(rows)]

    def _as_trained(self, example: Example | None) -> Example | None:
        """A conversation as text, for a model that learned prompts and responses as text."""
        if example is None or isinstance(example.prompt, str) or self._learned.template != "text":
            return example
        converted = self._learned.example(example.id, example.prompt, example.completions[0])
        if converted is None:
            self._row_counts.leave_out("no-form", example.line)
            return None
        return dataclasses.replace(converted, line=example.line)


def _output_rows(row: Answered, scored: Sequence[Scored | None]) -> Iterator[dict[str, Any]]:
    """What is written of a row: one line of a pair, else one of each response."""
    rewards = [None if result is None else result.reward for result in scored]
    head = {"id": row.id, "prompt": row.prompt}
    if row.paired:
        chosen, rejected = (reply.given for reply in row.replies)
        pair = {"chosen": chosen, "rejected": rejected}
        yield {**head, **pair, "chosen_reward": rewards[0], "rejected_reward": rewards[1]}
        return
    for at, (reply, reward) in enumerate(zip(row.replies, rewards, strict=True)):
        number = {"index": at} if len(row.replies) > 1 else {}
        yield {**head, **number, "response": reply.given, "reward": reward}
