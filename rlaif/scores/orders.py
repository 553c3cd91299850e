"""Rankings of several samples at once: the questions, their answers read strictly, and what they say about pairs.

The judge sees all samples of a prompt together, in several orders drawn by hash, so that where a sample stands in the
list averages out. An answer counts only if it names every reply exactly once.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Iterable, Sequence

from rlaif.asking import Judge
from rlaif.inference.base import Answer, Question
from rlaif.records import Order, Prompt, Sample, Sampling
from rlaif.samples.meetings import Criterion
from rlaif.scores.questions import LETTERS, rank_messages
from rlaif.thinking import without_thinking

MOST = len(LETTERS)
"""Samples that one question can show."""

_LIST = re.compile(r"(?<!\w)([A-J])(?!\w)")
_TALK = re.compile(r"[A-Za-z]{2,}")
_BEST_FIRST = re.compile(r"(?:(?:final )?(?:ranking|order)\W{1,20})?(?:from )?best to worst\b", re.IGNORECASE)
_CUES = {"ranking", "order", "answer", "final", "the", "is", "reply", "replies", "and"}


def order_questions(
    prompt: Prompt,
    samples: Sequence[Sample],
    criterion: Criterion,
    judge: Judge,
    *,
    shuffles: int,
    max_chars: int,
    max_tokens: int = 64,
) -> list[Question]:
    """The samples of a prompt (two to ten) in `shuffles` orders, each a question."""
    return [
        Question(
            "rank",
            judge.name,
            rank_messages(
                prompt.messages,
                [each.text for each in shown],
                criterion.compare,
                max_chars=max_chars,
                templates=judge.templates,
            ),
            Sampling(max_tokens=max_tokens),
            about={
                "prompt": prompt.id,
                "shown": " ".join(each.id for each in shown),
                "principle": criterion.id,
            },
        )
        for shown in shuffled(samples, shuffles)
    ]


def shuffled(samples: Sequence[Sample], count: int) -> list[list[Sample]]:
    """`count` different orders of the samples (all there are, of few), drawn by hash; every second one is the one
    before it turned round.

    A list and its reverse together put every sample as early as late, which cancels a steady preference for a place.
    """
    orders: list[list[Sample]] = []
    count = min(count, math.factorial(len(samples)))
    number = 0
    while len(orders) < count:
        drawn = sorted(samples, key=lambda each, number=number: _hash(str(number), each.id))  # type: ignore[misc]
        number += 1
        if drawn not in orders:
            orders += [drawn, drawn[::-1]]
    return orders[:count]


def order_record(question: Question, answer: Answer) -> Order:
    """The record of one ranking."""
    shown = tuple(str(question.about["shown"]).split())
    places = parse_order(answer.text, len(shown))
    return Order(
        id=question.id,
        prompt=str(question.about["prompt"]),
        shown=shown,
        ranking=None if places is None else tuple(shown[at] for at in places),
        principle=str(question.about["principle"]),
        judge=question.model,
        text=answer.text,
        prompt_tokens=answer.prompt_tokens,
        cached_tokens=answer.cached_tokens,
        completion_tokens=answer.completion_tokens,
    )


def parse_order(text: str, count: int) -> list[int] | None:
    """The places of `count` replies from best to worst, or None.

    The whole answer or its last line must be a list of all letters, each once, with no more words around it than
    `ranking` or `best to worst` before it; ties ("A = B") are no order.
    """
    said = without_thinking(text).strip()
    for each in (said, said.splitlines()[-1] if said else ""):
        line = _BEST_FIRST.sub("", each, count=1)
        letters = _LIST.findall(line)
        wanted = sorted(LETTERS[:count])
        words = {word.lower() for word in _TALK.findall(line)}
        if sorted(letters) == wanted and words <= _CUES and not re.search(r"[=~≈<≺]", line):
            return [LETTERS.index(letter) for letter in letters]
    return None


def win_shares(orders: Iterable[Order]) -> dict[tuple[str, str], float]:
    """For every ordered pair of samples, the share of the readable rankings in which the first one stands before.

    One half is added to either side's count (Krichevsky and Trofimov 1981), so that no pair is ever certain.
    """
    wins: dict[tuple[str, str], float] = {}
    for order in orders:
        for better, worse in itertools.combinations(order.ranking or (), 2):
            wins[better, worse] = wins.get((better, worse), 0.0) + 1.0
    pairs = {tuple(sorted(pair)) for pair in wins}
    shares: dict[tuple[str, str], float] = {}
    for one, other in pairs:
        first, second = wins.get((one, other), 0.0), wins.get((other, one), 0.0)
        shares[one, other] = (first + 0.5) / (first + second + 1.0)
        shares[other, one] = 1.0 - shares[one, other]
    return shares


def _hash(*parts: str) -> bytes:
    return hashlib.blake2b("\0".join(("rank", *parts)).encode(), digest_size=8).digest()
