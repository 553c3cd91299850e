"""Revision checks: the part of a model's revision that is the response, and whether it is usable.

Small models mix up their roles: instead of rewriting a response they review it, or repeat the request
(arXiv:2212.08073, section 3.1, uses few-shot examples against this). `spoken` removes the talk around the response, the
frame that it was shown in, and the turn after it. Each pattern removes only what no response would say: a response may
well speak of "the new version: ..." or of notes. `use_of` classifies the rest; a text that fails is counted, is never a
training row, and is never the start of the next round.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import NamedTuple

from rlaif.text import without_thinking

_SAME = 0.9
"""From this likeness on, a text is a copy of something that was shown."""
_ECHO = 0.5
"""From this likeness on, it is the critique or the request over again."""
_HINT = 0.2
"""Likeness to the critique that makes a review of what merely looks like one."""
_MIN_COPIED_WORDS = 6
"""Words that a copy of the user's message needs: short ones ("Thank you!") come from both sides."""

_REVIEWS = re.compile(
    r"\A\W*(?:"
    # "The reply insults ...", "This response was ...", "The assistant's answer should ..."; not "The response code ..."
    r"(?:the|this) (?:(?:assistant['’]?s? )?(?:last |previous |original |revised |new )?(?:reply|response)"
    r"|assistant(?:['’]s answer)?) "
    r"(?:is|was|does|did|doesn['’]t|has|had|could|should|would|fails|lacks|contains|insults|shows|offers|gives|needs"
    r"|comes|sounds|tries|keeps|seems)\b(?! to (?:that|this|your) )"
    r"|there is no(?:thing)? [^.\n]{0,40}\b(?:fault|problem|issue|wrong)\b"
    r"|I (?:would|will|can) (?:rewrite|revise|rephrase) (?:the|this) (?:reply|response)"
    r"|no such fault\b)",
    re.IGNORECASE,
)
_HEADED = re.compile(r"\A\W*(critique|reviewer['’]?s notes|review|notes)\b\W*:", re.IGNORECASE)
_ASKS = re.compile(r"\A\W*(?:critique|revision) ?request\s*:|\bwrite only the (?:new reply|review)\b", re.IGNORECASE)
_SPEAKS_FOR = re.compile(r"\A\W*(human|user|system|the conversation)\s*:", re.IGNORECASE)
_FRAME = re.compile(r"<<<|>>>|\[\.\.\. \d+ characters left out \.\.\.\]")
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f]|[^\W\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f]+")

_NEW = r"(?:revised|rewritten|reworded|improved|updated|new|kinder|better|(?:more|less) \w+)"
_REPLY = r"(?:reply|response|answer)"
_LEADS = (
    # "Sure! Here is the revised reply that leaves out the insult:"
    re.compile(
        r"\A\W{0,3}(?:(?:sure|okay|ok|certainly|of course|absolutely)\b[!,.]?\s+)?"
        rf"(?:here(?:['’]s| is)|this is)\s+(?:the|my|a|an)\s+(?:attempt at )?(?:\w+ ){{0,2}}?"
        rf"(?:{_NEW}\s+(?:{_REPLY}|version)|rewrite|revision)\b[^\n:]{{0,60}}:\W{{0,3}}\s+",
        re.IGNORECASE,
    ),
    # "**Revised response:** ..."
    re.compile(rf"\A\W{{0,3}}(?:(?:the|my)\s+)?{_NEW}\s+{_REPLY}(?:\*\*)?\s*[:–-](?:\*\*)?\s+", re.IGNORECASE),
    re.compile(r"\A\W{0,3}(?:revision|revised|rewritten|reply|assistant)(?:\*\*)?:(?:\*\*)?\s+", re.IGNORECASE),
    # A heading of its own
    re.compile(rf"\A(?:#+\s*|\*\*)?(?:the\s+)?{_NEW}\s+{_REPLY}(?:\*\*)?\s*\n\s*", re.IGNORECASE),
)
_FENCED = re.compile(r"\A<<<(\w+)\n(.*)\n\1>>>\Z", re.DOTALL)
_BREAK = re.compile(r"\n(?:[^\S\n]*\n)+")
"""The end of a paragraph: each run of empty lines is looked at once, however long a stuck model made it."""
_NEXT_TURN = re.compile(r"(?:human|user|assistant|critique ?request|revision ?request)\s*:", re.IGNORECASE)
_AFTERWORD = re.compile(
    r"[(*_\[\s]*(?:(?:note|explanation|changes(?: made)?)\b\W{0,4}(?:that )?)?"
    r"I(?:['’]ve| have)? (?:removed|rewrote|rewritten|reworded|revised|changed|rephrased|replaced|kept|tried to)\b",
    re.IGNORECASE,
)
_QUOTED = re.compile(r'\A["“]([^"“”]+)["”]\Z')


def spoken(text: str) -> str:
    """The response in a revision: its writer's thoughts, its lead, an echoed fence, quotes around it all, a next turn
    and an afterword go."""
    response = without_thinking(text).strip()
    for lead in _LEADS:
        match = lead.match(response)
        if match and match.end() < len(response):
            response = response[match.end() :].strip()
            break
    ends = list(_BREAK.finditer(response))
    turn = next((at for at, end in enumerate(ends) if _NEXT_TURN.match(response, end.end())), len(ends))
    response, ends = response[: ends[turn].start()] if turn < len(ends) else response, ends[:turn]
    if ends and _AFTERWORD.match(response, ends[-1].end()):
        response = response[: ends[-1].start()].strip()
    for frame, part in ((_FENCED, 2), (_QUOTED, 1)):
        if match := frame.match(response):
            response = match[part].strip()
    return response


class Use(StrEnum):
    """The use of a revision: `revised` is usable, every other value says why not."""

    REVISED = "revised"
    UNCHANGED = "unchanged"
    """It is its parent, capitals, spaces, quotes and the last stop aside."""
    EMPTY = "empty"
    TRUNCATED = "truncated"
    """It was cut at `max_tokens`."""
    CRITIQUE = "critique"
    """It reviews the response instead of rewriting it."""
    REQUEST = "request"
    """It repeats the request or the frame around it, or speaks for the user."""
    EXAMPLE = "example"
    """It repeats a solved case that was shown first."""


class Parent(NamedTuple):
    """The response that a revision rewrites, and what was shown with it."""

    text: str
    critique: str | None
    request: str
    user_message: str
    """The user's last message."""
    examples: tuple[str, ...] = ()
    """Responses of solved cases that were shown."""


def use_of(text: str, parent: Parent, finish_reason: str | None) -> Use:
    """Classify the `spoken` text of a revision."""
    if not text:
        return Use.EMPTY
    if finish_reason == "length":
        return Use.TRUNCATED
    if same(text, parent.text):
        return Use.UNCHANGED
    if _is_review(text, parent):
        return Use.CRITIQUE
    if _is_request(text, parent):
        return Use.REQUEST
    if any(likeness(text, shown) >= _SAME for shown in parent.examples):
        return Use.EXAMPLE
    return Use.REVISED


def _is_review(text: str, parent: Parent) -> bool:
    overlap = likeness(text, parent.critique) if parent.critique else 0.0
    if headed := _HEADED.match(text):  # users ask for reviews, too
        heading = headed[1].lower()
        return heading not in parent.user_message.lower() and (heading == "critique" or overlap >= _HINT)
    return overlap >= _ECHO or _REVIEWS.match(text) is not None


def _is_request(text: str, parent: Parent) -> bool:
    if _ASKS.search(text) or likeness(text, parent.request) >= _ECHO:
        return True
    speaker, message = _SPEAKS_FOR.match(text), parent.user_message
    if speaker and speaker[1].lower() not in message.lower():
        return True
    if any(mark not in parent.text for mark in _FRAME.findall(text)):
        return True
    return len(message.split()) >= _MIN_COPIED_WORDS and likeness(text, message) >= _SAME


def same(one: str, other: str) -> bool:
    """Whether two texts differ in no more than capitals, spaces, the form of quotes, and the stop at the end."""
    return _folded(one) == _folded(other)


def _folded(text: str) -> str:
    plain = re.sub("[“”„«»]", '"', re.sub("[‘’]", "'", text.casefold()))
    return " ".join(plain.split()).rstrip(".! ")


def likeness(one: str, other: str) -> float:
    """Share of word trigrams that two texts have in common, 1 for the same words (Jaccard; case and marks ignored).

    In scripts without spaces each character counts as a word. Texts without any word have nothing in common.
    """
    first, second = _trigrams(one), _trigrams(other)
    return len(first & second) / len(first | second) if first and second else 0.0


def _trigrams(text: str) -> set[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    padded = ["", *words, ""]
    return {tuple(padded[at : at + 3]) for at in range(max(1, len(padded) - 2))} if words else set()
