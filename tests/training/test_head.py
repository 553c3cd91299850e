"""Log-probabilities through the head in chunks, beside log_softmax over all logits at once."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rlaif.training import forward
from rlaif.training.forward import Head, chunk_rows, token_logps

TOKENS, HIDDEN, VOCABULARY = 37, 12, 50


class Case(NamedTuple):
    """What goes in, and the weights that the outputs are summed with, so that every row has its own gradient."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor
    factors: Tensor


def case(dtype: torch.dtype = torch.float32, *, bias: bool = True, spread: float = 1.0) -> Case:
    maker = torch.Generator().manual_seed(5)

    def drawn(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=maker) * spread).to(dtype).requires_grad_()

    targets = torch.randint(VOCABULARY, (TOKENS,), generator=maker)
    offsets = drawn(VOCABULARY) if bias else None
    return Case(drawn(TOKENS, HIDDEN), drawn(VOCABULARY, HIDDEN), offsets, targets, torch.randn(TOKENS))


def by_the_book(at: Case, scale: float = 1.0, cap: float | None = None) -> Tensor:
    """In float64, all logits at once."""
    bias = None if at.bias is None else at.bias.double()
    logits = torch.nn.functional.linear(at.hidden.double(), at.weight.double(), bias) * scale
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    return logits.log_softmax(-1).gather(1, at.targets[:, None]).squeeze(1)


def gradients(at: Case, logps: Tensor) -> list[Tensor]:
    inputs = [each for each in (at.hidden, at.weight, at.bias) if each is not None]
    return list(torch.autograd.grad((logps * at.factors).sum(), inputs))


def ours(at: Case, scale: float = 1.0, cap: float | None = None) -> Tensor:
    return token_logps(at.hidden, Head(at.weight, at.bias, scale, cap), at.targets)


def agree(at: Case, found: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Values and gradients, relative to the largest of each tensor."""
    pairs = zip([found, *gradients(at, found)], [wanted, *gradients(at, wanted)], strict=True)
    for one, other in pairs:
        assert (one.double() - other.double()).abs().max() <= tolerance * other.abs().max()


@pytest.fixture(params=[4096, 10, 1], ids=["one-chunk", "four-chunks", "a-row-each"])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Rows whose logits are held at once; 37 tokens in tens leave a rest of 7."""
    monkeypatch.setattr(forward, "chunk_rows", lambda vocabulary, device: request.param)
    return int(request.param)


@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients(bias: bool, chunk: int) -> None:
    at = case(bias=bias)
    found = ours(at)
    assert found.dtype == torch.float32 and found.shape == (TOKENS,)
    agree(at, found, by_the_book(at), 1e-5)


@pytest.mark.parametrize(("scale", "cap"), [(0.25, None), (1.0, 2.0), (0.5, 3.0), (1 / 13, 30.0)])
def test_scale_and_soft_cap(scale: float, cap: float | None, chunk: int) -> None:
    """Cohere and Granite scale logits, Gemma 2 bends them; logits of several times the cap bend a lot."""
    at = case(spread=1.5)
    agree(at, ours(at, scale, cap), by_the_book(at, scale, cap), 1e-5)


def test_bfloat16_keeps_the_sum_over_the_vocabulary_in_float32() -> None:
    """Values are off by the rounding of logits alone (8 bits: 2^-9 of a logit of about 10), on average far less."""
    at = case(torch.bfloat16)
    found, wanted = ours(at), by_the_book(at)
    assert found.dtype == torch.float32
    largest = (at.hidden.double() @ at.weight.double().T).abs().max()
    assert (found - wanted).abs().max() <= 2 * 2**-9 * largest
    for one, other in zip(gradients(at, found), gradients(at, wanted), strict=True):
        assert one.dtype == torch.bfloat16
        assert (one.double() - other.double()).abs().max() <= 0.03 * other.abs().max()


def test_float64_is_computed_in_float32() -> None:
    at = case(torch.float64)
    agree(at, ours(at), by_the_book(at), 1e-6)


def test_a_frozen_head_gets_no_gradient() -> None:
    at = case()
    at.weight.requires_grad_(False)
    at.bias.requires_grad_(False)  # type: ignore[union-attr]
    ours(at).sum().backward()
    assert at.hidden.grad is not None and at.weight.grad is None and at.bias is not None and at.bias.grad is None


def test_frozen_hidden_states_train_the_head_all_the_same() -> None:
    at = case()
    at.hidden.requires_grad_(False)
    ours(at).sum().backward()
    assert at.hidden.grad is None
    (wanted,) = torch.autograd.grad(by_the_book(at).sum(), [at.weight])
    assert torch.allclose(at.weight.grad, wanted.float(), atol=1e-5)  # type: ignore[arg-type]


def test_nothing_is_trained_of_no_tokens() -> None:
    at = case()
    found = token_logps(at.hidden[:0], Head(at.weight, at.bias), at.targets[:0])
    assert found.shape == (0,)
    found.sum().backward()
    assert at.weight.grad is not None and not at.weight.grad.any()


def test_both_passes_compute_the_same_logits_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast ends before the backward pass: logits of another type there would be other logits."""
    seen: list[Tensor] = []
    plain = forward._logits

    def watched(*given: Any) -> Tensor:
        logits = plain(*given)
        seen.append(logits.clone())
        return logits

    monkeypatch.setattr(forward, "_logits", watched)
    at = case()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ours(at)
    (found * at.factors).sum().backward()
    logits, again = seen
    assert torch.equal(logits, again)
    rounded = torch.nn.functional.linear(at.hidden.bfloat16(), at.weight.bfloat16(), at.bias.bfloat16())  # type: ignore[union-attr]
    assert torch.equal(logits, rounded.float()), "the product is computed in the type that autocast asks for"
    assert at.weight.grad is not None and at.weight.grad.dtype == torch.float32
    assert at.hidden.grad is not None and at.hidden.grad.dtype == torch.float32


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(each, Tensor):
                self.elements = max(self.elements, each.numel())
        return made


def test_the_matrix_of_all_logits_is_never_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 tokens x 500 words in chunks of 64: no tensor is larger than a chunk of logits or the head itself."""
    monkeypatch.setattr(forward, "chunk_rows", lambda vocabulary, device: 64)
    tokens, hidden, vocabulary = 1000, 8, 500
    states = torch.randn(tokens, hidden, requires_grad=True)
    weight = torch.randn(vocabulary, hidden, requires_grad=True)
    targets = torch.randint(vocabulary, (tokens,))
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with Largest() as largest, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        token_logps(states, Head(weight), targets).sum().backward()
    assert largest.elements == 64 * vocabulary
    assert max(kept) == tokens * hidden, "what waits for the backward pass is inputs and one number a token"
    with Largest() as plain:
        torch.log_softmax(states @ weight.T, -1)
    assert plain.elements == tokens * vocabulary, "the watch sees what is made"


def test_rows_of_a_chunk() -> None:
    """64 MB of float32 logits on a CPU: 16,777,216 numbers; never fewer than 64 rows, nor more than 4,096."""
    cpu = torch.device("cpu")
    assert chunk_rows(32_768, cpu) == 512
    assert chunk_rows(151_936, cpu) == 110
    assert chunk_rows(2_000_000, cpu) == 64
    assert chunk_rows(100, cpu) == 4096
    assert chunk_rows(32_768, torch.device("cuda")) == 4096
    assert chunk_rows(151_936, torch.device("cuda")) == 883
