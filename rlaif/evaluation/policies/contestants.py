"""Who is compared: models, models on servers, and files of answers, each under a short name of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import NamedTuple

from rlaif.addresses import SECRET_IN_URL, secret_in, shown_url
from rlaif.errors import UserError
from rlaif.inference.folder import model_folder
from rlaif.settings import ModelSettings

_NAMED = re.compile(r"(?P<name>[A-Za-z0-9][\w.+-]*)=(?P<thing>.+)", re.DOTALL)
_FILES = (".jsonl", ".json", ".parquet", ".csv")
_RUN = "samples.jsonl"
_WHERE = "--against"


@dataclass(frozen=True)
class Contestant:
    """One policy: a model that answers here, or the file of its answers. Exactly one of the two is there."""

    name: str
    """Short, and unlike the others'."""
    model: ModelSettings | None = None
    answers: Path | None = None

    def __post_init__(self) -> None:
        if (self.model is None) == (self.answers is None):
            raise ValueError(f"`{self.name}` needs a model or a file of answers, and not both")

    @property
    def thing(self) -> str:
        """What it is, as it was given."""
        return str(self.answers) if self.model is None else self.model.model

    @property
    def folder(self) -> Path | None:
        """Where its model lies on this machine; None for a file, a model on a server, and one that is not here yet."""
        if self.model is None or self.model.base_url is not None:
            return None
        path = Path(self.model.model).expanduser()
        return path if path.is_dir() else None


class _Given(NamedTuple):
    name: str | None
    thing: str


Served = Callable[[str], str]
"""The one model of the server at a URL."""


def contestants(
    given: Sequence[str], *, api_key_env: str | None = None, served: Served | None = None
) -> tuple[Contestant, ...]:
    """The policies that texts name, in their order.

    A text is a model (a shipped name, a folder, an adapter's folder, a hub name), `http://host:port/v1#model` for one
    on a server, or a file of answers; `name=...` before it names it. The others get the shortest tails of their paths
    that tell them apart. `served` finds the model of a server where no `#model` says it.

    Raises UserError where two have one name or a path is not there.
    """
    parsed = [_parsed(text) for text in given]
    for each in parsed:
        _require_no_secret(each.thing)
    tails = _tails([each.thing for each in parsed if each.name is None])
    names = [each.name if each.name is not None else tails[each.thing] for each in parsed]
    for at, name in enumerate(names):
        if name in names[:at]:
            other = parsed[names.index(name)].thing
            what = f"two policies are called `{name}` ({other} and {parsed[at].thing})"
            raise UserError(what, where=_WHERE, mend=f"give them names: first={other} second={parsed[at].thing}")
    return tuple(_contestant(name, each.thing, api_key_env, served) for name, each in zip(names, parsed, strict=True))


def _parsed(text: str) -> _Given:
    match = _NAMED.fullmatch(text)
    if match is None or Path(text).expanduser().exists():
        return _Given(None, text)
    return _Given(match["name"], match["thing"])


def _require_no_secret(thing: str) -> None:
    """A policy's address is written into its evaluation."""
    if thing.startswith(("http://", "https://")) and (secret := secret_in(thing)) is not None:
        raise UserError(f"holds {secret}", where=shown_url(thing), mend=SECRET_IN_URL)


def _contestant(name: str, thing: str, api_key_env: str | None, served: Served | None) -> Contestant:
    if thing.startswith(("http://", "https://")):
        url, _, model = thing.partition("#")
        if not model:
            if served is None:
                raise UserError("does not say which model", where=thing, mend=f"append it: {thing}#model-name")
            model = served(url)
        return Contestant(name, ModelSettings(model=model, base_url=url, api_key_env=api_key_env))
    path = Path(thing).expanduser()
    if path.is_dir() and not _is_model(path):
        if not (path / _RUN).is_file():
            mend = "name the folder of a model, a run folder, or a file of answers"
            raise UserError(
                "neither a model nor answers: no `config.json` and no `samples.jsonl`", where=path, mend=mend
            )
        return Contestant(name, answers=path / _RUN)
    if _is_file(thing):
        if not path.is_file():
            raise UserError("no such file", where=path)
        return Contestant(name, answers=path)
    model_folder(thing)  # a mistyped name is told before anything is asked
    return Contestant(name, ModelSettings(model=thing))


def _is_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))


def _is_file(thing: str) -> bool:
    return Path(thing).expanduser().is_file() or thing.removesuffix(".gz").endswith(_FILES)


def _tails(things: Sequence[str]) -> dict[str, str]:
    """For every path, the fewest of its last parts that no other path ends in."""
    parts = {thing: _parts(thing) for thing in things}
    found: dict[str, str] = {}
    for thing, own in parts.items():
        others = [other for key, other in parts.items() if key != thing]
        size = next(
            (size for size in range(1, len(own)) if all(other[-size:] != own[-size:] for other in others)), len(own)
        )
        found[thing] = "/".join(own[-size:])
    return found


def _parts(thing: str) -> tuple[str, ...]:
    if thing.startswith(("http://", "https://")):
        url, _, model = thing.partition("#")
        place = shown_url(url).partition("://")[2].partition("/")[0]
        return (place, *PurePath(model).parts[-1:]) if model else (place,)
    return tuple(part for part in Path(thing).expanduser().parts if part not in ("/", "."))
