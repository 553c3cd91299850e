"""The part of a trained model's card that says how to load and ask it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import JsonValue

from rlaif.training.settings import CommonSettings


def name_of(path: str) -> str:
    """A folder's or file's name without where it lies; a name of the hub as it is."""
    local = path.startswith((".", "/", "~")) or path.count("/") > 1 or Path(path).expanduser().exists()
    return Path(path).expanduser().resolve().name if local else path


def is_adapter(settings: CommonSettings) -> bool:
    """Whether only an adapter is saved."""
    return settings.lora.rank is not None and not settings.lora.merge


def use(method: str, settings: CommonSettings, chat: bool) -> str:
    """How to load a trained model and ask it; `chat` says that its prompts go through the chat template."""
    name = settings.folder.resolve().name
    kind = "AutoModelForSequenceClassification" if method == "reward" else "AutoModelForCausalLM"
    lines = [
        f"from transformers import {kind}, AutoTokenizer",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
    ]
    if is_adapter(settings):
        lines.insert(0, "from peft import PeftModel")
        labels = ", num_labels=1" if method == "reward" else ""
        lines.append(f'base = {kind}.from_pretrained("{name_of(settings.model)}"{labels})')
        lines.append(f'model = PeftModel.from_pretrained(base, "{name}").eval()')
    else:
        lines.append(f'model = {kind}.from_pretrained("{name}").eval()')
    options = "".join(f", {name}={value!r}" for name, value in settings.template_options.items())
    lines += ["", *(_scored(chat, options) if method == "reward" else _asked(chat, options))]
    text = "\n".join(["```python", *lines, "```"])
    if method == "reward":
        return f"{text}\n\n`rlaif score --model {name} --data FILE` does it for a file of responses."
    return text


def _scored(chat: bool, options: str) -> Iterator[str]:
    if chat:
        yield 'messages = [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
        yield f"text = tokenizer.apply_chat_template(messages, tokenize=False{options})"
        yield 'ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")'
    else:
        yield 'prompt, response = "...", "..."'
        yield 'ids = tokenizer(prompt + response + tokenizer.eos_token, return_tensors="pt")'
    yield 'reward = model(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]).logits[0, 0].item()'


def _asked(chat: bool, options: str) -> Iterator[str]:
    if chat:
        yield 'messages = [{"role": "user", "content": "..."}]'
        yield f"text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False{options})"
        yield 'ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]'
    else:
        yield 'ids = tokenizer("...", return_tensors="pt")["input_ids"]'
    yield "reply = model.generate(ids, max_new_tokens=256)[0, ids.shape[1] :]"
    yield "print(tokenizer.decode(reply, skip_special_tokens=True))"


def centred(settings: CommonSettings, metrics: Mapping[str, JsonValue]) -> str:
    """Where the zero of a reward model is."""
    mean = metrics.get("reward_mean")
    if not isinstance(mean, (int, float)):
        return "Only differences of rewards of one prompt mean something: their zero is arbitrary."
    kept = "reward.json" if is_adapter(settings) else "config.json"
    return (
        f"`rlaif score` subtracts {mean:.4f} from every reward, the mean over the demonstrations of `center_on` "
        f"(`reward_mean` in {kept}), as no weight of the model can hold it. transformers and other loaders give "
        "raw rewards, which differ by that constant; vLLM subtracts it with "
        f"`--pooler-config '{{\"logit_mean\": {mean:.4f}}}'`."
    )
