"""Preference data made for the tests: clean rows of random words, of about equal lengths on both sides."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


class Words:
    """Random sentences, the same on every machine."""

    def __init__(self, seed: int = 0) -> None:
        self._source = random.Random(seed)
        self._words = ["".join(self._source.choices(_LETTERS, k=self._source.randint(3, 9))) for _ in range(3000)]

    def text(self, least: int = 15, most: int = 40) -> str:
        return " ".join(self._source.choices(self._words, k=self._source.randint(least, most))) + "."

    def probability(self) -> float:
        return round(0.51 + 0.48 * self._source.random(), 4)


def clean_rows(count: int = 2000, seed: int = 0) -> list[Row]:
    """Conversational preference rows with soft labels and scores, and nothing wrong with them."""
    words = Words(seed)
    return [
        {
            "prompt": [user(words.text())],
            "chosen": [assistant(words.text())],
            "rejected": [assistant(words.text())],
            "probability": words.probability(),
            "chosen_score": 7.0,
            "rejected_score": 5,
        }
        for _ in range(count)
    ]


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
