"""What speaks against believing an evaluation of policies, most important first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rlaif.evaluation.policies.lineage import Lineage, same_model
from rlaif.evaluation.policies.report import Match, Player
from rlaif.evaluation.verdict import FOLDER, known_verdict
from rlaif.inference.family import kinship, related

MOST_SILENT = 0.1
"""Share of pairs without a label, of answers cut off or missing, over which the others tell little of them."""
LEAST_PROMPTS = 30
"""With fewer, an interval of the win rate is wider than 30 points."""


class Known(NamedTuple):
    """What the warnings go by."""

    judge: str
    """Name of its model."""
    constitution_hash: str
    players: Sequence[Player]
    lineages: dict[str, Lineage]
    """By player; those of which nothing is known are empty."""
    matches: Sequence[Match]
    prompts: Sequence[str]
    """Ids of the prompts."""
    trained: dict[str, frozenset[str]]
    """By player, the prompts that it was trained on."""
    warn_same: Sequence[str] = ()
    """Players that the caller knows to be trained on this judge's labels."""


def doubts(known: Known) -> tuple[str, ...]:
    """The warnings, a sentence each."""
    return tuple(
        text
        for part in (_raw, _labeller, _kin, _unknown_judge, _silent, _few, _lengths, _cut, _missing, _seen, _twins)
        for text in part(known)
    )


def _raw(known: Known) -> Iterator[str]:
    for player in known.players:
        if known.lineages.get(player.name, Lineage()).raw:
            yield (
                f"`{player.name}` was trained on texts without its chat template, and is asked in that: train it with "
                "`template: chat`"
            )


def _labeller(known: Known) -> Iterator[str]:
    pleasers = [
        f"`{player.name}`"
        for player in known.players
        if player.name in known.warn_same
        or any(same_model(each, known.judge) for each in known.lineages.get(player.name, Lineage()).judges)
    ]
    if pleasers:
        yield (
            f"the judge {known.judge} labelled what {' and '.join(pleasers)} learned from, so a win may only say that "
            "its taste was learned: compare with another judge too"
        )


def _kin(known: Known) -> Iterator[str]:
    for player in known.players:
        bases = known.lineages.get(player.name, Lineage()).bases
        kin = next((name for name in (player.model, *bases) if related(known.judge, name)), None)
        told = kinship(kin, [known.judge])
        if told is not None:
            yield f"`{player.name}`: {told}"


def _unknown_judge(known: Known) -> Iterator[str]:
    found = known_verdict(known.judge, known.constitution_hash)
    if found is None:
        mend = "`rlaif evaluate judge` does one"
        yield f"{FOLDER} has no evaluation of {known.judge} by this constitution: {mend}"
    elif found.level != "fit":
        yield f"by its evaluation in {FOLDER}, the judge {known.judge} is {found}"


def _silent(known: Known) -> Iterator[str]:
    for match in known.matches:
        silent = {kind: count for kind, count in match.no_label.items() if kind != "missing"}
        asked = match.compared + sum(silent.values())
        if sum(silent.values()) > MOST_SILENT * asked:
            told = ", ".join(f"{count:,} {kind}" for kind, count in silent.items())
            yield (
                f"{sum(silent.values()):,} of {asked:,} pairs of `{match.policy}` and `{match.baseline}` have no label "
                f"({told}): what is told of the others may not hold for them"
            )


def _few(known: Known) -> Iterator[str]:
    if len(known.prompts) < LEAST_PROMPTS:
        count = len(known.prompts)
        yield f"only {count} prompt{'s' if count != 1 else ''}: the intervals are wide"


def _lengths(known: Known) -> Iterator[str]:
    for match in known.matches:
        if match.controlled_note and match.compared:
            yield f"`{match.policy}` against `{match.baseline}` at equal length: {match.controlled_note}"


def _cut(known: Known) -> Iterator[str]:
    for player in known.players:
        if player.truncated is not None and player.truncated > MOST_SILENT:
            yield f"{player.truncated:.0%} of the answers of `{player.name}` are cut off: raise `max_tokens`"


def _missing(known: Known) -> Iterator[str]:
    for player in known.players:
        wanted = player.answers + player.missing
        if player.missing > MOST_SILENT * wanted:
            yield f"{player.missing:,} of {wanted:,} answers of `{player.name}` are missing"


def _seen(known: Known) -> Iterator[str]:
    for player in known.players:
        seen = len(known.trained.get(player.name, frozenset()) & set(known.prompts))
        if seen:
            yield f"{seen:,} of the {len(known.prompts):,} prompts are in the data that `{player.name}` was trained on"


def _twins(known: Known) -> Iterator[str]:
    names: dict[str, list[str]] = {}
    for player in known.players:
        names.setdefault(player.model, []).append(player.name)
    for model, same in names.items():
        if len(same) > 1:
            told = " and ".join(f"`{name}`" for name in same)
            yield f"{told} are one model, {model}: with one seed they give the same answers"
