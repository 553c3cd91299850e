"""Rollout in process: responses sampled from the model that is being trained; and rollout one step ahead on a server.

`LocalSampler`. A prompt goes through the model once for all of its responses: a batch of distinct prompts fills the
cache, the cache is repeated, and only then are tokens sampled. Rows whose response has ended leave the batch.

Every token is sampled by inverse CDF from one uniform number that belongs to (seed, step, prompt, response, position)
alone. So a response depends on the weights, its prompt and these numbers, but not on its neighbors in the batch (up to
float rounding, which can move a token that falls on the edge between two), and a resumed training samples what it
would have sampled.

`AheadSampler`. The responses to the next step's prompts are sampled during the update of this step, so that a server
does not wait for the trainer. They are one update old when they are trained on, never more: an update waits until they
are complete. Truncated importance sampling corrects for it, as for the other numbers of a server. A checkpoint does not
hold them: a resumed training samples its first step with the weights that it resumes with, so that this step is not the
one that it would have taken.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import math
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rlaif.errors import ModelError, UserError
from rlaif.inference.transformers_model import cache_name, move_rows, nucleus
from rlaif.rl.experience import Response, Sampler, TokenizedPrompt

if TYPE_CHECKING:
    from torch import Tensor

_CACHE_STEP = 32
"""Tokens by which the cache of keys and values grows at once."""
_ACTIVE_SHARE = 0.75
"""At or below this share of unfinished rows, the finished ones leave the batch, which copies the cache."""


class LocalSampler:
    """A `Sampler` on a model in this process, with or without an adapter, in training mode or not.

    The log-probabilities are those of the whole distribution at the sampling temperature, in float32: `top_p` bounds
    the tokens that are sampled, not their log-probabilities.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_tokens: int,
        ends: frozenset[int],
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        bf16: bool = False,
        batch_tokens: int = 32_768,
        rows: int = 64,
    ) -> None:
        """`ends` are the tokens that end a response; they stay in its ids, not in its text. `bf16` computes as a
        training in bfloat16 does. A batch holds at most `rows` responses and `batch_tokens` tokens, padding and the
        room for responses included; neither changes the responses.

        Raises UserError for a model without a cache of keys and values.
        """
        self._tokenizer, self._ends, self._max_tokens, self._seed = tokenizer, ends, max_tokens, seed
        self._draw = functools.partial(draw, temperature=temperature, top_p=top_p)
        self._bf16, self._batch_tokens, self._rows, self._version = bf16, batch_tokens, rows, 0
        self._policy = _CachedModel(model)

    def sample(self, prompts: Sequence[TokenizedPrompt], samples: int, step: int) -> list[Response]:
        """`samples` responses to every prompt, those to one prompt adjacent; the noise depends on `step`.

        A response has at most `max_tokens` tokens, and no more than the context leaves beside its prompt. Raises
        UserError for a prompt that leaves no room, and ModelError where the model's numbers are no probabilities.
        """
        context = self._policy.context
        for prompt in prompts:
            if len(prompt.ids) >= context:
                what = f"{len(prompt.ids)} tokens leave no room for an answer in a context of {context}"
                raise UserError(what, where=f"prompt {prompt.id}", hint="shorten it, or leave it out")
        rooms = [min(context - len(prompt.ids), self._max_tokens) for prompt in prompts]
        responses: dict[tuple[int, int], Response] = {}
        with self._policy.inference_mode(bf16=self._bf16):
            for places, indices in self._batches(prompts, samples):
                keys = [(at, index) for at in places for index in indices]
                rows = [(prompts[at], index, rooms[at]) for at, index in keys]
                responses.update(zip(keys, self._sample_batch(rows, len(indices), step), strict=True))
        return [responses[at, index] for at in range(len(prompts)) for index in range(samples)]

    def update(self, version: int) -> None:
        """Record the version; the weights themselves are always the current ones."""
        self._version = version

    def close(self) -> None:
        """Nothing to release: the model belongs to the training."""

    def _batches(self, prompts: Sequence[TokenizedPrompt], samples: int) -> Iterator[tuple[list[int], range]]:
        """Positions of prompts, and indices of the responses to all of them; the longest prompts first.

        Memory runs out early, if at all, and prompts of about equal length need little padding.
        """
        order = sorted(range(len(prompts)), key=lambda at: -len(prompts[at].ids))
        while order:
            width = len(prompts[order[0]].ids) + self._max_tokens
            batch_rows = max(1, min(self._rows, self._batch_tokens // width))
            copies = min(samples, batch_rows)
            places, order = order[: batch_rows // copies], order[batch_rows // copies :]
            for start in range(0, samples, copies):
                yield places, range(start, min(samples, start + copies))

    def _sample_batch(self, rows: Sequence[tuple[TokenizedPrompt, int, int]], copies: int, step: int) -> list[Response]:
        """The responses of one batch, each of a prompt, an index and a room; `copies` in a row have the same prompt."""
        import torch

        rooms = [room for _, _, room in rows]
        noises = [noise(self._seed, step, prompt.id, index, max(rooms)) for prompt, index, _ in rows]
        generation = _Generation(self._policy, [prompt.ids for prompt, _, _ in rows[::copies]], copies, max(rooms))
        uniforms = torch.from_numpy(np.stack(noises)).to(self._policy.device)
        responses = []
        decoded = _decode(generation, self._draw, uniforms, rooms, self._ends)
        for (prompt, index, _), (ids, logps) in zip(rows, decoded, strict=True):
            if not math.isfinite(sum(logps)):
                what = f"the policy gives no probabilities after prompt {prompt.id}: its weights are not finite"
                raise ModelError(what)
            finished = ids[-1] in self._ends
            text = self._tokenizer.decode(ids[:-1] if finished else ids, skip_special_tokens=True)
            responses.append(Response(prompt, index, ids, logps, text, finished, self._version))
        return responses


def noise(seed: int, step: int, prompt: str, index: int, count: int) -> NDArray[np.float64]:
    """[count]: numbers from (0, 1), one for every token of a response; a smaller count is a prefix of a larger one.

    Philox, a counter-based generator (Salmon et al. 2011), keyed by a hash of the other arguments. As multiples of
    2^-49 they stay below a sum of probabilities that they are multiplied by.
    """
    key = hashlib.sha256(f"{seed}:{step}:{index}:{prompt}".encode("utf-8", "surrogatepass")).digest()
    raw = np.random.Philox(key=int.from_bytes(key[:16], "big")).random_raw(count)
    whole = np.right_shift(raw, np.uint64(16)).astype(np.float64)
    numbers: NDArray[np.float64] = (whole + 0.5) * 2.0**-48
    return numbers


def draw(logits: Tensor, uniforms: Tensor, *, temperature: float, top_p: float = 1.0) -> tuple[Tensor, Tensor]:
    """logits [rows, vocabulary], uniforms [rows] -> tokens [rows] and their log-probabilities [rows], float32.

    The token is the first whose probability, added to those before it, exceeds the uniform number.
    """
    import torch

    scores = logits.float() / temperature
    logps = scores.log_softmax(-1)
    if top_p < 1:
        scores = nucleus(scores, torch.full_like(scores[:, :1], top_p))
    # In double precision, rounding in sums over a large vocabulary changes no token.
    cdf = scores.softmax(-1).double().cumsum(-1)
    tokens = torch.searchsorted(cdf, uniforms[:, None] * cdf[:, -1:], right=True)
    tokens.clamp_(max=cdf.shape[1] - 1)  # where the sum is not a number
    return tokens.squeeze(1), logps.gather(1, tokens).squeeze(1)


class _CachedModel:
    """A causal language model as a function of tokens and a cache."""

    def __init__(self, model: Any) -> None:
        from rlaif.training.forward import bare
        from rlaif.training.loading import positions_of

        self._model, self._inner = model, bare(model)
        taken = inspect.signature(type(self._inner).forward).parameters
        self._cache = cache_name(self._inner)
        if not self._cache:
            what = f"{type(self._inner).__name__} keeps no cache of keys and values to generate with"
            raise UserError(what, hint="train a model of another family")
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in taken else {}
        self._positions = "position_ids" in taken
        self.context = positions_of(self._inner.config) or sys.maxsize

    @contextlib.contextmanager
    def inference_mode(self, *, bf16: bool) -> Iterator[None]:
        """Without dropout and gradients, and with the original `forward` in place of the training's wrapper."""
        import torch

        self.device: Any = next(self._model.parameters()).device
        training = [module for module in self._model.modules() if module.training]
        forward = vars(self._inner).get("forward")
        self._inner.forward = functools.partial(type(self._inner).forward, self._inner)
        self._model.eval()
        try:
            with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
                yield
        finally:
            del self._inner.forward
            if forward is not None:
                self._inner.forward = forward
            for module in training:
                module.training = True

    def __call__(self, ids: Tensor, mask: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """ids [rows, new], mask [rows, old + new] -> logits after the last token [rows, vocabulary], and the cache."""
        options: dict[str, Any] = dict(self._options)
        if self._positions:
            # Rows whose response filled the context may stay in the batch for a while.
            options["position_ids"] = (mask.cumsum(-1) - 1)[:, -ids.shape[1] :].clamp_(0, self.context - 1)
        options[self._cache] = cache
        out = self._inner(input_ids=ids, attention_mask=mask, use_cache=True, **options)
        return out.logits[:, -1], out[self._cache]


class _Generation:
    """The state of a batch during generation: cache, attention mask and next logits."""

    def __init__(self, policy: _CachedModel, prompts: Sequence[Sequence[int]], copies: int, room: int) -> None:
        import torch

        self._policy, self._seen = policy, max(map(len, prompts))
        pads = [[0] * (self._seen - len(prompt)) for prompt in prompts]
        ids = torch.tensor(
            [pad + list(prompt) for pad, prompt in zip(pads, prompts, strict=True)], device=policy.device
        )
        self._mask = torch.tensor([pad + [1] * (self._seen + room - len(pad)) for pad in pads], device=policy.device)
        copy_of = torch.arange(len(prompts), device=policy.device).repeat_interleave(copies)
        logits, self._cache = policy(ids, self._mask[:, : self._seen], None)
        self._mask, self.logits = self._mask[copy_of], logits[copy_of]
        """[rows, vocabulary], of the next token."""
        self._movable = _select_rows(self._cache, copy_of)
        if not self._movable:
            self.logits, self._cache = policy(ids[copy_of], self._mask[:, : self._seen], None)

    def append(self, tokens: Tensor) -> None:
        """Append one token a row."""
        self._seen += 1
        self.logits, self._cache = self._policy(tokens[:, None], self._mask[:, : self._seen], self._cache)

    def select(self, rows: Tensor) -> bool:
        """Drop all rows but these; False where the cache does not support it."""
        if self._movable:
            _select_rows(self._cache, rows)
            self._mask = self._mask[rows]
        return self._movable


def _select_rows(cache: Any, rows: Tensor) -> bool:
    """Make row i of a cache what row rows[i] was; False, with a useless cache, where the family does not support it."""
    from transformers.cache_utils import DynamicLayer

    if not move_rows(cache, rows):
        return False
    for layer in cache.layers:
        if type(layer) is DynamicLayer and layer.is_initialized:
            vars(layer)["update"] = _PreallocatedUpdate(layer)
    return True


class _PreallocatedUpdate:
    """Appends keys and values to a cache layer within preallocated room, where transformers copies the whole cache."""

    def __init__(self, layer: Any) -> None:
        # The layer refers to this: a strong reference back would keep its memory until a garbage collection.
        self._layer, self._buffers = weakref.ref(layer), [layer.keys, layer.values]

    def __call__(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """In place of the layer's `update`."""
        from torch.nn.functional import pad

        layer = self._layer()
        assert layer is not None, "the caller has the layer"
        start, end = layer.keys.shape[-2], layer.keys.shape[-2] + keys.shape[-2]
        if end > self._buffers[0].shape[-2]:
            self._buffers = [pad(old, (0, 0, 0, _CACHE_STEP)) for old in (layer.keys, layer.values)]
        for buffer, new in zip(self._buffers, (keys, values), strict=True):
            buffer[:, :, start:end] = new
        layer.keys, layer.values = (buffer[:, :, :end] for buffer in self._buffers)
        return layer.keys, layer.values


def _decode(
    generation: _Generation, draw_tokens: Callable[..., Any], uniforms: Tensor, rooms: list[int], ends: frozenset[int]
) -> list[tuple[list[int], list[float]]]:
    """Ids and log-probabilities of every row's response."""
    import torch

    device, end = uniforms.device, torch.tensor(sorted(ends), device=uniforms.device)
    tokens = torch.zeros(uniforms.shape, dtype=torch.long, device=device)
    logps = torch.zeros(uniforms.shape, device=device)
    lengths = torch.tensor(rooms, device=device)
    rows = torch.arange(len(rooms), device=device)  # those that are still in the batch
    for at in range(uniforms.shape[1]):
        sampled, logp = draw_tokens(generation.logits, uniforms[rows, at])
        tokens[rows, at], logps[rows, at] = sampled, logp
        # A row that has ended may stay for a while; its further tokens then lie beyond its length.
        lengths[rows] = torch.where(torch.isin(sampled, end), lengths[rows].clamp(max=at + 1), lengths[rows])
        left = torch.nonzero(lengths[rows] > at + 1).squeeze(1)
        if not len(left):
            break
        if len(left) <= _ACTIVE_SHARE * len(rows) and generation.select(left):
            rows, sampled = rows[left], sampled[left]
        generation.append(sampled)
    decoded = zip(tokens.tolist(), logps.tolist(), lengths.tolist(), strict=True)
    return [(ids[:size], values[:size]) for ids, values, size in decoded]


class AheadSampler:
    """A `Sampler` that runs one on a server ahead of the trainer, in a thread of its own, one call at a time."""

    def __init__(self, inner: Sampler, prompts_of: Callable[[int], Sequence[TokenizedPrompt]], steps: int) -> None:
        """`prompts_of` gives the prompts of a step; nothing is sampled ahead after the last of `steps`."""
        self._inner, self._prompts_of, self._steps = inner, prompts_of, steps
        self._thread = ThreadPoolExecutor(1, "ahead")
        self._step = -1
        """The step that `_ahead` is for."""
        self._ahead: Future[list[Response]] | None = None

    def sample(self, prompts: Sequence[TokenizedPrompt], samples: int, step: int) -> list[Response]:
        """The responses of a step, perhaps sampled before the last update; starts those of the next step."""
        if self._ahead is not None and self._step == step:
            responses = self._ahead.result()
        else:  # the first step, and held-out evaluations in between
            responses = self._thread.submit(self._inner.sample, prompts, samples, step).result()
        if step + 1 < self._steps:
            self._step = step + 1
            self._ahead = self._thread.submit(self._inner.sample, self._prompts_of(step + 1), samples, step + 1)
        return responses

    def update(self, version: int) -> None:
        """Wait for the responses under way, and take up the policy's current weights."""
        if self._ahead is not None:
            self._ahead.result()
        self._thread.submit(self._inner.update, version).result()

    def close(self) -> None:
        """Wait for the responses under way, and close."""
        self._thread.shutdown(cancel_futures=True)
        self._inner.close()
