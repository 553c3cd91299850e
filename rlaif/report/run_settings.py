"""What a run folder says of itself: its manifest, its settings as they were resolved, its constitution.

The documents of a run folder that say what the run was, as far as they have the form that we write.

A folder may come from another program, or from another version of this one. What has another form than ours is left out
here, once, so that whoever reads a value finds either one of the right type or none.

What a run folder says of itself: its manifest, its settings as they were resolved, its constitution.
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
from rlaif.report.run_data import PrincipleCounts, Reading, SampledBy, document, every, within
from rlaif.report.view import Panel, Panelist, Principle, Stage

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
"""By key the type of a value; `*` stands for any key, a list for each of its items. Other keys are let through."""
_WRONG = object()


def manifest_in(folder: Path) -> dict[str, Any]:
    """The manifest of a finished run; empty where there is none, or none that can be read."""
    return _document(folder / "manifest.json")


def revised_in(folder: Path) -> dict[str, Any]:
    """What `rlaif revise` noted; empty as above."""
    return _document(folder / "revised.json")


def loop_in(folder: Path) -> dict[str, Any]:
    """What `rlaif run` noted of its stages; empty as above."""
    found = _shaped(document(folder / "loop.json"), {"command": str, "finished": bool})
    return found if isinstance(found, dict) else {}


def _document(path: Path) -> dict[str, Any]:
    found = _shaped(document(path), _MANIFEST)
    return found if isinstance(found, dict) else {}


def _shaped(value: Any, shape: Any) -> Any:
    """`value` without the parts whose type is another one; `_WRONG` where it is that itself."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return _WRONG
        every = shape.get("*", object)
        read = {str(name): _shaped(part, shape.get(name, every)) for name, part in value.items()}
        return {name: part for name, part in read.items() if part is not _WRONG}
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _WRONG
        return [part for part in (_shaped(each, shape[0]) for each in value) if part is not _WRONG]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = number if shape is float else number and isinstance(value, int) if shape is int else isinstance(value, shape)
    return value if fits else _WRONG


TABLES = ("samples.jsonl", "judgements.jsonl", "pairs.jsonl", "rankings.jsonl", "revisions.jsonl", "critiques.jsonl")
"""Any of them says that a run was here."""

ANSWERS = ("samples.jsonl", "critiques.jsonl", "revisions.jsonl", "judgements.jsonl", "scores.jsonl", "orders.jsonl")
"""What models said: every line has the id of its question."""


@dataclass
class RunDocuments:
    """The run's own words, as far as they can be read."""

    folder: Path
    manifest: dict[str, Any]
    text: str
    """run.yaml as it stands."""
    settings: dict[str, Any]
    constitution: Constitution | None = None
    note: str = ""
    """Why the constitution's texts are not told, or to be doubted."""
    revised: dict[str, Any] = field(default_factory=dict)
    loop: dict[str, Any] = field(default_factory=dict)
    """What `rlaif run` notes of its stages."""

    @property
    def is_run(self) -> bool:
        """Whether this folder holds a run."""
        if bool(within(self.manifest, "counts")) or all((self.folder / name).is_file() for name in TABLES[:2]):
            return bool(self.manifest or self.settings)
        output = self.settings.get("output")  # a run file that was not run yet names another folder
        return isinstance(output, str) and "judge" in self.settings and Path(output).resolve() == self.folder.resolve()

    @property
    def finished(self) -> bool:
        """Whether the manifest is there, which is written last."""
        return bool(self.manifest)

    @property
    def goes_on(self) -> str:
        """The command that goes on with an unfinished `rlaif run`; empty where there is none."""
        return str(self.loop.get("command") or "") if self.loop.get("finished") is False else ""

    @property
    def judge(self) -> str | None:
        """Identity of the judge, or of all judges of a panel."""
        known = self.manifest.get("judge")
        return str(known) if known else None

    @property
    def constitution_hash(self) -> str | None:
        """Content hash of the constitution by which the labels were made."""
        known = within(self.manifest, "constitution", "hash")
        return known if isinstance(known, str) else None


def read_documents(folder: Path) -> RunDocuments:
    """Read manifest, settings and constitution; what is not there, or cannot be read, is empty."""
    manifest = manifest_in(folder)
    try:
        text = (folder / "run.yaml").read_text(encoding="utf-8")
        settings = plain_yaml(text)
    except (OSError, ValueError):
        text, settings = "", None
    known = settings if isinstance(settings, dict) else manifest.get("settings")
    told = RunDocuments(folder, manifest, text, known if isinstance(known, dict) else {})
    told.revised, told.loop = revised_in(folder), loop_in(folder)
    if isinstance(told.settings.get("constitution"), str):
        _read_constitution(told)
    return told


def _read_constitution(told: RunDocuments) -> None:
    name = told.settings["constitution"]
    try:
        found = load_constitution(name, told.folder)
    except RlaifError:
        told.note = f"The constitution {name} cannot be read any more, so its texts and weights are not told."
        return
    if told.constitution_hash is not None and found.hash != told.constitution_hash:
        told.note = f"The constitution {name} has changed since the labels were made, so it is not told here."
        return
    told.constitution = found


def reading_of(told: RunDocuments) -> Reading:
    """How the run reads its judges' answers."""
    given = told.settings.get("judge")
    listed = [each for each in (given if isinstance(given, list) else [given]) if isinstance(each, dict)]
    names = (told.judge or "").split(" + ")
    common = _number(within(told.settings, "compare", "temperature"), 1.0)
    matched = list(zip(names, listed, strict=False))
    slots = told.manifest.get("position_bias")
    found = told.constitution
    return Reading(
        least_mass=_number(within(told.settings, "pair", "min_label_mass"), 0.5),
        weights=None if found is None else {each.id: each.weight for each in found.principles},
        temperatures={name: common * _number(judge.get("temperature"), 1.0) for name, judge in matched},
        shares={name: _number(judge.get("weight"), 1.0) for name, judge in matched},
        both=within(told.settings, "compare", "orders") != "random",
        removed={
            str(name): _number(within(slot, "removed"), 0.0)
            for name, slot in (slots.items() if isinstance(slots, dict) else ())
        },
    )


def sampled_by(told: RunDocuments) -> SampledBy:
    """Which rows of samples.jsonl are of the run's own settings."""
    try:
        policy = PolicySettings.model_validate(told.settings.get("policy"))
    except ValidationError:
        return every
    name, prompts = told.manifest.get("policy"), told.settings.get("prompts")
    given = isinstance(prompts, dict) and prompts.get("responses") is not None

    def drawn(row: Mapping[str, Any]) -> bool:
        how, index = row.get("sampling"), row.get("index")
        if not isinstance(how, dict) or not isinstance(index, int):
            return given or row.get("policy") != GIVEN
        own = name is None or row.get("policy") == name
        return own and is_planned(policy, str(row.get("prompt")), index, how)

    return drawn


def _number(value: object, otherwise: float) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else otherwise


def principles_of(told: RunDocuments, tallies: Mapping[str, PrincipleCounts]) -> list[Principle]:
    """The principles in the order of the constitution, with what the manifest and the answers say of each."""
    counted = told.manifest.get("principles")
    labels: dict[str, dict[str, int]] = counted if isinstance(counted, dict) else {}
    known = {} if told.constitution is None else {each.id: each for each in told.constitution.principles}
    found = []
    for name in dict.fromkeys([*known, *labels, *tallies]):
        tally, told_of, principle = tallies.get(name), labels.get(name, {}), known.get(name)
        found.append(
            Principle(
                id=name,
                text=None if principle is None else principle.compare,
                weight=None if principle is None else principle.weight,
                labels=told_of.get("labels"),
                flips=tally.flips if tally is not None else told_of.get("flips"),
                **({} if tally is None else _of(tally)),
            )
        )
    return found


def _of(tally: PrincipleCounts) -> dict[str, Any]:
    return {name: getattr(tally, name) for name in ("compared", "agreed", "opposed", "decided")}


def panel_of(told: RunDocuments) -> Panel | None:
    """How the judges of a panel agree; None of a single judge."""
    found = told.manifest.get("panel")
    if not isinstance(found, dict):
        return None
    two = "cohen_kappa" in found
    return Panel(
        judges=tuple(
            Panelist(
                judge=str(each.get("judge")),
                agrees=each.get("agrees", 0),
                opposes=each.get("opposes", 0),
                abstains=each.get("abstains", 0),
                flips=each.get("flips", 0),
                accuracy=each.get("dawid_skene_accuracy"),
            )
            for each in found.get("judges", [])
        ),
        comparisons=found.get("comparisons", 0),
        measure="Cohen's kappa" if two else "Krippendorff's alpha",
        agreement=found.get("cohen_kappa") if two else found.get("krippendorff_alpha"),
        correlation=found.get("correlation"),
        effective_at_least=found.get("effective_judges_at_least", found.get("effective_judges")),
    )


def stages_of(told: RunDocuments) -> list[Stage]:
    """What the last session asked, stage by stage."""
    found = within(told.manifest or told.revised, "session", "stages")
    return [
        Stage(
            name=str(name),
            asked=each.get("asked", 0),
            answered=each.get("answered", 0),
            known=each.get("on_disk_already", 0),
            failed=each.get("failed") or {},
            seconds=each.get("seconds"),
        )
        for name, each in (found.items() if isinstance(found, dict) else ())
        if isinstance(each, dict)
    ]
