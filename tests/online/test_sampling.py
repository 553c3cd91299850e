"""Answers drawn in process: the same as the model's own, whatever the batch, the family and the cache."""

from __future__ import annotations

import gc
import math
import weakref
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from transformers.cache_utils import DynamicLayer

from rlaif.errors import ModelError, UserError
from rlaif.rl.experience import Response, TokenizedPrompt
from rlaif.rl.rollout import LocalSampler, draw, noise
from tests.training.families import make
from tests.training.small import letters

FAMILIES = ["llama", "qwen3", "qwen3-sliding", "gemma2", "gemma3", "mistral", "gpt2", "cohere"]
END = 2
NO_ENDS: frozenset[int] = frozenset()
LENGTHS = [3, 11, 1, 7, 12, 7]


def prompts(lengths: list[int] = LENGTHS, vocabulary: int = 120) -> list[TokenizedPrompt]:
    """Prompts of different lengths; those of tokens that some model does not know are of no use."""
    drawn = torch.Generator().manual_seed(1)
    ids = [torch.randint(3, vocabulary, (length,), generator=drawn).tolist() for length in lengths]
    return [TokenizedPrompt(f"p{at}", (), each) for at, each in enumerate(ids)]


def sampler(model: Any, **options: Any) -> LocalSampler:
    return LocalSampler(model, letters(), **{"max_tokens": 9, "ends": NO_ENDS, **options})


def logps_of(model: Any, response: Response, temperature: float = 1.0) -> list[float]:
    """By one pass over the prompt and the answer, without cache and padding."""
    whole = [*response.prompt.ids, *response.ids]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([whole]), use_cache=False).logits[0, len(response.prompt.ids) - 1 : -1]
    chances = (logits.double() / temperature).log_softmax(-1)
    return [float(chances[at, token]) for at, token in enumerate(response.ids)]


def ids(responses: list[Response]) -> list[list[int]]:
    return [list(response.ids) for response in responses]


def values(responses: list[Response]) -> list[float]:
    return [value for response in responses for value in response.logps]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_are_those_of_generate(family: str) -> None:
    model = make(family)
    asked = prompts()
    found = sampler(model, top_p=1e-9, ends=frozenset({END, 40, 41, 42})).sample(asked, 1, 0)
    for one, response in zip(asked, found, strict=True):
        said = model.generate(
            input_ids=torch.tensor([one.ids]),
            attention_mask=torch.ones(1, len(one.ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=9,
            eos_token_id=[END, 40, 41, 42],
        )
        assert response.ids == said[0, len(one.ids) :].tolist()
    assert values(found) == pytest.approx([value for one in found for value in logps_of(model, one)], abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_logps_are_those_of_a_plain_pass(family: str) -> None:
    """Prompts and answers longer and shorter than the windows of four and five tokens; a cache that has to grow."""
    model = make(family)
    found = sampler(model, temperature=0.7, max_tokens=40, rows=12).sample(prompts(), 3, 0)
    assert [len(each.ids) for each in found] == [40] * 18
    wanted = [value for each in found for value in logps_of(model, each, 0.7)]
    assert values(found) == pytest.approx(wanted, abs=1e-4)
    assert min(wanted) < -4 < max(wanted)  # neither uniform nor certain


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_is_the_same_alone_and_in_a_batch(family: str) -> None:
    """With ends that one token in ten is, rows leave the batch at all times."""
    model = make(family)
    options: dict[str, Any] = {"max_tokens": 16, "temperature": 2.0, "ends": frozenset(range(0, 120, 10))}
    asked = prompts([5, 2, 9, 1, 30, 5])
    together = sampler(model, **options).sample(asked, 4, 0)
    alone = [each for one in asked[2:] for each in sampler(model, rows=1, **options).sample([one], 2, 0)]
    assert_same([each for each in together[8:] if each.index < 2], alone)
    assert_same(together, sampler(model, rows=6, **options).sample(asked, 4, 0))
    assert_same(together, sampler(model, batch_tokens=100, **options).sample(asked, 4, 0))
    assert len({len(each.ids) for each in together}) > 4
    assert {each.finished for each in together} == {True, False}


def assert_same(some: list[Response], others: list[Response]) -> None:
    """All but one at most: once in a million tokens, rounding moves the edge between two past the number drawn."""
    pairs = [pair for pair in zip(some, others, strict=True) if pair[0].ids == pair[1].ids]
    assert len(pairs) >= len(some) - 1
    assert values([one for one, _ in pairs]) == pytest.approx(values([other for _, other in pairs]), abs=1e-4)


def test_no_cache_outlives_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the help of the garbage collector, which comes by when it likes."""
    made: list[Any] = []
    plain = DynamicLayer.lazy_initialization

    def initialized(self: Any, *given: Any, **named: Any) -> None:
        made.append(weakref.ref(self))
        plain(self, *given, **named)

    monkeypatch.setattr(DynamicLayer, "lazy_initialization", initialized)
    gc.collect()
    gc.disable()
    try:
        sampler(make("llama"), rows=6).sample(prompts(), 3, 0)
        alive = [layer for layer in made if layer() is not None]
    finally:
        gc.enable()
    assert made and not alive


def test_answers_come_in_the_order_of_the_prompts() -> None:
    asked = prompts()
    found = sampler(make("llama"), rows=4).sample(asked, 5, 0)
    assert [(each.prompt.id, each.index) for each in found] == [(one.id, at) for one in asked for at in range(5)]
    assert sampler(make("llama")).sample([], 5, 0) == []


def test_first_tokens_are_as_frequent_as_they_are_probable() -> None:
    """Chi-square with at most 11 degrees of freedom: above 31.26 once in a thousand times."""
    model = make("llama", vocab_size=12)
    (one,) = prompts([6], vocabulary=12)
    found = sampler(model, max_tokens=2, rows=1000).sample([one], 4000, 0)
    firsts = Counter(response.ids[0] for response in found)
    assert surprise(firsts, chances_after(model, one.ids)) < 31.26
    ((token, often),) = firsts.most_common(1)
    seconds = Counter(response.ids[1] for response in found if response.ids[0] == token)
    assert seconds.total() == often > 500
    assert surprise(seconds, chances_after(model, [*one.ids, token])) < 31.26
    assert surprise(seconds, chances_after(model, one.ids)) > 100  # the measure tells two distributions apart


def test_the_temperature_is_that_of_the_draw() -> None:
    model = make("llama", vocab_size=12)
    (one,) = prompts([6], vocabulary=12)
    found = sampler(model, max_tokens=1, temperature=0.4, rows=1000).sample([one], 4000, 0)
    firsts = Counter(response.ids[0] for response in found)
    assert surprise(firsts, chances_after(model, one.ids, 0.4)) < 31.26
    assert surprise(firsts, chances_after(model, one.ids)) > 100


def chances_after(model: Any, tokens: Any, temperature: float = 1.0) -> list[float]:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([list(tokens)])).logits[0, -1]
    chances: list[float] = (logits.double() / temperature).softmax(-1).tolist()
    return chances


def surprise(counts: Counter[int], chances: list[float]) -> float:
    """Pearson's chi-square; what is expected less than five times is one cell."""
    total = counts.total()
    likely = [token for token, chance in enumerate(chances) if chance * total >= 5]
    cells = [(counts[token], chances[token] * total) for token in likely]
    seen, expected = (sum(each) for each in zip(*cells, strict=True))
    cells += [(total - seen, total - expected)] if total - expected > 1 else []
    return sum((count - due) ** 2 / due for count, due in cells)


def test_top_p_bounds_the_draw_and_not_what_is_reported() -> None:
    model = make("llama", vocab_size=12)
    (one,) = prompts([6], vocabulary=12)
    chances = chances_after(model, one.ids)
    ordered = sorted(range(12), key=lambda token: -chances[token])
    held = next(most for most in range(1, 13) if sum(chances[token] for token in ordered[:most]) >= 0.8)
    found = sampler(model, max_tokens=1, top_p=0.8, rows=500).sample([one], 500, 0)
    assert {response.ids[0] for response in found} == set(ordered[:held]) != set(range(12))
    assert values(found) == pytest.approx([math.log(chances[response.ids[0]]) for response in found], abs=1e-4)


def test_noise_belongs_to_its_row_and_its_token() -> None:
    one = noise(3, 4, "p", 5, 100)
    assert np.array_equal(one[:7], noise(3, 4, "p", 5, 7))
    others = [noise(0, 4, "p", 5, 100), noise(3, 5, "p", 5, 100), noise(3, 4, "q", 5, 100), noise(3, 4, "p", 4, 100)]
    assert all(not np.isin(other, one).any() for other in others)
    many = noise(0, 0, "\ud800", 0, 100_000)  # a lone surrogate, as JSON can hold it
    assert 0 < many.min() < 1e-4 < 1 - 1e-4 < many.max() < 1
    # The mean of 100,000 uniform numbers has a standard error of 1 / sqrt(12 * 100,000) = 0.0009.
    assert many.mean() == pytest.approx(0.5, abs=0.004)
    assert np.corrcoef(many[1:], many[:-1])[0, 1] == pytest.approx(0, abs=0.015)


def test_a_draw_by_hand() -> None:
    """Chances 0, 1/2, 1/4, 1/4, 0 heap up to 0, .5, .75, 1, 1; a token without a chance is never drawn."""
    logits = torch.tensor([0.0, 0.5, 0.25, 0.25, 0.0]).log().repeat(6, 1)
    uniforms = torch.tensor([2.0**-49, 0.49, 0.51, 0.74, 0.76, 1 - 2.0**-49], dtype=torch.float64)
    tokens, logps = draw(logits, uniforms, temperature=1.0)
    assert tokens.tolist() == [1, 1, 2, 2, 3, 3]
    assert logps.tolist() == pytest.approx([math.log(0.5)] * 2 + [math.log(0.25)] * 4)
    # At half the temperature chances are squared: 1/4, 1/16, 1/16 of 3/8 heap up to 2/3, 5/6, 1.
    tokens, logps = draw(logits, torch.tensor([0.66, 0.67, 0.83, 0.84, 0.1, 0.1]).double(), temperature=0.5)
    assert tokens.tolist() == [1, 2, 2, 3, 1, 1]
    assert logps.tolist()[:2] == pytest.approx([math.log(2 / 3), math.log(1 / 6)])
    tokens, logps = draw(logits, uniforms, temperature=1.0, top_p=1e-9)
    assert tokens.tolist() == [1] * 6 and logps.tolist() == pytest.approx([math.log(0.5)] * 6)


def test_calls_repeat_and_steps_seeds_and_answers_differ() -> None:
    model = make("qwen3")
    first = ids(sampler(model).sample(prompts(), 3, 0))
    assert ids(sampler(model).sample(prompts(), 3, 0)) == first
    assert len({tuple(each) for each in first}) == len(first)
    assert ids(sampler(model).sample(prompts(), 5, 0))[:3] == first[:3]  # more answers change none
    for other in (ids(sampler(model).sample(prompts(), 3, 1)), ids(sampler(model, seed=1).sample(prompts(), 3, 0))):
        assert not {tuple(each) for each in other} & {tuple(each) for each in first}


def test_a_training_is_left_as_it_was() -> None:
    """Dropout is off while answers are drawn, and nothing of it shows afterwards: modes, noise, what a call means."""
    model = make("gpt2", resid_pdrop=0.5, embd_pdrop=0.5)
    wanted = sampler(model).sample(prompts(), 2, 0)
    model.train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    model.forward = refuse
    noise_before = torch.get_rng_state()
    found = sampler(model).sample(prompts(), 2, 0)
    assert (ids(found), values(found)) == (ids(wanted), values(wanted))
    assert [module.training for module in model.modules()] == modes
    assert model.forward is refuse
    assert torch.equal(torch.get_rng_state(), noise_before)
    del model.forward
    assert model(input_ids=torch.tensor([[5]])).logits.requires_grad


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("a trainer's own meaning of the call")


def test_an_adapter_answers_too() -> None:
    from peft import LoraConfig, get_peft_model

    base = make("qwen3")
    without = sampler(base).sample(prompts(), 2, 0)
    tuned: Any = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    found = sampler(tuned.train()).sample(prompts(), 2, 0)
    tuned.eval()
    assert values(found) == pytest.approx([value for each in found for value in logps_of(tuned, each)], abs=1e-4)
    assert ids(found) != ids(without)


def test_bf16_computes_in_bf16() -> None:
    """Off by more than rounding in float32, by less than what three digits of every number amount to."""
    model = make("llama")
    found = sampler(model, bf16=True).sample(prompts(), 4, 0)
    wanted = [value for each in found for value in logps_of(model, each)]
    apart = [abs(one - other) for one, other in zip(values(found), wanted, strict=True)]
    assert 1e-3 < sum(apart) / len(apart) < 0.05
    with torch.autocast("cpu", torch.bfloat16):
        again = sampler(model, bf16=True).sample(prompts(), 4, 0)
        loss = model(input_ids=torch.tensor([[5, 6]])).logits.float().sum()
    loss.backward()
    assert values(again) == values(found)
    weights = model.model.layers[0].mlp.up_proj.weight
    assert weights.grad is not None and bool(weights.grad.abs().sum() > 0)  # no cast weights are left over


def test_an_end_ends_an_answer_and_stays_in_it() -> None:
    model, asked = make("llama"), prompts()
    free = sampler(model, max_tokens=6).sample(asked, 2, 0)
    end = free[3].ids[2]
    found = sampler(model, max_tokens=6, ends=frozenset({end})).sample(asked, 2, 0)
    for before, after in zip(free, found, strict=True):
        assert after.finished == (end in before.ids)
        assert after.ids == before.ids[: before.ids.index(end) + 1 if end in before.ids else 6]
        assert after.logps == pytest.approx(before.logps[: len(after.ids)], abs=1e-4)
    assert found[3].finished
    assert not all(each.finished for each in found)


def test_the_text_is_without_the_end() -> None:
    """`a` is 0, `b` 1, `c` 2, `d` 3, `bc` 4, <s> 5, </s> 6: a model that says what follows by itself."""
    model = make("llama", vocab_size=7)
    (one,) = prompts([3], vocabulary=7)
    for end in (6, 1):  # a special token, and one that is not
        names = [["a"], ["b"], ["c"], ["d"], ["bc"], [], []]
        found = sampler(model, ends=frozenset({end}), max_tokens=4).sample([one], 30, 0)
        for each in found:
            said = each.ids[:-1] if each.finished else each.ids
            assert each.text.split() == [name for token in said for name in names[token]]
        assert {each.finished for each in found} == {True, False}
        assert all(each.ids.count(end) == each.finished for each in found)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_context_bounds_prompt_and_answer(family: str) -> None:
    """gpt2 knows no position beyond its last: a finished row that stays in its batch must not ask for one."""
    model = make(family, n_positions=32) if family == "gpt2" else make(family, max_position_embeddings=32)
    asked = prompts([31, 30, *[4] * 10])
    found = sampler(model, max_tokens=20).sample(asked, 1, 0)
    assert [len(each.ids) for each in found] == [1, 2] + [20] * 10
    assert not any(each.finished for each in found)
    assert values(found) == pytest.approx([value for each in found for value in logps_of(model, each)], abs=1e-4)
    with pytest.raises(UserError, match="prompt p1: 32 tokens leave no room for an answer in a context of 32"):
        sampler(model).sample(prompts([4, 32]), 1, 0)


def test_weights_that_are_not_numbers_are_told() -> None:
    model = make("llama")
    with torch.no_grad():
        model.lm_head.weight[7] = float("nan")
    with pytest.raises(ModelError, match="gives no probabilities after prompt p"):
        sampler(model).sample(prompts(), 1, 0)


@pytest.mark.parametrize("family", ["qwen3-sliding", "gpt2"])
def test_a_cache_that_cannot_be_moved_fills_row_by_row(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.cache_utils import Cache

    model, ends = make(family), frozenset(range(0, 120, 30))
    wanted = sampler(model, ends=ends, max_tokens=20).sample(prompts(), 3, 0)
    monkeypatch.setattr(Cache, "reorder_cache", refuse_to_move)
    assert_same(sampler(model, ends=ends, max_tokens=20).sample(prompts(), 3, 0), wanted)


def refuse_to_move(*_: Any) -> None:
    raise NotImplementedError


def test_a_model_without_such_a_cache_is_refused() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, state_size=2))
    with pytest.raises(UserError, match="MambaForCausalLM keeps no cache of keys and values"):
        sampler(model)


def test_the_version_is_noted() -> None:
    drawing = sampler(make("llama"), max_tokens=1)
    assert drawing.sample(prompts([2]), 1, 0)[0].version == 0
    drawing.update(7)
    assert drawing.sample(prompts([2]), 1, 0)[0].version == 7
    drawing.close()
