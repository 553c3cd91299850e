"""Which prompts are shown: of everything that is of interest some, the same ones every time."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlaif.page.counting import Plan, status_number
from rlaif.page.reading import rows

MOST = 240
"""Prompts that are shown at most."""
REASONS = {
    "widest margin": "the judge is surest",
    "narrowest margin": "a label hangs by a thread",
    "flip": "the two orders disagree",
    "no label": "a comparison is unreadable or failed",
    "random": "by the order of their ids, which are hashes",
}


def choose(plan: Plan, folder: Path, most: int = MOST) -> dict[str, list[str]]:
    """Ids of the prompts to show, with the reasons for each; all of them where there are few."""
    ids = plan.prompts or [row["id"] for row in rows(folder / "prompts.jsonl") if "id" in row]
    lists = {name: found for name, found in _lists(plan).items() if found} if plan.prompts else {}
    lists["random"] = sorted(ids)
    chosen: dict[str, list[str]] = {}
    wanted = min(most, len(set(ids)))
    places = dict.fromkeys(lists, 0)
    while len(chosen) < wanted:
        for name, candidates in lists.items():
            at = places[name]
            while at < len(candidates) and candidates[at] in chosen:
                at += 1
            if at < len(candidates) and len(chosen) < wanted:
                chosen[candidates[at]] = [name]
            places[name] = at + 1
    return chosen


def _lists(plan: Plan) -> dict[str, list[str]]:
    """The prompts by what makes them of interest, the most interesting ones first; equal ones by id."""
    import numpy as np

    prompt, status = np.array(plan.prompt, dtype=np.int64), np.array(plan.status, dtype=np.int8)
    margin = np.abs(np.array(plan.probability) - 0.5)
    rank = np.empty(len(plan.prompts), dtype=np.int64)
    rank[sorted(range(len(plan.prompts)), key=plan.prompts.__getitem__)] = np.arange(len(plan.prompts))
    labelled = (status == status_number("labelled")) & ~np.isnan(margin)
    silent = (status == status_number("unparsed")) | (status == status_number("failed"))
    most = MOST  # no list is read further

    def ids(which: Any, value: Any = None) -> list[str]:
        found, keys = prompt[which], rank[prompt[which]]
        order = np.lexsort((keys,) if value is None else (keys, value[which]))
        return [plan.prompts[at] for at in _first(found[order].tolist(), most)]

    return {
        "widest margin": ids(labelled, -margin),
        "narrowest margin": ids(labelled, margin),
        "flip": ids(status == status_number("flip")),
        "no label": ids(silent),
    }


def _first(found: Iterable[int], most: int) -> list[int]:
    """The first different ones."""
    kept: dict[int, None] = {}
    for each in found:
        kept[each] = None
        if len(kept) == most:
            break
    return list(kept)
