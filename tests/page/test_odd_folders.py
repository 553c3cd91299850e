"""The page of a folder whose documents hold what we would never write: what cannot be read is missing, no more."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlaif.errors import RlaifError
from rlaif.report.page import build_page, write_page
from tests.page.folders import write_run

ODD: list[Any] = [None, -3, "text", [[]], {"a": {"b": []}}]


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value in a document."""
    yield at
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        yield from places(part, (*at, name))


def changed(document: Any, place: tuple[Any, ...], value: Any) -> Any:
    copy = json.loads(json.dumps(document))
    if not place:
        return value
    within = copy
    for name in place[:-1]:
        within = within[name]
    within[place[-1]] = value
    return copy


@pytest.mark.case("sec-33-odd-manifest")
def test_a_manifest_of_lists(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    names = ("made_by", "schema", "constitution", "judge", "policy", "counts", "settings")
    (folder / "manifest.json").write_text(json.dumps({name: [] for name in names}))
    assert write_page(folder).is_file()


@pytest.mark.sibling("odd-value-anywhere-in-a-document")
@pytest.mark.parametrize("name", ["manifest.json", "revised.json", "loop.json"])
def test_an_odd_value_anywhere(name: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    path = folder / name
    document = {
        "session": {"seconds": 2.0, "stages": {"sample": {"asked": 1, "failed": {"timeout": 1}, "seconds": 1.0}}},
        "failures": {"compare: timeout": 1}, "templates": {"compare": "00"}, "finished": False,
        "panel": {"judges": [{"judge": "a", "agrees": 1, "dawid_skene_accuracy": 0.5}], "cohen_kappa": 0.5,
                  "comparisons": 2, "correlation": 0.1, "effective_judges": 1.5},
        "position_bias": {"judge@1": {"removed": 0.2}}, "principles": {"kind": {"labels": 1, "flips": 0}},
    } | (json.loads(path.read_text()) if path.exists() else {})  # fmt: skip
    for place in places(document):
        for value in ODD:
            path.write_text(json.dumps(changed(document, place, value)))
            try:
                build_page(folder)
            except RlaifError:
                pytest.fail(f"{place}: {value!r}")


@pytest.mark.sibling("broken-json-beside-a-run")
@pytest.mark.parametrize("text", ["", "{", "nul", "[" * 100_000, '{"a":' * 50_000, "\ufeff{}", "1e999", "NaN"])
def test_no_json(text: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    for name in ("manifest.json", "revised.json", "loop.json", "metrics.json", "train.json"):
        (folder / name).write_text(text)
    try:
        assert write_page(folder).is_file()
    except RlaifError as error:
        assert len(str(error).splitlines()) == 1
