"""What a reasoning model says, without what it thinks: no thought is a verdict, a critique or a reply."""

from __future__ import annotations

import re

_NAMES = "(?:seed:)?(?:think|thinking|thoughts?|reasoning|scratchpad)"
_OPENS = (
    rf"<\s*{_NAMES}\s*>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<\|START_THINKING\|>"
    r"|<\|channel\|>(?:analysis|commentary)"
)
_CLOSES = (
    rf"<\s*/\s*{_NAMES}\s*>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<\|END_THINKING\|>"
    r"|<\|channel\|>final(?:<\|message\|>)?"
)
_TAG = re.compile(rf"(?P<open>{_OPENS})|(?P<close>{_CLOSES})", re.IGNORECASE)

_BARE_CHANNEL, _BARE_FINAL = "analysis", "assistantfinal"
"""What is left of a thinking channel and of the one after it where a server drops special tokens from the text."""


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
