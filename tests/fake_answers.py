"""What the fake server answers: it depends on nothing but the conversation and its sampling.

Of two replies in a compare question it always prefers the same one, in whichever slot it is shown: the one of the
higher merit, by a `Taste` that may be its own.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_WORDS = ("a", "kind", "and", "clear", "reply", "that", "helps", "the", "person", "who", "asked", "without", "fuss")
_OPEN, _CLOSE = r"(?:<<<|<text_)(\w+)>?\n", r"(?:>>>|>)"
_REPLY = re.compile(rf"Reply ([AB]):\n{_OPEN}(.*?)\n(?:</text_)?\2{_CLOSE}", re.DOTALL)
_SHOWN = re.compile(rf"The reply:\n{_OPEN}(.*?)\n(?:</text_)?\1{_CLOSE}", re.DOTALL)
_ANY_REPLY = re.compile(rf"(?:The reply|Reply [A-J]):\n{_OPEN}(.*?)\n(?:</text_)?\1{_CLOSE}", re.DOTALL)
_TOKEN = re.compile(r"\n|:| ?[^\s:]+|.")
MASS = 0.96
"""Probability of both labels together."""


class Taste(NamedTuple):
    """What a fake judge goes by in compare questions; the usual one goes by merit alone."""

    own: float = 0.0
    """Share of a second merit in what it prefers, drawn by `seed`."""
    seed: int = 0
    contrary: bool = False
    """It prefers the other reply."""
    mass: float | None = None
    """Probability of both labels together, where it is not the usual one."""
    slot: float = 0.0
    """What it adds to the log-odds of whatever stands first."""


USUAL = Taste()


def unit(*parts: object) -> float:
    """A number in [0, 1) that depends on nothing but `parts`."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def first_share(messages: Sequence[Mapping[str, str]]) -> float:
    """Probability of "A" against "B" for a conversation: by the two replies if it shows any, else by its hash."""
    text = messages[-1]["content"]
    replies = _compared(text)
    if len(replies) < 2:
        return 0.05 + 0.9 * unit("share", [message["content"] for message in messages])
    gap = unit("merit", replies["A"]) - unit("merit", replies["B"])
    return 1 / (1 + math.exp(-8 * gap))


def tasted_share(messages: Sequence[Mapping[str, str]], taste: Taste) -> float:
    """The same for a judge of some taste."""
    share, replies = first_share(messages), _compared(messages[-1]["content"])
    if taste.own and len(replies) == 2:
        own = 8 * (unit("merit", taste.seed, replies["A"]) - unit("merit", taste.seed, replies["B"]))
        share = 1 / (1 + math.exp(-taste.own * own) * (1 / share - 1) ** (1 - taste.own))
    share = 1 - share if taste.contrary else share
    return share if not taste.slot else 1 / (1 + math.exp(-taste.slot) * (1 / share - 1))


def _compared(text: str) -> dict[str, str]:
    """The two replies of a compare question, by their slots."""
    return {slot: reply for slot, _, reply in _REPLY.findall(text)}


def reply_text(messages: Sequence[Mapping[str, str]], options: Mapping[str, Any]) -> tuple[str, str]:
    """Text and finish reason of a conversation under its sampling."""
    drawn = (options.get("seed"), options.get("top_p")) if options.get("temperature") else None
    source = random.Random(unit("text", [message["content"] for message in messages], drawn))
    words = [source.choice(_WORDS) for _ in range(source.randint(4, 16))]
    if "You rewrite one reply" in messages[-1]["content"]:
        words = _rewritten(messages[-1]["content"], words, source.random())
    most = options.get("max_tokens") or 16
    return " ".join(words[:most]), "length" if len(words) > most else "stop"


def _rewritten(question: str, words: list[str], drawn: float) -> list[str]:
    """Of ten revisions, one reviews the reply, one repeats it, one is empty, and one stands behind a lead."""
    if drawn < 0.1:
        return ["The", "reply", "is", "rude."]
    if drawn < 0.2:
        return _SHOWN.findall(question)[-1][1].split()
    if drawn < 0.3:
        return []
    return ["Revised", "reply:", *words] if drawn < 0.4 else words


def token_id(token: str) -> int:
    """A stable id for a token."""
    return 100 + int(unit("token", token) * 30_000)


def tokenized(text: str) -> dict[str, Any]:
    """The reply of /tokenize: tokens are words with the space before them, as in a byte-level BPE."""
    tokens = _TOKEN.findall(text)
    strings = [token.replace(" ", "Ġ").replace("\n", "Ċ") for token in tokens]
    return {"tokens": [token_id(token) for token in tokens], "token_strs": strings}


def choice(
    at: int,
    connection: Sequence[Mapping[str, str]],
    body: Mapping[str, Any],
    logprobs: bool,
    taste: Taste = USUAL,
    thinks: str = "",
) -> dict[str, Any]:
    """One choice of a chat completion."""
    if "First give your reasons" in connection[-1]["content"]:
        return reasoned_choice(at, connection, body, logprobs, taste, thinks)
    text, finish = reply_text(connection, body)
    made: dict[str, Any] = {"index": at, "finish_reason": finish, "logprobs": None}
    if re.search(r"\bA\b.*\bB\b", connection[-1]["content"], re.DOTALL) and body.get("max_tokens", 99) <= 16:
        text = "A" if tasted_share(connection, taste) >= 0.5 else "B"
        if body.get("logprobs") and logprobs:
            made["logprobs"] = {"content": [_label_entry(connection, body, taste)]}
    elif "Answer with one digit" in connection[-1]["content"] or "nothing else: 0, 1" in connection[-1]["content"]:
        merit = (_merits(connection) or [0.5])[0]
        text = str(round(9 * merit))
        if body.get("logprobs") and logprobs:
            made["logprobs"] = {"content": [_entry(_digits(merit), body)]}
    elif "letters of all replies" in connection[-1]["content"]:
        merits = _merits(connection)
        text = " > ".join("ABCDEFGHIJ"[at] for at in sorted(range(len(merits)), key=lambda at: -merits[at]))
    made["message"] = {"role": "assistant", "content": text}
    return made


def reasoned_choice(
    at: int, connection: Sequence[Mapping[str, str]], body: Mapping[str, Any], logprobs: bool, taste: Taste, thinks: str
) -> dict[str, Any]:
    """Reasons that name either label, and the verdict at the end; with `thinks`, thoughts before it, in `tags` or in a
    `field` of their own. A word is a token."""
    share = tasted_share(connection, taste)
    better, worse = ("A", "B") if share >= 0.5 else ("B", "A")
    thoughts = f"At first sight the answer is {worse}. Verdict: {worse}".split()
    points = "It is clear, it comes to the point, it says what it is about, and it does not make a fuss."
    reasons = (
        f"Reply {worse} has its points. {points} Reply {better} is kinder to the person who asked, though.".split()
    )
    said = ([*thoughts, "</think>"] if thinks else []) + [*reasons, "Verdict:", better, "<|end|>"]
    most = body["max_tokens"]
    finish, said = ("length", said[:most]) if len(said) > most else ("stop", said)
    split = said.index("</think>") if "</think>" in said else len(said) if thinks else 0
    thought, answer = " ".join(said[:split]), " ".join(said[split:]).removesuffix(" <|end|>")
    answer = answer.removeprefix("</think>").strip().replace(" Verdict:", "\n\nVerdict:")
    message = {"role": "assistant", "content": answer}
    if thinks == "field":
        message["reasoning_content"] = thought
    elif thinks:
        end = "</think>" if "</think>" in said else ""
        message["content"] = f"<think>{thought}{end}{answer}"
    made: dict[str, Any] = {"index": at, "finish_reason": finish, "logprobs": None, "message": message}
    if body.get("logprobs") and logprobs:
        label = _label_entry(connection, {**body, "return_tokens_as_token_ids": False}, taste)
        plain = [
            {"token": f" {word}", "logprob": -0.1, "top_logprobs": [{"token": f" {word}", "logprob": -0.1}]}
            for word in said
        ]
        if finish == "stop":
            plain[-2], plain[-1]["token"] = label, "<|end|>"
        made["logprobs"] = {"content": plain}
    return made


def _merits(connection: Sequence[Mapping[str, str]]) -> list[float]:
    """The merit of each reply that a question shows."""
    return [unit("merit", reply) for _, reply in _ANY_REPLY.findall(connection[-1]["content"])]


def _digits(merit: float) -> dict[str, float]:
    """Log-probabilities of the digits: a bell around 9 times the merit."""
    bell = [math.exp(-((digit - 9 * merit) ** 2) / 2) for digit in range(10)]
    return {str(digit): math.log(MASS * height / sum(bell)) for digit, height in enumerate(bell)}


def _label_entry(connection: Sequence[Mapping[str, str]], body: Mapping[str, Any], taste: Taste) -> dict[str, Any]:
    share = tasted_share(connection, taste)
    likely = {"A": 0.75 * share, " A": 0.25 * share, "B": 0.75 * (1 - share), " B": 0.25 * (1 - share)}
    mass = MASS if taste.mass is None else taste.mass
    values = {token: math.log(mass * chance) for token, chance in likely.items()}
    return _entry(values, body)


def _entry(values: dict[str, float], body: Mapping[str, Any]) -> dict[str, Any]:
    """The first token's log-probabilities as a server lists them."""
    values["The"] = math.log((1 - MASS) / 2)
    if wanted := body.get("logprob_token_ids"):
        as_id = body.get("return_tokens_as_token_ids", False)
        values = {f"token_id:{token_id(t)}" if as_id else t: v for t, v in values.items() if token_id(t) in wanted}
    else:
        listed = sorted(values, key=lambda token: -values[token])[: body.get("top_logprobs", 0)]
        values = {token: values[token] for token in listed}
    first = max(values, key=lambda token: values[token])
    listing = [{"token": token, "logprob": value} for token, value in values.items()]
    return {"token": first, "logprob": values[first], "top_logprobs": listing}
