"""Run folders small enough to count by hand, with texts that would like to be markup."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rlaif.constitution import load_constitution

CONSTITUTION = """name: two
description: Two principles.
principles:
  - {id: kind, compare: "Which reply is kinder?", weight: 2}
  - {id: short, compare: "Which reply is shorter?"}
"""
JUDGE = "judge@1"
HOSTILE = [
    '</script><script>window.hacked = "script"</script>',
    "<!-- <script> --> <img src=x onerror=\"window.hacked = 'image'\"> {{ 7 * 7 }} {% raw %} \u2028 \\u003c &lt;b&gt;",
]
PROMPT_OF_THE_FLIP = "What is a <b>tree</b>?"


def key(name: str) -> str:
    """An id of 32 hex digits that differs from the others' in its first half."""
    return name.encode().hex().ljust(32, "0")


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def answer(name: str, first: str, second: str, principle: str, logit: float, **more: Any) -> dict[str, Any]:
    """One answer of the judge, with nine tenths of the probability on its labels."""
    share = 1 / (1 + math.exp(-logit))
    return {
        "id": key(name), "prompt": key("p1" if first in "abc" else "p2"), "first": key(first), "second": key(second),
        "principle": principle, "judge": JUDGE, "verdict": "first" if logit > 0 else "second", "label_mass": 0.9,
        "logprobs": [math.log(0.9 * share), math.log(0.9 * (1 - share))], "text": "A", "prompt_tokens": 100,
    } | more  # fmt: skip


def answers() -> list[dict[str, Any]]:
    """What the judge said: for every comparison and principle, with the left reply first, and with it second."""
    found = []
    for left, right, said in (
        # For a, by `kind` +2 and +1, by `short` -1 and -2: (2 * 1.5 - 1.5) / 3 = +0.5 together.
        ("a", "b", {"kind": (2.0, -1.0), "short": (-1.0, 2.0)}),
        # For a, by `kind` +2 and -3, by `short` +1 and +1: +5/3 in one order, -5/3 in the other.
        ("a", "c", {"kind": (2.0, 3.0), "short": (1.0, -1.0)}),
        # For b, +0.1 whatever is asked.
        ("b", "c", {"kind": (0.1, -0.1), "short": (0.1, -0.1)}),
    ):
        for principle, (forward, backward) in said.items():
            found.append(answer(f"{left}{right}{principle[0]}", left, right, principle, forward))
            found.append(answer(f"{right}{left}{principle[0]}", right, left, principle, backward))
    low: dict[str, Any] = {"label_mass": 0.2}
    none: dict[str, Any] = {"verdict": "unparsed", "logprobs": None, "label_mass": None, "text": "Hm."}
    found += [
        answer("dek", "d", "e", "kind", 1.0, **low), answer("edk", "e", "d", "kind", 1.0, **none),
        answer("des", "d", "e", "short", 1.0, **low), answer("eds", "e", "d", "short", 1.0, **low),
        answer("old", "a", "b", "kind", 5.0),  # of other settings: no comparison rests on it
    ]  # fmt: skip
    return found


def _settled(left: str, right: str, status: str, p: float | None, flip: bool = False) -> dict[str, Any]:
    names = [f"{one}{other}{principle}" for principle in "ks" for one, other in ((left, right), (right, left))]
    return {
        "left": key(left), "right": key(right), "status": status, "probability": p, "flip": flip,
        "principles": [] if p is None else ["kind", "short"], "judgements": [key(name) for name in names],
    }  # fmt: skip


def write_run(folder: Path, *, hostile: bool = True) -> Path:
    """Three prompts, five samples, four comparisons (a label, a flip, a tie, none readable), one pair."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "two.yaml").write_text(CONSTITUTION)
    texts = {"a": "short", "b": "a longer reply", "c": "ten chars."}
    texts |= {"d": HOSTILE[0] if hostile else "d", "e": HOSTILE[1] if hostile else "e"}
    asked = {"p1": PROMPT_OF_THE_FLIP, "p2": HOSTILE[0] if hostile else "And two?", "p3": "And three?"}
    lines(folder / "prompts.jsonl", [
        {"id": key(name), "messages": [{"role": "user", "content": text}], "source": "f:1", "responses": [],
         "metadata": {}} for name, text in asked.items()
    ])  # fmt: skip
    lines(folder / "samples.jsonl", [
        {"id": key(name), "prompt": key("p1" if name in "abc" else "p2"), "index": at, "text": text,
         "policy": "policy@1", "finish_reason": "length" if name == "b" else "stop"}
        for at, (name, text) in enumerate(texts.items())
    ])  # fmt: skip
    lines(folder / "judgements.jsonl", answers())
    lines(folder / "critiques.jsonl", [
        {"id": key("note"), "prompt": key("p2"), "sample": key("d"), "principle": "kind", "judge": JUDGE,
         "text": HOSTILE[1]}
    ])  # fmt: skip
    lines(folder / "failures.jsonl", [])
    _write_derived(folder, texts)
    return folder


def _write_derived(folder: Path, texts: dict[str, str]) -> None:
    half = 1 / (1 + math.exp(-0.5))
    comparisons = [
        _settled("a", "b", "labelled", half), _settled("a", "c", "flip", 0.5, flip=True),
        _settled("b", "c", "tie", 1 / (1 + math.exp(-0.1))),
    ]  # fmt: skip
    ranked = [{"sample": key(name), "rank": at + 1, "strength": 0.3 - 0.3 * at} for at, name in enumerate("abc")]
    equal = [{"sample": key(name), "rank": 1, "strength": 0.0} for name in "de"]
    lines(folder / "rankings.jsonl", [
        {"id": key("p1"), "samples": ranked, "comparisons": comparisons},
        {"id": key("p2"), "samples": equal, "comparisons": [_settled("d", "e", "unparsed", None)]},
        {"id": key("p3"), "samples": [], "comparisons": []},
    ])  # fmt: skip
    turn = {name: [{"role": "assistant", "content": texts[name]}] for name in "ab"}
    lines(folder / "pairs.jsonl", [{
        "id": key("pair"), "prompt": [{"role": "user", "content": PROMPT_OF_THE_FLIP}], "chosen": turn["a"],
        "rejected": turn["b"], "probability": half, "raw_probability": half, "margin": half - 0.5, "flip": False,
        "hard": False, "strengths": [0.3, 0.0], "ranks": [1, 2], "principles": ["kind", "short"],
        "prompt_id": key("p1"), "chosen_id": key("a"), "rejected_id": key("b"),
        "judgements": comparisons[0]["judgements"], "policies": ["policy@1", "policy@1"], "judge": JUDGE,
        "constitution": "two",
    }])  # fmt: skip
    settings = {
        "constitution": str(folder / "two.yaml"), "prompts": {"path": "f"}, "judge": {"model": "judge"},
        "compare": {"principles": "each", "orders": "both"}, "pair": {"min_label_mass": 0.5}, "output": str(folder),
    }  # fmt: skip
    (folder / "run.yaml").write_text(json.dumps(settings))  # JSON is YAML
    (folder / "manifest.json").write_text(json.dumps({
        "made_by": "rlaif 9.9", "schema": 1, "judge": JUDGE, "policy": "policy@1", "settings": settings,
        "constitution": {"name": "two", "hash": load_constitution(str(folder / "two.yaml")).hash},
        "counts": {"judgements": 16, "judge_prompt_tokens": 1600, "judge_cached_tokens": 400, "pairs": 1},
        "failures": {}, "principles": {"kind": {"labels": 1, "flips": 1}, "short": {"labels": 1, "flips": 0}},
        "session": {"seconds": 3.0, "stages": {"compare": {"asked": 16, "answered": 16, "seconds": 2.0}}},
    }))  # fmt: skip


def write_training(folder: Path, *, finished: bool = True, method: str = "dpo", **metrics: Any) -> Path:
    """A training of three steps."""
    folder.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {"model": '"><script>window.hacked = "model"</script>', "output": str(folder)}
    settings |= {"prompts": "p", "reward": "r", "steps": 3} if method == "ppo" else {"data": "pairs.jsonl"}
    begun = {"method": method, "settings": settings | {"learning_rate": 0.5}, "data_hash": "d" * 64, "model_hash": "m"}
    (folder / "train.json").write_text(json.dumps(begun | {"version": "9.9"}))
    lines(folder / "log.jsonl", [
        {"step": step, "loss": 1 / step, "reward": 0.5 + step / 10, "kl": step / 4, "eval_loss": 2 / step,
         "held_out/win_rate": 0.5 + step / 20, "held_out/length_controlled": 0.5} for step in (1, 2, 3)
    ])  # fmt: skip
    if finished:
        done = {"loss": 0.25, "eval_loss": 0.5, "steps": 3, "seconds": 7.5} | metrics
        (folder / "metrics.json").write_text(json.dumps(done))
    return folder
