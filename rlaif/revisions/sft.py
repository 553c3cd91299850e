"""Rows of the SFT dataset: what a chain of revisions teaches, and demonstrations that are taken as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlaif.records import Demonstration, Message, Prompt, content_id
from rlaif.revisions.guards import Use
from rlaif.revisions.plan import Step


def rows(prompt: Prompt, steps: Sequence[Step], rounds: Sequence[int], constitution: str) -> Iterator[Demonstration]:
    """The replies after the wanted rounds (all where none is named), each once, and none that is the sample itself.

    What is nearly the same as its parent is no reply of its own (see `Use`), so it makes no row.
    """
    made: list[Step] = []
    told = set[str]()
    for step in steps:
        if step.use is Use.REVISED:
            made.append(step)
        if step.revision is None or not made or (rounds and step.round not in rounds):
            continue
        reply, revision = made[-1].reply, made[-1].revision
        assert reply is not None and revision is not None  # a usable revision has both
        if reply.id in told:
            continue
        told.add(reply.id)
        yield Demonstration(
            id=content_id("sft", reply.id),
            prompt=prompt.messages,
            response=(Message(role="assistant", content=reply.text),),
            source="revision",
            round=revision.round,
            principles=tuple(each.principle.id for each in made),
            prompt_id=prompt.id,
            sample_id=revision.sample,
            revision_id=revision.id,
            critique_id=revision.critique,
            writer=revision.judge,
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
