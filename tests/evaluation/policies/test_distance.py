"""The divergence from the baseline, against the plain computation; adapters, which answer as what they were made of."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from rlaif.config.schemas import ModelSettings
from rlaif.errors import UserError
from rlaif.evaluation.policy_responses import (
    Distance,
    Likelihood,
    SampledPolicy,
    _prompt_ids,
    _response_ids,
    measure_kl,
    obstacle,
)
from rlaif.evaluation.policy_specs import EvaluateSettings, PolicySpec
from rlaif.inference.base import StageStats
from rlaif.inference.chat_template import ChatTemplate
from rlaif.inference.model_folder import identity, parts_of
from rlaif.progress import Silent
from rlaif.records import Message, Prompt, Sample, content_id
from rlaif.store import Table
from tests.inference.tiny import make_tiny_model

TEXTS = {"Is A better?": [("B is better.", "stop"), ("Which reply", "length")], "Or B?": [("", "stop")]}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny models with one vocabulary, `one` and `two`."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("one", "two")):
        make_tiny_model(folder / name, seed=seed)
    return folder


def drawn(folder: Path, name: str) -> SampledPolicy:
    answers = []
    for text, said in TEXTS.items():
        prompt = Prompt(id=content_id(text), messages=(Message(role="user", content=text),), source="-")
        for at, (reply, end) in enumerate(said):
            sample = Sample(
                id=content_id(text, at), prompt=prompt.id, index=at, text=reply, policy="m", finish_reason=end
            )
            answers.append((prompt, sample))
    return SampledPolicy(PolicySpec(name, ModelSettings(model=str(folder / name))), name, answers)


def settings(**more: Any) -> EvaluateSettings:
    return EvaluateSettings.model_validate({"prompts": "-", "temperature": 0.7} | more)


def measured(folder: Path, table: Path, **more: Any) -> tuple[Distance, StageStats]:
    one, two = drawn(folder, "one"), drawn(folder, "two")
    likelihoods = Table(table, Likelihood)
    found, tally = asyncio.run(measure_kl([one], two, settings(**more), likelihoods, Silent()))
    likelihoods.close()
    return found["one"], tally


def plainly(folder: Path, text: str, reply: str, end: str, temperature: float) -> float:
    """The log-probability of an answer, token by token, by the model's own forward."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )
    before = tokenizer(asked, add_special_tokens=False)["input_ids"]
    after = tokenizer(reply, add_special_tokens=False)["input_ids"] + (
        [tokenizer.eos_token_id] if end == "stop" else []
    )
    total = 0.0
    with torch.inference_mode():
        for at, token in enumerate(after):
            logits = model(torch.tensor([before + after[:at]])).logits[0, -1]
            total += float((logits / temperature).log_softmax(-1)[token])
    return total


def test_against_the_plain_computation(models: Path, tmp_path: Path) -> None:
    found, tally = measured(models, tmp_path / "likelihoods.jsonl")
    gaps = [
        plainly(models / "one", text, *each, 0.7) - plainly(models / "two", text, *each, 0.7)
        for text, said in TEXTS.items()
        for each in said
    ]
    assert found.kl and found.kl.value == pytest.approx(sum(gaps) / 3, abs=1e-3)
    assert found.note == "of both at temperature 0.7, as the answers were drawn"
    assert (tally.answered, tally.known) == (6, 0)
    again, tally = measured(models, tmp_path / "likelihoods.jsonl")
    assert again == found and (tally.answered, tally.known) == (0, 6)
    warmer, tally = measured(models, tmp_path / "likelihoods.jsonl", temperature=1.0)
    assert tally.answered == 6 and warmer.kl and warmer.kl.value != found.kl.value and warmer.note == ""


@pytest.mark.sibling("divergence-with-template-options")
def test_the_policy_is_measured_with_the_options_that_it_answered_with(models: Path, tmp_path: Path) -> None:
    """And with the token that ends its turns, where that is none of the tokenizer's."""
    from rlaif.inference.model_folder import load_tokenizer

    tokenizer = load_tokenizer(models / "one")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<s>' + m['role'] + '\\n' + m['content'] + '<pad>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<s>' + (voice or 'assistant') + '\\n' }}{% endif %}"
    )
    asked = (Message(role="user", content="Or B?"),)
    template = ChatTemplate(tokenizer, {"voice": "B"}, ends=[tokenizer.convert_tokens_to_ids("<pad>")])
    text = tokenizer.decode(_prompt_ids(template, asked, "A is better."))
    assert text == "<s>system\nA is better.<pad><s>user\nOr B?<pad><s>B\n"
    sample = Sample(id="x", prompt="x", index=0, text="B.", policy="m", finish_reason="stop")
    assert tokenizer.decode(_response_ids(template, sample)) == "B.<pad>"
    cut = sample.model_copy(update={"finish_reason": "length"})
    assert tokenizer.decode(_response_ids(template, cut)) == "B."
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert _prompt_ids(ChatTemplate(tokenizer), asked, None) is None


@pytest.mark.sibling("divergence-without-the-prompts-that-a-template-refuses")
@pytest.mark.parametrize(
    ("refused", "note"),
    [("Or", "prompts that a chat template cannot write: 1 answers left out"),
     ("", "a chat template cannot write its prompts")],
)  # fmt: skip
def test_prompts_that_a_template_refuses_are_told(models: Path, tmp_path: Path, refused: str, note: str) -> None:
    from rlaif.inference.model_folder import load_tokenizer

    shutil.copytree(models, tmp_path / "models")
    tokenizer = load_tokenizer(models / "two")
    tokenizer.chat_template = (
        "{% if '"
        + refused
        + "' in messages[0]['content'] %}{{ raise_exception('no') }}{% endif %}"
        + tokenizer.chat_template
    )
    tokenizer.save_pretrained(tmp_path / "models" / "two")
    found, _ = measured(tmp_path / "models", tmp_path / "likelihoods.jsonl", temperature=1.0)
    assert (found.kl is None, found.note) == (not refused, note)


def test_what_stands_in_the_way(models: Path, tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "other")
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"<pad>"', '"<fill>"'))
    one, two = (PolicySpec(name, ModelSettings(model=str(models / name))) for name in ("one", "two"))
    served = PolicySpec("served", ModelSettings(model="m", base_url="http://127.0.0.1:1/v1"))
    file = PolicySpec("file", answers=tmp_path / "a.jsonl")
    strange = PolicySpec("strange", ModelSettings(model=str(other)))
    assert obstacle(one, two, settings()) == ""
    assert obstacle(file, two, settings()) == "its answers come from a file"
    assert obstacle(one, served, settings()) == "the baseline's model is on a server"
    assert "temperature 0" in obstacle(one, two, settings(temperature=0))
    assert "`top_p`" in obstacle(one, two, settings(top_p=0.9))
    assert obstacle(strange, two, settings()) == "its vocabulary is not the baseline's"


@pytest.fixture
def adapter(models: Path, tmp_path: Path) -> Path:
    """A LoRA adapter of `one` that changes its answers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    made = get_peft_model(
        AutoModelForCausalLM.from_pretrained(models / "one"),
        LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    torch.manual_seed(0)
    for name, each in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(each, std=0.3)
    made.save_pretrained(str(tmp_path / "lora"))
    return tmp_path / "lora"


def test_an_adapter_answers_with_the_model_below_it(adapter: Path, models: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from rlaif.inference.transformers_model import read_model

    assert parts_of(adapter) == (models / "one", adapter, models / "one")
    _, found = read_model(adapter, torch.device("cpu"))
    ids = torch.tensor([[5, 6, 7, 8]])
    base = AutoModelForCausalLM.from_pretrained(models / "one")
    with torch.inference_mode():
        plain = base(ids).logits
        wanted = PeftModel.from_pretrained(base, str(adapter))(ids).logits
        assert torch.allclose(found(ids).logits, wanted, atol=1e-4)
        assert not torch.allclose(wanted, plain, atol=0.1)


def test_an_adapters_name_goes_with_both_folders(adapter: Path, models: Path, tmp_path: Path) -> None:
    before = identity(str(adapter))
    assert before.startswith("lora@") and identity(str(models / "one")) != before
    config = adapter / "adapter_config.json"
    moved = make_tiny_model(tmp_path / "moved", seed=7)
    config.write_text(config.read_text().replace(str(models / "one"), str(moved)))
    changed = identity(str(adapter))
    make_tiny_model(moved, seed=8)
    assert len({before, changed, identity(str(adapter))}) == 3
    config.write_text(config.read_text().replace(str(moved), str(adapter)))
    with pytest.raises(UserError, match="an adapter on top of another adapter"):
        identity(str(adapter))
