"""What a server accepts: requests in its own dialect, and conversations about refused fields.

What one server accepts of a request, learned from what it refuses.

Servers that speak the same protocol differ in the parameters that they take: one knows `max_completion_tokens` in the
place of `max_tokens`, another takes no `seed`, no `temperature: 0`, at most five log-probabilities, no system message.
None of them says so beforehand. So everything is sent, and where a refusal names something that was sent, the next try
goes without it, or under its other name. Each change is made once, so the tries end; it is remembered when the try
that made it is answered, and forgotten otherwise: an error may name a parameter by chance.

What a user set out of the server's range (a temperature of 1.5 where 1 is the most) is no matter of dialect: leaving it
out would draw other responses than the settings say. It stays an error.

Calls to one server: JSON out, JSON or a Fault back. The API key goes into a header here and into no text.

Conversations with one model of one server: in the server's dialect, and with the same model all the time.
"""

from __future__ import annotations

import base64
import json
import re
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote, urlsplit, urlunsplit

from rlaif.config.secrets import Secrets, expanded, shown_url, written_secrets
from rlaif.errors import ModelError, UserError
from rlaif.inference.base import Output, Question
from rlaif.inference.chat_api import LabelRoute, Way, begun, read_answers, request_body
from rlaif.inference.faults import Fault, Refusal, broken, error_inside, incomplete, refused, shortened, storable
from rlaif.inference.transport import NoReplyError, Transport
from rlaif.text import loads

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
            talks = [rewrite(connection) for connection in _talks(body["messages"])]
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
    roles = {message["role"] for connection in _talks(messages) for message in connection}
    if "system" in roles and _DEVELOPER.search(text):
        yield Change("system", "as developer")
    elif roles & {"system", "developer"}:
        yield Change("system", "in the user's turn")


def _is_batch(messages: Any) -> bool:
    return bool(messages) and isinstance(messages[0], list)


def _talks(messages: Any) -> list[list[dict[str, str]]]:
    return messages if _is_batch(messages) else [messages]


def _as_developer(connection: list[dict[str, str]]) -> list[dict[str, str]]:
    return [message | {"role": "developer"} if message["role"] == "system" else message for message in connection]


def _merged(connection: list[dict[str, str]]) -> list[dict[str, str]]:
    """The conversation with what the system says at the head of the first message of the user."""
    said = [message["content"] for message in connection if message["role"] in ("system", "developer")]
    rest = [message for message in connection if message["role"] not in ("system", "developer")]
    if not said:
        return connection
    first = next((at for at, message in enumerate(rest) if message["role"] == "user"), None)
    if first is None:
        return [{"role": "user", "content": "\n\n".join(said)}, *rest]
    content = "\n\n".join([*said, rest[first]["content"]])
    return [*rest[:first], rest[first] | {"content": content}, *rest[first + 1 :]]


_EXCERPT = 2000
"""Bytes of a broken reply that are looked at for what to show of it."""


@dataclass(frozen=True)
class Address:
    """Where a server is asked, and with which headers; of the key and the login in it nothing is ever shown."""

    url: str = field(repr=False)
    """Without trailing slashes and without a user; what it says in a query goes with every request."""
    shown: str
    headers: dict[str, str] = field(repr=False)
    secrets: Secrets = field(repr=False)


def address_of(base_url: str, api_key: str | None = None) -> Address:
    """The address that a setting holds. Raises UserError if it is not an http(s) URL, names a variable that is not set,
    or names a user where there is a key: a request has room for one."""
    whole, values = expanded(base_url.strip())
    shown = shown_url(base_url.strip())
    try:
        parts = urlsplit(whole)
        host = parts.hostname or ""
        host.encode("idna")  # as it is looked up: no part of a name is empty, or longer than 63 letters
        known = parts.scheme in ("http", "https") and bool(host) and parts.port != 0
    except ValueError:
        known = False
    if not known:
        raise UserError(f"`base_url` is not a URL: {shown}", hint="write it like http://127.0.0.1:8000/v1")
    if api_key and parts.username is not None:
        hint = "take the user out of `base_url`, or leave out `api_key_env`"
        raise UserError("`base_url` names a user, and there is an API key", where=shown, hint=hint)
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], path=path, fragment=""))
    login, _, _ = parts.netloc.rpartition("@")
    proxies = [secret for proxy in urllib.request.getproxies().values() for secret in written_secrets(proxy)]
    secrets = Secrets([api_key or "", *values, *written_secrets(whole), *proxies])
    return Address(url, shown, _headers(api_key, unquote(login)), secrets)


def _headers(api_key: str | None, login: str) -> dict[str, str]:
    """The headers of every request."""
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if api_key:
        headers["Authorization"] = f"Bearer {usable_key(api_key, 'the API key')}"
    elif login:
        code = base64.b64encode((login if ":" in login else f"{login}:").encode()).decode()
        headers["Authorization"] = f"Basic {code}"
    return headers


def usable_key(key: str, what: str, *, where: str | None = None) -> str:
    """The key. Raises UserError where no header can carry it: `what` says which one it is."""
    if key.isascii() and key.isprintable():
        return key
    odd = next(at for at, letter in enumerate(key) if not (letter.isascii() and letter.isprintable()))
    kind = "a line break" if key[odd] in "\r\n" else f"U+{ord(key[odd]):04X}"
    raise UserError(f"{what} holds {kind} (at {odd + 1}), and a key is plain ASCII", where=where, hint="set it again")


class ServerConnection:
    """One server, its address and its key."""

    def __init__(self, address: Address, wire: Transport) -> None:
        self.shown = address.shown
        self._parts, self._wire, self._secrets = urlsplit(address.url), wire, address.secrets

    def __repr__(self) -> str:
        return f"Talk({self.shown!r})"

    async def get(self, path: str, *, timeout: float) -> Any | Fault:
        """The JSON at `path` below the base URL, of any form, or a Fault."""
        return await self._exchange("GET", self._url(path), None, timeout)

    async def post(
        self, path: str, payload: dict[str, Any], *, timeout: float, root: bool = False
    ) -> dict[str, Any] | Fault:
        """The JSON reply to `payload`, or a Fault; with `root`, `path` is beside /v1 rather than below it."""
        found = await self._exchange("POST", self._url(path, root=root), json.dumps(payload).encode(), timeout)
        if isinstance(found, (dict, Fault)):
            return found
        return self._no_object(json.dumps(found)[:_EXCERPT])

    async def close(self) -> None:
        """Close all connections."""
        await self._wire.close()

    def _url(self, path: str, *, root: bool = False) -> str:
        base = self._parts.path.removesuffix("/v1") if root else self._parts.path
        return urlunsplit(self._parts._replace(path=base + path))

    async def _exchange(self, method: str, url: str, body: bytes | None, timeout: float) -> Any | Fault:
        try:
            reply = await self._wire.send(method, url, body, timeout)
        except NoReplyError as error:
            return self.clean(broken(error))
        if not 200 <= reply.status < 300:
            return self.clean(refused(reply, self.hide))
        try:
            payload = loads(reply.body)
        except ValueError:
            return self._no_object(reply.body[:_EXCERPT].decode("utf-8", "replace"))
        inside = error_inside(payload, reply.headers, self.hide) if isinstance(payload, dict) else None
        return payload if inside is None else self.clean(inside)

    def _no_object(self, text: str) -> Fault:
        text = shortened(self.hide(text), 80)
        return self.clean(incomplete("broken_json", f"the reply is not a JSON object: {text!r}"))

    def clean(self, found: Fault) -> Fault:
        """A fault as it can be stored and shown: without what is secret, which some servers repeat where it is
        wrong."""
        return replace(found, detail=self.hide(found.detail))

    def hide(self, text: str) -> str:
        """A server's text as it can be stored and shown."""
        return self._secrets.hide(storable(text))

    def tells_secret(self, text: str) -> bool:
        """Whether a model's text repeats a key."""
        return self._secrets.told_in(text)


_SHOWN = 100
"""Characters of a name that a message repeats."""
_VERSION = re.compile(r"[-:@._](?:v?\d[\w.-]*|latest|gguf)")
"""What may stand behind a model's name: `-2024-08-06`, `:latest`."""


class Chat:
    """Asks questions, and remembers what the server accepts and who answers."""

    def __init__(
        self,
        connection: ServerConnection,
        model: str,
        *,
        template_options: Mapping[str, Any] | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`note` hears, a line each, what is sent otherwise than asked for, and what is lost by it."""
        self.connection, self.model, self.note = connection, model, note
        self._options = template_options
        self.dialect = Dialect()
        """What the server accepts, as far as it is known."""
        self.answering: str | None = None
        """The model's name in the server's replies."""

    async def ask(
        self, questions: Sequence[Question], route: LabelRoute, *, timeout: float, way: Way | None = None
    ) -> list[Output] | Fault:
        """The answers to questions that share a request, in order, or the fault of the request. `way` says how their
        answers are begun, if they are.

        A request that is refused for a parameter is sent again without it, each parameter at most once. Raises
        ModelError where another model answers than before.
        """
        body = request_body(self.model, questions, route, self._options)
        if way is not None:
            body = begun(body, questions[0].prefill, way)
        path = "/chat/completions" if len(questions) == 1 else "/chat/completions/batch"
        dialect = self.dialect
        while True:
            sent = dialect.adapted(body)
            reply = await self.connection.post(path, sent, timeout=timeout)
            if not isinstance(reply, Fault):
                self._adopt(dialect)
                self._require_same(reply.get("model"))
                found = read_answers(reply, questions, route)
                return self.connection.clean(found) if isinstance(found, Fault) else found
            if reply.kind == "only_reasoning":  # an answer in its way: the model was asked, and thought
                self._adopt(dialect)
                return reply
            following = dialect if reply.refusal is None else dialect.after(reply.refusal, sent)
            if following.adapted(body) == sent:
                return reply
            dialect = following

    def _adopt(self, dialect: Dialect) -> None:
        """Keep to a dialect in which a request was answered."""
        joined = self.dialect.joined(dialect)
        for change in joined.changes[len(self.dialect.changes) :]:
            self.note(str(change))
        self.dialect = joined

    def _require_same(self, name: object) -> None:
        """Replies name the model that wrote them. Another one behind the same address would be taken for the first."""
        if not isinstance(name, str) or not name.strip():
            return
        name = "".join(letter if letter.isprintable() else "?" for letter in name.strip()[:_SHOWN])
        if self.answering is None:
            self.answering = name
            if not _same_model(self.model, name):
                self.note(f"asked for `{self.model}`, the server answers as `{name}`")
        elif name != self.answering:
            raise ModelError(
                f"{self.connection.shown}: another model answers now: `{name}`, and "
                f"`{self.answering}` before (asked for: "
                f"`{self.model}`); what was answered is kept. Ask for one model by its full name, or start a new run"
            )


def _same_model(asked: str, answering: str) -> bool:
    """Whether one name is the other one with an owner before it, or a version, a date or a tag behind it."""
    short, long = sorted((re.split(r"[/\\]", name.lower())[-1] for name in (asked, answering)), key=len)
    return long == short or bool(_VERSION.fullmatch(long.removeprefix(short)) and long.startswith(short))
