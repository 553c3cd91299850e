"""From texts to token ids, the same ones that TRL's trainers make.

Prompt and completion are tokenized together, as one text, and the prompt is what this shares with the prompt alone: a
tokenizer may merge the end of a prompt with the beginning of a completion, and a chat template may write the prompt
otherwise when a reply follows. What of the prompt is lost like that is counted.

Every completion ends with an end-of-sequence token, or a model would not learn to stop. Raw text gets the tokenizer's.
Chat templates bring their own; what a template writes after it (ChatML a line break) stays, as in TRL, so that the ids
and with them the losses can be compared; it is the same for all completions, so that no preference lies in it. Only a
template that ends a reply with no such token at all gets one appended (TRL leaves it out), and that is counted.
"""

from __future__ import annotations

import itertools
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rlaif.errors import UserError
from rlaif.training.groups import Group
from rlaif.training.intake import Intake
from rlaif.training.texts import Example

Ids = Sequence[int]

_CHUNK = 2_000
"""Examples whose texts are tokenized at once: a fast tokenizer shares them out among the cores."""
_TAIL = 4
"""Tokens at the end of a completion among which its end token is looked for."""
_UNUSED = ("pad", "reserved", "unused", "extra_id", "dummy", "placeholder")


class Tokens:
    """Turns examples into groups.

    Of a group longer than `max_length` (its prompt with its longest completion) the prompt loses its beginning, a
    beginning-of-sequence token apart, and completions stay whole, so that all follow the same prompt and none loses its
    end (TRL cuts ends: where only one completion of a pair is cut, a model learns to go on and on). Where a completion
    alone is too long, the row is left out.
    """

    def __init__(self, tokenizer: Any, *, max_length: int | None = None, ends: Iterable[int] = ()) -> None:
        """`ends` are tokens that end a reply beside the tokenizer's own: those of the model's generation config.

        Raises UserError for a tokenizer without an end-of-sequence token.
        """
        self.tokenizer, self.max_length = tokenizer, max_length
        self._bos, self._eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        if self._eos is None:
            mend = "set `eos_token` in its tokenizer_config.json"
            raise UserError("the tokenizer has no end-of-sequence token", where=self._name, mend=mend)
        self._ends = frozenset({*ends, self._eos})
        self._blanks: dict[tuple[int, ...], bool] = {}

    @property
    def _name(self) -> str:
        return str(getattr(self.tokenizer, "name_or_path", "") or "the tokenizer")

    def groups(self, examples: Iterable[Example], intake: Intake | None = None) -> Iterator[Group]:
        """The examples as groups, in their order, without those that do not fit; `intake` counts them."""
        return (group for _, group in self.with_examples(examples, intake))

    def with_examples(
        self, examples: Iterable[Example], intake: Intake | None = None
    ) -> Iterator[tuple[Example, Group]]:
        """The same, each with the example that it was made from."""
        counts = intake or Intake()
        for spoken, run in itertools.groupby(examples, key=lambda example: not isinstance(example.prompt, str)):
            while chunk := list(itertools.islice(run, _CHUNK)):
                yield from self._chunk(chunk, spoken, counts)

    def _chunk(self, chunk: Sequence[Example], spoken: bool, intake: Intake) -> Iterator[tuple[Example, Group]]:
        written = [(example, self._written(example, intake)) for example in chunk]
        rows = [(example, texts) for example, texts in written if texts is not None]
        ids = self._encoded([text for _, texts in rows for text in texts], spoken)
        for example, texts in rows:
            prompt, *joint = itertools.islice(ids, len(texts))
            group = self._group(example, prompt, joint, intake)
            if group is not None:
                intake.prompts.append(len(group.prompt))
                intake.completions.extend(map(len, group.completions))
                yield example, group

    def _written(self, example: Example, intake: Intake) -> list[str] | None:
        """The prompt as the tokenizer gets it, and the prompt with each completion."""
        prompt = example.prompt
        if isinstance(prompt, str):
            end = self.tokenizer.eos_token
            ended = (text if text.endswith(end) else text + end for text in example.completions)
            return [prompt, *(prompt + text for text in ended)]
        if not getattr(self.tokenizer, "chat_template", None):
            mend = "set `template: plain`, or save a chat_template.jinja beside it"
            raise UserError(
                "the tokenizer has no chat template, and the data are messages", where=self._name, mend=mend
            )
        turns = [turn._asdict() for turn in prompt]
        return self._rendered(turns, example, intake)

    def _rendered(self, turns: list[dict[str, str]], example: Example, intake: Intake) -> list[str] | None:
        from jinja2 import TemplateError

        def render(messages: list[dict[str, str]], **more: bool) -> str:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, **more))

        try:
            cue = render(turns, add_generation_prompt=True)
            replies = ([*turns, {"role": "assistant", "content": text}] for text in example.completions)
            return [cue, *map(render, replies)]
        except (TemplateError, ValueError) as error:
            intake.leave_out("template", example.line)
            intake.note(f"the chat template refuses a conversation: {str(error).strip().partition(chr(10))[0][:120]}")
            return None

    def _encoded(self, texts: list[str], spoken: bool) -> Iterator[list[int]]:
        """Token ids of texts. A chat template has written all special tokens; raw text gets the tokenizer's usual."""
        if not texts:
            return iter(())
        each = list(dict.fromkeys(texts))  # pairs of one prompt repeat it, and their completions
        only_ids = {"return_attention_mask": False, "return_token_type_ids": False}
        ids = self.tokenizer(text=each, add_special_tokens=not spoken, **only_ids)["input_ids"]
        return map(dict(zip(each, ids, strict=True)).__getitem__, texts)

    def _group(self, example: Example, prompt: Ids, joint: list[list[int]], intake: Intake) -> Group | None:
        shared = min(_common(prompt, ids) for ids in joint)
        merged = shared < len(prompt)
        head = prompt[:shared]
        if not head:
            if self._bos is None:
                intake.leave_out("no-start", example.line)
                return None
            head = [self._bos]
        tails = [ids[shared:] for ids in joint]
        if not all(tails):
            intake.leave_out("no-completion", example.line)
            return None
        endless = [not self._ends_well(ids) for ids in tails]
        tails = [[*ids, self._eos] if add else ids for ids, add in zip(tails, endless, strict=True)]
        fitted = self._fitted(head, tails, intake)
        if fitted is None:
            intake.leave_out("too-long", example.line)
            return None
        intake.merged += merged
        intake.ended += sum(endless)
        head, tails = fitted
        return Group(example.id, array("i", head), tuple(array("i", ids) for ids in tails), example.values)

    def _ends_well(self, ids: Ids) -> bool:
        """Whether an end token stands at the end, or nothing but blank text after it."""
        for after in range(min(_TAIL, len(ids))):
            if ids[-1 - after] in self._ends:
                return after == 0 or self._blank(tuple(ids[-after:]))
        return False

    def _blank(self, ids: tuple[int, ...]) -> bool:
        if ids not in self._blanks:
            self._blanks[ids] = not self.tokenizer.decode(list(ids)).strip()
        return self._blanks[ids]

    def _fitted(self, head: Ids, tails: list[list[int]], intake: Intake) -> tuple[Ids, list[list[int]]] | None:
        """The parts cut to the limit (see the class), or None where they cannot be."""
        limit, longest = self.max_length, max(map(len, tails))
        if limit is None or len(head) + longest <= limit:
            return head, tails
        room = limit - longest
        if room < 1:
            return None
        intake.truncated += 1
        start = head[:1] if head[0] == self._bos else []
        return [*start, *head[len(head) - room + len(start) :]], tails


def _common(one: Ids, other: Ids) -> int:
    """How many tokens two sequences begin alike with."""
    if one == other[: len(one)]:
        return len(one)
    return next(at for at in range(len(one)) if at >= len(other) or one[at] != other[at])


def pad_id(tokenizer: Any) -> int:
    """A token id to fill up rectangles with that is not the end-of-sequence token.

    No loss of ours depends on it, for `batches` marks what is padding and never looks at ids; but a saved model names a
    pad token, and other trainers and servers mask by it, so that one which is the end-of-sequence token would hide the
    end from them. Taken is the tokenizer's own, else its unknown token, else one that its makers left unused. Raises
    UserError where there is none.
    """
    taken = {tokenizer.eos_token_id, tokenizer.bos_token_id}
    for token in (tokenizer.pad_token_id, tokenizer.unk_token_id):
        if token is not None and token not in taken:
            return int(token)
    added = {name.lower(): token for name, token in tokenizer.get_added_vocab().items() if token not in taken}
    for word in _UNUSED:
        found = min((token for name, token in added.items() if re.search(rf"(^|[^a-z]){word}", name)), default=None)
        if found is not None:
            return int(found)
    vocabulary = tokenizer.get_vocab()
    for name in ("[unused0]", "<unused0>", "[unused1]", "<unused1>"):
        if name in vocabulary and vocabulary[name] not in taken:
            return int(vocabulary[name])
    mend = "add one: `tokenizer.add_special_tokens({'pad_token': '<pad>'})`, then save it and resize the embeddings"
    where = str(getattr(tokenizer, "name_or_path", "") or "the tokenizer")
    raise UserError("no token but the end of a sequence is left to pad with", where=where, mend=mend)


def end_ids(generation_config: Any) -> frozenset[int]:
    """The tokens that end a reply, of a model's generation config: what `Tokens` takes as `ends`."""
    listed = getattr(generation_config, "eos_token_id", None)
    several = listed if isinstance(listed, (list, tuple)) else (listed,)
    return frozenset(int(token) for token in several if token is not None)
