"""The paper's own chains fit into our records and come out equal."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rlaif.errors import UserError
from rlaif.records import Critique, Prompt, Revision, Sample
from rlaif.revisions.published import PublishedChain, export_chains, read_chains
from rlaif.store import read_records, write_records
from tests.support import DATA, lines

FILE = DATA / "constitutional-ai/LAMDA_SLMADISON.jsonl"
REAL = pytest.mark.skipif(not FILE.exists(), reason="the shared data is not here")


@REAL
def test_the_published_chains_come_out_equal() -> None:
    published = read_chains(FILE)
    assert export_chains(published.chains, published.requests) == lines(FILE)


@REAL
def test_four_rounds_each_from_the_one_before() -> None:
    published = read_chains(FILE)
    assert len(published.chains) == 13
    assert len(published.requests) == 14
    for chain in published.chains:
        assert [revision.round for revision in chain.revisions] == [1, 2, 3, 4]
        starts = [chain.sample.id, *(revision.id for revision in chain.revisions)]
        assert [revision.parent for revision in chain.revisions] == starts[:4]
        assert [critique.sample for critique in chain.critiques] == starts[:4]
        assert [revision.critique for revision in chain.revisions] == [critique.id for critique in chain.critiques]
    kept = [chain for chain in published.chains if "rl_prompt" in chain.prompt.metadata]
    assert len(kept) == 1, "one dialogue ends in spaces, and is kept as it was"
    drawn = Counter(revision.principle for chain in published.chains for revision in chain.revisions)
    assert drawn.total() == 52
    assert max(drawn.values()) > 1, "drawn with replacement"


@REAL
def test_through_the_tables_and_back(tmp_path: Path) -> None:
    """Everything goes through our files, in another order: rows are joined by id."""
    published = read_chains(FILE)
    tables = {
        "prompts": [chain.prompt for chain in published.chains],
        "samples": [chain.sample for chain in published.chains],
        "critiques": [each for chain in published.chains for each in chain.critiques][::-1],
        "revisions": [each for chain in published.chains for each in chain.revisions][::-1],
    }
    for name, records in tables.items():
        assert write_records(tmp_path / name, records) == len({record.id for record in records})  # type: ignore[attr-defined]
    samples = {each.prompt: each for each in read_records(tmp_path / "samples", Sample)}
    critiques = list(read_records(tmp_path / "critiques", Critique))
    revisions = list(read_records(tmp_path / "revisions", Revision))
    chains = [
        PublishedChain(
            prompt,
            samples[prompt.id],
            tuple(each for each in critiques if each.prompt == prompt.id),
            tuple(each for each in revisions if each.prompt == prompt.id),
        )
        for prompt in read_records(tmp_path / "prompts", Prompt)
    ]
    assert export_chains(chains, published.requests) == lines(FILE)


def link(key: str, critique: str, revision: str, request: str = "Criticise it.") -> dict[str, Any]:
    value = {"prompt": [request], "edit_request": "Fix it."}
    return {"cst_key": key, "cst_value": value, "critique": {"sample": critique}, "revision": {"sample": revision}}


def row(*links: dict[str, Any], prompt: str = "\n\nHuman: Hi?\n\nAssistant:") -> dict[str, Any]:
    return {"rl_prompt": prompt, "initial_response": [{"sample": " What."}], "cst": list(links), "more": {"x": [1]}}


def test_odd_dialogues_and_other_columns_survive(tmp_path: Path) -> None:
    rows = [
        row(link("a", " rude ", "Hello.")),
        row(link("a", "x", "same"), link("a", "x", "same"), prompt="\n\nHuman:  Two  spaces \n\nAssistant:"),
        row(prompt="\n\nHuman: One\n\nAssistant: Two\n\nHuman: Three\n\nAssistant:"),
    ]
    path = tmp_path / "chains.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    published = read_chains(path)
    assert export_chains(published.chains, published.requests) == rows
    assert "rl_prompt" in published.chains[1].prompt.metadata
    assert len(published.chains[2].prompt.messages) == 3


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"rl_prompt": "\n\nHuman: Hi?\n\nAssistant:"}, "KeyError"),
        (row(link("a", "x", "y"), link("a", "x", "z", request="Other.")), "other texts than before"),
        (row({**link("a", "x", "y"), "extra": 1}), "has the keys"),
        ({**row(), "initial_response": [{"sample": "a"}, {"sample": "b"}]}, "too many values"),
        ({**row(), "initial_response": [{"sample": "a", "score": 1}]}, "alone"),
    ],
)
def test_what_is_no_chain_is_told_with_its_line(tmp_path: Path, wrong: dict[str, Any], what: str) -> None:
    path = tmp_path / "chains.jsonl"
    path.write_text(json.dumps(row()) + "\n" + json.dumps(wrong) + "\n")
    with pytest.raises(UserError, match=what) as error:
        read_chains(path)
    assert error.value.line == 2
