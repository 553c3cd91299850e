"""The documents of a run folder: its manifest, its resolved settings, its constitution, and what they say of the run.

A folder may come from another program, or from another version of this one. Values of an unexpected type are dropped
here, once, so a reader finds either a value of the right type or none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rlaif.config.schemas import PolicySettings
from rlaif.config.yaml import plain_yaml
from rlaif.constitution import Constitution, load_constitution
from rlaif.errors import RlaifError
from rlaif.feedback.sampling import GIVEN, is_planned
from rlaif.report.run_data import LabelSettings, PrincipleCounts, SampledBy, any_row, document, nested
from rlaif.report.view import Panel, Panelist, Principle, Stage

TABLES = ("samples.jsonl", "judgements.jsonl", "pairs.jsonl", "rankings.jsonl", "revisions.jsonl", "critiques.jsonl")
"""The presence of any of them marks a run folder."""
OUTPUT_TABLES = (
    "samples.jsonl", "critiques.jsonl", "revisions.jsonl", "judgements.jsonl", "scores.jsonl", "orders.jsonl",
)  # fmt: skip
"""Model outputs: the id of a line is the id of its request."""
_COUNTS = {"*": int}
_SESSION = {
    "seconds": float,
    "stages": {
        "*": {
            "asked": int, "answered": int, "on_disk_already": int, "failed": _COUNTS, "seconds": float,
        }
    },
}  # fmt: skip
_MANIFEST = {
    "made_by": str,
    "schema": int,
    "constitution": {"name": str, "hash": str},
    "judge": str,
    "policy": str,
    "templates": {"*": str},
    "prompts": {"path": str, "sha256": str, "input_issues": _COUNTS},
    "settings": {"*": object},
    "counts": _COUNTS,
    "failures": _COUNTS,
    "principles": {"*": _COUNTS},
    "panel": {
        "judges": [
            {
                "judge": str, "agrees": int, "opposes": int, "abstains": int, "flips": int,
                "dawid_skene_accuracy": float,
            }
        ],
        "comparisons": int, "cohen_kappa": float, "krippendorff_alpha": float, "correlation": float,
        "effective_judges": float, "effective_judges_at_least": float,
    },
    "position_bias": {"*": {"removed": float}},
    "healed_lines": int,
    "session": _SESSION,
    "files": {"*": str},
}  # fmt: skip
"""The type of each key's value; `*` stands for any key, a list for the type of its items. Unlisted keys pass."""
_LOOP = {"command": str, "finished": bool}
_WRONG = object()


@dataclass
class RunDocuments:
    """What a folder says of its run, as far as it is readable."""

    folder: Path
    manifest: dict[str, Any]
    text: str
    """The content of run.yaml."""
    settings: dict[str, Any]
    constitution: Constitution | None = None
    note: str = ""
    """Why the constitution's texts are not shown."""
    revised: dict[str, Any] = field(default_factory=dict)
    """The manifest of `rlaif revise`."""
    loop: dict[str, Any] = field(default_factory=dict)
    """The ledger of `rlaif run`."""

    @property
    def is_run(self) -> bool:
        """Whether the folder holds a run."""
        if bool(nested(self.manifest, "counts")) or all((self.folder / name).is_file() for name in TABLES[:2]):
            return bool(self.manifest or self.settings)
        output = self.settings.get("output")  # a run file that was never run names another folder
        return isinstance(output, str) and "judge" in self.settings and Path(output).resolve() == self.folder.resolve()

    @property
    def finished(self) -> bool:
        """Whether the manifest exists: a run writes it last."""
        return bool(self.manifest)

    @property
    def resume_command(self) -> str:
        """The command that resumes an unfinished `rlaif run`; empty where there is none."""
        return str(self.loop.get("command") or "") if self.loop.get("finished") is False else ""

    @property
    def judge(self) -> str | None:
        """Identity of the judge, or of all judges of a panel."""
        judge = self.manifest.get("judge")
        return str(judge) if judge else None

    @property
    def constitution_hash(self) -> str | None:
        """Content hash of the constitution behind the labels."""
        recorded = nested(self.manifest, "constitution", "hash")
        return recorded if isinstance(recorded, str) else None


def read_documents(folder: Path) -> RunDocuments:
    """Read manifest, settings and constitution; a document that is missing or unreadable is empty."""
    manifest = _read_document(folder / "manifest.json", _MANIFEST)
    try:
        text = (folder / "run.yaml").read_text(encoding="utf-8")
        settings = plain_yaml(text)
    except (OSError, ValueError):
        text, settings = "", None
    resolved = settings if isinstance(settings, dict) else manifest.get("settings")
    documents = RunDocuments(folder, manifest, text, resolved if isinstance(resolved, dict) else {})
    documents.revised = _read_document(folder / "revised.json", _MANIFEST)
    documents.loop = _read_document(folder / "loop.json", _LOOP)
    name = documents.settings.get("constitution")
    if not isinstance(name, str):
        return documents
    try:
        constitution = load_constitution(name, folder)
    except RlaifError:
        documents.note = (
            f"The constitution {name} is no longer readable, so the report does not show its texts and weights."
        )
        return documents
    if documents.constitution_hash in (None, constitution.hash):
        documents.constitution = constitution
    else:
        documents.note = f"The constitution {name} has changed since the labels were made, so the report omits it."
    return documents


def _read_document(path: Path, shape: Mapping[str, Any]) -> dict[str, Any]:
    content = _shaped(document(path), shape)
    return content if isinstance(content, dict) else {}


def _shaped(value: Any, shape: Any) -> Any:
    """`value` without the parts of another type; `_WRONG` where the type of `value` itself is another one."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return _WRONG
        default = shape.get("*", object)
        parts = {str(name): _shaped(part, shape.get(name, default)) for name, part in value.items()}
        return {name: part for name, part in parts.items() if part is not _WRONG}
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _WRONG
        return [part for part in (_shaped(item, shape[0]) for item in value) if part is not _WRONG]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = number if shape is float else number and isinstance(value, int) if shape is int else isinstance(value, shape)
    return value if fits else _WRONG


def label_settings(documents: RunDocuments) -> LabelSettings:
    """How the run turns judgements into labels."""
    settings, constitution = documents.settings, documents.constitution
    given = settings.get("judge")
    listed = [judge for judge in (given if isinstance(given, list) else [given]) if isinstance(judge, dict)]
    judges = list(zip((documents.judge or "").split(" + "), listed, strict=False))
    common = _number(nested(settings, "compare", "temperature"), 1.0)
    bias = documents.manifest.get("position_bias")
    return LabelSettings(
        min_mass=_number(nested(settings, "pair", "min_label_mass"), 0.5),
        weights=None if constitution is None else {each.id: each.weight for each in constitution.principles},
        temperatures={name: common * _number(judge.get("temperature"), 1.0) for name, judge in judges},
        shares={name: _number(judge.get("weight"), 1.0) for name, judge in judges},
        both=nested(settings, "compare", "orders") != "random",
        removed={
            str(name): _number(nested(slot, "removed"), 0.0)
            for name, slot in (bias.items() if isinstance(bias, dict) else ())
        },
    )


def _number(value: object, default: float) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else default


def sampled_by(documents: RunDocuments) -> SampledBy:
    """The test whether a row of samples.jsonl belongs to the current settings of the run."""
    try:
        policy = PolicySettings.model_validate(documents.settings.get("policy"))
    except ValidationError:
        return any_row
    name, prompts = documents.manifest.get("policy"), documents.settings.get("prompts")
    given = isinstance(prompts, dict) and prompts.get("responses") is not None

    def is_sampled(row: Mapping[str, Any]) -> bool:
        sampling, index = row.get("sampling"), row.get("index")
        if not isinstance(sampling, dict) or not isinstance(index, int):
            return given or row.get("policy") != GIVEN
        is_policy = name is None or row.get("policy") == name
        return is_policy and is_planned(policy, str(row.get("prompt")), index, sampling)

    return is_sampled


def principles_of(documents: RunDocuments, counts: Mapping[str, PrincipleCounts]) -> list[Principle]:
    """The principles in the order of the constitution, with the counts of the manifest and of the judgements."""
    recorded = documents.manifest.get("principles")
    labels: dict[str, dict[str, int]] = recorded if isinstance(recorded, dict) else {}
    constitution = documents.constitution
    by_id = {} if constitution is None else {principle.id: principle for principle in constitution.principles}
    principles = []
    for name in dict.fromkeys([*by_id, *labels, *counts]):
        count, label_counts, principle = counts.get(name), labels.get(name, {}), by_id.get(name)
        principles.append(
            Principle(
                id=name,
                text=None if principle is None else principle.compare,
                weight=None if principle is None else principle.weight,
                labels=label_counts.get("labels"),
                **({"flips": label_counts.get("flips")} if count is None else count._asdict()),
            )
        )
    return principles


def panel_of(documents: RunDocuments) -> Panel | None:
    """The agreement of the judges of a panel; None for a single judge."""
    panel = documents.manifest.get("panel")
    if not isinstance(panel, dict):
        return None
    has_kappa = "cohen_kappa" in panel  # two judges
    return Panel(
        judges=tuple(
            Panelist(
                judge=str(judge.get("judge")),
                agrees=judge.get("agrees", 0),
                opposes=judge.get("opposes", 0),
                abstains=judge.get("abstains", 0),
                flips=judge.get("flips", 0),
                accuracy=judge.get("dawid_skene_accuracy"),
            )
            for judge in panel.get("judges", [])
        ),
        comparisons=panel.get("comparisons", 0),
        measure="Cohen's kappa" if has_kappa else "Krippendorff's alpha",
        agreement=panel.get("cohen_kappa") if has_kappa else panel.get("krippendorff_alpha"),
        correlation=panel.get("correlation"),
        effective_at_least=panel.get("effective_judges_at_least", panel.get("effective_judges")),
    )


def stages_of(documents: RunDocuments) -> list[Stage]:
    """The requests of the last session, stage by stage."""
    stages = nested(documents.manifest or documents.revised, "session", "stages")
    return [
        Stage(
            name=str(name),
            requests=stage.get("asked", 0),
            completed=stage.get("answered", 0),
            cached=stage.get("on_disk_already", 0),
            failed=stage.get("failed") or {},
            seconds=stage.get("seconds"),
        )
        for name, stage in (stages.items() if isinstance(stages, dict) else ())
        if isinstance(stage, dict)
    ]
