"""The report of a run, a training or an evaluation: one HTML file in its folder.

`write_page` writes the file; `build_page` collects what it shows, as a `Page`, together with the list of parts that the
folder lacks. Building a page calls no model and writes nothing.
"""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from rlaif.config.secrets import without_secrets
from rlaif.errors import UserError
from rlaif.report.evaluations import Reports, find_reports, judges_of, policies_of, rewards_of
from rlaif.report.examples import build_examples, choose, gather
from rlaif.report.render import render
from rlaif.report.run_data import (
    PrincipleCounts,
    Rows,
    count_data,
    nested,
    read_verdicts,
    rows,
    with_progress,
)
from rlaif.report.run_settings import (
    OUTPUT_TABLES,
    TABLES,
    RunDocuments,
    label_settings,
    panel_of,
    principles_of,
    read_documents,
    sampled_by,
    stages_of,
)
from rlaif.report.trainings import read_trainings
from rlaif.report.view import About, Data, Examples, Missing, Page, Provenance, Training, Verdicts
from rlaif.report.warnings import find_warnings
from rlaif.store import sha256_of, write_text

NAME = "report.html"
_DATA = ("pairs.jsonl", "sft.jsonl", "revised_pairs.jsonl")
"""The files of a run folder that trainings read."""


def write_page(folder: Path, progress: Callable[[int], None] | None = None) -> Path:
    """Write `report.html` into a folder of a run, a training or an evaluation, atomically; returns its path.

    `progress` receives the number of rows read so far. Raises UserError where the folder holds nothing to report on or
    is not writable, RecordError where a table has a broken line.
    """
    page = build_page(folder, progress)
    path = folder / NAME
    write_text(path, render(page, label_settings(read_documents(folder)).min_mass))
    return path


def build_page(folder: Path, progress: Callable[[int], None] | None = None) -> Page:
    """Everything that the page of `folder` shows; `progress` receives the number of rows read so far.

    Raises UserError where there is nothing to report on, RecordError where a table has a broken line.
    """
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "there is no such folder"
        raise UserError(problem, where=folder, hint="give a folder that `rlaif` wrote")
    documents, reports = read_documents(folder), find_reports(folder)
    hashes = {name: sha256_of(folder / name) for name in _DATA if (folder / name).is_file()}
    trainings = read_trainings(folder, hashes)
    is_run, manifest, constitution = documents.is_run, documents.manifest, documents.constitution
    if not (is_run or trainings or reports):
        hint = "give a folder that `rlaif generate`, `train` or `evaluate` wrote"
        if documents.text and documents.settings:
            run_file = shlex.quote(str(folder / "run.yaml"))
            hint = f"`rlaif generate {run_file}` makes a run; report on the folder it names"
        raise UserError("holds no run, no training and no evaluation", where=folder, hint=hint)
    data, verdicts, counts, examples = (
        _run_parts(documents, with_progress(progress)) if is_run else (None, None, {}, None)
    )
    about = _about(folder, documents, trainings, reports, verdicts)
    announced = nested(manifest, "warnings")
    page = Page(
        about=about,
        warnings=(),
        missing=(),
        principles=tuple(principles_of(documents, counts)) if is_run else (),
        description=(constitution.description or "") if constitution is not None and is_run else "",
        constitution_note=documents.note if is_run else "",
        counts=_integers(manifest.get("counts")),
        failures=_failures(documents),
        stages=tuple(stages_of(documents)),
        seconds=nested(manifest or documents.revised, "session", "seconds"),
        input_issues=_integers(nested(manifest, "prompts", "input_issues")),
        announced=tuple(str(warning) for warning in announced) if isinstance(announced, list) else (),
        verdicts=verdicts,
        panel=panel_of(documents),
        data=data,
        examples=examples,
        trainings=tuple(trainings),
        policies=tuple(policies_of(folder, reports)),
        rewards=tuple(rewards_of(folder, reports)),
        judges=tuple(judges_of(folder, reports, about.judge, about.constitution_hash)),
        provenance=_provenance(documents, trainings, hashes),
    )
    page = page.model_copy(update={"missing": tuple(_missing(folder, documents, page))})
    return page.model_copy(update={"warnings": tuple(find_warnings(page, documents))})


def _run_parts(
    documents: RunDocuments, read: Rows
) -> tuple[Data, Verdicts | None, dict[str, PrincipleCounts], Examples | None]:
    settings = label_settings(documents)
    data, plan = count_data(documents.folder, both=settings.both, is_sampled=sampled_by(documents), read=read)
    chosen = choose(plan, documents.folder)
    verdicts, counts, judgements = read_verdicts(documents.folder, plan, settings, frozenset(chosen), read)
    examples = None
    if chosen:
        tables = gather(documents.folder, chosen, judgements, read)
        examples = build_examples(tables, chosen, data.prompts, settings)
    return data, verdicts, counts, examples


def _about(
    folder: Path, documents: RunDocuments, trainings: list[Training], reports: Reports, verdicts: Verdicts | None
) -> About:
    is_run, manifest, constitution = documents.is_run, documents.manifest, documents.constitution
    kind: Literal["run", "training", "evaluation"] = "run" if is_run else "training" if trainings else "evaluation"
    policy = manifest.get("policy") or (nested(documents.settings, "policy", "model") if is_run else None)
    unfinished = [training for training in trainings if training.status == "unfinished"]
    if is_run and not documents.finished:
        command = f"rlaif generate {shlex.quote(str(folder / 'run.yaml'))}"
    else:
        command = documents.resume_command or (unfinished[0].command if unfinished else "")
    name = constitution.name if constitution is not None and is_run else None
    content_hash = constitution.hash if constitution is not None and is_run else None
    return About(
        title=folder.resolve().name,
        kind=kind,
        finished=documents.finished and not documents.resume_command if is_run else not unfinished,
        next=command,
        when=_date(folder, documents, reports),
        policy=policy if isinstance(policy, str) else None,
        judge=_judge(documents, verdicts),
        constitution=nested(manifest, "constitution", "name") or name,
        constitution_hash=documents.constitution_hash or content_hash,
        made_by=manifest.get("made_by"),
    )


def _judge(documents: RunDocuments, verdicts: Verdicts | None) -> str | None:
    """The judge by the manifest; while there is none, by the judgements; before those, by the settings."""
    if documents.judge is not None or not documents.is_run:
        return documents.judge
    if verdicts is not None and verdicts.slots:
        return " + ".join(slot.judge for slot in verdicts.slots)
    given = documents.settings.get("judge")
    judges = given if isinstance(given, list) else [given]
    return " + ".join(str(judge.get("model")) for judge in judges if isinstance(judge, dict)) or None


def _date(folder: Path, documents: RunDocuments, reports: Reports) -> str:
    """The UTC time of the newest result; without one, of the settings."""
    if documents.is_run and not documents.finished:
        results = [folder / name for name in TABLES]
    else:
        results = [folder / "manifest.json", folder / "metrics.json", *reports]
    for candidates in (results, [folder / "run.yaml", folder / "train.json"]):
        if times := [path.stat().st_mtime for path in candidates if path.is_file()]:
            return datetime.datetime.fromtimestamp(max(times), tz=datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return ""


def _integers(value: object) -> dict[str, int]:
    items = value.items() if isinstance(value, dict) else ()
    return {str(name): count for name, count in items if isinstance(count, int)}


def _failures(documents: RunDocuments) -> dict[str, int]:
    """Failed requests by stage and reason; of an unfinished run those on record that have no output since."""
    failures = _integers(documents.manifest.get("failures"))
    for name, count in _integers(documents.revised.get("failures")).items():
        failures[name] = failures.get(name, 0) + count
    if not documents.finished:
        failed = {
            str(row.get("id")): f"{row.get('stage')}: {row.get('reason')}"
            for row in rows(documents.folder / "failures.jsonl")
        }
        for table in OUTPUT_TABLES if failed else ():
            for row in rows(documents.folder / table):
                failed.pop(str(row.get("id")), None)
        for name in failed.values():
            failures[name] = failures.get(name, 0) + 1
    return failures


def _provenance(documents: RunDocuments, trainings: list[Training], hashes: dict[str, str]) -> Provenance:
    manifest = documents.manifest
    files: dict[str, Any] = manifest.get("files") or {}
    versions = {"run": str(manifest["made_by"])} if manifest.get("made_by") else {}
    versions |= {f"training {each.name}": f"rlaif {each.version}" for each in trainings if each.version}
    recorded = {
        "constitution": documents.constitution_hash,
        "prompts": nested(manifest, "prompts", "sha256"),
        **{f"template {name}": value for name, value in (manifest.get("templates") or {}).items()},
        **files,
        **{f"data of {each.name}": each.data_hash for each in trainings},
    }
    changed = []
    for name, recorded_hash in files.items():
        path = documents.folder / name
        if (hashes.get(name) or (sha256_of(path) if path.is_file() else None)) != recorded_hash:
            changed.append(name)
    run_file = shlex.quote(str(documents.folder / "run.yaml"))
    commands = [f"rlaif generate {run_file}"] if documents.is_run and documents.text else []
    commands += [each.command.removesuffix(" --resume") for each in trainings if each.command]
    return Provenance(
        versions=versions,
        hashes={name: value for name, value in recorded.items() if isinstance(value, str) and value},
        changed=tuple(changed),
        settings=without_secrets(documents.text),
        commands=tuple(commands),
    )


def _missing(folder: Path, documents: RunDocuments, page: Page) -> list[Missing]:
    """The parts that the folder lacks, each with the command that makes it."""
    missing, quoted = [], shlex.quote(str(folder))
    run_file, pairs = f"{quoted}/run.yaml", f"{quoted}/pairs.jsonl"
    if documents.is_run:
        if not documents.finished:
            command = f"rlaif generate {run_file}"
            missing.append(Missing(part="the counts of the run, its rankings and pairs", command=command))
        if page.data is not None and not page.data.demonstrations:
            missing.append(Missing(part="revisions, for supervised fine-tuning", command=f"rlaif revise {run_file}"))
        if not page.trainings:
            model = nested(documents.settings, "policy", "model") or "MODEL"
            command = f"rlaif train dpo --model {model} --data {pairs} --output {quoted}/dpo"
            missing.append(Missing(part="trainings", command=command))
        if not any(judge.labeller for judge in page.judges):
            command = f"rlaif evaluate judge --run {run_file} --gold FILE"
            missing.append(Missing(part="an evaluation of the judge", command=command))
    reward_models = [training for training in page.trainings if training.method == "reward"]
    policies = [training for training in page.trainings if training.method != "reward"]
    if page.trainings and not page.policies:
        trained = policies[-1] if policies else page.trainings[-1]
        baseline = trained.settings.get("model") or "MODEL"
        judge = f"--run {shlex.quote(str(folder / 'run.yaml'))}" if documents.is_run else "--judge JUDGE"
        policy = shlex.quote(str(folder / trained.name))
        command = f"rlaif evaluate policy {policy} --against {baseline} --prompts FILE {judge}"
        missing.append(Missing(part="an evaluation of the policies", command=command))
    if reward_models and not page.rewards:
        model = shlex.quote(str(folder / reward_models[0].name))
        command = f"rlaif evaluate reward --model {model} --gold FILE"
        missing.append(Missing(part="an evaluation of the reward model", command=command))
    return missing
