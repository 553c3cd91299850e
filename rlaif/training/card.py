"""The card of a trained model, the README.md that the hub shows: its data, its settings, its metrics, how to use it.

The card names paths by their last part only: a card is published, a machine's folders are not.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import JsonValue

from rlaif import __version__
from rlaif.config.yaml import dump_yaml, plain_yaml
from rlaif.data.files import read_rows
from rlaif.data.formats import recognise
from rlaif.errors import RlaifError
from rlaif.store import write_text
from rlaif.text import loads
from rlaif.training.config import CommonSettings, DpoSettings, Method, TrainSettings
from rlaif.training.dataset import DEMONSTRATION_FILES, PAIR_FILES, Prepared, file_of

_SUMMARY = {
    "sft": "A language model, fine-tuned on demonstrations",
    "reward": "A reward model: it gives a reply to a prompt one number, and a better reply a higher one",
    "dpo": "A language model, trained on preference pairs",
}
_TAGS = {"sft": "sft", "reward": "reward-model", "dpo": "dpo"}
_PATHS = frozenset({"model", "data", "held_data", "center_dataset", "reference", "prompts", "reward", "value.model"})
_OMITTED = frozenset({"output", "model", "data", "reference_cache", "prompts", "rollout.base_url", "judge.base_url"})
_ALWAYS_SHOWN = (
    "loss",
    "beta",
    "learning_rate",
    "batch_size",
    "epochs",
    "max_steps",
    "max_length",
    "lora.rank",
    "seed",
)
_METRIC_NAMES = {
    "loss": "loss",
    "accuracy": "accuracy (chosen above rejected)",
    "margin": "margin (chosen less rejected)",
    "brier": "Brier score",
    "rewards/chosen": "reward of chosen",
    "rewards/rejected": "reward of rejected",
    "logps/chosen": "log-probability of chosen",
    "logps/rejected": "log-probability of rejected",
    "rewards/good": "reward of good answers",
    "rewards/bad": "reward of bad answers",
    "kl": "distance from the reference, times beta",
    "logps/good": "log-probability of good answers",
    "logps/bad": "log-probability of bad answers",
}


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
    lines += ["", *(_reward_example(chat, options) if method == "reward" else _generation_example(chat, options))]
    text = "\n".join(["```python", *lines, "```"])
    if method == "reward":
        return f"{text}\n\n`rlaif score --model {name} --data FILE` does it for a file of responses."
    return text


def _reward_example(chat: bool, options: str) -> Iterator[str]:
    if chat:
        yield 'messages = [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
        yield f"text = tokenizer.apply_chat_template(messages, tokenize=False{options})"
        yield 'ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")'
    else:
        yield 'prompt, response = "...", "..."'
        yield 'ids = tokenizer(prompt + response + tokenizer.eos_token, return_tensors="pt")'
    yield 'reward = model(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]).logits[0, 0].item()'


def _generation_example(chat: bool, options: str) -> Iterator[str]:
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
    file = "reward.json" if is_adapter(settings) else "config.json"
    return (
        f"`rlaif score` subtracts {mean:.4f} from every reward, the mean over the demonstrations of `center_dataset` "
        f"(`reward_mean` in {file}), as no weight of the model can hold it. transformers and other loaders give "
        "raw rewards, which differ by that constant; vLLM subtracts it with "
        f"`--pooler-config '{{\"logit_mean\": {mean:.4f}}}'`."
    )


class _Data(NamedTuple):
    """What the data say of themselves."""

    constitution: str | None = None
    judge: str | None = None
    writer: str | None = None
    policy: str | None = None
    messages: bool = False
    """Prompts are conversations, not texts."""
    sure: bool = False
    """The manifest beside the file has its hash; else it is what the first row says."""


def write_card(method: Method, settings: TrainSettings, prepared: Prepared, metrics: Mapping[str, JsonValue]) -> None:
    """Write README.md into the folder of a training."""
    folder, data = settings.folder, _read_data(method, settings, prepared.data_hash)
    parts = [
        _front_matter(method, settings),
        f"# {folder.resolve().name}",
        _introduction(method, settings),
        "## Data",
        table(_data_rows(settings, prepared, data)),
        "## Settings",
        table(setting_rows(settings, type(settings)(model="-", data="-", output="-"))),
        "Everything else stands at its default."
        + (" All of it is in `train.json`." if _has(folder, "train.json") else ""),
        "## Figures",
        _metrics_section(settings, metrics),
        "![curves](curves.png)" if _has(folder, "curves.png") else "",
        "## Use",
        use(method, settings, chat=settings.template == "chat" or (settings.template == "auto" and data.messages)),
        centred(settings, metrics) if method == "reward" else "",
        f"Trained by `rlaif train {method}` ({__version__}).",
    ]
    write_text(folder / "README.md", "\n\n".join(part for part in parts if part) + "\n")


def _has(folder: Path, name: str) -> bool:
    return (folder / name).is_file()


def _front_matter(method: Method, settings: TrainSettings) -> str:
    adapter, tag = is_adapter(settings), _TAGS[method]
    if isinstance(settings, DpoSettings) and settings.loss in ("ipo", "simpo", "orpo", "kto"):
        tag = settings.loss
    head: dict[str, Any] = {
        "base_model": base_model(settings.model),
        **({"base_model_relation": "adapter"} if adapter else {}),
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-classification" if method == "reward" else "text-generation",
        "tags": ["rlaif", tag, *(["lora"] if adapter else [])],
    }
    return f"---\n{dump_yaml(head)}---"


def base_model(model: str) -> str:
    """What a model was made from at first: a trained folder's card names it, for the folder is nowhere on the hub."""
    if not Path(model).expanduser().is_dir():
        return model
    with contextlib.suppress(OSError, IndexError, ValueError):
        head = plain_yaml((Path(model).expanduser() / "README.md").read_text(encoding="utf-8").split("---")[1])
        if isinstance(head, dict) and isinstance(head.get("base_model"), str):
            return str(head["base_model"])
    return name_of(model)


def _introduction(method: Method, settings: TrainSettings) -> str:
    start, base = name_of(settings.model), base_model(settings.model)
    origin = f"`{start}`" if start == base else f"`{start}`, which was made from `{base}`"
    how = " by the loss " + f"`{settings.loss}`" if isinstance(settings, DpoSettings) else ""
    adapter = ""
    if settings.lora.rank is not None:
        use_of_adapter = "added to the weights" if settings.lora.merge else "to be loaded on top of them"
        adapter = f" What was trained is a LoRA adapter of rank {settings.lora.rank}, {use_of_adapter}."
    return f"{_SUMMARY[method]}{how}. It started from {origin}.{adapter}"


def _read_data(method: Method, settings: TrainSettings, data_hash: str) -> _Data:
    """What the first row of the data says, and the manifest that has the file's hash."""
    with contextlib.suppress(RlaifError, OSError):
        path = file_of(settings.data, DEMONSTRATION_FILES if method == "sft" else PAIR_FILES)
        row = next((row for _, row in read_rows(path)), None)
        if isinstance(row, dict):
            values = [row.get(name) for name in ("prompt", "messages", "conversations", "chosen") if name in row]
            shape = recognise(row)
            rated = shape is not None and shape.kind == "rated"
            messages = rated or any(isinstance(value, list) for value in values)
            names = {name: row[name] for name in ("constitution", "judge", "writer") if isinstance(row.get(name), str)}
            return _Data(messages=messages)._replace(**{**names, **_manifest(path, data_hash)})
    return _Data()


def _manifest(path: str | Path, data_hash: str) -> dict[str, Any]:
    """What the run's manifest says, where the data are the very file that it tells the hash of."""
    file = Path(path).expanduser()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        manifest = loads((file.parent / "manifest.json").read_text(encoding="utf-8"))
        if manifest["files"][file.name] == data_hash:
            about = manifest["constitution"]
            judge, policy = manifest["judge"], manifest["policy"]
            return {
                "constitution": f"{about['name']}`, hash `{about['hash']}",
                "judge": judge if isinstance(judge, str) else json.dumps(judge),
                "policy": str(policy),
                "sure": True,
            }
    return {}


def _data_rows(settings: TrainSettings, prepared: Prepared, data: _Data) -> Iterator[tuple[str, object]]:
    report = prepared.report
    yield "data", f"`{name_of(settings.data)}`"
    yield "rows read", f"{report.rows:,}"
    yield "to train on", f"{len(prepared.train):,}"
    other = f", from `{name_of(settings.held_data)}`" if settings.held_data is not None else ""
    yield "held out", f"{len(prepared.held):,}{other}"
    for left in report.left_out:
        yield "left out", f"{left.count:,} where {left.what}"
    if report.truncated:
        yield "cut to the longest", f"{report.truncated:,}"
    if report.shared:
        yield "held-out rows whose prompt is trained on too", f"{report.shared:,}"
    yield "soft labels", f"{report.soft / max(report.kept, 1):.0%} of the rows"
    yield "tokens, median", f"prompt {report.prompt_median:,}, completion {report.completion_median:,}"
    yield "hash of the data", f"`{prepared.data_hash}`"
    says = "" if data.sure else " (as the first row says)"
    for name, value in (
        ("constitution", data.constitution),
        ("judge", data.judge),
        ("replies rewritten by", data.writer),
        ("replies drawn from", data.policy),
    ):
        if value is not None:
            yield name, f"`{value}`{says}"


def setting_rows(
    settings: CommonSettings, blank: CommonSettings, always: Sequence[str] = _ALWAYS_SHOWN
) -> Iterator[tuple[str, object]]:
    """The settings that matter, `always` shown, and those that differ from `blank`, which has the defaults."""
    values, defaults = (_flat(record.model_dump(mode="json")) for record in (settings, blank))
    names = [name for name in always if values.get(name) is not None]
    names += [name for name in values if name not in names and values[name] != defaults.get(name)]
    for name in names:
        if name in _OMITTED or values[name] is None:
            continue
        value = name_of(str(values[name])) if name in _PATHS else json.dumps(values[name], ensure_ascii=False)
        yield f"`{name}`", f"`{value}`".replace('"', "")


def _flat(values: Mapping[str, Any], within: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {f"{within}{name}": value}
    return flat


def _metrics_section(settings: TrainSettings, metrics: Mapping[str, JsonValue]) -> str:
    rows = [
        (label, _number(metrics.get(name)), _number(metrics.get(f"eval_{name}")))
        for name, label in _METRIC_NAMES.items()
        if name in metrics or f"eval_{name}" in metrics
    ]
    lines = ["| | training, last line of the log | held out |", "|---|---|---|"]
    lines += [f"| {label} | {train} | {held} |" for label, train, held in rows]
    steps, seconds = metrics.get("steps"), metrics.get("seconds")
    duration = f"{steps} optimizer steps" if steps is not None else ""
    duration += f" in {seconds:,.0f} seconds" if duration and isinstance(seconds, (int, float)) else ""
    at = metrics.get("best_step")
    best = "The weights, and with them the held-out figures, are those with the lowest held-out loss"
    best += f", after step {at:,.0f}." if isinstance(at, (int, float)) else "."
    return "\n\n".join(
        part
        for part in ("\n".join(lines), f"{duration}." if duration else "", best if settings.patience else "")
        if part
    )


def _number(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, (int, float)) else ""


def table(rows: Iterable[tuple[str, object]]) -> str:
    """A table of names and values."""
    escaped = ((name, str(value).replace("|", "\\|").replace("\n", " ")) for name, value in rows)
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in escaped)
