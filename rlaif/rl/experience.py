"""What a step learns from: prompts, responses, who scores them, and their tensors.

The nouns of online training: what the policy is asked, what it answered, and who scores the answers.

What a step learns from: scored answers, with everything that is known of their tokens before the first update.

Everything is flat: [tokens] over all answers one after another, [answers] over all answers, those to one prompt next to
each other. One prompt with its answers is one `Group`, so that the prompt is computed once for all of them.
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
from rlaif.training.examples import Group


@dataclass(frozen=True)
class Experience:
    """The answers of a step that are learned from, or some of them."""

    groups: Sequence[Group]
    """[prompts]."""
    owners: Tensor
    """[answers]; which prompt each one answers."""
    lengths: Tensor
    """[answers]; tokens of each."""
    scores: Tensor
    """[answers]; the reward, penalties taken off."""
    old: Tensor
    """[tokens]; log-probabilities by the policy that sampled them, as the trainer computes them."""
    reference: Tensor
    """[tokens]; by the start of the training."""
    weights: Tensor
    """[tokens]; how much more probable they are to the trainer than to the sampler, cut (see `MismatchSettings`)."""
    values: Tensor
    """[tokens]; what the value network expected before each token; zeros without one."""
    advantages: Tensor
    """[tokens]; zeros until they are known."""
    returns: Tensor
    """[tokens]; what the value network is to expect; zeros until they are known."""

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def tokens(self) -> int:
        """Of all answers."""
        return int(self.lengths.sum())

    def take(self, chosen: Sequence[int]) -> Experience:
        """Some of its prompts, in the order asked for, with all their answers."""
        counts = [len(group.completions) for group in self.groups]
        answers = _places(chosen, counts)
        tokens = _places(answers.tolist(), self.lengths.tolist())
        per_answer = {"lengths", "scores"}
        cut: dict[str, Any] = {
            each.name: getattr(self, each.name)[answers if each.name in per_answer else tokens]
            for each in fields(self)
            if each.name not in ("groups", "owners")
        }
        owners = torch.repeat_interleave(
            torch.arange(len(chosen)), torch.tensor([counts[at] for at in chosen], dtype=torch.long)
        )
        return Experience([self.groups[at] for at in chosen], owners, **cut)

    def to(self, device: torch.device) -> Experience:
        """The same with its tensors on another device."""
        moved: dict[str, Any] = {
            each.name: getattr(self, each.name).to(device) for each in fields(self) if each.name != "groups"
        }
        return replace(self, **moved)


def _places(chosen: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """Where the entries of some blocks lie, whose sizes are given."""
    starts = list(itertools.accumulate(sizes, initial=0))
    return (
        torch.cat([torch.arange(starts[at], starts[at] + sizes[at]) for at in chosen])
        if chosen
        else torch.zeros(0).long()
    )


def grouped(responses: Sequence[Response]) -> list[Group]:
    """Answers as groups, one a prompt; those to one prompt lie next to each other."""
    found = []
    for _, each in itertools.groupby(responses, key=lambda response: id(response.prompt)):
        some = list(each)
        found.append(Group(some[0].prompt.id, some[0].prompt.ids, tuple(response.ids for response in some)))
    return found


def make_experience(responses: Sequence[Response], scores: Sequence[float]) -> Experience:
    """Answers with their scores; what a model has to say of their tokens is still missing."""
    groups = grouped(responses)
    lengths = torch.tensor([len(response.ids) for response in responses], dtype=torch.long)
    nothing = torch.zeros(int(lengths.sum()))
    counts = torch.tensor([len(group.completions) for group in groups], dtype=torch.long)
    return Experience(
        groups=groups,
        owners=torch.repeat_interleave(torch.arange(len(groups)), counts),
        lengths=lengths,
        scores=torch.tensor(scores, dtype=torch.float32),
        old=nothing,
        reference=nothing,
        weights=torch.ones_like(nothing),
        values=nothing,
        advantages=nothing,
        returns=nothing,
    )


def check_in_step(responses: Sequence[Response], logps: Sequence[Sequence[float]], tolerance: float) -> float:
    """The mean difference per token between the sampler's log-probabilities and the training's own, of the same tokens.

    Raises ModelError where it is above `tolerance`: the server then has other weights than the training, or computes
    something else with them. How much rounding alone gives is best measured where the weights are surely equal, right
    after the first `update`; ten times that is a tolerance. A small Llama on a CPU: 4e-7 with float32 on both sides,
    4e-3 with bfloat16 on both, 5e-3 with bfloat16 on one. Versions that differ by less than that go unnoticed.
    """
    apart = [
        abs(one - other)
        for response, own in zip(responses, logps, strict=True)
        for one, other in zip(response.logps, own, strict=True)
    ]
    mean = sum(apart) / len(apart) if apart else 0.0
    if not mean <= tolerance:
        versions = sorted({response.version for response in responses})
        which = f"version {versions[0]}" if len(versions) == 1 else f"versions {versions[0]} to {versions[-1]}"
        raise ModelError(
            f"the answers are not those of {which} of the policy: log-probabilities are off by {mean:.2g} a token, "
            f"more than {tolerance:g}; a server may have kept older weights, or serve another model; in process, this "
            "family's cache of keys and values may be at fault"
        )
    return mean
