"""The warnings of the report page: what makes its metrics doubtful, why, and what to do; the most serious first."""

from __future__ import annotations

from collections.abc import Iterator

from rlaif.evaluation.judge_metrics import MOST_FLIPS, SOME_FLIPS
from rlaif.report.run_settings import RunDocuments
from rlaif.report.view import Level, Page, Training, Warning

SOME_LOW_MASS = 0.01
SOME_UNPARSED = 0.01
MUCH = 0.1
"""Share of judgements without a label above which a warning is serious."""
MOST_LONGER = 0.6
"""Share of pairs whose chosen response is longer, above which a policy learns length."""
LEAST_PAIRS = 50
MOST_SLOT = 0.1
"""Largest unremarkable distance between the share of first-slot verdicts and one half."""
_ORDER = {"serious": 0, "caution": 1, "note": 2}


def find_warnings(page: Page, documents: RunDocuments) -> list[Warning]:
    """Every warning about what is on the page."""
    warnings = [
        *_run_warnings(page, documents),
        *_label_warnings(page),
        *_length_warnings(page),
        *_judge_warnings(page),
        *(warning for training in page.trainings for warning in _training_warnings(training)),
        *_evaluation_warnings(page),
    ]
    return sorted(warnings, key=lambda warning: _ORDER[warning.level])


def _run_warnings(page: Page, documents: RunDocuments) -> Iterator[Warning]:
    if documents.is_run and (not documents.finished or documents.resume_command):
        message = "The run is unfinished: the report covers what is on disk so far."
        hint = f"Run `{page.about.next}` to resume it."
        yield Warning(level="serious", message=message, hint=hint, where="counts")
    for message in page.announced:
        yield Warning(level="serious", message=f"{message}.", hint="Do not train on these labels.", where="judges")
    if page.provenance.changed:
        message = f"{', '.join(page.provenance.changed)} changed since the manifest was written."
        hint = "Run `rlaif pair` to derive them again, or find out who changed them."
        yield Warning(level="caution", message=message, hint=hint, where="provenance")
    if page.constitution_note:
        hint = "Restore the file named in run.yaml, or generate the run again."
        yield Warning(level="caution", message=page.constitution_note, hint=hint, where="constitution")
    failed = sum(page.failures.values())
    if failed:
        reasons = ", ".join(f"{name} {count:,}" for name, count in page.failures.items())
        message = f"{failed:,} requests failed ({reasons})."
        hint = "Run the same command again: it sends only the failed requests."
        yield Warning(level="caution", message=message, hint=hint, where="counts")
    if page.input_issues:
        issues = ", ".join(f"{name} {count:,}" for name, count in page.input_issues.items())
        hint = "Inspect those rows if there are many."
        yield Warning(level="note", message=f"Issues in the prompts: {issues}.", hint=hint, where="counts")


def _label_warnings(page: Page) -> Iterator[Warning]:
    data, verdicts = page.data, page.verdicts
    if data is not None:
        readable = sum(data.comparisons.get(name, 0) for name in ("labelled", "tie", "flip"))
        share = data.flipped / readable if readable else 0.0
        if share > SOME_FLIPS:
            message = f"In {share:.0%} of the comparisons the two orders disagree ({data.flipped:,} of {readable:,})."
            hint = (
                "The judge depends on the slot nearly as much as on the response: use a larger judge."
                if share > MOST_FLIPS
                else "Large judges flip on about 20%: try a larger judge, or clearer principles."
            )
            level: Level = "serious" if share > MOST_FLIPS else "caution"
            yield Warning(level=level, message=message, hint=hint, where="judge")
        if data.ranked and data.without_pair is not None and 2 * data.without_pair > data.ranked:
            message = f"{data.without_pair:,} of {data.ranked:,} prompts yielded no pair."
            hint = "Draw more samples at a higher temperature, or lower `pair.margin`."
            yield Warning(level="caution", message=message, hint=hint, where="data")
    if verdicts is None or not verdicts.judgements:
        return
    for count, least, problem, hint in (
        (verdicts.low_mass, SOME_LOW_MASS, "put little probability on the labels", "The judge tends to write something "
         "else: look at its outputs, and at its chat template (`template_options`)."),
        (verdicts.unparsed, SOME_UNPARSED, "could not be read", "Look at the outputs in judgements.jsonl; a judge "
         "with log-probabilities needs no parsing."),
        (verdicts.truncated, SOME_UNPARSED, "were cut off before a verdict", "Raise `compare.reasoning_tokens`."),
    ):  # fmt: skip
        share = count / verdicts.judgements
        if share > least:
            message = f"{count:,} of {verdicts.judgements:,} judgements ({share:.1%}) {problem}."
            yield Warning(level="serious" if share > MUCH else "caution", message=message, hint=hint, where="judge")
    for slot in verdicts.slots:
        if slot.first is not None and abs(slot.first - 0.5) > MOST_SLOT:
            message = f"{slot.judge} gives {slot.first:.0%} of its verdicts to the first slot (position bias)."
            hint = "In both orders the bias cancels; never judge in one order alone."
            yield Warning(level="caution", message=message, hint=hint, where="judge")


def _length_warnings(page: Page) -> Iterator[Warning]:
    data = page.data
    if data is None or data.lengths is None or data.pairs < LEAST_PAIRS:
        return
    lengths = data.lengths
    for share, name, trait in ((lengths.longer, "longer", "long"), (lengths.shorter, "shorter", "short")):
        if share > MOST_LONGER:
            medians = f"medians {lengths.chosen.median:,.0f} and {lengths.rejected.median:,.0f} characters"
            message = f"The chosen response is the {name} one in {share:.0%} of the pairs ({medians})."
            hint = (
                f"A policy may learn to be {trait}, so compare by the length-controlled win rate; `rlaif data check` "
                "shows more."
            )
            yield Warning(level="caution", message=message, hint=hint, where="data")


def _judge_warnings(page: Page) -> Iterator[Warning]:
    if page.about.kind != "run":
        return
    labellers = [judge for judge in page.judges if judge.labeller]
    if not labellers:
        name = f"the judge {page.about.judge}" if page.about.judge else "the judge"
        message = f"No evaluation of {name} under this constitution is known."
        hint = "Measure it on gold pairs, whose better response is known: `rlaif evaluate judge`."
        yield Warning(level="caution", message=message, hint=hint, where="judges")
    for judge in labellers:
        verdict, name = judge.report.verdict, judge.report.about.judge
        for reason in verdict.reasons:
            message, is_unfit = f"Evaluation of the judge {name}: {reason.text}.", reason.level == "unfit"
            hint = "Do not train on its labels." if is_unfit else "See its evaluation before training."
            level: Level = "serious" if is_unfit else "caution"
            yield Warning(level=level, message=message, hint=hint, where="judges")
        slope = judge.report.measures.length.slope
        if slope is not None and (slope.low > 0 or slope.high < 0):
            preferred = "longer" if slope.low > 0 else "shorter"
            message = (
                f"The judge {name} prefers {preferred} responses regardless of quality (slope {slope.value:+.2f})."
            )
            hint = "Compare policies by the length-controlled win rate."
            yield Warning(level="caution", message=message, hint=hint, where="judges")


def _training_warnings(training: Training) -> Iterator[Warning]:
    name = f"Training {training.name}" if training.name != "." else "The training"
    if training.status == "unfinished":
        progress = f" after step {training.steps:,}" if training.steps is not None else ""
        message = f"{name} is unfinished{progress}."
        yield Warning(level="caution", message=message, hint=f"Run `{training.command}`.", where="trainings")
    if training.status == "damaged":
        hint = "Start it again in another folder."
        yield Warning(level="serious", message=f"{name}: train.json is damaged.", hint=hint, where="trainings")
    if training.status == "stopped":
        message = f"{name} stopped at step {training.steps:,} of {training.planned:,}."
        yield Warning(level="caution", message=message, hint="See its alarms and its curves.", where="trainings")
    for alarm in training.alarms:
        start, _, advice = alarm.rpartition("): ") if "): " in alarm else (alarm, "", "")
        message = f"{name}, {start})" if advice else f"{name}, {alarm}"
        hint = f"{advice[:1].upper()}{advice[1:]}." if advice else "See its curves."
        yield Warning(level="caution", message=message, hint=hint, where="trainings")
    if training.data_note.startswith("changed"):
        message = f"{name} used other data than this folder now holds."
        hint = "Train again, or report on the folder as it was."
        yield Warning(level="caution", message=message, hint=hint, where="trainings")


def _evaluation_warnings(page: Page) -> Iterator[Warning]:
    judge = page.about.judge
    for policies in page.policies:
        report = policies.report
        is_announced = any("trained on" in text and str(judge) in text for text in report.warnings)
        if judge is not None and report.about.judge == judge and not is_announced:
            message = f"The policies of {policies.path} are judged by {judge}, which labeled the training data."
            hint = "A judge prefers the policies trained on its labels: confirm with another judge."
            yield Warning(level="caution", message=message, hint=hint, where="policies")
        for text in report.warnings:
            if judge is None or f"no evaluation of {judge}" not in text:  # `_judge_warnings` knows better
                message = f"Evaluation of policies: {_sentence(text)}"
                yield Warning(level="caution", message=message, hint=f"See {policies.path}.", where="policies")
    for rewards in page.rewards:
        name, best = rewards.report.model, rewards.report.best_of_n
        for text in rewards.report.warnings:
            message = f"Evaluation of the reward model {name}: {_sentence(text)}"
            yield Warning(level="caution", message=message, hint=f"See {rewards.path}.", where="rewards")
        if best is not None and best.overoptimised:
            message = f"Best-of-n with {name} makes responses worse beyond n = {best.best_n}."
            hint = "Optimize less against this reward model, or train it on more pairs."
            yield Warning(level="caution", message=message, hint=hint, where="rewards")


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
