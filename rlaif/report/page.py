"""A folder as one HTML page: every figure that there is, and what is missing.

A folder as a `Page`: every figure that there is, and what is missing. No model is asked, and nothing is written.

The page in its place.
"""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from rlaif.config.secrets import without_secrets
from rlaif.errors import UserError
from rlaif.report.evaluations import Found, find_reports, judges_of, policies_of, rewards_of
from rlaif.report.examples import choose, gather, tell
from rlaif.report.render import render
from rlaif.report.run_data import PrincipleCounts, Rows, count_data, counted, read_verdicts, rows, within
from rlaif.report.run_settings import (
    ANSWERS,
    TABLES,
    RunDocuments,
    panel_of,
    principles_of,
    read_documents,
    reading_of,
    sampled_by,
    stages_of,
)
from rlaif.report.trainings import read_trainings
from rlaif.report.view import About, Data, Examples, Missing, Page, Provenance, Training, Verdicts
from rlaif.report.warnings import warnings_of
from rlaif.store import sha256_of, write_text

_DATA = ("pairs.jsonl", "sft.jsonl", "revised_pairs.jsonl")
"""What trainings take from a run folder."""


def figures_of(folder: Path, told_rows: Callable[[int], None] | None = None) -> Page:
    """Everything that the page of `folder` shows; `told_rows` hears now and then how many rows were read.

    Raises UserError where there is nothing to report on, RecordError where a table has a broken line.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "there is no such folder"
        raise UserError(what, where=folder, hint="give a folder that `rlaif` wrote")
    told, found = read_documents(folder), find_reports(folder)
    hashes = {name: sha256_of(folder / name) for name in _DATA if (folder / name).is_file()}
    trainings = read_trainings(folder, hashes)
    if not (told.is_run or trainings or found):
        raise UserError("holds no run, no training and no evaluation", where=folder, hint=_instead(folder, told))
    data, verdicts, tallies, examples = (
        _run(told, counted(told_rows or _nothing)) if told.is_run else (None, None, {}, None)
    )
    judge = _judge(told, verdicts)
    judges = judges_of(folder, found, judge, _hash(told))
    policies, rewards = policies_of(folder, found), rewards_of(folder, found)
    page = Page(
        about=_about(folder, told, trainings, found, judge),
        warnings=(),
        missing=(),
        principles=tuple(principles_of(told, tallies)) if told.is_run else (),
        description=(told.constitution.description or "") if told.constitution is not None and told.is_run else "",
        constitution_note=told.note if told.is_run else "",
        counts=_integers(told.manifest.get("counts")),
        failures=_failures(told),
        stages=tuple(stages_of(told)),
        seconds=within(told.manifest or told.revised, "session", "seconds"),
        input_issues=_integers(within(told.manifest, "prompts", "input_issues")),
        announced=_texts(within(told.manifest, "warnings")),
        verdicts=verdicts,
        panel=panel_of(told),
        data=data,
        examples=examples,
        trainings=tuple(trainings),
        policies=tuple(policies),
        rewards=tuple(rewards),
        judges=tuple(judges),
        provenance=_provenance(told, trainings, hashes),
    )
    page = page.model_copy(update={"missing": tuple(_missing(folder, told, page))})
    return page.model_copy(update={"warnings": tuple(warnings_of(page, told))})


def _nothing(count: int) -> None:
    """Whoever does not listen."""


def _run(told: RunDocuments, read: Rows) -> tuple[Data, Verdicts | None, dict[str, PrincipleCounts], Examples | None]:
    reading = reading_of(told)
    data, plan = count_data(told.folder, both=reading.both, drawn=sampled_by(told), read=read)
    chosen = choose(plan, told.folder)
    verdicts, tallies, kept = read_verdicts(told.folder, plan, reading, frozenset(chosen), read)
    if not chosen:
        return data, verdicts, tallies, None
    return data, verdicts, tallies, tell(gather(told.folder, chosen, kept, read), chosen, data.prompts, reading)


def _judge(told: RunDocuments, verdicts: Verdicts | None) -> str | None:
    """Who judged: by the manifest, or while there is none by the answers, or else who is to judge."""
    if told.judge is not None or not told.is_run:
        return told.judge
    given = told.settings.get("judge")
    listed = given if isinstance(given, list) else [given]
    known = [slot.judge for slot in verdicts.slots] if verdicts is not None else []
    return " + ".join(known or [str(each.get("model")) for each in listed if isinstance(each, dict)]) or None


def _hash(told: RunDocuments) -> str | None:
    found = told.constitution
    return told.constitution_hash or (found.hash if found is not None and told.is_run else None)


def _instead(folder: Path, told: RunDocuments) -> str:
    if told.text and told.settings:
        return f"`rlaif generate {shlex.quote(str(folder / 'run.yaml'))}` makes a run; report on the folder it names"
    return "give a folder that `rlaif generate`, `train` or `evaluate` wrote"


def _about(folder: Path, told: RunDocuments, trainings: list[Training], found: Found, judge: str | None) -> About:
    kind: Literal["run", "training", "evaluation"] = "run" if told.is_run else "training" if trainings else "evaluation"
    last = _last(folder, told, found)
    stamp = "" if last is None else _utc(last)
    policy = told.manifest.get("policy") or (within(told.settings, "policy", "model") if told.is_run else None)
    unfinished = [each for each in trainings if each.status == "unfinished"]
    if told.is_run and not told.finished:
        proceed = f"rlaif generate {shlex.quote(str(folder / 'run.yaml'))}"
    else:
        proceed = told.goes_on or (unfinished[0].command if unfinished else "")
    return About(
        title=folder.resolve().name,
        kind=kind,
        finished=told.finished and not told.goes_on if told.is_run else not unfinished,
        next=proceed,
        when=stamp,
        policy=policy if isinstance(policy, str) else None,
        judge=judge,
        constitution=within(told.manifest, "constitution", "name")
        or (told.constitution.name if told.constitution is not None and told.is_run else None),
        constitution_hash=_hash(told),
        made_by=told.manifest.get("made_by"),
    )


def _last(folder: Path, told: RunDocuments, found: Found) -> Path | None:
    """The result that was written last, by whose date the page is dated; without one, the settings."""
    if told.is_run and not told.finished:
        results = [folder / name for name in TABLES]
    else:
        results = [folder / "manifest.json", folder / "metrics.json", *found]
    for candidates in (results, [folder / "run.yaml", folder / "train.json"]):
        if known := [path for path in candidates if path.is_file()]:
            return max(known, key=lambda path: path.stat().st_mtime)
    return None


def _utc(path: Path) -> str:
    moment = datetime.datetime.fromtimestamp(path.stat().st_mtime, tz=datetime.UTC)
    return moment.strftime("%Y-%m-%d %H:%M UTC")


def _integers(found: object) -> dict[str, int]:
    known = found if isinstance(found, dict) else {}
    return {str(name): value for name, value in known.items() if isinstance(value, int)}


def _texts(found: object) -> tuple[str, ...]:
    return tuple(str(each) for each in found) if isinstance(found, list) else ()


def _failures(told: RunDocuments) -> dict[str, int]:
    """Questions without an answer; of an unfinished run those that are on record."""
    found = _integers(told.manifest.get("failures"))
    for name, count in _integers(told.revised.get("failures")).items():
        found[name] = found.get(name, 0) + count
    if not told.finished:
        for name in _unanswered(told.folder).values():
            found[name] = found.get(name, 0) + 1
    return found


def _unanswered(folder: Path) -> dict[str, str]:
    """The questions that failed and have no answer since, each with the stage and its last reason."""
    failed = {str(row.get("id")): f"{row.get('stage')}: {row.get('reason')}" for row in rows(folder / "failures.jsonl")}
    for name in ANSWERS if failed else ():
        for row in rows(folder / name):
            failed.pop(str(row.get("id")), None)
    return failed


def _provenance(told: RunDocuments, trainings: list[Training], hashes: dict[str, str]) -> Provenance:
    manifest = told.manifest
    versions = {"run": str(manifest["made_by"])} if manifest.get("made_by") else {}
    versions |= {f"training {each.name}": f"rlaif {each.version}" for each in trainings if each.version}
    known = {
        "constitution": told.constitution_hash,
        "prompts": within(manifest, "prompts", "sha256"),
        **{f"template {name}": value for name, value in (manifest.get("templates") or {}).items()},
        **(manifest.get("files") or {}),
        **{f"data of {each.name}": each.data_hash for each in trainings},
    }
    return Provenance(
        versions=versions,
        hashes={name: value for name, value in known.items() if isinstance(value, str) and value},
        changed=tuple(_changed(told, hashes)),
        settings=without_secrets(told.text),
        commands=tuple(_commands(told, trainings)),
    )


def _changed(told: RunDocuments, hashes: dict[str, str]) -> list[str]:
    files = told.manifest.get("files")
    found = []
    for name, known in files.items() if isinstance(files, dict) else ():
        path = told.folder / str(name)
        now = hashes.get(str(name)) or (sha256_of(path) if path.is_file() else None)
        if now != known:
            found.append(str(name))
    return found


def _commands(told: RunDocuments, trainings: list[Training]) -> list[str]:
    run = [f"rlaif generate {shlex.quote(str(told.folder / 'run.yaml'))}"] if told.is_run and told.text else []
    return run + [each.command.removesuffix(" --resume") for each in trainings if each.command]


def _missing(folder: Path, told: RunDocuments, page: Page) -> list[Missing]:
    """The parts that are not there, each with what makes it."""
    found, where = [], shlex.quote(str(folder))
    if told.is_run:
        run, pairs = f"{where}/run.yaml", f"{where}/pairs.jsonl"
        data = page.data
        if not told.finished:
            found.append(Missing(what="the counts of the run, its rankings and pairs", command=f"rlaif generate {run}"))
        if data is not None and not data.demonstrations:
            found.append(Missing(what="revisions, for supervised fine-tuning", command=f"rlaif revise {run}"))
        if not page.trainings:
            model = within(told.settings, "policy", "model") or "MODEL"
            command = f"rlaif train dpo --model {model} --data {pairs} --output {where}/dpo"
            found.append(Missing(what="trainings", command=command))
        if not any(each.labeller for each in page.judges):
            command = f"rlaif evaluate judge --run {run} --gold FILE"
            found.append(Missing(what="an evaluation of the judge", command=command))
    if page.trainings and not page.policies:
        found.append(Missing(what="an evaluation of the policies", command=_evaluation(folder, told, page)))
    if any(each.method == "reward" for each in page.trainings) and not page.rewards:
        name = next(each.name for each in page.trainings if each.method == "reward")
        command = f"rlaif evaluate reward --model {shlex.quote(str(folder / name))} --gold FILE"
        found.append(Missing(what="an evaluation of the reward model", command=command))
    return found


def _evaluation(folder: Path, told: RunDocuments, page: Page) -> str:
    policies = [each for each in page.trainings if each.method != "reward"]
    trained = policies[-1] if policies else page.trainings[-1]
    start = trained.settings.get("model") or "MODEL"
    judge = f"--run {shlex.quote(str(folder / 'run.yaml'))}" if told.is_run else "--judge JUDGE"
    return f"rlaif evaluate policy {shlex.quote(str(folder / trained.name))} --against {start} --prompts FILE {judge}"


NAME = "report.html"


def write_page(folder: Path, told: Callable[[int], None] | None = None) -> Path:
    """Write `report.html` into a folder of a run, a training or an evaluation, whole or not at all; returns its path.

    `told` hears now and then how many rows were read. Raises UserError where the folder holds nothing to report on or
    cannot be written to, RecordError where a table has a broken line.
    """
    page = figures_of(folder, told)
    path = folder / NAME
    write_text(path, render(page, reading_of(read_documents(folder)).least_mass))
    return path
