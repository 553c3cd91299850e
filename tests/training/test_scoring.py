"""Rewards of a file of responses: the model's own, in the order of the file, whatever shares a forward pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from rlaif.cli.train import score as command
from rlaif.errors import ModelError, UserError
from rlaif.records import Message, Prompt, Sample, content_id
from rlaif.store import write_records
from rlaif.training.batches import split
from rlaif.training.forward import PLAIN
from rlaif.training.reward_model import load
from rlaif.training.score import Columns, rewards_apart, rewards_of, score
from rlaif.training.tokenize import Group
from tests.support import lines, rlaif
from tests.training.scorers import POLICY, Plain, save_scorer, write_rows

ASKED = ["How do I bake bread?", "Hi", "My order is late, and I am furious about it. What will you do?"]
REPLIES = [
    "Mix flour, water, salt and yeast, wait, and bake it.",
    "No.",
    "Hello! How can I help you today?",
    "I am sorry.",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_scorer(tmp_path_factory.mktemp("models") / "scorer")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Plain:
    return Plain(folder)


def _turn(text: str, role: str = "user") -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def _rewards(folder: Path, rows: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
    data = write_rows(folder.parent / "rows.jsonl", rows)
    output = folder.parent / "rewards.jsonl"
    score(str(folder), data, output=output, **options)
    return lines(output)


def _close(found: list[float], wanted: list[float]) -> bool:
    return found == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("tokens", [64, 8192])
def test_rewards_are_the_models_own_in_the_order_of_the_file(folder: Path, plain: Plain, tokens: int) -> None:
    """Prompts stand apart from their like, and lengths are mixed; one response stands twice."""
    asked = [(prompt, reply) for reply in [*REPLIES, REPLIES[0]] for prompt in ASKED]
    rows = [{"id": at, "prompt": _turn(prompt), "response": reply} for at, (prompt, reply) in enumerate(asked)]
    found = _rewards(folder, rows, tokens=tokens)
    assert [row["id"] for row in found] == [str(at) for at in range(15)]
    assert [(row["prompt"], row["response"]) for row in found] == [(row["prompt"], row["response"]) for row in rows]
    wanted = [plain.chat(prompt, reply) for prompt, reply in asked]
    assert max(wanted) - min(wanted) > 0.5
    assert _close([row["reward"] for row in found], wanted)


def test_texts_are_raw_and_get_an_end(folder: Path, plain: Plain) -> None:
    """As in training: strings are joined as they stand, and the end-of-sequence token follows."""
    rows = [
        {"prompt": "Q: bread?\nA:", "completion": " Mix flour."},
        {"prompt": "Q: bread?\nA:", "completions": [" No.", " Yes."]},
    ]
    found = _rewards(folder, rows[:1]) + _rewards(folder, rows[1:])
    end = plain.tokenizer.eos_token
    wanted = [plain.text(f"Q: bread?\nA:{text}{end}") for text in (" Mix flour.", " No.", " Yes.")]
    assert _close([row["reward"] for row in found], wanted)
    assert [(row["id"], row.get("index")) for row in found] == [
        ("rows.jsonl:1", None), ("rows.jsonl:1", 0), ("rows.jsonl:1", 1)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [*_turn("Hi"), *_turn("No.", "assistant")]},
        {"instruction": "Hi", "completions": [{"response": "No.", "overall_score": 3}]},
        {"prompt": _turn("Hi"), "completion": _turn("No.", "assistant")},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "No."}]},
        {"prompt": _turn("Hi"), "completion": "No.", "label": False},
    ],
)
def test_shapes(folder: Path, plain: Plain, row: dict[str, Any]) -> None:
    (found,) = _rewards(folder, [row])
    assert _close([found["reward"]], [plain.chat("Hi", "No.")])


def test_columns_by_other_names(folder: Path, plain: Plain) -> None:
    rows = [{"ask": _turn("Hi"), "prompt": "x", "said": "No.", "response": "y"}]
    (found,) = _rewards(folder, rows, columns=Columns("said", "ask"))
    assert _close([found["reward"]], [plain.chat("Hi", "No.")])
    with pytest.raises(UserError, match="no column `sayd` \\(--column\\); did you mean `said`"):
        _rewards(folder, rows, columns=Columns("sayd", "ask"))


def test_preference_pairs(folder: Path, plain: Plain) -> None:
    """Four pairs, of which three have the higher reward on the chosen side: 0.75, Wilson's interval 0.30 to 0.95."""
    pairs = []
    for at, (prompt, one, other) in enumerate(
        [(ASKED[0], 0, 1), (ASKED[1], 0, 2), (ASKED[2], 1, 3), (ASKED[1], 1, 3)]
    ):  # fmt: skip
        higher, lower = sorted((REPLIES[one], REPLIES[other]), key=lambda text: -plain.chat(prompt, text))
        pairs.append((prompt, *((lower, higher) if at == 2 else (higher, lower))))
    rows = [
        {"prompt": _turn(prompt), "chosen": _turn(chosen, "assistant"), "rejected": _turn(rejected, "assistant")}
        for prompt, chosen, rejected in pairs
    ]
    data = write_rows(folder.parent / "pairs.jsonl", rows)
    figures = score(str(folder), data, output=folder.parent / "out.jsonl", top=2)
    assert figures.accuracy is not None
    assert figures.accuracy.value == 0.75
    assert (figures.accuracy.low, figures.accuracy.high) == pytest.approx((0.3006, 0.9544), abs=1e-4)
    found = lines(folder.parent / "out.jsonl")
    sides = [[plain.chat(prompt, text) for text in texts] for prompt, *texts in pairs]
    assert _close([row["chosen_reward"] for row in found], [chosen for chosen, _ in sides])
    assert _close([row["rejected_reward"] for row in found], [rejected for _, rejected in sides])
    assert figures.margin == pytest.approx(sum(chosen - rejected for chosen, rejected in sides) / 4, abs=1e-5)
    assert [row["chosen"] for row in found] == [row["chosen"] for row in rows]
    rewards = sorted(reward for pair in sides for reward in pair)
    assert _close([each.reward for each in figures.lowest], rewards[:2])
    assert _close([each.reward for each in figures.highest], rewards[:-3:-1])
    assert (figures.responses, figures.rewards.min) == (8, pytest.approx(rewards[0], abs=1e-5))
    assert figures.rewards.mean == pytest.approx(sum(rewards) / 8, abs=1e-5)


def test_samples_of_a_run_are_joined_with_their_prompts(folder: Path, plain: Plain, tmp_path: Path) -> None:
    prompts = [
        Prompt(id=content_id(text), messages=(Message(role="user", content=text),), source="-") for text in ASKED
    ]
    asked = [(prompt, text) for text in REPLIES[:2] for prompt in prompts]
    samples = [
        Sample(id=content_id(prompt.id, text), prompt=prompt.id, index=0, text=text, policy="p")
        for prompt, text in asked
    ]
    write_records(tmp_path / "samples.jsonl", samples)
    with pytest.raises(UserError, match=r"no prompts\.jsonl lies beside"):
        score(str(folder), tmp_path / "samples.jsonl")
    write_records(tmp_path / "prompts.jsonl", prompts)
    score(str(folder), tmp_path, output=tmp_path / "out.jsonl")
    found = lines(tmp_path / "out.jsonl")
    assert [row["id"] for row in found] == [sample.id for sample in samples]
    assert _close([row["reward"] for row in found], [plain.chat(prompt.messages[0].content, t) for prompt, t in asked])


def test_rows_that_cannot_be_scored_keep_their_place(folder: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": _turn("Hi"), "response": " "},
        {"prompt": _turn("Hi"), "response": ["No.", "", "Yes."]},
        {"prompt": _turn("Hi\ud800"), "response": "No."},
        {"prompt": _turn("Hi"), "response": "word " * 600},
        {"prompt": _turn("long " * 600), "response": "No."},
    ]
    figures = score(str(folder), write_rows(tmp_path / "rows.jsonl", rows), output=tmp_path / "out.jsonl")
    rewards = [row["reward"] is not None for row in lines(tmp_path / "out.jsonl")]
    assert rewards == [False, True, False, True, False, False, True]
    assert {left.reason: left.count for left in figures.left_out} == {
        "empty-reply": 2, "half-character": 1, "too-long": 1
    }  # fmt: skip
    assert (figures.truncated, figures.responses, figures.rows) == (1, 3, 5)
    with pytest.raises(UserError, match=r"no response in 1 rows can be scored: 1 where .* longer than max_length"):
        score(str(folder), write_rows(tmp_path / "one.jsonl", rows[3:4]), output=tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists()


def test_limit_and_what_the_training_did(folder: Path, plain: Plain, tmp_path: Path) -> None:
    """The template and the longest length of the training hold, unless others are given."""
    other = save_scorer(tmp_path / "trained")
    settings = {"template": "plain", "max_length": 60, "model": "x"}
    (other / "train.json").write_text(json.dumps({"method": "reward", "settings": settings}))
    loaded = load(str(other))
    assert (loaded.learned.template, loaded.max_length) == ("plain", 60)
    rows = [{"prompt": _turn("Hi"), "response": reply} for reply in REPLIES]
    (found,) = _rewards(other, rows[1:], limit=1)
    text = f"\n\nHuman: Hi\n\nAssistant: No.{plain.tokenizer.eos_token}"
    assert _close([found["reward"]], [plain.text(text)])
    (found,) = _rewards(other, rows[1:], limit=1, template="chat", max_length=100)
    assert _close([found["reward"]], [plain.chat("Hi", "No.")])
    assert load(str(folder)).max_length == 512


def test_rewards_of_any_groups(folder: Path) -> None:
    """In the order of the groups and their completions, by the fast way and by the plain one alike."""
    model = load(str(folder)).model
    draw = torch.Generator().manual_seed(1)

    def ids(most: int) -> tuple[int, ...]:
        return tuple(torch.randint(5, 2000, (int(torch.randint(1, most, (), generator=draw)),)).tolist())

    groups = [Group(str(at), ids(40), tuple(ids(30) for _ in range(1 + at % 4))) for at in range(9)]
    fast = rewards_of(model, groups, tokens=128)
    assert _close(fast, rewards_of(model, groups, forward_path=PLAIN))
    assert rewards_of(model, []) == []
    singles = [Group(group.id, group.prompt, (each,)) for group in groups for each in group.completions]
    assert _close(rewards_apart(model, singles, tokens=128), fast)
    assert len(split(groups, 128)) > 1


def test_what_is_no_reward_model(folder: Path, tmp_path: Path) -> None:
    assert POLICY is not None
    with pytest.raises(UserError, match="is a LlamaForCausalLM: its reward head would be a new one"):
        load(str(POLICY))
    with pytest.raises(UserError, match="has 3 outputs"):
        load(str(save_scorer(tmp_path / "three", labels=3)))
    headless = save_scorer(tmp_path / "headless")
    from safetensors.torch import load_file, save_file

    weights = load_file(headless / "model.safetensors")
    save_file(
        {name: each for name, each in weights.items() if "score" not in name}, headless / "model.safetensors",
        metadata={"format": "pt"},
    )  # fmt: skip
    with pytest.raises(UserError, match="lacks weights of a reward model"):
        load(str(headless))
    with pytest.raises(UserError, match="no responses that can be recognised \\(columns: question, n\\)"):
        _rewards(folder, [{"question": "Hi", "n": 1}])


def test_reward_that_is_no_number_stops(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    broken = save_scorer(tmp_path / "broken")
    model = AutoModelForSequenceClassification.from_pretrained(broken)
    for weight in (model.model.norm.weight, model.score.weight):
        weight.data.fill_(1e20)  # a product of two is more than a float32 holds
    model.save_pretrained(broken)
    with pytest.raises(ModelError, match=r"the reward of `rows\.jsonl:1` \(line 1\) is (nan|-?inf)"):
        _rewards(broken, [{"prompt": _turn("Hi"), "response": "No."}])
    assert not (tmp_path / "rewards.jsonl").exists()


def test_command(folder: Path, plain: Plain, tmp_path: Path) -> None:
    chosen, rejected = sorted(REPLIES[1:3], key=lambda text: -plain.chat("Hi", text))
    data = write_rows(tmp_path / "pairs.jsonl", [{"prompt": _turn("Hi"), "chosen": chosen, "rejected": rejected}])
    told = rlaif("score", "--model", folder, "--data", data, "--output", tmp_path / "out.jsonl", "--top", 1)
    assert told.returncode == 0, told.stderr
    assert told.stderr == ""
    assert "1 rows, 2 responses scored" in told.stdout
    assert "accuracy           100.0% (20.7% to 100.0%) of 1 pairs" in told.stdout
    assert f"{plain.chat('Hi', chosen):.3f}" in told.stdout
    assert len(lines(tmp_path / "out.jsonl")) == 1


def test_command_for_scripts(folder: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [{"ask": "Hi", "said": ["No.", "Yes."]}])
    given = ["--model", str(folder), "--data", str(data), "--column", "said", "--prompt-column", "ask"]
    told = CliRunner().invoke(command, [*given, "--format", "json", "--top", "0", "--raw"])
    assert told.exit_code == 0, told.output
    figures = json.loads(told.stdout)
    assert (figures["responses"], figures["accuracy"], figures["highest"]) == (2, None, [])


@pytest.mark.parametrize(
    ("dtype", "device", "wanted"),
    [
        ("float32", "cuda", False), ("auto", "cuda", True), (None, "cuda", True),
        ("bfloat16", "cpu", True), ("auto", "cpu", False), (None, "cpu", False),
    ],
)  # fmt: skip
def test_rewards_are_computed_as_in_the_training(
    dtype: str | None, device: str, wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The type that it was given counts on every device; where none was, the device decides."""
    from transformers import LlamaForSequenceClassification

    save_scorer(tmp_path)
    if dtype is not None:
        (tmp_path / "train.json").write_text(json.dumps({"settings": {"dtype": dtype}}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device == "cuda")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(LlamaForSequenceClassification, "to", lambda self, _: self)
    assert load(str(tmp_path)).narrow == wanted
