"""The form in which comparisons are put to a judge, chosen by the label mass that it leaves.

A few forms are measured on one fixed comparison, in both orders, the plain one first. The plain form is taken where
the labels have nine tenths of the probability, else the form with the most label mass. The choice is saved in the
folder of the answers (`asking.json`): it is part of every question's id, and one run never mixes forms, however often
it is resumed. A folder that has judgements of the judge and no such file predates the choice; it keeps the plain form.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import ValidationError

from rlaif.config.judge_templates import BEGUN, ENOUGH, PLAIN, TRIAL_REPLIES, Form, Judge, Templates, example_comparison
from rlaif.config.schemas import CompareSettings
from rlaif.errors import RecordError
from rlaif.feedback.judge import judgement, label_mass
from rlaif.feedback.prompts import LABELS
from rlaif.inference.base import Model, ModelSource, Output, Question
from rlaif.records import Judgement, Record, Sampling, Verdict
from rlaif.store import Table, write_text

FILE = "asking.json"
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
        self._path = folder / FILE
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
