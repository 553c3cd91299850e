"""How many rows a limit on their tokens cuts, by a tokenizer, or estimated where none is named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from rlaif.data.report import Finding, Truncation
from rlaif.data.rules import about_file
from rlaif.data.shapes import Reading
from rlaif.data.turns import Turn
from rlaif.errors import UserError
from rlaif.inference.chat_template import special_tokens
from rlaif.resources import shipped_model

_CHARACTERS = 4
"""Of English text in a token of a common BPE vocabulary, about."""
_BATCH = 256
_MANY = 0.05

Counter = Callable[[Sequence[str]], list[int]]
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
        mend = "give the folder of a model, or a name on the hub"
        raise UserError(f"no tokenizer that can be loaded ({why})", where=name, mend=mend) from None


def special_tokens_of(name: str | None) -> frozenset[str]:
    """The special tokens of a model, as texts; those that are words by themselves mean nothing in a reply."""
    if name is None:
        return frozenset()
    texts = special_tokens(_tokenizer(name))
    return frozenset(text for text in texts if len(text) > 2 and not text.isalnum())


def _load(name: str) -> tuple[Counter, int]:
    """A counter by the tokenizer of a model, and the tokens that its chat template adds to a turn."""
    tokenizer = _tokenizer(name)

    def count(texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if texts else []

    return count, _template_cost(tokenizer, count)


def _template_cost(tokenizer: Any, count: Counter) -> int:
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
