"""Responses sampled in process from the very model that is being trained, and ahead of the learning.

Answers drawn in process, from the very model that is being trained.

A prompt goes through the model once for all of its answers: a batch of distinct prompts fills the cache, the cache is
repeated, and only then are tokens drawn. Rows whose answer has ended leave the batch.

Every token is drawn by inverse CDF from one uniform number that belongs to (seed, step, prompt, answer, position) and
to nothing else. So an answer depends on the weights, its prompt and these numbers, but not on its neighbours in the
batch (up to float rounding, which can move a draw that falls on the edge between two tokens), and a training that is
resumed draws what it would have drawn.

Answers to the next step's prompts are drawn while this step is learned from: a server need not wait for the trainer.

They are one update old when they are learned from, never more: an update waits until they are all drawn. What that
makes of the gradient is corrected as a server's other numbers are, by truncated importance sampling.

A checkpoint does not hold what was drawn ahead: a training that goes on begins like any other, with answers of the
weights that it goes on with. So its first step is not the one that it would have taken.
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
from rlaif.inference.prefix_cache import cache_name, move_rows
from rlaif.inference.transformers_model import nucleus
from rlaif.rl.responses import Response, Sampler, TokenizedPrompt

if TYPE_CHECKING:
    from torch import Tensor

_ROOM = 32  # tokens by which the memory of keys and values grows at once
_CROWDED = 0.75  # with no more than this share of the rows going on, the others are taken out; that copies the cache


class LocalSampler:
    """A `Sampler` on a model in this process, with or without an adapter, in training mode or not.

    The log-probabilities are those of the whole distribution at the sampling temperature, in float32: `top_p` bounds
    what is drawn, not what is reported.
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
        """`ends` are the tokens that end an answer; they stay in its ids, not in its text. `bf16` computes as a
        training in bfloat16 does. A batch holds at most `rows` answers and `batch_tokens` tokens, padding and the room
        for answers included; neither changes what is drawn.

        Raises UserError for a model without a cache of keys and values.
        """
        self._tokenizer, self._ends, self._max_tokens, self._seed = tokenizer, ends, max_tokens, seed
        self._draw = functools.partial(draw, temperature=temperature, top_p=top_p)
        self._bf16, self._batch_tokens, self._rows, self._version = bf16, batch_tokens, rows, 0
        self._policy = _Policy(model)

    def sample(self, asked: Sequence[TokenizedPrompt], each: int, step: int) -> list[Response]:
        """`each` answers to every prompt, those to one prompt next to each other; the noise depends on `step`.

        An answer has at most `max_tokens` tokens, and no more than the model's context leaves beside its prompt. Raises
        UserError for a prompt that leaves no room, and ModelError where the model's numbers are no probabilities.
        """
        rooms = [self._room(one) for one in asked]
        found: dict[tuple[int, int], Response] = {}
        with self._policy.at_rest(bf16=self._bf16):
            for places, indices in self._batches(asked, each):
                keys = [(at, index) for at in places for index in indices]
                rows = [(asked[at], index, rooms[at]) for at, index in keys]
                found.update(zip(keys, self._answers(rows, len(indices), step), strict=True))
        return [found[at, index] for at in range(len(asked)) for index in range(each)]

    def update(self, version: int) -> None:
        """Note the number of the weights; the model itself is always as the training left it."""
        self._version = version

    def close(self) -> None:
        """Nothing to let go of: the model is the training's."""

    def _room(self, asked: TokenizedPrompt) -> int:
        left = self._policy.context - len(asked.ids)
        if left < 1:
            what = f"{len(asked.ids)} tokens leave no room for an answer in a context of {self._policy.context}"
            raise UserError(what, where=f"prompt {asked.id}", hint="shorten it, or leave it out")
        return min(left, self._max_tokens)

    def _batches(self, asked: Sequence[TokenizedPrompt], each: int) -> Iterator[tuple[list[int], range]]:
        """Places of prompts, and indices of the answers to all of them. Longest first: trouble with memory shows early.

        Of about equal length, prompts carry little padding.
        """
        order = sorted(range(len(asked)), key=lambda at: -len(asked[at].ids))
        while order:
            width = len(asked[order[0]].ids) + self._max_tokens
            most = max(1, min(self._rows, self._batch_tokens // width))
            copies = min(each, most)
            places, order = order[: most // copies], order[most // copies :]
            for start in range(0, each, copies):
                yield places, range(start, min(each, start + copies))

    def _answers(self, rows: Sequence[tuple[TokenizedPrompt, int, int]], copies: int, step: int) -> list[Response]:
        """The answers of one batch, each of a prompt, an index and a room; `copies` in a row have the same prompt."""
        import torch

        rooms = [room for _, _, room in rows]
        uniforms = [noise(self._seed, step, asked.id, index, max(rooms)) for asked, index, _ in rows]
        going = _Going(self._policy, [asked.ids for asked, _, _ in rows[::copies]], copies, max(rooms))
        chances = torch.from_numpy(np.stack(uniforms)).to(self._policy.device)
        drawn = _decode(going, self._draw, chances, rooms, self._ends)
        return [self._response(*row[:2], *answer) for row, answer in zip(rows, drawn, strict=True)]

    def _response(self, asked: TokenizedPrompt, index: int, ids: list[int], logps: list[float]) -> Response:
        if not math.isfinite(sum(logps)):
            raise ModelError(f"the policy gives no probabilities after prompt {asked.id}: its weights are not finite")
        finished = ids[-1] in self._ends
        text = self._tokenizer.decode(ids[:-1] if finished else ids, skip_special_tokens=True)
        return Response(asked, index, ids, logps, text, finished, self._version)


def noise(seed: int, step: int, prompt: str, index: int, count: int) -> NDArray[np.float64]:
    """[count]: numbers from (0, 1), one for every token of an answer; fewer are the beginning of more.

    Philox, a counter-based generator (Salmon et al. 2011), under a key that hashes whose noise it is. As multiples of
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
    # In double precision, sums over a large vocabulary lose nothing that a draw could notice.
    heaps = scores.softmax(-1).double().cumsum(-1)
    tokens = torch.searchsorted(heaps, uniforms[:, None] * heaps[:, -1:], right=True)
    tokens.clamp_(max=heaps.shape[1] - 1)  # where the sum is not a number
    return tokens.squeeze(1), logps.gather(1, tokens).squeeze(1)


class _Policy:
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
    def at_rest(self, *, bf16: bool) -> Iterator[None]:
        """Without dropout and gradients, and with the call's own meaning, whatever the training has made of it."""
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
            # Rows whose answer filled the context may stay in the batch for a while.
            options["position_ids"] = (mask.cumsum(-1) - 1)[:, -ids.shape[1] :].clamp_(0, self.context - 1)
        options[self._cache] = cache
        out = self._inner(input_ids=ids, attention_mask=mask, use_cache=True, **options)
        return out.logits[:, -1], out[self._cache]


class _Going:
    """The prompts of a batch and what was drawn after them, as the model remembers it."""

    def __init__(self, policy: _Policy, prompts: Sequence[Sequence[int]], copies: int, room: int) -> None:
        import torch

        self._policy, self._seen = policy, max(map(len, prompts))
        pads = [[0] * (self._seen - len(each)) for each in prompts]
        ids = torch.tensor([pad + list(each) for pad, each in zip(pads, prompts, strict=True)], device=policy.device)
        self._mask = torch.tensor([pad + [1] * (self._seen + room - len(pad)) for pad in pads], device=policy.device)
        spread = torch.arange(len(prompts), device=policy.device).repeat_interleave(copies)
        logits, self._cache = policy(ids, self._mask[:, : self._seen], None)
        self._mask, self.logits = self._mask[spread], logits[spread]
        """[rows, vocabulary], of the next token."""
        self._movable = _moved(self._cache, spread)
        if not self._movable:
            self.logits, self._cache = policy(ids[spread], self._mask[:, : self._seen], None)

    def take(self, tokens: Tensor) -> None:
        """Go on by one token a row."""
        self._seen += 1
        self.logits, self._cache = self._policy(tokens[:, None], self._mask[:, : self._seen], self._cache)

    def keep(self, rows: Tensor) -> bool:
        """Forget all rows but these; False where the cache cannot."""
        if self._movable:
            _moved(self._cache, rows)
            self._mask = self._mask[rows]
        return self._movable


def _moved(cache: Any, rows: Tensor) -> bool:
    """Make row i of a cache what row rows[i] was; False where a family's cache cannot do that, and is spoilt."""
    from transformers.cache_utils import DynamicLayer

    if not move_rows(cache, rows):
        return False
    for layer in cache.layers:
        if type(layer) is DynamicLayer and layer.is_initialized:
            vars(layer)["update"] = _Roomy(layer)
    return True


class _Roomy:
    """Takes new keys and values into a layer that has room for some more: a plain one copies all it holds each time."""

    def __init__(self, layer: Any) -> None:
        # The layer owns this: were it owned in turn, its memory would stay until the garbage collector comes by.
        self._layer, self._held = weakref.ref(layer), [layer.keys, layer.values]

    def __call__(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """In place of the layer's `update`."""
        from torch.nn.functional import pad

        layer = self._layer()
        assert layer is not None, "whoever calls this has the layer"
        start, end = layer.keys.shape[-2], layer.keys.shape[-2] + keys.shape[-2]
        if end > self._held[0].shape[-2]:
            self._held = [pad(old, (0, 0, 0, _ROOM)) for old in (layer.keys, layer.values)]
        for held, new in zip(self._held, (keys, values), strict=True):
            held[:, :, start:end] = new
        layer.keys, layer.values = (held[:, :, :end] for held in self._held)
        return layer.keys, layer.values


def _decode(
    going: _Going, drawing: Callable[..., Any], chances: Tensor, rooms: list[int], ends: frozenset[int]
) -> list[tuple[list[int], list[float]]]:
    """Ids and log-probabilities of every row's answer."""
    import torch

    device, end = chances.device, torch.tensor(sorted(ends), device=chances.device)
    tokens = torch.zeros(chances.shape, dtype=torch.long, device=device)
    logps = torch.zeros(chances.shape, device=device)
    lengths = torch.tensor(rooms, device=device)
    rows = torch.arange(len(rooms), device=device)  # those that are still in the batch
    for at in range(chances.shape[1]):
        drawn, logp = drawing(going.logits, chances[rows, at])
        tokens[rows, at], logps[rows, at] = drawn, logp
        # A row that has ended may stay for a while; what is drawn for it then lies behind its length.
        lengths[rows] = torch.where(torch.isin(drawn, end), lengths[rows].clamp(max=at + 1), lengths[rows])
        left = torch.nonzero(lengths[rows] > at + 1).squeeze(1)
        if not len(left):
            break
        if len(left) <= _CROWDED * len(rows) and going.keep(left):
            rows, drawn = rows[left], drawn[left]
        going.take(drawn)
    found = zip(tokens.tolist(), logps.tolist(), lengths.tolist(), strict=True)
    return [(ids[:size], values[:size]) for ids, values, size in found]


class AheadSampler:
    """A `Sampler` around one on a server, which it asks from a thread of its own, one call at a time."""

    def __init__(self, inner: Sampler, deal: Callable[[int], Sequence[TokenizedPrompt]], steps: int) -> None:
        """`deal` gives the prompts of a step; after the last of `steps` nothing is drawn ahead."""
        self._inner, self._deal, self._steps = inner, deal, steps
        self._thread = ThreadPoolExecutor(1, "ahead")
        self._step = -1
        """The step that is drawn for."""
        self._drawn: Future[list[Response]] | None = None

    def sample(self, asked: Sequence[TokenizedPrompt], each: int, step: int) -> list[Response]:
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
