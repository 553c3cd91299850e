"""Special tokens that stand as text in a response: an end is cut off, what no response can hold is found.

Data that were sampled with special tokens kept end in `</s>`, `<|im_end|>` or the like. A tokenizer makes its own
special tokens of such texts: a response would end twice, or end in its middle, after which a model says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from rlaif.inference.chat_template import ChatTemplate

_FOREIGN = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|endoftext|>", "<|end_of_text|>", "<end_of_turn>", "<|eot|>",
    "<|END_OF_TURN_TOKEN|>", "<|end_of_turn|>", "<｜end▁of▁sentence｜>", "<|endofturn|>", "<|return|>",
)  # fmt: skip
"""Ends of responses in the common chat formats: no text of a person, whatever the tokenizer."""
_LESS_SURE = ("</s>", "<eos>", "<|end|>")
"""Ends that may be text elsewhere (`</s>` is HTML too): only at the end of a response, and never within one."""


class Endings:
    """The ends of responses, by a tokenizer and by the common chat formats."""

    def __init__(self, template: ChatTemplate, bos: str | None, *, formatted: bool = False) -> None:
        """`formatted` is for texts that hold a chat format already, in which only the tokenizer's own ends, and its
        start, are special."""
        before, behind = ((), ()) if formatted else template.marks
        own = {*template.end_texts, *behind}
        self._ends = _longest_first(own if formatted else {*own, *_FOREIGN, *_LESS_SURE})
        within = {*own, *before, *([bos] if bos else [])} | (set() if formatted else {*_FOREIGN})
        self._within = re.compile("|".join(map(re.escape, _longest_first(within))) or r"(?!)")

    def cut(self, text: str) -> str:
        """A response without the ends that it closes with, and without the blank text around those."""
        rest = text.rstrip()
        while (end := next((each for each in self._ends if rest.endswith(each)), None)) is not None:
            if end == "</s>" and "<s>" in rest:  # struck out, in HTML
                break
            text = rest = rest[: -len(end)].rstrip()
        return text

    def format(self, prompt: str) -> bool:
        """Whether a prompt that is a text was written in a chat format: it holds ends of turns."""
        return bool(self._within.search(prompt)) or any(end in prompt for end in _LESS_SURE)

    def within(self, text: str) -> str:
        """A special token that stands in a response; empty where there is none."""
        match = self._within.search(text)
        return match[0] if match else ""


def _longest_first(texts: Collection[str]) -> list[str]:
    return sorted({text for text in texts if text.strip()}, key=lambda text: (-len(text), text))
