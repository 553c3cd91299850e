"""The sample stage: the responses to draw for each prompt, their seeds, and their records.

Every draw is seeded by a hash of what it belongs to, so a run that grows or resumes draws the same responses again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from rlaif.config.schemas import PolicySettings
from rlaif.inference.base import Output, Question, Rehearsal
from rlaif.records import Message, Messages, Prompt, Sample, Sampling, content_id

GIVEN = "given"
"""Policy name of the responses that came with the input."""


def sample_questions(prompt: Prompt, policy: PolicySettings, model: str) -> list[Question]:
    """One question a sample. Each has its own seed, so a server draws the same responses again, in any order."""
    messages = with_system(prompt.messages, policy.system)
    return [
        Question(
            "sample",
            model,
            messages,
            sampling_of(policy, prompt.id, index),
            index=index,
            about={"prompt": prompt.id},
        )
        for index in range(policy.samples)
    ]


def with_system(messages: Messages, system: str | None) -> Messages:
    """A conversation with a system message before it, unless it has one of its own."""
    if not system or messages[0].role == "system":
        return messages
    return (Message(role="system", content=system), *messages)


def rehearsals(prompts: Iterable[Prompt], system: str | None, where: str = "policy.system") -> list[Rehearsal]:
    """The first prompt of each kind by its roles, as it is, and with the system message of the setting `where`."""
    kinds: dict[tuple[str, ...], Messages] = {}
    for prompt in prompts:
        kinds.setdefault(tuple(message.role for message in prompt.messages), prompt.messages)
    hint = "leave it out, or write it at the beginning of each prompt"
    return [
        Rehearsal("prompts", messages, "give other prompts, or another chat template") for messages in kinds.values()
    ] + [
        Rehearsal(where, with_system(messages, system), hint)
        for messages in kinds.values()
        if system and messages[0].role != "system"
    ]


def sampling_of(policy: PolicySettings, prompt: str, index: int) -> Sampling:
    """How one response to a prompt, named by its id, is drawn."""
    return Sampling(
        max_tokens=policy.max_tokens,
        temperature=policy.temperature,
        top_p=policy.top_p,
        seed=seed_of(policy, prompt, index),
    )


def is_planned(policy: PolicySettings, prompt: str, index: int, sampling: Mapping[str, object]) -> bool:
    """Whether a response on disk, by how it was drawn, is one that these settings draw, and not of earlier settings."""
    alike = all(sampling.get(name) == getattr(policy, name) for name in ("max_tokens", "temperature", "top_p"))
    return index < policy.samples and alike and sampling.get("seed") == seed_of(policy, prompt, index)


def seed_of(policy: PolicySettings, prompt: str, index: int) -> int | None:
    """The seed of one draw; None where nothing is drawn."""
    if policy.temperature == 0:
        return None
    return hash64(str(policy.seed), prompt, str(index)) % 2**31


def hash64(*parts: str) -> int:
    """A uniform 64-bit number, a function of `parts` alone: the source of chance in a run."""
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def sample_record(question: Question, output: Output) -> Sample:
    """The record of one drawn response."""
    return Sample(
        id=question.id,
        prompt=str(question.about["prompt"]),
        index=question.index,
        text=output.text,
        policy=question.model,
        sampling=question.sampling,
        finish_reason=output.finish_reason,
        prompt_tokens=output.prompt_tokens,
        completion_tokens=output.completion_tokens,
    )


def given_samples(prompt: Prompt) -> list[Sample]:
    """The responses that came with the prompt, as samples; equal texts get different ids by their index."""
    ids = [content_id(GIVEN, prompt.id, index, given.text) for index, given in enumerate(prompt.responses)]
    return [
        Sample(
            id=ids[index],
            prompt=prompt.id,
            index=index,
            text=given.text,
            policy=GIVEN,
            revision_of=None if given.revision_of is None else ids[given.revision_of],
        )
        for index, given in enumerate(prompt.responses)
    ]
