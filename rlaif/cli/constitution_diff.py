"""`rlaif constitution diff`: what changed between two constitutions, and which labels of a run it moves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlaif.cli.terminal import Styled, echo, secho

if TYPE_CHECKING:
    from rlaif.constitution import Constitution
    from rlaif.constitution.changes import Change, Changes, Wording
    from rlaif.impact import Missing, Plans
    from rlaif.making import Making


@click.command()
@click.argument("old")
@click.argument("new")
@click.option(
    "--run",
    "folder",
    metavar="RUN_DIR",
    type=click.Path(path_type=Path),
    help="A finished run: ask its judge what is missing, and tell which labels the change moves.",
)
@click.option("--dry-run", is_flag=True, help="Only tell how many questions --run would ask.")
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON.")
def diff(old: str, new: str, folder: Path | None, dry_run: bool, as_json: bool) -> None:
    """What changed from OLD to NEW (shipped names or files), principle by principle.

    With --run, the prompts and replies of a finished run are judged by both. Only what is missing is asked, and kept in
    the run's own journal: a later `rlaif generate` under NEW asks it no more. The run's settings, pairs and manifest
    stay as they are.
    """
    import json

    from rlaif.constitution import load_constitution
    from rlaif.constitution.changes import changes

    if dry_run and folder is None:
        raise click.UsageError("--dry-run counts the questions of a run: name one with --run RUN_DIR")
    before, after = load_constitution(old), load_constitution(new)
    changed = changes(before, after)
    told: dict[str, Any] = {"old": before.name, "new": after.name, "changes": _changes_document(changed)}
    if not as_json:
        _show_changes(changed, before, after)
    if folder is not None:
        told |= _with_run(folder, before, after, dry_run, as_json)
    if as_json:
        echo(json.dumps(told, ensure_ascii=False, indent=2))


def _with_run(folder: Path, old: Constitution, new: Constitution, dry_run: bool, as_json: bool) -> dict[str, Any]:
    """Count, ask, and tell the impact; returned as a document, shown unless that is what is wanted."""
    from rlaif.cli.constitution_impact import impact_document, show_impact
    from rlaif.impact import impact, missing, plans
    from rlaif.making import read_making
    from rlaif.run import reopen_run

    notes = _notes(read_making(folder), old, new)
    with reopen_run(folder, new) as run:
        both = plans(run, old, new)
        lacking = missing(both)
        echo(f"\n{_sentence(lacking)}", err=as_json)
        for note in notes:
            echo(f"note: {note}", err=True)
        told: dict[str, Any] = {"questions": lacking._asdict(), "notes": notes}
        if dry_run:
            return told
        if lacking.any:
            _ask(both, lacking)
        found = impact(both)
    if not as_json:
        show_impact(found)
    return {**told, "impact": impact_document(found)}


def _notes(making: Making, old: Constitution, new: Constitution) -> list[str]:
    if making.hash in (old.hash, new.hash):
        return []
    return [f"the run was made with neither: its constitution is {making.constitution}@{making.hash[:12]}"]


def _sentence(lacking: Missing) -> str:
    """How much there is to ask, for people."""
    told = f"{lacking.comparisons:,} questions to ask, {lacking.comparisons_known:,} on disk"
    if lacking.critiques or lacking.critiques_known:
        told = f"{lacking.critiques:,} critiques to ask, {lacking.critiques_known:,} on disk; {told}"
    if lacking.waiting:
        told += f"; at most {lacking.waiting:,} more that wait for critiques"
    return told


def _ask(both: Plans, lacking: Missing) -> None:
    import asyncio

    from rlaif.cli.show import watch
    from rlaif.comparisons.questions import LABELS
    from rlaif.impact import ask_comparisons, ask_critiques
    from rlaif.inference.source import LazyModel

    settings = both[0].settings

    async def asked() -> None:
        with watch() as told:
            judge = LazyModel(settings.judge, log=settings.folder / "judge.log", labels=LABELS, say=told.note)
            try:
                if lacking.critiques:
                    told.begin("critique", lacking.critiques + lacking.critiques_known)
                    told.end(await ask_critiques(both, judge, told.progress))
                told.begin("compare", lacking.comparisons + lacking.comparisons_known + lacking.waiting)
                told.end(await ask_comparisons(both, judge, told.progress))
            finally:
                await judge.close()

    asyncio.run(asked())


def _show_changes(changed: Changes, old: Constitution, new: Constitution) -> None:
    if old.hash == new.hash:
        echo(f"{old.name} and {new.name} are the same to a judge (hash {new.hash[:12]})")
    else:
        echo(f"{old.name}@{old.hash[:12]} -> {new.name}@{new.hash[:12]}")
    for change in changed.principles:
        secho(f"\n{_heading(change)}", bold=True)
        for wording in change.wordings:
            _show_wording(wording)
    count = len(changed.principles)
    echo(f"\n{count} principle{'s' if count != 1 else ''} changed, {changed.same} did not")


def _heading(change: Change) -> str:
    """`polite: renamed from kind, reweighted 1 -> 2`."""
    details = {"renamed": f" from {change.was}"}
    if change.weights:
        details["reweighted"] = " {:g} -> {:g}".format(*change.weights)
    if change.tags:
        details["tags"] = " [{}] -> [{}]".format(*(", ".join(tags) for tags in change.tags))
    if change.examples:
        details["examples"] = " +{} -{}".format(*change.examples)
    details["reworded"] = f" {', '.join(wording.part for wording in change.wordings)}"
    told = (kind.value + details.get(kind.value, "") for kind in change.kinds)
    return f"{change.id}: {', '.join(told)}"


def _show_wording(wording: Wording) -> None:
    """The old text with what is gone in [- -], the new one with what is new in {+ +}."""
    from rlaif.constitution.changes import words

    pieces = list(words(wording.old or "", wording.new or ""))
    if wording.old is not None:
        old = [part for piece in pieces for part in _marked(piece.old, piece.same, "[-{}-]", "red")]
        echo(f"  - {wording.part}: ", *(old if wording.new is not None else [wording.old]))
    if wording.new is not None:
        new = [part for piece in pieces for part in _marked(piece.new, piece.same, "{{+{}+}}", "green")]
        echo(f"  + {wording.part}: ", *(new if wording.old is not None else [wording.new]))


def _marked(text: str, same: bool, form: str, colour: str) -> list[str | Styled]:
    if same:
        return [text]
    inside = text.rstrip()
    return [Styled(form.format(inside), fg=colour), text[len(inside) :]] if inside else []


def _changes_document(changed: Changes) -> dict[str, Any]:
    from dataclasses import asdict

    listed = [
        {key: value for key, value in asdict(change).items() if value not in (None, ())}
        | ({"wordings": [wording._asdict() for wording in change.wordings]} if change.wordings else {})
        for change in changed.principles
    ]
    return {"principles": listed, "same": changed.same}
