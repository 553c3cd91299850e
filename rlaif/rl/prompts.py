"""The prompts of an online training: read, turned into tokens, some set aside, the rest dealt out step by step."""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.data.prompts import InputIssues, read_prompts
from rlaif.errors import UserError
from rlaif.inference.chat_template import ChatTemplate, UnwritableError
from rlaif.records import Messages, content_id
from rlaif.rl.responses import TokenizedPrompt


class Prompts(NamedTuple):
    """What there is to answer."""

    train: Sequence[TokenizedPrompt]
    held: Sequence[TokenizedPrompt]
    """Set aside for the held-out judge, drawn by hash: the same whatever else is in the file."""
    notes: Sequence[str]
    """What there is to say of them, a line each."""

    @property
    def hash(self) -> str:
        """A hash of all of them by content."""
        return content_id([asked.id for asked in self.train], [asked.id for asked in self.held])


def load_prompts(
    path: str,
    tokenizer: Any,
    *,
    held: int = 0,
    longest: int = 1024,
    limit: int | None = None,
    template_options: Mapping[str, Any] | None = None,
) -> Prompts:
    """Read prompts; those of more than `longest` tokens, and those that the chat template cannot write, are left out.

    Raises UserError where there are none, or too few to set `held` of them aside.
    """
    file = Path(path).expanduser()
    odd, notes = InputIssues(), []
    read = read_prompts(file / "prompts.jsonl" if file.is_dir() else path, limit=limit, input_issues=odd)
    cue = Cue(tokenizer, template_options)
    asked, refused = [], Counter[str]()
    for prompt in read:
        try:
            asked.append(TokenizedPrompt(prompt.id, prompt.messages, cue(prompt.messages)))
        except UnwritableError as error:
            refused[str(error)] += 1
    if odd.counts:
        notes.append(f"{path}: {odd}")
    for why, count in refused.most_common(3):
        notes.append(f"{count:,} prompts are left out: {why}")
    kept = [each for each in asked if len(each.ids) <= longest]
    if len(kept) < len(asked):
        notes.append(f"{len(asked) - len(kept):,} prompts of more than {longest:,} tokens are left out")
    if len(kept) <= held:
        what = f"{len(kept)} prompts are too few" + (f" to set {held} of them aside" if held else "")
        what += f" ({'; '.join(notes)})" if notes else ""
        raise UserError(what, where=path, hint="give more, or lower `held_out.prompts`" if held else "give others")
    away = {each.id for each in sorted(kept, key=lambda each: content_id("held", each.id))[:held]}
    train = [each for each in kept if each.id not in away]
    notes.append(f"{len(train):,} prompts to train on" + (f", {held} for the held-out judge" if held else ""))
    return Prompts(train, [each for each in kept if each.id in away], notes)


class Cue:
    """Turns a conversation into the tokens that a reply follows."""

    def __init__(self, tokenizer: Any, template_options: Mapping[str, Any] | None = None) -> None:
        self._tokenizer = tokenizer
        self.template = ChatTemplate(tokenizer, template_options)

    def text(self, messages: Messages) -> str:
        """By the chat template; without one a single text is taken as it is, and more than one cannot be written.

        Raises UnwritableError where the template refuses it, or leaves out a text of it.
        """
        if not self.template.exists:
            if len(messages) == 1:
                return messages[0].content
            what = "the tokenizer has no chat template, and a prompt has several messages"
            name = str(getattr(self._tokenizer, "name_or_path", "") or "the tokenizer")
            raise UserError(what, where=name, hint="save a chat_template.jinja beside it")
        return self.template.prompt(messages)

    def __call__(self, messages: Messages) -> Sequence[int]:
        """The token ids; a chat template has written all special tokens, raw text gets the tokenizer's start."""
        (ids,) = self.template.ids([self.text(messages)], raw=not self.template.exists)
        if not ids:
            raise UserError("a prompt is empty", hint="remove it")
        return array("i", ids)


@dataclass(frozen=True)
class PromptSampler:
    """Deals prompts out: pass after pass over all of them, each in an order of its own.

    What a step gets depends on its number and the seed alone, so that a resumed training needs no memory of it.
    """

    prompts: Sequence[TokenizedPrompt]
    each: int
    """Prompts of a step."""
    seed: int

    def of(self, step: int) -> list[TokenizedPrompt]:
        """The prompts of a step, numbered from 0, all of them different; what a pass leaves over is left out of it."""
        steps = len(self.prompts) // self.each
        order = self._order(step // steps)
        start = step % steps * self.each
        return [self.prompts[at] for at in order[start : start + self.each]]

    def _order(self, number: int) -> list[int]:
        order = list(range(len(self.prompts)))
        random.Random(f"{self.seed} {number}").shuffle(order)
        return order
