"""Whether the demo's toy judge is asked about things outside of its tiny world, of which it knows nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rlaif.constitution import Constitution, load_constitution
from rlaif.demo.reading import read_prompt
from rlaif.inference.folder import fingerprint
from rlaif.records import Prompt
from rlaif.resources import SHIPPED, shipped_model

_FEW = 0.1
"""Share of foreign prompts that a toy judge may meet unannounced."""


def is_toy(model: str) -> bool:
    """Whether a judge's model is one that ships with the package: by its name, or, of a folder, by its files."""
    if model in SHIPPED:
        return True
    folder = Path(model).expanduser()
    if not (folder / "config.json").is_file():
        return False
    shipped = [path for name in SHIPPED if (path := shipped_model(name)) is not None and path.is_dir()]
    return any(folder.resolve() == path.resolve() or fingerprint(folder) == fingerprint(path) for path in shipped)


def outside_its_world(model: str, constitution: Constitution, prompts: Iterable[Prompt]) -> str | None:
    """What to announce where the toy judge `model` judges by other principles than the demo's, or other prompts."""
    if not is_toy(model):
        return None
    own = {principle.compare for principle in load_constitution("demo").principles}
    foreign = [principle.id for principle in constitution.principles if principle.compare not in own]
    asked = unknown = 0
    for prompt in prompts:
        asked += 1
        unknown += read_prompt(prompt.messages[-1].content) is None
    parts = [f"{unknown:,} of {asked:,} prompts"] if unknown > _FEW * asked else []
    parts += [f"{len(foreign)} of {len(constitution.principles)} principles"] if foreign else []
    if not parts:
        return None
    return (
        f"{model} is a toy that knows the demo's tiny world alone, and {' and '.join(parts)} are from outside of it: "
        "its labels here mean nothing, and are not to be trained on; name a real judge"
    )
