"""How far a policy has gone from the baseline: the divergence of the two over the policy's own answers.

KL(policy || baseline) is the mean, over answers drawn from the policy, of log P_policy - log P_baseline of the whole
answer (an unbiased estimate; `k1` of `rlaif.rl.advantages`). Both are taken at the temperature at which the answers
were drawn, as they are samples of nothing else. Answers are kept as texts and become tokens again here: where a
tokenizer has several ways to write a text, that is not quite the path that was drawn, and counts alike for both models.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
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
"""Of one pass, padding included."""


class Likelihood(Record):
    """The log-probability of a sample under a model. A line of likelihoods.jsonl."""

    id: str
    sample: str
    model: str
    """Identity of the model."""
    logprob: float
    """Nats of the whole answer, at the temperature at which it was drawn."""
    tokens: int


class Distance(NamedTuple):
    """A policy's divergence from the baseline."""

    kl: Estimate | None
    note: str = ""
    """Why there is none, or what to know of it."""


class SampledPolicy(NamedTuple):
    """A policy that takes part in process, and its answers."""

    contestant: PolicySpec
    identity: str
    answers: Sequence[tuple[Prompt, Sample]]


def obstacle(contestant: PolicySpec, baseline: PolicySpec, settings: EvaluateSettings) -> str:
    """Why the divergence cannot be told; empty where nothing is in its way."""
    for each, who in ((contestant, "its"), (baseline, "the baseline's")):
        if each.model is None:
            return f"{who} answers come from a file"
        if each.model.base_url is not None or each.model.launch is not None:
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
    found: dict[str, int] = load_tokenizer(parts_of(model_folder(model)).tokenizer).get_vocab()
    return found


async def measure(
    policies: Sequence[SampledPolicy],
    baseline: SampledPolicy,
    settings: EvaluateSettings,
    table: Table[Likelihood],
    progress: Progress,
) -> tuple[dict[str, Distance], StageStats]:
    """The divergence of every policy from the baseline, and what was computed now; one model is loaded at a time.

    What `table` holds is not computed again. Raises UserError where a model cannot be loaded.
    """
    tally, started = StageStats(STAGE), time.perf_counter()

    def told(count: int) -> None:
        tally.answered += count
        tally.seconds = time.perf_counter() - started
        tally.report_to(progress)

    theirs = [answer for policy in policies for answer in policy.answers]
    for model, answers in ((baseline, theirs), *((policy, policy.answers) for policy in policies)):
        missing = [each for each in answers if _key(model, each[1], settings) not in table]
        tally.planned += len(answers)
        tally.known += len(answers) - len(missing)
        if missing:
            await _in_thread(model, missing, settings, table, told)
    found = {policy.contestant.name: _distance(policy, baseline, settings, table) for policy in policies}
    return found, tally


async def _in_thread(
    model: SampledPolicy,
    answers: Sequence[tuple[Prompt, Sample]],
    settings: EvaluateSettings,
    table: Table[Likelihood],
    told: Callable[[int], None],
) -> None:
    halted = threading.Event()
    try:
        await asyncio.to_thread(_compute, model, answers, settings, table, told, halted)
    except asyncio.CancelledError:
        halted.set()
        raise


def most(policies: Sequence[SampledPolicy]) -> int:
    """Log-probabilities to work out: each answer by its own policy and by the baseline."""
    return 2 * sum(len(policy.answers) for policy in policies)


def _key(model: SampledPolicy, sample: Sample, settings: EvaluateSettings) -> str:
    return content_id("likelihood", model.identity, settings.temperature, settings.system, sample.id)


def _distance(
    policy: SampledPolicy, baseline: SampledPolicy, settings: EvaluateSettings, table: Table[Likelihood]
) -> Distance:
    gaps, prompts = [], []
    for prompt, sample in policy.answers:
        own, other = (table.get(_key(model, sample, settings)) for model in (policy, baseline))
        if own is not None and other is not None:
            gaps.append(own.logprob - other.logprob)
            prompts.append(prompt.id)
    left_out = len(policy.answers) - len(gaps)
    if not gaps:
        return Distance(None, "a chat template cannot write its prompts" if left_out else "it has no answers")
    warm = settings.temperature
    notes = [] if warm == 1 else [f"of both at temperature {warm:g}, as the answers were drawn"]
    if left_out:
        notes.append(f"prompts that a chat template cannot write: {left_out:,} answers left out")
    return Distance(average(gaps, prompts), "; ".join(notes))


def _compute(
    model: SampledPolicy,
    answers: Sequence[tuple[Prompt, Sample]],
    settings: EvaluateSettings,
    table: Table[Likelihood],
    told: Callable[[int], None],
    halted: threading.Event,
) -> None:
    """Load the model, and append the log-probability of every answer."""
    import torch

    from rlaif.inference.transformers_model import place_of, read_model
    from rlaif.training.batches import lay_out, split
    from rlaif.training.examples import Group
    from rlaif.training.forward import compute, select_forward_path
    from rlaif.training.tokenize import end_ids

    assert model.contestant.model is not None
    place = place_of(model.contestant.model.device)
    tokenizer, network = read_model(model_folder(model.contestant.model.model), place)
    options, ends = model.contestant.model.template_options, end_ids(network.generation_config)
    template = ChatTemplate(tokenizer, options, ends=ends)
    groups: list[Group] = []
    members: list[list[Sample]] = []
    for prompt, samples in _by_prompt(answers).values():
        asked = _prompt_ids(template, prompt.messages, settings.system)
        if asked is None:  # counted in `_distance`
            continue
        groups.append(Group(prompt.id, asked, tuple(_answer_ids(template, each) for each in samples)))
        members.append(samples)
    if not groups:
        return
    forward_path = select_forward_path(network, groups, "logps", temperature=settings.temperature)
    for part in split(groups, _TOKENS, forward_path.layout):
        if halted.is_set():
            raise ModelError("stopped")
        batch = lay_out([groups[at] for at in part], forward_path.layout).to(place)
        with torch.inference_mode():
            sums = batch.summed(compute(network, batch, forward_path, "logps").double()).tolist()
        samples = [each for at in part for each in members[at]]
        sizes = batch.lengths.tolist()
        table.append(
            Likelihood(
                id=_key(model, each, settings), sample=each.id, model=model.identity, logprob=value, tokens=int(size)
            )
            for each, value, size in zip(samples, sums, sizes, strict=True)
        )
        told(len(samples))


def _by_prompt(answers: Sequence[tuple[Prompt, Sample]]) -> Mapping[str, tuple[Prompt, list[Sample]]]:
    found: dict[str, tuple[Prompt, list[Sample]]] = {}
    for prompt, sample in answers:
        found.setdefault(prompt.id, (prompt, []))[1].append(sample)
    return found


def _prompt_ids(template: ChatTemplate, messages: Messages, system: str | None) -> list[int] | None:
    """As the policy was asked: see `rlaif.feedback.sampling`. None where the template cannot write the prompt."""
    try:
        (ids,) = template.ids([template.prompt(with_system(messages, system))])
    except UnwritableError:
        return None
    return ids


def _answer_ids(template: ChatTemplate, sample: Sample) -> list[int]:
    """The tokens of an answer, with the one that ends it where it ended by itself."""
    (ids,) = template.ids([sample.text])
    ended = sample.finish_reason == "stop" or not ids
    return [*ids, template.end_id] if ended else ids


def log_of(folder: Path, name: str) -> Path:
    """Where a server that is started for a policy writes."""
    return folder / f"policy-{name.replace('/', '-')}.log"
