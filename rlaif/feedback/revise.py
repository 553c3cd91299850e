"""Critique and revision in rounds: what is asked, how far a chain has come, and the SFT rows that it ends in.

The chains of the revise stage: which principle each round goes by, what is asked, and how far a chain has come.

Round by round the judge reviews the current reply under a principle and rewrites it in that light. The principle of a
round is drawn by hash, with replacement (arXiv:2212.08073, section 3.1): the same seed draws the same ones, and
rewording a principle moves no draw. A revision that is unusable or unchanged is kept as a record, and the next round
starts from where this one did.

Rows of the SFT dataset: what a chain of revisions teaches, and demonstrations that are taken as they are.

The revise stage of a run: its questions round by round, and what the chains come to.

Files, beside those of `rlaif.feedback.run`: `revisions.jsonl` the revisions as they came; derived, written whole or not
at all: `chains.jsonl` each sample's rounds and what came of them, `sft.jsonl` the demonstrations, `revised_pairs.jsonl`
and `.parquet` the revisions against their originals as the judge sees them, and `revised.json` the counts, last. A
revision is not assumed to be better than its original: the judge compares the two like any other pair, and may prefer
the original.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import NamedTuple

from pydantic import JsonValue

from rlaif import __version__
from rlaif.config.judge_templates import Judge, restored
from rlaif.config.schemas import CompareSettings, RunSettings
from rlaif.constitution import Constitution, Principle
from rlaif.data.prompts import InputIssues, read_prompts
from rlaif.errors import UserError
from rlaif.feedback.aggregate import Comparison, Status, folded
from rlaif.feedback.critique import critique_question
from rlaif.feedback.judge import compare_questions, votes
from rlaif.feedback.matchups import Matchup, criteria_of, distinct_samples, draw, matchups
from rlaif.feedback.position_bias import PositionBias, bias_summary, position_bias, removes_bias
from rlaif.feedback.prompts import Shot, revise_messages
from rlaif.feedback.ranking import Provenance, pairs, rank_samples, write_parquet
from rlaif.feedback.revision_checks import Parent, Use, spoken, use_of
from rlaif.feedback.run import Run
from rlaif.inference.base import Output, Question
from rlaif.records import (
    Chain,
    Critique,
    Demonstration,
    Message,
    Prompt,
    Record,
    Revision,
    Round,
    Sample,
    Sampling,
    content_id,
)
from rlaif.store import record_writer, sha256_of, write_json
from rlaif.text import without_thinking


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
        raise UserError(f"no principle has {wanted}", where=settings.constitution, hint="write them for at least one")
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


def revision_record(question: Question, answer: Output) -> Revision:
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


_FILES = ("prompts.jsonl", "chains.jsonl", "sft.jsonl", "revised_pairs.jsonl")
MANIFEST = "revised.json"
"""Its presence means that the files beside it are what the revisions of the run come to."""


class Revising(NamedTuple):
    """A sample and its rounds, as far as they are on disk."""

    sample: Sample
    steps: tuple[Step, ...]

    @property
    def final(self) -> Sample:
        """The reply at its end; the sample itself where nothing else came, or where its own text came back."""
        reply = next((step.reply for step in reversed(self.steps) if step.reply is not None), self.sample)
        return self.sample if reply.text.strip() == self.sample.text.strip() else reply

    def record(self) -> Chain:
        """Its rounds that are answered."""
        return Chain(
            id=self.sample.id,
            prompt=self.sample.prompt,
            rounds=tuple(
                Round(
                    round=step.round,
                    principle=step.principle.id,
                    parent=step.parent.id,
                    critique=step.revision.critique,
                    revision=step.revision.id,
                    use=step.use.value,
                )
                for step in self.steps
                if step.revision is not None and step.use is not None
            ),
            final=self.final.id,
        )


@dataclass
class Revised:
    """The counts of the revise stage, over all the sessions that made it."""

    counts: Counter[str] = field(default_factory=Counter)
    uses: Counter[str] = field(default_factory=Counter)
    """Revisions by what they are good for (see `Use`)."""
    principles: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """The same for every principle."""
    failures: Counter[str] = field(default_factory=Counter)
    """Questions without an answer, as `stage: reason`."""
    input_issues: InputIssues = field(default_factory=InputIssues)
    """What was odd about the helpful answers."""
    slot: PositionBias | None = None
    """The judge's liking for a slot, where it compares in one order and this is to be removed."""


def chains(run: Run, prompt: Prompt, rounds: int | None = None) -> list[Revising]:
    """The chains of one prompt (their first `rounds`): of its first samples, blank and repeated ones left out.

    A reply that is too long to be shown whole is not revised: its middle would be missing from the revision.
    """
    settings = run.settings
    principles = reviser_principles(run.constitution, settings)
    known = Known(run.critiques.get, run.revisions.get)
    return [
        Revising(sample, tuple(chain(prompt, sample, principles, settings, run.judge, known, rounds=rounds)))
        for sample in _first_samples(run, prompt)
        if len(sample.text) <= settings.compare.max_chars
    ]


def _first_samples(run: Run, prompt: Prompt) -> list[Sample]:
    return distinct_samples(run.samples_of(prompt, run.settings.revise.samples))


def steps_of_round(run: Run, number: int) -> Iterator[Step]:
    """That round of every chain that has come so far."""
    for prompt in run.prompts():
        for each in chains(run, prompt, number):
            yield from each.steps[number - 1 : number]


def critique_questions(run: Run, number: int) -> Iterator[Question]:
    """The critiques of a round."""
    return (step.critique_question for step in steps_of_round(run, number) if step.critique_question is not None)


def revision_questions(run: Run, number: int) -> Iterator[Question]:
    """The revisions of a round, as far as their critiques are there."""
    return (step.revision_question for step in steps_of_round(run, number) if step.revision_question is not None)


def confirm_questions(run: Run) -> Iterator[Question]:
    """Every final revision against its original, for the judge."""
    for prompt in run.prompts():
        for each in chains(run, prompt):
            yield from _compared(run, prompt, each)[1]


def _compared(run: Run, prompt: Prompt, each: Revising) -> tuple[list[Matchup], list[Question]]:
    """The meeting of a chain's end with its beginning, none where they are the same, and the judge's questions."""
    compare = _compare_settings(run)
    criteria = criteria_of(run.constitution, compare.principles)
    met = matchups([each.sample, each.final], criteria, compare)
    return met, list(compare_questions(prompt, met, compare, run.judge))


def _compare_settings(run: Run) -> CompareSettings:
    """As samples are compared, but by `revise.principles`, without critiques (those are spent on the revision), and by
    the judge alone, whose revision it may be."""
    compare = run.settings.compared_by(run.settings.judge)
    return compare.model_copy(update={"principles": run.settings.revise.principles, "critique": False})


def _slot_bias(run: Run) -> PositionBias | None:
    """Told from these comparisons alone, as there may be no others."""
    if not removes_bias(_compare_settings(run)):
        return None
    questions = (
        (q for each in chains(run, prompt) for q in _compared(run, prompt, each)[1]) for prompt in run.prompts()
    )
    answers = ([run.judgements.get(question.id) for question in of_prompt] for of_prompt in questions)
    return position_bias(answers, min_mass=run.settings.pair.min_label_mass)


def judged(run: Run, prompt: Prompt, each: Revising, slot: float = 0.0) -> Comparison | None:
    """What the judge says about a chain's original (left) and its end; None where nothing was revised.

    `slot` is its liking for the first one, to be taken off.
    """
    met, questions = _compared(run, prompt, each)
    for matchup, cast in votes(met, questions, run.judgements.get, _compare_settings(run), slot=slot):
        return folded(matchup.left.id, matchup.right.id, cast, run.settings.pair)
    return None


def derive_revised(run: Run, sessions: JsonValue = None) -> Revised:
    """Write what everything on disk comes to: chains, SFT dataset, judged pairs, and the counts last."""
    run.invalidate_manifest(MANIFEST)
    made = Revised(slot=_slot_bias(run))
    constitution = f"{run.constitution.name}@{run.constitution.hash[:12]}"
    with ExitStack() as stack:
        write_chain, write_row, write_pair = (
            stack.enter_context(record_writer(run.folder / name)) for name in _FILES[1:]
        )
        for prompt in run.prompts():
            found, told = chains(run, prompt), set[str]()
            made.counts["too_long"] += len(_first_samples(run, prompt)) - len(found)
            for each in found:
                write_chain(each.record())
                _count_chain(run, each, made)
                for row in rows(prompt, each.sample, each.steps, run.settings.revise.sft_rounds, constitution):
                    if row.response[0].content not in told:  # two chains may come to the same reply
                        told.add(row.response[0].content)
                        write_row(row)
                        made.counts["sft_rows"] += 1
                _pair_up(run, prompt, each, made, constitution, write_pair)
        for row in helpful_demonstrations(run.settings, made.input_issues):
            write_row(row)
            made.counts["helpful_rows"] += 1
    write_parquet(run.folder / "revised_pairs.jsonl", run.folder / "revised_pairs.parquet")
    write_json(run.folder / MANIFEST, _manifest(run, made, sessions))
    return made


def _count_chain(run: Run, each: Revising, made: Revised) -> None:
    made.counts.update(chains=1, changed=each.final.id != each.sample.id)
    for step in each.steps:
        if step.use is not None:
            made.uses[step.use.value] += 1
            made.principles[step.principle.id][step.use.value] += 1
            critique = run.critiques.get(step.critique_question.id) if step.critique_question else None
            if critique is not None:
                made.counts["critiques_empty"] += not without_thinking(critique.text).strip()
                made.counts["critiques_truncated"] += critique.finish_reason == "length"
            continue
        question = step.revision_question or step.critique_question
        stage = f"revise {step.round}" if step.revision_question else f"critique {step.round}"
        _count_failure(run, stage, question, made)


def _count_failure(run: Run, stage: str, question: Question | None, made: Revised) -> None:
    failure = None if question is None else run.failures.get(question.id)
    made.failures[f"{stage}: {failure.reason if failure else 'not asked yet'}"] += 1


def _pair_up(
    run: Run, prompt: Prompt, each: Revising, made: Revised, constitution: str, write: Callable[[Record], None]
) -> None:
    comparison = judged(run, prompt, each, made.slot.removed if made.slot else 0.0)
    if comparison is None:
        return
    made.counts["flipped"] += comparison.flip
    if comparison.status is Status.LABELLED:
        made.counts["confirmed" if comparison.logit < 0 else "refuted"] += 1
    else:
        made.counts[f"judged_{comparison.status.value}"] += 1
    if comparison.status is Status.FAILED:
        for question in _compared(run, prompt, each)[1]:
            if question.id not in run.judgements:
                _count_failure(run, "confirm", question, made)
    standing = rank_samples(prompt, [each.sample, each.final], [comparison])
    select = run.settings.pair.model_copy(update={"select": "all"})
    for pair in pairs(standing, select, _compare_settings(run), Provenance(run.judge_name, constitution)):
        write(pair)
        made.counts["pairs"] += 1


def helpful_demonstrations(settings: RunSettings, input_issues: InputIssues | None = None) -> Iterator[Demonstration]:
    """The answers that `revise.helpful` mixes in. Raises UserError where its file has none."""
    wanted = settings.revise.helpful
    if wanted is None:
        return
    count = 0
    for prompt in read_prompts(
        wanted.path,
        column=wanted.column,
        responses=wanted.responses,
        limit=wanted.limit,
        input_issues=input_issues,
        with_answers=True,
    ):
        for row in helpful_rows(prompt):
            count += 1
            yield row
    if not count:
        hint = "name their column in `revise.helpful.responses`, or give `messages` that end in an answer"
        raise UserError("holds prompts and no answers", where=wanted.path, hint=hint)


def _manifest(run: Run, made: Revised, sessions: JsonValue) -> JsonValue:
    return {
        "made_by": f"rlaif {__version__}",
        "schema": 1,
        "constitution": {"name": run.constitution.name, "hash": run.constitution.hash},
        "judge": run.judge_name,
        "policy": run.policy_name,
        "settings": run.settings.plain(),
        "counts": {name: int(count) for name, count in sorted(made.counts.items())},
        "uses": dict(made.uses),
        "principles": {name: dict(counts) for name, counts in made.principles.items()},
        "failures": dict(made.failures),
        "helpful_input_issues": dict(made.input_issues.counts),
        **({} if made.slot is None else {"position_bias": bias_summary({run.judge_name: made.slot})}),
        **({"warnings": list(run.warnings)} if run.warnings else {}),
        "healed_lines": sum(table.healed for table in run.tables),
        "session": sessions,
        "files": {name: sha256_of(run.folder / name) for name in _FILES},
    }
