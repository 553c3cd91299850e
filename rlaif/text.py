"""Texts of others: made fit to be shown, read as JSON within bounds, freed of thoughts, and measured.

`json.loads` raises RecursionError for text that is nested too deeply, which is no ValueError and ends a program that
was ready for broken JSON; what it can still read may be too deep for whoever prints or writes it again. `loads` raises
ValueError for either.

What stands in a reasoning model's marks of thought is no verdict and no reply.

`words_of` to `commonest_opening` measure diversity: a policy that exploits its reward repeats itself and opens every
response alike; a policy that has collapsed says fewer different things.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

_REPEATED = 4
_OPENING = 4
"""Words in a run that counts as repeated, and in an opening."""


_WITHOUT_SPACES = r"\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f"
"""Kana, Han and Thai: each character counts as a word."""
_WORD = re.compile(rf"[{_WITHOUT_SPACES}]|[^\W{_WITHOUT_SPACES}]+(?:['’][^\W{_WITHOUT_SPACES}]+)*")


Words = Sequence[str]
"""The words of one text, from `words_of`."""


_REFUSALS = (
    "i'm sorry, but", "i am sorry, but", "i'm sorry, i", "sorry, but i", "sorry, i can", "i cannot", "i can't",
    "i can not", "i won't", "i will not", "i'm unable to", "i am unable to", "i'm not able to", "i am not able to",
    "i'm not comfortable", "i must decline", "i have to decline", "i'm afraid i can", "i apologize, but",
    "i apologise, but", "unfortunately, i can", "as an ai", "i don't feel comfortable",
)  # fmt: skip


_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but for tabs and line breaks, DEL, C1: what a terminal obeys
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks, embeddings and overrides of the direction of writing
    "\u2028\u2029]"  # separators that some terminals take for line breaks
)


def visible(text: str) -> str:
    """`text` with what would move a cursor, set a title, hide or reorder letters shown as a mark like `\\x1b`.

    Line breaks and tabs stay. What JSON may hold raw gets JSON's own marks (`\\u202e`): a document remains one.
    """
    return _CONTROL.sub(_mark, text)


def one_line(text: str) -> str:
    """The same for a message of one line: a line break in it would make the rest look like a message of its own."""
    return visible(text).replace("\n", "\\n")


def _mark(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x20 else f"\\u{code:04x}"


MOST_LEVELS = 200
"""Of lists and mappings inside each other, as pydantic's own reader has it. Nothing that people write comes near."""


def loads(text: str | bytes, *, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value that `text` holds. Raises ValueError for what is no JSON, and for more than `MOST_LEVELS` levels."""
    try:
        value = json.loads(text, object_pairs_hook=object_pairs_hook)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError:
        raise ValueError("a number in it has thousands of digits") from None
    if _may_be_deep(text) and _is_deep(value):
        raise ValueError(f"nested more than {MOST_LEVELS} levels deep")
    return value


def _may_be_deep(text: str | bytes) -> bool:
    """Whether there are brackets enough; counting them takes a hundredth of the time of reading."""
    if isinstance(text, str):
        return text.count("[") + text.count("{") > MOST_LEVELS
    return text.count(b"[") + text.count(b"{") > MOST_LEVELS


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MOST_LEVELS):
        level = [inner for outer in level for inner in _inside(outer) if isinstance(inner, list | dict)]
        if not level:
            return False
    return True


def _inside(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


_NAMES = "(?:seed:)?(?:think|thinking|thoughts?|reasoning|scratchpad)"
_OPEN_TAGS = rf"<\s*{_NAMES}\s*>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<\|START_THINKING\|>"
_CLOSE_TAGS = rf"<\s*/\s*{_NAMES}\s*>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<\|END_THINKING\|>"
_OPENS = rf"{_OPEN_TAGS}|<\|channel\|>(?:analysis|commentary)"
_CLOSES = rf"{_CLOSE_TAGS}|<\|channel\|>final(?:<\|message\|>)?"
_TAG = re.compile(rf"(?P<open>{_OPENS})|(?P<close>{_CLOSES})", re.IGNORECASE)
_BEGINS = re.compile(rf"\s*(?:{_OPENS}|<think)", re.IGNORECASE)

TAG = re.compile(rf"{_OPEN_TAGS}|{_CLOSE_TAGS}", re.IGNORECASE)
"""Where a thought begins or ends in a response."""
OPEN_AT_END = re.compile(rf"(?:{_OPEN_TAGS})\s*\Z", re.IGNORECASE)
"""The end of a prompt that begins a thought."""
CLOSED_AT_END = re.compile(rf"(?:{_CLOSE_TAGS})\s*\Z", re.IGNORECASE)
"""The end of a prompt behind which no thought is to come."""

_BARE_CHANNEL, _BARE_FINAL = "analysis", "assistantfinal"
"""What is left of a thinking channel and of the one after it where a server drops special tokens from the text."""


def begins_with_thinking(text: str) -> bool:
    """Whether a thought is the first thing in `text`, be its tag cut off after `<think`."""
    return _BEGINS.match(text) is not None


def without_thinking(text: str) -> str:
    """What is said outside of thinking; nothing after thinking that never ended.

    A closing tag without an opening one ends thinking too: some chat templates open it in the prompt.
    """
    if text.startswith(_BARE_CHANNEL):
        _, final, said_last = text.partition(_BARE_FINAL)
        text = said_last if final else text
    said: list[str] = []
    at, thinking = 0, False
    for tag in _TAG.finditer(text):
        if tag["close"] and not thinking:
            said.clear()
        elif not thinking:
            said.append(text[at : tag.start()])
        at, thinking = tag.end(), bool(tag["open"]) or (thinking and not tag["close"])
    return "".join(said) + ("" if thinking else text[at:])


def refuses(reply: str) -> bool:
    """Whether a reply opens like an English refusal."""
    return reply[:80].lstrip().replace("’", "'").lower().startswith(_REFUSALS)


def hashed(text: str) -> int:
    """64 bits of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def words_of(text: str) -> list[str]:
    """The words of a text in lowercase, without punctuation; in scripts without spaces, its characters."""
    return _WORD.findall(text.lower())


def distinct(texts: Sequence[Words], size: int) -> float:
    """Different runs of `size` neighbouring words over all such runs of the texts (Li et al. 2016, arXiv:1510.03055).

    It falls as texts are added: compare it only at the same number of texts. 0 where no text has so many words.
    """
    different: set[tuple[str, ...]] = set()
    total = 0
    for words in texts:
        runs = _runs(words, size)
        different.update(runs)
        total += len(runs)
    return len(different) / total if total else 0.0


def repetition(words: Words) -> float:
    """Share of a text's runs of four words that occur earlier in it; a text of fewer words repeats nothing."""
    runs = _runs(words, _REPEATED)
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def commonest_opening(texts: Sequence[Words]) -> tuple[str, float]:
    """The first four words with which most texts begin, and the share of the texts that do.

    A shorter text opens with all its words; one without a word opens with nothing, and counts in the share alone. Of
    equally common openings the first one counts; of no texts, or none with a word, it is ("", 0).
    """
    counts = Counter(" ".join(words[:_OPENING]) for words in texts if words)
    if not counts:
        return "", 0.0
    ((opening, count),) = counts.most_common(1)
    return opening, count / len(texts)


def _runs(words: Words, size: int) -> list[tuple[str, ...]]:
    """All runs of so many neighbouring words."""
    return list(zip(*(words[start:] for start in range(size)), strict=False))
