"""Lengths: of chosen and rejected responses, and in tokens against a limit.

How long the chosen and the rejected replies are: the bias that every reward model learns first.

How many rows a limit on their tokens cuts, by a tokenizer, or estimated where none is named.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from rlaif.data.conversations import Turn
from rlaif.data.findings import Finding, Lengths, Truncation, about_file
from rlaif.data.formats import Reading
from rlaif.errors import UserError
from rlaif.inference.chat_template import special_tokens
from rlaif.store import shipped_model

LEAST_PAIRS = 30
"""Below it, shares and effect sizes are noise and nothing is said about them."""
_LONGEST = 100_000
"""Longer replies count as this long in the histograms."""
_SMALL_EFFECT, _MEDIUM_EFFECT = 0.2, 0.5
"""Cohen's own marks (Statistical Power Analysis for the Behavioral Sciences, 1988)."""
_LENGTH_SHARE = 0.65


@dataclass
class Moments:
    """Count, mean and spread of numbers that pass by (Welford's method)."""

    count: int = 0
    mean: float = 0.0
    _squares: float = 0.0

    def add(self, value: float) -> None:
        """Take one number in."""
        self.count += 1
        step = value - self.mean
        self.mean += step / self.count
        self._squares += step * (value - self.mean)

    @property
    def variance(self) -> float:
        """Of the sample (n - 1); 0 for fewer than two numbers."""
        return self._squares / (self.count - 1) if self.count > 1 else 0.0


@dataclass
class LengthSums:
    """Lengths of chosen and rejected replies, as histograms and as moments of log(1 + length)."""

    chosen: Counter[int] = field(default_factory=Counter)
    rejected: Counter[int] = field(default_factory=Counter)
    _logs: tuple[Moments, Moments] = field(default_factory=lambda: (Moments(), Moments()))
    _pairs: int = 0
    _longer: int = 0
    _shorter: int = 0

    def add(self, chosen: int | None, rejected: int | None) -> None:
        """Take a pair in, or one reply of unpaired data."""
        for length, counts, moments in zip((chosen, rejected), (self.chosen, self.rejected), self._logs, strict=True):
            if length is not None:
                counts[min(length, _LONGEST)] += 1
                moments.add(math.log1p(length))
        if chosen is not None and rejected is not None:
            self._pairs += 1
            self._longer += chosen > rejected
            self._shorter += chosen < rejected

    def result(self) -> Lengths | None:
        """The figures, or None where one side has no reply."""
        if not self.chosen or not self.rejected:
            return None
        pairs = self._pairs
        return Lengths(
            pairs=pairs,
            chosen_longer=self._longer / pairs if pairs else None,
            rejected_longer=self._shorter / pairs if pairs else None,
            median_chosen=median(self.chosen),
            median_rejected=median(self.rejected),
            effect_size=self._effect(),
            auc=area(self.chosen, self.rejected),
        )

    def _effect(self) -> float | None:
        """Cohen's d: the difference of the means over the pooled deviation of both sides, of pairs and others alike.

        Over the deviation of the pairs' differences it would be another scale, larger where lengths go together.
        """
        one, other = self._logs
        weights = one.count + other.count - 2
        pooled = ((one.count - 1) * one.variance + (other.count - 1) * other.variance) / weights if weights > 0 else 0.0
        return (one.mean - other.mean) / math.sqrt(pooled) if pooled > 0 else None


def median(counts: Counter[int]) -> int:
    """The lower median of a histogram."""
    half, seen = (counts.total() + 1) // 2, 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= half:
            return value
    return 0


def area(chosen: Counter[int], rejected: Counter[int]) -> float:
    """P(chosen > rejected) + P(equal) / 2 over all of either: the area under the ROC curve (Mann-Whitney's U / nm)."""
    below, won = 0, 0.0
    for value in sorted(chosen.keys() | rejected.keys()):
        won += chosen[value] * (below + rejected[value] / 2)
        below += rejected[value]
    return won / (chosen.total() * rejected.total())


def length_finding(lengths: Lengths | None, rows: int) -> Finding | None:
    """What to say about length in `rows` rows, where there is enough of it."""
    if lengths is None or rows < LEAST_PAIRS:
        return None
    effect = abs(lengths.effect_size or 0.0)
    share = max(lengths.chosen_longer or 0.0, lengths.rejected_longer or 0.0)
    if effect < _SMALL_EFFECT and share < _LENGTH_SHARE:
        return None
    return about_file(
        "warning" if effect >= _MEDIUM_EFFECT or share >= _LENGTH_SHARE else "note",
        "length-bias",
        rows,
        f"{_told(lengths)}: length alone is a reward with AUC {lengths.auc:.2f}",
        "compare any reward model with that baseline; balance lengths, or judge with a principle against padding",
    )


def _told(lengths: Lengths) -> str:
    longer = lengths.auc >= 0.5
    often = lengths.chosen_longer if longer else lengths.rejected_longer
    figures = [] if often is None else [f"in {often:.0%} of the pairs"]
    if lengths.effect_size is not None:
        figures.append(f"Cohen's d of log length {lengths.effect_size:+.2f}")
    return f"chosen replies are {'longer' if longer else 'shorter'} ({', '.join(figures)})"


_CHARACTERS = 4
"""Of English text in a token of a common BPE vocabulary, about."""
_BATCH = 256
_MANY = 0.05

TokenCounter = Callable[[Sequence[str]], list[int]]
"""Tokens of each of several texts."""


class Limit:
    """Counts what a limit cuts; texts are tokenized in batches."""

    def __init__(self, max_length: int, tokenizer: str | None) -> None:
        """Raises UserError where there is no such tokenizer."""
        self.max_length, self._name = max_length, tokenizer
        self._count, self._per_turn = (_estimate, 0) if tokenizer is None else _load(tokenizer)
        self._waiting: list[tuple[str, int, tuple[str | None, str | None]]] = []
        self._rows = self._prompts = 0
        self._sides, self._cut = [0, 0], [0, 0]

    def add(self, reading: Reading) -> None:
        """Take one row in."""
        prompt = "\n".join(turn.content for turn in reading.prompt)
        self._waiting.append((prompt, len(reading.prompt), (reading.chosen, reading.rejected)))
        if len(self._waiting) == _BATCH:
            self._settle()

    def _settle(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        prompts = self._count([row[0] for row in waiting])
        full = [tokens + turns * self._per_turn for tokens, (_, turns, _) in zip(prompts, waiting, strict=True)]
        self._rows += len(waiting)
        self._prompts += sum(tokens >= self.max_length for tokens in full)
        for side in (0, 1):
            replies = [(at, reply) for at, row in enumerate(waiting) if (reply := row[2][side]) is not None]
            tokens = self._count([reply for _, reply in replies])
            self._sides[side] += len(replies)
            self._cut[side] += sum(
                full[at] + self._per_turn + count > self.max_length
                for (at, _), count in zip(replies, tokens, strict=True)
            )

    def result(self) -> Truncation | None:
        """The figures, or None where no row was taken in."""
        self._settle()
        if not self._rows:
            return None
        chosen, rejected = (cut / side if side else None for cut, side in zip(self._cut, self._sides, strict=True))
        prompt = self._prompts / self._rows
        return Truncation(
            max_length=self.max_length, tokenizer=self._name, prompt=prompt, chosen=chosen, rejected=rejected
        )


def _estimate(texts: Sequence[str]) -> list[int]:
    return [-(-len(text) // _CHARACTERS) for text in texts]


@lru_cache(maxsize=2)
def _tokenizer(name: str) -> Any:
    """The tokenizer of a model. Raises UserError where there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(shipped_model(name) or name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        why = str(error).strip().partition("\n")[0]
        hint = "give the folder of a model, or a name on the hub"
        raise UserError(f"no tokenizer that can be loaded ({why})", where=name, hint=hint) from None


def special_tokens_of(name: str | None) -> frozenset[str]:
    """The special tokens of a model, as texts; those that are words by themselves mean nothing in a reply."""
    if name is None:
        return frozenset()
    texts = special_tokens(_tokenizer(name))
    return frozenset(text for text in texts if len(text) > 2 and not text.isalnum())


def _load(name: str) -> tuple[TokenCounter, int]:
    """A counter by the tokenizer of a model, and the tokens that its chat template adds to a turn."""
    tokenizer = _tokenizer(name)

    def count(texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if texts else []

    return count, _template_cost(tokenizer, count)


def _template_cost(tokenizer: Any, count: TokenCounter) -> int:
    """Tokens of the chat template around one turn: half of what it adds to two. 0 where there is no template."""
    from rlaif.inference.chat_template import ChatTemplate, UnwritableError

    turns = [Turn("user", "a")]
    try:
        template = ChatTemplate(tokenizer)
        if not template.exists:
            return 0
        prompt = template.prompt(turns)
        text = prompt + template.completion(turns, prompt, "a").text
    except (UnwritableError, UserError):
        return 0
    whole, word = count([text, "a"])
    return max(whole - 2 * word + 1, 0) // 2


def truncation_finding(truncation: Truncation | None, rows: int) -> Finding | None:
    """What to say about a limit that cuts something."""
    if truncation is None:
        return None
    shares = {"prompts": truncation.prompt, "chosen": truncation.chosen, "rejected": truncation.rejected}
    if not any(shares.values()):
        return None
    told = ", ".join(f"{share:.1%} of the {name}" for name, share in shares.items() if share is not None)
    how = "" if truncation.tokenizer else " (estimated at four characters a token)"
    worst = max(share for share in shares.values() if share is not None)
    return about_file(
        "warning" if worst > _MANY or truncation.prompt > 0 else "note",
        "truncation",
        rows,
        f"{truncation.max_length:,} tokens cut {told}{how}",
        "raise max_length, or leave these rows out: a cut reply loses its end, a cut prompt loses the reply, and some "
        "trainers drop such rows in silence",
    )
