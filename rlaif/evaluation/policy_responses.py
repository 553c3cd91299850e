"""The responses of every policy to every prompt, sampled or read from a file, and the KL divergence over them.

A file is joined to the prompts by their content, never by row number. It holds a prompt with one response or a list of
them (under common column names), dialogues whose last turn is the response, or the samples.jsonl of a run, whose
prompts have ids. A blank response counts as one; a row without any is missing.

KL(policy || baseline) is the mean, over responses sampled from the policy, of log P_policy - log P_baseline of the
whole response (an unbiased estimate; `k1` of `rlaif.rl.advantages`). Both are taken at the temperature at which the
responses were sampled, as they are samples of no other distribution. Responses are stored as texts and tokenized again:
where a text has several tokenizations, the tokens may differ from the sampled ones, for both models alike.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rlaif.data.files import Rows, read_rows
from rlaif.data.prompts import InputIssues, InvalidRowError, prompt_id, read_prompts, recognise
from rlaif.errors import ModelError, UserError, nearest
from rlaif.evaluation.gold import run_samples
from rlaif.evaluation.policy_specs import EvaluateSettings, PolicySpec
from rlaif.feedback.sampling import GIVEN, rehearsals, sample_questions, sample_record, with_system
from rlaif.inference.base import StageStats, ask
from rlaif.inference.chat_template import ChatTemplate, UnwritableError
from rlaif.inference.model_folder import load_tokenizer, model_folder, parts_of
from rlaif.inference.models import LazyModel, model_name
from rlaif.progress import Progress
from rlaif.records import Failure, Messages, Prompt, Record, Sample, content_id
from rlaif.stats import Estimate, average
from rlaif.store import Table

_PROMPTS = ("instruction", "question", "query")
"""Columns of the prompt besides those that `rlaif.data.prompts` recognizes."""
_REPLIES = ("response", "completion", "responses", "completions", "answer", "answers", "output", "outputs")
_TALKS = ("messages", "conversations")
_TEXTS = ("text", "content", "response", "completion", "output", "generated_text")
"""Keys of the response in an object."""
_SAMPLE = frozenset({"prompt", "text", "policy", "index"})


class GivenAnswer(NamedTuple):
    """One response of a file."""

    text: str
    finish_reason: str | None = None
    """`length` where it was cut off; None where the file does not say."""


Answers = dict[str, list[GivenAnswer | None]]
"""By prompt id, in the order of the file; None where a response has no text."""


def read_answers(path: Path) -> Answers:
    """The responses of a file by prompt id. Raises UserError where none are recognized."""
    rows = read_rows(path)
    first = next(rows, None)
    if first is None:
        raise UserError("holds no rows", where=path)
    rows = itertools.chain([first], rows)
    if isinstance(first[1], dict) and first[1].keys() >= _SAMPLE:
        return {
            prompt: [
                None if sample is None else GivenAnswer(sample.text, sample.finish_reason)
                for sample in map(samples.get, range(max(samples) + 1))
            ]
            for prompt, samples in run_samples(path, rows).items()
        }
    return _read_rows(rows, path, first[0], first[1])


def _read_rows(rows: Rows, path: Path, line: int, first: object) -> Answers:
    reply, prompt = _find_columns(path, first)
    form = recognise(first, str(path), line, prompt, None)
    answers: Answers = {}
    for _, row in rows:
        try:
            parsed = form.read(row, lambda _: None)  # issues of other columns do not concern the responses
        except InvalidRowError:
            continue
        texts = [response.text for response in parsed.responses] if reply is None else _texts(row, reply)
        answers.setdefault(prompt_id(parsed.messages), []).extend(
            None if text is None else GivenAnswer(text) for text in texts
        )
    if not any(answer is not None for group in answers.values() for answer in group):
        raise UserError("no row holds a prompt with an answer", where=path)
    return answers


def _find_columns(path: Path, row: object) -> tuple[str | None, str | None]:
    """The columns of response and prompt; None for a response that ends a dialogue, and for a recognized prompt."""
    if not isinstance(row, dict):
        raise UserError("its rows are not objects", where=path, hint="give rows with `prompt` and `response`")
    conversation = next((name for name in _TALKS if name in row), None)
    prompt = None if "prompt" in row or conversation else next((name for name in _PROMPTS if name in row), None)
    reply = next((name for name in _REPLIES if name in row and name != prompt), None)
    if reply is None and ("prompt" in row or conversation is None):
        columns = ", ".join(map(str, row)) or "none"
        hint = "give rows with `prompt` and `response` or `responses`, or dialogues in `messages`"
        raise UserError(f"no answers that can be recognised (columns: {columns})", where=path, hint=hint)
    return reply, prompt


def _texts(row: object, name: str) -> Iterator[str | None]:
    """The responses of a row: a text, an object with one, or a list of either; None for text that UTF-8 cannot encode.

    JSON can write a lone surrogate, which no judge accepts.
    """
    cell = row.get(name) if isinstance(row, dict) else None
    for value in cell if isinstance(cell, list) else [cell]:
        text = value if isinstance(value, str) else None
        if isinstance(value, dict):
            text = next((value[key] for key in _TEXTS if isinstance(value.get(key), str)), None)
        try:
            (text or "").encode()
        except UnicodeEncodeError:
            text = None
        yield text.strip() if text is not None else None


def require_known(answers: Answers, prompts: Sequence[str], path: Path) -> None:
    """Raise UserError where the file answers none of the prompts."""
    if not any(prompt in answers for prompt in prompts):
        message = f"answers none of the {len(prompts):,} prompts (it has answers to {len(answers):,} others)"
        raise UserError(message, where=path, hint="is it the file for these prompts? They are joined by their texts")


@dataclass
class Gathered:
    """One policy with its answers."""

    contestant: PolicySpec
    identity: str
    """Of the model, or the file."""
    answers: dict[str, list[Sample | None]] = field(default_factory=dict)
    """By prompt id; None where one is missing."""
    failed: Counter[str] = field(default_factory=Counter)
    """Questions without an answer, by reason."""

    @property
    def name(self) -> str:
        """The contestant's."""
        return self.contestant.name

    @property
    def sampled(self) -> bool:
        """Whether its answers come from a model."""
        return self.contestant.model is not None

    def present(self) -> list[Sample]:
        """All answers there are."""
        return [sample for group in self.answers.values() for sample in group if sample is not None]

    @property
    def missing(self) -> int:
        """Answers that are not there."""
        return sum(sample is None for group in self.answers.values() for sample in group)


def identity_of(contestant: PolicySpec) -> str:
    """The source of its responses: the model with the fingerprint of its files, its name on a server, or the file."""
    if contestant.model is None:
        return str(contestant.answers)
    return model_name(contestant.model)


def require_distinct(contestants: Sequence[PolicySpec]) -> None:
    """Raise UserError where two servers call their models by one name: one's answers would pass for the other's."""
    servers: dict[str, tuple[str, str]] = {}
    for contestant in contestants:
        url = None if contestant.model is None else contestant.model.base_url or contestant.model.launch
        if url is None:
            continue
        name = identity_of(contestant)
        other, other_url = servers.setdefault(name, (contestant.name, url.rstrip("/")))
        if other_url != url.rstrip("/"):
            message = (
                f"`{other}` and `{contestant.name}` are both called `{name}` by their servers, which makes them one"
            )
            raise UserError(message, where=url, hint="serve them under different names (`--served-model-name`)")


def tag_of(settings: EvaluateSettings) -> Callable[[Prompt], str | None]:
    """The kind of a prompt, as the text in its column; None where there is none."""

    def tag(prompt: Prompt) -> str | None:
        value = None if settings.tag is None else prompt.metadata.get(settings.tag)
        return str(value).lower() if isinstance(value, bool) else None if value is None else str(value)

    return tag


def prompts_of(settings: EvaluateSettings, input_issues: InputIssues) -> list[Prompt]:
    """The prompts, each once, with the column that tells kinds of them apart.

    Raises UserError where there are none, there is no such column, or a harmful kind never occurs.
    """
    wanted = settings.prompts
    read = read_prompts(
        wanted.path, column=wanted.column, limit=wanted.limit, input_issues=input_issues, keep=settings.tag
    )
    prompts = [prompt.model_copy(update={"responses": ()}) for prompt in read]
    tag = tag_of(settings)
    kinds = {kind for prompt in prompts if (kind := tag(prompt)) is not None}
    for value in settings.harmful:
        if value not in kinds:
            message = f"no prompt has `{value}` in the column `{settings.tag}`"
            raise UserError(message, where=wanted.path, hint=nearest(value, kinds) if kinds else "")
    return prompts


def read_responses(contestant: PolicySpec, settings: EvaluateSettings, prompts: Sequence[Prompt]) -> Gathered:
    """The answers in a policy's file, the first `samples` to every prompt. Raises UserError where there are none."""
    path = contestant.answers
    assert path is not None
    answers = read_answers(path)
    require_known(answers, [prompt.id for prompt in prompts], path)
    gathered = Gathered(contestant, str(path))
    for prompt in prompts:
        texts = answers.get(prompt.id, [])[: settings.samples]
        samples = [
            None
            if answer is None
            else Sample(
                id=content_id(GIVEN, str(path), prompt.id, at, answer.text),
                prompt=prompt.id,
                index=at,
                text=answer.text,
                policy=str(path),
                finish_reason=answer.finish_reason,
            )
            for at, answer in enumerate(texts)
        ]
        gathered.answers[prompt.id] = samples + [None] * (settings.samples - len(samples))
    if not gathered.present():
        raise UserError("has no answer to any of the prompts", where=path)
    return gathered


async def sample_responses(
    contestant: PolicySpec,
    settings: EvaluateSettings,
    prompts: Sequence[Prompt],
    samples: Table[Sample],
    failures: Table[Failure],
    folder: Path,
    progress: Progress,
) -> tuple[Gathered, StageStats]:
    """Sample the missing responses of a model, which is loaded only where there are any, and closed again.

    Raises ModelError where the model cannot go on, or gives no response at all.
    """
    assert contestant.model is not None
    source = LazyModel(
        contestant.model, log=log_of(folder, contestant.name), say=progress.note,
        rehearsals=lambda: rehearsals(prompts[:1], settings.system, "system"),
    )  # fmt: skip
    policy = settings.sampling_for(contestant.model.model)
    stage = f"sample {contestant.name}"
    progress.begin(stage, len(prompts) * settings.samples)
    try:
        missing = (question for prompt in prompts for question in sample_questions(prompt, policy, source.name))
        stats = await ask(
            missing, source, samples, sample_record, failures,
            stage=stage, max_failed=settings.max_failed, progress=progress,
        )  # fmt: skip
    finally:
        await source.close()
    progress.end(stats.stage, stats.summary)
    gathered = Gathered(contestant, source.name)
    for prompt in prompts:
        questions = sample_questions(prompt, policy, source.name)
        gathered.answers[prompt.id] = [samples.get(question.id) for question in questions]
        gathered.failed.update(reason_of(question.id, failures) for question in questions if question.id not in samples)
    if not gathered.present():
        reasons = ", ".join(f"{reason} {count}" for reason, count in gathered.failed.most_common())
        raise ModelError(f"`{contestant.name}` gave no answer ({reasons}); see {failures.path}, and run this again")
    return gathered, stats


def reason_of(question: str, failures: Table[Failure]) -> str:
    """Why a question has no answer."""
    failure = failures.get(question)
    return failure.reason if failure is not None else "not asked"


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


async def measure_kl(
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
