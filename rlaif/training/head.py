"""Log-probabilities of chosen tokens from hidden states, without the (tokens x vocabulary) matrix of logits.

At a vocabulary of 150,000 that matrix is most of what a trainer holds: 4,000 tokens are 2.4 GB in float32, several
times over in the backward pass. Here only the positions that are trained reach the head, a chunk of them at a time;
what is kept for the backward pass is one number a token, and the chunk's logits are computed again there: one more
product with the head for 30 to 50% less peak memory (the trade that huggingface/trl#5575 measures).
The sum over the vocabulary is done in float32 whatever the model's type: in bfloat16 a log-softmax is off by 1e-3 a
token on average (linkedin/Liger-Kernel#672), half a nat over a reply.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

_CHUNK_BYTES = 2**26
"""Of float32 logits at once on a CPU; with fewer positions, reading the whole head again for each chunk costs more."""
_MOST_ROWS, _LEAST_ROWS = 4096, 64


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
        found: Any = _TokenLogps
        logps: Tensor = found.apply(hidden, head.weight, head.bias, targets, head.scale, head.cap)
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
        kept, cast = _in_type(hidden, weight, bias)
        totals = hidden.new_empty(len(hidden), dtype=torch.float32)
        logps = torch.empty_like(totals)
        for at in range(0, len(hidden), rows):
            part = slice(at, at + rows)
            logits = _logits(hidden[part], kept, cast, scale, cap)
            totals[part] = torch.logsumexp(logits, dim=-1)
            logps[part] = logits.gather(1, targets[part, None]).squeeze(1) - totals[part]
        ctx.save_for_backward(hidden, weight, bias, targets, totals)
        ctx.scale, ctx.cap = scale, cap
        return logps

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """Gradients of hidden, weight and bias."""
        hidden, weight, bias, targets, totals = ctx.saved_tensors
        rows = chunk_rows(len(weight), hidden.device)
        kept, cast = _in_type(hidden, weight, bias)
        to_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        to_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        to_bias = torch.zeros_like(bias, dtype=torch.float32) if bias is not None else None
        for at in range(0, len(hidden), rows):
            part = slice(at, at + rows)
            logits = _logits(hidden[part], kept, cast, ctx.scale, ctx.cap)
            slope = None if ctx.cap is None else 1 - (logits / ctx.cap).square_()
            errors = logits.sub_(totals[part, None]).exp_().neg_()
            errors.scatter_add_(1, targets[part, None], torch.ones_like(totals[part, None]))
            if slope is not None:
                errors.mul_(slope)
            # The gradient of each position is a factor of its row: cheaper on [rows, hidden] than on the logits.
            factors = (grad[part] * ctx.scale).unsqueeze(1)
            errors = errors.to(hidden.dtype)
            if to_hidden is not None:
                to_hidden[part] = (errors @ kept).mul_(factors.to(hidden.dtype))
            if to_weight is not None:
                _add_product(to_weight, errors, hidden[part] * factors.to(hidden.dtype))
            if to_bias is not None:
                to_bias += (errors.float() * factors).sum(0)
        return to_hidden, _like(to_weight, weight), _like(to_bias, bias), None, None, None


def _in_type(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias in the type of the hidden states: under autocast those are narrower than the weights."""
    return weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)


def _add_product(total: Tensor, errors: Tensor, hidden: Tensor) -> None:
    """total += errors^T hidden, summed over chunks in float32."""
    if hidden.dtype == total.dtype:
        total.addmm_(errors.t(), hidden)
    else:
        total += errors.t() @ hidden


def _like(gradient: Tensor | None, parameter: Tensor | None) -> Tensor | None:
    return None if gradient is None or parameter is None else gradient.to(parameter.dtype)
