"""Effect size, AUC, entropy and similarity, against values worked out by hand or in the plain way."""

from __future__ import annotations

import math
import random
import statistics
from collections import Counter
from pathlib import Path

import pytest

from rlaif.data.checks import alike, entropy
from rlaif.data.conversations import Turn, Turns, ordered
from rlaif.data.duplicates import SIMILARITY, EvaluationSet, Neighbours, prompt_hash
from rlaif.data.formats import Reading
from rlaif.data.length_bias import LengthSums, area, median
from rlaif.text import refuses
from tests.data.made import write_jsonl


def test_effect_size_of_pairs_by_hand() -> None:
    """Logs ln 2, 2 ln 2, 3 ln 2 against 0: means 2 ln 2 and 0, variances (ln 2)^2 and 0, pooled half of that."""
    sums = LengthSums()
    for length in (1, 3, 7):
        sums.add(length, 0)
    lengths = sums.result()
    assert lengths is not None
    assert lengths.effect_size == pytest.approx(2 * math.sqrt(2))
    assert (lengths.pairs, lengths.chosen_longer, lengths.rejected_longer) == (3, 1.0, 0.0)
    assert (lengths.median_chosen, lengths.median_rejected, lengths.auc) == (3, 0, 1.0)


def test_effect_size_of_unpaired_replies_by_hand() -> None:
    """Logs ln 2, 3 ln 2 against 0, 2 ln 2: means 2 ln 2 and ln 2, both variances 2 (ln 2)^2, d = 1 / sqrt 2."""
    sums = LengthSums()
    for chosen, rejected in ((1, None), (7, None), (None, 0), (None, 3)):
        sums.add(chosen, rejected)
    lengths = sums.result()
    assert lengths is not None
    assert lengths.effect_size == pytest.approx(1 / math.sqrt(2))
    assert (lengths.pairs, lengths.chosen_longer) == (0, None)


@pytest.mark.finding(9)
@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_the_effect_size_is_one_whether_lengths_go_together_or_not(correlation: float) -> None:
    """Log lengths of deviation 0.5 whose means lie 0.39 deviations apart: d is 0.39. Over the deviation of the
    differences within pairs it would be 0.28 without a correlation, and 0.62 with one of 0.8."""
    rng, paired, apart = random.Random(1), LengthSums(), LengthSums()
    for _ in range(20_000):
        one = rng.gauss(0, 1)
        other = correlation * one + math.sqrt(1 - correlation**2) * rng.gauss(0, 1)
        chosen, rejected = round(math.exp(7 + 0.5 * (one + 0.39))), round(math.exp(7 + 0.5 * other))
        paired.add(chosen, rejected)
        apart.add(chosen, None)
        apart.add(None, rejected)
    found, unpaired = paired.result(), apart.result()
    assert found is not None and unpaired is not None
    assert found.effect_size == pytest.approx(0.39, abs=0.02)
    assert found.effect_size == pytest.approx(unpaired.effect_size)


def test_equal_differences_have_no_effect_size() -> None:
    sums = LengthSums()
    sums.add(5, 2)
    sums.add(5, 2)
    lengths = sums.result()
    assert lengths is not None and lengths.effect_size is None
    assert LengthSums().result() is None


def test_area_by_hand() -> None:
    """{1, 3} against {2, 3}: of the four matchups one is won, one is even, two are lost: 1.5 / 4."""
    assert area(Counter([1, 3]), Counter([2, 3])) == 0.375


def test_figures_agree_with_the_plain_way() -> None:
    source = random.Random(0)
    pairs = [(source.randint(0, 40), source.randint(5, 45)) for _ in range(200)]
    sums = LengthSums()
    for chosen, rejected in pairs:
        sums.add(chosen, rejected)
    lengths = sums.result()
    assert lengths is not None
    logs = [[math.log1p(pair[side]) for pair in pairs] for side in (0, 1)]
    pooled = math.sqrt((statistics.variance(logs[0]) + statistics.variance(logs[1])) / 2)
    assert lengths.effect_size == pytest.approx((statistics.mean(logs[0]) - statistics.mean(logs[1])) / pooled)
    matchups = [(c > r) + (c == r) / 2 for c, _ in pairs for _, r in pairs]
    assert lengths.auc == pytest.approx(statistics.mean(matchups))
    assert median(Counter(c for c, _ in pairs)) == statistics.median_low(c for c, _ in pairs)


@pytest.mark.parametrize(("probability", "bits"), [(0.5, 1.0), (1.0, 0.0), (0.0, 0.0), (0.75, 2 - 0.75 * math.log2(3))])
def test_entropy_by_hand(probability: float, bits: float) -> None:
    assert entropy(probability) == pytest.approx(bits)


def test_alike_by_hand() -> None:
    """`abcd` has abc, bcd; `abce` has abc, bce: one of three. Shorter texts have no pieces."""
    assert alike("abcd", "abce") == pytest.approx(1 / 3)
    assert alike("same", "same") == 1.0
    assert alike("no", "no") == 0.0


@pytest.mark.parametrize("opening", ["I cannot help.", " I’m sorry, but no.", "As an AI, I do not eat.", "I won't."])
def test_refusals(opening: str) -> None:
    assert refuses(opening)


@pytest.mark.parametrize("opening", ["I can do that.", "Sorry for the wait! Here it is.", "No, I cannot recall it."])
def test_not_refusals(opening: str) -> None:
    assert not refuses(opening)


U, A, S = Turn("user", "u"), Turn("assistant", "a"), Turn("system", "s")


@pytest.mark.parametrize("turns", [(U,), (S, U), (U, A, U), (S, U, A, U)])
def test_orders_that_chat_templates_take(turns: Turns) -> None:
    assert ordered(turns)


@pytest.mark.parametrize("turns", [(), (S,), (A,), (U, A), (U, U), (U, S, U), (A, U), (S, S, U), (U, A, S, U)])
def test_orders_that_they_refuse(turns: Turns) -> None:
    assert not ordered(turns)


def pieces(text: str) -> set[str]:
    """The sets that MinHash compares, in the plain way."""
    return {text[at : at + 5] for at in range(len(text) - 4)}


def test_near_duplicate_prompts_agree_with_exact_similarity() -> None:
    """All pairs above 0.9 are found, none below 0.7, and nothing meets a stranger."""
    source = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz "
    texts: list[str] = []
    exact: list[float] = []
    for number in range(300):
        text = "".join(source.choices(letters, k=200)).strip().replace("  ", " ")
        changed = list(text)
        for at in source.sample(range(len(text)), k=number % 15):
            changed[at] = source.choice("0123456789")
        texts += [text, "".join(changed)]
        one, other = pieces(texts[-2]), pieces(texts[-1])
        exact.append(len(one & other) / len(one | other))
    search = Neighbours()
    for row, text in enumerate(texts):
        prompt = (Turn("user", text),)
        search.add(row, prompt_hash(prompt), prompt)
    near = set(search.find())
    assert not {row for row in near if row % 2 == 0}
    for pair, similarity in enumerate(exact):
        if similarity == 1.0 or similarity < SIMILARITY - 0.1:
            assert 2 * pair + 1 not in near
        elif similarity > SIMILARITY + 0.1:
            assert 2 * pair + 1 in near
    assert sum(similarity > SIMILARITY + 0.1 for similarity in exact) > 20


def test_neighbours_differ_in_letters_and_spaces_only() -> None:
    search = Neighbours()
    for row, text in enumerate(("Where is the station?", "where  is the\nstation?", "Where is the station?", "hm")):
        prompt = (Turn("user", text),)
        search.add(row, prompt_hash(prompt), prompt)
    assert search.find() == [1]


def test_no_prompt_is_too_short_or_too_long() -> None:
    search = Neighbours()
    for row, text in enumerate(("", "a", "b" * 100_000, "ü" * 3)):
        prompt = (Turn("user", text),)
        search.add(row, prompt_hash(prompt), prompt)
    assert search.find() == []


def overlap(tmp_path: Path, *texts: str) -> bool:
    """Whether a prompt and its two replies meet an evaluation set of one item of 14 words."""
    item = write_jsonl(
        tmp_path / "eval.jsonl", [{"question": "a b c d e f g h i j k l m n", "id": "x"}, "who was it now"]
    )
    prompt, chosen, rejected = texts
    return EvaluationSet(str(item)).meets(Reading((Turn("user", prompt),), chosen, rejected))


def test_a_shared_system_prompt_is_no_overlap(tmp_path: Path) -> None:
    shared = "you are a kind assistant that answers all questions in short and plain words"
    item = {"messages": [{"role": "system", "content": shared}, {"role": "user", "content": "who was it now"}]}
    found = EvaluationSet(
        str(write_jsonl(tmp_path / "eval.jsonl", [item, {"system": shared, "prompt": "how so and why"}]))
    )
    system = Turn("system", shared)
    assert not found.meets(Reading((system, Turn("user", "Something else?")), "x", "y"))
    assert found.meets(Reading((system, Turn("user", "Who was it, now?")), "x", "y"))
    assert found.meets(Reading((system, Turn("user", "How so, and why?")), "x", "y"))


@pytest.mark.parametrize(
    ("texts", "meets"),
    [
        (("A b c, d e f g h i j k l M!", "", ""), True),
        (("x", "y", "and B C D E F G H I J K L M N too"), True),
        (("a b c d e f g h i j k l", "m n", ""), False),
        (("a b c d e f x g h i j k l m n", "", ""), False),
        (("Who was it, now?", "", ""), True),
        (("So who was it now", "who was it now", ""), False),
    ],
)
def test_thirteen_words_in_one_text_or_a_whole_short_item(texts: tuple[str, ...], meets: bool, tmp_path: Path) -> None:
    assert overlap(tmp_path, *texts) is meets
