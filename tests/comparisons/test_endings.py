"""Endings of judges' texts, written by hand, each with the verdict that a careful person reads in it, or none."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlaif import text as text_module
from rlaif.feedback import verdict_reader
from rlaif.feedback.verdict_reader import parse_verdict
from rlaif.records import Verdict
from tests.comparisons.test_reading import CORPUS
from tests.support import DATA

ENDINGS = Path(__file__).with_name("endings.tsv")
"""A label (`A`, `B`, `TIE`, or `NONE`), a tab, and the text, with `\\n` for a line break and `\\\\` for a backslash."""
NAMES = {"A": Verdict.FIRST, "B": Verdict.SECOND, "TIE": Verdict.TIE, "NONE": Verdict.UNPARSED}


def endings() -> list[tuple[str, Verdict]]:
    rows = [line.split("\t") for line in ENDINGS.read_text(encoding="utf-8").splitlines()]
    shown = {"\\n": "\n", "\\\\": "\\"}
    return [(re.sub(r"\\[n\\]", lambda mark: shown[mark[0]], text), NAMES[name]) for name, text in rows]


def misread(texts: list[tuple[str, Verdict]]) -> list[tuple[str, Verdict, Verdict]]:
    return [(text, right, read) for text, right in texts if (read := parse_verdict(text)) is not right]


@pytest.mark.finding(1)
def test_every_ending_is_read_as_a_careful_person_reads_it() -> None:
    texts = endings()
    assert misread(texts) == []
    assert len({text for text, _ in texts}) == len(texts) >= 300
    counts = [sum(right is verdict for _, right in texts) for verdict in Verdict]
    assert min(counts[:2]) >= 80 and counts[2] >= 10 and counts[3] >= 100


@pytest.mark.finding(1)
def test_what_stands_before_an_ending_does_not_change_it() -> None:
    """Reviews with headings, options of an exam and comparisons in them, two lines and more above the end."""
    review = (
        "**Assistant A's answer:** The answer is (B) ribosomal RNA. It is short, and better at dates.\n\n"
        "**Assistant B's answer:** Assistant B's answer is (A). So it says that A is better known.\n\n"
        "Both of them have the same length.\n\nNow to the result of the comparison.\n\nHere it comes.\n\n"
    )
    assert parse_verdict(review) is Verdict.UNPARSED
    whole = re.compile(r"[AB]\n\n|[AB]\.\n\n|analysis|.*</think>", re.DOTALL)  # forms that are a whole reply
    alone = [(text, right) for text, right in endings() if not whole.match(text) and right is not Verdict.UNPARSED]
    assert len(alone) > 200
    read = [(right, parse_verdict(review + text), text) for text, right in alone]
    assert [each for each in read if each[1] not in (each[0], Verdict.UNPARSED)] == []
    assert sum(one is other for one, other, _ in read) >= 0.95 * len(read)


def judged() -> Iterator[tuple[str, str | None, bool]]:
    """Stored texts of judges in the words of our own templates, the recorded winner, and whether it was reasoned."""
    for path in sorted((DATA / "llmbar").glob("judged-*.json.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows: list[dict[str, Any]] = json.load(file)
        for result in (result for row in rows for result in row["results"]):
            for order in ("swap = False", "swap = True"):
                said, winner = result[order]["completion"][0], str(result[order]["winner"])
                text = re.sub(r"\bOutput \(([ab])\)", lambda found: f"Reply {found[1].upper()}", said)
                shown = {"1": "2", "2": "1"}.get(winner) if order.endswith("True") else winner
                yield text, {"1": "A", "2": "B"}.get(str(shown)), "cot" in path.name


@pytest.mark.finding(1)
def test_stored_texts_of_real_judges_are_read_as_recorded() -> None:
    texts = list(judged())
    read = [
        (text, NAMES[winner] if winner else Verdict.UNPARSED, parse_verdict(text), long) for text, winner, long in texts
    ]
    assert len(read) == 2808
    assert [text for text, right, said, _ in read if said not in (right, Verdict.UNPARSED)] == []
    for long in (False, True):
        stated = [right is said for _, right, said, each in read if each is long and right is not Verdict.UNPARSED]
        assert sum(stated) >= (0.95 if long else 1.0) * len(stated)


@pytest.mark.finding(1)
def test_without_its_last_lines_a_text_has_no_verdict_against_the_recorded_one() -> None:
    """Cut off before its conclusion, a review is about both replies, and says nothing or the same thing earlier."""
    wrong = []
    for text, winner, long in judged():
        cut = re.split(r"(?:Therefore|Overall|Thus|Hence|In conclusion)", text)[0] if long else ""
        if parse_verdict(cut) not in (Verdict.UNPARSED, NAMES.get(winner or "NONE")):
            wrong.append(cut)
    assert wrong == []


RULES = [
    (module, name)
    for module in (verdict_reader, verdict_reader)
    for name, value in vars(module).items()
    if isinstance(value, re.Pattern)
] + [(text_module, "_TAG")]
NEVER, EMPTY = re.compile(r"(?!)"), re.compile(r"")


@pytest.mark.finding(1)
@pytest.mark.parametrize(("module", "name"), RULES, ids=[name for _, name in RULES])
def test_every_rule_matters(module: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader without one of its patterns misreads an ending."""
    monkeypatch.setattr(module, name, NEVER)
    texts = [*endings(), *CORPUS]
    try:
        assert misread(texts) != []
    except (AttributeError, TypeError):
        return  # a part without which nothing is read at all


@pytest.mark.sibling("reading-leans-to-a-slot")
def test_the_labels_are_read_alike() -> None:
    """With A for B and B for A, every ending has the mirrored verdict: the reader leans to no slot."""
    mirror = {Verdict.FIRST: Verdict.SECOND, Verdict.SECOND: Verdict.FIRST}
    letters = re.compile(r"(?<![^\W_])[AB](?![^\W_])|(?<=[(_:-])[ab](?![^\W_])|(?<=是)[AB]")
    swapped = [
        (letters.sub(lambda found: found[0].translate(str.maketrans("ABab", "BAba")), text), right)
        for text, right in endings()
    ]
    assert misread([(text, mirror.get(right, right)) for text, right in swapped]) == []
