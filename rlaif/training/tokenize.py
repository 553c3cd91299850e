"""From texts to token ids, the same ones that TRL's trainers make.

Prompt and completion are tokenized together, as one text, and the prompt is what this shares with the prompt alone: a
tokenizer may merge the end of a raw prompt with the beginning of a completion. The tokens that a prompt loses like that
are counted. A conversation's prompt is all that the model reads before it responds, its cue included, and the
completion is what the chat template adds to it (see `rlaif.inference.chat_template`). It is tokenized by itself where
both would merge, as a response that begins with a blank does with a cue that ends in a line break: a model that samples
has read the whole cue. TRL differs there, and where the template writes the prompt otherwise once a response follows.

Every completion ends with an end-of-sequence token, or a model would not learn to stop. Raw text gets the tokenizer's.
Chat templates bring their own; what a template writes after it (ChatML a line break) stays, as in TRL, so that the ids
and with them the losses can be compared; it is the same for all completions, so that no preference lies in it. Only a
template that ends a response with no such token at all gets one appended (TRL leaves it out), and that is counted.

Data that were sampled with special tokens kept end in `</s>`, `<|im_end|>` or the like. A tokenizer makes its own
special tokens of such texts: a response would end twice, or end in its middle, after which a model says nothing. So an
end token at the end of a response is cut off, and a response with a special token inside is left out (`Endings`).

`TextFormat` is how a model was trained to read texts: by its chat template and with which options, or as they stand.
`train.json` records it, so that the model is prompted and scored as it was trained. What the setting `template: auto`
came to depends on the data, which may not be there any more.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import Field, JsonValue

from rlaif.config.yaml import read_yaml
from rlaif.data.conversations import CUE, Turns, transcript
from rlaif.errors import UserError
from rlaif.inference.chat_template import ChatTemplate, UnwritableError
from rlaif.inference.model_folder import (
    require_ends,
)
from rlaif.records import Record
from rlaif.text import loads
from rlaif.training.config import CommonSettings
from rlaif.training.examples import Example, RowCounts


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt with its completions: one for SFT and KTO, chosen and rejected for a pair, any number otherwise.

    One noun for every trainer: the prompt is computed once for all completions of a group (see `batches`).

    Token ids are any sequence. `rlaif.training.tokenize` makes `array("i")`, as it takes a sixth of the memory of a
    tuple (100,000 pairs of 300 tokens: 200 MB, not 1,271), adds up and compares like one, and turns into a numpy array
    or a tensor without a copy.
    """

    id: str
    """Names the row where something is wrong with it: its own id, or file and line."""
    prompt: Sequence[int]
    """Token ids; never empty, as the first token of a completion is predicted from the last of the prompt."""
    completions: tuple[Sequence[int], ...]
    """Token ids, the end-of-sequence token included; none of them empty."""
    values: Mapping[str, float] = field(default_factory=dict)
    """Numbers of the row that its loss takes, for instance `probability` (the soft label) and `margin`."""

    @property
    def tokens(self) -> int:
        """Tokens of the group when its prompt stands once."""
        return len(self.prompt) + sum(map(len, self.completions))


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
        special = {*template.end_texts, *behind}
        self._ends = _longest_first(special if formatted else {*special, *_FOREIGN, *_LESS_SURE})
        within = {*special, *before, *([bos] if bos else [])} | (set() if formatted else {*_FOREIGN})
        self._within = re.compile("|".join(map(re.escape, _longest_first(within))) or r"(?!)")

    def cut(self, text: str) -> str:
        """A response without the ends that it closes with, and without the blank text around those."""
        rest = text.rstrip()
        while (end := next((ending for ending in self._ends if rest.endswith(ending)), None)) is not None:
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


Ids = Sequence[int]

_CHUNK = 2_000
"""Examples whose texts are tokenized at once: a fast tokenizer shares them out among the cores."""
_TAIL = 4
"""Tokens at the end of a completion among which its end token is looked for."""
_UNUSED = ("pad", "reserved", "unused", "extra_id", "dummy", "placeholder")


class _Texts(NamedTuple):
    """A row as the tokenizer gets it."""

    prompt: str
    completions: tuple[str, ...]

    @property
    def all(self) -> list[str]:
        """The prompt, and the prompt with each completion."""
        return [self.prompt, *(self.prompt + text for text in self.completions)]


class Tokens:
    """Turns examples into groups.

    Of a group longer than `max_length` (its prompt with its longest completion) the prompt loses its beginning, a
    beginning-of-sequence token apart, and completions stay whole, so that all follow the same prompt and none loses its
    end (TRL cuts ends: where only one completion of a pair is cut, a model learns to go on and on). Where a completion
    alone is too long, the row is left out.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_length: int | None = None,
        ends: Iterable[int] = (),
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        """`ends` are tokens that end a reply beside the tokenizer's own: those of the model's generation config.
        `template_options` go to the chat template.

        Raises UserError for a tokenizer without an end-of-sequence token, or with several chat templates and no choice.
        """
        self.tokenizer, self.max_length = tokenizer, max_length
        self.template_options = dict(template_options or {})
        self._bos, self._eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        if self._eos is None:
            hint = "set `eos_token` in its tokenizer_config.json"
            raise UserError("the tokenizer has no end-of-sequence token", where=self._name, hint=hint)
        self._ends = frozenset({*ends, self._eos})
        self.template = ChatTemplate(tokenizer, template_options, ends=self._ends)
        self._endings = {
            formatted: Endings(self.template, tokenizer.bos_token, formatted=formatted) for formatted in (False, True)
        }
        self._blanks: dict[tuple[int, ...], bool] = {(): True}

    @property
    def _name(self) -> str:
        return str(getattr(self.tokenizer, "name_or_path", "") or "the tokenizer")

    def groups(self, examples: Iterable[Example], row_counts: RowCounts | None = None) -> Iterator[Group]:
        """The examples as groups, in their order, without those that do not fit; `row_counts` counts them."""
        return (group for _, group in self.with_examples(examples, row_counts))

    def with_examples(
        self, examples: Iterable[Example], row_counts: RowCounts | None = None
    ) -> Iterator[tuple[Example, Group]]:
        """The same, each with the example that it was made from."""
        counts = row_counts or RowCounts()
        for spoken, run in itertools.groupby(examples, key=lambda example: not isinstance(example.prompt, str)):
            while chunk := list(itertools.islice(run, _CHUNK)):
                yield from self._chunk(chunk, spoken, counts)

    def _chunk(self, chunk: Sequence[Example], spoken: bool, row_counts: RowCounts) -> Iterator[tuple[Example, Group]]:
        written = [(example, self._texts(example, row_counts)) for example in chunk]
        rows = [(example, texts) for example, texts in written if texts is not None]
        ids = self._encode([text for _, texts in rows for text in texts.all], spoken)
        for example, texts in rows:
            prompt, *joint = itertools.islice(ids, 1 + len(texts.completions))
            group = self._group(example, texts, prompt, joint, row_counts)
            if group is not None:
                row_counts.prompts.append(len(group.prompt))
                row_counts.completions.extend(map(len, group.completions))
                yield example, group

    def _texts(self, example: Example, row_counts: RowCounts) -> _Texts | None:
        """The prompt and its completions as texts; None where the row is of no use."""
        prompt = example.prompt
        if not isinstance(prompt, str) and not self.template.exists:
            hint = "set `template: plain`, or save a chat_template.jinja beside it"
            raise UserError(
                "the tokenizer has no chat template, and the data are messages", where=self._name, hint=hint
            )
        replies = self._strip_ends(example, row_counts) if prompt else example.completions
        if replies is None:
            return None
        if isinstance(prompt, str):
            end = self.tokenizer.eos_token
            return _Texts(prompt, tuple(text if text.endswith(end) else text + end for text in replies))
        return self._render(example, prompt, replies, row_counts)

    def _strip_ends(self, example: Example, row_counts: RowCounts) -> tuple[str, ...] | None:
        """The replies without end tokens as text; None where one holds a special token, or nothing else."""
        formatted = isinstance(example.prompt, str) and self._endings[False].format(example.prompt)
        endings = self._endings[formatted]
        cut = tuple(map(endings.cut, example.completions))
        if any(map(endings.within, cut)):
            row_counts.leave_out("special-token", example.line)
            row_counts.note(f"a special token in a reply: `{next(filter(None, map(endings.within, cut)))}`")
            return None
        changed = [text for text, before in zip(cut, example.completions, strict=True) if text != before]
        if not all(text.strip() for text in changed):
            row_counts.leave_out("empty-reply", example.line)
            return None
        row_counts.unended += len(changed)
        return cut

    def _render(self, example: Example, turns: Turns, replies: Sequence[str], row_counts: RowCounts) -> _Texts | None:
        try:
            prompt = self.template.prompt(turns)
            rendered = [self.template.completion(turns, prompt, reply) for reply in replies]
        except UnwritableError as error:
            row_counts.leave_out(error.fault, example.line)
            if error.why:
                row_counts.note(f"the chat template refuses a conversation: {error.why}")
            return None
        row_counts.apart += any(completion.written == "apart" for completion in rendered)
        row_counts.thoughtless += any(completion.written == "thoughtless" for completion in rendered)
        row_counts.thoughts += any(completion.written == "thought" for completion in rendered)
        return _Texts(prompt, tuple(completion.text for completion in rendered))

    def _encode(self, texts: list[str], spoken: bool) -> Iterator[list[int]]:
        """Token ids of texts. A chat template has written all special tokens; raw text gets the tokenizer's usual."""
        if not texts:
            return iter(())
        distinct = list(dict.fromkeys(texts))  # pairs of one prompt repeat it, and their completions
        ids = self.template.ids(distinct, raw=not spoken)
        return map(dict(zip(distinct, ids, strict=True)).__getitem__, texts)

    def _group(
        self, example: Example, texts: _Texts, prompt: Ids, joint: list[list[int]], row_counts: RowCounts
    ) -> Group | None:
        shared = min(_common_prefix(prompt, ids) for ids in joint)
        head, tails = prompt[:shared], [ids[shared:] for ids in joint]
        merged = shared < len(prompt)
        if merged and not isinstance(
            example.prompt, str
        ):  # the model is asked with the whole cue, and goes on behind it
            head, tails, merged = prompt, self.template.ids(texts.completions), False
            row_counts.separate += 1
        if not head:
            if self._bos is None:
                row_counts.leave_out("no-start", example.line)
                return None
            head = [self._bos]
            tails = [ids[1:] if ids[:1] == head else ids for ids in tails]  # a text may bring its own start
        if not all(tails):
            row_counts.leave_out("no-completion", example.line)
            return None
        endless = [not self._ends_well(ids) for ids in tails]
        tails = [[*ids, self._eos] if add else ids for ids, add in zip(tails, endless, strict=True)]
        if len(tails) > 1 and all(ids == tails[0] for ids in tails):
            row_counts.leave_out("same-tokens", example.line)
            return None
        fitted = self._truncate(head, tails, row_counts)
        if fitted is None:
            row_counts.leave_out("too-long", example.line)
            return None
        row_counts.merged += merged
        row_counts.ended += sum(endless)
        head, tails = fitted
        return Group(example.id, array("i", head), tuple(array("i", ids) for ids in tails), example.values)

    def _ends_well(self, ids: Ids) -> bool:
        """Whether an end token stands at the end, or nothing but blank text after it."""
        for after in range(min(_TAIL, len(ids))):
            if ids[-1 - after] in self._ends:
                rest = tuple(ids[-after:]) if after else ()
                if rest not in self._blanks:
                    self._blanks[rest] = not self.tokenizer.decode(list(rest)).strip()
                return self._blanks[rest]
        return False

    def _truncate(self, head: Ids, tails: list[list[int]], row_counts: RowCounts) -> tuple[Ids, list[list[int]]] | None:
        """The parts cut to the limit (see the class), or None where they cannot be."""
        limit, longest = self.max_length, max(map(len, tails))
        if limit is None or len(head) + longest <= limit:
            return head, tails
        room = limit - longest
        if room < 1:
            return None
        row_counts.truncated += 1
        start = head[:1] if head[0] == self._bos else []
        return [*start, *head[len(head) - room + len(start) :]], tails


def _common_prefix(one: Ids, other: Ids) -> int:
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
        token_id = min((token for name, token in added.items() if re.search(rf"(^|[^a-z]){word}", name)), default=None)
        if token_id is not None:
            return int(token_id)
    vocabulary = tokenizer.get_vocab()
    for name in ("[unused0]", "<unused0>", "[unused1]", "<unused1>"):
        if name in vocabulary and vocabulary[name] not in taken:
            return int(vocabulary[name])
    hint = "add one: `tokenizer.add_special_tokens({'pad_token': '<pad>'})`, then save it and resize the embeddings"
    where = str(getattr(tokenizer, "name_or_path", "") or "the tokenizer")
    raise UserError("no token but the end of a sequence is left to pad with", where=where, hint=hint)


def end_ids(generation_config: Any) -> frozenset[int]:
    """The tokens that end a reply, of a model's generation config: what `Tokens` takes as `ends`."""
    listed = getattr(generation_config, "eos_token_id", None)
    several = listed if isinstance(listed, (list, tuple)) else (listed,)
    return frozenset(int(token) for token in several if token is not None)


_OF_RUNS = ("samples.jsonl", "manifest.json")
"""Files that tell the folder of a run from one in which somebody keeps run files beside other data."""

Settings = TypeVar("Settings", bound=CommonSettings)


class TextFormat(Record):
    """What the texts of a training looked like."""

    template: Literal["auto", "chat", "plain", "text"] = "auto"
    """`chat`: conversations in the chat template; `plain`: dialogues as text; `text`: a prompt and its response joined
    as they stand; `auto`: not known."""
    seam: str = ""
    """Of `text`, the blank text that most responses began with."""
    template_options: dict[str, JsonValue] = Field(default_factory=dict)
    """What the chat template was given."""

    def asked(self, template: Literal["auto", "chat", "plain"] | None) -> TextFormat:
        """The same with the form that is asked for, if one is."""
        return self if template is None else self.model_copy(update={"template": template})

    @property
    def reading(self) -> Literal["auto", "chat", "plain"]:
        """How rows of data are read for a model that learned this."""
        return "auto" if self.template == "text" else self.template

    def example(self, name: str, turns: Turns, response: str) -> Example | None:
        """A response in a conversation as the model read such; None where it read nothing like it.

        A model of prompts and responses that were joined as they stand has no form for a conversation of several turns.
        """
        if self.template == "plain":  # the response of such a dialogue follows after a space
            return Example(name, transcript(turns), (f" {response}",), {})
        if self.template != "text":
            return Example(name, turns, (response,), {})
        if len(turns) > 1:
            return None
        seam = "" if response[:1].isspace() or turns[0].content[-1:].isspace() else self.seam
        return Example(name, turns[0].content, (seam + response,), {})


class Forms:
    """Counts the forms of the examples that a training takes."""

    def __init__(self, marks: tuple[str, ...] = ()) -> None:
        """`marks` are the special tokens by which a text is known that a chat template has written already."""
        self._marks = marks
        self._forms: Counter[Literal["chat", "plain", "text"]] = Counter()
        self._seams: Counter[str] = Counter()

    def add(self, example: Example) -> None:
        """Take one in."""
        prompt = example.prompt
        if not isinstance(prompt, str) or any(mark in (prompt or example.completions[0]) for mark in self._marks):
            self._forms["chat"] += 1
        elif prompt.endswith(CUE):
            self._forms["plain"] += 1
        else:
            self._forms["text"] += 1
            reply = example.completions[0]
            self._seams[reply[: len(reply) - len(reply.lstrip())] if prompt else ""] += 1

    def learned(self, template_options: Mapping[str, Any]) -> TextFormat:
        """The form of most of them."""
        if not self._forms:
            return TextFormat()
        ((form, _),) = self._forms.most_common(1)
        seam = self._seams.most_common(1)[0][0] if form == "text" else ""
        return TextFormat(template=form, seam=seam, template_options=dict(template_options))


def text_format_of(folder: str | Path) -> TextFormat:
    """How the model in a folder was trained to read, as far as the folder tells."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        begun: Any = loads((Path(folder).expanduser() / "train.json").read_text(encoding="utf-8"))
        if begun.get("learned") is not None:
            return TextFormat.model_validate(begun["learned"])
        settings = begun["settings"]
        template = settings.get("template", "auto")
        options = settings.get("template_options") or {}
        return TextFormat(template=template, template_options=options)
    return TextFormat()


def run_options(data: str) -> dict[str, JsonValue] | None:
    """What the chat template of a run's policy was given, where `data` is the folder of a run or a file in it."""
    path = Path(data).expanduser()
    folder = path if path.is_dir() else path.parent
    file = folder / "run.yaml"
    made_here = path.is_dir() or any((folder / name).is_file() for name in _OF_RUNS)
    if not path.exists() or not file.is_file() or not made_here:
        return None
    with contextlib.suppress(UserError, OSError, AttributeError, TypeError):
        policy = read_yaml(file).data.get("policy")
        if isinstance(policy, dict):
            return dict(policy.get("template_options") or {})
    return None


def asked_options(
    model: str, given: Mapping[str, JsonValue] | None, of_run: Mapping[str, JsonValue] | None = None
) -> dict[str, JsonValue]:
    """What the chat template of a policy is given: what is set, else as it was trained, else as in the run."""
    if given is not None:
        return dict(given)
    return text_format_of(model).template_options or dict(of_run or {})


def with_template_options(settings: Settings, data: str) -> tuple[Settings, str]:
    """The settings with the chat template's options: those that are set, else those of the run that `data` is of, else
    those that the model was trained with; and what there is to say of that, if anything."""
    given, theirs = "template_options" in settings.model_fields_set, run_options(data)
    if given and theirs and theirs != settings.template_options:
        message = f"the policy of the data was asked with template_options {json.dumps(theirs)}"
        return settings, f"{message}, and is trained with {json.dumps(settings.template_options)}"
    if given:
        return settings, ""
    options, whose = (
        (theirs, "of the run") if theirs else (text_format_of(settings.model).template_options, "of the model")
    )
    if not options:
        return settings, ""
    note = f"template_options {json.dumps(options)}: those {whose}, as none are set"
    return settings.model_copy(update={"template_options": options}), note


def ends_of(folder: Path) -> frozenset[int]:
    """The tokens that end a reply, of the generation config in a folder, if there is one."""
    return require_ends(folder)
