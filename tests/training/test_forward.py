"""The fast ways beside each family's own forward pass, one conversation at a time and without padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlaif.training import forward
from rlaif.training.batches import Batch, Layout, lay_out, visible
from rlaif.training.forward import PLAIN, ForwardPath, Kind, answering, compute, head_of, select_forward_path
from rlaif.training.tokenize import Group
from tests.training.families import FAMILIES, VOCABULARY, make


def drawn(sizes: list[tuple[int, tuple[int, ...]]]) -> list[Group]:
    """Groups of random ids, none of them the pad token 0: lengths of prompt and completions."""
    maker = torch.Generator().manual_seed(8)

    def ids(size: int) -> tuple[int, ...]:
        return tuple(torch.randint(1, VOCABULARY, (size,), generator=maker).tolist())

    return [Group(f"row-{at}", ids(prompt), tuple(map(ids, rest))) for at, (prompt, rest) in enumerate(sizes)]


GROUPS = drawn([(7, (6, 9)), (3, (12,)), (9, (4, 1, 8)), (1, (2, 3))])
"""One, two and three completions; longer than the sliding windows of 4 and 5; prompt and completion of one token."""


def alone(model: Any) -> list[Tensor]:
    """log p of each completion's tokens, from the model's own call on prompt and completion alone."""
    found = []
    for group in GROUPS:
        for completion in group.completions:
            ids = torch.tensor([[*group.prompt, *completion]])
            logits = model(input_ids=ids).logits[0, len(group.prompt) - 1 : -1]
            found.append(logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None]).squeeze(1))
    return found


def alone_rewards(model: Any) -> list[Tensor]:
    conversations = [[*group.prompt, *completion] for group in GROUPS for completion in group.completions]
    return [model(input_ids=torch.tensor([ids])).logits[0] for ids in conversations]


def gradients(model: nn.Module, values: Tensor) -> dict[str, Tensor]:
    """Of a sum in which every value has its own weight."""
    model.zero_grad()
    factors = torch.linspace(-1, 1.5, len(values))
    (values * factors).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def agree(model: nn.Module, found: Tensor, wanted: Tensor) -> None:
    assert torch.allclose(found, wanted, atol=1e-5, rtol=1e-5), (found - wanted).abs().max()
    ours, theirs = gradients(model, found), gradients(model, wanted)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        # relative to the largest of the tensor; keys without a rotation have a bias whose gradient is 0 but for noise
        limit = 1e-4 * gradient.abs().max() + 1e-5
        assert (ours[name] - gradient).abs().max() <= limit, name


@pytest.mark.parametrize("layout", ["shared", "apart"])
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_of_every_family(family: str, layout: Layout) -> None:
    model = make(family)
    forward_path = ForwardPath(layout, fast=True)
    agree(model, compute(model, lay_out(GROUPS, layout), forward_path, "logps"), torch.cat(alone(model)))


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_matters_in_these_models(family: str) -> None:
    """With another token at the start, the log-probability of the last one is another: a wrong mask would be seen."""
    model = make(family)
    ids = torch.tensor([[*GROUPS[2].prompt, *GROUPS[2].completions[0]]])
    other = ids.clone()
    other[0, -4] = (ids[0, -4] + 7) % VOCABULARY
    with torch.no_grad():
        one, two = (model(input_ids=each).logits[0, -2].log_softmax(-1) for each in (ids, other))
    assert (one - two).abs().max() > 0.02


CLASSIFIERS = sorted(set(FAMILIES) - {"cohere", "granite", "olmo2"})


@pytest.mark.parametrize("layout", ["shared", "apart"])
@pytest.mark.parametrize("family", CLASSIFIERS)
def test_rewards_of_every_family(family: str, layout: Layout) -> None:
    model = make(family, "SequenceClassification")
    forward_path = ForwardPath(layout, fast=True)
    agree(model, compute(model, lay_out(GROUPS, layout), forward_path, "rewards"), torch.cat(alone_rewards(model)))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_takes_the_fast_way(family: str) -> None:
    forward_path = select_forward_path(make(family), GROUPS, "logps")
    assert forward_path.fast and forward_path.layout == "shared" and forward_path.difference < 2e-4


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_every_family_of_reward_models_takes_the_fast_way(family: str) -> None:
    forward_path = select_forward_path(make(family, "SequenceClassification"), GROUPS, "rewards")
    assert forward_path.fast and forward_path.layout == "shared"


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mistral"])
def test_the_plain_way_is_right_as_well(family: str) -> None:
    model = make(family)
    agree(model, compute(model, lay_out(GROUPS, "apart"), PLAIN, "logps"), torch.cat(alone(model)))
    model = make(family, "SequenceClassification")
    agree(model, compute(model, lay_out(GROUPS, "apart"), PLAIN, "rewards"), torch.cat(alone_rewards(model)))


def seeing() -> Any:
    """A model that also takes images: what its text layers are like stands in a config within its config."""
    from transformers import AutoModelForCausalLM, Gemma3Config

    text = {**FAMILIES["gemma3"][1], "num_hidden_layers": 2}
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes = {"image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=text, vision_config={**vision, **sizes}, mm_tokens_per_image=4)
    torch.manual_seed(4)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert getattr(model.config, "sliding_window", None) is None and model.config.text_config.sliding_window == 5
    return model


def test_a_model_that_also_sees_has_its_windows() -> None:
    model = seeing()
    forward_path = select_forward_path(model, GROUPS, "logps")
    assert forward_path.fast and forward_path.layout == "shared"
    found = compute(model, lay_out(GROUPS), forward_path, "logps")
    assert torch.allclose(found, torch.cat(alone(model)), atol=1e-5)


SHORT = drawn([(1, (1, 2)), (2, (1,)), (2, (2, 2))])
"""No conversation is as long as the window of 5 that `gemma3` has in every other layer."""


@pytest.mark.parametrize("make_one", [seeing, lambda: make("gemma3"), lambda: make("mistral")])
def test_a_window_that_is_not_heeded_is_found_out_by_rows_within_it(
    make_one: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert select_forward_path(make_one(), SHORT, "logps").fast
    monkeypatch.setattr("rlaif.training.batches.visible", lambda batch, window=None: visible(batch))
    assert select_forward_path(make_one(), SHORT, "logps") == PLAIN


def test_a_window_that_no_config_tells_of_is_found_out_by_the_longest_row() -> None:
    """GPT-Neo keeps its windows in its layers, and they count columns: completions of a shared row lie too far off."""
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    torch.manual_seed(4)
    config = GPTNeoConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
        window_size=6, max_position_embeddings=256, initializer_range=0.3, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model: Any = GPTNeoForCausalLM(config).eval()
    assert select_forward_path(model, SHORT, "logps").layout == "shared"
    assert select_forward_path(model, [*SHORT, GROUPS[0]], "logps").layout == "apart"


def recurrent() -> Any:
    from transformers import AutoModelForCausalLM, MambaConfig

    torch.manual_seed(2)
    config = MambaConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4, initializer_range=0.3,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


def test_a_recurrent_model_does_not_share_prompts() -> None:
    """Its state runs through the row: a second completion would come after the first."""
    model = recurrent()
    forward_path = select_forward_path(model, GROUPS, "logps")
    assert forward_path.layout == "apart"
    agree(model, compute(model, lay_out(GROUPS, "apart"), forward_path, "logps"), torch.cat(alone(model)))


class Odd(nn.Linear):
    """A head that is not linear, whatever it inherits from."""

    def forward(self, states: Tensor) -> Tensor:
        return super().forward(states) + states.square().sum(-1, keepdim=True) * torch.arange(VOCABULARY) / 100


class Wrapped(nn.Module):
    """A head inside of another module."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, states: Tensor) -> Tensor:
        return self.inner(states)


def with_odd_head() -> Any:
    model = make("llama")
    odd = Odd(32, VOCABULARY, bias=False)
    odd.weight = model.lm_head.weight
    model.lm_head = odd
    return model


def with_wrapped_head() -> Any:
    model = make("llama")
    model.lm_head = Wrapped(model.lm_head)
    return model


def with_another_scale() -> Any:
    """A model whose forward pass does something to logits that no field of its config tells of."""
    from transformers import LlamaForCausalLM

    class Halving(LlamaForCausalLM):
        def forward(self, *given: Any, **more: Any) -> Any:
            found = super().forward(*given, **more)
            found.logits = found.logits * 0.5
            return found

    model = make("llama")
    model.__class__ = Halving
    return model


@pytest.mark.parametrize("odd", [with_odd_head, with_wrapped_head, with_another_scale])
def test_an_odd_model_takes_the_plain_way(odd: Callable[[], Any]) -> None:
    model = odd()
    assert select_forward_path(model, GROUPS, "logps") == PLAIN
    agree(model, compute(model, lay_out(GROUPS, "apart"), PLAIN, "logps"), torch.cat(alone(model)))


def test_a_wrapped_head_is_no_linear_layer() -> None:
    with pytest.raises(TypeError, match="the head of LlamaForCausalLM is a Wrapped"):
        head_of(with_wrapped_head())


def blind_to_branches(batch: Batch, window: int | None = None) -> Tensor:
    """Completions that see each other: the mask of a plain causal model over the whole row."""
    length = batch.input_ids.shape[1]
    return torch.ones(length, length).tril().bool().expand(len(batch.input_ids), 1, length, length)


def test_a_wrong_mask_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """With completions that see each other only rows of one completion are right; with no mask at all, none."""
    model = make("llama")
    monkeypatch.setattr("rlaif.training.batches.visible", blind_to_branches)
    assert select_forward_path(model, GROUPS, "logps").layout == "apart"
    monkeypatch.setattr(
        "rlaif.training.batches.visible", lambda batch, window=None: torch.ones_like(blind_to_branches(batch))
    )
    assert select_forward_path(model, GROUPS, "logps") == PLAIN


@pytest.mark.parametrize("kind", ["logps", "rewards"])
def test_a_model_that_refuses_masks_takes_the_plain_way(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama", "CausalLM" if kind == "logps" else "SequenceClassification")

    def refuse(*given: object) -> None:
        raise ValueError("no such mask")

    monkeypatch.setattr(forward, "masks", refuse)
    assert select_forward_path(model, GROUPS, kind) == PLAIN


def test_choosing_leaves_the_model_as_it_was() -> None:
    model = make("llama").train()
    select_forward_path(model, GROUPS, "logps")
    assert model.training and all(weight.grad is None for weight in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
def test_flex_attention(family: str) -> None:
    """Its kernels take rows of any length, and skip blocks that nobody sees.

    torch compiles them, and for a CPU it cannot compile those with a sliding window (2.13: `cur_qSplitSize9` was not
    declared).
    """
    if family != "llama" and not torch.cuda.is_available():
        pytest.skip("torch cannot compile FlexAttention with a sliding window for a CPU")
    model, other = make(family), make(family, attn_implementation="flex_attention")
    assert other.config._attn_implementation == "flex_attention"
    batch = lay_out(GROUPS)
    with torch.no_grad():
        found = compute(other, batch, ForwardPath("shared", fast=True), "logps")
        wanted = compute(model, batch, ForwardPath("shared", fast=True), "logps")
    assert torch.allclose(found, wanted, atol=1e-5), (found - wanted).abs().max()


def test_eager_attention_gives_the_same() -> None:
    model = make("mistral", attn_implementation="eager")
    assert model.config._attn_implementation == "eager"
    agree(model, compute(model, lay_out(GROUPS), ForwardPath("shared", fast=True), "logps"), torch.cat(alone(model)))


def test_answering_gives_the_call_another_meaning_and_its_own_back() -> None:
    model, batch = make("llama"), lay_out(GROUPS)
    before = model.forward.__func__
    with answering(model, ForwardPath("shared", fast=True), "logps"):
        assert torch.equal(model(batch), compute(model, batch, ForwardPath("shared", fast=True), "logps"))
        assert torch.allclose(torch.cat(alone_inside(model)), torch.cat(alone(make("llama"))))
    assert model.forward.__func__ is before and "forward" not in vars(model)


def alone_inside(model: Any) -> list[Tensor]:
    """The plain way within the block: the class's own forward pass."""
    with torch.no_grad():
        return [compute(model, lay_out(GROUPS, "apart"), PLAIN, "logps")]
