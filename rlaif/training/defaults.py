"""What stands for settings that are left out, where that depends on the method, the loss or the machine."""

from __future__ import annotations

from typing import TypeVar

from rlaif.training.settings import CommonSettings, DpoSettings

Settings = TypeVar("Settings", bound=CommonSettings)

_UNDER_LORA = 10
"""An adapter takes ten times the rate of all weights, whatever the method."""
_BETAS = {"sigmoid_norm": 5.0, "simpo": 2.0}
_BETA = 0.1
"""Of ipo too, as in TRL: chosen answers are drawn to a lead of 1 / (2 beta) nats a token, which few ever reach."""


def beta_of(settings: DpoSettings) -> float:
    """The beta that is set, or the usual one of the loss."""
    return settings.beta if settings.beta is not None else _BETAS.get(settings.loss, _BETA)


def rate_of(settings: CommonSettings) -> float:
    """The learning rate that is set, or the usual one of the method."""
    if settings.learning_rate is not None:
        return settings.learning_rate
    return settings.usual_rate * (1 if settings.lora.rank is None else _UNDER_LORA)


def resolved(settings: Settings, narrow: bool) -> tuple[Settings, dict[str, float]]:
    """The settings with nothing left open that the result depends on, and the numbers among them that nobody set.

    `narrow` says whether this machine computes in bfloat16: another one may go on with the training.
    """
    found: dict[str, float] = {}
    if settings.learning_rate is None:
        found["learning_rate"] = rate_of(settings)
    if isinstance(settings, DpoSettings) and settings.beta is None and "beta" not in settings.unread:
        found["beta"] = beta_of(settings)
    dtype = "bfloat16" if narrow else "float32"
    return settings.model_copy(update={**found, "dtype": dtype}), found
