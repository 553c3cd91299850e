"""The marks of a reasoning model's thoughts, and what it says outside of them: no thought is a verdict or a reply."""

from __future__ import annotations

import re

_NAMES = "(?:seed:)?(?:think|thinking|thoughts?|reasoning|scratchpad)"
_OPEN_TAGS = rf"<\s*{_NAMES}\s*>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<\|START_THINKING\|>"
_CLOSE_TAGS = rf"<\s*/\s*{_NAMES}\s*>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<\|END_THINKING\|>"
_OPENS = rf"{_OPEN_TAGS}|<\|channel\|>(?:analysis|commentary)"
_CLOSES = rf"{_CLOSE_TAGS}|<\|channel\|>final(?:<\|message\|>)?"
_TAG = re.compile(rf"(?P<open>{_OPENS})|(?P<close>{_CLOSES})", re.IGNORECASE)
_BEGINS = re.compile(rf"\s*(?:{_OPENS}|<think)", re.IGNORECASE)

TAG = re.compile(rf"{_OPEN_TAGS}|{_CLOSE_TAGS}", re.IGNORECASE)
"""Where a thought begins or ends in a response."""
OPEN_AT_END = re.compile(rf"(?:{_OPEN_TAGS})\s*\Z", re.IGNORECASE)
"""The end of a prompt that begins a thought."""
CLOSED_AT_END = re.compile(rf"(?:{_CLOSE_TAGS})\s*\Z", re.IGNORECASE)
"""The end of a prompt behind which no thought is to come."""

_BARE_CHANNEL, _BARE_FINAL = "analysis", "assistantfinal"
"""What is left of a thinking channel and of the one after it where a server drops special tokens from the text."""


def begins_with_thinking(text: str) -> bool:
    """Whether a thought is the first thing in `text`, be its tag cut off after `<think`."""
    return _BEGINS.match(text) is not None


def without_thinking(text: str) -> str:
    """What is said outside of thinking; nothing after thinking that never ended.

    A closing tag without an opening one ends thinking too: some chat templates open it in the prompt.
    """
    if text.startswith(_BARE_CHANNEL):
        _, final, said_last = text.partition(_BARE_FINAL)
        text = said_last if final else text
    said: list[str] = []
    at, thinking = 0, False
    for tag in _TAG.finditer(text):
        if tag["close"] and not thinking:
            said.clear()
        elif not thinking:
            said.append(text[at : tag.start()])
        at, thinking = tag.end(), bool(tag["open"]) or (thinking and not tag["close"])
    return "".join(said) + ("" if thinking else text[at:])
