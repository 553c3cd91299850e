"""Tables survive what kills them."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlaif.errors import RecordError, UserError
from rlaif.feedback.judge import judgement
from rlaif.inference.base import Output, Question
from rlaif.records import Failure, Judgement, Sampling, Score, content_id
from rlaif.store import Table, lock_folder, read_records, record_writer, write_records, write_text


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


def judged(first: float = -0.1, second: float = -2.5) -> Judgement:
    """A judgement as it is stored."""
    asked = {"prompt": "p", "first": "a", "second": "b", "principle": "kind"}
    question = Question("compare", "judge", (), Sampling(max_tokens=1), labels=("A", "B"), about=asked)
    return judgement(question, Output(text="A", logprobs=(first, second)))


@pytest.mark.case("sec-16-flipped-digit")
@pytest.mark.parametrize(
    ("old", "new"),
    [("-0.1", "-1.1"), ("-0.1", "-0.3"), ("-2.5", "-0.5"), ('"first","logprobs"', '"second","logprobs"')],
)
def test_a_line_that_contradicts_itself_is_damage(old: str, new: str, tmp_path: Path) -> None:
    path = tmp_path / "judgements.jsonl"
    table = Table(path, Judgement)
    table.append([judged()])
    table.close()
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    with pytest.raises(RecordError, match=r"judgements.jsonl:1: `(label_mass|verdict)`"):
        Table(path, Judgement).get(judged().id)
    with pytest.raises(RecordError):
        list(read_records(path, Judgement))


@pytest.mark.sibling("flipped-digit-in-a-grade")
def test_a_grade_that_contradicts_itself_is_damage(tmp_path: Path) -> None:
    logprobs = tuple(math.log(0.1) for _ in range(10))
    score = Score(id=content_id("s"), prompt="p", sample="a", principle="kind", judge="j", value=4.5, logprobs=logprobs,
                  label_mass=1.0)  # fmt: skip
    write_records(tmp_path / "scores.jsonl", [score])
    assert list(read_records(tmp_path / "scores.jsonl", Score)) == [score]
    changed = [(*logprobs[:9], -3.0), (*logprobs[:9], 1000.0)]
    for change in ({"value": 4.6}, {"label_mass": 0.95}, *({"logprobs": each} for each in changed)):
        write_records(tmp_path / "scores.jsonl", [score.model_copy(update=change)])
        with pytest.raises(RecordError):
            list(read_records(tmp_path / "scores.jsonl", Score))


@pytest.mark.case("sec-30-table-changed-under-a-run")
def test_a_table_that_moves_under_its_reader_gives_no_wrong_record(tmp_path: Path) -> None:
    path, records = tmp_path / "t.jsonl", [failure(f"{at}", f"{at % 10}") for at in range(50)]
    table = Table(path, Failure)
    table.append(records)
    kept = path.read_bytes().splitlines(keepends=True)
    with path.open("rb+") as file:
        file.write(b"".join(kept[1:] + kept[:1]))
    for record in records:
        with pytest.raises(UserError, match="was changed by another program while this one had it open"):
            table.get(record.id)
    with pytest.raises(UserError, match="was changed by another program"):
        list(table)


@pytest.mark.case("sec-30-table-changed-under-a-run")
@pytest.mark.parametrize("left", [0, 1000, 1001])
def test_a_table_that_becomes_shorter_is_not_read_for_ever(left: int, tmp_path: Path) -> None:
    path, records = tmp_path / "t.jsonl", [failure(f"{at}") for at in range(50)]
    table = Table(path, Failure)
    table.append(records)
    os.truncate(path, left)
    with pytest.raises(UserError, match="run the same command again"):
        table.get(records[-1].id)


@pytest.mark.sibling("line-written-over-by-an-editor")
def test_a_record_of_another_id_is_not_given_out(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    table = Table(path, Failure)
    table.append([failure("a"), failure("b")])
    with path.open("rb+") as file:
        file.write(path.read_bytes().replace(failure("a").id.encode(), failure("c").id.encode()))
    with pytest.raises(UserError):
        table.get(failure("a").id)
    assert table.get(failure("b").id) == failure("b")


@pytest.mark.case("sec-05-draft-symlink")
@pytest.mark.parametrize("name", ["report.html", "manifest.json", "pairs.jsonl", "run.yaml"])
def test_a_link_under_a_drafts_name_is_replaced(name: str, tmp_path: Path) -> None:
    folder, precious = tmp_path / "run", tmp_path / "precious.txt"
    folder.mkdir()
    precious.write_text("years of work")
    (folder / f".{name}.draft").symlink_to(precious)
    write_text(folder / name, "new")
    assert precious.read_text() == "years of work"
    assert (folder / name).read_text() == "new" and not (folder / name).is_symlink()
    assert not (folder / f".{name}.draft").exists()


@pytest.mark.sibling("link-in-the-place-of-a-derived-file")
def test_a_link_in_a_files_place_is_replaced(tmp_path: Path) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("years of work")
    (tmp_path / "report.html").symlink_to(precious)
    write_text(tmp_path / "report.html", "new")
    assert precious.read_text() == "years of work"


@pytest.mark.sibling("folder-under-a-drafts-name")
def test_a_folder_under_a_drafts_name_is_told(tmp_path: Path) -> None:
    (tmp_path / ".report.html.draft").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        write_text(tmp_path / "report.html", "new")


@pytest.mark.sibling("link-in-the-place-of-a-table")
def test_a_link_in_a_tables_place_is_not_written_through(tmp_path: Path) -> None:
    precious = tmp_path / "precious.txt"
    (tmp_path / "run").mkdir()
    precious.write_text("torn")
    (tmp_path / "run" / "t.jsonl").symlink_to(precious)
    with pytest.raises(UserError, match="is a link"):
        Table(tmp_path / "run" / "t.jsonl", Failure)
    assert precious.read_text() == "torn"


@pytest.mark.sibling("link-out-of-a-run-folder")
@pytest.mark.parametrize("name", ["train", "evaluation", "log.jsonl", "judge.log"])
def test_a_folder_with_a_way_out_is_not_written_to(name: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "elsewhere")
    with (
        pytest.raises(UserError, match=f"`{name}` is a link that leads out of this folder"),
        lock_folder(tmp_path / "run"),
    ):
        pass


def test_a_link_within_a_folder_is_no_way_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").symlink_to("a.txt")
    with lock_folder(tmp_path):
        pass
