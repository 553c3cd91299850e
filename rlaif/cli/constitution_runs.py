"""`rlaif constitution coverage`, `diff` and `test`: what a constitution does.

`rlaif constitution coverage`: what each principle decided in a run.

How the impact of an edited constitution is shown.

`rlaif constitution diff`: what changed between two constitutions, and which labels of a run it moves.

`rlaif constitution test`: every principle's examples put to a judge.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlaif.cli.flags import judge_of, judge_options_beside_a_constitution, run_of
from rlaif.cli.terminal import Styled, echo, secho
from rlaif.progress import show_progress

if TYPE_CHECKING:
    from collections import Counter

    from rich.text import Text

    from rlaif.analysis.coverage import Coverage, PrincipleAgreement
    from rlaif.analysis.edit_impact import Impact, Missing, Moved, Plans
    from rlaif.analysis.principle_tests import PrincipleTest, PrincipleTests, Result
    from rlaif.config.schemas import JudgeSettings
    from rlaif.constitution import Constitution
    from rlaif.constitution.diff import Change, Changes, Wording
    from rlaif.feedback.run import RunProvenance


@click.command()
@click.argument("folder", metavar="RUN_DIR", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON.")
def coverage(folder: Path, as_json: bool) -> None:
    """What each principle decided in a finished run, which never decide anything, and which contradict each other.

    Read from the answers on disk; no model is asked.
    """
    import json

    from rlaif.analysis.coverage import coverage as covered

    found = covered(folder)
    if as_json:
        echo(json.dumps(_document(found), ensure_ascii=False, indent=2))
    else:
        _show(found)


def _show(found: Coverage) -> None:
    echo(f"{found.constitution}: {found.comparisons:,} comparisons, {found.labels:,} of them labelled\n")
    if found.edited:
        echo("note: the constitution has changed since this run; reworded principles have no answers here yet")
    if found.unanswered:
        echo(f"note: {found.unanswered:,} comparisons lack an answer and have no label")
    _show_principles(found)
    echo()
    if found.agreements:
        _show_matrix(found)
    elif found.mode != "each":
        reason = {"one": "a single principle was drawn for each pair", "all": "all principles were one question"}
        echo(f"No two principles met on a pair ({reason[found.mode]}); to compare them, `compare.principles: each`")
    if found.idle:
        echo(f"Never decided a label: {', '.join(found.idle)}")
    for each in found.contradictions:
        echo(f"Contradict each other: {each.first} and {each.second} agree in {_of(each)} comparisons")


def _show_principles(found: Coverage) -> None:
    from rlaif.cli.terminal import decimal, percent, print_table

    columns = ("principle", "asked", "decided", "agrees", "|margin|", "flips", "ties")
    rows = [
        (
            each.id,
            f"{each.asked:,}",
            f"{each.decided:,}",
            percent(each.agrees / each.labels if each.labels else None),
            decimal(each.margin),
            percent(each.flips),
            percent(each.ties),
        )
        for each in found.principles
    ]
    print_table(columns, rows, right=columns[1:])
    echo(
        "\ndecided: labels in which it weighs most; agrees: labels on the side of its own verdict;\n"
        "|margin|: mean distance of its own probability from one half; flips, ties: shares of its own verdicts"
    )


def _show_matrix(found: Coverage) -> None:
    from rlaif.cli.terminal import print_table

    known = {(each.first, each.second): each for each in found.agreements}
    names = [each.id for each in found.principles]
    numbers = [str(at) for at in range(1, len(names) + 1)]
    rows = []
    for at, name in enumerate(names):
        cells = [_cell(known.get((name, other))) for other in names[at + 1 :]]
        rows.append((f"{at + 1} {name}", *([""] * (at + 1)), *cells))
    echo("Agreement of every two principles where both have a clear verdict (and in how many comparisons)\n")
    print_table(("", *numbers), rows, right=numbers)
    echo()


def _cell(agreement: PrincipleAgreement | None) -> str:
    from rlaif.cli.terminal import percent

    if agreement is None or not agreement.both:
        return percent(None)
    return f"{percent(agreement.share)}\n{agreement.both:,}"


def _of(agreement: PrincipleAgreement) -> str:
    return f"{agreement.agree:,} of {agreement.both:,}"


def _document(found: Coverage) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        **asdict(found),
        "agreements": [{**asdict(each), "share": each.share} for each in found.agreements],
        "never_decide": list(found.idle),
        "contradict": [[each.first, each.second] for each in found.contradictions],
    }


_PROMPT, _REPLY = 300, 240
"""Characters that are shown of a prompt, and of each reply."""


def show_impact(found: Impact) -> None:
    """The counts, the principles behind the flips, and the pairs that moved most."""
    from rlaif.cli.terminal import print_table

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
    from rlaif.cli.terminal import print_table, short

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
    from rlaif.constitution.diff import changes

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
    from rlaif.analysis.edit_impact import impact, missing, plans
    from rlaif.feedback.run import read_provenance, reopen_run

    notes = _notes(read_provenance(folder), old, new)
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


def _notes(making: RunProvenance, old: Constitution, new: Constitution) -> list[str]:
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

    from rlaif.analysis.edit_impact import ask_comparisons, ask_critiques
    from rlaif.feedback.prompts import LABELS
    from rlaif.inference.models import LazyModel

    settings = both[0].settings

    async def asked() -> None:
        with show_progress() as progress:
            judge = LazyModel(settings.judge, log=settings.folder / "judge.log", labels=LABELS, say=progress.note)
            try:
                if lacking.critiques:
                    progress.begin("critique", lacking.critiques + lacking.critiques_known)
                    tally = await ask_critiques(both, judge, progress)
                    progress.end("critique", tally.summary)
                progress.begin("compare", lacking.comparisons + lacking.comparisons_known + lacking.waiting)
                tally = await ask_comparisons(both, judge, progress)
                progress.end("compare", tally.summary)
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
    from rlaif.constitution.diff import words

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


_STYLES = {"pass": "green", "fail": "red", "flip": "yellow", "no verdict": "magenta"}


@click.command()
@click.argument("constitution", metavar="NAME|FILE")
@judge_options_beside_a_constitution
@click.option("--principle", "only", metavar="ID", multiple=True, help="Only this principle; may be given repeatedly.")
@click.option(
    "--answers",
    default="runs/constitution-tests",
    show_default=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Where the judge's answers are kept, to be asked only once.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="How the results are told.",
)
def test(
    constitution: str, run_file: Path | None, only: tuple[str, ...], answers: Path, form: str, **flags: Any
) -> None:
    """Unit tests for principles: does the judge decide their examples as their author did?

    Each example is asked under its principle alone and in both orders, in the words in which a run asks; with `--run`
    after the critiques that this run shows its judge. Exit code 0 where all pass, 1 where any fails, flips (the orders
    disagree) or has no verdict.

    An edited principle asks its own examples again, and no other's.
    """
    import json

    trials = _tried(constitution, *_asked(run_file, flags), answers, only)
    if form == "json":
        echo(json.dumps(_tests_document(constitution, trials), ensure_ascii=False, indent=2))
    else:
        _show_tests(trials)
    raise SystemExit(0 if trials.passed else 1)


def _asked(run_file: Path | None, flags: Mapping[str, Any]) -> tuple[JudgeSettings, dict[str, Any]]:
    """The judge by its flags, or by the run file, which also says how it is asked and read."""
    if run_file is None:
        return judge_of(flags), {}
    from rlaif.config.judge_templates import load_templates

    run = run_of(run_file, flags)
    asked = {"compare": run.compared_by(run.judge), "templates": load_templates(run.judge.templates)}
    return run.judge, {**asked, "critique": run.critique, "pair": run.pair}


def _tried(
    name: str, judge: JudgeSettings, settings: dict[str, Any], answers: Path, only: tuple[str, ...]
) -> PrincipleTests:
    import asyncio

    from rlaif.analysis.principle_tests import run_principle_tests
    from rlaif.constitution import load_constitution
    from rlaif.feedback.prompts import LABELS
    from rlaif.inference.models import LazyModel

    loaded = load_constitution(name)

    async def tried() -> PrincipleTests:
        with show_progress() as progress:
            source = LazyModel(judge, log=answers / "judge.log", labels=LABELS, say=progress.note)
            chosen = [each for each in loaded.principles if not only or each.id in only]
            progress.begin("test", 2 * sum(len(each.examples) for each in chosen))
            try:
                trials = await run_principle_tests(
                    loaded, source, answers, only=only, say=progress.note, progress=progress, **settings
                )
            finally:
                await source.close()
            progress.end("test", trials.tally.summary)
        return trials

    return asyncio.run(tried())


def _show_tests(trials: PrincipleTests) -> None:
    from rlaif.cli.terminal import decimal, print_table, short

    print_table(
        ("principle", "prompt", "P(better)", "1st", "2nd", "result"),
        [
            (
                each.principle,
                short(each.example.prompt),
                decimal(each.probability),
                decimal(each.orders[0]),
                decimal(each.orders[1]),
                _coloured(each.result),
            )
            for each in trials.trials
        ],
        right=("P(better)", "1st", "2nd"),
        cut=("prompt",),
    )
    for each in trials.trials:
        if not each.passed:
            _show_failure(each)
    echo()
    for name in trials.tested:
        tried = trials.of(name)
        echo(f"{name}: {sum(each.passed for each in tried)}/{len(tried)}")
    if trials.untested:
        echo(f"Without examples: {', '.join(trials.untested)}")
    passed = sum(each.passed for each in trials.trials)
    echo(f"{passed} of {len(trials.trials)} examples pass with {trials.judge}")
    tally = trials.tally
    echo(f"{tally.asked} questions asked now ({tally.seconds:.1f} s), {tally.known} on disk already")


def _coloured(result: Result) -> Text:
    from rich.text import Text

    return Text(result.value, style=_STYLES[result.value])


def _show_failure(trial: PrincipleTest) -> None:
    """What the judge should have seen, in full."""
    example = trial.example
    because = f" ({trial.reason})" if trial.reason else ""
    echo(f"\n{trial.result.value}{because}: {trial.principle}, example {trial.number}")
    for name, text in (("prompt", example.prompt), ("better", example.better), ("worse", example.worse)):
        echo(f"  {name:<7} {text}")
    if example.why:
        echo(f"  {'why':<7} {example.why}")


def _tests_document(name: str, trials: PrincipleTests) -> dict[str, Any]:
    return {
        "constitution": name,
        "judge": trials.judge,
        "passed": sum(each.passed for each in trials.trials),
        "total": len(trials.trials),
        "asked": trials.tally.asked,
        "on_disk": trials.tally.known,
        "failed": dict(trials.tally.failed),
        "without_examples": list(trials.untested),
        "principles": [
            {
                "id": principle,
                "passed": sum(each.passed for each in trials.of(principle)),
                "total": len(trials.of(principle)),
                "examples": [
                    {
                        **each.example.model_dump(exclude_none=True),
                        "result": each.result.value,
                        "probability": each.probability,
                        "orders": list(each.orders),
                        **({"reason": each.reason} if each.reason else {}),
                    }
                    for each in trials.of(principle)
                ],
            }
            for principle in trials.tested
        ],
    }
