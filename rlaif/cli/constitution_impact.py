"""How the impact of an edited constitution is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rlaif.cli.terminal import echo, secho

if TYPE_CHECKING:
    from collections import Counter

    from rlaif.impact import Impact, Moved

_PROMPT, _REPLY = 300, 240
"""Characters that are shown of a prompt, and of each reply."""


def show_impact(found: Impact) -> None:
    """The counts, the principles behind the flips, and the pairs that moved most."""
    from rlaif.cli.tables import print_table

    echo()
    rows = [
        ("pairs of replies", f"{found.pairs:,}"),
        ("labels", f"{found.labels[0]:,} -> {found.labels[1]:,}"),
        ("labels that flip sides", _with_causes(found.flipped, found.causes)),
        ("labels that appear", _with_causes(found.appeared.total(), found.appeared)),
        ("labels that vanish", _with_causes(found.vanished.total(), found.vanished)),
        ("mean change of probability", f"{found.change:.3f} (of {found.measured:,} pairs)"),
    ]
    if found.unanswered:
        rows.append(("pairs without an answer", f"{found.unanswered:,}"))
    print_table(("what", "how many"), rows)
    if not found.moved:
        echo("\nNo pair moved.")
    for number, moved in enumerate(found.moved, start=1):
        _show_moved(number, moved)


def _with_causes(count: int, parts: Counter[str]) -> str:
    told = ", ".join(f"{name} {n:,}" for name, n in parts.most_common())
    return f"{count:,} ({told})" if told else f"{count:,}"


def _show_moved(number: int, moved: Moved) -> None:
    from rlaif.cli.tables import print_table, short

    secho(f"\n{number}. {short(moved.prompt, _PROMPT)}", bold=True)
    statuses = [status.value for status in moved.statuses]
    became = statuses[0] if statuses[0] == statuses[1] else " -> ".join(statuses)
    echo(f"   left better: {moved.old:.2f} -> {moved.new:.2f} ({became}) by {moved.cause}\n")
    row = (short(moved.left, _REPLY), short(moved.right, _REPLY))
    print_table(("left reply", "right reply"), [row], folded=("left reply", "right reply"))


def impact_document(found: Impact) -> dict[str, Any]:
    """The impact as JSON."""
    return {
        "pairs": found.pairs,
        "labels": {"old": found.labels[0], "new": found.labels[1]},
        "flipped": found.flipped,
        "appeared": dict(found.appeared),
        "vanished": dict(found.vanished),
        "unanswered": found.unanswered,
        "measured": found.measured,
        "mean_change": found.change,
        "causes_of_flips": dict(found.causes),
        "most_moved": [moved._asdict() for moved in found.moved],
    }
