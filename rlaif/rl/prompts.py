"""Prompts of an online training: reading, tokenization, the held-out split, and the prompts of each step."""

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
    """The prompts of a training, split."""

    train: Sequence[TokenizedPrompt]
    held_out: Sequence[TokenizedPrompt]
    """For the held-out judge, chosen by hash: the same whatever else is in the file."""
    notes: Sequence[str]
    """Notes for the user, a line each."""

    @property
    def hash(self) -> str:
        """A hash of all of them by content."""
        return content_id([prompt.id for prompt in self.train], [prompt.id for prompt in self.held_out])


def load_prompts(
    path: str,
    tokenizer: Any,
    *,
    held_out: int = 0,
    longest: int = 1024,
    limit: int | None = None,
    template_options: Mapping[str, Any] | None = None,
) -> Prompts:
    """Read prompts; those of more than `longest` tokens, and those that the chat template cannot write, are left out.

    Raises UserError where there are none, or too few to hold `held_out` of them out.
    """
    file = Path(path).expanduser()
    issues, notes = InputIssues(), []
    rows = read_prompts(file / "prompts.jsonl" if file.is_dir() else path, limit=limit, input_issues=issues)
    cue = Cue(tokenizer, template_options)
    tokenized, refusals = [], Counter[str]()
    for prompt in rows:
        try:
            tokenized.append(TokenizedPrompt(prompt.id, prompt.messages, cue(prompt.messages)))
        except UnwritableError as error:
            refusals[str(error)] += 1
    if issues.counts:
        notes.append(f"{path}: {issues}")
    for why, count in refusals.most_common(3):
        notes.append(f"{count:,} prompts are left out: {why}")
    prompts = [prompt for prompt in tokenized if len(prompt.ids) <= longest]
    if len(prompts) < len(tokenized):
        notes.append(f"{len(tokenized) - len(prompts):,} prompts of more than {longest:,} tokens are left out")
    if len(prompts) <= held_out:
        what = f"{len(prompts)} prompts are too few" + (f" to set {held_out} of them aside" if held_out else "")
        what += f" ({'; '.join(notes)})" if notes else ""
        raise UserError(what, where=path, hint="give more, or lower `held_out.prompts`" if held_out else "give others")
    by_hash = sorted(prompts, key=lambda prompt: content_id("held", prompt.id))
    held_out_ids = {prompt.id for prompt in by_hash[:held_out]}
    train = [prompt for prompt in prompts if prompt.id not in held_out_ids]
    notes.append(f"{len(train):,} prompts to train on" + (f", {held_out} for the held-out judge" if held_out else ""))
    return Prompts(train, [prompt for prompt in prompts if prompt.id in held_out_ids], notes)


class Cue:
    """Turns a conversation into the token ids that the response follows, the generation prompt included."""

    def __init__(self, tokenizer: Any, template_options: Mapping[str, Any] | None = None) -> None:
        self._tokenizer = tokenizer
        self.template = ChatTemplate(tokenizer, template_options)

    def text(self, messages: Messages) -> str:
        """The text by the chat template; without one, a single message is its own text, and several cannot be written.

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
        """The token ids; a chat template writes all special tokens, raw text gets the tokenizer's first one."""
        (ids,) = self.template.ids([self.text(messages)], raw=not self.template.exists)
        if not ids:
            raise UserError("a prompt is empty", hint="remove it")
        return array("i", ids)


@dataclass(frozen=True)
class PromptSampler:
    """The prompts of each step: pass after pass over all of them, each pass in an order of its own.

    The prompts of a step depend on its number and the seed alone, so that a resumed training needs no state of it.
    """

    prompts: Sequence[TokenizedPrompt]
    step_prompts: int
    """Prompts of a step."""
    seed: int

    def of(self, step: int) -> list[TokenizedPrompt]:
        """The prompts of a step, numbered from 0, all different; a pass drops the last prompts that fill no step."""
        steps = len(self.prompts) // self.step_prompts
        order = list(range(len(self.prompts)))
        random.Random(f"{self.seed} {step // steps}").shuffle(order)
        start = step % steps * self.step_prompts
        return [self.prompts[at] for at in order[start : start + self.step_prompts]]
