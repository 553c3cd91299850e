"""A model's log-probabilities or rewards of the completions of a batch, without the matrix of all logits.

At a vocabulary of 150,000 the (tokens x vocabulary) matrix of logits is most of what a trainer holds: 4,000 tokens are
2.4 GB in float32, several times over in the backward pass. The fast path shares prompts, sends only trained positions
through the head, and computes their logits a chunk at a time; for the backward pass it keeps one number a token and
computes the chunk's logits again: one more product with the head for 30 to 50% less peak memory (the trade that
huggingface/trl#5575 measures). The sum over the vocabulary is in float32 whatever the model's type: in bfloat16 a
log-softmax is off by 1e-3 a token on average (linkedin/Liger-Kernel#672), half a nat over a response.

The fast path relies on the parts of a model: a backbone that takes our attention mask and positions, and a linear head.
Families differ (soft caps, scales, sliding windows, recurrent layers), and a list of families is never complete. So
`select_forward_path` compares the fast path with the model's own `forward` on a few rows, and takes the plain one
wherever the two disagree.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from rlaif.training.batches import PADDING, Batch, Layout, lay_out, masks
from rlaif.training.tokenize import Group

Kind = Literal["logps", "rewards", "values"]

_CHUNK_BYTES = 2**26
"""Of float32 logits at once on a CPU; with fewer positions, reading the whole head again for each chunk costs more."""
_MOST_ROWS, _LEAST_ROWS = 4096, 64

_TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-8}
_COARSE = 0.1
"""Of the narrower types: nats per token, on average; a wrong mask or scale is off by more."""
_PROBED, _PROBED_TOKENS = 2, 512
_FARTHEST = 4096
"""Tokens that a prompt is made long to at most, so as to be longer than a sliding window."""


class ForwardPath(NamedTuple):
    """How a model computes a batch."""

    layout: Layout
    """How groups become rows."""
    fast: bool
    """Backbone and head apart, as this module does it; else the model's own `forward`."""
    difference: float = 0.0
    """Between the fast and the plain way, in nats per token or reward, where the two were compared."""
    temperature: float = 1.0
    """Logits are divided by this, as where a policy samples with it."""


PLAIN = ForwardPath("apart", fast=False)


def compute(model: Any, batch: Batch, forward_path: ForwardPath, kind: Kind) -> Tensor:
    """Log-probabilities of the completion tokens, [tokens], or rewards of the completions, [completions]; float32.

    `values` are what a reward model's head says before every completion token, [tokens]: of the state in which the
    token is chosen, less the mean that the model was centred on, as they are to foretell rewards without it.
    """
    if kind == "logps":
        return (_fast_logps if forward_path.fast else _plain_logps)(model, batch, forward_path.temperature)
    if kind == "rewards" and not forward_path.fast:
        return _plain_rewards(model, batch)
    inner = bare(model)
    if forward_path.fast:
        hidden = _hidden(inner, batch)
    else:
        hidden = inner.base_model(**_plain_inputs(batch), use_cache=False).last_hidden_state.flatten(0, 1)
    if kind == "rewards":
        return _head_rewards(inner, hidden.index_select(0, batch.ends))
    # Less the mean, as the rewards that the values foretell, see `score.rewards_of`.
    return _head_rewards(inner, hidden.index_select(0, batch.sources)) - mean_of(inner)


def _hidden(model: Any, batch: Batch) -> Tensor:
    """[rows * length, hidden]: the last hidden states of the backbone."""
    attention = masks(batch, model.config, model.dtype)
    output = model.base_model(
        input_ids=batch.input_ids, attention_mask=attention, position_ids=batch.position_ids, use_cache=False
    )
    states: Tensor = output.last_hidden_state
    return states.flatten(0, 1)


def _fast_logps(model: Any, batch: Batch, temperature: float) -> Tensor:
    inner = bare(model)
    layer = inner.get_output_embeddings()
    hidden = _hidden(inner, batch).index_select(0, batch.sources)
    # The head's weights may lie in shards on many processes (FSDP), and come together when the head itself is called.
    with _replaced_forward(layer, lambda states: token_logps(states, head_of(inner, temperature), batch.targets)):
        logps: Tensor = layer(hidden)
    return logps


def _head_rewards(inner: Any, states: Tensor) -> Tensor:
    with torch.autocast(states.device.type, enabled=False):  # three digits are too few for a difference of rewards
        rewards: Tensor = inner.score(states.to(next(inner.score.parameters()).dtype))
    return rewards.squeeze(-1).float()


def _plain_logps(model: Any, batch: Batch, temperature: float) -> Tensor:
    logits = _class_forward(model, _plain_inputs(batch), use_cache=False).flatten(0, 1).index_select(0, batch.sources)
    return torch.log_softmax(logits.float() / temperature, dim=-1).gather(1, batch.targets[:, None]).squeeze(1)


def _plain_rewards(model: Any, batch: Batch) -> Tensor:
    inputs = _plain_inputs(batch)
    # The model's own pooling takes the last token that is not padding, recognized by its id.
    padding = batch.branch == PADDING
    inputs["input_ids"] = batch.input_ids.masked_fill(padding, bare(model).config.get_text_config().pad_token_id)
    return _class_forward(model, inputs).squeeze(-1).float()


def _plain_inputs(batch: Batch) -> dict[str, Tensor]:
    return {"input_ids": batch.input_ids, "attention_mask": (batch.branch != PADDING).long()}


def _class_forward(model: Any, inputs: dict[str, Tensor], **options: bool) -> Tensor:
    """The logits that the model's class computes, whatever `answering` has made of the call."""
    inner = bare(model)
    logits: Tensor = type(inner).forward(inner, **inputs, **options).logits
    return logits


def mean_of(model: Any) -> float:
    """The mean that a reward model was centred on (see `centering`); 0 where it was not."""
    return float(getattr(bare(model).config, "reward_mean", None) or 0.0)


def bare(model: Any) -> Any:
    """The transformers model inside of adapters; the adapters stay in its layers."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def head_of(model: Any, temperature: float = 1.0) -> Head:
    """The vocabulary head of a causal model, its logits divided by a temperature.

    Raises TypeError where it is not one linear layer.
    """
    layer = model.get_output_embeddings()
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"the head of {type(model).__name__} is a {type(layer).__name__}")
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0  # Cohere
    scale /= getattr(config, "logits_scaling", None) or 1.0  # Granite
    cap = getattr(config, "final_logit_softcapping", None)
    # cap tanh(z / cap) / T = (cap / T) tanh((z / T) / (cap / T))
    return Head(layer.weight, layer.bias, scale / temperature, None if cap is None else cap / temperature)


@torch.no_grad()
def select_forward_path(
    model: Any, groups: Sequence[Group], kind: Kind, layout: Layout = "shared", temperature: float = 1.0
) -> ForwardPath:
    """The fast path where it gives what the model's own `forward` gives on a few of the groups, else the plain one."""
    # Short groups, filled up to one length, and a long one: a sliding window shows only beyond its end.
    *_, longest = by_length = sorted(groups, key=lambda group: group.tokens)
    probes = [[_cut(group) for group in by_length[:_PROBED]], [_stretched(_cut(longest), bare(model).config)]]
    was_training = model.training
    model.eval()
    try:
        # Weights of two types in one model (a reward head, adapters) go together as they do in training.
        device = next(model.parameters()).device.type
        with torch.autocast(device, torch.bfloat16, enabled=model.dtype == torch.bfloat16):
            return _fastest(model, probes, kind, PLAIN._replace(layout=layout, temperature=temperature))
    finally:
        model.train(was_training)


def _fastest(model: Any, probes: Sequence[Sequence[Group]], kind: Kind, wanted: ForwardPath) -> ForwardPath:
    """The first fast path, in the wanted layout or with completions apart, that agrees with the plain one."""
    plain = wanted._replace(layout="apart")
    expected = _compute_probes(model, probes, plain, kind)
    for forward_path in (wanted._replace(fast=True), plain._replace(fast=True)):
        with contextlib.suppress(AttributeError, TypeError, ValueError, RuntimeError, LookupError):
            outputs = _compute_probes(model, probes, forward_path, kind)
            errors = [(output - plain_output).abs() for output, plain_output in zip(outputs, expected, strict=True)]
            worst = max(float(error.max() if model.dtype in _TOLERANCE else error.mean()) for error in errors)
            if worst <= _TOLERANCE.get(model.dtype, _COARSE):
                return forward_path._replace(difference=worst)
    return plain


def _compute_probes(
    model: Any, probes: Sequence[Sequence[Group]], forward_path: ForwardPath, kind: Kind
) -> list[Tensor]:
    device = next(model.parameters()).device
    return [compute(model, lay_out(some, forward_path.layout).to(device), forward_path, kind) for some in probes]


def _cut(group: Group) -> Group:
    """A group short enough to be computed twice; the first completions of it, as all share one prompt anyway."""
    completions = tuple(completion[:_PROBED_TOKENS] for completion in group.completions[:3])
    return Group(group.id, group.prompt[-_PROBED_TOKENS:], completions)


def _stretched(group: Group, config: Any) -> Group:
    """The group with two completions at most, its prompt repeated until it is longer than the model's window."""
    text, completions = config.get_text_config(), group.completions[:2]
    window, context = (getattr(text, name, None) or 0 for name in ("sliding_window", "max_position_embeddings"))
    reach = min(window * 3 // 2, _FARTHEST, context - max(map(len, completions)))
    times = math.ceil(reach / len(group.prompt))
    return Group(group.id, (list(group.prompt) * times)[-reach:] if times > 1 else group.prompt, completions)


@contextlib.contextmanager
def answering(model: Any, forward_path: ForwardPath, kind: Kind) -> Iterator[None]:
    """Within the block, `model(batch)` is `compute(model, batch)`.

    What wraps a model for many processes (DDP, FSDP, autocast) hooks into the call of the *whole* model: its parts may
    not be called from outside. So the call itself is replaced, and restored afterwards.
    """
    with _replaced_forward(model, lambda batch: compute(model, batch, forward_path, kind)):
        yield


@contextlib.contextmanager
def _replaced_forward(module: nn.Module, forward: Callable[[Any], Tensor]) -> Iterator[None]:
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            vars(module).pop("forward", None)
        else:
            module.forward = before


class Head(NamedTuple):
    """The vocabulary head of a model: what turns a hidden state into logits."""

    weight: Tensor
    """[vocabulary, hidden]."""
    bias: Tensor | None = None
    """[vocabulary]."""
    scale: float = 1.0
    """Logits are multiplied by this (Cohere, Granite)."""
    cap: float | None = None
    """Logits are squashed to cap * tanh(logits / cap) after that (Gemma 2)."""


def token_logps(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    """log p(target) of every position.

    hidden [N, hidden] in any float type, targets [N] -> [N] float32. Differentiable in hidden, weight and bias.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        hidden = hidden.to(torch.get_autocast_dtype(device))
    # The backward pass runs outside of autocast: both passes have to compute the same logits.
    with torch.autocast(device, enabled=False):
        function: Any = _TokenLogps
        logps: Tensor = function.apply(hidden, head.weight, head.bias, targets, head.scale, head.cap)
    return logps


def chunk_rows(vocabulary: int, device: torch.device) -> int:
    """Positions whose logits are held at once."""
    size = _CHUNK_BYTES if device.type == "cpu" else 8 * _CHUNK_BYTES
    return max(_LEAST_ROWS, min(_MOST_ROWS, size // (4 * vocabulary)))


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, cap: float | None) -> Tensor:
    logits = torch.nn.functional.linear(hidden, weight, bias).float()
    if scale != 1.0:
        logits.mul_(scale)
    if cap is not None:
        logits.div_(cap).tanh_().mul_(cap)
    return logits


class _TokenLogps(torch.autograd.Function):
    """d log p(t) / d logit(v) = [v = t] - p(v), so the backward pass needs the logits and their log-sum-exp only."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scale: float, cap: float | None
    ) -> Tensor:
        """See `token_logps`."""
        rows = chunk_rows(len(weight), hidden.device)
        cast_weight, cast_bias = _cast_head(hidden, weight, bias)
        log_norms = hidden.new_empty(len(hidden), dtype=torch.float32)
        logps = torch.empty_like(log_norms)
        for at in range(0, len(hidden), rows):
            part = slice(at, at + rows)
            logits = _logits(hidden[part], cast_weight, cast_bias, scale, cap)
            log_norms[part] = torch.logsumexp(logits, dim=-1)
            logps[part] = logits.gather(1, targets[part, None]).squeeze(1) - log_norms[part]
        ctx.save_for_backward(hidden, weight, bias, targets, log_norms)
        ctx.scale, ctx.cap = scale, cap
        return logps

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """Gradients of hidden, weight and bias."""
        hidden, weight, bias, targets, log_norms = ctx.saved_tensors
        rows = chunk_rows(len(weight), hidden.device)
        cast_weight, cast_bias = _cast_head(hidden, weight, bias)
        to_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        to_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        to_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None else None
        for at in range(0, len(hidden), rows):
            part = slice(at, at + rows)
            logits = _logits(hidden[part], cast_weight, cast_bias, ctx.scale, ctx.cap)
            slope = None if ctx.cap is None else 1 - (logits / ctx.cap).square_()
            errors = logits.sub_(log_norms[part, None]).exp_().neg_()
            errors.scatter_add_(1, targets[part, None], torch.ones_like(log_norms[part, None]))
            if slope is not None:
                errors.mul_(slope)
            # The gradient of each position is a factor of its row: cheaper on [rows, hidden] than on the logits.
            factors = (grad[part] * ctx.scale).unsqueeze(1)
            errors = errors.to(hidden.dtype)
            if to_hidden is not None:
                to_hidden[part] = (errors @ cast_weight).mul_(factors.to(hidden.dtype))
            if to_weight is not None:
                scaled = hidden[part] * factors.to(hidden.dtype)
                if hidden.dtype == to_weight.dtype:
                    to_weight.addmm_(errors.t(), scaled)
                else:  # summed over chunks in float32
                    to_weight += errors.t() @ scaled
            if to_bias is not None:
                to_bias += (errors.float() * factors).sum(0)
        return to_hidden, _cast_gradient(to_weight, weight), _cast_gradient(to_bias, bias), None, None, None


def _cast_head(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias in the type of the hidden states: under autocast those are narrower than the weights."""
    return weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)


def _cast_gradient(gradient: Tensor | None, parameter: Tensor | None) -> Tensor | None:
    return None if gradient is None or parameter is None else gradient.to(parameter.dtype)
