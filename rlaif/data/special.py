"""Special tokens that are written out in replies: at the end, where sampling kept them, and inside.

Which texts are special is known of a tokenizer; without one, those of the common chat formats are looked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from rlaif.data.shapes import Reading
from rlaif.data.turns import Odd

_FORMATS = re.compile(
    r"<\|[A-Za-z][A-Za-z0-9_]{1,40}\|>"  # ChatML, Llama 3, Phi, Cohere, gpt-oss and others
    r"|<｜[^｜<>\s]{1,40}｜>"  # DeepSeek
    r"|<(?:start|end)_of_(?:turn|utterance|text)>|<eos>|<bos>|\[EOS\]|</s>"
    r"|\[/?INST\]|<</?SYS>>"
)
_OPENS = "<s>"
"""Beside this, `</s>` closes what is struck out in HTML."""


def _found(text: str, special: frozenset[str]) -> Iterator[tuple[int, int]]:
    """Where special tokens stand."""
    for each in _FORMATS.finditer(text):
        if each.group() != "</s>" or _OPENS not in text or _OPENS in special:
            yield each.span()
    for token in special:
        at = text.find(token)
        while at >= 0:
            yield at, at + len(token)
            at = text.find(token, at + len(token))


def cut_end_tokens(reply: str, special: frozenset[str] = frozenset()) -> str:
    """A reply without the special tokens at its end, and without the space around these."""
    end, cut = _without_space(reply, len(reply)), False
    while True:
        begin = max(end - _TAIL, 0)
        starts = {begin + stop: begin + start for start, stop in _found(reply[begin:end], special)}
        if end not in starts:
            return reply[:end] if cut else reply
        while end in starts:
            end, cut = _without_space(reply, starts[end]), True


def _without_space(text: str, end: int) -> int:
    while end and text[end - 1].isspace():
        end -= 1
    return end


_TAIL = 200
"""Characters at the end that an end token is looked for in."""


def check_special(reading: Reading, special: frozenset[str], odd: Odd) -> None:
    """Tell `odd` of special tokens in the replies of a row."""
    for reply in (reading.chosen, reading.rejected):
        if reply is None:
            continue
        text = cut_end_tokens(reply, special)
        if text != reply:
            odd("end-token")
        if any(_found(text, special)):
            odd("special-token")
