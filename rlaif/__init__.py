"""rlaif: preference data and training from a written constitution (reinforcement learning from AI feedback).

What the commands do, from Python; nothing is loaded before it is asked for:

    from rlaif import generate, train, evaluate_policies

    run = generate("run.yaml", policy_samples=8)
    tuned = train("dpo", model="Qwen/Qwen3-0.6B", data=run.folder, output="models/dpo", lora={"rank": 16})
    done = evaluate_policies(tuned.folder, against="Qwen/Qwen3-0.6B", prompts="held-out.jsonl", run="run.yaml")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlaif.api.evaluate import evaluate_judge, evaluate_policies, evaluate_reward
    from rlaif.api.run import Generated, generate, run_workflow, write_report
    from rlaif.api.train import score, train
    from rlaif.constitution import Constitution, Example, Principle, load_constitution
    from rlaif.errors import ModelError, RecordError, RlaifError, UserError
    from rlaif.records import PreferencePair

__version__ = "0.1.0"

__all__ = [
    "Constitution",
    "Example",
    "Generated",
    "ModelError",
    "PreferencePair",
    "Principle",
    "RecordError",
    "RlaifError",
    "UserError",
    "evaluate_judge",
    "evaluate_policies",
    "evaluate_reward",
    "generate",
    "load_constitution",
    "run_workflow",
    "score",
    "train",
    "write_report",
]

_PLACES = {
    "rlaif.api.evaluate": ("evaluate_judge", "evaluate_policies", "evaluate_reward"),
    "rlaif.api.train": ("score", "train"),
    "rlaif.api.run": ("Generated", "generate", "run_workflow", "write_report"),
    "rlaif.constitution": ("Constitution", "Example", "Principle", "load_constitution"),
    "rlaif.errors": ("ModelError", "RecordError", "RlaifError", "UserError"),
    "rlaif.records": ("PreferencePair",),
}
"""Where each name is found. None is that of a module of the package, which its import would put in its place."""


def __getattr__(name: str) -> object:
    """A public name, its module loaded now."""
    from importlib import import_module

    for place, names in _PLACES.items():
        if name in names:
            return getattr(import_module(place), name)
    raise AttributeError(f"module `rlaif` has no attribute `{name}`")


def __dir__() -> list[str]:
    """The public names, for completion."""
    return sorted({*globals(), *__all__})
