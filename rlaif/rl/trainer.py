"""The online trainer: one step of rollout, reward, forward passes, and policy update; and the files that it leaves.

A step samples `samples` responses to each of its prompts, scores them, computes their log-probabilities under policy
and reference (and their values under the value network), turns rewards into advantages, and takes `epochs` times
`minibatches` optimizer steps on them. What differs between algorithms is in `rlaif.rl.losses`; where responses and
scores come from is up to the `Sampler` and the `Reward`. Every process works on its share of the prompts. Metrics,
moments and loss denominators are over all processes.

checkpoint-N/       policy.safetensors, value.safetensors: trained weights with optimizer state; trainer_state.json last
best-N/             the policy's weights after N steps, the best so far by the held-out judge
log.jsonl           metrics, a line a step
responses.jsonl     every response: prompt, text, score, parts of the score, version of the weights

A checkpoint holds the state of the random generators of the process, so that a reward that draws from them continues
as if the training had not been interrupted.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import gather_object
from pydantic import JsonValue
from torch import Tensor

from rlaif.errors import ModelError, UserError
from rlaif.progress import first_process
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
from rlaif.store import write_json, write_text
from rlaif.text import loads
from rlaif.training.trainer import first_line, out_of_memory

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


LOG, RESPONSES = "log.jsonl", "responses.jsonl"
_STATE, _POLICY, _VALUE = "trainer_state.json", "policy.safetensors", "value.safetensors"


def save_checkpoint(
    folder: Path, done: int, trainer: OnlineTrainer, extra: Mapping[str, JsonValue], *, best: int | None, keep: int
) -> None:
    """Save the state after `done` steps, and delete all but the last `keep` checkpoints.

    `best` is the step of the best weights so far. Of the `best-N` folders, those that a checkpoint refers to stay.
    """
    checkpoint = folder / f"checkpoint-{done}"
    shutil.rmtree(checkpoint, ignore_errors=True)
    checkpoint.mkdir(parents=True)
    trainer.networks.policy.save(checkpoint / _POLICY)
    if trainer.networks.value is not None:
        trainer.networks.value.save(checkpoint / _VALUE)
    state: dict[str, JsonValue] = {
        "step": done,
        "best": best,
        "beta": trainer.beta,
        "mismatch": trainer.mismatch,
        "drift": trainer.drift,
        "reward": {**trainer.networks.reward.state()},
        "random": _random_state(),
        **extra,
    }
    write_json(checkpoint / _STATE, state)  # last: without it the checkpoint does not count
    numbers = _numbered(folder, "checkpoint")
    for number in numbers[:-keep]:
        shutil.rmtree(folder / f"checkpoint-{number}", ignore_errors=True)
    referenced = set()
    for number in numbers[-keep:]:
        with contextlib.suppress(OSError, ValueError):
            saved = loads((folder / f"checkpoint-{number}" / _STATE).read_text(encoding="utf-8"))
            referenced.add(saved.get("best"))
    _remove_best(folder, [number for number in _numbered(folder, "best") if number not in referenced])


def load_checkpoint(checkpoint: Path, trainer: OnlineTrainer) -> dict[str, Any]:
    """Restore a checkpoint, and return its state. Raises UserError where it is damaged."""
    from safetensors import SafetensorError

    try:
        state: dict[str, Any] = loads((checkpoint / _STATE).read_text(encoding="utf-8"))
        trainer.networks.policy.restore(checkpoint / _POLICY)
        if trainer.networks.value is not None:
            trainer.networks.value.restore(checkpoint / _VALUE)
        if trainer.settings.kl.target is not None:  # else the coefficient is the setting, which may have changed
            trainer.beta = float(state["beta"])
        trainer.mismatch, trainer.drift = state["mismatch"], state["drift"]
        trainer.networks.reward.restore(state["reward"])
        _restore_random(state["random"])
        done = int(state["step"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, ModelError) as error:
        if out_of_memory(error):
            raise
        hint = "remove it: `--resume` takes the one before, or without one starts from the beginning"
        raise UserError(f"is damaged: {first_line(error)}", where=checkpoint, hint=hint) from error
    trainer.networks.sampler.update(done)
    return state


def _numbered(folder: Path, name: str) -> list[int]:
    """The N of all `name-N` in a folder, in order."""
    ends = (path.name.removeprefix(f"{name}-") for path in folder.glob(f"{name}-*"))
    return sorted(int(end) for end in ends if end.isdecimal())


def save_best(folder: Path, done: int, trainer: OnlineTrainer) -> None:
    """Save the policy's weights after `done` steps as the best; older ones stay, as a checkpoint may need them."""
    (folder / f"best-{done}").mkdir(exist_ok=True)
    trainer.networks.policy.save(folder / f"best-{done}" / _POLICY)


def restore_best(folder: Path, done: int, trainer: OnlineTrainer) -> bool:
    """Load the best weights, those after `done` steps, into the policy; False where there are none."""
    path = folder / f"best-{done}" / _POLICY
    if not path.exists():
        return False
    trainer.networks.policy.restore(path)
    return True


def remove_best(folder: Path) -> None:
    """Delete the best weights of a finished training, whose model they are."""
    _remove_best(folder, _numbered(folder, "best"))


def _remove_best(folder: Path, numbers: Sequence[int]) -> None:
    for number in numbers:
        shutil.rmtree(folder / f"best-{number}", ignore_errors=True)


def truncate_logs(folder: Path, done: int) -> list[dict[str, Any]]:
    """Drop everything written after step `done`, as those steps run again; returns the lines of the log that stay."""
    _remove_best(folder, [number for number in _numbered(folder, "best") if number > done])
    for name in (LOG, RESPONSES):
        path = folder / name
        if path.exists():
            lines = [json.dumps(line, ensure_ascii=False) for line in _lines(path) if line.get("step", 0) <= done]
            write_text(path, "".join(f"{line}\n" for line in lines))
    return list(_lines(folder / LOG)) if (folder / LOG).exists() else []


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file; the last one may have been cut off in the middle."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                yield loads(line)


def add_responses(folder: Path, number: int, result: StepResult) -> None:
    """Append the responses of step `number`, those of all processes; every process has to call this."""
    scores = result.scores
    lines = [
        {
            "step": number + 1,
            "prompt": [message.model_dump(mode="json") for message in response.prompt.messages],
            "index": response.index,
            "response": response.text,
            "reward": scores.total[at],
            "parts": {name: part[at] for name, part in scores.parts.items()},
            "finished": response.finished,
            "tokens": len(response.ids),
            "version": response.version,
        }
        for at, response in enumerate(result.responses)
    ]
    gathered = gather_object([json.dumps(line, ensure_ascii=False) + "\n" for line in lines])
    if first_process():
        with (folder / RESPONSES).open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(gathered)


def _random_state() -> dict[str, JsonValue]:
    """The state of the generators of Python, numpy and torch, as plain JSON data."""
    version, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()
    return {
        "python": [version, list(words), gauss],
        "numpy": [str(kind), np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state().tolist(),
        "cuda": torch.cuda.get_rng_state().tolist() if torch.cuda.is_available() else None,
    }


def _restore_random(state: Mapping[str, Any]) -> None:
    """Continue from a state; the generators of a GPU that it does not hold stay as they are."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.tensor(state["cuda"], dtype=torch.uint8))
