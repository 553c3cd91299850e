"""Experience: from the prompts of a training to the scored responses of a step and the tensors that its update reads.

`Prompts` reads and tokenizes them, holds some out, and deals those of each step. The protocols name who responds and
who scores. In an `Experience` everything is flat: [tokens] over all responses one after another, [responses] over all
responses, those to one prompt adjacent. One prompt with its responses is one `Group`, so that its forward pass is
shared between them.

A policy that exploits its reward grows longer, repeats itself, opens every response alike or stops varying, and the
reward alone looks healthy all the while. `response_metrics` measures these symptoms from the responses themselves; no
model is asked. `rlaif.rl.monitor` compares them with their values at the start.
"""

from __future__ import annotations

import itertools
import math
import random
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from rlaif.data.prompts import InputIssues, read_prompts
from rlaif.errors import ModelError, UserError
from rlaif.inference.chat_template import ChatTemplate, UnwritableError
from rlaif.records import Messages, content_id
from rlaif.stats import mean
from rlaif.text import commonest_opening, distinct, refuses, repetition, words_of
from rlaif.training.tokenize import Group

if TYPE_CHECKING:
    import torch
    from torch import Tensor

RESPONSE_METRICS: dict[str, str] = {
    "responses": "answers in the batch",
    "length": "mean length of an answer, in tokens",
    "length_p95": "95th percentile of the lengths, in tokens",
    "truncated": "share of the answers that met the limit before they ended",
    "empty": "share of the answers without a word or a sign",
    "distinct_1": "different words over all words of the batch, from 0 to 1",
    "distinct_2": "different pairs of neighbouring words over all such pairs of the batch, from 0 to 1",
    "distinct_3": "the same of three words",
    "repetition": "share of an answer's runs of four words that stood in it before, mean over the answers",
    "openings": "share of the answers that begin with the batch's commonest first four words",
    "refusals": "share of the answers that open like an English refusal",
    "entropy": "mean of -log p of the sampled tokens, in nats per token",
}
"""What `response_metrics` measures, by name: what it is, and its unit. Every batch has all of them."""


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """A prompt, ready to be sampled from."""

    id: str
    messages: Messages
    """What rewards and judges are shown."""
    ids: Sequence[int]
    """Token ids, the generation prompt included; never empty."""


@dataclass(frozen=True, slots=True)
class Response:
    """One sampled response."""

    prompt: TokenizedPrompt
    index: int
    """Which of the responses to its prompt, from 0."""
    ids: Sequence[int]
    """Token ids; the last one ends the response where it is `finished`. Never empty."""
    logps: Sequence[float]
    """Of every token, as the sampler computed them, at the sampling temperature."""
    text: str
    """Without special tokens."""
    finished: bool
    """Whether it ended by itself, and not at the limit."""
    version: int
    """Of the weights that sampled it: how many updates the policy had seen."""


class Scores(NamedTuple):
    """What a reward gives some responses."""

    total: Sequence[float | None]
    """What is trained on; None where there is no score, as for a judge that failed: such a response is left out."""
    parts: Mapping[str, Sequence[float | None]]
    """By name, before weights: one for a plain reward, one a principle for a judge, all of a sum's."""


class Reward(Protocol):
    """Scores responses: a reward model, a judge, a URL, a function, or a sum of them."""

    def __call__(self, prompts: Sequence[Messages], responses: Sequence[str]) -> Scores:
        """One score a response, higher is better; `prompts` are as many as `responses`."""
        ...

    def state(self) -> Mapping[str, float]:
        """What a resumed training has to restore (running means, for instance); nothing for most."""
        return {}

    def restore(self, state: Mapping[str, float]) -> None:  # noqa: ARG002 - stateless by default
        """Continue from a `state`."""
        return

    def close(self) -> None:
        """Release connections and memory."""
        ...


class Sampler(Protocol):
    """Samples responses from the policy."""

    def sample(self, prompts: Sequence[TokenizedPrompt], samples: int, step: int) -> list[Response]:
        """`samples` responses to every prompt, those to one prompt adjacent; the noise depends on `step`."""
        ...

    def update(self, version: int) -> None:
        """Take up the policy's weights as they are now, under this number."""
        ...

    def close(self) -> None:
        """Release connections, files and memory."""
        ...


def response_metrics(responses: Sequence[Response]) -> dict[str, float]:
    """The `RESPONSE_METRICS` of one step's responses. Raises ValueError where there are none.

    - The distinct shares (Li et al. 2016, arXiv:1510.03055) fall as the batch grows, because a larger batch repeats
      more words: compare them with the start's only at the same batch size. Where no response has so many words, the
      share is 0.
    - `openings` is never under 1 / `responses`, and responses to one prompt open alike: compare it at the same batch
      size and the same number of responses per prompt.
    - `entropy` estimates that of the distribution that was sampled from, at its temperature: the expected -log p of a
      token is the entropy at its position. It says nothing of greedy responses.
    """
    import numpy as np

    if not responses:
        raise ValueError("no responses to take the figures of")
    lengths = [len(response.ids) for response in responses]
    texts = [response.text for response in responses]
    words = [words_of(text) for text in texts]
    metrics = {
        "responses": float(len(responses)),
        "length": mean(lengths),
        "length_p95": float(np.percentile(lengths, 95)),
        "truncated": mean([float(not response.finished) for response in responses]),
        "empty": mean([float(not text.strip()) for text in texts]),
        "repetition": mean([repetition(response_words) for response_words in words]),
        "openings": commonest_opening(words)[1],
        "refusals": mean([float(refuses(text)) for text in texts]),
        "entropy": -math.fsum(logp for response in responses for logp in response.logps) / sum(lengths),
    }
    return metrics | {f"distinct_{size}": distinct(words, size) for size in (1, 2, 3)}


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
        import torch

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
    import torch

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
    import torch

    starts = list(itertools.accumulate(sizes, initial=0))
    return (
        torch.cat([torch.arange(starts[at], starts[at] + sizes[at]) for at in chosen])
        if chosen
        else torch.zeros(0).long()
    )


class Prompts(NamedTuple):
    """The prompts of a training, split."""

    train: Sequence[TokenizedPrompt]
    held_out: Sequence[TokenizedPrompt]
    """For the held-out judge, chosen by hash: the same whatever else is in the file."""
    notes: Sequence[str]
    """Notes for the user, a line each."""

    @property
    def hash(self) -> str:
        """A hash of all of them by content."""
        return content_id([prompt.id for prompt in self.train], [prompt.id for prompt in self.held_out])


def load_prompts(
    path: str,
    tokenizer: Any,
    *,
    held_out: int = 0,
    longest: int = 1024,
    limit: int | None = None,
    template_options: Mapping[str, Any] | None = None,
) -> Prompts:
    """Read prompts; those of more than `longest` tokens, and those that the chat template cannot write, are left out.

    Raises UserError where there are none, or too few to hold `held_out` of them out.
    """
    file = Path(path).expanduser()
    issues, notes = InputIssues(), []
    rows = read_prompts(file / "prompts.jsonl" if file.is_dir() else path, limit=limit, input_issues=issues)
    cue = Cue(tokenizer, template_options)
    tokenized, refusals = [], Counter[str]()
    for prompt in rows:
        try:
            tokenized.append(TokenizedPrompt(prompt.id, prompt.messages, cue(prompt.messages)))
        except UnwritableError as error:
            refusals[str(error)] += 1
    if issues.counts:
        notes.append(f"{path}: {issues}")
    for why, count in refusals.most_common(3):
        notes.append(f"{count:,} prompts are left out: {why}")
    prompts = [prompt for prompt in tokenized if len(prompt.ids) <= longest]
    if len(prompts) < len(tokenized):
        notes.append(f"{len(tokenized) - len(prompts):,} prompts of more than {longest:,} tokens are left out")
    if len(prompts) <= held_out:
        what = f"{len(prompts)} prompts are too few" + (f" to set {held_out} of them aside" if held_out else "")
        what += f" ({'; '.join(notes)})" if notes else ""
        raise UserError(what, where=path, hint="give more, or lower `held_out.prompts`" if held_out else "give others")
    by_hash = sorted(prompts, key=lambda prompt: content_id("held", prompt.id))
    held_out_ids = {prompt.id for prompt in by_hash[:held_out]}
    train = [prompt for prompt in prompts if prompt.id not in held_out_ids]
    notes.append(f"{len(train):,} prompts to train on" + (f", {held_out} for the held-out judge" if held_out else ""))
    return Prompts(train, [prompt for prompt in prompts if prompt.id in held_out_ids], notes)


class Cue:
    """Turns a conversation into the token ids that the response follows, the generation prompt included."""

    def __init__(self, tokenizer: Any, template_options: Mapping[str, Any] | None = None) -> None:
        self._tokenizer = tokenizer
        self.template = ChatTemplate(tokenizer, template_options)

    def text(self, messages: Messages) -> str:
        """The text by the chat template; without one, a single message is its own text, and several cannot be written.

        Raises UnwritableError where the template refuses it, or leaves out a text of it.
        """
        if not self.template.exists:
            if len(messages) == 1:
                return messages[0].content
            what = "the tokenizer has no chat template, and a prompt has several messages"
            name = str(getattr(self._tokenizer, "name_or_path", "") or "the tokenizer")
            raise UserError(what, where=name, hint="save a chat_template.jinja beside it")
        return self.template.prompt(messages)

    def __call__(self, messages: Messages) -> Sequence[int]:
        """The token ids; a chat template writes all special tokens, raw text gets the tokenizer's first one."""
        (ids,) = self.template.ids([self.text(messages)], raw=not self.template.exists)
        if not ids:
            raise UserError("a prompt is empty", hint="remove it")
        return array("i", ids)


@dataclass(frozen=True)
class PromptSampler:
    """The prompts of each step: pass after pass over all of them, each pass in an order of its own.

    The prompts of a step depend on its number and the seed alone, so that a resumed training needs no state of it.
    """

    prompts: Sequence[TokenizedPrompt]
    step_prompts: int
    """Prompts of a step."""
    seed: int

    def of(self, step: int) -> list[TokenizedPrompt]:
        """The prompts of a step, numbered from 0, all different; a pass drops the last prompts that fill no step."""
        steps = len(self.prompts) // self.step_prompts
        order = list(range(len(self.prompts)))
        random.Random(f"{self.seed} {step // steps}").shuffle(order)
        start = step % steps * self.step_prompts
        return [self.prompts[at] for at in order[start : start + self.step_prompts]]
