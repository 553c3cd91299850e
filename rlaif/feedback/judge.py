"""Pairwise judging: which samples meet, in which form they are put to the judge, and what its outputs say.

**Matchups.** Everything is sampled by hash, so nothing moves when a run grows. The k-th sample is compared with at most
`opponents` of those before it, a revision with its original above all. Up to `opponents` + 1 samples this is the round
robin. Beyond it the cost grows by `opponents` comparisons a sample instead of by all of them, the graph stays
connected, and raising the number of samples keeps every comparison made before. Of the criteria, `one` draws a
principle a pair, as in arXiv:2212.08073, by weighted rendezvous hashing: rewording a principle moves no pair, and
adding one takes over only its share of them.

**Judgements.** A judgement takes the label log-probabilities where there are any, else it reads the text strictly
(`rlaif.feedback.verdict_reader`). An output with reasons is always read as a text: the log-probabilities of its last
word soften the verdict where they agree with it. An output that was cut off has no verdict, even where it states one:
the last one counts, and that may have been still to come.

**Forms.** A few forms of the question are measured on one fixed comparison, in both orders, the plain one first. The
plain form is taken where the labels have nine tenths of the probability, else the form with the most label mass. The
choice is saved in the folder of the answers (`asking.json`): it is part of every question's id, and one run never mixes
forms, however often it is resumed. A folder that has judgements of the judge and no such file predates the choice; it
keeps the plain form.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from pydantic import ValidationError

from rlaif.config.judge_templates import (
    BEGUN,
    ENOUGH,
    PLAIN,
    TRIAL_REPLIES,
    Form,
    Judge,
    Templates,
    example_comparison,
)
from rlaif.config.schemas import CompareSettings
from rlaif.constitution import Constitution
from rlaif.errors import RecordError
from rlaif.feedback.aggregate import Vote
from rlaif.feedback.prompts import LABELS, compare_messages, joint_question
from rlaif.feedback.sampling import hash64
from rlaif.feedback.verdict_reader import parse_verdict
from rlaif.inference.base import Model, ModelSource, Output, Question
from rlaif.records import Judgement, Prompt, Record, Sample, Sampling, Verdict
from rlaif.store import Table, write_text

_MASK = 2**64 - 1

WHOLE = "*"
"""Criterion id of `principles: all`: the whole constitution in one question."""


class Criterion(NamedTuple):
    """What a pair is judged by: one principle, or the whole constitution."""

    id: str
    weight: float
    compare: str
    critique: str | None
    """Request to the reviewer; None where the principle has none."""


class Matchup(NamedTuple):
    """Two samples of one prompt (`left` has the lower index) and the criteria that they are judged by."""

    left: Sample
    right: Sample
    criteria: tuple[Criterion, ...]


def criteria_of(constitution: Constitution, principles: str) -> tuple[Criterion, ...]:
    """The criteria that `compare.principles` makes of a constitution."""
    criteria = tuple(Criterion(p.id, p.weight, p.compare, p.critique) for p in constitution.principles)
    if principles != "all":
        return criteria
    requests = [criterion.critique for criterion in criteria if criterion.critique]
    joint = joint_question([criterion.compare for criterion in criteria])
    return (Criterion(WHOLE, 1.0, joint, "\n".join(requests) or None),)


def matchups(samples: Sequence[Sample], criteria: Sequence[Criterion], settings: CompareSettings) -> list[Matchup]:
    """The matchups of one prompt's samples, given in the order of their index.

    Blank and repeated responses are left out: a pair needs two different responses.
    """
    rows: list[Matchup] = []
    distinct = distinct_samples(samples)
    for at, later in enumerate(distinct):
        for earlier in _opponents(distinct[:at], later, settings.opponents):
            pair = (earlier.id, later.id)
            chosen = (draw(criteria, pair),) if settings.principles == "one" else tuple(criteria)
            rows.append(Matchup(earlier, later, chosen))
    return rows


def _opponents(before: list[Sample], later: Sample, limit: int) -> list[Sample]:
    """At most `limit` of the samples before a later one, drawn by hash, in their own order; a revision's original is
    always one of them."""
    if len(before) <= limit:
        return before

    def priority(earlier: Sample) -> tuple[bool, int]:
        return earlier.id != later.revision_of, hash64(earlier.id, later.id)

    selected = {sample.id for sample in sorted(before, key=priority)[:limit]}
    return [sample for sample in before if sample.id in selected]


def distinct_samples(samples: Sequence[Sample]) -> list[Sample]:
    """The samples without blank ones and without repetitions of an earlier text (white space at the ends apart)."""
    first: dict[str, Sample] = {}
    for sample in samples:
        text = sample.text.strip()
        if text:
            first.setdefault(text, sample)
    return list(first.values())


class Weighted(Protocol):
    """Something to draw: a criterion or a principle."""

    @property
    def id(self) -> str:
        """Its name, from which its bids are hashed."""
        ...

    @property
    def weight(self) -> float:
        """Its share in the draw."""
        ...


W = TypeVar("W", bound=Weighted)


def draw(criteria: Sequence[W], key: tuple[str, ...]) -> W:
    """One of the criteria for a pair of sample ids, or another key, with probability proportional to its weight.

    The order of the key's parts does not matter. Each criterion bids an exponential waiting time with its weight as
    the rate, from the hash of the pair and its own id.
    """
    pair_hash = hash64(*sorted(key))
    best, lowest = 0, math.inf
    for at, (criterion_hash, mean) in enumerate(_bidders(tuple((c.id, c.weight) for c in criteria))):
        # The finalizer of SplitMix64 (Steele et al. 2014) scrambles the two hashes in a tenth of the time of a third.
        x = pair_hash ^ criterion_hash
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
        bid = -math.log(((x ^ (x >> 31)) + 0.5) / 2**64) * mean
        if bid < lowest:
            best, lowest = at, bid
    return criteria[best]


@lru_cache(maxsize=8)
def _bidders(named: tuple[tuple[str, float], ...]) -> list[tuple[int, float]]:
    """Hash of the name, and mean waiting time, of each criterion."""
    return [(hash64("criterion", name), 1 / weight) for name, weight in named]


def drawn_order(pair: tuple[str, str]) -> tuple[str, str]:
    """The one order that `orders: random` shows this pair in."""
    return pair if hash64("order", *pair) < 2**63 else pair[::-1]


_ONE_TOKEN = Sampling(max_tokens=1)

Notes = Callable[[Sample, Criterion], str | None]
"""Looks up the critique of a sample under a criterion; None while there is none."""


def compare_questions(
    prompt: Prompt,
    pairings: Sequence[Matchup],
    settings: CompareSettings,
    judge: Judge,
    notes: Notes | None = None,
    *,
    fenced: bool = True,
) -> Iterator[Question]:
    """The questions of one prompt, in an order that serves the prefix cache: equal first responses follow each other.

    With `notes`, a question that lacks a critique is left out: it cannot be asked yet. `fenced` as in
    `compare_messages`.
    """
    shown = [
        (first, second, criterion)
        for matchup in pairings
        for first, second in _orders(matchup, settings.orders)
        for criterion in matchup.criteria
    ]
    reasoned, warm = settings.reasoning == "reply", settings.reasoning_temperature
    sampling = Sampling(max_tokens=settings.reasoning_tokens, temperature=warm, seed=0 if warm else None)
    place = {sample: at for at, sample in enumerate(dict.fromkeys(first.id for first, _, _ in shown))}
    for first, second, criterion in sorted(shown, key=lambda row: place[row[0].id]):
        critiques = None
        if notes is not None:
            on_first, on_second = notes(first, criterion), notes(second, criterion)
            if on_first is None or on_second is None:
                continue
            critiques = (on_first, on_second)
        yield Question(
            "compare_reasoned" if reasoned else "compare",
            judge.name,
            compare_messages(
                prompt.messages,
                first.text,
                second.text,
                criterion.compare,
                critiques=critiques,
                max_chars=settings.max_chars,
                fenced=fenced,
                reasoned=reasoned,
                templates=judge.templates,
                kind=judge.form.fence,
            ),
            sampling if reasoned else _ONE_TOKEN,
            labels=LABELS,
            prefill="" if reasoned else judge.form.prefill,
            about={"prompt": prompt.id, "first": first.id, "second": second.id, "principle": criterion.id},
        )


def _orders(matchup: Matchup, orders: str) -> Iterator[tuple[Sample, Sample]]:
    pair = (matchup.left, matchup.right)
    if orders == "both":
        yield from (pair, pair[::-1])
    else:
        first, _ = drawn_order((pair[0].id, pair[1].id))
        yield pair if first == pair[0].id else pair[::-1]


def label_mass(logprobs: tuple[float, float]) -> float:
    """Probability of both labels together, at most 1."""
    return min(1.0, math.exp(logprobs[0]) + math.exp(logprobs[1]))


def judgement(question: Question, output: Output) -> Judgement:
    """The record of one ordered judge call; a higher log-probability of the first label favors the first response."""
    about = question.about
    logprobs: tuple[float, float] | None = None
    mass: float | None = None
    if output.logprobs is not None:
        logprobs = (output.logprobs[0], output.logprobs[1])
        mass = label_mass(logprobs) if output.label_mass is None else output.label_mass
        verdict = Verdict.likelier(*logprobs)
    truncated = question.reasoned and output.finish_reason == "length"
    if logprobs is None or question.reasoned:
        text = output.text
        if question.prefill:  # a prefilled output continues a stated verdict; some servers repeat the beginning
            text = f"Verdict: {text.strip().removeprefix(question.prefill).strip()}"
        stated = Verdict.UNPARSED if truncated else parse_verdict(text)
        if logprobs is None or stated is not verdict:
            verdict, logprobs, mass = stated, None, None
    return Judgement(
        id=question.id,
        prompt=str(about["prompt"]),
        first=str(about["first"]),
        second=str(about["second"]),
        principle=str(about["principle"]),
        judge=question.model,
        verdict=verdict,
        logprobs=logprobs,
        label_mass=mass,
        text=output.text,
        reasoning=output.reasoning,
        truncated=truncated,
        prompt_tokens=output.prompt_tokens,
        cached_tokens=output.cached_tokens,
        completion_tokens=output.completion_tokens,
    )


def votes(
    pairings: Sequence[Matchup],
    questions: Sequence[Question],
    judgement_of: Callable[[str], Judgement | None],
    settings: CompareSettings,
    *,
    slot: float = 0.0,
) -> Iterator[tuple[Matchup, list[Vote]]]:
    """Every matchup with one vote a criterion, joined by what a question is about, not by place.

    `slot` is the judge's position bias, to be taken off.
    """
    ids = {(q.about["first"], q.about["second"], q.about["principle"]): q.id for q in questions}

    def judgement_on(first: Sample, second: Sample, criterion: Criterion) -> Judgement | None:
        key = ids.get((first.id, second.id, criterion.id))
        return None if key is None else judgement_of(key)

    for matchup in pairings:
        shown = {(first.id, second.id) for first, second in _orders(matchup, settings.orders)}
        left, right = matchup.left, matchup.right
        yield (
            matchup,
            [
                Vote(
                    criterion.id,
                    criterion.weight,
                    judgement_on(left, right, criterion),
                    judgement_on(right, left, criterion),
                    wanted=((left.id, right.id) in shown, (right.id, left.id) in shown),
                    temperature=settings.temperature,
                    slot=slot,
                )
                for criterion in matchup.criteria
            ],
        )


FORM_FILE = "asking.json"


_LASTING = ("too_long", "bad_request", "no_logprobs", "bad_logprobs")
"""Failures of a trial that are the model's own, and no error on the way."""


class FormTrial(Record):
    """One form, and the label mass that it leaves."""

    form: Form
    label_mass: float | None
    """Mean probability of both labels together; of verdicts in words, the share that can be read. None where the
    question failed."""
    failure: str = ""

    def __str__(self) -> str:
        return f"{self.form}: {self.failure if self.label_mass is None else f'label mass {self.label_mass:.2f}'}"

    @property
    def lasting(self) -> bool:
        """Whether a second trial would have the same result."""
        return self.label_mass is not None or self.failure.startswith(_LASTING)


class Chosen(Record):
    """The form that a judge is asked in, and the trials that it was chosen by."""

    judge: str
    key: str
    """The settings and templates that the choice depends on."""
    form: Form
    tried: tuple[FormTrial, ...] = ()
    """Empty where there was nothing to choose."""

    @property
    def label_mass(self) -> float | None:
        """That of the chosen form, where it was measured."""
        return next((trial.label_mass for trial in self.tried if trial.form == self.form), None)

    def __str__(self) -> str:
        mass = self.label_mass
        chosen = str(self.form) if mass is None else f"{self.form} (label mass {mass:.2f})"
        return "; ".join([chosen, *(str(trial) for trial in self.tried if mass is None or trial.form != self.form)])


class Forms:
    """The forms that the judges of a folder are asked in."""

    def __init__(self, folder: Path) -> None:
        """Raises RecordError where the file there cannot be read."""
        self._path = folder / FORM_FILE
        self._chosen: dict[tuple[str, str], Chosen] = {}
        if self._path.exists():
            try:
                listed = json.loads(self._path.read_text(encoding="utf-8"))["judges"]
                rows = [Chosen.model_validate(row) for row in listed]
            except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
                raise RecordError(self._path, 1, f"not the forms of asking: {str(error).splitlines()[0]}") from None
            self._chosen = {(row.judge, row.key): row for row in rows}

    def of(self, judge: str, compare: CompareSettings, templates: Templates) -> Chosen | None:
        """The choice for a judge; None where it is still to be made."""
        forms = candidates(compare, templates)
        if len(forms) == 1:
            return Chosen(judge=judge, key=_key(compare, templates), form=forms[0])
        return self._chosen.get((judge, _key(compare, templates)))

    def has(self, judge: str) -> bool:
        """Whether any form was ever chosen for this judge here."""
        return any(name == judge for name, _ in self._chosen)

    def save(self, chosen: Chosen) -> None:
        """Write a choice to the file."""
        self._chosen[chosen.judge, chosen.key] = chosen
        listed = [row.model_dump(mode="json") for row in self._chosen.values()]
        write_text(self._path, json.dumps({"judges": listed}, ensure_ascii=False, indent=2) + "\n")


def candidates(compare: CompareSettings, templates: Templates) -> list[Form]:
    """The forms to choose from, the one that changes least first; a single one where nothing is left open."""
    reasoned = compare.reasoning != "none"
    if reasoned:  # the label comes after the reasons, so no form changes what is left to it
        return [Form(fence="marks" if compare.fence == "auto" else compare.fence)]
    begun = templates["compare_critiqued" if compare.critique else "compare"].prefill or BEGUN
    prefills = {"auto": ["", begun], "none": [""]}.get(compare.prefill, [compare.prefill])
    return [
        Form(fence=fence, prefill=prefill)
        for fence in ("marks", "tags")
        if compare.fence in ("auto", fence)
        for prefill in prefills
    ]


async def judge_asked(
    source: ModelSource,
    templates: Templates,
    compare: CompareSettings,
    folder: Path,
    answers: Table[Judgement],
    say: Callable[[str], None],
) -> Judge:
    """The judge in the form that its answers in `folder` are asked in; chosen now, and saved, where it never was.

    The judge is opened only to choose. Raises as its `open` does.
    """
    chosen = await chosen_form(source, templates, compare, Forms(folder), answers, say)
    return Judge(source.name, templates, chosen.form)


async def chosen_form(
    source: ModelSource,
    templates: Templates,
    compare: CompareSettings,
    forms: Forms,
    answers: Table[Judgement],
    say: Callable[[str], None],
) -> Chosen:
    """`judge_asked` for whoever holds the folder's forms."""
    name, key = source.name, _key(compare, templates)
    chosen = forms.of(name, compare, templates)
    if chosen is None:
        before = not templates.compared_by and not forms.has(name) and any(row.judge == name for row in answers)
        if before:
            chosen = Chosen(judge=name, key=key, form=PLAIN)
        else:
            tried = await tried_forms(await source.open(), templates, candidates(compare, templates))
            chosen = Chosen(judge=name, key=key, form=best(tried), tried=tuple(tried))
            if chosen.form != PLAIN or (chosen.label_mass or 0.0) < ENOUGH:
                say(f"{name}: form of asking: {chosen}")
    saved = forms.has(name) and forms.of(name, compare, templates) is not None
    if not saved and (not chosen.tried or any(trial.lasting for trial in chosen.tried)):
        forms.save(chosen)
    return chosen


async def tried_forms(model: Model, templates: Templates, forms: list[Form]) -> list[FormTrial]:
    """The trial of each form, up to the first that leaves enough label mass."""
    trials: list[FormTrial] = []
    for form in forms:
        questions = list(example_questions(model.name, templates, form))
        outputs = await model.answer(questions)
        failed = [output for output in outputs if output.failure not in (None, "no_labels")]
        if failed:
            failure = f"{failed[0].failure} ({failed[0].detail[:200]})"
            trials.append(FormTrial(form=form, label_mass=None, failure=failure))
            continue
        masses = [_label_mass(question, output) for question, output in zip(questions, outputs, strict=True)]
        trials.append(FormTrial(form=form, label_mass=sum(masses) / len(masses)))
        if (trials[-1].label_mass or 0.0) >= ENOUGH:
            break
    return trials


def example_questions(model: str, templates: Templates, form: Form) -> Iterator[Question]:
    """The fixed comparison, in both orders."""
    for swapped in (False, True):
        messages = example_comparison(templates, form.fence, swapped=swapped)
        first, second = TRIAL_REPLIES[::-1] if swapped else TRIAL_REPLIES
        about = {"prompt": "trial", "first": first, "second": second, "principle": "trial"}
        sampling = Sampling(max_tokens=1)
        yield Question("probe", model, messages, sampling, labels=LABELS, prefill=form.prefill, about=about)


def _label_mass(question: Question, output: Output) -> float:
    if output.failure is not None:  # neither label is among the most probable tokens
        return 0.0
    if output.label_mass is not None:
        return output.label_mass
    if output.logprobs is not None:
        return label_mass((output.logprobs[0], output.logprobs[1]))
    return float(judgement(question, output).verdict is not Verdict.UNPARSED)


def best(tried: list[FormTrial]) -> Form:
    """The form with the most label mass; of equal ones the first, and the plain one where none could be measured."""
    measured = [trial for trial in tried if trial.label_mass is not None]
    return max(measured, key=lambda trial: trial.label_mass or 0.0).form if measured else tried[0].form


def _key(compare: CompareSettings, templates: Templates) -> str:
    return json.dumps([compare.prefill, compare.fence, templates.compared_by, compare.critique, compare.reasoning])
