"""The networks of a training: policy, reference and value network, and everybody else who takes part.

A model that learns: passes over groups in parts that fit into memory, its optimizer, its state on disk.

The policy as it was at the start: what divergence is measured from.

Who takes part in an online training, made from its settings: policy, reference, value network, sampler, reward.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlaif.errors import ModelError, UserError
from rlaif.inference.model_folder import ADAPTER, load_tokenizer, read_json
from rlaif.inference.models import key_in
from rlaif.records import content_id
from rlaif.rl.config import OnlineSettings
from rlaif.rl.prompts import Cue, Prompts, PromptSampler
from rlaif.rl.responses import Reward, Sampler, TokenizedPrompt
from rlaif.rl.rewards import only_model, open_reward
from rlaif.rl.rollout import AheadSampler, LocalSampler
from rlaif.rl.vllm_rollout import ServedSampler
from rlaif.rl.weight_sync import Adapters, WholeWeights
from rlaif.store import draft_of
from rlaif.training.batches import Batch, lay_out, split
from rlaif.training.config import rate_of
from rlaif.training.examples import Group
from rlaif.training.forward import ForwardPath, Kind, compute, select_forward_path
from rlaif.training.loading import Start, find_start, load_frozen, load_policy, load_reward_model, weights_type
from rlaif.training.reward_model import ends_of
from rlaif.training.tokenize import pad_id
from rlaif.training.trainer import narrow

_WEIGHT, _OPTIMIZER = "weight/", "optimizer/"
_EPSILON = 1e-5
"""Of Adam. With 1e-8 the first steps, whose second moments are tiny, are larger (arXiv:2403.17031, detail 17)."""


class Computing(nn.Module):
    """A model whose call is `forward.compute`: what wraps it for several processes hooks into the whole call."""

    def __init__(self, model: Any, forward_path: ForwardPath, kind: Kind) -> None:
        super().__init__()
        self.model, self.forward_path, self.kind = model, forward_path, kind

    def forward(self, batch: Batch) -> Tensor:
        """[tokens]: log-probabilities, or values."""
        return compute(self.model, batch, self.forward_path, self.kind)


class Network:
    """A model with its optimizer, on its device, over one process or many."""

    def __init__(
        self, model: Any, forward_path: ForwardPath, kind: Kind, accelerator: Any, *, tokens: int, max_grad_norm: float
    ) -> None:
        """`tokens` is what fits into memory at once."""
        self.accelerator, self.tokens, self._norm = accelerator, tokens, max_grad_norm
        self.model, self.forward_path = model.to(accelerator.device), forward_path
        self._computing: Any = Computing(model, forward_path, kind)
        self.optimizer: Any = None
        self.rate = 0.0
        """The learning rate of the last optimizer step."""
        self._schedule: Any = None

    def prepare(self, rate: float, weight_decay: float, schedule: str, warmup: int, steps: int) -> None:
        """Make it trainable, for so many optimizer steps."""
        from transformers import get_scheduler

        trained = [each for each in self._computing.parameters() if each.requires_grad]
        # No decay of biases and norms, as transformers has it.
        groups = [
            {"params": [each for each in trained if each.ndim >= 2], "weight_decay": weight_decay},
            {"params": [each for each in trained if each.ndim < 2], "weight_decay": 0.0},
        ]
        made = torch.optim.AdamW([group for group in groups if group["params"]], lr=rate, eps=_EPSILON, fused=True)
        self._computing, self.optimizer = self.accelerator.prepare(self._computing, made)
        more = {"min_lr_rate": 0.1} if schedule == "cosine_with_min_lr" else None
        # Stepped by hand, once an optimizer step: accelerate's own would step once a process.
        self._schedule = get_scheduler(schedule, made, warmup, steps, scheduler_specific_kwargs=more)

    @torch.no_grad()
    def compute(self, groups: Sequence[Group]) -> Tensor:
        """[tokens], in the order of the groups and their completions, on the CPU; gradients off."""
        found: dict[int, Tensor] = {}
        with self._evaluating(), self.accelerator.autocast():
            for part in split(groups, self.tokens, self.forward_path.layout):
                some = [groups[at] for at in part]
                sizes = [sum(map(len, group.completions)) for group in some]
                found |= zip(part, torch.split(self._values(some).float().cpu(), sizes), strict=True)
        return torch.cat([found[at] for at in range(len(groups))]) if groups else torch.zeros(0)

    def learn(self, groups: Sequence[Group], loss: Callable[[Tensor, Sequence[int]], Tensor]) -> float:
        """One optimizer step; returns the length of the gradient before it was cut.

        `loss` gets what the model computes for some of the groups, [tokens] on its device, and which they are; what it
        returns is added up over the parts. A process without groups takes part all the same, with a loss of 0.
        """
        self._computing.train()
        parts = split(groups, self.tokens, self.forward_path.layout) if groups else []
        for at, part in enumerate(parts):
            with self._synchronised(last=at == len(parts) - 1):
                self.accelerator.backward(loss(self._values([groups[each] for each in part]), part))
        if not parts:
            nothing = Group("nothing", (0,), ((0,),))
            self.accelerator.backward(self._values([nothing]).sum() * 0.0)
        return self._step()

    def _step(self) -> float:
        trained = [each for group in self.optimizer.param_groups for each in group["params"]]
        most = self._norm if self._norm > 0 else float("inf")
        length = float(torch.nn.utils.clip_grad_norm_(trained, most))
        if not math.isfinite(length):
            hint = "start again with a lower `learning_rate`"
            raise ModelError(f"the gradient is {length}, and no step was taken with it: {hint}")
        self.rate = float(self._schedule.get_last_lr()[0])
        self.optimizer.step()
        self._schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return length

    def _values(self, groups: Sequence[Group]) -> Tensor:
        values: Tensor = self._computing(lay_out(groups, self.forward_path.layout).to(self.accelerator.device))
        return values

    def _synchronised(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Processes exchange gradients once a step, with its last part."""
        if last or self.accelerator.num_processes == 1:
            return contextlib.nullcontext()
        return self.accelerator.no_sync(self._computing)  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        was = self._computing.training
        self._computing.eval()
        try:
            yield
        finally:
            self._computing.train(was)

    def save(self, path: Path) -> None:
        """Keep what is trained and the optimizer's memory, as safetensors."""
        from safetensors.torch import save_file

        tensors = {f"{_WEIGHT}{name}": each.detach().cpu().contiguous() for name, each in self._trained()}
        for at, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"{_OPTIMIZER}{at}.{name}": torch.as_tensor(each).cpu() for name, each in state.items()}
        last = self._schedule.state_dict()
        with draft_of(path) as draft:
            save_file(tensors, draft, metadata={"steps": str(last["last_epoch"])})

    def restore(self, path: Path) -> None:
        """Go on from what was kept. Raises ModelError where it is of another model."""
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            steps = int(file.metadata()["steps"])
        with torch.no_grad():
            for name, each in self._trained():
                if found.get(f"{_WEIGHT}{name}", torch.empty(0)).shape != each.shape:
                    raise ModelError(f"{path} is of another model: it has no {name} of this shape")
                each.copy_(found[f"{_WEIGHT}{name}"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in found.items():
            if name.startswith(_OPTIMIZER):
                at, _, key = name.removeprefix(_OPTIMIZER).partition(".")
                state.setdefault(int(at), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self._schedule.last_epoch = steps
        self._schedule._step_count = steps + 1
        rates = [
            base * scale(steps) for base, scale in zip(self._schedule.base_lrs, self._schedule.lr_lambdas, strict=True)
        ]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._schedule._last_lr = rates

    def _trained(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, each) for name, each in self.model.named_parameters() if each.requires_grad)


class Reference:
    """Log-probabilities by the start: of a frozen copy, or of the policy itself with its adapter off."""

    def __init__(self, network: Network, adapted: Any | None) -> None:
        """`adapted` is the model whose adapter is switched off meanwhile; None for a copy."""
        self._network, self._adapted = network, adapted

    def compute(self, groups: Sequence[Group]) -> Tensor:
        """[tokens], in the order of the groups and their completions."""
        off = self._adapted.disable_adapter() if self._adapted is not None else contextlib.nullcontext()
        with off:
            return self._network.compute(groups)


_VALUE_RATE = 10
"""A value network learns at so many times the policy's rate: it starts without knowing anything."""


def policy_of(
    settings: OnlineSettings, asked: Sequence[TokenizedPrompt], accelerator: Any, note: Callable[[str], None]
) -> Network:
    """The policy, ready to learn."""
    model = load_policy(settings)
    network = _network(model, "logps", settings, asked, accelerator)
    if not network.forward_path.fast:
        note(f"{type(model).__name__} takes the plain way: its own forward pass, prompts not shared")
    _prepare(network, settings, rate_of(settings), settings.steps - settings.value.warmup)
    return network


def value_of(
    settings: OnlineSettings,
    asked: Sequence[TokenizedPrompt],
    accelerator: Any,
    tokenizer: Any,
    note: Callable[[str], None],
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
        raise UserError(what, where=start, hint="name a model with the policy's tokenizer in `value.model`")
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
    return Reference(
        Network(
            model, policy.forward_path, "logps", accelerator, tokens=settings.max_tokens_per_pass, max_grad_norm=0.0
        ),
        None,
    )


def sampler_of(
    settings: OnlineSettings, policy: Network, tokenizer: Any, start: Start, prompt_sampler: PromptSampler
) -> Sampler:
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
    return AheadSampler(served, prompt_sampler.of, settings.steps) if rollout.async_rollout else served


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
        tokens=settings.max_tokens_per_pass,
        render=Cue(tokenizer, settings.template_options).text,
        everyones=gather_object,
    )


def prompt_sampler_of(settings: OnlineSettings, prompts: Prompts) -> PromptSampler:
    """Which prompts each step gets."""
    return PromptSampler(prompts.train, settings.batch_size // settings.samples, settings.seed)


def _network(
    model: Any, kind: Kind, settings: OnlineSettings, asked: Sequence[TokenizedPrompt], accelerator: Any
) -> Network:
    model = model.to(accelerator.device)
    forward_path = select_forward_path(model, _probes(asked), kind, temperature=settings.rollout.temperature)
    return Network(
        model,
        forward_path,
        kind,
        accelerator,
        tokens=settings.max_tokens_per_pass,
        max_grad_norm=settings.max_grad_norm,
    )


def _probes(asked: Sequence[TokenizedPrompt]) -> list[Group]:
    """Prompts, with pieces of other prompts for answers: what the ways of computing are compared on."""
    few = sorted(asked, key=lambda each: len(each.ids))[:3]
    return [Group(each.id, each.ids, tuple(other.ids[:16] for other in few)) for each in few]


def _prepare(network: Network, settings: OnlineSettings, rate: float, steps: int) -> None:
    """For so many of the training's steps."""
    updates = steps * settings.epochs * settings.minibatches
    network.prepare(rate, settings.weight_decay, settings.schedule, round(settings.warmup * updates), updates)
