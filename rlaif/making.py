"""Who made a finished run: what its manifest says of policy, judge and constitution."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from rlaif.errors import UserError
from rlaif.jsontext import loads


class Making(NamedTuple):
    """What the manifest of a finished run says that it was made with."""

    policy: str | None
    judge: str
    constitution: str
    """Name of the constitution."""
    hash: str
    """Its content hash."""


def read_making(folder: Path) -> Making:
    """Who made a finished run. Raises UserError where there is none in `folder`."""
    path = folder / "manifest.json"
    try:
        manifest = loads(path.read_text(encoding="utf-8"))
        constitution = manifest["constitution"]
        return Making(manifest["policy"], manifest["judge"], constitution["name"], constitution["hash"])
    except OSError:
        known = (folder / "run.yaml").is_file()
        mend = f"`rlaif generate {folder / 'run.yaml'}` goes on with it" if known else "give a folder that a run wrote"
        raise UserError("there is no finished run here", where=folder, mend=mend) from None
    except (ValueError, KeyError, TypeError):
        mend = f"`rlaif pair {folder / 'run.yaml'}` writes it again"
        raise UserError("this is not the manifest of a run", where=path, mend=mend) from None
