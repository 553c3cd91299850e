"""The KL divergence of a policy from the baseline, over the policy's own responses.

KL(policy || baseline) is the mean, over responses sampled from the policy, of log P_policy - log P_baseline of the
whole response (an unbiased estimate; `k1` of `rlaif.rl.advantages`). Both are taken at the temperature at which the
responses were sampled, as they are samples of no other distribution. Responses are stored as texts and tokenized again:
where a text has several tokenizations, the tokens may differ from the sampled ones, for both models alike.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rlaif.errors import ModelError
from rlaif.evaluation.policy_specs import EvaluateSettings, PolicySpec
from rlaif.feedback.sampling import with_system
from rlaif.inference.base import StageStats
from rlaif.inference.chat_template import ChatTemplate, UnwritableError
from rlaif.inference.model_folder import load_tokenizer, model_folder, parts_of
from rlaif.progress import Progress
from rlaif.records import Messages, Prompt, Record, Sample, content_id
from rlaif.stats import Estimate, average
from rlaif.store import Table

STAGE = "distance"
_TOKENS = 8192
"""Tokens of one forward pass, including padding."""


class Likelihood(Record):
    """The log-probability of a sample under a model. A line of likelihoods.jsonl."""

    id: str
    sample: str
    model: str
    """Identity of the model."""
    logprob: float
    """Nats of the whole response, at the temperature at which it was sampled."""
    tokens: int


class Distance(NamedTuple):
    """A policy's divergence from the baseline."""

    kl: Estimate | None
    note: str = ""
    """Why there is none, or a caveat."""


class SampledPolicy(NamedTuple):
    """A policy in this process, and its responses."""

    contestant: PolicySpec
    identity: str
    answers: Sequence[tuple[Prompt, Sample]]


def obstacle(contestant: PolicySpec, baseline: PolicySpec, settings: EvaluateSettings) -> str:
    """Why the divergence cannot be computed; empty where it can."""
    for policy, who in ((contestant, "its"), (baseline, "the baseline's")):
        if policy.model is None:
            return f"{who} answers come from a file"
        if policy.model.base_url is not None or policy.model.launch is not None:
            return f"{who} model is on a server"
    if settings.temperature == 0:
        return "at temperature 0 an answer is no sample"
    if settings.top_p < 1:
        return "with `top_p` under 1 answers are no samples of the model's own distribution"
    assert contestant.model is not None and baseline.model is not None
    if _vocabulary(contestant.model.model) != _vocabulary(baseline.model.model):
        return "its vocabulary is not the baseline's"
    return ""


def _vocabulary(model: str) -> dict[str, int]:
    vocabulary: dict[str, int] = load_tokenizer(parts_of(model_folder(model)).tokenizer).get_vocab()
    return vocabulary


async def measure(
    policies: Sequence[SampledPolicy],
    baseline: SampledPolicy,
    settings: EvaluateSettings,
    table: Table[Likelihood],
    progress: Progress,
) -> tuple[dict[str, Distance], StageStats]:
    """The divergence of every policy from the baseline, and the statistics of the stage; one model is loaded at a time.

    Log-probabilities in `table` are not computed again. Raises UserError where a model cannot be loaded.
    """
    stats, started = StageStats(STAGE), time.perf_counter()

    def count_computed(count: int) -> None:
        stats.answered += count
        stats.seconds = time.perf_counter() - started
        stats.report_to(progress)

    sampled = [answer for policy in policies for answer in policy.answers]
    for model, answers in ((baseline, sampled), *((policy, policy.answers) for policy in policies)):
        missing = [answer for answer in answers if _key(model, answer[1], settings) not in table]
        stats.planned += len(answers)
        stats.known += len(answers) - len(missing)
        if missing:
            halted = threading.Event()
            try:
                await asyncio.to_thread(_compute, model, missing, settings, table, count_computed, halted)
            except asyncio.CancelledError:
                halted.set()
                raise
    distances = {policy.contestant.name: _distance(policy, baseline, settings, table) for policy in policies}
    return distances, stats


def max_likelihoods(policies: Sequence[SampledPolicy]) -> int:
    """The number of log-probabilities when none is on disk: one by the policy and one by the baseline per response."""
    return 2 * sum(len(policy.answers) for policy in policies)


def _key(model: SampledPolicy, sample: Sample, settings: EvaluateSettings) -> str:
    return content_id("likelihood", model.identity, settings.temperature, settings.system, sample.id)


def _distance(
    policy: SampledPolicy, baseline: SampledPolicy, settings: EvaluateSettings, table: Table[Likelihood]
) -> Distance:
    gaps, prompts = [], []
    for prompt, sample in policy.answers:
        likelihood, reference = (table.get(_key(model, sample, settings)) for model in (policy, baseline))
        if likelihood is not None and reference is not None:
            gaps.append(likelihood.logprob - reference.logprob)
            prompts.append(prompt.id)
    left_out = len(policy.answers) - len(gaps)
    if not gaps:
        return Distance(None, "a chat template cannot write its prompts" if left_out else "it has no answers")
    temperature = settings.temperature
    notes = [] if temperature == 1 else [f"of both at temperature {temperature:g}, as the answers were drawn"]
    if left_out:
        notes.append(f"prompts that a chat template cannot write: {left_out:,} answers left out")
    return Distance(average(gaps, prompts), "; ".join(notes))


def _compute(
    model: SampledPolicy,
    answers: Sequence[tuple[Prompt, Sample]],
    settings: EvaluateSettings,
    table: Table[Likelihood],
    on_computed: Callable[[int], None],
    halted: threading.Event,
) -> None:
    """Load the model, and append the log-probability of every response."""
    import torch

    from rlaif.inference.transformers_model import place_of, read_model
    from rlaif.training.batches import lay_out, split
    from rlaif.training.forward import compute, select_forward_path
    from rlaif.training.tokenize import Group, end_ids

    assert model.contestant.model is not None
    device = place_of(model.contestant.model.device)
    tokenizer, network = read_model(model_folder(model.contestant.model.model), device)
    options, ends = model.contestant.model.template_options, end_ids(network.generation_config)
    template = ChatTemplate(tokenizer, options, ends=ends)
    groups: list[Group] = []
    members: list[list[Sample]] = []
    by_prompt: dict[str, tuple[Prompt, list[Sample]]] = {}
    for prompt, sample in answers:
        by_prompt.setdefault(prompt.id, (prompt, []))[1].append(sample)
    for prompt, samples in by_prompt.values():
        prompt_ids = _prompt_ids(template, prompt.messages, settings.system)
        if prompt_ids is None:  # counted in `_distance`
            continue
        groups.append(Group(prompt.id, prompt_ids, tuple(_response_ids(template, sample) for sample in samples)))
        members.append(samples)
    if not groups:
        return
    forward_path = select_forward_path(network, groups, "logps", temperature=settings.temperature)
    for part in split(groups, _TOKENS, forward_path.layout):
        if halted.is_set():
            raise ModelError("stopped")
        batch = lay_out([groups[at] for at in part], forward_path.layout).to(device)
        with torch.inference_mode():
            sums = batch.summed(compute(network, batch, forward_path, "logps").double()).tolist()
        samples = [sample for at in part for sample in members[at]]
        sizes = batch.lengths.tolist()
        table.append(
            Likelihood(
                id=_key(model, sample, settings),
                sample=sample.id,
                model=model.identity,
                logprob=value,
                tokens=int(size),
            )
            for sample, value, size in zip(samples, sums, sizes, strict=True)
        )
        on_computed(len(samples))


def _prompt_ids(template: ChatTemplate, messages: Messages, system: str | None) -> list[int] | None:
    """The prompt as `rlaif.feedback.sampling` sent it; None where the template cannot write it."""
    try:
        (ids,) = template.ids([template.prompt(with_system(messages, system))])
    except UnwritableError:
        return None
    return ids


def _response_ids(template: ChatTemplate, sample: Sample) -> list[int]:
    """The tokens of a response, with the end token where the response ended by itself."""
    (ids,) = template.ids([sample.text])
    ended = sample.finish_reason == "stop" or not ids
    return [*ids, template.end_id] if ended else ids


def log_of(folder: Path, name: str) -> Path:
    """The log file of a server that is started for a policy."""
    return folder / f"policy-{name.replace('/', '-')}.log"
