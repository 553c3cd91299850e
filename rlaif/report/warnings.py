"""What speaks against believing the figures: each with what it means and what to do about it, the worst first."""

from __future__ import annotations

from collections.abc import Iterator

from rlaif.evaluation.judge_metrics import MOST_FLIPS, SOME_FLIPS
from rlaif.report.run_settings import RunDocuments
from rlaif.report.view import Judges, Page, Training, Warning

SOME_LOW_MASS = 0.01
SOME_UNPARSED = 0.01
MUCH = 0.1
"""Share of answers without a label from which on it is serious."""
MOST_LONGER = 0.6
"""Share of pairs whose chosen reply is the longer one, from which on a policy learns to be long."""
LEAST_PAIRS = 50
MOST_SLOT = 0.1
"""How far the share of verdicts for the first slot may lie from one half."""
_ORDER = {"serious": 0, "caution": 1, "note": 2}


def warnings_of(page: Page, told: RunDocuments) -> list[Warning]:
    """Every warning about what is on the page."""
    found = [
        *_state(page, told),
        *_labels(page),
        *_lengths(page),
        *_judge(page),
        *(each for training in page.trainings for each in _training(training)),
        *_evaluations(page),
    ]
    return sorted(found, key=lambda each: _ORDER[each.level])


def _state(page: Page, told: RunDocuments) -> Iterator[Warning]:
    if told.is_run and (not told.finished or told.goes_on):
        what = "The run is unfinished: everything below is about what is on disk so far."
        yield Warning(level="serious", what=what, hint=f"Run `{page.about.next}`: it goes on.", where="counts")
    for what in page.announced:
        yield Warning(level="serious", what=f"{what}.", hint="Do not train on these labels.", where="judges")
    if page.provenance.changed:
        what = f"{', '.join(page.provenance.changed)} changed since the manifest was written."
        hint = "Run `rlaif pair` to derive them again, or find out who changed them."
        yield Warning(level="caution", what=what, hint=hint, where="provenance")
    if page.constitution_note:
        hint = "Name the file as it was in run.yaml, or generate the run again."
        yield Warning(level="caution", what=page.constitution_note, hint=hint, where="constitution")
    failed = sum(page.failures.values())
    if failed:
        reasons = ", ".join(f"{name} {count:,}" for name, count in page.failures.items())
        what = f"{failed:,} questions have no answer ({reasons})."
        hint = "Run the same command again: it asks those alone."
        yield Warning(level="caution", what=what, hint=hint, where="counts")
    if page.input_issues:
        told_of = ", ".join(f"{name} {count:,}" for name, count in page.input_issues.items())
        hint = "Look at those rows if they are many."
        yield Warning(level="note", what=f"Odd rows in the prompts: {told_of}.", hint=hint, where="counts")


def _labels(page: Page) -> Iterator[Warning]:
    data, verdicts = page.data, page.verdicts
    if data is not None:
        readable = sum(data.comparisons.get(name, 0) for name in ("labelled", "tie", "flip"))
        share = data.flipped / readable if readable else 0.0
        if share > SOME_FLIPS:
            what = f"In {share:.0%} of the comparisons the two orders disagree ({data.flipped:,} of {readable:,})."
            hint = (
                "Such a judge goes by the slot nearly as much as by the reply: take a larger one."
                if share > MOST_FLIPS
                else "Large judges flip on about 20%: try a larger one, or clearer principles."
            )
            yield Warning(level="serious" if share > MOST_FLIPS else "caution", what=what, hint=hint, where="judge")
        if data.ranked and data.without_pair is not None and 2 * data.without_pair > data.ranked:
            what = f"{data.without_pair:,} of {data.ranked:,} prompts came to no pair."
            hint = "Draw more samples at a higher temperature, or lower `pair.margin`."
            yield Warning(level="caution", what=what, hint=hint, where="data")
    if verdicts is None or not verdicts.judgements:
        return
    for count, least, what, hint in (
        (verdicts.low_mass, SOME_LOW_MASS, "put little probability on the labels", "The judge wants to say something "
         "else: look at its replies, and at its chat template (`template_options`)."),
        (verdicts.unparsed, SOME_UNPARSED, "could not be read", "Look at the replies in judgements.jsonl; a judge "
         "with log-probabilities needs no parsing."),
        (verdicts.truncated, SOME_UNPARSED, "were cut off before a verdict", "Raise `compare.reasoning_tokens`."),
    ):  # fmt: skip
        share = count / verdicts.judgements
        if share > least:
            told = f"{count:,} of {verdicts.judgements:,} answers of the judge ({share:.1%}) {what}."
            yield Warning(level="serious" if share > MUCH else "caution", what=told, hint=hint, where="judge")
    for slot in verdicts.slots:
        if slot.first is not None and abs(slot.first - 0.5) > MOST_SLOT:
            what = f"{slot.judge} gives {slot.first:.0%} of its verdicts to the first slot."
            hint = "In both orders this cancels; never ask it in one."
            yield Warning(level="caution", what=what, hint=hint, where="judge")


def _lengths(page: Page) -> Iterator[Warning]:
    data = page.data
    if data is None or data.lengths is None or data.pairs < LEAST_PAIRS:
        return
    found = data.lengths
    for share, name, other in ((found.longer, "longer", "long"), (found.shorter, "shorter", "short")):
        if share > MOST_LONGER:
            medians = f"medians {found.chosen.median:,.0f} and {found.rejected.median:,.0f} characters"
            what = f"The chosen reply is the {name} one in {share:.0%} of the pairs ({medians})."
            hint = f"A policy may learn to be {other}, so compare at equal length; `rlaif data check` tells more."
            yield Warning(level="caution", what=what, hint=hint, where="data")


def _judge(page: Page) -> Iterator[Warning]:
    if page.about.kind != "run":
        return
    own = [each for each in page.judges if each.labeller]
    if not own:
        what = f"No evaluation of the judge {page.about.judge or ''} under this constitution is known."
        hint = "Measure it on pairs whose better reply is known: `rlaif evaluate judge`."
        yield Warning(level="caution", what=what.replace("  ", " "), hint=hint, where="judges")
    for each in own:
        yield from _verdict(each)


def _verdict(found: Judges) -> Iterator[Warning]:
    verdict, name = found.report.verdict, found.report.about.judge
    for reason in verdict.reasons:
        what = f"Evaluation of the judge {name}: {reason.text}."
        hint = "Do not train on its labels." if reason.level == "unfit" else "See its evaluation before training."
        yield Warning(level="serious" if reason.level == "unfit" else "caution", what=what, hint=hint, where="judges")
    slope = found.report.measures.length.slope
    if slope is not None and (slope.low > 0 or slope.high < 0):
        liked = "longer" if slope.low > 0 else "shorter"
        what = f"The judge {name} likes the {liked} reply, whatever its quality (slope {slope.value:+.2f})."
        hint = "Compare policies at equal length."
        yield Warning(level="caution", what=what, hint=hint, where="judges")


def _training(found: Training) -> Iterator[Warning]:
    name = f"Training {found.name}" if found.name != "." else "The training"
    if found.status == "unfinished":
        so_far = f" after step {found.steps:,}" if found.steps is not None else ""
        what = f"{name} is unfinished{so_far}."
        yield Warning(level="caution", what=what, hint=f"Run `{found.command}`.", where="trainings")
    if found.status == "damaged":
        hint = "Start it again in another folder."
        yield Warning(level="serious", what=f"{name}: train.json is damaged.", hint=hint, where="trainings")
    if found.status == "stopped":
        what = f"{name} stopped at step {found.steps:,} of {found.planned:,}."
        yield Warning(level="caution", what=what, hint="See its alarms and its curves.", where="trainings")
    for alarm in found.alarms:
        what, _, hint = alarm.rpartition("): ") if "): " in alarm else (alarm, "", "")
        told = f"{what})" if hint else alarm
        todo = f"{hint[:1].upper()}{hint[1:]}." if hint else "See its curves."
        yield Warning(level="caution", what=f"{name}, {told}", hint=todo, where="trainings")
    if found.data_note.startswith("changed"):
        what = f"{name} learned from other data than this folder holds now."
        hint = "Train again, or report on the folder as it was."
        yield Warning(level="caution", what=what, hint=hint, where="trainings")


def _evaluations(page: Page) -> Iterator[Warning]:
    for each in page.policies:
        judge = page.about.judge
        said = any("trained on" in text and str(judge) in text for text in each.report.warnings)
        if judge is not None and each.report.about.judge == judge and not said:
            what = f"The policies of {each.path} are judged by {page.about.judge}, which labelled the training data."
            hint = "A judge prefers what it taught: confirm with another judge."
            yield Warning(level="caution", what=what, hint=hint, where="policies")
        for text in each.report.warnings:
            if judge is None or f"no evaluation of {judge}" not in text:  # which `_judge` has said, or knows better
                what = f"Evaluation of policies: {_stopped(text)}"
                yield Warning(level="caution", what=what, hint=f"See {each.path}.", where="policies")
    for found in page.rewards:
        for text in found.report.warnings:
            what = f"Evaluation of the reward model {found.report.model}: {_stopped(text)}"
            yield Warning(level="caution", what=what, hint=f"See {found.path}.", where="rewards")
        best = found.report.best_of_n
        if best is not None and best.overoptimised:
            what = f"Choosing the best of more than {best.best_n} answers by {found.report.model} makes them worse."
            hint = "Optimise less against this reward, or train it on more pairs."
            yield Warning(level="caution", what=what, hint=hint, where="rewards")


def _stopped(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."
