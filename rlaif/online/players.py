"""Who takes part in an online training, made from its settings: policy, reference, value network, sampler, reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from rlaif.errors import UserError
from rlaif.inference.files import ADAPTER, read_json
from rlaif.inference.folder import load_tokenizer
from rlaif.inference.source import key_in
from rlaif.online.adapters import Adapters
from rlaif.online.ahead import AheadSampler
from rlaif.online.network import Network
from rlaif.online.prompts import Cue, Dealer, Prompts
from rlaif.online.reference import Reference
from rlaif.online.responses import Asked, Reward, Sampler
from rlaif.online.rewards.choose import only_model, open_reward
from rlaif.online.sampling import LocalSampler
from rlaif.online.serving import ServedSampler
from rlaif.online.settings import OnlineSettings
from rlaif.online.weights import WholeWeights
from rlaif.records import content_id
from rlaif.training.arguments import narrow
from rlaif.training.defaults import rate_of
from rlaif.training.forward import Kind, choose_way
from rlaif.training.groups import Group
from rlaif.training.loading import load_frozen, load_policy, load_reward_model, weights_type
from rlaif.training.rewardmodel import ends_of
from rlaif.training.starts import Start, find_start
from rlaif.training.tokens import pad_id

_VALUE_RATE = 10
"""A value network learns at so many times the policy's rate: it starts without knowing anything."""


def policy_of(
    settings: OnlineSettings, asked: Sequence[Asked], accelerator: Any, note: Callable[[str], None]
) -> Network:
    """The policy, ready to learn."""
    model = load_policy(settings)
    network = _network(model, "logps", settings, asked, accelerator)
    if not network.way.fast:
        note(f"{type(model).__name__} takes the plain way: its own forward pass, prompts not shared")
    _prepare(network, settings, rate_of(settings), settings.steps - settings.value.warmup)
    return network


def value_of(
    settings: OnlineSettings, asked: Sequence[Asked], accelerator: Any, tokenizer: Any, note: Callable[[str], None]
) -> Network:
    """The value network. Its head, where the model that it starts from has none, starts at 0: nothing is expected.

    Raises UserError where `value.model` has other tokens than the policy.
    """
    start = _value_start(settings, tokenizer, note)
    model = load_reward_model(settings.model_copy(update={"model": start}), pad_id(tokenizer))
    if not _has_head(find_start(start)):
        with torch.no_grad():
            for name, each in model.named_parameters():
                if "score." in name:
                    each.zero_()
    network = _network(model, "values", settings, asked, accelerator)
    _prepare(network, settings, settings.value.learning_rate or _VALUE_RATE * rate_of(settings), settings.steps)
    return network


def _value_start(settings: OnlineSettings, tokenizer: Any, note: Callable[[str], None]) -> str:
    """The model that the value network starts from: it reads the policy's token ids."""
    start = settings.value.model or only_model(settings.reward)
    if start is None or _reads(start, settings.model, tokenizer):
        return start or settings.model
    if settings.value.model is not None:
        what = "has other tokens than the policy, whose ids a value network reads"
        raise UserError(what, where=start, mend="name a model with the policy's tokenizer in `value.model`")
    note(f"the value network starts from the policy: {start} has other tokens")
    return settings.model


def _reads(model: str, policy: str, tokenizer: Any) -> bool:
    """Whether no token of the policy is another one to a model, and each has an embedding there."""
    start = find_start(model)
    there = {number: token for token, number in load_tokenizer(start.tokenizer).get_vocab().items()}
    if any(there.get(number, token) != token for token, number in tokenizer.get_vocab().items()):
        return False
    return _rows(start) >= _rows(find_start(policy))


def _rows(start: Start) -> int:
    """Embeddings that a model has: there may be more of them than tokens that its tokenizer knows."""
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(start.weights, trust_remote_code=False).get_text_config().vocab_size)


def _has_head(start: Start) -> bool:
    folder = start.adapter or start.weights
    if start.adapter is not None:
        return bool(read_json(folder / ADAPTER).get("task_type") == "SEQ_CLS")
    config = read_json(folder / "config.json")
    return any(name.endswith("ForSequenceClassification") for name in config.get("architectures") or ())


def reference_of(settings: OnlineSettings, policy: Network, accelerator: Any) -> Reference:
    """The start: the policy with its adapter off, or a frozen copy of what it was loaded from.

    The copy has the policy's type and is computed as it is: what rounding takes the two apart by would count as
    divergence in every token's reward, and in a deep model is more than that of some updates. In bfloat16 it would be
    half as large, an eighth of what the policy takes with its optimizer.
    """
    if settings.lora.rank is not None:
        return Reference(policy, policy.model)
    model = load_frozen(settings, weights_type(settings))
    return Reference(Network(model, policy.way, "logps", accelerator, tokens=settings.tokens, max_grad_norm=0.0), None)


def sampler_of(settings: OnlineSettings, policy: Network, tokenizer: Any, start: Start, dealer: Dealer) -> Sampler:
    """Where answers are drawn: in this process, or on a server."""
    rollout = settings.rollout
    ends = ends_of(start.weights) | {tokenizer.eos_token_id}
    if rollout.base_url is None:
        return LocalSampler(
            policy.model, tokenizer, max_tokens=rollout.max_tokens, ends=frozenset(ends),
            temperature=rollout.temperature, top_p=rollout.top_p, seed=settings.seed, bf16=narrow(settings),
        )  # fmt: skip
    kind = WholeWeights if settings.lora.rank is None else Adapters
    carrier = kind(policy.model.save_pretrained, _shared(settings), rollout.served_model, own=_own(settings))
    served = ServedSampler(
        rollout.base_url, carrier, tokenizer=tokenizer, max_tokens=rollout.max_tokens, ends=frozenset(ends),
        temperature=rollout.temperature, top_p=rollout.top_p, seed=settings.seed, concurrency=rollout.concurrency,
        timeout=rollout.timeout, api_key=key_in(rollout.api_key_env),
    )  # fmt: skip
    return AheadSampler(served, dealer.of, settings.steps) if rollout.ahead else served


def _shared(settings: OnlineSettings) -> Path:
    """Where the server finds the weights."""
    given = settings.rollout.weights
    return (Path(given).expanduser() if given else settings.folder / "shared").resolve()


def _own(settings: OnlineSettings) -> str:
    """What this training's folder is called there: another one than that of any other output."""
    return content_id(str(settings.folder.resolve()))[:16]


def reward_of(settings: OnlineSettings, tokenizer: Any, note: Callable[[str], None]) -> Reward:
    """Who scores the answers."""
    from accelerate.utils import gather_object

    return open_reward(
        settings.reward,
        normalise=settings.normalise,
        judge=settings.judge,
        constitution=settings.constitution,
        principles=settings.principles,
        log=settings.folder / "judge.log",
        say=note,
        device=settings.device,
        tokens=settings.tokens,
        render=Cue(tokenizer).text,
        everyones=gather_object,
    )


def dealer_of(settings: OnlineSettings, prompts: Prompts) -> Dealer:
    """Which prompts each step gets."""
    return Dealer(prompts.train, settings.batch_size // settings.samples, settings.seed)


def _network(model: Any, kind: Kind, settings: OnlineSettings, asked: Sequence[Asked], accelerator: Any) -> Network:
    model = model.to(accelerator.device)
    way = choose_way(model, _probes(asked), kind, temperature=settings.rollout.temperature)
    return Network(model, way, kind, accelerator, tokens=settings.tokens, max_grad_norm=settings.max_grad_norm)


def _probes(asked: Sequence[Asked]) -> list[Group]:
    """Prompts, with pieces of other prompts for answers: what the ways of computing are compared on."""
    few = sorted(asked, key=lambda each: len(each.ids))[:3]
    return [Group(each.id, each.ids, tuple(other.ids[:16] for other in few)) for each in few]


def _prepare(network: Network, settings: OnlineSettings, rate: float, steps: int) -> None:
    """For so many of the training's steps."""
    updates = steps * settings.epochs * settings.minibatches
    network.prepare(rate, settings.weight_decay, settings.schedule, round(settings.warmup * updates), updates)
