"""Whether data fit a model: its vocabulary and its positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from rlaif.errors import UserError
from rlaif.training.groups import Group


def require_fit(model: Any, groups: Sequence[Group], name: str) -> str | None:
    """Raise UserError where the model has no embedding for a token or a position of the data.

    Returns a note where rows are longer than those that the model was made for, and it can compute them all the same.
    """
    table = model.get_input_embeddings()
    highest = max(max(ids) for group in groups for ids in (group.prompt, *group.completions))
    if isinstance(table, nn.Embedding) and highest >= table.num_embeddings:
        what = f"has {table.num_embeddings:,} embeddings, and the tokenizer gives ids up to {highest:,}"
        raise UserError(what, where=name, mend="take the tokenizer that belongs to it, or resize its embeddings")
    positions = positions_of(model.config)
    longest = max(len(group.prompt) + max(map(len, group.completions)) for group in groups)
    if positions is None or longest <= positions:
        return None
    told = f"the longest row has {longest:,} tokens, and the model was made for {positions:,}"
    if _learned(model, positions):
        raise UserError(told, where=name, mend=f"set `max_length: {positions}`")
    return f"{told}: `max_length: {positions}` cuts what is longer"


def positions_of(config: Any) -> int | None:
    """Most tokens of a text that a model was made for, by its config; None where that does not say."""
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) else None


def _learned(model: Any, positions: int) -> bool:
    """Whether there is a table of positions; some keep a few rows of it for other ends."""
    tables = (module for name, module in model.named_modules() if "pos" in name or name.endswith("wpe"))
    return any(isinstance(each, nn.Embedding) and 0 <= each.num_embeddings - positions <= 2 for each in tables)


def require_same_vocabulary(tokenizer: Any, other: Any, groups: Sequence[Group], name: str) -> None:
    """Raise UserError where a token of the data is another one to the reference; what is not used may differ."""
    used = sorted({token for group in groups for ids in (group.prompt, *group.completions) for token in ids})
    known = len(other)
    for at, here in zip(used, tokenizer.convert_ids_to_tokens(used), strict=True):
        there = other.convert_ids_to_tokens(at) if at < known else here
        if there not in (here, None):
            what = f"has another vocabulary than the model: token {at} is `{there}` there, and `{here}` here"
            raise UserError(what, where=name, mend="name a reference with the same tokenizer")
