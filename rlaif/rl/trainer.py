"""The online trainer: one step of rollout, reward, forward passes, and policy update.

A step samples `samples` responses to each of its prompts, scores them, computes their log-probabilities under policy
and reference (and their values under the value network), turns rewards into advantages, and takes `epochs` times
`minibatches` optimizer steps on them. What differs between algorithms is in `rlaif.rl.losses`; where responses and
scores come from is up to the `Sampler` and the `Reward`.

Every process works on its share of the prompts. Metrics, moments and loss denominators are over all processes.
"""

from __future__ import annotations

import functools
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlaif.errors import ModelError
from rlaif.rl.advantages import AdaptiveKl, Moments, estimate, moments, overlong_penalty, spread_sum, totals, usable
from rlaif.rl.config import OnlineSettings
from rlaif.rl.experience import (
    Experience,
    PromptSampler,
    Response,
    Reward,
    Sampler,
    Scores,
    check_in_step,
    make_experience,
    response_metrics,
)
from rlaif.rl.losses import (
    Counts,
    Loss,
    compute_advantages,
    critic_loss,
    effective_sample_size,
    explained_variance,
    importance_weights,
    logged,
    mismatch,
    policy_loss,
)
from rlaif.rl.networks import Network, Reference

_FIRST, _LEAST, _TIMES = 0.1, 1e-3, 10
"""Nats a token that sampler and trainer may differ by: in the first step; later at least; later as a multiple of it."""


@dataclass
class Networks:
    """Models, sampler, reward and prompts of a training."""

    policy: Network
    reference: Reference
    value: Network | None
    sampler: Sampler
    reward: Reward
    prompt_sampler: PromptSampler


class StepResult(NamedTuple):
    """Metrics of one step, and its responses with their scores."""

    metrics: dict[str, float]
    responses: Sequence[Response]
    scores: Scores


@dataclass
class OnlineTrainer:
    """The state of a training between its steps, and the step itself."""

    settings: OnlineSettings
    networks: Networks
    accelerator: Any
    beta: float
    """The KL coefficient; it moves where `kl.target` is set."""
    mismatch: float | None = None
    """Mean difference between the sampler's and the trainer's log-probabilities in the first step, nats per token."""
    drift: float | None = None
    """The same in the first step whose responses were sampled before the last update (see `rlaif.rl.rollout`)."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Duration of each phase of the last step."""

    def step(self, number: int) -> StepResult:
        """Take step `number`, counted from 0. Raises ModelError where the training cannot go on."""
        self.seconds = {}
        networks, process = self.networks, self.accelerator.process_index
        with self._timed("rollout"):
            prompts = networks.prompt_sampler.of(number)[process :: self.accelerator.num_processes]
            samples = networks.sampler.sample(prompts, self.settings.samples, number)
        with self._timed("reward"):
            scores = networks.reward(
                [sample.prompt.messages for sample in samples], [sample.text for sample in samples]
            )
        responses, rewards = self._filter_scored(samples, scores)
        if not self._sum(len(responses)):
            raise ModelError(f"step {number + 1}: the reward has no score for any of {len(samples)} answers")
        with self._timed("forward"):
            experience, mismatch_metrics = self._make_experience(responses, rewards, number)
            metrics = self._rollout_metrics(experience, scores) | self._mean_over_processes(mismatch_metrics)
            experience = compute_advantages(experience, self.settings, self.beta, self._moments)
        with self._timed("train"):
            metrics |= self._update(experience, number)
        with self._timed("rollout"):
            networks.sampler.update(number + 1)
        self._adapt_beta(metrics["kl"])
        metrics |= self._reward_part_metrics(scores) | self._mean_over_processes(response_metrics(samples))
        metrics |= {f"seconds/{phase}": seconds for phase, seconds in self.seconds.items()}
        return StepResult(metrics, samples, scores)

    def any_process(self, flag: bool) -> bool:
        """Whether the flag is set in any process; every process has to call this."""
        return self._sum(flag) > 0

    # Rollout

    def _filter_scored(self, samples: Sequence[Response], scores: Scores) -> tuple[list[Response], list[float]]:
        """The responses that have a score, and their rewards: scores clipped, and penalties for length taken off."""
        settings = self.settings
        responses, rewards = [], []
        for response, score in zip(samples, scores.total, strict=True):
            if score is None:
                continue
            if settings.reward_clip is not None:
                score = min(max(score, -settings.reward_clip), settings.reward_clip)
            responses.append(response)
            rewards.append(score - (0.0 if response.finished else settings.missing_eos_penalty))
        if settings.overlong_buffer and responses:
            lengths = torch.tensor([len(response.ids) for response in responses])
            penalties = overlong_penalty(lengths, settings.rollout.max_tokens, settings.overlong_buffer)
            rewards = [reward + penalty for reward, penalty in zip(rewards, penalties.tolist(), strict=True)]
        return responses, rewards

    def _make_experience(
        self, responses: Sequence[Response], rewards: Sequence[float], number: int
    ) -> tuple[Experience, dict[str, float]]:
        """Log-probabilities and values of all tokens before the first update, and metrics of the sampler's mismatch."""
        networks, settings = self.networks, self.settings
        experience = make_experience(responses, rewards)
        old = networks.policy.compute(experience.groups)
        sampled = torch.tensor([logp for response in responses for logp in response.logps])
        weights = torch.ones_like(old)
        if settings.rollout.base_url is not None and settings.mismatch.correct != "none":
            weights = importance_weights(
                old, sampled, experience.lengths, settings.mismatch.correct, settings.mismatch.cap
            )
        values = networks.value.compute(experience.groups) if networks.value is not None else experience.values
        reference = networks.reference.compute(experience.groups)
        experience = replace(experience, old=old, reference=reference, weights=weights, values=values)
        self._check_logps(responses, experience, number)
        if not len(old):
            return experience, {"mismatch/mean": 0.0, "mismatch/max": 0.0, "mismatch/ess": 1.0}
        difference = mismatch(old, sampled)
        metrics = {"mismatch/mean": difference.mean, "mismatch/max": difference.largest}
        return experience, metrics | {"mismatch/ess": effective_sample_size(weights)}

    def _check_logps(self, responses: Sequence[Response], experience: Experience, number: int) -> None:
        """Raise ModelError where the sampler has other weights than the trainer, or the start is not the reference.

        How far rounding alone takes the two apart shows in the first step, whose weights are the ones that both loaded.
        """
        old = experience.old
        logps = [part.tolist() for part in torch.split(old, experience.lengths.tolist())] if responses else []
        if any(response.version != number for response in responses):
            # An update lies between, and the effect of one update is unknown before the first time.
            tolerance = math.inf if self.drift is None else _TIMES * max(_LEAST, self.drift)
            difference = check_in_step(responses, logps, tolerance)
            self.drift = difference if self.drift is None else self.drift
        else:
            tolerance = _FIRST if self.mismatch is None else min(_FIRST, max(_LEAST, _TIMES * self.mismatch))
            if self.settings.mismatch.tolerance is not None:
                tolerance = self.settings.mismatch.tolerance
            difference = check_in_step(responses, logps, tolerance)
            self.mismatch = difference if self.mismatch is None and responses else self.mismatch
        far = self._mean((old - experience.reference).abs())
        if number == 0 and not far <= _FIRST / 10:
            raise ModelError(f"before the first step the policy differs from its reference by {far:.3g} nats per token")

    def _rollout_metrics(self, experience: Experience, scores: Scores) -> dict[str, float]:
        """Metrics of rewards and divergence as the responses were sampled."""
        sampled = len(scores.total)
        raw = torch.tensor([score for score in scores.total if score is not None], dtype=torch.float32)
        kl = estimate("k1", experience.old, experience.reference, clamp=None)
        return {
            "reward": self._mean(raw),
            "reward/std": self._moments(raw, True).variance ** 0.5,
            "reward/paid": self._mean(experience.scores),
            "kl": self._mean(spread_sum(kl, experience.lengths)),
            "kl/token": self._mean(kl),
            "kl/beta": self.beta,
            "unscored": self._sum(sampled - len(raw)) / max(1.0, self._sum(sampled)),
            "alone": 1 - self._mean(usable(experience.owners).float()) if self.settings.samples > 1 else 0.0,
        }

    def _reward_part_metrics(self, scores: Scores) -> dict[str, float]:
        """The mean of each part of a reward that has several."""
        if len(scores.parts) < 2:
            return {}
        parts = {name: [value for value in part if value is not None] for name, part in scores.parts.items()}
        return {f"reward/{name}": self._mean(torch.tensor(values)) for name, values in parts.items()}

    # Update

    def _update(self, experience: Experience, number: int) -> dict[str, float]:
        """Several passes over the responses, in minibatches of whole prompts."""
        settings, networks = self.settings, self.networks
        policy, value = networks.policy, networks.value
        sums = {name: [0.0, 0.0] for name in logged(settings)}
        norms: dict[str, float] = {}
        for epoch in range(settings.epochs):
            order = list(range(len(experience)))
            random.Random(f"{settings.seed} {number} {epoch}").shuffle(order)
            for at in range(settings.minibatches):
                start, end = (place * len(order) // settings.minibatches for place in (at, at + 1))
                batch = experience.take(order[start:end])
                sizes = torch.tensor([len(batch), len(batch.lengths), batch.tokens], dtype=torch.float64)
                counts = Counts(*(self._reduced(sizes) / self.accelerator.num_processes).tolist())
                if number >= settings.value.warmup or value is None:
                    loss = functools.partial(policy_loss, whole=counts, settings=settings, beta=self.beta)
                    norms["grad_norm"] = policy.learn(batch.groups, _accumulating(loss, batch, sums))
                if value is not None:
                    loss = functools.partial(critic_loss, whole=counts, clip=settings.value.clip)
                    norms["value/grad_norm"] = value.learn(batch.groups, _accumulating(loss, batch, sums))
        reduced = self._reduced(torch.tensor(list(sums.values()), dtype=torch.float64)).tolist()
        metrics = {name: total / count for name, (total, count) in zip(sums, reduced, strict=True) if count}
        metrics |= norms | {"learning_rate": policy.rate}
        if value is not None:
            explained = explained_variance(experience.values, experience.returns)
            metrics |= {} if math.isnan(explained) else {"value/explained": explained}
            metrics["value/mean"] = self._mean(experience.values)
        return metrics

    def _adapt_beta(self, kl: float) -> None:
        """Move an adaptive KL coefficient, `kl` in nats a response."""
        kl_settings = self.settings.kl
        if kl_settings.target is not None and self.beta > 0:
            controller = AdaptiveKl(self.beta, kl_settings.target, kl_settings.horizon)
            self.beta = controller.after(kl, self.settings.batch_size).beta

    # Over processes

    def _moments(self, values: Tensor, unbiased: bool = False) -> Moments:
        return moments(self._reduced(totals(values)), unbiased=unbiased)

    def _mean(self, values: Tensor) -> float:
        return self._moments(values).mean

    def _sum(self, number: float) -> float:
        return float(self._reduced(torch.tensor([number], dtype=torch.float64))[0])

    def _reduced(self, numbers: Tensor) -> Tensor:
        if self.accelerator.num_processes == 1:
            return numbers
        reduced: Tensor = self.accelerator.reduce(numbers.to(self.accelerator.device), "sum").cpu()
        return reduced

    def _mean_over_processes(self, metrics: dict[str, float]) -> dict[str, float]:
        """The mean of each metric; every process has the same names."""
        if self.accelerator.num_processes == 1:
            return metrics
        names = sorted(metrics)
        reduced = self._reduced(torch.tensor([metrics[name] for name in names], dtype=torch.float64))
        return dict(zip(names, (reduced / self.accelerator.num_processes).tolist(), strict=True))

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.monotonic() - start


def _accumulating(
    loss_of: Callable[[Tensor, Experience], Loss], batch: Experience, sums: dict[str, list[float]]
) -> Callable[[Tensor, Sequence[int]], Tensor]:
    """A loss for `Network.learn`, of some prompts of a minibatch, that adds what is logged of it to `sums`."""

    def loss(outputs: Tensor, chosen: Sequence[int]) -> Tensor:
        result = loss_of(outputs, batch.take(chosen).to(outputs.device))
        if not torch.isfinite(result.loss):
            raise ModelError(f"the loss is {float(result.loss)}: start again with a lower `learning_rate`")
        for name, (total, count) in result.sums.items():
            sums[name][0] += total
            sums[name][1] += count
        return result.loss

    return loss
