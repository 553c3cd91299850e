"""The card of a policy that was trained on its own answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import JsonValue

from rlaif import __version__
from rlaif.online.prompts import Prompts
from rlaif.online.settings import OnlineSettings
from rlaif.store import write_text
from rlaif.training.card import base_model, setting_rows, table
from rlaif.training.use import is_adapter, name_of, use
from rlaif.yamlcore import dump_yaml

_ALWAYS = (
    "algorithm", "learning_rate", "kl.beta", "batch_size", "samples", "steps", "epochs", "rollout.temperature", "seed",
)  # fmt: skip
_FIGURES = {
    "reward": "reward",
    "kl": "divergence from the start, nats an answer",
    "entropy": "entropy, nats a token",
    "length": "tokens of an answer",
    "truncated": "answers that reached the limit",
    "distinct_2": "distinct pairs of words",
    "held_out/win_rate": "wins against the start, by the held-out judge",
    "held_out/controlled": "the same at equal length",
    "unscored": "answers without a score, left out",
}


def write_card(settings: OnlineSettings, prompts: Prompts, metrics: Mapping[str, JsonValue], chat: bool) -> None:
    """Write README.md into the folder of a training; `chat` says that prompts go through the chat template."""
    alarms = metrics.get("alarms")
    parts = [
        _head(settings),
        f"# {settings.folder.resolve().name}",
        _about(settings),
        "## Prompts",
        table(_prompt_rows(settings, prompts)),
        "## Settings",
        table(setting_rows(settings, OnlineSettings(model="-", output="-", prompts="-", reward="-"), _ALWAYS)),
        "Everything else stands at its default. All of it is in `train.json`.",
        "## Figures",
        table(_figure_rows(metrics)),
        _whose(metrics),
        *(["## Alarms", "\n".join(f"- {alarm}" for alarm in alarms)] if isinstance(alarms, list) and alarms else []),
        "![curves](curves.png)" if (settings.folder / "curves.png").exists() else "",
        "## Use",
        use(settings.method, settings, chat=chat),
        f"Trained by `rlaif train ppo` ({__version__}).",
    ]
    write_text(settings.folder / "README.md", "\n\n".join(part for part in parts if part) + "\n")


def _head(settings: OnlineSettings) -> str:
    adapter = is_adapter(settings)
    head: dict[str, Any] = {
        "base_model": base_model(settings.model),
        **({"base_model_relation": "adapter"} if adapter else {}),
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["rlaif", settings.algorithm, *(["lora"] if adapter else [])],
    }
    return f"---\n{dump_yaml(head)}---"


def _about(settings: OnlineSettings) -> str:
    start, base = name_of(settings.model), base_model(settings.model)
    origin = f"`{start}`" if start == base else f"`{start}`, which was made from `{base}`"
    reward = f"the judge `{settings.judge.model}`" if settings.reward == "judge" and settings.judge else "its reward"
    text = f"A language model, trained on its own answers by `{settings.algorithm}` for {reward}."
    text += f" It started from {origin}."
    if settings.lora.rank is not None:
        kept = "added to the weights" if settings.lora.merge else "to be loaded on top of them"
        text += f" What was trained is a LoRA adapter of rank {settings.lora.rank}, {kept}."
    return text


def _prompt_rows(settings: OnlineSettings, prompts: Prompts) -> Iterator[tuple[str, object]]:
    yield "prompts", f"`{name_of(settings.prompts)}`"
    yield "to train on", f"{len(prompts.train):,}"
    if prompts.held:
        yield "for the held-out judge", f"{len(prompts.held):,}"
    yield "hash of the prompts", f"`{prompts.hash}`"
    if settings.reward == "judge":
        yield "constitution", f"`{name_of(settings.constitution)}`"


def _whose(metrics: Mapping[str, JsonValue]) -> str:
    """Of which step the model is, where it is not simply the last one."""
    best = metrics.get("best_step")
    if not isinstance(best, (int, float)):
        return ""
    return f"The weights, and with them the figures, are those of step {best:.0f}, which the held-out judge likes best."


def _figure_rows(metrics: Mapping[str, JsonValue]) -> Iterator[tuple[str, object]]:
    for name, told in _FIGURES.items():
        value = metrics.get(name)
        if isinstance(value, (int, float)):
            yield told, f"{value:.4f}"
    yield "steps", metrics.get("steps")
    seconds = metrics.get("seconds")
    if isinstance(seconds, (int, float)):
        yield "seconds", f"{seconds:,.0f}"
