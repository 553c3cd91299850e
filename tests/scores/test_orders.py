"""Rankings: shuffles, strict reading, and what they say about pairs, by hand."""

from __future__ import annotations

import pytest

from rlaif.config.judge_templates import Judge
from rlaif.feedback.judge import Criterion
from rlaif.feedback.scoring import order_questions, order_record, parse_order, shuffled, win_shares
from rlaif.inference.base import Output
from rlaif.records import Message, Order, Prompt, Sample

PROMPT = Prompt(id="p", messages=(Message(role="user", content="How?"),), source="here")
SAMPLES = [Sample(id=name, prompt="p", index=at, text=f"Reply {name}", policy="x") for at, name in enumerate("uvwx")]


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("B > A > C", [1, 0, 2]),
        ("B, A, C", [1, 0, 2]),
        ("**C > B > A**", [2, 1, 0]),
        ("Ranking: C > A > B.", [2, 0, 1]),
        ("The final order is A > B > C", [0, 1, 2]),
        ("Best to worst: A B C", [0, 1, 2]),
        ("Reply B > Reply A > Reply C", [1, 0, 2]),
        ("B is kind, A is not.\n\nB > A > C", [1, 0, 2]),
        ("<think>A > B > C</think>C > B > A", [2, 1, 0]),
        ("1. B\n2. A\n3. C", [1, 0, 2]),
        ("B > A", None),
        ("B > A > C > A", None),
        ("B > A > D", None),
        ("A = B > C", None),
        ("A < B < C", None),
        ("A is better than B and C", None),
        ("From best to worst: C > A > B", [2, 0, 1]),
        ("**Ranking (best to worst):** C > A > B", [2, 0, 1]),
        ("Worst to best: A, B, C", None),
        ("A is the worst, B is the best, C", None),
        ("Ranking from worst to best: A B C", None),
        ("All are fine", None),
        ("", None),
        ("<think>A > B > C", None),
    ],
)
def test_an_order_names_every_reply_once(text: str, order: list[int] | None) -> None:
    assert parse_order(text, 3) == order


def test_shuffles_come_with_their_reverse() -> None:
    one, back, other, again = shuffled(SAMPLES, 4)
    assert back == one[::-1] and again == other[::-1]
    assert one != other
    assert shuffled(SAMPLES[::-1], 4) == [one, back, other, again]
    assert shuffled(SAMPLES, 3) == [one, back, other]
    assert len(shuffled(SAMPLES[:2], 20)) == 2
    assert len({tuple(each.id for each in order) for order in shuffled(SAMPLES, 24)}) == 24


def test_letters_are_joined_by_what_was_shown() -> None:
    questions = order_questions(
        PROMPT, SAMPLES[:3], Criterion("kind", 1.0, "Kinder?", None), Judge("j"), shuffles=2, max_chars=99
    )
    for question in questions:
        shown = str(question.about["shown"]).split()
        record = order_record(question, Output(text="C > A > B"))
        assert record.ranking == (shown[2], shown[0], shown[1])
        text = question.messages[0].content
        places = [text.index(f"Reply {name}\n") for name in shown]
        assert places == sorted(places), "shown in this order"
    assert order_record(questions[0], Output(text="no idea")).ranking is None


def test_shares_by_hand() -> None:
    """u before v in two of two: (2 + 1/2) / (2 + 1); u before w in one of two: one half."""

    def order(*ranking: str) -> Order:
        return Order(id="i", prompt="p", shown=ranking, ranking=ranking, principle="k", judge="j", text="")

    lost = Order(id="i", prompt="p", shown=("u", "v"), ranking=None, principle="k", judge="j", text="")
    shares = win_shares([order("u", "v", "w"), order("w", "u", "v"), lost])
    assert shares["u", "v"] == pytest.approx(2.5 / 3)
    assert shares["v", "u"] == pytest.approx(0.5 / 3)
    assert shares["u", "w"] == shares["w", "u"] == pytest.approx(0.5)
    assert win_shares([lost]) == {}
