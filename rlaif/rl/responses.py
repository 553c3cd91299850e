"""The nouns of online training: what the policy is asked, what it responded, and who scores the responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from rlaif.records import Messages


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt, ready to be answered."""

    id: str
    messages: Messages
    """What rewards and judges are shown."""
    ids: Sequence[int]
    """Token ids, the cue to answer included; never empty."""


@dataclass(frozen=True, slots=True)
class Response:
    """One sampled answer."""

    asked: Asked
    index: int
    """Which of the answers to its prompt, from 0."""
    ids: Sequence[int]
    """Token ids; the last one ends the answer where it is `finished`. Never empty."""
    logps: Sequence[float]
    """Of every token, as the sampler computed them, at the sampling temperature."""
    text: str
    """Without special tokens."""
    finished: bool
    """Whether it ended by itself, and not at the limit."""
    version: int
    """Of the weights that made it: how many updates the policy had seen."""


class Scores(NamedTuple):
    """What a reward says about some responses."""

    total: Sequence[float | None]
    """What is trained on; None where there is no score, as for a judge that failed: such a response is left out."""
    parts: Mapping[str, Sequence[float | None]]
    """By name, before weights: one for a plain reward, one a principle for a judge, all of a sum's."""


class Reward(Protocol):
    """Scores responses: a reward model, a judge, a URL, a function, or a sum of them."""

    def __call__(self, prompts: Sequence[Messages], responses: Sequence[str]) -> Scores:
        """One score a response, higher is better; `prompts` are as many as `responses`."""
        ...

    def state(self) -> Mapping[str, float]:
        """What a resumed training has to restore (running means, for instance); nothing for most."""
        return {}

    def restore(self, state: Mapping[str, float]) -> None:  # noqa: ARG002 - nothing to go on from
        """Go on from a `state`."""
        return

    def close(self) -> None:
        """Let go of connections and memory."""
        ...


class Sampler(Protocol):
    """Draws answers from the policy."""

    def sample(self, asked: Sequence[Asked], each: int, step: int) -> list[Response]:
        """`each` answers to every prompt, those to one prompt next to each other; the noise depends on `step`."""
        ...

    def update(self, version: int) -> None:
        """Take up the policy's weights as they are now, under this number."""
        ...

    def close(self) -> None:
        """Let go of connections, files and memory."""
        ...
