"""Where a reward model's zero is: the mean reward of some demonstrations (Stiennon et al. 2020, arXiv:2009.01325).

The head of a reward model has no bias that a constant could be put into, in none of transformers' decoders, and behind
the last norm of most of them no other weight adds a constant either. So the mean stands in config.json as `reward_mean`
(beside `reward_std`), of an adapter in reward.json; `rlaif score` and all that use `scoring.rewards_of` take it off.
Other loaders give rewards that differ by that constant: no ranking and no difference of rewards depends on it, and a
server can be told to take it off.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from typing import Any

import torch

from rlaif.errors import UserError
from rlaif.store import write_json
from rlaif.training.arguments import narrow
from rlaif.training.forward import bare
from rlaif.training.groups import Group
from rlaif.training.intake import Intake
from rlaif.training.rewardmodel import ADAPTER_FILE, ends_of
from rlaif.training.rows import demonstrations
from rlaif.training.scoring import rewards_apart
from rlaif.training.settings import RewardSettings
from rlaif.training.starts import find_start
from rlaif.training.tokens import Tokens


def check_center(tokenizer: Any, settings: RewardSettings) -> None:
    """Raise UserError where `center_on` could not be scored: before the training, not after it."""
    if settings.center_on is None:
        return
    if any(os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true" for name in ("FSDP", "DEEPSPEED")):
        what = "`center_on` needs the whole model in one process, and it is sharded over several"
        raise UserError(what, mend="leave `center_on` out")
    _groups(tokenizer, settings, first=True)


def complete(model: Any, tokenizer: Any, settings: RewardSettings) -> dict[str, float]:
    """Give a trained reward model's config and folder what its loaders need; called before it is saved.

    Returns what it was centred on, if it was. The model's parameters have to be whole in this process.
    """
    config = bare(model).config
    config.problem_type = "regression"  # or pipelines and vLLM put the reward through a sigmoid
    for name in ("reward_mean", "reward_std"):  # perhaps left from the model that the training started from
        config.__dict__.pop(name, None)
    found = {}
    if settings.center_on is not None:
        found = {"reward_mean": center(model, tokenizer, settings), "reward_std": config.reward_std}
    settings.folder.mkdir(parents=True, exist_ok=True)
    if found and bare(model) is not model:  # an adapter's folder has no config.json, or it is taken for a whole model
        write_json(settings.folder / ADAPTER_FILE, dict(found))
    with contextlib.suppress(FileNotFoundError):  # it names the ends of replies; a classifier is saved without it
        shutil.copyfile(
            find_start(settings.model).weights / "generation_config.json", settings.folder / "generation_config.json"
        )
    return found


def center(model: Any, tokenizer: Any, settings: RewardSettings) -> float:
    """Put mean and standard deviation of the rewards of `settings.center_on` into the model's config; returns the mean.

    Each demonstration counts once. Raises UserError where there are none.
    """
    groups = _groups(tokenizer, settings)
    rewards = rewards_apart(model, groups, tokens=settings.tokens, centered=False, narrow=narrow(settings))
    values = torch.tensor(rewards, dtype=torch.float64)
    mean, std = float(values.mean()), float(values.std(correction=0))
    if not math.isfinite(mean):
        raise UserError("the mean reward is no number", where=settings.center_on, mend="leave `center_on` out")
    config = bare(model).config
    config.reward_mean, config.reward_std = mean, std
    return mean


def _groups(tokenizer: Any, settings: RewardSettings, first: bool = False) -> list[Group]:
    """The demonstrations as tokens, or the first of them. Raises UserError where there are none."""
    assert settings.center_on is not None
    intake = Intake()
    tokens = Tokens(
        tokenizer, max_length=settings.max_length, ends=ends_of(find_start(settings.model).weights),
        template_options=settings.template_options,
    )  # fmt: skip
    found = tokens.groups(demonstrations(settings.center_on, settings.template, intake), intake)
    groups = [group for group in (next(found, None),) if group is not None] if first else list(found)
    if not groups:
        raise intake.nothing(settings.center_on)
    return groups
