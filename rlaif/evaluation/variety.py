"""How varied what a policy says is: different words, repetition, openings. Pure functions of texts.

A policy that has found a hole in its reward repeats itself and opens every answer alike; one that has lost its range
says fewer different things.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_REPEATED = 4
_OPENING = 4

_WITHOUT_SPACES = r"\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f"
"""Kana, Han and Thai: each character counts as a word."""
_WORD = re.compile(rf"[{_WITHOUT_SPACES}]|[^\W{_WITHOUT_SPACES}]+(?:['’][^\W{_WITHOUT_SPACES}]+)*")

Words = Sequence[str]
"""Of one text, as `words_of` finds them."""


def words_of(text: str) -> list[str]:
    """The words of a text in small letters, without its marks; in scripts without spaces, its characters."""
    return _WORD.findall(text.lower())


def distinct(texts: Sequence[Words], size: int) -> float:
    """Different runs of `size` neighbouring words over all such runs of the texts (Li et al. 2016, arXiv:1510.03055).

    It falls as texts are added, as more of what is said was said before: compare it at the same number of texts only.
    0 where no text has so many words.
    """
    different: set[tuple[str, ...]] = set()
    total = 0
    for each in texts:
        runs = _runs(each, size)
        different.update(runs)
        total += len(runs)
    return len(different) / total if total else 0.0


def repetition(words: Words) -> float:
    """Share of a text's runs of four words that stood in it before; a text of fewer words repeats nothing."""
    runs = _runs(words, _REPEATED)
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def commonest_opening(texts: Sequence[Words]) -> tuple[str, float]:
    """The first four words with which most texts begin, and the share of the texts that do.

    A shorter text opens with all its words; one without a word opens with nothing, and counts in the share alone. Of
    equally common openings the first one is told; of no texts, or none with a word, it is ("", 0).
    """
    counts = Counter(" ".join(each[:_OPENING]) for each in texts if each)
    if not counts:
        return "", 0.0
    ((opening, count),) = counts.most_common(1)
    return opening, count / len(texts)


def _runs(words: Words, size: int) -> list[tuple[str, ...]]:
    """All runs of so many neighbouring words."""
    return list(zip(*(words[start:] for start in range(size)), strict=False))
