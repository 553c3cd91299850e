"""Servers that speak the protocol each in their own way: all are checked and asked, and every verdict is right."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from rlaif.cli.setup import check
from rlaif.config.run_file import load_run
from rlaif.feedback.pipeline import Report, run_pipeline
from tests.inference.shapes import LEADING, OTHER, SHAPES, Shape, ShapeServer
from tests.support import lines

PROMPTS = ("How do I boil eggs?", "My parcel is late!", "Tell me a joke.")


def write(folder: Path, url: str, **more: Any) -> Path:
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    model = {"model": "llama3.2" if "ollama" in more.pop("name", "") else "m", "base_url": url, "timeout": 20}
    run = {
        "constitution": "demo",
        "prompts": "prompts.jsonl",
        "policy": {**model, "samples": 2, "max_tokens": 400, "system": "Be brief."},
        "judge": model,
        "compare": {"principles": "one"},
        "output": str(folder / "run"),
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run | more))
    return path


def run(path: Path) -> Report:
    return run_pipeline(load_run(path, {}))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_every_server_is_checked_and_asked(tmp_path: Path, shape: Shape) -> None:
    with ShapeServer(shape) as server:
        url = f"{server.url}?api-version=2024-10-21" if shape.name == "azure" else server.url
        path = write(tmp_path, url, name=shape.name)
        told = CliRunner().invoke(check, [str(path)])
        assert told.exit_code == 0, told.output
        assert [text for text in shape.told if text not in told.output] == [], told.output
        probed = len(server.refused)
        report = run(path)
    assert report.outcome is not None and report.outcome.counts["pairs"] == 3
    for pair in lines(tmp_path / "run/pairs.jsonl"):
        assert "GOOD" in pair["chosen"][0]["content"] and "GOOD" not in pair["rejected"][0]["content"]
        assert pair["hard"] is shape.hard
    # What the probe learned is kept: the run is refused nothing more than a probe of its own.
    assert len(server.refused) - probed <= probed
    if shape.name == "azure":
        assert server.queries == {"api-version=2024-10-21"}


def test_soft_labels_are_the_servers_values(tmp_path: Path) -> None:
    """0.85 against 0.13 is what a listing of 20 says, at whichever temperature it was asked for; of one token alone
    the other label has what is left, 0.15."""
    for name, other in (("openai", OTHER), ("tgi", OTHER), ("llama.cpp", OTHER), ("together", math.log(0.15))):
        (shape,) = (each for each in SHAPES if each.name == name)
        folder = tmp_path / name
        folder.mkdir()
        with ShapeServer(shape) as server:
            run(write(folder, server.url))
        for row in lines(folder / "run/judgements.jsonl"):
            assert sorted(row["logprobs"]) == pytest.approx([other, LEADING], abs=1e-6), name


def test_the_system_message_is_never_lost(tmp_path: Path) -> None:
    for shape in SHAPES:
        folder = tmp_path / shape.name.replace(" ", "-")
        folder.mkdir()
        with ShapeServer(shape) as server:
            run(write(folder, server.url, name=shape.name))
            drawn = [body for body in server.taken if any(text in str(body["messages"]) for text in PROMPTS)]
            drawn = [body for body in drawn if "Reply A:" not in str(body["messages"])]
        assert len(drawn) == 6 and all("Be brief." in str(body["messages"]) for body in drawn), shape.name
