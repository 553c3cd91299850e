"""The revise stage: critique and revision in rounds, SFT rows, and revisions compared with their originals.

Round by round the judge reviews the current response under a principle and rewrites it in that light. The principle of
a round is sampled by hash, with replacement (arXiv:2212.08073, section 3.1): the same seed gives the same ones, and
rewording a principle moves no round. A revision that is unusable or unchanged is kept as a record, and the next round
starts from where this one did.

Files, beside those of `rlaif.feedback.run`: `revisions.jsonl` holds the revisions as they came. Derived, each file
written whole or not at all: `chains.jsonl` each sample's rounds and their results, `sft.jsonl` the demonstrations,
`revised_pairs.jsonl` and `.parquet` the revisions against their originals as the judge sees them, and `revised.json`
the counts, last. A revision is not assumed to be better than its original: the judge compares the two like any other
pair, and may prefer the original.
"""

from __future__ import annotations

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
from rlaif.feedback.aggregate import PositionBias, Status, bias_summary, folded, position_bias, removes_bias
from rlaif.feedback.critique import critique_question
from rlaif.feedback.judge import Matchup, compare_questions, criteria_of, distinct_samples, draw, matchups, votes
from rlaif.feedback.prompts import Shot, revise_messages
from rlaif.feedback.ranking import Provenance, pairs, rank_samples, write_parquet
from rlaif.feedback.revision_checks import Parent, Use, spoken, use_of
from rlaif.feedback.run import Run
from rlaif.feedback.sampling import hash64
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

_FILES = ("prompts.jsonl", "chains.jsonl", "sft.jsonl", "revised_pairs.jsonl")
MANIFEST = "revised.json"
"""Its presence means that the derived files beside it are complete."""


class StoredAnswers(NamedTuple):
    """Look up the answers on disk by the id of their question."""

    critique: Callable[[str], Critique | None]
    revision: Callable[[str], Revision | None]


class Step(NamedTuple):
    """One round of a chain, as far as its answers are on disk: what is still missing is None."""

    round: int
    principle: Principle
    parent: Sample
    """The response that this round starts from, a sample or an earlier revision."""
    critique_question: Question | None
    """None where no critique is wanted."""
    revision_question: Question | None
    """None while the critique is missing."""
    revision: Revision | None
    use: Use | None
    response: Sample | None
    """The response after this round: the revision, or where that is of no use, the parent."""


class RevisionChain(NamedTuple):
    """A sample and its rounds, as far as they are on disk."""

    sample: Sample
    steps: tuple[Step, ...]

    @property
    def final(self) -> Sample:
        """The response at its end; the sample itself where no round changed it, or where its own text came back."""
        responses = (step.response for step in reversed(self.steps) if step.response is not None)
        last = next(responses, self.sample)
        return self.sample if last.text.strip() == self.sample.text.strip() else last

    def record(self) -> Chain:
        """The record of its answered rounds."""
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


def reviser_principles(constitution: Constitution, settings: RunSettings) -> tuple[Principle, ...]:
    """The principles that a round may go by: those with the texts for it. Raises UserError where there are none."""
    skip = settings.revise.skip_critique
    usable = tuple(row for row in constitution.principles if row.revise and (row.critique or skip))
    if not usable:
        wanted = "`revise`" if skip else "both `critique` and `revise`"
        raise UserError(f"no principle has {wanted}", where=settings.constitution, hint="write them for at least one")
    return usable


def revision_steps(
    prompt: Prompt,
    sample: Sample,
    principles: Sequence[Principle],
    settings: RunSettings,
    judge: Judge,
    stored: StoredAnswers,
    *,
    rounds: int | None = None,
) -> Iterator[Step]:
    """The rounds of one sample's chain (the first `rounds`), up to the first whose answers are not all on disk.

    Where the judge wrote an empty critique, the revision is asked for without one. A critique's question is the same as
    the critique stage's, so that a critique of a sample is not asked for twice.
    """
    revise, response, max_chars = settings.revise, sample, settings.compare.max_chars
    for number in range(1, (rounds or revise.rounds) + 1):
        principle = draw(principles, ("revise", f"seed {revise.seed}", sample.id, f"round {number}"))
        shots = _shots(principle, settings)
        critique_asked: Question | None = None
        notes: str | None = None
        critique_id: str | None = None
        if not revise.skip_critique:
            critique_asked = critique_question(
                prompt, response, principle, settings.critique, judge, max_chars=max_chars, shots=shots
            )
            critique = stored.critique(critique_asked.id)
            if critique is None:
                yield Step(number, principle, response, critique_asked, None, None, None, None)
                return
            notes, critique_id = without_thinking(critique.text).strip() or None, critique.id
        question = _revision_question(prompt, sample, response, principle, notes, critique_id, number, settings, judge)
        revision = stored.revision(question.id)
        if revision is None:
            yield Step(number, principle, response, critique_asked, question, None, None, None)
            return
        text = restored(spoken(revision.text), response.text)
        examples = tuple(shot.revision for shot in shots)
        parent = Parent(response.text, notes, principle.revise or "", prompt.messages[-1].content, examples)
        use = use_of(text, parent, revision.finish_reason)
        after = as_sample(revision, sample, text) if use is Use.REVISED else response
        yield Step(number, principle, response, critique_asked, question, revision, use, after)
        response = after


def _revision_question(
    prompt: Prompt,
    sample: Sample,
    parent: Sample,
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
            parent.text,
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
            seed=hash64("revise", str(revise.seed), sample.id, str(number)) % 2**31 if revise.temperature > 0 else None,
        ),
        about={
            "prompt": prompt.id,
            "sample": sample.id,
            "parent": parent.id,
            "critique": critique_id,
            "principle": principle.id,
            "round": number,
        },
    )


def _shots(principle: Principle, settings: RunSettings) -> list[Shot]:
    """The principle's first examples as solved cases; with a critique, of those that say why."""
    skip = settings.revise.skip_critique
    usable = [example for example in principle.examples if skip or example.why is not None]
    return [Shot(row.prompt, row.worse, row.why, row.better) for row in usable[: settings.revise.shots]]


def as_sample(revision: Revision, sample: Sample, text: str) -> Sample:
    """A usable revision as one more sample of the prompt."""
    return Sample(
        id=revision.id,
        prompt=revision.prompt,
        index=sample.index,
        text=text,
        policy=revision.judge,
        revision_of=sample.id,
    )


def revision_record(question: Question, output: Output) -> Revision:
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
        text=output.text,
        finish_reason=output.finish_reason,
        prompt_tokens=output.prompt_tokens,
        completion_tokens=output.completion_tokens,
    )


def chains(run: Run, prompt: Prompt, rounds: int | None = None) -> list[RevisionChain]:
    """The chains of one prompt (their first `rounds`): of its first samples, blank and repeated ones left out.

    A response that is too long to be shown whole is not revised: its middle would be missing from the revision.
    """
    settings = run.settings
    principles = reviser_principles(run.constitution, settings)
    stored = StoredAnswers(run.critiques.get, run.revisions.get)
    return [
        RevisionChain(
            sample, tuple(revision_steps(prompt, sample, principles, settings, run.judge, stored, rounds=rounds))
        )
        for sample in _first_samples(run, prompt)
        if len(sample.text) <= settings.compare.max_chars
    ]


def _first_samples(run: Run, prompt: Prompt) -> list[Sample]:
    return distinct_samples(run.samples_of(prompt, run.settings.revise.samples))


def steps_of_round(run: Run, number: int) -> Iterator[Step]:
    """That round of every chain that has come so far."""
    for prompt in run.prompts():
        for chain in chains(run, prompt, number):
            yield from chain.steps[number - 1 : number]


def critique_questions(run: Run, number: int) -> Iterator[Question]:
    """The critiques of a round."""
    return (step.critique_question for step in steps_of_round(run, number) if step.critique_question is not None)


def revision_questions(run: Run, number: int) -> Iterator[Question]:
    """The revisions of a round, as far as their critiques are on disk."""
    return (step.revision_question for step in steps_of_round(run, number) if step.revision_question is not None)


def confirm_questions(run: Run) -> Iterator[Question]:
    """The judge's comparisons of every final revision with its original."""
    for prompt in run.prompts():
        for chain in chains(run, prompt):
            yield from _confirmation(run, prompt, chain)[1]


def _confirmation(run: Run, prompt: Prompt, chain: RevisionChain) -> tuple[list[Matchup], list[Question]]:
    """The matchup of a chain's end with its beginning, none where they are the same, and the judge's questions."""
    compare = _compare_settings(run)
    criteria = criteria_of(run.constitution, compare.principles)
    pairings = matchups([chain.sample, chain.final], criteria, compare)
    return pairings, list(compare_questions(prompt, pairings, compare, run.judge))


def _compare_settings(run: Run) -> CompareSettings:
    """As samples are compared, but by `revise.principles`, without critiques (those are spent on the revision), and by
    the judge alone, whose revision it may be."""
    compare = run.settings.compared_by(run.settings.judge)
    return compare.model_copy(update={"principles": run.settings.revise.principles, "critique": False})


@dataclass
class Revised:
    """The counts of the revise stage, over all the sessions that made it."""

    counts: Counter[str] = field(default_factory=Counter)
    uses: Counter[str] = field(default_factory=Counter)
    """Revisions by their use (see `Use`)."""
    principles: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """The same for every principle."""
    failures: Counter[str] = field(default_factory=Counter)
    """Questions without an answer, as `stage: reason`."""
    input_issues: InputIssues = field(default_factory=InputIssues)
    """The issues of the helpful responses."""
    slot: PositionBias | None = None
    """The judge's position bias, where it compares in one order and the bias is to be removed."""


def derive_revised(run: Run, sessions: JsonValue = None) -> Revised:
    """Write what the answers on disk give: chains, SFT dataset, judged pairs, and the counts last."""
    run.invalidate_manifest(MANIFEST)
    revised = Revised(slot=_position_bias(run))
    constitution = f"{run.constitution.name}@{run.constitution.hash[:12]}"
    with ExitStack() as stack:
        write_chain, write_row, write_pair = (
            stack.enter_context(record_writer(run.folder / name)) for name in _FILES[1:]
        )
        for prompt in run.prompts():
            of_prompt, written = chains(run, prompt), set[str]()
            revised.counts["too_long"] += len(_first_samples(run, prompt)) - len(of_prompt)
            for chain in of_prompt:
                write_chain(chain.record())
                _count_chain(run, chain, revised)
                for row in sft_rows(prompt, chain.sample, chain.steps, run.settings.revise.sft_rounds, constitution):
                    if row.response[0].content not in written:  # two chains may end in the same response
                        written.add(row.response[0].content)
                        write_row(row)
                        revised.counts["sft_rows"] += 1
                _pair_up(run, prompt, chain, revised, constitution, write_pair)
        for row in helpful_demonstrations(run.settings, revised.input_issues):
            write_row(row)
            revised.counts["helpful_rows"] += 1
    write_parquet(run.folder / "revised_pairs.jsonl", run.folder / "revised_pairs.parquet")
    write_json(run.folder / MANIFEST, _manifest(run, revised, sessions))
    return revised


def _position_bias(run: Run) -> PositionBias | None:
    """The judge's bias, estimated from these comparisons alone, as there may be no others."""
    if not removes_bias(_compare_settings(run)):
        return None
    questions = (
        (question for chain in chains(run, prompt) for question in _confirmation(run, prompt, chain)[1])
        for prompt in run.prompts()
    )
    judgements = ([run.judgements.get(question.id) for question in of_prompt] for of_prompt in questions)
    return position_bias(judgements, min_mass=run.settings.pair.min_label_mass)


def _count_chain(run: Run, chain: RevisionChain, revised: Revised) -> None:
    revised.counts.update(chains=1, changed=chain.final.id != chain.sample.id)
    for step in chain.steps:
        if step.use is None:
            question = step.revision_question or step.critique_question
            assert question is not None  # a step without a use waits for one of its answers
            stage = f"revise {step.round}" if step.revision_question else f"critique {step.round}"
            revised.failures[f"{stage}: {run.failure_reason(question.id)}"] += 1
            continue
        revised.uses[step.use.value] += 1
        revised.principles[step.principle.id][step.use.value] += 1
        critique = run.critiques.get(step.critique_question.id) if step.critique_question else None
        if critique is not None:
            revised.counts["critiques_empty"] += not without_thinking(critique.text).strip()
            revised.counts["critiques_truncated"] += critique.finish_reason == "length"


def _pair_up(
    run: Run,
    prompt: Prompt,
    chain: RevisionChain,
    revised: Revised,
    constitution: str,
    write: Callable[[Record], None],
) -> None:
    """Count and write the judge's comparison of a chain's original (left) with its end, where anything was revised."""
    (pairings, questions), compare = _confirmation(run, prompt, chain), _compare_settings(run)
    if not pairings:
        return
    slot = revised.slot.removed if revised.slot else 0.0
    ((matchup, cast),) = votes(pairings, questions, run.judgements.get, compare, slot=slot)
    comparison = folded(matchup.left.id, matchup.right.id, cast, run.settings.pair)
    revised.counts["flipped"] += comparison.flip
    if comparison.status is Status.LABELLED:
        revised.counts["confirmed" if comparison.logit < 0 else "refuted"] += 1
    else:
        revised.counts[f"judged_{comparison.status.value}"] += 1
    if comparison.status is Status.FAILED:
        for question in questions:
            if question.id not in run.judgements:
                revised.failures[f"confirm: {run.failure_reason(question.id)}"] += 1
    ranked = rank_samples(prompt, [chain.sample, chain.final], [comparison])
    select = run.settings.pair.model_copy(update={"select": "all"})
    for pair in pairs(ranked, select, compare, Provenance(run.judge_name, constitution)):
        write(pair)
        revised.counts["pairs"] += 1


def sft_rows(
    prompt: Prompt, sample: Sample, steps: Sequence[Step], rounds: Sequence[int], constitution: str
) -> Iterator[Demonstration]:
    """The responses to `prompt` after the wanted rounds (all where none is named), each text once.

    A response that equals its parent (see `Use`) or the sample itself makes no row.
    """
    usable: list[Step] = []
    seen = {sample.text.strip()}
    for step in steps:
        if step.use is Use.REVISED:
            usable.append(step)
        if step.revision is None or not usable or (rounds and step.round not in rounds):
            continue
        last = usable[-1]
        assert last.response is not None and last.revision is not None  # a usable revision has both
        if last.response.text in seen:
            continue
        seen.add(last.response.text)
        yield Demonstration(
            id=content_id("sft", sample.id, last.response.id),
            prompt=prompt.messages,
            response=(Message(role="assistant", content=last.response.text),),
            source="revision",
            round=last.round,
            principles=tuple(row.principle.id for row in usable),
            prompt_id=prompt.id,
            sample_id=sample.id,
            revision_id=last.revision.id,
            critique_id=last.revision.critique,
            writer=last.revision.judge,
            constitution=constitution,
        )


def helpful_demonstrations(settings: RunSettings, input_issues: InputIssues | None = None) -> Iterator[Demonstration]:
    """The responses that `revise.helpful` mixes in, as they are; blank ones left out. Raises UserError where its file
    has none."""
    source = settings.revise.helpful
    if source is None:
        return
    empty = True
    for prompt in read_prompts(
        source.path,
        column=source.column,
        responses=source.responses,
        limit=source.limit,
        input_issues=input_issues,
        with_answers=True,
    ):
        for at, given in enumerate(prompt.responses):
            if given.text.strip():
                empty = False
                yield Demonstration(
                    id=content_id("helpful", prompt.id, at, given.text),
                    prompt=prompt.messages,
                    response=(Message(role="assistant", content=given.text),),
                    source="helpful",
                    prompt_id=prompt.id,
                )
    if empty:
        hint = "name their column in `revise.helpful.responses`, or give `messages` that end in an answer"
        raise UserError("holds prompts and no answers", where=source.path, hint=hint)


def _manifest(run: Run, revised: Revised, sessions: JsonValue) -> JsonValue:
    return {
        "made_by": f"rlaif {__version__}",
        "schema": 1,
        "constitution": {"name": run.constitution.name, "hash": run.constitution.hash},
        "judge": run.judge_name,
        "policy": run.policy_name,
        "settings": run.settings.plain(),
        "counts": {name: int(count) for name, count in sorted(revised.counts.items())},
        "uses": dict(revised.uses),
        "principles": {name: dict(counts) for name, counts in revised.principles.items()},
        "failures": dict(revised.failures),
        "helpful_input_issues": dict(revised.input_issues.counts),
        **({} if revised.slot is None else {"position_bias": bias_summary({run.judge_name: revised.slot})}),
        **({"warnings": list(run.warnings)} if run.warnings else {}),
        "healed_lines": sum(table.healed for table in run.tables),
        "session": sessions,
        "files": {name: sha256_of(run.folder / name) for name in _FILES},
    }
