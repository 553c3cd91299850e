"""The loop: answer, reward, look back, learn, and again.

One step samples `samples` answers to each of its prompts, scores them, computes what policy, reference and value
network said of every token, turns scores into credit, and takes `epochs` times `minibatches` optimizer steps on it.
What differs between the algorithms is in `objectives`; where answers and scores come from is `Sampler`'s and
`Reward`'s business.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlaif.errors import ModelError
from rlaif.rl.advantages import AdaptiveKl, Moments, estimate, moments, overlong_penalty, spread_sum, totals, usable
from rlaif.rl.algorithms import Counts, Loss, compute_advantages, critic_loss, logged, policy_loss
from rlaif.rl.config import OnlineSettings
from rlaif.rl.experience import Experience, check_in_step, make_experience
from rlaif.rl.losses import effective_sample_size, explained_variance, importance_weights, mismatch
from rlaif.rl.monitor import figures_of
from rlaif.rl.networks import Network, Reference
from rlaif.rl.prompts import PromptSampler
from rlaif.rl.responses import Response, Reward, Sampler, Scores

_FIRST, _LEAST, _TIMES = 0.1, 1e-3, 10
"""Nats a token that sampler and trainer may be apart: in the first step; later at least; later as a multiple of it."""


@dataclass
class Networks:
    """Who takes part in a training."""

    policy: Network
    reference: Reference
    value: Network | None
    sampler: Sampler
    reward: Reward
    prompt_sampler: PromptSampler


class Step(NamedTuple):
    """What came of one step."""

    figures: dict[str, float]
    responses: Sequence[Response]
    scores: Scores


@dataclass
class Loop:
    """The state of a training between its steps, and how a step goes."""

    settings: OnlineSettings
    networks: Networks
    accelerator: Any
    beta: float
    """The price of a nat; moves where `kl.target` is set."""
    mismatch: float | None = None
    """Mean difference between the sampler's and the trainer's log-probabilities in the first step, nats a token."""
    drift: float | None = None
    """The same in the first step whose answers were drawn before the last update (see `rlaif.rl.rollout`)."""
    seconds: dict[str, float] = field(default_factory=dict)
    """What each phase of the last step took."""
    _mismatch: dict[str, float] = field(default_factory=dict)

    def step(self, number: int) -> Step:
        """Take step `number`, counted from 0. Raises ModelError where the training cannot go on."""
        self.seconds = {}
        with self._timed("rollout"):
            responses = self._answers(number)
        with self._timed("reward"):
            scores = self._scored(responses)
        kept, paid = self._kept(responses, scores)
        if not self._total(len(kept)):
            raise ModelError(f"step {number + 1}: the reward has no score for any of {len(responses)} answers")
        with self._timed("forward"):
            found = self._looked_back(kept, paid, number)
            told = self._told(found, scores, len(responses))
            found = compute_advantages(found, self.settings, self.beta, self._moments)
        with self._timed("train"):
            told |= self._learned(found, number)
        with self._timed("rollout"):
            self.networks.sampler.update(number + 1)
        self._price(told["kl"])
        told |= {f"reward/{name}": value for name, value in self._means_of_parts(scores).items()}
        told |= self._over_processes(figures_of(responses))
        return Step(told | {f"seconds/{name}": value for name, value in self.seconds.items()}, responses, scores)

    def _answers(self, number: int) -> list[Response]:
        share = self.networks.prompt_sampler.of(number)[
            self.accelerator.process_index :: self.accelerator.num_processes
        ]
        return self.networks.sampler.sample(share, self.settings.samples, number)

    def _scored(self, responses: Sequence[Response]) -> Scores:
        return self.networks.reward([each.asked.messages for each in responses], [each.text for each in responses])

    def _kept(self, responses: Sequence[Response], scores: Scores) -> tuple[list[Response], list[float]]:
        """Answers that have a score, and what each is paid."""
        settings = self.settings
        kept, paid = [], []
        for response, score in zip(responses, scores.total, strict=True):
            if score is None:
                continue
            if settings.reward_clip is not None:
                score = min(max(score, -settings.reward_clip), settings.reward_clip)
            kept.append(response)
            paid.append(score - (0.0 if response.finished else settings.missing_eos_penalty))
        if settings.overlong_buffer and kept:
            lengths = torch.tensor([len(response.ids) for response in kept])
            taken = overlong_penalty(lengths, settings.rollout.max_tokens, settings.overlong_buffer)
            paid = [score + more for score, more in zip(paid, taken.tolist(), strict=True)]
        return kept, paid

    def _looked_back(self, kept: Sequence[Response], paid: Sequence[float], number: int) -> Experience:
        """What policy, reference and value network say of every token, before anything is learned from them."""
        networks, settings = self.networks, self.settings
        found = make_experience(kept, paid)
        old = networks.policy.compute(found.groups)
        sampled = torch.tensor([logp for response in kept for logp in response.logps])
        weights = torch.ones_like(old)
        if settings.rollout.base_url is not None and settings.mismatch.correct != "none":
            weights = importance_weights(old, sampled, found.lengths, settings.mismatch.correct, settings.mismatch.cap)
        values = networks.value.compute(found.groups) if networks.value is not None else found.values
        reference = networks.reference.compute(found.groups)
        self._check(kept, old, found.lengths, reference, number)
        self._mismatch = _mismatch(old, sampled, weights)
        return replace(found, old=old, reference=reference, weights=weights, values=values)

    def _check(self, kept: Sequence[Response], old: Tensor, lengths: Tensor, reference: Tensor, number: int) -> None:
        """The sampler's weights are the trainer's, and at the start the policy is its reference.

        How far rounding alone takes the two apart shows in the first step, whose weights are the ones that both loaded.
        """
        logps = [each.tolist() for each in torch.split(old, lengths.tolist())] if kept else []
        if any(each.version != number for each in kept):
            # An update lies between, and what one update does is not known before the first time.
            off = check_in_step(kept, logps, math.inf if self.drift is None else _TIMES * max(_LEAST, self.drift))
            self.drift = off if self.drift is None else self.drift
        else:
            off = check_in_step(kept, logps, self._tolerance())
            self.mismatch = off if self.mismatch is None and kept else self.mismatch
        far = self._mean((old - reference).abs())
        if number == 0 and not far <= _FIRST / 10:
            raise ModelError(f"before the first step the policy differs from its reference by {far:.3g} nats a token")

    def _tolerance(self) -> float:
        """Nats a token."""
        if self.settings.mismatch.tolerance is not None:
            return self.settings.mismatch.tolerance
        return _FIRST if self.mismatch is None else min(_FIRST, max(_LEAST, _TIMES * self.mismatch))

    def _told(self, found: Experience, scores: Scores, asked: int) -> dict[str, float]:
        """Figures of the answers as they were sampled."""
        raw = torch.tensor([score for score in scores.total if score is not None], dtype=torch.float32)
        kl = estimate("k1", found.old, found.reference, clamp=None)
        told = {
            "reward": self._mean(raw),
            "reward/std": self._moments(raw, True).variance ** 0.5,
            "reward/paid": self._mean(found.scores),
            "kl": self._mean(spread_sum(kl, found.lengths)),
            "kl/token": self._mean(kl),
            "kl/beta": self.beta,
            "unscored": self._total(asked - len(raw)) / max(1.0, self._total(asked)),
            "alone": 1 - self._mean(usable(found.owners).float()) if self.settings.samples > 1 else 0.0,
        }
        return told | self._over_processes(self._mismatch)

    def _learned(self, found: Experience, number: int) -> dict[str, float]:
        """Several passes over the answers, in minibatches of whole prompts."""
        settings, networks = self.settings, self.networks
        sums = {name: [0.0, 0.0] for name in logged(settings)}
        moved: dict[str, float] = {}
        for epoch in range(settings.epochs):
            for chosen in self._minibatches(len(found), number, epoch):
                whole = found.take(chosen)
                counts = self._counts(whole)
                if number >= settings.value.warmup or networks.value is None:
                    moved["grad_norm"] = networks.policy.learn(whole.groups, self._policy_loss(whole, counts, sums))
                if networks.value is not None:
                    moved["value/grad_norm"] = networks.value.learn(whole.groups, self._value_loss(whole, counts, sums))
        told = self._divided(sums) | moved | {"learning_rate": networks.policy.rate}
        if networks.value is not None:
            explained = explained_variance(found.values, found.returns)
            told |= {} if math.isnan(explained) else {"value/explained": explained}
            told["value/mean"] = self._mean(found.values)
        return told

    def _policy_loss(self, whole: Experience, counts: Counts, sums: dict[str, list[float]]) -> Any:
        def loss(logps: Tensor, chosen: Sequence[int]) -> Tensor:
            part = whole.take(chosen).to(logps.device)
            return self._noted(policy_loss(logps, part, counts, self.settings, self.beta), sums)

        return loss

    def _value_loss(self, whole: Experience, counts: Counts, sums: dict[str, list[float]]) -> Any:
        def loss(values: Tensor, chosen: Sequence[int]) -> Tensor:
            part = whole.take(chosen).to(values.device)
            return self._noted(critic_loss(values, part, counts, self.settings.value.clip), sums)

        return loss

    def _noted(self, found: Loss, sums: dict[str, list[float]]) -> Tensor:
        if not torch.isfinite(found.loss):
            raise ModelError(f"the loss is {float(found.loss)}: start again with a lower `learning_rate`")
        for name, (total, count) in found.sums.items():
            sums[name][0] += total
            sums[name][1] += count
        return found.loss

    def _minibatches(self, prompts: int, number: int, epoch: int) -> Iterator[list[int]]:
        order = list(range(prompts))
        random.Random(f"{self.settings.seed} {number} {epoch}").shuffle(order)
        count = self.settings.minibatches
        for at in range(count):
            yield order[at * prompts // count : (at + 1) * prompts // count]

    def _counts(self, whole: Experience) -> Counts:
        mine = torch.tensor([len(whole), len(whole.lengths), whole.tokens], dtype=torch.float64)
        return Counts(*(self._added(mine) / self.accelerator.num_processes).tolist())

    def _price(self, kl: float) -> None:
        """An adaptive price of divergence."""
        kl_settings = self.settings.kl
        if kl_settings.target is not None and self.beta > 0:
            steered = AdaptiveKl(self.beta, kl_settings.target, kl_settings.horizon)
            self.beta = steered.after(kl, self.settings.batch_size).beta

    def _means_of_parts(self, scores: Scores) -> dict[str, float]:
        known = {name: [value for value in part if value is not None] for name, part in scores.parts.items()}
        return {name: self._mean(torch.tensor(part)) for name, part in known.items()} if len(known) > 1 else {}

    # Over processes

    def any_process(self, told: bool) -> bool:
        """Whether any process says so; all of them have to ask."""
        return self._total(told) > 0

    def _moments(self, values: Tensor, unbiased: bool = False) -> Moments:
        return moments(self._added(totals(values)), unbiased=unbiased)

    def _mean(self, values: Tensor) -> float:
        return self._moments(values).mean

    def _total(self, number: float) -> float:
        return float(self._added(torch.tensor([number], dtype=torch.float64))[0])

    def _added(self, numbers: Tensor) -> Tensor:
        if self.accelerator.num_processes == 1:
            return numbers
        added: Tensor = self.accelerator.reduce(numbers.to(self.accelerator.device), "sum").cpu()
        return added

    def _over_processes(self, figures: dict[str, float]) -> dict[str, float]:
        """The means of figures; every process has the same ones."""
        if self.accelerator.num_processes == 1:
            return figures
        names = sorted(figures)
        added = self._added(torch.tensor([figures[name] for name in names], dtype=torch.float64))
        return dict(zip(names, (added / self.accelerator.num_processes).tolist(), strict=True))

    def _divided(self, sums: dict[str, list[float]]) -> dict[str, float]:
        """Sums over what they are of, without those of nothing; every process has the same names."""
        added = self._added(torch.tensor(list(sums.values()), dtype=torch.float64)).tolist()
        return {name: total / count for name, (total, count) in zip(sums, added, strict=True) if count}

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.monotonic() - began


def _mismatch(old: Tensor, sampled: Tensor, weights: Tensor) -> dict[str, float]:
    if not len(old):
        return {"mismatch/mean": 0.0, "mismatch/max": 0.0, "mismatch/ess": 1.0}
    found = mismatch(old, sampled)
    told = {"mismatch/mean": found.mean, "mismatch/max": found.largest}
    return told | {"mismatch/ess": effective_sample_size(weights)}
