"""The evaluations that a folder holds, or that are known of its judge: policies, reward models, judges."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from rlaif.errors import RlaifError
from rlaif.evaluation.judge_metrics import FOLDER
from rlaif.evaluation.reports import JudgeReport, PolicyReport, RewardReport
from rlaif.inference.model_folder import identity
from rlaif.records import Record
from rlaif.report.run_data import rows
from rlaif.report.trainings import folders
from rlaif.report.view import Judges, Policies, Rewards, Versus
from rlaif.text import loads

_LARGEST = 20_000_000
"""Bytes: no report is larger."""
_SHOWN = 12
"""Comparisons of two policies to read, half of them won and half lost."""
_LONGEST = 1200

R = TypeVar("R", bound=Record)
Found = dict[Path, JudgeReport | PolicyReport | RewardReport]


def find_reports(root: Path) -> Found:
    """Every report of an evaluation in `root` and up to two levels below, by its file; the newest first."""
    found: Found = {}
    for folder in folders(root):
        for path in sorted(folder.glob("*.json")):
            report = _report(path)
            if report is not None:
                found[path] = report
    return dict(sorted(found.items(), key=lambda each: _age(each[0])))


def _age(path: Path) -> float:
    """Sorts the newest file first."""
    return -path.stat().st_mtime if path.exists() else 0.0


_KINDS: dict[object, type[JudgeReport] | type[PolicyReport] | type[RewardReport]] = {
    "judge": JudgeReport,
    "policies": PolicyReport,
    "reward_model": RewardReport,
}


def _report(path: Path) -> JudgeReport | PolicyReport | RewardReport | None:
    try:
        if path.stat().st_size > _LARGEST:
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


def judges_of(root: Path, found: Found, judge: str | None, constitution_hash: str | None) -> list[Judges]:
    """The evaluations of judges: those in the folder, and of this run's judge those where evaluations are kept.

    Of these the newest on each gold file counts, as where a run is begun (`evaluation.verdict.known_verdict`).
    """
    told = {path: report for path, report in found.items() if isinstance(report, JudgeReport)}
    names = [] if judge is None else judge.split(" + ")
    inside, seen = {path.resolve() for path in told}, set()
    for place in (FOLDER, root.parent / FOLDER.name):
        for path in sorted(place.glob("*.json"), key=_age) if names else ():
            report = _report(path)
            if not isinstance(report, JudgeReport) or not _same(report, names, constitution_hash):
                continue
            about = report.about.judge, report.about.gold
            if path.resolve() not in inside and about not in seen:
                told[path] = report
            seen.add(about)
    return [
        Judges(path=_shown(path, root), report=report, labeller=_same(report, names, constitution_hash))
        for path, report in told.items()
    ]


def _same(report: JudgeReport, names: Sequence[str], constitution_hash: str | None) -> bool:
    return report.about.judge in names and report.about.constitution_hash == constitution_hash


def rewards_of(root: Path, found: Found) -> list[Rewards]:
    """The evaluations of reward models."""
    known = _Trained(root)
    return [
        Rewards(path=_shown(path, root), report=report, stale=known.stale(report.model))
        for path, report in found.items()
        if isinstance(report, RewardReport)
    ]


def policies_of(root: Path, found: Found) -> list[Policies]:
    """The evaluations of policies, each with some of its comparisons to read."""
    known, told = _Trained(root), []
    reports = {path: report for path, report in found.items() if isinstance(report, PolicyReport)}
    models: dict[str, set[str]] = {}
    for policy in (policy for report in reports.values() for policy in report.policies):
        models.setdefault(policy.name, set()).add(policy.model)
    for path, report in reports.items():
        compared, examples = _examples(path, report)
        own = {each.name: each.model for each in report.policies}
        told.append(
            Policies(
                path=_shown(path, root),
                report=report,
                examples=examples,
                compared=compared,
                models={name: model for name, model in own.items() if len(models[name]) > 1},
                stale=tuple(name for name, model in own.items() if known.stale(model)),
            )
        )
    return told


class _Trained:
    """The models of the trainings in a folder, as they are now."""

    def __init__(self, root: Path) -> None:
        self._folders: dict[str, list[Path]] = {}
        for folder in folders(root):
            if (folder / "train.json").is_file():
                self._folders.setdefault(folder.resolve().name, []).append(folder)
        self._known: dict[Path, str | None] = {}

    def stale(self, model: str) -> bool:
        """Whether a model, by its name and fingerprint, was trained here, and another one stands in its place."""
        now = [self._now(folder) for folder in self._folders.get(model.rpartition("@")[0], ())]
        return bool(now) and None not in now and model not in now

    def _now(self, folder: Path) -> str | None:
        """The identity of a folder's model; None where it holds none that can be read, as while it is trained."""
        if folder not in self._known:
            try:
                self._known[folder] = identity(str(folder.resolve()), rewards=True)
            except (RlaifError, OSError):
                self._known[folder] = None
        return self._known[folder]


def _shown(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _examples(path: Path, report: PolicyReport) -> tuple[int, tuple[Versus, ...]]:
    """How many comparisons there are, and the surest wins and losses of every policy against the baseline."""
    file = path.with_name(f"{path.stem}.comparisons.jsonl")
    if not file.is_file():
        return 0, ()
    try:
        lines = list(rows(file))
        chosen = _chosen(lines, report.baseline)
        texts = _texts(path.parent, {key for line in chosen for key in _samples(line)})
        prompts = _prompts(path.parent, {str(line.get("prompt")) for line in chosen})
    except RlaifError:
        return 0, ()
    return len(lines), tuple(_versus(line, texts, prompts) for line in chosen)


def _chosen(lines: Sequence[dict[str, Any]], baseline: str) -> list[dict[str, Any]]:
    known = [line for line in lines if isinstance(line.get("probability"), float) and line.get("baseline") == baseline]
    policies = list(dict.fromkeys(str(line.get("policy")) for line in known))
    each = max(1, _SHOWN // (2 * max(len(policies), 1)))
    found = []
    for policy in policies:
        own = sorted(
            (line for line in known if line.get("policy") == policy),
            key=lambda line: (line["probability"], str(line.get("prompt"))),
        )
        worst = own[:each]
        found += [line for line in own[-each:][::-1] if line not in worst] + worst
    return found


def _samples(line: dict[str, Any]) -> tuple[str, str]:
    left, right = (line.get("samples") or (line.get("sample"), line.get("other")))[:2]
    return str(left), str(right)


def _texts(folder: Path, wanted: set[str]) -> dict[str, str]:
    return {row["id"]: str(row.get("text", "")) for row in rows(folder / "samples.jsonl") if row.get("id") in wanted}


def _prompts(folder: Path, wanted: set[str]) -> dict[str, str]:
    return {
        row["id"]: "\n\n".join(f"{each['role']}: {each['content']}" for each in row.get("messages", ()))
        for row in rows(folder / "prompts.jsonl")
        if row.get("id") in wanted
    }


def _versus(line: dict[str, Any], texts: dict[str, str], prompts: dict[str, str]) -> Versus:
    left, right = _samples(line)
    prompt = str(line.get("prompt"))
    principles = line.get("principles")
    return Versus(
        prompt=_cut(prompts.get(prompt, prompt)),
        tag=line.get("tag"),
        policy=str(line.get("policy")),
        baseline=str(line.get("baseline")),
        answer=_cut(texts.get(left, "(its text is not in samples.jsonl)")),
        other=_cut(texts.get(right, "(its text is not in samples.jsonl)")),
        status=str(line.get("status", "")),
        probability=line.get("probability"),
        principles=principles if isinstance(principles, dict) else {},
    )


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST].rstrip()} … [cut: {len(text):,} characters]"
