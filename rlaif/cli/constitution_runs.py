"""The effect of a constitution: `rlaif constitution coverage` (of each principle in a run), `diff` (of an edit on the
labels of a run) and `test` (of each principle on its own examples).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rlaif.cli.options import judge_of, judge_options_beside_a_constitution, run_of
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
    """Show what each principle decided in a finished run, and which principles are idle or contradict each other.

    The command reads the judgements on disk; no model is called.
    """
    import json

    from rlaif.analysis.coverage import coverage as covered

    result = covered(folder)
    if as_json:
        echo(json.dumps(_document(result), ensure_ascii=False, indent=2))
    else:
        _show(result)


def _show(result: Coverage) -> None:
    echo(f"{result.constitution}: {result.comparisons:,} comparisons, {result.labels:,} of them labelled\n")
    if result.edited:
        echo("note: the constitution has changed since this run; reworded principles have no judgements here yet")
    if result.unanswered:
        echo(f"note: {result.unanswered:,} comparisons lack a judgement and have no label")
    _show_principles(result)
    echo()
    if result.agreements:
        _show_matrix(result)
    elif result.mode != "each":
        reason = {"one": "one random principle for each pair", "all": "all principles in one prompt"}
        echo(f"No two principles judged the same pair ({reason[result.mode]}); set `compare.principles: each` for that")
    if result.idle:
        echo(f"Never decided a label: {', '.join(result.idle)}")
    for each in result.contradictions:
        echo(f"Contradict each other: {each.first} and {each.second} agree in {_of(each)} comparisons")


def _show_principles(result: Coverage) -> None:
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
        for each in result.principles
    ]
    print_table(columns, rows, right=columns[1:])
    echo(
        "\ndecided: labels in which it weighs most; agrees: labels on the side of its own verdict;\n"
        "|margin|: mean distance of its own probability from one half; flips, ties: shares of its own verdicts"
    )


def _show_matrix(result: Coverage) -> None:
    from rlaif.cli.terminal import print_table

    known = {(each.first, each.second): each for each in result.agreements}
    names = [each.id for each in result.principles]
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


def _document(result: Coverage) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        **asdict(result),
        "agreements": [{**asdict(each), "share": each.share} for each in result.agreements],
        "never_decide": list(result.idle),
        "contradict": [[each.first, each.second] for each in result.contradictions],
    }


_PROMPT, _REPLY = 300, 240
"""Characters that are shown of a prompt, and of each reply."""


def show_impact(effects: Impact) -> None:
    """The counts, the principles behind the flips, and the pairs that moved most."""
    from rlaif.cli.terminal import print_table

    echo()
    rows = [
        ("pairs of responses", f"{effects.pairs:,}"),
        ("labels", f"{effects.labels[0]:,} -> {effects.labels[1]:,}"),
        ("labels that flip sides", _with_causes(effects.flipped, effects.causes)),
        ("labels that appear", _with_causes(effects.appeared.total(), effects.appeared)),
        ("labels that vanish", _with_causes(effects.vanished.total(), effects.vanished)),
        ("mean change of probability", f"{effects.change:.3f} (of {effects.measured:,} pairs)"),
    ]
    if effects.unanswered:
        rows.append(("pairs without a judgement", f"{effects.unanswered:,}"))
    print_table(("what", "how many"), rows)
    if not effects.moved:
        echo("\nNo pair moved.")
    for number, moved in enumerate(effects.moved, start=1):
        _show_moved(number, moved)


def _with_causes(count: int, parts: Counter[str]) -> str:
    causes = ", ".join(f"{name} {n:,}" for name, n in parts.most_common())
    return f"{count:,} ({causes})" if causes else f"{count:,}"


def _show_moved(number: int, moved: Moved) -> None:
    from rlaif.cli.terminal import print_table, short

    secho(f"\n{number}. {short(moved.prompt, _PROMPT)}", bold=True)
    statuses = [status.value for status in moved.statuses]
    became = statuses[0] if statuses[0] == statuses[1] else " -> ".join(statuses)
    echo(f"   left better: {moved.old:.2f} -> {moved.new:.2f} ({became}) by {moved.cause}\n")
    row = (short(moved.left, _REPLY), short(moved.right, _REPLY))
    print_table(("left response", "right response"), [row], folded=("left response", "right response"))


def impact_document(effects: Impact) -> dict[str, Any]:
    """The impact as JSON."""
    return {
        "pairs": effects.pairs,
        "labels": {"old": effects.labels[0], "new": effects.labels[1]},
        "flipped": effects.flipped,
        "appeared": dict(effects.appeared),
        "vanished": dict(effects.vanished),
        "unanswered": effects.unanswered,
        "measured": effects.measured,
        "mean_change": effects.change,
        "causes_of_flips": dict(effects.causes),
        "most_moved": [moved._asdict() for moved in effects.moved],
    }


@click.command()
@click.argument("old")
@click.argument("new")
@click.option(
    "--run",
    "folder",
    metavar="RUN_DIR",
    type=click.Path(path_type=Path),
    help="A finished run: its judge makes the missing calls, and the report shows the labels that change.",
)
@click.option("--dry-run", is_flag=True, help="Only count the calls that --run would make.")
@click.option("--json", "as_json", is_flag=True, help="Everything as JSON.")
def diff(old: str, new: str, folder: Path | None, dry_run: bool, as_json: bool) -> None:
    """Show what changed from OLD to NEW (shipped names or files), principle by principle.

    With --run, the judge of a finished run compares its responses under both. Only missing calls are made, and the
    run's own journal caches them for a later `rlaif generate` under NEW. The run's settings, pairs and manifest do not
    change.
    """
    import json

    from rlaif.constitution import load_constitution
    from rlaif.constitution.diff import changes

    if dry_run and folder is None:
        raise click.UsageError("--dry-run counts the questions of a run: name one with --run RUN_DIR")
    before, after = load_constitution(old), load_constitution(new)
    changed = changes(before, after)
    document: dict[str, Any] = {"old": before.name, "new": after.name, "changes": _changes_document(changed)}
    if not as_json:
        _show_changes(changed, before, after)
    if folder is not None:
        document |= _with_run(folder, before, after, dry_run, as_json)
    if as_json:
        echo(json.dumps(document, ensure_ascii=False, indent=2))


def _with_run(folder: Path, old: Constitution, new: Constitution, dry_run: bool, as_json: bool) -> dict[str, Any]:
    """Count the missing calls, make them and measure the impact. Returns a document; shows it unless `as_json`."""
    from rlaif.analysis.edit_impact import impact, missing, plans
    from rlaif.feedback.run import read_provenance, reopen_run

    notes = _notes(read_provenance(folder), old, new)
    with reopen_run(folder, new) as run:
        both = plans(run, old, new)
        lacking = missing(both)
        echo(f"\n{_sentence(lacking)}", err=as_json)
        for note in notes:
            echo(f"note: {note}", err=True)
        document: dict[str, Any] = {"questions": lacking._asdict(), "notes": notes}
        if dry_run:
            return document
        if lacking.any:
            _ask(both, lacking)
        effects = impact(both)
    if not as_json:
        show_impact(effects)
    return {**document, "impact": impact_document(effects)}


def _notes(making: RunProvenance, old: Constitution, new: Constitution) -> list[str]:
    if making.hash in (old.hash, new.hash):
        return []
    return [f"the run was made with neither: its constitution is {making.constitution}@{making.hash[:12]}"]


def _sentence(lacking: Missing) -> str:
    """How much there is to ask, for people."""
    text = f"{lacking.comparisons:,} comparisons to run, {lacking.comparisons_known:,} cached"
    if lacking.critiques or lacking.critiques_known:
        text = f"{lacking.critiques:,} critiques to write, {lacking.critiques_known:,} cached; {text}"
    if lacking.waiting:
        text += f"; at most {lacking.waiting:,} more that wait for critiques"
    return text


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
    kinds = (kind.value + details.get(kind.value, "") for kind in change.kinds)
    return f"{change.id}: {', '.join(kinds)}"


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


def _marked(text: str, same: bool, form: str, color: str) -> list[str | Styled]:
    if same:
        return [text]
    inside = text.rstrip()
    return [Styled(form.format(inside), fg=color), text[len(inside) :]] if inside else []


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
    help="Folder that caches the judge's verdicts.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="Output format.",
)
def test(
    constitution: str, run_file: Path | None, only: tuple[str, ...], answers: Path, form: str, **flags: Any
) -> None:
    """Test principles on their own examples: does the judge decide them as the author did?

    The judge compares each example under its principle alone and in both orders, with the same prompt template as a
    run; with `--run` also with the critiques that this run shows its judge. Verdicts are cached: after an edit, only
    the examples of the edited principle are judged again.

    Exit codes: 0 all pass, 1 an example fails, flips (the verdict changes when the order is swapped) or has no verdict.
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
    echo(f"{tally.asked} calls ({tally.seconds:.1f} s), {tally.known} cached")


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
