"""Dialogues written as one text: `\\n\\nHuman: ...\\n\\nAssistant: ...`, as in the hh-rlhf data."""

from __future__ import annotations

import re
from itertools import groupby, pairwise

from rlaif.records import Message, Messages

_MARK = re.compile(r"\n\n(Human|Assistant):")
_LOOSE_MARK = re.compile(r"\n(Human|Assistant):")


def is_transcript(text: str) -> bool:
    """Whether a text is a dialogue rather than one person's words."""
    head = text.lstrip()
    return head.startswith("Human:") and (text.startswith("\n\n") or "\n\nAssistant:" in text)


def parse_transcript(text: str) -> Messages:
    """The turns of a dialogue, as they are marked: one speaker may stand there twice in a row.

    Only a marker at the start of a paragraph begins a turn, so that a `Human:` or a colon inside a text stays there.
    Where that leaves one speaker twice in a row, single line breaks are tried too (few-shot prompts mix both), and
    taken if the speakers then alternate. An empty last turn, the cue for an answer, is kept.
    """
    strict = _turns(_MARK, text)
    loose = strict if alternate(strict) else _turns(_LOOSE_MARK, text)
    return loose if alternate(loose) else strict


def cut_dangling(text: str) -> str:
    """An answer without the `Human:` at its end, where a model began to write the next turn."""
    answer, line, last = text.rstrip().rpartition("\n")
    return answer.rstrip() if line and last.strip() == "Human:" else text


def _turns(mark: re.Pattern[str], text: str) -> Messages:
    parts = mark.split("\n\n" + text.lstrip())[1:]
    return tuple(
        Message(role="user" if name == "Human" else "assistant", content=said.strip())
        for name, said in zip(parts[::2], parts[1::2], strict=True)
    )


def alternate(turns: Messages) -> bool:
    """Whether no speaker speaks twice in a row."""
    return all(one.role != other.role for one, other in pairwise(turns))


def joined(turns: Messages) -> Messages:
    """The turns with those of one speaker in a row made one."""
    runs = [list(run) for _, run in groupby(turns, key=lambda turn: turn.role)]
    return tuple(
        Message(role=run[0].role, content="\n\n".join(turn.content for turn in run if turn.content)) for run in runs
    )
