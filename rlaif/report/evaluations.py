"""The evaluations for the report page: those in the folder, and those of the run's judge from the judges' folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rlaif.errors import RlaifError
from rlaif.evaluation.reports import FOLDER, JudgeReport, PolicyReport, RewardReport
from rlaif.inference.model_folder import identity
from rlaif.report.examples import truncated
from rlaif.report.run_data import rows
from rlaif.report.trainings import folders
from rlaif.report.view import Judges, Policies, Rewards, Versus
from rlaif.text import loads

MAX_REPORT_BYTES = 20_000_000
"""A larger file is no report."""
MAX_COMPARISONS = 12
"""Comparisons of policies to read, half of them won and half lost."""
MAX_CHARS = 1200

Reports = dict[Path, JudgeReport | PolicyReport | RewardReport]
_KINDS: dict[object, type[JudgeReport] | type[PolicyReport] | type[RewardReport]] = {
    "judge": JudgeReport,
    "policies": PolicyReport,
    "reward_model": RewardReport,
}
_NO_TEXT = "(its text is not in samples.jsonl)"


def find_reports(root: Path) -> Reports:
    """Every report of an evaluation in `root` and up to two levels below, by its file; the newest first."""
    paths = (path for folder in folders(root) for path in sorted(folder.glob("*.json")))
    reports = {path: report for path in paths if (report := _read_report(path)) is not None}
    return dict(sorted(reports.items(), key=lambda item: _newest_first(item[0])))


def _newest_first(path: Path) -> float:
    return -path.stat().st_mtime if path.exists() else 0.0


def _read_report(path: Path) -> JudgeReport | PolicyReport | RewardReport | None:
    try:
        if path.stat().st_size > MAX_REPORT_BYTES:
            return None
        raw = path.read_bytes()
    except OSError:
        return None
    try:
        document = loads(raw)
        kind = _KINDS.get(document.get("kind")) if isinstance(document, dict) else None
        return kind.model_validate_json(raw) if kind is not None else None
    except (ValueError, ValidationError):
        return None


def judges_of(root: Path, reports: Reports, judge: str | None, constitution_hash: str | None) -> list[Judges]:
    """The evaluations of judges: those in the folder, and those of this run's judge from the judges' folders.

    Of the latter the newest on each gold file counts, as in `rlaif generate` (`evaluation.judge_metrics`).
    """
    judge_reports = {path: report for path, report in reports.items() if isinstance(report, JudgeReport)}
    names = [] if judge is None else judge.split(" + ")

    def is_labeller(report: JudgeReport) -> bool:
        return report.about.judge in names and report.about.constitution_hash == constitution_hash

    inside, seen = {path.resolve() for path in judge_reports}, set()
    for folder in (FOLDER, root.parent / FOLDER.name):
        for path in sorted(folder.glob("*.json"), key=_newest_first) if names else ():
            report = _read_report(path)
            if not isinstance(report, JudgeReport) or not is_labeller(report):
                continue
            about = report.about.judge, report.about.gold
            if path.resolve() not in inside and about not in seen:
                judge_reports[path] = report
            seen.add(about)
    return [
        Judges(path=_relative(path, root), report=report, labeller=is_labeller(report))
        for path, report in judge_reports.items()
    ]


def rewards_of(root: Path, reports: Reports) -> list[Rewards]:
    """The evaluations of reward models."""
    trained = _TrainedModels(root)
    return [
        Rewards(path=_relative(path, root), report=report, stale=trained.is_stale(report.model))
        for path, report in reports.items()
        if isinstance(report, RewardReport)
    ]


def policies_of(root: Path, reports: Reports) -> list[Policies]:
    """The evaluations of policies, each with some of its comparisons to read."""
    trained, evaluations = _TrainedModels(root), []
    policy_reports = {path: report for path, report in reports.items() if isinstance(report, PolicyReport)}
    models: dict[str, set[str]] = {}
    for policy in (policy for report in policy_reports.values() for policy in report.policies):
        models.setdefault(policy.name, set()).add(policy.model)
    for path, report in policy_reports.items():
        compared, examples = _read_examples(path, report)
        model_of = {policy.name: policy.model for policy in report.policies}
        evaluations.append(
            Policies(
                path=_relative(path, root),
                report=report,
                examples=examples,
                compared=compared,
                models={name: model for name, model in model_of.items() if len(models[name]) > 1},
                stale=tuple(name for name, model in model_of.items() if trained.is_stale(model)),
            )
        )
    return evaluations


class _TrainedModels:
    """The current models of the trainings in a folder."""

    def __init__(self, root: Path) -> None:
        self._folders: dict[str, list[Path]] = {}
        for folder in folders(root):
            if (folder / "train.json").is_file():
                self._folders.setdefault(folder.resolve().name, []).append(folder)
        self._identities: dict[Path, str | None] = {}

    def is_stale(self, model: str) -> bool:
        """Whether a model, by name and fingerprint, was trained here and has been replaced by another one."""
        current = [self._identity(folder) for folder in self._folders.get(model.rpartition("@")[0], ())]
        return bool(current) and None not in current and model not in current

    def _identity(self, folder: Path) -> str | None:
        """The identity of a folder's model; None where it holds no readable one, as during a training."""
        if folder not in self._identities:
            try:
                self._identities[folder] = identity(str(folder.resolve()), rewards=True)
            except (RlaifError, OSError):
                self._identities[folder] = None
        return self._identities[folder]


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _read_examples(path: Path, report: PolicyReport) -> tuple[int, tuple[Versus, ...]]:
    """The number of comparisons, and the most certain wins and losses of every policy against the baseline."""
    table = path.with_name(f"{path.stem}.comparisons.jsonl")
    if not table.is_file():
        return 0, ()
    try:
        comparisons = list(rows(table))
        chosen = _most_certain(comparisons, report.baseline)
        sample_ids = {key for comparison in chosen for key in _samples(comparison)}
        prompt_ids = {str(comparison.get("prompt")) for comparison in chosen}
        texts = {
            row["id"]: str(row.get("text", ""))
            for row in rows(path.parent / "samples.jsonl")
            if row.get("id") in sample_ids
        }
        prompts = {
            row["id"]: "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in row.get("messages", ()))
            for row in rows(path.parent / "prompts.jsonl")
            if row.get("id") in prompt_ids
        }
    except RlaifError:
        return 0, ()
    return len(comparisons), tuple(_to_versus(comparison, texts, prompts) for comparison in chosen)


def _most_certain(comparisons: Sequence[dict[str, Any]], baseline: str) -> list[dict[str, Any]]:
    decided = [
        comparison
        for comparison in comparisons
        if isinstance(comparison.get("probability"), float) and comparison.get("baseline") == baseline
    ]
    policies = list(dict.fromkeys(str(comparison.get("policy")) for comparison in decided))
    quota = max(1, MAX_COMPARISONS // (2 * max(len(policies), 1)))
    chosen = []
    for policy in policies:
        ranked = sorted(
            (comparison for comparison in decided if comparison.get("policy") == policy),
            key=lambda comparison: (comparison["probability"], str(comparison.get("prompt"))),
        )
        losses = ranked[:quota]
        chosen += [win for win in ranked[-quota:][::-1] if win not in losses] + losses
    return chosen


def _samples(comparison: dict[str, Any]) -> tuple[str, str]:
    left, right = (comparison.get("samples") or (comparison.get("sample"), comparison.get("other")))[:2]
    return str(left), str(right)


def _to_versus(comparison: dict[str, Any], texts: dict[str, str], prompts: dict[str, str]) -> Versus:
    left, right = _samples(comparison)
    prompt, principles = str(comparison.get("prompt")), comparison.get("principles")
    return Versus(
        prompt=truncated(prompts.get(prompt, prompt), MAX_CHARS),
        tag=comparison.get("tag"),
        policy=str(comparison.get("policy")),
        baseline=str(comparison.get("baseline")),
        response=truncated(texts.get(left, _NO_TEXT), MAX_CHARS),
        baseline_response=truncated(texts.get(right, _NO_TEXT), MAX_CHARS),
        status=str(comparison.get("status", "")),
        probability=comparison.get("probability"),
        principles=principles if isinstance(principles, dict) else {},
    )
