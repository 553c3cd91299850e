"""What a batch of fresh answers looks like: the figures by which a training that games its reward shows itself.

A policy that has found a hole in its reward grows longer, repeats itself, opens every answer alike or stops varying,
and the reward alone looks healthy all the while. Every figure is a plain function of the answers; no model is asked.

`FIGURES` names those of `figures_of`, `GIVEN` those that the trainer adds, for `rlaif.online.watch` and the log.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlaif.data.texts import refuses
from rlaif.evaluation.metrics import mean
from rlaif.evaluation.variety import commonest_opening, distinct, repetition, words_of
from rlaif.online.responses import Response

FIGURES: dict[str, str] = {
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
    "entropy": "mean of -log p of the sampled tokens, in nats a token",
}
"""What `figures_of` measures, by name: what it is, and its unit. Every batch has all of them."""

GIVEN: dict[str, str] = {
    "kl": "KL divergence of the policy from its reference, in nats an answer (summed over the answer's tokens)",
    "reward": "mean reward of an answer, before any penalty",
}
"""What only the trainer knows, by the names under which the watch reads it."""

_LONGEST = 3
"""Words of the longest runs that are counted over the whole batch."""


def figures_of(responses: Sequence[Response]) -> dict[str, float]:
    """The figures of one step's answers. Raises ValueError where there are none.

    - The distinct shares (Li et al. 2016, arXiv:1510.03055) fall as the batch grows, as more of what is said was said
      before: compare them with the start's only at the same batch size. Where no answer has so many words, it is 0.
    - `openings` is never under 1 / `responses`, and answers to one prompt open alike: again, same size, same shape.
    - `entropy` estimates that of the distribution that was sampled from, at its temperature: the expected -log p of a
      token is the entropy at its place. It says nothing of greedy answers.
    """
    if not responses:
        raise ValueError("no responses to take the figures of")
    lengths = [len(response.ids) for response in responses]
    texts = [response.text for response in responses]
    words = [words_of(text) for text in texts]
    found = {
        "responses": float(len(responses)),
        "length": mean(lengths),
        "length_p95": _percentile(lengths, 95),
        "truncated": mean([float(not response.finished) for response in responses]),
        "empty": mean([float(not text.strip()) for text in texts]),
        "repetition": mean([repetition(each) for each in words]),
        "openings": commonest_opening(words)[1],
        "refusals": mean([float(refuses(text)) for text in texts]),
        "entropy": -math.fsum(logp for response in responses for logp in response.logps) / sum(lengths),
    }
    return found | {f"distinct_{size}": distinct(words, size) for size in range(1, _LONGEST + 1)}


def _percentile(values: Sequence[int], percent: float) -> float:
    import numpy as np

    return float(np.percentile(values, percent))
