"""A model's chat template: the one place where a conversation becomes the text, and the tokens, that a model reads.

Templates are programs of others. Some move the system prompt into the last turn, pass over it or refuse it, drop what
an assistant thought, want content as a list of parts, always write the next cue, or have no default among several. So
what one writes is compared with what it was given, conversation by conversation: every turn's own text stands in the
prompt, and the response stands behind it. Where that is not so, the conversation is refused with a reason, or written
in another way that says so (see `Completion`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol

from rlaif.errors import UserError, nearest
from rlaif.text import CLOSED_AT_END, OPEN_AT_END, TAG

_OURS = frozenset(
    {
        "conversation", "tokenize", "add_generation_prompt", "continue_final_message", "return_tensors", "return_dict",
        "return_assistant_tokens_mask", "padding", "truncation", "max_length", "tokenizer_kwargs",
    }
)  # fmt: skip
"""Arguments of transformers' `apply_chat_template` that are not the template's."""
_TAIL = 200
"""Characters at the end of a prompt in which its cue stands."""
_WHY = 120


class Spoken(Protocol):
    """One turn of a conversation."""

    @property
    def role(self) -> str:
        """system, user or assistant."""
        ...

    @property
    def content(self) -> str:
        """What it says."""
        ...


class _Turn(NamedTuple):
    role: str
    content: str


Fault = Literal["template", "lost-system", "lost-turn", "lost-reply", "closed-thought"]
"""Why a conversation cannot be written: the template refuses it, or leaves out a text of it."""

FAULTS: Mapping[Fault, str] = {
    "template": "the chat template refuses the conversation",
    "lost-system": "the chat template leaves out the system prompt",
    "lost-turn": "the chat template leaves out a turn of the conversation",
    "lost-reply": "the chat template leaves out the response",
    "closed-thought": "the chat template's cue has closed the thinking, and the response thinks",
}
"""Each fault as a line for people."""


class UnwritableError(Exception):
    """A conversation that the template cannot write; the text is a line for people."""

    def __init__(self, fault: Fault, why: str = "") -> None:
        self.fault, self.why = fault, why
        super().__init__(f"{FAULTS[fault]}: {why}" if why else FAULTS[fault])


class Completion(NamedTuple):
    """A response as the text that follows a prompt."""

    text: str
    """With the end that the template writes behind it."""
    written: Literal["template", "apart", "thought", "thoughtless"] = "template"
    """`template`: what the template adds to the prompt. `apart`: with a response behind it, the template writes the
    prompt otherwise, so that this is the response's own text with the template's end. `thought`: the same, because the
    template leaves out what the response thinks. `thoughtless`: as `apart`, and the cue begins a thought that the
    response does not have."""


class _Frame(NamedTuple):
    """What a template writes around a response."""

    before: str
    """All special text before the response of the shortest conversation, its cue included."""
    opening: str
    """What the cue holds that the template drops when a response stands there, such as `<think>`."""
    end: str
    """What follows a response."""
    closing: str
    """The same up to the first token that ends it: some templates go on with the next cue."""


_SYSTEM, _USER, _REPLY = _Turn("system", "Walnuts rule."), _Turn("user", "Kestrels ask."), _Turn("assistant", "Quartz.")
"""Texts that no template holds itself, to see where it puts them."""


class ChatTemplate:
    """The chat template of a tokenizer, with the options that it is given (`enable_thinking`, ...)."""

    def __init__(self, tokenizer: Any, options: Mapping[str, Any] | None = None, *, ends: Collection[int] = ()) -> None:
        """`ends` are tokens that end a response beside the tokenizer's own.

        Raises UserError where several templates have names and none is chosen, and for options that are no template's.
        """
        self._tokenizer, self._options = tokenizer, dict(options or {})
        self._ends = {each for each in (*ends, tokenizer.eos_token_id) if each is not None}
        self._name = str(getattr(tokenizer, "name_or_path", "") or "the tokenizer")
        self.exists = bool(getattr(tokenizer, "chat_template", None))
        """Without one, only raw text can be written."""
        for name in sorted(_OURS & self._options.keys()):
            raise UserError(f"must not hold `{name}`, which is no option of a chat template", where="template_options")
        self._require_choice()

    def _require_choice(self) -> None:
        """One of several templates has to be the default, or be named."""
        known = getattr(self._tokenizer, "chat_template", None)
        if not isinstance(known, Mapping):
            return
        listed, chosen = ", ".join(sorted(known)), self._options.get("chat_template")
        if chosen is None and "default" not in known:
            hint = f"choose one with `template_options: {{chat_template: {sorted(known)[0]}}}`"
            raise UserError(f"several chat templates ({listed}), and no default", where=self._name, hint=hint)
        if isinstance(chosen, str) and chosen not in known and "{" not in chosen:
            hint = nearest(chosen, known)
            raise UserError(f"no chat template `{chosen}` (there are {listed})", where=self._name, hint=hint)

    def prompt(self, turns: Sequence[Spoken], prefill: str = "") -> str:
        """A conversation with the cue for the next response, as the model is asked; `prefill` begins that response, in
        the template's own rendering of the begun turn, as vLLM does it (some close the thinking before a text).

        Raises UnwritableError where the template refuses it, or where a turn's text is not in what it wrote.
        """
        if prefill:
            text = self._render([*turns, _Turn("assistant", prefill)], cue=False, begun=True)
            if not text.endswith(prefill):
                raise UnwritableError("template", "it does not show a begun answer as it is")
        else:
            text = self._render(turns, cue=True)
        if not text.strip():
            raise UnwritableError("lost-turn")
        at = 0
        for turn in turns:
            if turn.role != "system":
                at = _after(turn, text, at)
        for turn in turns:
            if turn.role == "system" and not _stands_alone(turn.content.strip(), turns, text):
                raise UnwritableError("lost-system")
        return text

    def completion(self, turns: Sequence[Spoken], prompt: str, response: str) -> Completion:
        """What follows `prompt`, which `prompt(turns)` gave, where this is the response.

        Raises UnwritableError where the template refuses it, or does not write what the response says.
        """
        if TAG.match(response.lstrip()) and CLOSED_AT_END.search(prompt[-_TAIL:]):
            raise UnwritableError("closed-thought")
        whole = self._render([*turns, _Turn("assistant", response)], cue=False)
        parts = _parts(response)
        if whole.startswith(prompt):
            rest = whole[len(prompt) :]
            # Some write an empty thought of their own before one that the response brings.
            thoughts = len(TAG.findall(response))
            if _stand(parts, rest) and not 0 < thoughts < len(TAG.findall(rest)):
                return Completion(self._closed(rest, parts))
        else:
            rest = whole[max(0, _shared(prompt, whole) - len(self.frame.opening)) :]
        if not _stand(parts[-1:], rest) or not whole.endswith(self.frame.end):
            raise UnwritableError("lost-reply")
        said = response if response in rest else response.strip()
        opening = self.frame.opening if prompt.endswith(self.frame.opening) else ""
        if not opening and (begun := OPEN_AT_END.search(prompt)):
            opening = begun[0]
        text = _continued(said, opening)
        if not _stand(parts, rest):
            return Completion(text + self.frame.closing, "thought")
        thoughtless = OPEN_AT_END.search(prompt) and not TAG.search(response)
        return Completion(text + self.frame.closing, "thoughtless" if thoughtless else "apart")

    def problem(self, turns: Sequence[Spoken]) -> str:
        """Why a conversation cannot be written, a line; empty where it can."""
        try:
            self.prompt(turns)
        except UnwritableError as error:
            return str(error)
        return ""

    def ids(self, texts: Sequence[str], *, raw: bool = False) -> list[list[int]]:
        """The token ids of texts.

        A template has written all special tokens itself. Raw text gets those that the tokenizer puts before a text, but
        not its end, which some put behind every text: nothing follows a prompt that is over.
        """
        only_ids = {"return_attention_mask": False, "return_token_type_ids": False}
        found: list[list[int]] = self._tokenizer(text=list(texts), add_special_tokens=False, **only_ids)["input_ids"]
        start = self._start if raw else []
        return [ids if ids[: len(start)] == start else start + ids for ids in found] if start else found

    @cached_property
    def _start(self) -> list[int]:
        """What the tokenizer puts before a text."""
        bare, full = (list(self._tokenizer("a", add_special_tokens=some)["input_ids"]) for some in (False, True))
        at = next((at for at in range(len(full)) if full[at : at + len(bare)] == bare), 0)
        return full[:at]

    @cached_property
    def frame(self) -> _Frame:
        """What stands around a response. Raises UnwritableError where the template writes none."""
        head: tuple[_Turn, ...] = () if self._writes((_USER, _REPLY), _REPLY.content, self._in_parts) else (_SYSTEM,)
        cue, whole = self._render([*head, _USER], cue=True), self._render([*head, _USER, _REPLY], cue=False)
        at, asked = whole.rfind(_REPLY.content), cue.find(_USER.content)
        if at < 0:
            raise UnwritableError("lost-reply")
        common = _shared(cue, whole)
        opening = cue[common:] if common >= asked + len(_USER.content) else ""
        end = whole[at + len(_REPLY.content) :]
        before = whole[:at].replace(_USER.content, "").replace(_SYSTEM.content, "")
        return _Frame(before, opening, end, self._cut(end))

    @cached_property
    def end_id(self) -> int:
        """The token that ends a response: the template's where it writes one, else the tokenizer's."""
        try:
            (written,) = self.ids([self.frame.closing])
        except UnwritableError:
            written = []
        return int(next((each for each in written if each in self._ends), self._tokenizer.eos_token_id))

    @property
    def unknown_end(self) -> str:
        """The token with which the template ends a response, if it ends no text of the model; else empty."""
        _, behind = self.marks
        return behind[0] if behind and not set(behind) & set(self.end_texts) else ""

    @cached_property
    def end_texts(self) -> tuple[str, ...]:
        """The tokens that end a response, as text; those that are ordinary text are none."""
        special = {*self._tokenizer.all_special_ids, *self._tokenizer.added_tokens_decoder}
        return tuple(self._tokenizer.decode([each]) for each in sorted(self._ends & special))

    @cached_property
    def marks(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The special tokens, as text, that the template writes before a response and behind it; thoughts apart."""
        try:
            frame = self.frame
        except UnwritableError:
            return (), ()
        special = [token for token in special_tokens(self._tokenizer) if not TAG.fullmatch(token)]
        before, behind = ([token for token in special if token in text] for text in (frame.before, frame.end))
        return tuple(before), tuple(behind)

    def _closed(self, rest: str, parts: Sequence[str]) -> str:
        """A completion up to its end."""
        frame = self.frame
        if rest.endswith(frame.end):
            return rest if frame.end == frame.closing else rest[: len(rest) - len(frame.end)] + frame.closing
        at = rest.rfind(parts[-1]) + len(parts[-1]) if parts else len(rest)
        return rest[:at] + self._cut(rest[at:])

    def _cut(self, end: str) -> str:
        """What follows a response, up to its first end token where more than blank text follows that."""
        after = [end.find(token) + len(token) for token in self.end_texts if token and token in end]
        return end[: min(after)] if after and end[min(after) :].strip() else end

    def _render(
        self, turns: Sequence[Spoken], *, cue: bool, in_parts: Collection[str] | None = None, begun: bool = False
    ) -> str:
        """`cue` asks for the next response; `begun` leaves the last turn open, so that it is gone on with."""
        in_parts = self._in_parts if in_parts is None else in_parts
        messages = [
            {"role": turn.role, "content": _as_parts(turn.content) if turn.role in in_parts else turn.content}
            for turn in turns
        ]
        more = {"continue_final_message": True} if begun else {"add_generation_prompt": cue}
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, **more, **self._options)
        except Exception as error:  # a program of somebody else: whatever it raises is its refusal
            why = str(error).strip().partition("\n")[0][:_WHY] or type(error).__name__
            raise UnwritableError("template", why) from error
        return str(text)

    @cached_property
    def _in_parts(self) -> frozenset[str]:
        """The roles whose content the template takes as a list of parts, and as a text it loses."""
        found: set[str] = set()
        for turns in ((_USER,), (_USER, _REPLY), (_SYSTEM, _USER)):
            role, said = (turns[0] if turns[0].role == "system" else turns[-1]), found.copy()
            if not self._writes(turns, role.content, said) and self._writes(turns, role.content, said | {role.role}):
                found.add(role.role)
        return frozenset(found)

    def _writes(self, turns: Sequence[Spoken], text: str, in_parts: Collection[str]) -> bool:
        try:
            return text in self._render(turns, cue=turns[-1].role == "user", in_parts=in_parts)
        except UnwritableError:
            return False


def special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """The special tokens of a tokenizer as texts, the added ones that have no part of their own included."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return tuple(text for text in dict.fromkeys([*map(str, tokenizer.all_special_tokens), *added]) if text.strip())


def _as_parts(content: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": content}]


def _parts(response: str) -> list[str]:
    """What a response thinks and says, without the marks between."""
    return [part for text in TAG.split(response) if (part := text.strip())]


def _shared(one: str, other: str) -> int:
    """How many characters two texts begin alike with."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one.startswith(other[low:middle], low) else (low, middle - 1)
    return low


def _stand(parts: Sequence[str], text: str) -> bool:
    """Whether all of them stand in a text, one after the other."""
    at = 0
    for part in parts:
        found = text.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return True


def _after(turn: Spoken, text: str, at: int) -> int:
    """Where a turn ends in a text. Raises UnwritableError where it does not stand there.

    Of an earlier turn of the assistant, the template may leave out the thought: so the model is asked as well.
    """
    said = turn.content.strip()
    found = text.find(said, at)
    if found < 0 and turn.role == "assistant" and (parts := _parts(said)):
        said = parts[-1]
        found = text.find(said, at)
    if found < 0:
        raise UnwritableError("lost-turn")
    return found + len(said)


def _stands_alone(said: str, turns: Sequence[Spoken], text: str) -> bool:
    """Whether a system prompt stands in a text, and not only within other turns that repeat it."""
    if not said:
        return True
    return text.count(said) >= sum(turn.content.count(said) for turn in turns)


def _continued(said: str, opening: str) -> str:
    """A response behind a cue that may have begun it: `<think>` is not written twice."""
    begun = opening.strip()
    if not begun or not said.startswith(begun):
        return said
    rest = said[len(begun) :]
    blank = opening[len(opening.rstrip()) :]
    return rest[len(blank) :] if rest.startswith(blank) else rest.lstrip()
