"""The public data sets that prompts are most often read from, where they lie beside the checkout."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from rlaif.data.prompts import InputIssues, read_prompts
from rlaif.records import Prompt

DATA = Path(__file__).resolve().parents[2] / "../shared/data"
HH = DATA / "hh-rlhf-harmless-base-test.jsonl.gz"
PAPER = DATA / "constitutional-ai"

needs_hh = pytest.mark.skipif(not HH.exists(), reason="the hh-rlhf test set is not here")
needs_paper = pytest.mark.skipif(not PAPER.exists(), reason="the data of the paper is not here")


def rendered(prompt: Prompt) -> str:
    names = {"user": "Human", "assistant": "Assistant"}
    return squeezed("".join(f"\n\n{names[turn.role]}: {turn.content}" for turn in prompt.messages))


def squeezed(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


@needs_hh
def test_hh_rlhf_counts() -> None:
    odd = InputIssues()
    prompts = list(read_prompts(HH, input_issues=odd))
    assert (odd.rows, len(prompts)) == (2312, 2310)
    assert odd.counts == {
        "blank given response (left out)": 4,
        "prompt with one speaker twice in a row (turns joined)": 4,
        "answer that is more than one turn (left out)": 5,
        "repeated prompt": 2,
    }
    assert Counter(len(prompt.responses) for prompt in prompts) == {2: 2301, 1: 9}


@needs_hh
def test_hh_rlhf_texts_are_whole() -> None:
    """Cut at the last marker by string search alone: prompt and answers must be those, but for white space."""
    with gzip.open(HH, "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    mark, checked = "\n\nAssistant:", 0
    for prompt in read_prompts(HH):
        row = rows[int(prompt.source.rpartition(":")[2]) - 1]
        (before, _, chosen), (other, _, rejected) = (row[name].rpartition(mark) for name in ("chosen", "rejected"))
        doubled = f"{mark}[^\n]*(\n[^\n]+)*{mark}"
        if before != other or re.search(doubled, before):
            continue
        checked += 1
        assert rendered(prompt) == squeezed(before)
        assert [squeezed(given.text) for given in prompt.responses] == [
            squeezed(answer) for answer in (chosen, rejected) if answer.strip()
        ]
    assert checked >= 2300


@needs_paper
@pytest.mark.parametrize(("name", "cut"), [("LAMDA_RLMADISON", 217), ("INSTRUCTGPT_HRLHF", 220)])
def test_the_paper_s_prompts_with_seventeen_answers_each(name: str, cut: int) -> None:
    path, odd = PAPER / f"{name}.jsonl", InputIssues()
    prompts = list(read_prompts(path, column="rl_prompt", responses="sampled_answers.sampled_string", input_issues=odd))
    assert [len(prompt.responses) for prompt in prompts] == [17] * 13
    assert odd.counts == {"given response with a dangling `Human:` (cut)": cut}
    text = path.read_text(encoding="utf-8")
    assert len(re.findall(r'\\nHuman:", "pm_scores"', text)) == cut, "counted in the file itself"
    assert not [one for prompt in prompts for one in prompt.responses if "Human:" in one.text]


@needs_paper
def test_few_shot_turns_with_single_line_breaks() -> None:
    prompts = read_prompts(PAPER / "INSTRUCTGPT_HRLHF.jsonl", column="rl_prompt")
    assert [turn.role for turn in next(prompts).messages] == ["user", "assistant"] * 2 + ["user"]


@needs_paper
def test_revisions_and_questions() -> None:
    slow = PAPER / "LAMDA_SLMADISON.jsonl"
    chains = list(read_prompts(slow, column="rl_prompt", responses="cst.revision.sample"))
    assert [len(prompt.responses) for prompt in chains] == [4] * 13
    assert len(list(read_prompts(PAPER / "438HHHEvaluations.jsonl"))) == 438
    assert len(list(read_prompts(PAPER / "RLMadisonInstructions.json"))) == 16
