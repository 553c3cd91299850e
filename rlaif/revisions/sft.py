"""Rows of the SFT dataset: what a chain of revisions teaches, and demonstrations that are taken as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlaif.records import Message, Prompt, Sample, content_id
from rlaif.revisions.guards import Use
from rlaif.revisions.plan import Step
from rlaif.revisions.records import Demonstration


def rows(
    prompt: Prompt, sample: Sample, steps: Sequence[Step], rounds: Sequence[int], constitution: str
) -> Iterator[Demonstration]:
    """The replies to `prompt` after the wanted rounds (all where none is named), each text once.

    What is the same as its parent (see `Use`) or as the sample itself makes no row.
    """
    made: list[Step] = []
    told = {sample.text.strip()}
    for step in steps:
        if step.use is Use.REVISED:
            made.append(step)
        if step.revision is None or not made or (rounds and step.round not in rounds):
            continue
        last = made[-1]
        assert last.reply is not None and last.revision is not None  # a usable revision has both
        if last.reply.text in told:
            continue
        told.add(last.reply.text)
        yield Demonstration(
            id=content_id("sft", sample.id, last.reply.id),
            prompt=prompt.messages,
            response=(Message(role="assistant", content=last.reply.text),),
            source="revision",
            round=last.round,
            principles=tuple(each.principle.id for each in made),
            prompt_id=prompt.id,
            sample_id=sample.id,
            revision_id=last.revision.id,
            critique_id=last.revision.critique,
            writer=last.revision.judge,
            constitution=constitution,
        )


def helpful_rows(prompt: Prompt) -> Iterator[Demonstration]:
    """The answers that came with a prompt, as they are; blank ones left out."""
    for at, given in enumerate(prompt.responses):
        if given.text.strip():
            yield Demonstration(
                id=content_id("helpful", prompt.id, at, given.text),
                prompt=prompt.messages,
                response=(Message(role="assistant", content=given.text),),
                source="helpful",
                prompt_id=prompt.id,
            )
