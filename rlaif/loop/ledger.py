"""What a run has done beyond its data, so that a second `rlaif run` goes on: `loop.json` in the run folder.

Each training has a key, a hash of everything that it depends on: its settings, the contents of its data, the model that
it starts from. Same key and finished: nothing to do. Same key and begun: go on. Another key: what is there was made
from something else; it is moved aside, never removed, and the training is done anew.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field, JsonValue, ValidationError

from rlaif.constitution import load_constitution
from rlaif.inference.folder import identity
from rlaif.loop.looking import files_of
from rlaif.loop.plan import Step
from rlaif.records import Record, content_id
from rlaif.resources import shipped_model
from rlaif.store import sha256_of, write_text
from rlaif.training.folder import binding, is_begun, is_finished
from rlaif.training.rows import file_of

_FILE = "loop.json"
_THINGS = frozenset({"model", "data", "held_data", "reference", "center_on", "prompts"})
"""Settings that name something whose contents count."""
State = Literal["new", "begun", "finished"]


class Kept(Record):
    """What is known of one step."""

    key: str
    seconds: float | None = None
    """None while it is not finished."""


class Ledger(Record):
    """The file."""

    format: Literal[1] = 1
    command: str = ""
    """What goes on with the loop, for the report."""
    finished: bool = False
    """Whether all was done that the run file asks for."""
    steps: dict[str, Kept] = Field(default_factory=dict)

    @staticmethod
    def read(folder: Path) -> Ledger:
        """The ledger of a run folder; an empty one where there is none that can be read."""
        with contextlib.suppress(OSError, ValidationError):
            return Ledger.model_validate_json((folder / _FILE).read_text(encoding="utf-8"))
        return Ledger()

    def noted(self, folder: Path, name: str, kept: Kept) -> Ledger:
        """The same with one more entry, written down."""
        found = self.model_copy(update={"steps": {**self.steps, name: kept}})
        found.write(folder)
        return found

    def write(self, folder: Path) -> None:
        """Write it down."""
        write_text(folder / _FILE, self.model_dump_json(indent=2) + "\n")


class Standing(NamedTuple):
    """How far a training is."""

    state: State
    key: str
    moved: Path | None = None
    """Where another training that stood in its place has been moved to."""


def standing(step: Step, ledger: Ledger) -> Standing:
    """How far a training is; one of other settings, data or start is moved aside."""
    key, folder = key_of(step), step.settings.folder
    known = ledger.steps.get(step.name)
    same = known is not None and known.key == key
    if same and is_finished(folder):
        return Standing("finished", key)
    if same and is_begun(folder):
        return Standing("begun", key)
    return Standing("new", key, _aside(folder))


def _aside(folder: Path) -> Path | None:
    """Move a folder out of the way, to the first free name."""
    if not folder.exists() or not any(folder.iterdir()):
        return None
    at = 1
    while (free := folder.with_name(f"{folder.name}.before-{at}")).exists():
        at += 1
    folder.rename(free)
    return free


def key_of(step: Step) -> str:
    """A hash of everything that the result of a training depends on."""
    method = step.settings.method
    plain = _with_contents(binding(step.settings.plain()), method)
    if isinstance(constitution := plain.get("constitution"), str):
        plain["constitution"] = load_constitution(constitution).hash
    return content_id(method, plain)


def _with_contents(plain: Mapping[str, JsonValue], method: str) -> dict[str, JsonValue]:
    """The settings with what is in the things that they name, groups of settings too."""
    found = dict(plain)
    for name, value in plain.items():
        if isinstance(value, dict):
            found[name] = _with_contents(value, method)
        elif name == "reward" and isinstance(value, str):  # may be a sum of several
            found[name] = [_of_reward(part.strip()) for part in re.split("([,*])", value)]
        elif name in _THINGS and isinstance(value, str):
            found[name] = _content(value, files_of(name, method))
    return found


def _of_reward(part: str) -> JsonValue:
    """A function goes by its file and its name; a reward model by what is in it."""
    file, _, function = part.rpartition(":") if ".py:" in part else (part, "", "")
    return [_content(file, ()), function]


def _content(value: str, files: Sequence[str]) -> JsonValue:
    """What is in the file, the first of `files` in a folder, or the model of this name; a name from elsewhere as it is.

    Raises UserError for a folder that holds none of them.
    """
    path = Path(file_of(value, files) if files else value).expanduser()
    if path.is_file():
        return sha256_of(path)
    return identity(value, rewards=True) if path.is_dir() or shipped_model(value) else value
