"""What can be wrong with one row's texts, seen from that row alone."""

from __future__ import annotations

from rlaif.data.shapes import Reading
from rlaif.data.turns import Odd, ordered

NEXT_TURN = (
    "\n\nHuman:",
    "\n\nUser:",
    "<|im_start|>user",
    "<|user|>",
    "<|start_header_id|>user",
    "<start_of_turn>user",
    "<|User|>",
    "<｜User｜>",
    "[INST]",
    "\n### Human:",
    "\n### User:",
    "\n### Instruction:",
)
"""How a user's turn begins in hh-rlhf, ChatML, Llama 2 and 3, Gemma, DeepSeek, Alpaca and Vicuna data."""

_GARBLED = (
    "\ufffd", "Ã©", "Ã¨", "Ã¼", "Ã¶", "Ã¤", "Ã±", "Ã§", "Ã¡", "Ã³",
    "â€™", "â€œ", "â€\x9d", "â€“", "â€”", "â€¦", "Â\xa0",
)  # fmt: skip
"""The replacement character, and what frequent UTF-8 letters and quotes become when they are read as Windows-1252."""

_REFUSALS = (
    "i'm sorry, but", "i am sorry, but", "i'm sorry, i", "sorry, but i", "sorry, i can", "i cannot", "i can't",
    "i can not", "i won't", "i will not", "i'm unable to", "i am unable to", "i'm not able to", "i am not able to",
    "i'm not comfortable", "i must decline", "i have to decline", "i'm afraid i can", "i apologize, but",
    "i apologise, but", "unfortunately, i can", "as an ai", "i don't feel comfortable",
)  # fmt: skip
_LEAST_LEAK = 20
"""Characters of the shortest prompt that counts as leaked: a reply to `Hello` may well hold it."""
_NEAR = 0.9


def refuses(reply: str) -> bool:
    """Whether a reply opens like an English refusal."""
    return reply[:80].lstrip().replace("’", "'").lower().startswith(_REFUSALS)


def check_texts(reading: Reading, odd: Odd) -> None:
    """Tell `odd` every rule that the row's prompt and replies break."""
    users = [turn.content for turn in reading.prompt if turn.role == "user"]
    if not ordered(reading.prompt):
        odd("role-order")
    if not users or any(not said.strip() for said in users):
        odd("empty-prompt")
    replies = [reply for reply in (reading.chosen, reading.rejected) if reply is not None]
    asked = users[-1].strip() if users else ""
    for reply in replies:
        _check_reply(reply, asked, odd)
    for text in (*(turn.content for turn in reading.prompt), *replies):
        if not text.isascii():
            _check_letters(text, odd)
    if reading.chosen is not None and reading.rejected is not None:
        _check_pair(reading.chosen.strip(), reading.rejected.strip(), odd)


def _check_reply(reply: str, asked: str, odd: Odd) -> None:
    if not reply.strip():
        odd("empty-reply")
    if len(asked) >= _LEAST_LEAK and asked in reply:
        odd("prompt-in-reply")
    if any(mark in reply for mark in NEXT_TURN):
        odd("next-turn")


def _check_letters(text: str, odd: Odd) -> None:
    if any(sign in text for sign in _GARBLED):
        odd("garbled")
    try:
        text.encode()
    except UnicodeEncodeError:
        odd("half-character")


def _check_pair(chosen: str, rejected: str, odd: Odd) -> None:
    if chosen == rejected:
        odd("identical" if chosen else "empty-reply")
        return
    shorter, longer = sorted((len(chosen), len(rejected)))
    if shorter >= _NEAR * longer and alike(chosen, rejected) >= _NEAR:
        odd("near-identical")


def alike(one: str, other: str) -> float:
    """Jaccard similarity of the sets of three-character pieces, from 0 to 1; 0 for texts shorter than that."""
    first = {one[at : at + 3] for at in range(len(one) - 2)}
    second = {other[at : at + 3] for at in range(len(other) - 2)}
    shared = len(first & second)
    return shared / max(len(first) + len(second) - shared, 1)
