"""Answers from a file, joined to prompts by what the prompt says, never by the place in the file.

Known are a prompt with one answer or a list of them (the usual names of columns), dialogues whose last turn is the
answer, and the samples.jsonl of a run, whose prompts are told by their ids. A blank answer is one; none at all is not.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rlaif.errors import UserError
from rlaif.evaluation.runs import run_samples
from rlaif.samples.forms import OddRowError, recognise
from rlaif.samples.inputs import prompt_id
from rlaif.samples.rows import Rows, read_rows

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
        except OddRowError:
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
        raise UserError("its rows are not objects", where=path, mend="give rows with `prompt` and `response`")
    talk = next((name for name in _TALKS if name in row), None)
    prompt = None if "prompt" in row or talk else next((name for name in _PROMPTS if name in row), None)
    reply = next((name for name in _REPLIES if name in row and name != prompt), None)
    if reply is None and ("prompt" in row or talk is None):
        held = ", ".join(map(str, row)) or "none"
        mend = "give rows with `prompt` and `response` or `responses`, or dialogues in `messages`"
        raise UserError(f"no answers that can be recognised (columns: {held})", where=path, mend=mend)
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
        raise UserError(what, where=path, mend="is it the file for these prompts? They are joined by their texts")
