"""The JSON Schema of constitution files, for editors: completion, help on every key, and mistakes while typing."""

from __future__ import annotations

import json
from typing import Any

from rlaif.constitution.model import Constitution

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
