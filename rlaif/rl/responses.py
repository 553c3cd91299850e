"""Prompts, responses, scores: the types of a rollout, the protocols that produce them, and metrics of responses.

A policy that exploits its reward grows longer, repeats itself, opens every response alike or stops varying, and the
reward alone looks healthy all the while. `response_metrics` measures these symptoms from the responses themselves; no
model is asked. `rlaif.rl.monitor` compares them with their values at the start.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from rlaif.data.checks import refuses
from rlaif.evaluation.policy_metrics import commonest_opening, distinct, repetition, words_of
from rlaif.records import Messages
from rlaif.stats import mean

RESPONSE_METRICS: dict[str, str] = {
    "responses": "answers in the batch",
    "length": "mean length of an answer, in tokens",
    "length_p95": "95th percentile of the lengths, in tokens",
    "truncated": "share of the answers that met the limit before they ended",
    "empty": "share of the answers without a word or a sign",
    "distinct_1": "different words over all words of the batch, from 0 to 1",
    "distinct_2": "different pairs of neighbouring words over all such pairs of the batch, from 0 to 1",
    "distinct_3": "the same of three words",
    "repetition": "share of an answer's runs of four words that stood in it before, mean over the answers",
    "openings": "share of the answers that begin with the batch's commonest first four words",
    "refusals": "share of the answers that open like an English refusal",
    "entropy": "mean of -log p of the sampled tokens, in nats per token",
}
"""What `response_metrics` measures, by name: what it is, and its unit. Every batch has all of them."""


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """A prompt, ready to be sampled from."""

    id: str
    messages: Messages
    """What rewards and judges are shown."""
    ids: Sequence[int]
    """Token ids, the generation prompt included; never empty."""


@dataclass(frozen=True, slots=True)
class Response:
    """One sampled response."""

    prompt: TokenizedPrompt
    index: int
    """Which of the responses to its prompt, from 0."""
    ids: Sequence[int]
    """Token ids; the last one ends the response where it is `finished`. Never empty."""
    logps: Sequence[float]
    """Of every token, as the sampler computed them, at the sampling temperature."""
    text: str
    """Without special tokens."""
    finished: bool
    """Whether it ended by itself, and not at the limit."""
    version: int
    """Of the weights that sampled it: how many updates the policy had seen."""


class Scores(NamedTuple):
    """What a reward gives some responses."""

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

    def restore(self, state: Mapping[str, float]) -> None:  # noqa: ARG002 - stateless by default
        """Continue from a `state`."""
        return

    def close(self) -> None:
        """Release connections and memory."""
        ...


class Sampler(Protocol):
    """Samples responses from the policy."""

    def sample(self, prompts: Sequence[TokenizedPrompt], samples: int, step: int) -> list[Response]:
        """`samples` responses to every prompt, those to one prompt adjacent; the noise depends on `step`."""
        ...

    def update(self, version: int) -> None:
        """Take up the policy's weights as they are now, under this number."""
        ...

    def close(self) -> None:
        """Release connections, files and memory."""
        ...


def response_metrics(responses: Sequence[Response]) -> dict[str, float]:
    """The `RESPONSE_METRICS` of one step's responses. Raises ValueError where there are none.

    - The distinct shares (Li et al. 2016, arXiv:1510.03055) fall as the batch grows, because a larger batch repeats
      more words: compare them with the start's only at the same batch size. Where no response has so many words, the
      share is 0.
    - `openings` is never under 1 / `responses`, and responses to one prompt open alike: compare it at the same batch
      size and the same number of responses per prompt.
    - `entropy` estimates that of the distribution that was sampled from, at its temperature: the expected -log p of a
      token is the entropy at its position. It says nothing of greedy responses.
    """
    import numpy as np

    if not responses:
        raise ValueError("no responses to take the figures of")
    lengths = [len(response.ids) for response in responses]
    texts = [response.text for response in responses]
    words = [words_of(text) for text in texts]
    metrics = {
        "responses": float(len(responses)),
        "length": mean(lengths),
        "length_p95": float(np.percentile(lengths, 95)),
        "truncated": mean([float(not response.finished) for response in responses]),
        "empty": mean([float(not text.strip()) for text in texts]),
        "repetition": mean([repetition(response_words) for response_words in words]),
        "openings": commonest_opening(words)[1],
        "refusals": mean([float(refuses(text)) for text in texts]),
        "entropy": -math.fsum(logp for response in responses for logp in response.logps) / sum(lengths),
    }
    return metrics | {f"distinct_{size}": distinct(words, size) for size in (1, 2, 3)}
