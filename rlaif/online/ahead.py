"""Answers to the next step's prompts are drawn while this step is learned from: a server need not wait for the trainer.

They are one update old when they are learned from, never more: an update waits until they are all drawn. What that
makes of the gradient is corrected as a server's other numbers are, by truncated importance sampling.

A checkpoint does not hold what was drawn ahead: a training that goes on begins like any other, with answers of the
weights that it goes on with. So its first step is not the one that it would have taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from rlaif.online.responses import Asked, Response, Sampler


class AheadSampler:
    """A `Sampler` around one on a server, which it asks from a thread of its own, one call at a time."""

    def __init__(self, inner: Sampler, deal: Callable[[int], Sequence[Asked]], steps: int) -> None:
        """`deal` gives the prompts of a step; after the last of `steps` nothing is drawn ahead."""
        self._inner, self._deal, self._steps = inner, deal, steps
        self._thread = ThreadPoolExecutor(1, "ahead")
        self._step = -1
        """The step that is drawn for."""
        self._drawn: Future[list[Response]] | None = None

    def sample(self, asked: Sequence[Asked], each: int, step: int) -> list[Response]:
        """The answers of a step, which may have been drawn before the last update; those of the next are begun."""
        if self._drawn is not None and self._step == step:
            drawn = self._drawn.result()
        else:  # the first step, and looks at held-out prompts in between
            drawn = self._thread.submit(self._inner.sample, asked, each, step).result()
        if step + 1 < self._steps:
            self._step = step + 1
            self._drawn = self._thread.submit(self._inner.sample, self._deal(step + 1), each, step + 1)
        return drawn

    def update(self, version: int) -> None:
        """Wait for what is being drawn, and take up the policy's weights as they are now."""
        if self._drawn is not None:
            self._drawn.result()
        self._thread.submit(self._inner.update, version).result()

    def close(self) -> None:
        """Wait for what is being drawn, and close."""
        self._thread.shutdown(cancel_futures=True)
        self._inner.close()
