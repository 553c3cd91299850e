"""The chains of the revise stage: which principle each round goes by, what is asked, and how far a chain has come.

Round by round the judge reviews the current reply under a principle and rewrites it in that light. The principle of a
round is drawn by hash, with replacement (arXiv:2212.08073, section 3.1): the same seed draws the same ones, and
rewording a principle moves no draw. A revision that is unusable or unchanged is kept as a record, and the next round
starts from where this one did.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from rlaif.asking import Judge
from rlaif.constitution import Constitution, Principle
from rlaif.critiques.plan import critique_question
from rlaif.critiques.questions import Shot, revise_messages
from rlaif.errors import UserError
from rlaif.inference.base import Answer, Question
from rlaif.records import Critique, Prompt, Revision, Sample, Sampling
from rlaif.revisions.guards import Parent, Use, use_of
from rlaif.revisions.speech import spoken
from rlaif.samples.meetings import draw
from rlaif.settings import RunSettings
from rlaif.templates import restored
from rlaif.thinking import without_thinking


class Known(NamedTuple):
    """How the answers on disk are found, by the id of their question."""

    critique: Callable[[str], Critique | None]
    revision: Callable[[str], Revision | None]


class Step(NamedTuple):
    """One round of a chain, as far as it is known: what is still missing is None."""

    round: int
    principle: Principle
    parent: Sample
    """The reply that this round starts from, a sample or an earlier revision."""
    critique_question: Question | None
    """None where no critique is wanted."""
    revision_question: Question | None
    """None while the critique is missing."""
    revision: Revision | None
    use: Use | None
    reply: Sample | None
    """The reply after this round: the revision, or where that is of no use, the parent."""


def reviser_principles(constitution: Constitution, settings: RunSettings) -> tuple[Principle, ...]:
    """The principles that a round may go by: those with the texts for it. Raises UserError where there are none."""
    skip = settings.revise.skip_critique
    found = tuple(each for each in constitution.principles if each.revise and (each.critique or skip))
    if not found:
        wanted = "`revise`" if skip else "both `critique` and `revise`"
        raise UserError(f"no principle has {wanted}", where=settings.constitution, mend="write them for at least one")
    return found


def chain(
    prompt: Prompt,
    sample: Sample,
    principles: Sequence[Principle],
    settings: RunSettings,
    judge: Judge,
    known: Known,
    *,
    rounds: int | None = None,
) -> Iterator[Step]:
    """The rounds of one sample's chain (the first `rounds`), up to the first whose answers are not all on disk.

    Where the judge wrote an empty critique, the revision is asked for without one.
    """
    revise, reply = settings.revise, sample
    for number in range(1, (rounds or revise.rounds) + 1):
        principle = draw(principles, ("revise", f"seed {revise.seed}", sample.id, f"round {number}"))
        asked: Question | None = None
        notes: str | None = None
        critique_id: str | None = None
        if not revise.skip_critique:
            asked = _critique_question(prompt, reply, principle, settings, judge)
            critique = known.critique(asked.id)
            if critique is None:
                yield Step(number, principle, reply, asked, None, None, None, None)
                return
            notes, critique_id = without_thinking(critique.text).strip() or None, critique.id
        question = _revision_question(prompt, sample, reply, principle, notes, critique_id, number, settings, judge)
        revision = known.revision(question.id)
        if revision is None:
            yield Step(number, principle, reply, asked, question, None, None, None)
            return
        text = restored(spoken(revision.text), reply.text)
        shown = tuple(shot.revision for shot in _shots(principle, settings))
        parent = Parent(reply.text, notes, principle.revise or "", prompt.messages[-1].content, shown)
        use = use_of(text, parent, revision.finish_reason)
        after = as_sample(revision, sample, text) if use is Use.REVISED else reply
        yield Step(number, principle, reply, asked, question, revision, use, after)
        reply = after


def as_sample(revision: Revision, sample: Sample, text: str) -> Sample:
    """A usable revision as one more reply to the prompt."""
    return Sample(
        id=revision.id,
        prompt=revision.prompt,
        index=sample.index,
        text=text,
        policy=revision.judge,
        revision_of=sample.id,
    )


def _critique_question(
    prompt: Prompt, reply: Sample, principle: Principle, settings: RunSettings, judge: Judge
) -> Question:
    """The same question as the critique stage's, so that a critique of a sample is not asked for twice."""
    chars = settings.compare.max_chars
    shots = _shots(principle, settings)
    return critique_question(prompt, reply, principle, settings.critique, judge, max_chars=chars, shots=shots)


def _revision_question(
    prompt: Prompt,
    sample: Sample,
    reply: Sample,
    principle: Principle,
    notes: str | None,
    critique_id: str | None,
    number: int,
    settings: RunSettings,
    judge: Judge,
) -> Question:
    revise = settings.revise
    shots, request = _shots(principle, settings), principle.revise or ""
    return Question(
        "revise",
        judge.name,
        revise_messages(
            prompt.messages,
            reply.text,
            notes,
            request,
            max_chars=settings.compare.max_chars,
            shots=shots,
            templates=judge.templates,
        ),
        Sampling(
            max_tokens=revise.max_tokens,
            temperature=revise.temperature,
            top_p=revise.top_p,
            seed=_seed(revise.seed, sample.id, number) if revise.temperature > 0 else None,
        ),
        about={
            "prompt": prompt.id,
            "sample": sample.id,
            "parent": reply.id,
            "critique": critique_id,
            "principle": principle.id,
            "round": number,
        },
    )


def _shots(principle: Principle, settings: RunSettings) -> list[Shot]:
    """The principle's first examples as solved cases; with a critique, of those that say why."""
    skip = settings.revise.skip_critique
    told = [each for each in principle.examples if skip or each.why is not None]
    return [Shot(each.prompt, each.worse, each.why, each.better) for each in told[: settings.revise.shots]]


def _seed(seed: int, sample: str, number: int) -> int:
    digest = hashlib.blake2b(f"revise\0{seed}\0{sample}\0{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 2**31


def revision_record(question: Question, answer: Answer) -> Revision:
    """The record of one revision, its text as it came."""
    about = question.about
    critique = about["critique"]
    return Revision(
        id=question.id,
        prompt=str(about["prompt"]),
        sample=str(about["sample"]),
        parent=str(about["parent"]),
        critique=None if critique is None else str(critique),
        principle=str(about["principle"]),
        round=int(about["round"] or 0),
        judge=question.model,
        text=answer.text,
        finish_reason=answer.finish_reason,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
    )
