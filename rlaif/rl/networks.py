"""Networks of an online training: policy, reference and value network, and the sampler and reward beside them.

A `Network` is a model with its optimizer: it computes over groups in parts that fit into memory, learns, and saves its
state. The functions `policy_of`, `value_of`, `reference_of`, `sampler_of` and `reward_of` build the parts of a training
from its settings.
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
from rlaif.rl.experience import Cue, Prompts, PromptSampler, Reward, Sampler, TokenizedPrompt
from rlaif.rl.rewards import only_model, open_reward
from rlaif.rl.rollout import AheadSampler, LocalSampler
from rlaif.rl.vllm_rollout import ServedSampler
from rlaif.rl.weight_sync import Adapters, WholeWeights
from rlaif.store import draft_of
from rlaif.training.batches import Batch, lay_out, split
from rlaif.training.config import rate_of
from rlaif.training.forward import ForwardPath, Kind, compute, select_forward_path
from rlaif.training.loading import Start, find_start, load_frozen, load_policy, load_reward_model, weights_type
from rlaif.training.tokenize import Group, ends_of, pad_id
from rlaif.training.trainer import narrow

_WEIGHT, _OPTIMIZER = "weight/", "optimizer/"
_VALUE_RATE = 10
"""The value network's learning rate, as a multiple of the policy's: it starts without any knowledge."""
_EPSILON = 1e-5
"""Of Adam. With 1e-8 the first steps, whose second moments are tiny, are larger (arXiv:2403.17031, detail 17)."""


class _Forward(nn.Module):
    """A model whose call is `forward.compute`: the wrapper for several processes hooks into the whole call."""

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
        """`tokens` bounds a forward pass, so that it fits into memory."""
        self.accelerator, self.tokens, self._max_grad_norm = accelerator, tokens, max_grad_norm
        self.model, self.forward_path = model.to(accelerator.device), forward_path
        self._forward: Any = _Forward(model, forward_path, kind)
        self.optimizer: Any = None
        self.rate = 0.0
        """The learning rate of the last optimizer step."""
        self._schedule: Any = None

    def prepare(self, rate: float, weight_decay: float, schedule: str, warmup: int, steps: int) -> None:
        """Create the optimizer and its schedule, for so many optimizer steps."""
        from transformers import get_scheduler

        trained = [parameter for parameter in self._forward.parameters() if parameter.requires_grad]
        # No decay of biases and norms, as in transformers.
        groups = [
            {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": weight_decay},
            {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=rate, eps=_EPSILON, fused=True)
        self._forward, self.optimizer = self.accelerator.prepare(self._forward, optimizer)
        options = {"min_lr_rate": 0.1} if schedule == "cosine_with_min_lr" else None
        # Stepped by hand, once an optimizer step: accelerate's own would step once a process.
        self._schedule = get_scheduler(schedule, optimizer, warmup, steps, scheduler_specific_kwargs=options)

    @torch.no_grad()
    def compute(self, groups: Sequence[Group]) -> Tensor:
        """[tokens], in the order of the groups and their completions, on the CPU; gradients off."""
        values: dict[int, Tensor] = {}
        training = self._forward.training
        self._forward.eval()
        try:
            with self.accelerator.autocast():
                for part in split(groups, self.tokens, self.forward_path.layout):
                    part_groups = [groups[at] for at in part]
                    sizes = [sum(map(len, group.completions)) for group in part_groups]
                    values |= zip(part, torch.split(self._values(part_groups).float().cpu(), sizes), strict=True)
        finally:
            self._forward.train(training)
        return torch.cat([values[at] for at in range(len(groups))]) if groups else torch.zeros(0)

    def learn(self, groups: Sequence[Group], loss: Callable[[Tensor, Sequence[int]], Tensor]) -> float:
        """One optimizer step; returns the gradient norm before clipping.

        `loss` gets the model's outputs for some of the groups, [tokens] on its device, and the indices of these groups;
        losses of the parts add up. A process without groups takes part all the same, with a loss of 0.
        """
        self._forward.train()
        parts = split(groups, self.tokens, self.forward_path.layout) if groups else []
        for at, part in enumerate(parts):
            # Processes exchange gradients once a step, with its last part.
            last = at == len(parts) - 1 or self.accelerator.num_processes == 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self._forward):
                self.accelerator.backward(loss(self._values([groups[index] for index in part]), part))
        if not parts:
            placeholder = Group("nothing", (0,), ((0,),))
            self.accelerator.backward(self._values([placeholder]).sum() * 0.0)
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        max_norm = self._max_grad_norm if self._max_grad_norm > 0 else float("inf")
        norm = float(torch.nn.utils.clip_grad_norm_(trained, max_norm))
        if not math.isfinite(norm):
            hint = "start again with a lower `learning_rate`"
            raise ModelError(f"the gradient is {norm}, and no step was taken with it: {hint}")
        self.rate = float(self._schedule.get_last_lr()[0])
        self.optimizer.step()
        self._schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _values(self, groups: Sequence[Group]) -> Tensor:
        values: Tensor = self._forward(lay_out(groups, self.forward_path.layout).to(self.accelerator.device))
        return values

    def save(self, path: Path) -> None:
        """Save trained weights and optimizer state as safetensors."""
        from safetensors.torch import save_file

        tensors = {f"{_WEIGHT}{name}": weight.detach().cpu().contiguous() for name, weight in self._trained()}
        for at, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"{_OPTIMIZER}{at}.{name}": torch.as_tensor(value).cpu() for name, value in state.items()}
        steps = self._schedule.state_dict()["last_epoch"]
        with draft_of(path) as draft:
            save_file(tensors, draft, metadata={"steps": str(steps)})

    def restore(self, path: Path) -> None:
        """Restore what `save` wrote. Raises ModelError where it is of another model."""
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            steps = int(file.metadata()["steps"])
        with torch.no_grad():
            for name, weight in self._trained():
                if tensors.get(f"{_WEIGHT}{name}", torch.empty(0)).shape != weight.shape:
                    raise ModelError(f"{path} is of another model: it has no {name} of this shape")
                weight.copy_(tensors[f"{_WEIGHT}{name}"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
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
        return ((name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad)


class Reference:
    """The policy as it was at the start, which divergence is measured from.

    It is a frozen copy, or the policy itself with its adapter off.
    """

    def __init__(self, network: Network, adapted: Any | None) -> None:
        """`adapted` is the model whose adapter is switched off in `compute`; None for a copy."""
        self._network, self._adapted = network, adapted

    def compute(self, groups: Sequence[Group]) -> Tensor:
        """[tokens], in the order of the groups and their completions."""
        off = self._adapted.disable_adapter() if self._adapted is not None else contextlib.nullcontext()
        with off:
            return self._network.compute(groups)


def policy_of(
    settings: OnlineSettings, prompts: Sequence[TokenizedPrompt], accelerator: Any, note: Callable[[str], None]
) -> Network:
    """The policy, ready to learn."""
    model = load_policy(settings)
    network = _network(model, "logps", settings, prompts, accelerator)
    if not network.forward_path.fast:
        note(f"{type(model).__name__} takes the plain way: its own forward pass, prompts not shared")
    _prepare(network, settings, rate_of(settings), settings.steps - settings.value.warmup)
    return network


def value_of(
    settings: OnlineSettings,
    prompts: Sequence[TokenizedPrompt],
    accelerator: Any,
    tokenizer: Any,
    note: Callable[[str], None],
) -> Network:
    """The value network. Its head, where the model that it starts from has none, starts at 0, and so do its values.

    It reads the policy's token ids. It starts from `value.model`, from the reward if that is a reward model with the
    policy's tokens, or else from the policy. Raises UserError where `value.model` has other tokens than the policy.
    """
    name = settings.value.model or only_model(settings.reward) or settings.model
    if name != settings.model and not _has_tokens_of(name, settings.model, tokenizer):
        if settings.value.model is not None:
            what = "has other tokens than the policy, whose ids a value network reads"
            raise UserError(what, where=name, hint="name a model with the policy's tokenizer in `value.model`")
        note(f"the value network starts from the policy: {name} has other tokens")
        name = settings.model
    model = load_reward_model(settings.model_copy(update={"model": name}), pad_id(tokenizer))
    if not _has_head(find_start(name)):
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if "score." in parameter_name:
                    parameter.zero_()
    network = _network(model, "values", settings, prompts, accelerator)
    _prepare(network, settings, settings.value.learning_rate or _VALUE_RATE * rate_of(settings), settings.steps)
    return network


def _has_tokens_of(model: str, policy: str, tokenizer: Any) -> bool:
    """Whether every token of the policy has the same id in a model, and an embedding there."""
    start = find_start(model)
    tokens = {number: token for token, number in load_tokenizer(start.tokenizer).get_vocab().items()}
    if any(tokens.get(number, token) != token for token, number in tokenizer.get_vocab().items()):
        return False
    return _embeddings(start) >= _embeddings(find_start(policy))


def _embeddings(start: Start) -> int:
    """The number of a model's embeddings: there may be more of them than tokens of its tokenizer."""
    from transformers import AutoConfig

    return int(AutoConfig.from_pretrained(start.weights, trust_remote_code=False).get_text_config().vocab_size)


def _has_head(start: Start) -> bool:
    """Whether a model is a reward model, with a trained head."""
    folder = start.adapter or start.weights
    if start.adapter is not None:
        return bool(read_json(folder / ADAPTER).get("task_type") == "SEQ_CLS")
    config = read_json(folder / "config.json")
    return any(name.endswith("ForSequenceClassification") for name in config.get("architectures") or ())


def reference_of(settings: OnlineSettings, policy: Network, accelerator: Any) -> Reference:
    """The start: the policy with its adapter off, or a frozen copy of what it was loaded from.

    The copy has the policy's type and the same forward path: a difference by rounding would count as divergence in
    every token's reward, and in a deep model it exceeds the divergence of some updates. In bfloat16 the copy would take
    half the memory, an eighth of the policy with its optimizer.
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
    """The sampler: in this process, or on a server."""
    rollout = settings.rollout
    ends = ends_of(start.weights) | {tokenizer.eos_token_id}
    if rollout.base_url is None:
        return LocalSampler(
            policy.model, tokenizer, max_tokens=rollout.max_tokens, ends=frozenset(ends),
            temperature=rollout.temperature, top_p=rollout.top_p, seed=settings.seed, bf16=narrow(settings),
        )  # fmt: skip
    folder = (Path(rollout.weights).expanduser() if rollout.weights else settings.folder / "shared").resolve()
    kind = WholeWeights if settings.lora.rank is None else Adapters
    carrier = kind(
        policy.model.save_pretrained, folder, rollout.served_model, folder_name=weights_folder_name(settings)
    )
    served = ServedSampler(
        rollout.base_url, carrier, tokenizer=tokenizer, max_tokens=rollout.max_tokens, ends=frozenset(ends),
        temperature=rollout.temperature, top_p=rollout.top_p, seed=settings.seed, concurrency=rollout.concurrency,
        timeout=rollout.timeout, api_key=key_in(rollout.api_key_env),
    )  # fmt: skip
    return AheadSampler(served, prompt_sampler.of, settings.steps) if rollout.async_rollout else served


def weights_folder_name(settings: OnlineSettings) -> str:
    """The name of this training's folder among the weights for the server; every output has a name of its own."""
    return content_id(str(settings.folder.resolve()))[:16]


def reward_of(settings: OnlineSettings, tokenizer: Any, note: Callable[[str], None]) -> Reward:
    """The reward that scores the responses."""
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
        gather=gather_object,
    )


def prompt_sampler_of(settings: OnlineSettings, prompts: Prompts) -> PromptSampler:
    """The prompts of each step."""
    return PromptSampler(prompts.train, settings.batch_size // settings.samples, settings.seed)


def _network(
    model: Any, kind: Kind, settings: OnlineSettings, prompts: Sequence[TokenizedPrompt], accelerator: Any
) -> Network:
    """A network by its fastest forward path, compared on prompts with pieces of other prompts for responses."""
    model = model.to(accelerator.device)
    shortest = sorted(prompts, key=lambda prompt: len(prompt.ids))[:3]
    completions = tuple(prompt.ids[:16] for prompt in shortest)
    probes = [Group(prompt.id, prompt.ids, completions) for prompt in shortest]
    forward_path = select_forward_path(model, probes, kind, temperature=settings.rollout.temperature)
    return Network(
        model,
        forward_path,
        kind,
        accelerator,
        tokens=settings.max_tokens_per_pass,
        max_grad_norm=settings.max_grad_norm,
    )


def _prepare(network: Network, settings: OnlineSettings, rate: float, steps: int) -> None:
    """Prepare a network that learns in so many of the training's steps."""
    updates = steps * settings.epochs * settings.minibatches
    network.prepare(rate, settings.weight_decay, settings.schedule, round(settings.warmup * updates), updates)
