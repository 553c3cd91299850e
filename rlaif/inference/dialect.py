"""What one server accepts of a request, learned from what it refuses.

Servers that speak the same protocol differ in the parameters that they take: one knows `max_completion_tokens` in the
place of `max_tokens`, another takes no `seed`, no `temperature: 0`, at most five log-probabilities, no system message.
None of them says so beforehand. So everything is sent, and where a refusal names something that was sent, the next try
goes without it, or under its other name. Each change is made once, so the tries end; it is remembered when the try
that made it is answered, and forgotten otherwise: an error may name a parameter by chance.

What a user set out of the server's range (a temperature of 1.5 where 1 is the most) is no matter of dialect: leaving it
out would draw other responses than the settings say. It stays an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from rlaif.inference.errorbody import Refusal

Body = Mapping[str, Any]

_SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "max_tokens": ("max_tokens", "maxTokens", "max_output_tokens", "max_new_tokens"),
    "max_completion_tokens": ("max_completion_tokens", "maxCompletionTokens", "max_output_tokens"),
    "temperature": ("temperature",),
    "top_p": ("top_p", "topP"),
    "seed": ("seed",),
    "top_logprobs": ("top_logprobs", "topLogprobs"),
    "chat_template_kwargs": ("chat_template_kwargs", "chatTemplateKwargs"),
}
"""What a request can do without or otherwise, and how refusals write it."""

_OTHER_NAME = {"max_tokens": "max_completion_tokens"}
_LEAST_WARM = 0.01
"""A temperature for those that take none of 0: next to it, one token is drawn all but always."""
_ONE_TOKEN = 1
"""Room of a question for which more room changes nothing: its first token is all that is read."""

_RANGE = re.compile(
    r"\brange\b|\bbetween\b|(?:less|greater|larger|smaller|lower|higher) than|at most|at least|positive|[<>]"
    r"|minimum|maximum|above|below|exceed|too (?:large|small|high|low|big)|[(\[]\s*[\d.]+\s*,",
    re.IGNORECASE,
)
"""The value is refused for its size, not the parameter."""
_AT_MOST = re.compile(
    r"(?:<=|≤|at most|less than or equal to|no more than|up to|maximum(?: value)?(?: of| is|:)?|max(?: is|:)|"
    r"between \d{1,9} and|[(\[]\s*\d{1,9}\s*(?:,|-|\.\.))\s*(\d{1,9})",
    re.IGNORECASE,
)
_AT_LEAST = re.compile(
    r"(?:>=|≥|at least|greater than or equal to|no less than|minimum(?: value)?(?: of| is|:)?)\s*(\d{1,9})",
    re.IGNORECASE,
)
_ONLY_ONE = re.compile(r"\bboth\b|only (?:use )?one\b|either\b|together", re.IGNORECASE)
_SYSTEM = re.compile(
    r"\bsystem\b|developer instruction|roles? must alternate|(?:unknown|unexpected|invalid|unsupported) role",
    re.IGNORECASE,
)
_DEVELOPER = re.compile(r"['\"`]developer['\"`]|use .{0,20}developer", re.IGNORECASE)


class Change(NamedTuple):
    """One thing that is sent otherwise than the protocol has it."""

    part: str
    """A parameter, by the name under which it was refused; or `system`, for messages of that role."""
    how: Literal["left out", "renamed", "at most", "at least", "as developer", "in the user's turn"]
    value: Any = None

    def apply(self, body: dict[str, Any]) -> None:
        """Make the change in a request."""
        if self.part == "system":
            rewrite = _merged if self.how == "in the user's turn" else _as_developer
            talks = [rewrite(talk) for talk in _talks(body["messages"])]
            body["messages"] = talks if _is_batch(body["messages"]) else talks[0]
        elif self.part not in body:
            return
        elif self.how == "left out":
            del body[self.part]
        elif self.how == "renamed":
            body[self.value] = body.pop(self.part)
        elif self.how == "at most":
            body[self.part] = min(body[self.part], self.value)
        elif self.part == "temperature" or body[self.part] == _ONE_TOKEN:
            body[self.part] = max(body[self.part], self.value)

    def __str__(self) -> str:
        refused = f"`{self.part}` is left out, as the server refuses it"
        losses = {
            "seed": "drawing the same responses again is lost, another run draws other ones",
            "temperature": "the server's own temperature is used, whatever the settings say",
            "top_p": "the server's own is used",
            "max_tokens": "responses may be longer than the settings say",
            "max_completion_tokens": "responses may be longer than the settings say",
            "chat_template_kwargs": "`template_options` do not reach the chat template",
            "top_logprobs": "the drawn token is the only one that is listed",
        }
        texts = {
            "left out": f"{refused}: {losses.get(self.part, '')}",
            "renamed": f"`{self.part}` is refused by the server, and sent as `{self.value}`",
            "at most": f"`{self.part}` is {self.value}, the most that the server takes",
            "at least": f"`{self.part}` is at least {self.value}, the least that the server takes",
            "as developer": "the server refuses the role `system`: those messages are sent in the role `developer`",
            "in the user's turn": "the server refuses system messages: they are sent at the head of the user's turn",
        }
        return texts[self.how]


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a server takes otherwise."""

    changes: tuple[Change, ...] = ()

    def adapted(self, body: Body) -> dict[str, Any]:
        """A request as this server takes it."""
        adapted = dict(body)
        for change in self.changes:
            change.apply(adapted)
        return adapted

    def after(self, refusal: Refusal, sent: Body) -> Dialect:
        """The dialect to try next, after a refusal of what was sent; this one where nothing is left to change."""
        return self.joined(Dialect(tuple(_changes(refusal, sent))))

    def joined(self, other: Dialect) -> Dialect:
        """This one with the changes of another one."""
        return Dialect((*self.changes, *(change for change in other.changes if change not in self.changes)))

    def warmed(self) -> bool:
        """Whether a temperature of 0 is sent as another one."""
        return any(change.part == "temperature" and change.how == "at least" for change in self.changes)


def _changes(refusal: Refusal, sent: Body) -> Iterator[Change]:
    """What a refusal asks to change: everything that it names in a field; else what its text names first."""
    named = [name for name in _SPELLINGS if name in sent and refusal.named & set(_SPELLINGS[name])]
    mentioned = sorted((at, name) for name in _SPELLINGS if name in sent and (at := _place(name, refusal.text)) >= 0)
    both = {name for _, name in mentioned}
    if {"temperature", "top_p"} <= both and _ONLY_ONE.search(refusal.text):
        yield from _one_of_two(sent)
        return
    found = [_change(name, sent[name], refusal.text) for name in named or [name for _, name in mentioned][:1]]
    changes = [change for change in found if change is not None]
    yield from changes
    if not changes and not named and _SYSTEM.search(" ".join([refusal.text, *refusal.places])):
        yield from _without_system(sent["messages"], refusal.text)


def _place(name: str, text: str) -> int:
    """Where a text names a parameter first; -1 where it does not."""
    match = re.search(rf"(?<!\w)(?:{'|'.join(_SPELLINGS[name])})(?!\w)", text)
    return -1 if match is None else match.start()


def _one_of_two(sent: Body) -> Iterator[Change]:
    """Of temperature and top_p, the one that says nothing: 1 is what no value at all means."""
    for name in ("top_p", "temperature"):
        if sent[name] == 1:
            yield Change(name, "left out")
            return


def _change(name: str, value: Any, text: str) -> Change | None:
    """The way out where a value of a parameter is refused; None where there is none."""
    sized = bool(_RANGE.search(text))
    if name in ("max_tokens", "max_completion_tokens"):
        return _other_room(name, value, text, sized)
    if name == "temperature":
        if not sized:
            return Change(name, "left out")
        return Change(name, "at least", _LEAST_WARM) if value == 0 else None
    if name == "top_p":
        return Change(name, "left out") if value == 1 or not sized else None
    if name == "top_logprobs":
        most = _AT_MOST.search(text)
        few = most is not None and 1 <= int(most[1]) < value
        return Change(name, "at most", int(most[1])) if most is not None and few else None
    return Change(name, "left out")


def _other_room(name: str, value: Any, text: str, sized: bool) -> Change | None:
    least = _AT_LEAST.search(text)
    if sized:
        small = least is not None and value == _ONE_TOKEN < int(least[1])
        return Change(name, "at least", int(least[1])) if least is not None and small else None
    other = _OTHER_NAME.get(name)
    return Change(name, "left out") if other is None else Change(name, "renamed", other)


def _without_system(messages: Any, text: str) -> Iterator[Change]:
    roles = {message["role"] for talk in _talks(messages) for message in talk}
    if "system" in roles and _DEVELOPER.search(text):
        yield Change("system", "as developer")
    elif roles & {"system", "developer"}:
        yield Change("system", "in the user's turn")


def _is_batch(messages: Any) -> bool:
    return bool(messages) and isinstance(messages[0], list)


def _talks(messages: Any) -> list[list[dict[str, str]]]:
    return messages if _is_batch(messages) else [messages]


def _as_developer(talk: list[dict[str, str]]) -> list[dict[str, str]]:
    return [message | {"role": "developer"} if message["role"] == "system" else message for message in talk]


def _merged(talk: list[dict[str, str]]) -> list[dict[str, str]]:
    """The conversation with what the system says at the head of the first message of the user."""
    said = [message["content"] for message in talk if message["role"] in ("system", "developer")]
    rest = [message for message in talk if message["role"] not in ("system", "developer")]
    if not said:
        return talk
    first = next((at for at, message in enumerate(rest) if message["role"] == "user"), None)
    if first is None:
        return [{"role": "user", "content": "\n\n".join(said)}, *rest]
    content = "\n\n".join([*said, rest[first]["content"]])
    return [*rest[:first], rest[first] | {"content": content}, *rest[first + 1 :]]
