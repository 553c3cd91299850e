"""Tables survive what kills them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlaif.errors import RecordError, UserError
from rlaif.records import Failure, content_id
from rlaif.store import Table, lock_folder, record_writer, write_records


def failure(name: str, detail: str = "") -> Failure:
    return Failure(id=content_id(name), stage="compare", reason="timeout", detail=detail)


def test_what_is_appended_is_found_by_id_after_reopening(tmp_path: Path) -> None:
    table = Table(tmp_path / "t.jsonl", Failure)
    table.append([failure("a"), failure("b", "ü" * 5000)])
    assert failure("a").id in table
    assert table.get(failure("b").id) == failure("b", "ü" * 5000)
    table.close()
    again = Table(tmp_path / "t.jsonl", Failure)
    assert len(again) == 2
    assert again.get(failure("b").id) == failure("b", "ü" * 5000)
    assert again.get(content_id("c")) is None
    assert list(again) == [failure("a"), failure("b", "ü" * 5000)]


def test_the_last_line_of_an_id_wins(tmp_path: Path) -> None:
    table = Table(tmp_path / "t.jsonl", Failure)
    table.append([failure("a", "first")])
    table.append([failure("a", "second")])
    assert table.get(failure("a").id) == failure("a", "second")
    assert [each.detail for each in table] == ["second"]


@pytest.mark.parametrize("cut", [1, 2, 10, 40])
def test_a_torn_last_line_is_cut_off_and_counted(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "t.jsonl"
    table = Table(path, Failure)
    table.append([failure("a"), failure("b")])
    table.close()
    path.write_bytes(path.read_bytes()[:-cut])
    healed = Table(path, Failure)
    assert healed.healed == 1
    assert failure("a").id in healed
    assert failure("b").id not in healed
    healed.append([failure("c")])
    healed.close()
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == [failure("a").id, failure("c").id]


@pytest.mark.parametrize(
    ("broken", "line", "why"),
    [
        (b'{"id":"xyz"}\n', 1, "32 hex"),
        (b"not json\n", 1, "not a record"),
        (b'{"id":"' + b"0" * 32 + b'","stage":1}\n', None, "stage"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, broken: bytes, line: int | None, why: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(broken)
    with pytest.raises(RecordError, match=why) as caught:
        Table(path, Failure).get("0" * 32)
    assert caught.value.line == (line or 1)


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from rlaif.store import lock_folder\n"
        "from rlaif.errors import UserError\n"
        "try:\n    lock_folder(Path(sys.argv[1])).__enter__()\nexcept UserError as e: print(e); sys.exit(2)"
    )
    with lock_folder(tmp_path):
        second = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert second.returncode == 2
    assert "another process is writing here" in second.stdout
    third = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert third.returncode == 0


def test_a_derived_file_is_whole_or_untouched(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    write_records(path, [failure("a")])
    before = path.read_bytes()
    with pytest.raises(RuntimeError), record_writer(path) as write:
        write(failure("b"))
        raise RuntimeError
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_an_unwritable_place_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"), lock_folder(tmp_path / "file" / "run"):
        pass
