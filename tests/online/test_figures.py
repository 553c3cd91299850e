"""The figures of a batch, by pencil and paper."""

from __future__ import annotations

import math
import random

import pytest

from rlaif.records import Message
from rlaif.rl import run
from rlaif.rl.experience import RESPONSE_METRICS, Response, TokenizedPrompt, response_metrics
from rlaif.rl.monitor import TRAINER_METRICS
from rlaif.text import commonest_opening, words_of

ASKED = TokenizedPrompt("p", (Message(role="user", content="Well?"),), (1, 2))


def response(text: str = "so it is", *, tokens: int = 3, logp: float = -1.0, finished: bool = True) -> Response:
    return Response(ASKED, 0, tuple(range(tokens)), (logp,) * tokens, text, finished, 0)


def test_lengths_ends_and_entropy_by_hand() -> None:
    """Lengths 2, 4, 6: mean 4, and the 95th percentile lies at 0.95 * 2 = 1.9, so at 4 + 0.9 * 2 = 5.8.

    12 tokens: two of -log p 1, four of 2, six of 0.5 make 2 + 8 + 3 = 13 nats.
    """
    batch = [response(tokens=2, logp=-1.0), response(tokens=4, logp=-2.0), response(tokens=6, logp=-0.5)]
    batch[1] = response("", tokens=4, logp=-2.0, finished=False)
    found = response_metrics(batch)
    assert (found["responses"], found["length"]) == (3, 4)
    assert found["length_p95"] == pytest.approx(5.8)
    assert found["truncated"] == found["empty"] == pytest.approx(1 / 3)
    assert found["entropy"] == pytest.approx(13 / 12), "a token counts once, in a long answer as in a short one"


def test_distinct_shares_by_hand() -> None:
    """Words a b a b | a b c: 3 of 7 differ; pairs ab ba ab | ab bc: 3 of 5; threes aba bab | abc: 3 of 3."""
    found = response_metrics([response("A b, a B!"), response("a b c.")])
    assert found["distinct_1"] == pytest.approx(3 / 7)
    assert found["distinct_2"] == pytest.approx(3 / 5)
    assert found["distinct_3"] == 1


def test_distinct_shares_fall_with_the_batch() -> None:
    """The same answer twice has half the share: that is why the batch size has to be the same."""
    one = response_metrics([response("a b c d")])["distinct_2"]
    assert (one, response_metrics([response("a b c d")] * 2)["distinct_2"]) == (1, 0.5)


def test_every_batch_has_every_figure() -> None:
    """Processes add theirs up: none may lack a name because its answers were short."""
    short, blank = response_metrics([response("one word"), response("")]), response_metrics([response(" \n")])
    assert set(short) == set(blank) == set(RESPONSE_METRICS)
    assert (short["distinct_2"], short["distinct_3"]) == (1, 0)
    assert (blank["distinct_1"], blank["repetition"], blank["openings"], blank["empty"]) == (0, 0, 0, 1)


def test_repetition_is_counted_within_an_answer_only() -> None:
    """Six times `x` has three runs of four, two of them repeated; the same answer twice repeats nothing in itself."""
    assert response_metrics([response("x x x x x x")])["repetition"] == pytest.approx(2 / 3)
    assert response_metrics([response("a b c d e")] * 3)["repetition"] == 0
    mixed = response_metrics([response("x x x x x x"), response("too short"), response("a b c d e f")])
    assert mixed["repetition"] == pytest.approx(2 / 9), "a long loop does not drown the other answers"


def opening_of(*texts: str) -> tuple[str, float]:
    return commonest_opening([words_of(text) for text in texts])


def test_openings() -> None:
    texts = ["I am so sorry. A", "I am SO sorry, but b", "I am so glad", "Yes", ""]
    assert opening_of(*texts) == ("i am so sorry", 0.4)
    assert response_metrics([response(text) for text in texts])["openings"] == 0.4
    assert opening_of("Yes!", "yes", "no", "oh") == ("yes", 0.5)
    assert opening_of("", " ") == opening_of() == ("", 0.0)
    assert response_metrics([response(f"answer {at} of many") for at in range(8)])["openings"] == 1 / 8


def test_refusals_are_told_by_their_opening() -> None:
    texts = ["I can’t help with that.", "Sorry, but I can't do that.", "Of course. I can't wait!", "Take the train."]
    assert response_metrics([response(text) for text in texts])["refusals"] == 0.5


def test_words() -> None:
    assert words_of("Don't  panic -- it’s OK, naïve_1!") == ["don't", "panic", "it’s", "ok", "naïve_1"]
    assert words_of("今日は good") == ["今", "日", "は", "good"]
    assert words_of("' ... '") == []


def test_entropy_of_a_known_distribution() -> None:
    """Tokens of probability 0.7, 0.2 and 0.1 have an entropy of 0.8018 nats; 20,000 draws come within 0.02."""
    rng = random.Random(3)
    drawn = rng.choices([0.7, 0.2, 0.1], weights=[0.7, 0.2, 0.1], k=20_000)
    batch = [
        Response(ASKED, 0, (1,) * 10, [math.log(p) for p in drawn[at : at + 10]], "x", True, 0)
        for at in range(0, len(drawn), 10)
    ]
    assert response_metrics(batch)["entropy"] == pytest.approx(0.8018, abs=0.02)


def test_the_trainer_adds_figures_of_its_own() -> None:
    assert not RESPONSE_METRICS.keys() & TRAINER_METRICS.keys()


def test_nothing_has_no_figures() -> None:
    with pytest.raises(ValueError, match="no responses"):
        response_metrics([])


@pytest.mark.sibling("a-withheld-figure-is-no-earlier-one")
def test_a_figure_that_was_withheld_at_the_last_look_is_no_earlier_one() -> None:
    history = [
        {"step": 1, "kl": 1.0, "held_out/win_rate": 0.6, "held_out/length_controlled": 0.55},
        {
            "step": 2,
            "kl": 2.0,
            "held_out/win_rate": 0.2,
            "held_out/length_controlled": None,
            "held_out/note": "extrapolated",
        },
        {"step": 3, "kl": 3.0},
    ]
    assert run._last_metrics(history, 3) == {"kl": 3.0, "held_out/win_rate": 0.2}
    assert run._last_metrics(history, 1) == {"kl": 1.0, "held_out/win_rate": 0.6, "held_out/length_controlled": 0.55}
