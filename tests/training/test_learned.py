"""What a training learned of texts is kept, and used when its model is asked and scored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlaif.config.run_file import load_run, save_run
from rlaif.data.conversations import Turn
from rlaif.errors import ModelError, UserError
from rlaif.evaluation.policy_specs import contestants
from rlaif.evaluation.provenance import lineage_of
from rlaif.evaluation.reward_scores import Reply, RewardModel
from rlaif.records import Message
from rlaif.rl.reward_sources import ModelReward
from rlaif.rl.rewards import open_reward
from rlaif.training.card import use
from rlaif.training.config import SftSettings, load_settings
from rlaif.training.dataset import prepare
from rlaif.training.examples import Example
from rlaif.training.score import score
from rlaif.training.tokenize import Forms, TextFormat, Tokens, run_options, text_format_of
from tests.data.made import Words, assistant, user, write_jsonl
from tests.online.runs import begin as begin_online
from tests.online.runs import run as run_online
from tests.support import rlaif, write_run
from tests.training.runs import Heard, begin, pair_rows, run
from tests.training.scorers import Plain, save_scorer
from tests.training.small import CHATML, bpe

_SOURCE = Words()
WORDS = [_SOURCE.text() for _ in range(100)]
THINKS_NOT = {"enable_thinking": False}
SWITCHED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
"""Thinks unless it is told not to."""


def with_template(folder: Path, template: Any) -> Path:
    """A model's folder with another chat template."""
    for old in folder.glob("chat_template*"):
        old.unlink()
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    return folder


def trained_on(folder: Path, learned: dict[str, Any], settings: dict[str, Any] | None = None) -> Path:
    """A folder that says how its model was trained."""
    begun = {"method": "reward", "settings": {"template": "auto", **(settings or {})}, "learned": learned}
    (folder / "train.json").write_text(json.dumps(begun))
    return folder


def chats(*talks: Sequence[str]) -> list[dict[str, Any]]:
    """Conversations in which user and assistant take turns."""
    return [
        {"messages": [(assistant if at % 2 else user)(text) for at, text in enumerate(dialogue)]} for dialogue in talks
    ]


@pytest.mark.case("30-reward-model-of-raw-text")
def test_a_reward_model_of_texts_scores_prompts_and_responses_as_such_texts(tmp_path: Path) -> None:
    """In PPO, in an evaluation and in `rlaif score`: the prompt, the space that responses began with, the response."""
    folder = trained_on(save_scorer(tmp_path / "scorer"), {"template": "text", "seam": " "})
    plain = Plain(folder)
    wanted = plain.text(f"How do I boil eggs? In water.{plain.tokenizer.eos_token}")
    asked, other = (Message(role="user", content="How do I boil eggs?"),), Message(role="assistant", content="So?")
    reward = ModelReward(folder, "cpu")
    assert reward([asked], ["In water."]).total == pytest.approx([wanted], abs=1e-4)
    assert reward([asked], [" In water."]).total == pytest.approx([wanted], abs=1e-4)
    assert "trained on texts without its chat template" in reward.note
    told: list[str] = []
    open_reward(str(folder), device="cpu", say=told.append).close()
    assert told == [reward.note]
    assert reward([asked, (*asked, other, *asked)], ["In water.", "In water."]).total[1] is None
    with pytest.raises(ModelError, match="trained on single prompts without a chat template, and all prompts have"):
        reward([(*asked, other, *asked)], ["In water."])
    scorer = RewardModel(str(folder), device="cpu")
    assert scorer.template == "text"
    (found,) = scorer.score([Reply("x", asked, "In water.")])
    assert found.reward == pytest.approx(wanted, abs=1e-4)
    rows = [
        {"prompt": [{"role": "user", "content": "How do I boil eggs?"}], "response": "In water."},
        {"prompt": "How do I boil eggs?", "response": " In water."},
        {"prompt": [user("Hi"), assistant("So?"), user("Go on.")], "response": "In water."},
    ]
    figures = score(
        str(folder), write_jsonl(tmp_path / "rows.jsonl", rows), output=tmp_path / "out.jsonl", device="cpu"
    )
    rewards = [json.loads(line)["reward"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert rewards[:2] == pytest.approx([wanted, wanted], abs=1e-4)
    assert rewards[2] is None and [each.reason for each in figures.left_out] == ["no-form"]


@pytest.mark.sibling("model-of-conversations-scores-plain-strings")
def test_a_reward_model_of_conversations_reads_strings_as_conversations(tmp_path: Path) -> None:
    folder = trained_on(save_scorer(tmp_path / "scorer"), {"template": "chat"})
    rows = [{"prompt": "Hi", "response": "In water."}]
    score(str(folder), write_jsonl(tmp_path / "rows.jsonl", rows), output=tmp_path / "out.jsonl", device="cpu")
    found = json.loads((tmp_path / "out.jsonl").read_text())["reward"]
    assert found == pytest.approx(Plain(folder).chat("Hi", "In water."), abs=1e-4)


@pytest.mark.case("30-reward-model-of-raw-text")
def test_a_training_says_and_keeps_what_it_learned(tmp_path: Path) -> None:
    begin(tmp_path)
    heard = Heard()
    run("reward", tmp_path, heard=heard)
    assert any("it is trained without it (`template: chat` uses it)" in note for note in heard.notes)
    assert text_format_of(tmp_path / "out") == TextFormat(template="text", seam=" ")
    assert RewardModel(str(tmp_path / "out")).template == "text"
    heard = Heard()
    run("sft", tmp_path, heard=heard, template="chat", output=str(tmp_path / "chat"))
    assert not any("trained without it" in note for note in heard.notes)
    assert text_format_of(tmp_path / "chat").template == "chat"


@pytest.mark.sibling("policy-of-raw-text-asked-in-chat-form")
def test_a_policy_of_texts_is_pointed_out_where_it_is_asked_in_its_template(tmp_path: Path) -> None:
    begin_online(tmp_path)
    trained_on(tmp_path / "model", {"template": "text"})
    assert lineage_of(str(tmp_path / "model")).raw
    heard = Heard()
    run_online(tmp_path, heard=heard, steps=1)
    assert any("was trained on texts, and is asked in its chat template" in note for note in heard.notes)
    assert text_format_of(tmp_path / "out").template == "chat"


@pytest.mark.sibling("texts-that-were-formatted-before")
def test_the_form_of_most_rows_is_kept() -> None:
    def form(*examples: Example) -> TextFormat:
        forms = Forms(("<|im_start|>",))
        for each in examples:
            forms.add(each)
        return forms.learned({})

    raw, turns = Example("", "Hi?", ("\nSo.",), {}), Example("", (Turn("user", "Hi?"),), ("So.",), {})
    assert form(raw) == TextFormat(template="text", seam="\n")
    assert form(turns, turns, raw).template == "chat"
    assert form(Example("", "\n\nHuman: Hi?\n\nAssistant:", (" So.",), {})).template == "plain"
    assert form(Example("", "", ("<|im_start|>user\nHi?",), {})).template == "chat"
    assert form() == TextFormat()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"settings": 3}', '{"settings": {}, "learned": 3}'])
def test_a_broken_note_of_a_training_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "train.json").write_text(text)
    assert text_format_of(tmp_path) == TextFormat()


@pytest.mark.case("15-earlier-turns-not-learned")
def test_every_reply_of_a_conversation_is_learned_where_that_is_asked_for(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "talks.jsonl", chats(("1?", "One.", "2?", "Two."), ("3?", "Three.", "4?", "Four.")))
    tokenizer = bpe(WORDS, CHATML, eos="<|im_end|>")
    tokens = Tokens(tokenizer)
    last = prepare(path, tokens, "demonstrations")
    assert "4 replies in 2 conversations; the last of each is learned (`turns: all` learns every one)" in (
        last.report.lines()
    )
    assert len(last.train) == 2
    every = prepare(path, tokens, "demonstrations", turns="all")
    assert "4 replies in 2 conversations; every one is learned" in every.report.lines()
    said = [tokenizer.decode(list(group.completions[0])) for group in every.train]
    assert said == [f"{text}.<|im_end|>\n" for text in ("One", "Two", "Three", "Four")]
    prompts = [tokenizer.decode(list(group.prompt)) for group in every.train]
    assert prompts[0].count("<|im_start|>user") == 1 and prompts[1].startswith(f"{prompts[0]}One.<|im_end|>\n")
    alone = write_jsonl(tmp_path / "alone.jsonl", chats(("1?", "One."), ("2?", "Two.")))
    assert not any("conversations" in line for line in prepare(alone, tokens, "demonstrations").report.lines())


@pytest.mark.sibling("conversation-that-ends-with-the-user")
def test_a_conversation_that_ends_with_the_user_loses_that_turn_only(tmp_path: Path) -> None:
    rows = chats(("1?", "One.", "2?", "Two.", "Thanks!"), ("Hello?",))
    path = write_jsonl(tmp_path / "talks.jsonl", rows)
    tokens = Tokens(bpe(WORDS, CHATML, eos="<|im_end|>"))
    every = prepare(path, tokens, "demonstrations", turns="all")
    assert len(every.train) == 2 and [each.reason for each in every.report.left_out] == ["role-order"]
    with pytest.raises(UserError, match="no row of 2 can be trained on"):
        prepare(path, tokens, "demonstrations")


@pytest.mark.sibling("conversation-logged-as-it-grew")
def test_a_reply_that_several_rows_repeat_is_learned_once(tmp_path: Path) -> None:
    rows = chats(("1?", "One."), ("1?", "One.", "2?", "Two."), ("1?", "One.", "2?", "Two.", "3?", "Three."))
    path = write_jsonl(tmp_path / "talks.jsonl", rows)
    every = prepare(path, Tokens(bpe(WORDS, CHATML, eos="<|im_end|>")), "demonstrations", turns="all")
    assert len(every.train) == 3
    assert {each.reason: each.count for each in every.report.left_out} == {"repeated": 3}


@pytest.mark.sibling("replies-of-one-conversation-on-both-sides")
def test_replies_of_one_conversation_are_held_out_together(tmp_path: Path) -> None:
    rows = chats(*((f"{at}?", "Yes.", "Sure?", f"Quite {at}.", "Really?", "Yes.") for at in range(20)))
    path = write_jsonl(tmp_path / "talks.jsonl", rows)
    tokenizer = bpe(WORDS, CHATML, eos="<|im_end|>")
    made = prepare(path, Tokens(tokenizer), "demonstrations", holdout=0.3, turns="all")
    train, held = (
        {tokenizer.decode(list(group.prompt)).split("<|im_end|>")[0] for group in part}
        for part in (made.train, made.held)
    )
    assert (len(train), len(held)) == (14, 6) and not train & held


@pytest.mark.sibling("every-reply-as-plain-dialogue")
def test_every_reply_is_learned_as_a_plain_dialogue_too(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "talks.jsonl", chats(("1?", "One.", "2?", "Two.")))
    tokenizer = bpe(WORDS)
    made = prepare(path, Tokens(tokenizer), "demonstrations", template="plain", turns="all")
    assert [tokenizer.decode([*group.prompt, *group.completions[0]]) for group in made.train] == [
        "\n\nHuman: 1?\n\nAssistant: One.</s>",
        "\n\nHuman: 1?\n\nAssistant: One.\n\nHuman: 2?\n\nAssistant: Two.</s>",
    ]


@pytest.mark.case("31-thinking-cannot-be-switched-off")
def test_template_options_are_settings_of_every_training(tmp_path: Path) -> None:
    found = load_settings(
        SftSettings, None, {("model",): "m", ("data",): "d", ("output",): "o"},
        ["template_options.enable_thinking=false", "template_options.effort=low"],
    )  # fmt: skip
    assert found.template_options == {"enable_thinking": False, "effort": "low"}
    given = {("model",): "m", ("data",): "d", ("output",): "o", ("template_options",): "{enable_thinking: false}"}
    assert load_settings(SftSettings, None, given).template_options == THINKS_NOT
    begin(tmp_path)
    with_template(tmp_path / "model", SWITCHED)
    write_jsonl(
        tmp_path / "rows.jsonl",
        [{**row, "prompt": [user(row["prompt"])], "chosen": [assistant(row["chosen"])],
          "rejected": [assistant(row["rejected"])]} for row in pair_rows(8)],
    )  # fmt: skip
    for method in ("sft", "dpo", "reward"):
        out = str(tmp_path / method)
        run(method, tmp_path, output=out, template_options=THINKS_NOT, max_steps=1)  # type: ignore[arg-type]
        assert text_format_of(out).template_options == THINKS_NOT
    loaded_name = RewardModel(str(tmp_path / "reward"), device="cpu")
    loaded_name.open()
    assert loaded_name._limits is not None and loaded_name._limits.template_options == THINKS_NOT


@pytest.mark.case("31-thinking-cannot-be-switched-off")
def test_ppo_asks_with_the_template_options(tmp_path: Path) -> None:
    begin_online(tmp_path)
    with_template(tmp_path / "model", SWITCHED)
    run_online(tmp_path, steps=1, template_options=THINKS_NOT)
    tokenizer = bpe(WORDS, SWITCHED)
    assert text_format_of(tmp_path / "out").template_options == THINKS_NOT
    from rlaif.inference.model_folder import load_tokenizer
    from rlaif.rl.experience import load_prompts

    tokenizer = load_tokenizer(tmp_path / "model")
    found = load_prompts(str(tmp_path / "prompts.jsonl"), tokenizer, template_options=THINKS_NOT)
    assert tokenizer.decode(list(found.train[0].ids)).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    (other,) = contestants([str(tmp_path / "out")])
    assert other.model is not None and other.model.template_options == THINKS_NOT
    (other,) = contestants([str(tmp_path / "out")], template_options={})
    assert other.model is not None and other.model.template_options == {}
    (other,) = contestants([str(tmp_path / "model")], of_run=THINKS_NOT)
    assert other.model is not None and other.model.template_options == THINKS_NOT


@pytest.mark.case("31-thinking-cannot-be-switched-off")
def test_the_options_of_the_run_are_those_of_its_training(tmp_path: Path) -> None:
    begin(tmp_path)
    data = tmp_path / "run"
    data.mkdir()
    write_jsonl(data / "pairs.jsonl", pair_rows(8))
    path = write_run(tmp_path, "http://127.0.0.1:9/v1", policy={"template_options": THINKS_NOT})
    save_run(load_run(path), data / "run.yaml")
    assert run_options(str(data)) == THINKS_NOT
    assert run_options(str(data / "pairs.jsonl")) is None  # perhaps somebody's own beside a run file
    (data / "samples.jsonl").touch()
    assert run_options(str(data)) == run_options(str(data / "pairs.jsonl")) == THINKS_NOT
    assert run_options(str(tmp_path / "model")) is None and run_options("owner/name") is None
    heard = Heard()
    run("reward", tmp_path, heard=heard, data=str(data), max_steps=1)
    assert 'template_options {"enable_thinking": false}: those of the run, as none are set' in heard.notes
    assert text_format_of(tmp_path / "out").template_options == THINKS_NOT
    heard = Heard()
    other = {"enable_thinking": True}
    run("sft", tmp_path, heard=heard, data=str(data), output=str(tmp_path / "sft"), template_options=other, max_steps=1)
    assert any("was asked with template_options" in note and "trained with" in note for note in heard.notes)
    heard = Heard()
    run("sft", tmp_path, heard=heard, model=str(tmp_path / "sft"), output=str(tmp_path / "more"), max_steps=1)
    assert any(note.endswith("those of the model, as none are set") for note in heard.notes)


@pytest.mark.sibling("card-that-asks-without-the-options")
def test_the_card_asks_with_the_template_options() -> None:
    settings = SftSettings(
        model="m", data="d", output="o", template_options={"enable_thinking": False, "effort": "low"}
    )
    assert "tokenize=False, enable_thinking=False, effort='low')" in use("sft", settings, chat=True)
    assert "enable_thinking" not in use("sft", settings, chat=False)


@pytest.mark.sibling("several-templates-and-a-reward-model")
def test_the_chosen_template_is_kept_for_scoring(tmp_path: Path) -> None:
    begin(tmp_path)
    with_template(tmp_path / "model", [{"name": "rag", "template": CHATML}, {"name": "tools", "template": SWITCHED}])
    write_jsonl(
        tmp_path / "rows.jsonl",
        [
            {"prompt": [user(f"{at}?")], "chosen": [assistant("Yes.")], "rejected": [assistant("No.")]}
            for at in range(4)
        ],
    )
    with pytest.raises(UserError, match=r"several chat templates \(rag, tools\), and no default"):
        run("reward", tmp_path)
    chosen = {"chat_template": "tools", "enable_thinking": False}
    run("reward", tmp_path, template_options=chosen, max_steps=1)
    scorer = RewardModel(str(tmp_path / "out"), device="cpu")
    asked = (Message(role="user", content="1?"),)
    assert [each.reason for each in scorer.score([Reply("x", asked, "Yes.")])] == [""]
    with pytest.raises(UserError, match="no chat template `none`"):
        RewardModel(str(tmp_path / "out"), device="cpu", template_options={"chat_template": "none"}).open()


@pytest.mark.parametrize("value", ["thinking", "[1]", "{1: 2}", "{"])
def test_template_options_that_are_no_mapping_are_refused(value: str) -> None:
    found = rlaif("score", "--model", "x", "--data", "y", "--template-options", value)
    assert found.returncode == 2 and "is no mapping: write it like '{enable_thinking: false}'" in found.stderr
