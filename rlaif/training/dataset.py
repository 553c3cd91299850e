"""From a data file to what a trainer takes: groups to train on, groups held out, and a report on the rows.

The rows are preference pairs, judged responses (KTO) or demonstrations (SFT). Texts follow TRL's convention: plain
strings are raw text, joined as they stand; lists of messages go through the chat template of the model. The setting
`template` changes that: `chat` parses dialogues that are written as one text into turns, `plain` writes messages as
such a dialogue. Rated completions of an instruction (UltraFeedback) count as messages, for nothing in their texts
tells a model where the instruction ends.

A row that no trainer can use is left out and counted under the data rule that it breaks: the same rows that
`rlaif data export` leaves out.

The holdout is by prompt, so that all pairs of a prompt stay on one side, and by hash, so that the same prompts are held
out whatever the seed. `rlaif data export --split` uses another hash: training data that it wrote can be split again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import random
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from rlaif.data.checks import name_findings, notes_of, quoted
from rlaif.data.conversations import CUE, UnreadableValueError
from rlaif.data.files import Rows
from rlaif.data.formats import Shape, column_of, first_known, is_known, recognise
from rlaif.data.prompts import PromptColumns, parts_of
from rlaif.errors import UserError, nearest
from rlaif.records import Record, content_id
from rlaif.store import sha256_of
from rlaif.text import hashed
from rlaif.training.examples import (
    Alone,
    Example,
    LearnedTurns,
    LeftOut,
    Row,
    RowCounts,
    Sides,
    Template,
    decided,
    demonstrated,
    every_reply,
    sides,
    values,
)
from rlaif.training.tokenize import Forms, Group, TextFormat, Tokens

F = TypeVar("F")

DataKind = Literal["pairs", "judged", "demonstrations"]
RowCallback = Callable[[int], None]
"""Takes the number of rows read so far, every thousand rows."""

_STEP = 1000

PAIR_FILES = ("pairs.jsonl", "pairs.parquet", "train.parquet", "train.jsonl")
"""What is read of a folder: of a run's, and of one that `rlaif data export` wrote."""
DEMONSTRATION_FILES = ("sft.jsonl", *PAIR_FILES)

_OTHER_COLUMNS: tuple[tuple[str, ...], tuple[str, ...]] = ((), ("output", "answer"))
"""What stands beside an instruction or a question (Alpaca's form)."""
_LABELS: Mapping[bool, Mapping[str, float]] = {True: {"label": 1.0}, False: {"label": 0.0}}


def pairs(path: str | Path, template: Template = "auto", row_counts: RowCounts | None = None) -> Iterator[Example]:
    """Preference pairs from a file, a run's folder or a `datasets` name, in any shape that `rlaif data check` knows.

    Raises UserError for a file that holds none, and where a `probability` is not one.
    """
    row_counts, path = row_counts or RowCounts(), file_of(path, PAIR_FILES)
    shape, rows = _open_rows(path, recognise, _unknown_pairs, row_counts)
    if shape.kind == "unpaired":
        hint = "train on them with KTO, or give pairs"
        raise UserError("the rows are single replies, not pairs", where=path, hint=hint)
    for line, row, texts in _usable_rows(rows, partial(sides, shape=shape, template=template), row_counts, path):
        assert texts.chosen is not None and texts.rejected is not None  # every shape of pairs has both
        if texts.chosen_cut or texts.rejected_cut:
            row_counts.leave_out("cut-off", line)
            continue
        replies = (texts.chosen, texts.rejected)
        yield Example(_row_name(row, path, line), texts.prompt, replies, values(row, shape, path, line), line)


def judged(path: str | Path, template: Template = "auto", row_counts: RowCounts | None = None) -> Iterator[Example]:
    """Replies with a label, for KTO: unpaired rows, and pairs as a good reply and a bad one.

    A reply that stands on the same side in several pairs is one example. Raises UserError for a file without any.
    """
    row_counts, path, seen = row_counts or RowCounts(), file_of(path, PAIR_FILES), set[int]()
    shape, rows = _open_rows(path, recognise, _unknown_pairs, row_counts)
    paired = shape.kind != "unpaired"
    for line, row, texts in _usable_rows(rows, partial(decided, shape=shape, template=template), row_counts, path):
        name = _row_name(row, path, line)
        for text, good, cut in (
            (texts.chosen, True, texts.chosen_cut),
            (texts.rejected, False, texts.rejected_cut),
        ):
            if text is None:
                continue
            if cut:
                row_counts.leave_out("cut-off", line)
                continue
            if paired and not _first_time(seen, texts.prompt, text, good):
                row_counts.leave_out("repeated", line)
                continue
            example_id = f"{name}:{'chosen' if good else 'rejected'}" if paired else name
            yield Example(example_id, texts.prompt, (text,), _LABELS[good], line)


def demonstrations(
    path: str | Path, template: Template = "auto", row_counts: RowCounts | None = None, learned: LearnedTurns = "last"
) -> Iterator[Example]:
    """Replies to imitate, for SFT: the last of every conversation, or all of them.

    From `messages` (the last turn is the reply), `prompt` with `completion` or `response`, or `text` (raw, continued
    from the beginning-of-sequence token); of preference data the chosen reply, once where it stands in several pairs.
    Raises UserError for a file that holds none of these.
    """
    row_counts, path, seen = row_counts or RowCounts(), file_of(path, DEMONSTRATION_FILES), set[int]()
    form: Shape | Alone
    form, rows = _open_rows(path, _demonstration, _unknown_demonstration, row_counts)
    turned: Template = "auto" if template == "plain" and learned == "all" else template
    if isinstance(form, Shape):
        read_texts = partial(decided, shape=form, template=turned)
    else:
        read_texts = partial(demonstrated, form=form, template=turned, learned=learned)
    for line, row, texts in _usable_rows(rows, read_texts, row_counts, path):
        name = _row_name(row, path, line)
        if texts.chosen is None:
            row_counts.leave_out("undesirable", line)
            continue
        if texts.chosen_cut:
            row_counts.leave_out("cut-off", line)
            continue
        row_counts.conversations += 1
        row_counts.replies += 1
        if not isinstance(texts.prompt, str):
            row_counts.replies += sum(turn.role == "assistant" for turn in texts.prompt)
        *earlier, last = every_reply(texts, template) if learned == "all" else (texts,)
        for at, turn in enumerate(earlier, start=1):
            # Logs hold a conversation again and again as it grows: what stood before is learned once.
            if _first_time(seen, turn.prompt, turn.chosen):
                yield Example(f"{name}:{at}", turn.prompt, (turn.chosen or "",), {}, line)
            else:
                row_counts.leave_out("repeated", line)
        new = _first_time(seen, last.prompt, last.chosen)
        if new or (not isinstance(form, Shape) and learned == "last"):
            yield Example(name, last.prompt, (last.chosen or "",), {}, line)
        else:
            row_counts.leave_out("repeated", line)


def file_of(path: str | Path, names: Sequence[str]) -> str | Path:
    """The file that is meant: the first of these names in a folder. Raises UserError for a folder with none of them."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return path
    file = next((folder / name for name in names if (folder / name).is_file()), None)
    if file is None:
        message = f"the folder holds no {', '.join(names[:-1])} or {names[-1]}"
        raise UserError(message, where=path, hint="give a file, or the folder of a finished run")
    return file


def _open_rows(
    path: str | Path,
    form_of: Callable[[object], F | None],
    unknown: Callable[[tuple[str, ...]], tuple[str, str]],
    row_counts: RowCounts,
) -> tuple[F, Rows]:
    """The form of a file's rows by one of the first, and all of them. Raises UserError where it has no known form."""
    form, rows = first_known(path, form_of)
    if form is None:
        _, first = next(rows, (0, None))
        if first is None:
            raise UserError("holds no rows", where=path)
        message, hint = unknown(tuple(map(str, first)) if isinstance(first, dict) else ())
        raise UserError(message, where=path, hint=hint)
    if isinstance(form, Shape):
        for name, wanted in form.misnamed.items():
            row_counts.note(f"the column `{name}` is read as `{wanted}`")
        for note in notes_of(form):
            row_counts.note(note)
    if isinstance(form, Alone):
        if form.prompt.parts:
            row_counts.note(f"the prompt is {quoted((form.prompt.main, *form.prompt.parts))} together")
        if form.unused:
            row_counts.note(f"columns not used: {quoted(form.unused)}")
    return form, rows


def _demonstration(row: object) -> Shape | Alone | None:
    """How demonstrations are read, from one row of a file."""
    if not isinstance(row, dict):
        return None
    shape, names = recognise(row), list(map(str, row))
    if shape is not None and (shape.sided is not None or shape.kind == "unpaired"):
        return shape
    if "chosen" not in row and (form := _single_form(row)) is not None:
        return form
    if shape is not None or "text" not in row or "role" in row:  # a role: the text is one message of a conversation
        return shape
    return Alone("text", "text", label=column_of("label", names), unused=_unused(row, "text"))


def _single_form(row: Row) -> Alone | None:
    names = list(map(str, row))
    main = next((name for name in ("prompt", "instruction", "question", "query") if name in row), None)
    if main is not None:
        reply = next(
            (name for name in ("completion", "response", *_OTHER_COLUMNS[main != "prompt"]) if name in row), None
        )
        if reply is not None:
            prompt = PromptColumns(main, parts_of(names, main, (reply,)))
            return Alone("reply", reply, prompt, unused=_unused(row, reply, main, *prompt.parts))
    column = next((name for name in ("messages", "conversations") if isinstance(row.get(name), (list, str))), None)
    return None if column is None else Alone("messages", column, unused=_unused(row, column))


def _unused(row: Row, *read: str) -> tuple[str, ...]:
    """Columns that may carry meaning, as a rating does, and are not read."""
    names = (name for name in map(str, row) if name not in read and not is_known(name))
    return tuple(name for name in names if row[name] is not None and row[name] != "" and row[name] != [])


def _unknown_pairs(columns: tuple[str, ...]) -> tuple[str, str]:
    (finding,) = name_findings(None, columns, 1)
    return finding.what, finding.hint


def _unknown_demonstration(columns: tuple[str, ...]) -> tuple[str, str]:
    wanted = ("messages", "prompt", "completion", "response", "text", "chosen", "rejected")
    hints = {name: close for name in columns if (close := nearest(name, wanted)).startswith("did")}
    suggestions = "".join(f"`{name}`: {hint} " for name, hint in hints.items() if name not in wanted)
    held = f"columns: {', '.join(columns)}" if columns else "the rows are not objects"
    needed = "needed: messages; or prompt, completion; or prompt, response; or text; or preference data"
    return f"these are no demonstrations that are known ({held})", suggestions + needed


def _usable_rows(
    rows: Rows, read_texts: Callable[[Row], Sides], row_counts: RowCounts, path: str | Path
) -> Iterator[tuple[int, Row, Sides]]:
    """The rows that a trainer can use, with their texts; the others are counted. UserError where none is left."""
    usable = 0
    for line, row in rows:
        row_counts.rows += 1
        try:
            if not isinstance(row, dict):
                raise UnreadableValueError("type")
            texts = read_texts(row)
        except UnreadableValueError as error:
            row_counts.leave_out(str(error), line)
            continue
        usable += 1
        yield line, row, texts
    if not usable:
        raise row_counts.nothing(path)


def _row_name(row: Row, path: str | Path, line: int) -> str:
    """The row's own id, else file and line."""
    row_id = row.get("id")
    usable = (isinstance(row_id, str) and row_id) or (isinstance(row_id, int) and not isinstance(row_id, bool))
    return str(row_id) if usable else f"{Path(path).name}:{line}"


def _first_time(seen: set[int], *parts: object) -> bool:
    """Whether these were not seen before."""
    key = hashed(repr(parts))
    repeated = key in seen
    seen.add(key)
    return not repeated


class Prepared(NamedTuple):
    """What a trainer takes."""

    train: list[Group]
    held: list[Group]
    """To evaluate on; perhaps none."""
    data_hash: str
    """Of what the files hold: equal data, equal hash."""
    report: DatasetReport
    learned: TextFormat = TextFormat()
    """The form of the texts."""


class _ReadOptions(NamedTuple):
    """How the rows of a file are read."""

    kind: DataKind
    template: Template
    turns: LearnedTurns

    def examples(self, path: str | Path, row_counts: RowCounts) -> Iterator[Example]:
        """The rows as texts."""
        if self.kind == "demonstrations":
            return demonstrations(path, self.template, row_counts, self.turns)
        return (pairs if self.kind == "pairs" else judged)(path, self.template, row_counts)


class _Read(NamedTuple):
    """The groups of one file."""

    path: str | Path
    groups: list[Group]
    prompts: array[int]
    """64 bits of each group's prompt."""
    hash: str
    row_counts: RowCounts
    learned: TextFormat


def prepare(
    data: str | Path,
    tokens: Tokens,
    kind: DataKind = "pairs",
    *,
    template: Template = "auto",
    holdout: float = 0.0,
    held_data: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    turns: LearnedTurns = "last",
    on_rows: RowCallback | None = None,
) -> Prepared:
    """Read a file, a run's folder or a `datasets` name, and tokenize it.

    `holdout` is the share of the prompts that is held out, unless `held_data` names a file for that. `limit` takes only
    so many examples (of a pair, KTO makes two). `turns` says which replies of a demonstration are learned. `seed`
    decides which mismatched completion each group of `judged` data gets. Raises UserError where nothing is left to
    train on.
    """
    import numpy as np

    options = _ReadOptions(kind, template, turns)
    read = _read(data, tokens, options, limit, on_rows)
    update: dict[str, Any]
    report = dataset_report(read.row_counts, read.path, read.groups, tokens.max_length, turns)
    if held_data is None:
        train, held = _split_holdout(read, holdout)
        data_hash, update = read.hash, {"held": len(held)}
    else:
        other = _read(held_data, tokens, options, None, on_rows)
        train, held, data_hash = read.groups, other.groups, content_id(read.hash, other.hash)
        evaluation = dataset_report(other.row_counts, other.path, held, tokens.max_length, turns)
        shared = np.isin(np.frombuffer(other.prompts, np.uint64), np.frombuffer(read.prompts, np.uint64))
        update = {"evaluation": evaluation, "shared": int(shared.sum())}
    if kind == "judged":
        # Those of the held-out groups come from the training data too, for one prompt alone may be held out.
        train, held = (_with_mismatched(groups, train, seed, tokens.max_length, read.path) for groups in (train, held))
    return Prepared(train, held, data_hash, report.model_copy(update=update), read.learned)


def _read(
    data: str | Path, tokens: Tokens, options: _ReadOptions, limit: int | None, on_rows: RowCallback | None
) -> _Read:
    path = file_of(data, DEMONSTRATION_FILES if options.kind == "demonstrations" else PAIR_FILES)
    file, row_counts = Path(path).expanduser(), RowCounts()
    digest = None if file.is_file() else hashlib.sha256()
    examples = itertools.islice(
        _report_progress(options.examples(path, row_counts), digest, row_counts, on_rows), limit
    )
    groups: list[Group] = []
    prompts, forms = array("Q"), Forms(tokens.template.marks[0])
    for example, group in tokens.with_examples(examples, row_counts):
        if options.kind == "judged" and groups and _same_tokens(groups[-1], group, example):
            groups.pop()
            prompts.pop()
            row_counts.leave_out("same-tokens", example.line)
            continue
        groups.append(group)
        prompts.append(_prompt_hash(example, options.turns))
        forms.add(example)
    if not groups:
        raise row_counts.nothing(path)
    data_hash = sha256_of(file) if digest is None else digest.hexdigest()
    return _Read(path, groups, prompts, data_hash, row_counts, forms.learned(tokens.template_options))


def _same_tokens(one: Group, other: Group, example: Example) -> bool:
    """Whether the two replies of a pair, the good one and the bad one, are the same tokens."""
    pair, _, side = example.id.rpartition(":")
    same = one.prompt == other.prompt and one.completions == other.completions
    return side == "rejected" and one.id == f"{pair}:chosen" and same


def _report_progress(
    examples: Iterator[Example], digest: Any, row_counts: RowCounts, on_rows: RowCallback | None
) -> Iterator[Example]:
    """The examples; their texts go into the digest, if there is one, and `on_rows` hears how many rows are read."""
    next_report = _STEP
    for example in examples:
        if digest is not None:
            digest.update(repr((example.prompt, example.completions, example.values)).encode())
        if on_rows is not None and row_counts.rows >= next_report:
            on_rows(row_counts.rows)
            next_report = row_counts.rows - row_counts.rows % _STEP + _STEP
        yield example


def _prompt_hash(example: Example, turns: LearnedTurns) -> int:
    """64 bits of a prompt; of a text that continues nothing, of the text itself. Where all replies of a conversation
    are learned, of what stands before the first one: they stay on one side."""
    prompt = example.prompt or example.completions[0]
    if turns == "all":
        if isinstance(prompt, str):
            prompt = prompt.partition(CUE)[0]
        else:
            prompt = tuple(itertools.takewhile(lambda turn: turn.role != "assistant", prompt))
    parts = [prompt] if isinstance(prompt, str) else [part for turn in prompt for part in turn]
    return hashed("\0".join(("held out", *parts)))


def _split_holdout(read: _Read, share: float) -> tuple[list[Group], list[Group]]:
    """The groups to train on and those of the prompts with the smallest hashes, at least one if any are asked for."""
    import numpy as np

    if not 0 <= share < 1:
        raise UserError(f"holdout is {share}, not a share from 0 to below 1")
    if share == 0:
        return read.groups, []
    prompts = np.frombuffer(read.prompts, dtype=np.uint64)
    distinct = np.unique(prompts)
    if len(distinct) < 2:
        hint = "set `holdout: 0`, or name other data to evaluate on with `held_data`"
        raise UserError("all rows have the same prompt, so that none can be held out", where=read.path, hint=hint)
    last = distinct[min(max(round(share * len(distinct)), 1), len(distinct) - 1) - 1]
    held = (prompts <= last).tolist()
    train = [group for group, out in zip(read.groups, held, strict=True) if not out]
    return train, [group for group, out in zip(read.groups, held, strict=True) if out]


def _with_mismatched(
    groups: list[Group], pool: list[Group], seed: int, limit: int | None, path: str | Path
) -> list[Group]:
    """Each group with the completion of another prompt as its second, from which KTO estimates a divergence.

    It is that of the next one of `pool`, in an order shuffled by the seed, that has another prompt. It may be cut to
    the limit at its end: it is no example to learn from, only its likelihood counts.
    """
    if all(group.prompt == pool[0].prompt for group in pool):
        raise UserError("KTO needs replies to two prompts at least", where=path, hint="give rows of several prompts")
    order = list(range(len(pool)))
    random.Random(seed).shuffle(order)

    def with_other(at: int, group: Group) -> Group:
        next_ones = (pool[order[(at + step) % len(order)]] for step in range(len(order)))
        other = next(candidate for candidate in next_ones if candidate.prompt != group.prompt)
        room = None if limit is None else limit - len(group.prompt)
        return dataclasses.replace(group, completions=(*group.completions, other.completions[0][:room]))

    return [with_other(at, group) for at, group in enumerate(groups)]


class DatasetReport(Record):
    """What became of the rows of one file."""

    path: str
    rows: int
    """Rows read."""
    kept: int
    """Groups for the trainer; of a pair, KTO makes two."""
    held: int = 0
    """Of these, the ones that are set aside to evaluate on."""
    left_out: tuple[LeftOut, ...]
    """Most frequent reason first."""
    truncated: int
    """Groups that were cut to `max_length`."""
    max_length: int | None
    merged: int
    """Groups whose prompt lost its last tokens, as what follows makes other tokens of them."""
    ended: int
    """Completions that got an end-of-sequence token, for neither they nor the chat template had one."""
    separate: int = 0
    """Rows whose prompt and replies are tokenized apart, as they share more than a token or two."""
    unended: int = 0
    """Replies that held an end token as text at their end, which was cut off."""
    apart: int = 0
    """Groups whose prompt the chat template writes otherwise once a reply follows: the reply is its own text."""
    thoughts: int = 0
    """Rows with a reply whose thinking the chat template leaves out: it is learned with it."""
    thoughtless: int = 0
    """Groups with a reply that has no thought, where the chat template's cue begins one."""
    soft: int
    """Pairs with a probability strictly between 0 and 1."""
    prompt_median: int
    prompt_p95: int
    completion_median: int
    completion_p95: int
    notes: tuple[str, ...]
    conversations: int = 0
    """Demonstrations, of which each may hold several replies."""
    replies: int = 0
    """Their replies, those in their prompts included."""
    learned: Literal["last", "all"] = "last"
    """Which of them are learned."""
    evaluation: DatasetReport | None = None
    """On the separate file to evaluate on, if there is one."""
    shared: int = 0
    """Groups of that file whose prompt is trained on as well."""

    def lines(self) -> list[str]:
        """A few lines for people."""
        trained = f"{self.kept - self.held:,} to train on, {self.held:,} held out"
        lines = [f"{self.path}: {self.rows:,} rows, {trained}"]
        if self.left_out:
            reasons = "; ".join(left.describe() for left in self.left_out[:4])
            more = f"; {len(self.left_out) - 4} more reasons" if len(self.left_out) > 4 else ""
            lines.append(f"left out: {reasons}{more}")
        prompt = f"prompts {self.prompt_median:,} (95%: up to {self.prompt_p95:,})"
        lines.append(f"tokens: {prompt}, completions {self.completion_median:,} ({self.completion_p95:,}), medians")
        if self.replies > self.conversations:
            last = "the last of each is learned (`turns: all` learns every one)"
            which = last if self.learned == "last" else "every one is learned"
            lines.append(f"{self.replies:,} replies in {self.conversations:,} conversations; {which}")
        issues = self._issues()
        lines += [", ".join(issues)] if issues else []
        lines += list(self.notes[:3])
        if self.evaluation is not None:
            rows = f"{self.evaluation.rows:,} rows, {self.evaluation.kept:,} to evaluate on"
            also = f", of {self.shared:,} the prompt is trained on too" if self.shared else ""
            lines.append(f"{self.evaluation.path}: {rows}{also}")
        return lines

    def _issues(self) -> list[str]:
        """The counts that a line names only where they are not 0."""
        cut = self.truncated / max(self.kept, 1)
        counts = {
            f"{self.truncated:,} cut to {self.max_length} tokens ({cut:.1%})": self.truncated,
            f"{self.soft / max(self.kept, 1):.0%} soft labels": self.soft,
            f"{self.merged:,} where tokens merge across the end of the prompt": self.merged,
            f"{self.separate:,} whose prompt and replies are tokenized apart": self.separate,
            f"end-of-sequence token added to {self.ended:,} completions": self.ended,
            f"end token at the end of {self.unended:,} replies cut off": self.unended,
            f"{self.apart:,} where the chat template writes the prompt otherwise once a reply follows (the reply's own "
            "text is learned)": self.apart,
            f"{self.thoughtless:,} where a reply has no thought and the chat template's cue begins one (the reply is "
            "learned right behind the cue: `template_options` may switch thinking off)": self.thoughtless,
            f"{self.thoughts:,} where the chat template leaves out what a reply thinks (it is learned with it)": (
                self.thoughts
            ),
        }
        return [text for text, count in counts.items() if count]


def dataset_report(
    row_counts: RowCounts,
    path: str | Path,
    groups: Sequence[Group],
    max_length: int | None,
    learned: Literal["last", "all"] = "last",
) -> DatasetReport:
    """What was counted, as a record."""
    prompt_median, prompt_p95 = _median_and_p95(row_counts.prompts)
    completion_median, completion_p95 = _median_and_p95(row_counts.completions)
    return DatasetReport(
        path=str(path),
        rows=row_counts.rows,
        kept=len(groups),
        left_out=row_counts.reasons(),
        truncated=row_counts.truncated,
        max_length=max_length,
        merged=row_counts.merged,
        ended=row_counts.ended,
        separate=row_counts.separate,
        unended=row_counts.unended,
        apart=row_counts.apart,
        thoughts=row_counts.thoughts,
        thoughtless=row_counts.thoughtless,
        soft=sum(0 < group.values.get("probability", 1) < 1 for group in groups),
        prompt_median=prompt_median,
        prompt_p95=prompt_p95,
        completion_median=completion_median,
        completion_p95=completion_p95,
        notes=tuple(row_counts.notes),
        conversations=row_counts.conversations,
        replies=row_counts.replies,
        learned=learned,
    )


def _median_and_p95(lengths: array[int]) -> tuple[int, int]:
    """The median and the 95th percentile; both were really counted."""
    import numpy as np

    if not lengths:
        return 0, 0
    values = np.frombuffer(lengths, dtype=np.int32)
    median, high = np.percentile(values, [50, 95], method="lower")
    return int(median), int(high)
