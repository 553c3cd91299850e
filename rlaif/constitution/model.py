"""What a constitution is made of, how it is loaded, and its JSON Schema.

What a constitution is made of.

From a shipped name or a path to a constitution, or to everything that is wrong with it.

The JSON Schema of constitution files, for editors: completion, help on every key, and mistakes while typing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints, model_validator

from rlaif.config import yaml
from rlaif.config.yaml import NAME_PATTERN, Where, located
from rlaif.errors import UserError, nearest
from rlaif.records import Record, content_id
from rlaif.store import resource

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
"""A text that says something; white space around it (a block's last newline) does not count."""

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
"""A name that can stand in a file name, a column and a command."""


class Example(Record):
    """A case that the principle should decide one way: a unit test for it, and a help for its readers."""

    prompt: Text
    """What the user says."""
    better: Text
    """The reply that the principle should prefer."""
    worse: Text
    """The reply that it should not."""
    why: Text | None = None
    """What makes the one better under this principle."""

    @model_validator(mode="after")
    def _two_replies(self) -> Example:
        if self.better == self.worse:
            raise located("Example", [(("worse",), "`better` and `worse` are the same text")])
        return self


class Principle(Record):
    """One thing that makes a reply better."""

    id: Name
    """Stable name, written into every critique and pair that it caused."""
    compare: Text
    """The question that decides between two replies; it stands below them in the judge's prompt."""
    critique: Text | None = None
    """The request to a reviewer of one reply; without it, the principle only compares."""
    revise: Text | None = None
    """The request to whoever rewrites that reply."""
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Share in a pair's label, or in the draw, against the other principles'. To switch a principle off, delete it."""
    tags: tuple[Text, ...] = ()
    """Words to find and group principles by; no judge sees them."""
    examples: tuple[Example, ...] = ()
    """Cases with a known answer; no judge sees them, tests of the constitution do."""


class Constitution(Record):
    """The principles that a judge goes by."""

    name: Text
    """Written into every pair, with the hash."""
    description: Text | None = None
    """What it is for, in a sentence; no judge sees it."""
    principles: tuple[Principle, ...] = Field(min_length=1)
    """At least one; by default each pair of replies is judged by one of them, drawn at random."""

    @model_validator(mode="after")
    def _unique_ids(self) -> Constitution:
        repeated = repeated_ids([principle.id for principle in self.principles])
        if repeated:
            raise located("Constitution", repeated)
        return self

    @cached_property
    def hash(self) -> str:
        """32 hex digits of what a judge can notice: ids, texts, weights and their order.

        Name, description, tags, examples, comments and the order of keys do not enter it.
        """
        noticed = {"id", "compare", "critique", "revise", "weight"}
        return content_id([principle.model_dump(include=noticed) for principle in self.principles])

    def principle(self, id: str) -> Principle:
        """The principle with this id. Raises KeyError where there is none."""
        for principle in self.principles:
            if principle.id == id:
                return principle
        raise KeyError(id)


def repeated_ids(ids: Sequence[object]) -> list[tuple[Where, str]]:
    """For every principle whose id an earlier one has: the path of its id, and the complaint."""
    return [
        (("principles", at, "id"), f"the id `{id}` is taken by principle {ids.index(id) + 1} already")
        for at, id in enumerate(ids)
        if isinstance(id, str) and id in ids[:at]
    ]


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
    hint = f"did you mean `{beside[0]}`?" if beside else f"{nearest(name, shipped)} (or give the path of a .yaml file)"
    raise UserError(f"no constitution is called `{name}`", hint=hint)


def load_constitution(name_or_path: str | Path, relative_to: str | Path | None = None) -> Constitution:
    """A constitution by shipped name or path. Raises UserError on the first mistake, with file and line."""
    path = find_constitution(name_or_path, relative_to)
    source = yaml.read_yaml(path)
    yaml.refuse(_problems(source), "rlaif constitution check")
    return Constitution.model_validate(source.data)


def constitution_problems(name_or_path: str | Path, relative_to: str | Path | None = None) -> list[UserError]:
    """Everything that is wrong with a constitution, in the order of its lines; nothing raised."""
    try:
        return _problems(yaml.read_yaml(find_constitution(name_or_path, relative_to)))
    except UserError as error:
        return [error]


def _problems(source: yaml.Source) -> list[UserError]:
    found = yaml.find_problems(source, Constitution)
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


SCHEMA_FILE = "constitution.schema.json"
"""What the schema is called where it lies beside constitutions; their first line points to it."""

MODELINE = f"# yaml-language-server: $schema={SCHEMA_FILE}"
"""The first line of a constitution that tells editors where its schema is."""


def constitution_schema() -> dict[str, Any]:
    """The schema (JSON Schema, draft 2020-12) of what `load_constitution` takes.

    It cannot say that ids are unique and that `better` and `worse` differ; `rlaif constitution check` does.
    """
    schema = _tidied(Constitution.model_json_schema())
    definitions = {name: _tidied(inner) for name, inner in schema.pop("$defs").items()}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A constitution for rlaif"}
    return {**head, **schema, "$defs": definitions}


def schema_text() -> str:
    """The schema as the text of its file."""
    return json.dumps(constitution_schema(), indent=2, ensure_ascii=False) + "\n"


def _tidied(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of one model without pydantic's titles, its descriptions in one line each, blank texts refused."""
    tidy = {key: value for key, value in schema.items() if key != "title"}
    if "description" in tidy:
        tidy["description"] = " ".join(tidy["description"].split())
    if "properties" in tidy:
        tidy["properties"] = {name: _tidied(_without_blanks(inner)) for name, inner in tidy["properties"].items()}
    return tidy


def _without_blanks(schema: dict[str, Any]) -> dict[str, Any]:
    """`minLength: 1` as the model means it: white space alone says nothing."""
    found = dict(schema)
    if found.get("type") == "string" and found.get("minLength") == 1:
        found["pattern"] = r"\S"
    if "anyOf" in found:
        found["anyOf"] = [_without_blanks(inner) for inner in found["anyOf"]]
    if isinstance(found.get("items"), dict):
        found["items"] = _without_blanks(found["items"])
    return found
