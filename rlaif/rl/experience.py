"""Experience: the scored responses of a step, with the tensors of their tokens that the update reads.

Everything is flat: [tokens] over all responses one after another, [responses] over all responses, those to one prompt
adjacent. One prompt with its responses is one `Group`, so that its forward pass is shared between them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from rlaif.errors import ModelError
from rlaif.rl.responses import Response
from rlaif.training.tokenize import Group


@dataclass(frozen=True)
class Experience:
    """The responses of a step that the policy is updated on, or some of them."""

    groups: Sequence[Group]
    """[prompts]."""
    owners: Tensor
    """[responses]; the index of each one's prompt."""
    lengths: Tensor
    """[responses]; tokens of each."""
    scores: Tensor
    """[responses]; the reward, penalties taken off."""
    old: Tensor
    """[tokens]; log-probabilities by the policy that sampled them, as the trainer computes them."""
    reference: Tensor
    """[tokens]; by the start of the training."""
    weights: Tensor
    """[tokens]; how much more probable they are to the trainer than to the sampler, cut (see `MismatchSettings`)."""
    values: Tensor
    """[tokens]; values of the states before each token; zeros without a value network."""
    advantages: Tensor
    """[tokens]; zeros before `compute_advantages`."""
    returns: Tensor
    """[tokens]; targets of the value network; zeros before `compute_advantages`."""

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def tokens(self) -> int:
        """Of all responses."""
        return int(self.lengths.sum())

    def take(self, chosen: Sequence[int]) -> Experience:
        """The `chosen` prompts, in this order, with all their responses."""
        counts = [len(group.completions) for group in self.groups]
        responses = _indices(chosen, counts)
        tokens = _indices(responses.tolist(), self.lengths.tolist())
        per_response = {"lengths", "scores"}
        taken: dict[str, Any] = {
            field.name: getattr(self, field.name)[responses if field.name in per_response else tokens]
            for field in fields(self)
            if field.name not in ("groups", "owners")
        }
        owners = torch.repeat_interleave(
            torch.arange(len(chosen)), torch.tensor([counts[at] for at in chosen], dtype=torch.long)
        )
        return Experience([self.groups[at] for at in chosen], owners, **taken)

    def to(self, device: torch.device) -> Experience:
        """The same with its tensors on another device."""
        moved: dict[str, Any] = {
            field.name: getattr(self, field.name).to(device) for field in fields(self) if field.name != "groups"
        }
        return replace(self, **moved)


def make_experience(responses: Sequence[Response], rewards: Sequence[float]) -> Experience:
    """Responses with their rewards; log-probabilities, values and advantages are still zeros."""
    groups = []
    for _, group in itertools.groupby(responses, key=lambda response: id(response.prompt)):
        first, *more = group
        completions = tuple(response.ids for response in (first, *more))
        groups.append(Group(first.prompt.id, first.prompt.ids, completions))
    lengths = torch.tensor([len(response.ids) for response in responses], dtype=torch.long)
    zeros = torch.zeros(int(lengths.sum()))
    counts = torch.tensor([len(group.completions) for group in groups], dtype=torch.long)
    return Experience(
        groups=groups,
        owners=torch.repeat_interleave(torch.arange(len(groups)), counts),
        lengths=lengths,
        scores=torch.tensor(rewards, dtype=torch.float32),
        old=zeros,
        reference=zeros,
        weights=torch.ones_like(zeros),
        values=zeros,
        advantages=zeros,
        returns=zeros,
    )


def check_in_step(responses: Sequence[Response], logps: Sequence[Sequence[float]], tolerance: float) -> float:
    """The mean difference per token between the sampler's and the trainer's log-probabilities of the same tokens.

    Raises ModelError where it is above `tolerance`: the server then has other weights than the trainer, or computes
    something else with them. Rounding alone is best measured where the weights are equal for certain, right after the
    first `update`; ten times that is a tolerance. A small Llama on a CPU: 4e-7 with float32 on both sides,
    4e-3 with bfloat16 on both, 5e-3 with bfloat16 on one. Versions that differ by less than that go unnoticed.
    """
    differences = [
        abs(one - other)
        for response, trainer_logps in zip(responses, logps, strict=True)
        for one, other in zip(response.logps, trainer_logps, strict=True)
    ]
    mean = sum(differences) / len(differences) if differences else 0.0
    if not mean <= tolerance:
        versions = sorted({response.version for response in responses})
        which = f"version {versions[0]}" if len(versions) == 1 else f"versions {versions[0]} to {versions[-1]}"
        raise ModelError(
            f"the answers are not those of {which} of the policy: log-probabilities are off by {mean:.2g} a token, "
            f"more than {tolerance:g}; a server may have kept older weights, or serve another model; in process, this "
            "family's cache of keys and values may be at fault"
        )
    return mean


def _indices(chosen: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """The indices of the entries of the chosen blocks, of blocks of these sizes one after another."""
    starts = list(itertools.accumulate(sizes, initial=0))
    return (
        torch.cat([torch.arange(starts[at], starts[at] + sizes[at]) for at in chosen])
        if chosen
        else torch.zeros(0).long()
    )
