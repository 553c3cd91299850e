"""Moving and renaming code changes no result: see `tests.golden.make`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest

from tests.golden.make import RESULTS, golden_folder, results

CLOSE = 2e-4
"""Relative: processors round sums differently, and Adam passes that on; on one machine the results are the same."""
NEAR = 1e-3
"""Absolute: a weight tensor's product with a fixed vector is the sum of its rounding too."""


def differences(wanted: Any, got: Any, place: str = "") -> Iterator[str]:
    """Where two documents differ: texts and counts at all, other numbers by more than rounding."""
    if isinstance(wanted, dict) and isinstance(got, dict):
        yield from (f"{place}: `{name}` is gone" for name in wanted.keys() - got.keys())
        yield from (f"{place}: `{name}` is new" for name in got.keys() - wanted.keys())
        for name in wanted.keys() & got.keys():
            yield from differences(wanted[name], got[name], f"{place}/{name}")
    elif isinstance(wanted, list) and isinstance(got, list) and len(wanted) == len(got):
        for at, (one, other) in enumerate(zip(wanted, got, strict=True)):
            yield from differences(one, other, f"{place}/{at}")
    elif isinstance(wanted, float) and isinstance(got, float):
        if not math.isclose(wanted, got, rel_tol=CLOSE, abs_tol=NEAR):
            yield f"{place}: {wanted} -> {got}"
    elif wanted != got:
        yield f"{place}: {wanted!r} -> {got!r}"


@pytest.mark.slow
def test_results_are_those_of_before() -> None:
    with golden_folder() as folder:
        found = list(differences(json.loads(RESULTS.read_text()), json.loads(json.dumps(results(folder)))))
    assert found == [], "\n".join(found[:40])


def test_differences_are_seen() -> None:
    one = {"a": [1.0, 2], "b": "x", "gone": 1}
    other = {"a": [1.0 + 2e-3, 3], "b": "y", "new": 1}
    assert sorted(differences(one, other)) == [
        "/a/0: 1.0 -> 1.002", "/a/1: 2 -> 3", "/b: 'x' -> 'y'", ": `gone` is gone", ": `new` is new",
    ]  # fmt: skip
    assert list(differences({"a": 1.0}, {"a": 1.0 + 1e-7})) == []
