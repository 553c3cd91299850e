"""Run folders that were copied, moved or came from somebody else: nothing but they themselves is written to."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rlaif.config.run_file import load_run, read_run
from rlaif.errors import UserError
from tests.fakes import FakeServer
from tests.support import lines, rlaif, write_run


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A run against a fake server, done."""
    with FakeServer() as server:
        path = write_run(tmp_path, server.url, prompts=["How do I boil an egg?", "What is a tree?"])
        result = rlaif("generate", path)
        assert result.returncode == 0, result.stderr
    return tmp_path / "run"


@pytest.mark.case("sec-04-copied-run-folder")
def test_the_run_file_of_a_copy_is_about_the_copy(finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "backup")
    before = (finished / "pairs.jsonl").read_bytes()
    assert rlaif("pair", copy / "run.yaml", "--pair-margin", "0.49").returncode in (0, 1)
    assert (finished / "pairs.jsonl").read_bytes() == before
    assert len(lines(copy / "pairs.jsonl")) < len(before.splitlines())


@pytest.mark.case("sec-04-copied-run-folder")
def test_a_moved_run_is_no_new_one(finished: Path, tmp_path: Path) -> None:
    pairs = len(lines(finished / "pairs.jsonl"))
    moved = finished.rename(tmp_path / "moved")
    result = rlaif("pair", moved / "run.yaml")
    assert result.returncode == 0, result.stderr
    assert len(lines(moved / "pairs.jsonl")) == pairs and not finished.exists()


@pytest.mark.sibling("project-file-beside-prompts")
def test_a_projects_own_run_file_keeps_its_output(tmp_path: Path) -> None:
    path = write_run(tmp_path, "http://127.0.0.1:9")
    assert load_run(path).folder == tmp_path / "run"


@pytest.mark.sibling("output-flag-for-a-saved-run-file")
def test_a_flag_still_names_another_folder(finished: Path, tmp_path: Path) -> None:
    source = read_run(finished / "run.yaml", {("output",): str(tmp_path / "other")})
    assert source.data["output"] == str(tmp_path / "other")


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        load_run(tmp_path / "run.yaml")
