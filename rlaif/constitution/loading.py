"""From a shipped name or a path to a constitution, or to everything that is wrong with it."""

from __future__ import annotations

from pathlib import Path

from rlaif import yamlfile
from rlaif.constitution.model import Constitution, repeated_ids
from rlaif.errors import UserError, nearest
from rlaif.resources import resource

_ENDINGS = (".yaml", ".yml")


def shipped_constitutions() -> dict[str, Path]:
    """The constitutions that come with the package: name -> file, in alphabetical order."""
    return {path.stem: path for path in sorted(resource("constitutions").glob("*.yaml"))}


def find_constitution(name_or_path: str | Path, relative_to: str | Path | None = None) -> Path:
    """The file of a shipped name, or of a path (relative to the folder `relative_to`, where one is given).

    What ends in .yaml or .yml, or has a folder in it, is a path. Raises UserError where there is no such thing.
    """
    name, shipped = str(name_or_path), shipped_constitutions()
    path = Path(relative_to or ".") / Path(name_or_path).expanduser()
    if isinstance(name_or_path, Path) or name.endswith(_ENDINGS) or len(Path(name).parts) > 1:
        return path
    if name in shipped:
        return shipped[name]
    if name and path.is_file():
        return path
    beside = [f"{name}{ending}" for ending in _ENDINGS if path.with_name(f"{path.name}{ending}").is_file()]
    mend = f"did you mean `{beside[0]}`?" if beside else f"{nearest(name, shipped)} (or give the path of a .yaml file)"
    raise UserError(f"no constitution is called `{name}`", mend=mend)


def load_constitution(name_or_path: str | Path, relative_to: str | Path | None = None) -> Constitution:
    """A constitution by shipped name or path. Raises UserError on the first mistake, with file and line."""
    path = find_constitution(name_or_path, relative_to)
    source = yamlfile.read_yaml(path)
    yamlfile.refuse(_problems(source), "rlaif constitution check")
    return Constitution.model_validate(source.data)


def constitution_problems(name_or_path: str | Path, relative_to: str | Path | None = None) -> list[UserError]:
    """Everything that is wrong with a constitution, in the order of its lines; nothing raised."""
    try:
        return _problems(yamlfile.read_yaml(find_constitution(name_or_path, relative_to)))
    except UserError as error:
        return [error]


def _problems(source: yamlfile.Source) -> list[UserError]:
    found = yamlfile.find_problems(source, Constitution)
    if not found:
        return []
    known = {str(error) for error in found}
    for path, what in repeated_ids(_ids(source.data)):  # the model looks for them only when all else is right
        where, line = source.place(path)
        error = UserError(what, where=where, line=line)
        found += [] if str(error) in known else [error]
    return sorted(found, key=lambda error: error.line or 0)


def _ids(data: object) -> list[object]:
    """The ids of the principles as they stand in the file, right or wrong."""
    listed = data.get("principles") if isinstance(data, dict) else None
    items = listed if isinstance(listed, list) else []
    return [item.get("id") if isinstance(item, dict) else None for item in items]
