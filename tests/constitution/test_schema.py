"""The JSON Schema of constitution files: shipped as it is printed, and it refuses what the loader refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from rlaif.config.yaml import parse_yaml, read_yaml
from rlaif.constitution import Constitution, Example, Principle, constitution_problems, shipped_constitutions
from rlaif.constitution.model import MODELINE, SCHEMA_FILE, constitution_schema, schema_text
from rlaif.constitution.write import STARTER
from tests.constitution.test_loading import GOOD
from tests.support import ROOT

SCHEMA = constitution_schema()
TYPES: dict[str, Any] = {"string": str, "number": (int, float), "array": list, "object": dict, "null": type(None)}


def faults(value: Any, schema: dict[str, Any], path: str = "") -> list[str]:
    """A small JSON Schema checker, of the words that this schema uses; an unknown word is an error."""
    known = {"type", "anyOf", "$ref", "required", "properties", "additionalProperties", "pattern", "minLength",
             "minItems", "exclusiveMinimum", "items", "default", "description", "title", "$schema",
             "$defs"}  # fmt: skip
    assert schema.keys() <= known, schema.keys() - known
    if "$ref" in schema:
        return faults(value, SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")], path)
    if "anyOf" in schema:
        return [] if any(not faults(value, one, path) for one in schema["anyOf"]) else [f"{path}: none of them"]
    if not isinstance(value, TYPES[schema["type"]]) or isinstance(value, bool):
        return [f"{path}: not {schema['type']}"]
    found = []
    if isinstance(value, dict):
        found += [f"{path}: {key} is missing" for key in schema["required"] if key not in value]
        for key, inner in value.items():
            known_key = key in schema["properties"]
            found += faults(inner, schema["properties"][key], f"{path}/{key}") if known_key else [f"{path}: {key}?"]
    if isinstance(value, list):
        found += [f"{path}: too short"] if len(value) < schema.get("minItems", 0) else []
        found += [one for at, item in enumerate(value) for one in faults(item, schema["items"], f"{path}/{at}")]
    if isinstance(value, str):
        right = len(value) >= schema.get("minLength", 0) and re.search(schema.get("pattern", ""), value)
        found += [] if right else [f"{path}: {value!r} does not match"]
    if isinstance(value, (int, float)) and value <= schema.get("exclusiveMinimum", float("-inf")):
        found.append(f"{path}: too small")
    return found


def test_the_shipped_file_is_what_the_command_prints() -> None:
    assert (ROOT / "constitutions" / SCHEMA_FILE).read_text(encoding="utf-8") == schema_text()


def test_it_is_whole() -> None:
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert SCHEMA["title"]
    for model, schema in ((Constitution, SCHEMA), (Principle, SCHEMA["$defs"]["Principle"]),
                          (Example, SCHEMA["$defs"]["Example"])):  # fmt: skip
        assert schema["additionalProperties"] is False
        assert set(schema["properties"]) == set(model.model_fields)
        for name, inner in schema["properties"].items():
            assert inner["description"], f"{name} is explained"
            assert "\n" not in inner["description"]
    assert SCHEMA["required"] == ["name", "principles"]
    assert SCHEMA["$defs"]["Principle"]["properties"]["id"]["pattern"] == "^[a-z][a-z0-9-]*$"


@pytest.mark.parametrize("name", list(shipped_constitutions()))
def test_shipped_constitutions_point_to_it_and_pass(name: str) -> None:
    path = shipped_constitutions()[name]
    assert path.read_text(encoding="utf-8").splitlines()[0] == MODELINE
    assert (path.parent / MODELINE.partition("=")[2]).is_file()
    assert faults(read_yaml(path).data, SCHEMA) == []


def test_the_starter_passes() -> None:
    assert faults(parse_yaml(STARTER, "x").data, SCHEMA) == []


BROKEN = [
    ("name: kind\n", ""),
    ("name: kind", "name: '  '"),
    ("name: kind", "title: kind"),
    ("compare: Which reply is kinder?", "comapre: Which reply is kinder?"),
    ("compare: Which reply is kinder?", "compare: ''"),
    ("compare: Which reply is kinder?", "compare: 7"),
    ("id: brief", "id: Too Brief"),
    ("weight: 0.5", "weight: 0"),
    ("weight: 0.5", "weight: high"),
    ("weight: 0.5", "weight: true"),
    ("tags: [form]", "tags: form"),
    ("tags: [form]", "tags: ['']"),
    ("revise: Shorten it.", "revise: ' '"),
    ("worse: What now?", "wrose: What now?"),
]


@pytest.mark.parametrize(("old", "new"), BROKEN)
def test_it_refuses_what_the_loader_refuses(tmp_path: Path, old: str, new: str) -> None:
    assert old in GOOD
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD.replace(old, new), encoding="utf-8")
    assert constitution_problems(path)
    assert faults(read_yaml(path).data, SCHEMA)


def test_jsonschema_agrees() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    validator = jsonschema.Draft202012Validator(json.loads(schema_text()))
    for path in shipped_constitutions().values():
        assert not list(validator.iter_errors(read_yaml(path).data))
    for old, new in BROKEN:
        assert list(validator.iter_errors(parse_yaml(GOOD.replace(old, new), "x").data)), new
