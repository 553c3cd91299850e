"""Every planted defect is found by rule and line, and nothing is found where nothing is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rlaif.data.doctor import examine
from rlaif.data.findings import RULES, Report
from rlaif.errors import UserError
from tests.data.made import Row, Words, assistant, clean_rows, user, write_jsonl
from tests.support import rlaif

EVALUATED = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


def said(row: Row, column: str) -> str:
    text: str = row[column][-1]["content"]
    return text


def reply(column: str, change: Callable[[Row], str]) -> Callable[[list[Row], Row], None]:
    """A defect in the text of one side."""

    def plant(_: list[Row], row: Row) -> None:
        row[column] = [assistant(change(row))]

    return plant


def value(column: str, given: object) -> Callable[[list[Row], Row], None]:
    """A defect in the value of one column."""

    def plant(_: list[Row], row: Row) -> None:
        row[column] = given

    return plant


def drop(column: str) -> Callable[[list[Row], Row], None]:
    return lambda _, row: row.__delitem__(column)


def like(line: int, *columns: str) -> Callable[[list[Row], Row], None]:
    """The row takes over `columns` of another one."""
    return lambda rows, row: row.update({name: rows[line - 1][name] for name in columns})


def swapped(rows: list[Row], row: Row) -> None:
    other = rows[249]
    row.update(prompt=other["prompt"], chosen=other["rejected"], rejected=other["chosen"])


def reworded(rows: list[Row], row: Row) -> None:
    row["prompt"] = [user(f"{said(rows[449], 'prompt')[:-1]}!")]


def overlapping(_: list[Row], row: Row) -> None:
    row["prompt"] = [user(f"Please count: {EVALUATED.title()}, and so on, to a hundred.")]


PLANTED: list[tuple[int, Callable[[list[Row], Row], None], tuple[str, ...]]] = [
    (40, reply("rejected", lambda row: said(row, "chosen") + " "), ("identical",)),
    (80, reply("rejected", lambda row: said(row, "chosen") + " Ok."), ("near-identical",)),
    (120, reply("chosen", lambda _: " \n"), ("empty-reply",)),
    (160, value("rejected", []), ("empty-reply",)),
    (200, value("prompt", [user("")]), ("empty-prompt",)),
    (240, value("prompt", [user("First of all."), user("And then, how?")]), ("role-order",)),
    (280, value("prompt", [user("A question?"), assistant("An answer.")]), ("role-order",)),
    (320, value("prompt", [user("Hm."), {"role": "system", "content": "Be kind."}, user("So?")]), ("role-order",)),
    (360, value("prompt", [{"role": "critic", "content": "42"}, user("So what?")]), ("unknown-role", "role-order")),
    (380, value("prompt", [user("Hm?"), {"role": "tool", "content": "42"}, user("So what?")]), ("tool-calls",)),
    (400, drop("rejected"), ("missing",)),
    (440, value("chosen", None), ("missing",)),
    (480, value("chosen", 7), ("type", "mixed-types")),
    (520, reply("chosen", lambda row: f"{said(row, 'chosen')}\n\nHuman: And now?"), ("next-turn",)),
    (560, reply("rejected", lambda _: "No.<|im_end|>\n<|im_start|>user\nWhy?"), ("next-turn", "special-token")),
    (570, reply("rejected", lambda row: f"{said(row, 'rejected')}<|eot_id|>\n"), ("end-token",)),
    (580, value("context", "What it is about, beside messages."), ("prompt-column",)),
    (590, value("chosen", "[{'role': 'assistant', 'content': 'Yes.'} {'role': 'user', 'content': 'No?'}]"),
     ("unparsed-messages", "mixed-types")),
    (600, reply("chosen", lambda row: f"{said(row, 'prompt')} {said(row, 'chosen')}"), ("prompt-in-reply",)),
    (640, reply("rejected", lambda row: f"You asked: {said(row, 'prompt')} Well."), ("prompt-in-reply",)),
    (680, like(150, "prompt", "chosen", "rejected"), ("duplicate-row", "repeated-prompt")),
    (720, swapped, ("contradictory", "repeated-prompt")),
    (760, like(350, "prompt"), ("repeated-prompt",)),
    (800, reworded, ("near-prompt",)),
    (840, value("probability", 1.7), ("probability-range",)),
    (880, value("probability", 0.2), ("probability-side",)),
    (920, value("probability", 0.5), ("label-half",)),
    (960, reply("chosen", lambda row: f"CafÃ© au lait. {said(row, 'chosen')}"), ("garbled",)),
    (1000, reply("chosen", lambda row: f"\ufffd {said(row, 'chosen')}"), ("garbled",)),
    (1040, reply("rejected", lambda row: f"{said(row, 'rejected')} \ud83d"), ("half-character",)),
    (1080, value("chosen", json.dumps([assistant("As a text.")])), ("messages-as-text", "mixed-types", "forms")),
    (1120, value("chosen", [user("Something else?"), assistant("Yes.")]), ("prompt-mismatch",)),
    (1160, value("rejected", [assistant("Yes."), user("Sure?"), assistant("No.")]), ("several-turns",)),
    (1200, value("rejected", "A text among messages."), ("forms", "mixed-types")),
    (1240, value("rejected_score", 9), ("score-side",)),
    (1280, overlapping, ("eval-overlap",)),
    (1320, value("chosen_score", "7"), ("other-types",)),
]  # fmt: skip
"""Line, defect, and the rules that the line breaks by it."""
ALSO = {"contradictory": [250]}
"""The other half of the contradiction."""


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("planted")
    rows = clean_rows()
    for line, plant, _ in PLANTED:
        plant(rows, rows[line - 1])
    evaluated = write_jsonl(folder / "eval.jsonl", [{"question": EVALUATED, "answer": "15"}, {"question": "Short?"}])
    return examine(write_jsonl(folder / "rows.jsonl", rows), against=[str(evaluated)])


@pytest.mark.parametrize(("line", "rules"), [(line, rules) for line, _, rules in PLANTED])
def test_a_planted_defect_is_found(planted: Report, line: int, rules: tuple[str, ...]) -> None:
    found = {finding.rule for finding in planted.findings if line in finding.lines}
    assert found == set(rules)


def test_nothing_but_the_planted_defects_is_found(planted: Report) -> None:
    expected: dict[str, list[int]] = {rule: list(lines) for rule, lines in ALSO.items()}
    for line, _, rules in PLANTED:
        for rule in rules:
            expected.setdefault(rule, []).append(line)
    found = {finding.rule: list(finding.lines) for finding in planted.findings}
    assert found == {rule: sorted(lines) for rule, lines in expected.items()}
    assert all(finding.count == len(finding.lines) for finding in planted.findings)
    assert planted.worst == "error"
    assert (planted.overlaps[0].items, planted.overlaps[0].rows) == (2, 1)


def test_worst_findings_come_first(planted: Report) -> None:
    levels = [finding.level for finding in planted.findings]
    assert levels == sorted(levels, key=["error", "warning", "note"].index)
    assert all(finding.what and finding.hint for finding in planted.findings)


def test_clean_rows_give_nothing(tmp_path: Path) -> None:
    evaluated = write_jsonl(tmp_path / "eval.jsonl", [{"question": EVALUATED}])
    report = examine(write_jsonl(tmp_path / "rows.jsonl", clean_rows(seed=1)), against=[str(evaluated)])
    assert report.findings == ()
    assert (report.worst, report.rows, report.usable, report.shape) == (None, 2000, 2000, "preference")


def test_every_rule_about_rows_has_a_planted_row() -> None:
    """Those that only other shapes can break are tested with the shapes."""
    shaped = {"no-shared-prompt", "label-type", "unrated", "tied-ratings", "tie", "winner", "prompt-part",
                  "ratings-disagree"}  # fmt: skip
    assert {rule for _, _, rules in PLANTED for rule in rules} | shaped == set(RULES)


def found(path: Path, **options: object) -> dict[str, str]:
    report = examine(path, **options)  # type: ignore[arg-type]
    return {finding.rule: finding.level for finding in report.findings}


def test_length_bias_is_a_warning_with_its_figures(tmp_path: Path) -> None:
    words = Words(3)
    rows = [{"prompt": words.text(), "chosen": words.text(30, 50), "rejected": words.text(10, 20)} for _ in range(100)]
    report = examine(write_jsonl(tmp_path / "rows.jsonl", rows))
    (finding,) = report.findings
    assert (finding.rule, finding.level) == ("length-bias", "warning")
    assert report.lengths is not None
    assert report.lengths.chosen_longer == 1.0 and report.lengths.auc == 1.0
    assert "AUC 1.00" in finding.what and "100% of the pairs" in finding.what


def test_labels_as_a_whole(tmp_path: Path) -> None:
    rows = clean_rows(40)
    for probability, rule in ((0.53, "flat-labels"), (1.0, "hard-labels")):
        for row in rows:
            row["probability"] = probability
        path = write_jsonl(tmp_path / "rows.jsonl", rows)
        assert found(path) == {rule: "warning" if rule == "flat-labels" else "note"}


def test_refusals_on_one_side_are_a_warning(tmp_path: Path) -> None:
    words = Words(4)
    rows = [{"prompt": words.text(), "chosen": words.text(), "rejected": words.text()} for _ in range(100)]
    for row in rows[:20]:
        row["chosen"] = "I’m sorry, but I can't help with that. " + row["chosen"][:60]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert found(path)["refusal-gap"] == "warning"
    refusals = examine(path).refusals
    assert refusals is not None and (refusals.chosen, refusals.rejected) == (0.2, 0.0)


def test_truncation_is_estimated_without_a_tokenizer(tmp_path: Path) -> None:
    """4 characters a token: a prompt of 40 is 10 tokens; replies of 40 and of 48 make 20 and 22."""
    words = Words(5)
    rows = [{"prompt": words.text()[:40], "chosen": words.text()[:40], "rejected": words.text()[:48]} for _ in range(4)]
    truncation = examine(write_jsonl(tmp_path / "rows.jsonl", rows), max_length=20).truncation
    assert truncation is not None and truncation.tokenizer is None
    assert (truncation.prompt, truncation.chosen, truncation.rejected) == (0, 0, 1)
    assert found(tmp_path / "rows.jsonl", max_length=20)["truncation"] == "warning"
    assert examine(tmp_path / "rows.jsonl", max_length=10).truncation.prompt == 1  # type: ignore[union-attr]


def test_truncation_by_a_tokenizer_counts_the_template(tiny_model: Path, tmp_path: Path) -> None:
    """Against the tokenizer's own rendering of the whole conversation."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    rows = clean_rows(50)
    whole = [len(tokenizer.apply_chat_template(row["prompt"] + row["chosen"])["input_ids"]) for row in rows]
    limit = sorted(whole)[25]
    expected = sum(tokens > limit for tokens in whole) / 50
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    truncation = examine(path, tokenizer=str(tiny_model), max_length=limit).truncation
    assert truncation is not None and truncation.chosen == pytest.approx(expected, abs=0.041)


def test_misnamed_columns_are_read_and_named(tmp_path: Path) -> None:
    words = Words(6)
    rows = [{"question": words.text(), "chosen": words.text(), "rejected": words.text()} for _ in range(3)]
    report = examine(write_jsonl(tmp_path / "rows.jsonl", rows))
    (finding,) = report.findings
    assert (finding.level, finding.rule, report.usable) == ("error", "columns", 3)
    assert "`question` should be called `prompt`" in finding.what
    assert 'rename_column("question", "prompt")' in finding.hint


def test_a_slip_in_a_column_name_is_named(tmp_path: Path) -> None:
    rows = [{"prompt": "What is it?", "choosen": "This.", "rejectd": "That, it is."}]
    findings = examine(write_jsonl(tmp_path / "rows.jsonl", rows)).findings
    assert {finding.rule for finding in findings} == {"columns"}
    assert "".join(finding.what for finding in findings).count("should be called") == 2


@pytest.mark.parametrize("row", [{"text": "alone"}, ["a", "list"], "a text", {}])
def test_an_unknown_shape_is_one_error(row: object, tmp_path: Path) -> None:
    report = examine(write_jsonl(tmp_path / "rows.jsonl", [row] * 50))
    assert [(finding.level, finding.rule) for finding in report.findings] == [("error", "columns")]
    assert (report.shape, report.usable, report.rows) == (None, 0, 50)


def test_many_near_duplicates_are_a_warning(tmp_path: Path) -> None:
    """Up to a tenth of the rows they are a note. Letters in upper case make them near, not equal."""
    rows = clean_rows(40)
    for row, other in zip(rows[:4], rows[4:], strict=False):
        other["prompt"] = [user(said(row, "prompt").upper())]
    assert found(write_jsonl(tmp_path / "few.jsonl", rows)) == {"near-prompt": "note"}
    rows[20]["prompt"] = [user(said(rows[30], "prompt").upper())]
    assert found(write_jsonl(tmp_path / "many.jsonl", rows)) == {"near-prompt": "warning"}


def test_a_search_in_part_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlaif.data.duplicates.MOST", 30)
    assert found(write_jsonl(tmp_path / "rows.jsonl", clean_rows(40))) == {"searched-in-part": "note"}


def test_only_the_first_rows_are_read(tmp_path: Path) -> None:
    assert examine(write_jsonl(tmp_path / "rows.jsonl", clean_rows(30)), limit=7).rows == 7


def test_progress_is_told_every_thousand_rows(tmp_path: Path) -> None:
    told: list[int] = []
    examine(write_jsonl(tmp_path / "rows.jsonl", clean_rows(2000)), told=told.append)
    assert told == [1000, 2000]


def test_no_rows_are_the_users_mistake(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text("[]")
    with pytest.raises(UserError, match=r"rows\.json: holds no rows"):
        examine(path)


def test_exit_codes_and_json(tmp_path: Path) -> None:
    rows = clean_rows(40)
    clean = write_jsonl(tmp_path / "clean.jsonl", rows)
    rows[0]["probability"] = 0.2
    warned = write_jsonl(tmp_path / "warned.jsonl", rows)
    rows[0]["chosen"] = [assistant("")]
    broken = write_jsonl(tmp_path / "broken.jsonl", rows)
    assert rlaif("data", "check", clean).returncode == 0
    assert rlaif("data", "check", warned).returncode == 1
    told = rlaif("data", "check", broken)
    assert told.returncode == 2
    assert "empty-reply" in told.stdout and "(line 1)" in told.stdout and told.stderr == ""
    as_json = rlaif("data", "check", broken, "--format", "json")
    assert as_json.returncode == 2
    assert Report.model_validate_json(as_json.stdout) == examine(broken)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["missing.jsonl"], "missing.jsonl: no such file"),
        (["torn.jsonl"], "torn.jsonl:2: not JSON"),
        (["good.jsonl", "--tokenizer", "./nowhere", "--max-length", "9"], "no tokenizer that can be loaded"),
        (["good.jsonl", "--against", "missing.jsonl"], "missing.jsonl: no such file"),
    ],
)
def test_what_cannot_be_read_is_one_line(arguments: list[str], told: str, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "good.jsonl", clean_rows(2))
    (tmp_path / "torn.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": \n')
    result = rlaif("data", "check", *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert told in result.stderr and result.stderr.count("\n") == 1
