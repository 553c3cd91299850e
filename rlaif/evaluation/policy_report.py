"""From what was asked to the report on policies: figures, ratings, costs and warnings.

What evaluations of policies have asked so far, in one folder, and the time that it took.

What speaks against believing an evaluation of policies, most important first.

From what was asked to the report: figures of the players, the matches and the ratings, costs and warnings.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from rlaif import __version__
from rlaif.config.judge_templates import Judge
from rlaif.constitution import Constitution
from rlaif.data.prompts import InputIssues
from rlaif.evaluation.judge_metrics import FOLDER, known_verdict
from rlaif.evaluation.kl import Distance, Likelihood
from rlaif.evaluation.policy_metrics import (
    Bounds,
    Compared,
    Kinds,
    Metric,
    Plan,
    PolicyResponse,
    Value,
    match_of,
    metrics_of,
    outcome,
    shared_places,
    value_of,
)
from rlaif.evaluation.policy_responses import Gathered, reason_of, tag_of
from rlaif.evaluation.policy_specs import EvaluateSettings
from rlaif.evaluation.provenance import Lineage, lineage_of, same_model, trained_prompts
from rlaif.evaluation.ratings import Won, ratings
from rlaif.evaluation.reports import (
    Match,
    PolicyAbout,
    PolicyCost,
    PolicyMetrics,
    PolicyReport,
    Rating,
    report_name,
    sha256_known,
)
from rlaif.feedback.matchups import Criterion, criteria_of
from rlaif.feedback.scoring import score_question
from rlaif.inference.base import StageStats
from rlaif.inference.models import related, same_family
from rlaif.records import Failure, Judgement, Prompt, Sample, Score
from rlaif.stats import Estimate, share
from rlaif.store import Table, lock_folder, write_json
from rlaif.text import loads

_SECONDS = "seconds.json"


@dataclass
class Tables:
    """What has been asked so far, in one folder."""

    prompts: Table[Prompt]
    samples: Table[Sample]
    judgements: Table[Judgement]
    scores: Table[Score]
    likelihoods: Table[Likelihood]
    failures: Table[Failure]


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Tables]:
    """The tables of a folder, which is made if need be and held by this process alone."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(lock_folder(folder))
        yield Tables(
            stack.enter_context(contextlib.closing(Table(folder / "prompts.jsonl", Prompt))),
            stack.enter_context(contextlib.closing(Table(folder / "samples.jsonl", Sample))),
            stack.enter_context(contextlib.closing(Table(folder / "judgements.jsonl", Judgement))),
            stack.enter_context(contextlib.closing(Table(folder / "scores.jsonl", Score, create=False))),
            stack.enter_context(contextlib.closing(Table(folder / "likelihoods.jsonl", Likelihood, create=False))),
            stack.enter_context(contextlib.closing(Table(folder / "failures.jsonl", Failure))),
        )


@contextlib.contextmanager
def timed(folder: Path, stem: str, tallies: Sequence[StageStats]) -> Iterator[None]:
    """Keep the time that the stages in the block took, also where they are stopped between two of them."""
    try:
        yield
    finally:
        more = sum(tally.seconds for tally in tallies)
        if more:
            known = seconds_of(folder)
            write_json(folder / _SECONDS, {**known, stem: known.get(stem, 0.0) + more})


def seconds_of(folder: Path) -> dict[str, float]:
    """Time with models by evaluation, as far as it is known."""
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        found = loads((folder / _SECONDS).read_text(encoding="utf-8"))
        return {name: float(value) for name, value in found.items()}
    return {}


MOST_SILENT = 0.1
"""Share of pairs without a label, of answers cut off or missing, over which the others tell little of them."""
LEAST_PROMPTS = 30
"""With fewer, an interval of the win rate is wider than 30 points."""


class Known(NamedTuple):
    """What the warnings go by."""

    judge: str
    """Name of its model."""
    constitution_hash: str
    policies: Sequence[PolicyMetrics]
    lineages: dict[str, Lineage]
    """By player; those of which nothing is known are empty."""
    matches: Sequence[Match]
    prompts: Sequence[str]
    """Ids of the prompts."""
    trained: dict[str, frozenset[str]]
    """By player, the prompts that it was trained on."""
    warn_same: Sequence[str] = ()
    """Players that the caller knows to be trained on this judge's labels."""


def policy_warnings(known: Known) -> tuple[str, ...]:
    """The warnings, a sentence each."""
    return tuple(
        text
        for part in (_raw, _labeller, _kin, _unknown_judge, _silent, _few, _lengths, _cut, _missing, _seen, _twins)
        for text in part(known)
    )


def _raw(known: Known) -> Iterator[str]:
    for policy in known.policies:
        if known.lineages.get(policy.name, Lineage()).raw:
            yield (
                f"`{policy.name}` was trained on texts without its chat template, and is asked in that: train it with "
                "`template: chat`"
            )


def _labeller(known: Known) -> Iterator[str]:
    pleasers = [
        f"`{policy.name}`"
        for policy in known.policies
        if policy.name in known.warn_same
        or any(same_model(each, known.judge) for each in known.lineages.get(policy.name, Lineage()).judges)
    ]
    if pleasers:
        yield (
            f"the judge {known.judge} labelled what {' and '.join(pleasers)} learned from, so a win may only say that "
            "its taste was learned: compare with another judge too"
        )


def _kin(known: Known) -> Iterator[str]:
    for policy in known.policies:
        bases = known.lineages.get(policy.name, Lineage()).bases
        kin = next((name for name in (policy.model, *bases) if related(known.judge, name)), None)
        told = same_family(kin, [known.judge])
        if told is not None:
            yield f"`{policy.name}`: {told}"


def _unknown_judge(known: Known) -> Iterator[str]:
    found = known_verdict(known.judge, known.constitution_hash)
    if found is None:
        hint = "`rlaif evaluate judge` does one"
        yield f"{FOLDER} has no evaluation of {known.judge} by this constitution: {hint}"
    elif found.level != "fit":
        yield f"by its evaluation in {FOLDER}, the judge {known.judge} is {found}"


def _silent(known: Known) -> Iterator[str]:
    for match in known.matches:
        silent = {kind: count for kind, count in match.no_label.items() if kind != "missing"}
        asked = match.compared + sum(silent.values())
        if sum(silent.values()) > MOST_SILENT * asked:
            told = ", ".join(f"{count:,} {kind}" for kind, count in silent.items())
            yield (
                f"{sum(silent.values()):,} of {asked:,} pairs of `{match.policy}` and `{match.baseline}` have no label "
                f"({told}): what is told of the others may not hold for them"
            )


def _few(known: Known) -> Iterator[str]:
    if len(known.prompts) < LEAST_PROMPTS:
        count = len(known.prompts)
        yield f"only {count} prompt{'s' if count != 1 else ''}: the intervals are wide"


def _lengths(known: Known) -> Iterator[str]:
    for match in known.matches:
        if match.length_controlled_note and match.compared:
            yield f"`{match.policy}` against `{match.baseline}` at equal length: {match.length_controlled_note}"


def _cut(known: Known) -> Iterator[str]:
    for policy in known.policies:
        if policy.truncated is not None and policy.truncated > MOST_SILENT:
            yield f"{policy.truncated:.0%} of the answers of `{policy.name}` are cut off: raise `max_tokens`"


def _missing(known: Known) -> Iterator[str]:
    for policy in known.policies:
        wanted = policy.answers + policy.missing
        if policy.missing > MOST_SILENT * wanted:
            yield f"{policy.missing:,} of {wanted:,} answers of `{policy.name}` are missing"


def _seen(known: Known) -> Iterator[str]:
    for policy in known.policies:
        seen = len(known.trained.get(policy.name, frozenset()) & set(known.prompts))
        if seen:
            yield f"{seen:,} of the {len(known.prompts):,} prompts are in the data that `{policy.name}` was trained on"


def _twins(known: Known) -> Iterator[str]:
    names: dict[str, list[str]] = {}
    for policy in known.policies:
        names.setdefault(policy.model, []).append(policy.name)
    for model, same in names.items():
        if len(same) > 1:
            told = " and ".join(f"`{name}`" for name in same)
            yield f"{told} are one model, {model}: with one seed they give the same answers"


_UNTOLD = {"judge", "max_failed", "prompts", "kl", "template_options"}


class Facts(NamedTuple):
    """What an evaluation was about."""

    settings: EvaluateSettings
    constitution: Constitution
    input_issues: InputIssues
    judge: Judge
    gathered: Sequence[Gathered]
    """The baseline last."""
    prompts: Sequence[Prompt]
    distances: Mapping[str, Distance]
    warn_same: tuple[str, ...]


def report_stem(
    settings: EvaluateSettings, constitution: Constitution, judge: str, policies: Sequence[tuple[str, str]]
) -> str:
    """What the files of one evaluation are called. `policies` are names and identities, the baseline last."""
    *others, last = [name for name, _ in policies]
    about = settings.model_dump(mode="json", include=set(EvaluateSettings.model_fields) - _UNTOLD)
    path = settings.prompts.path
    prompts: list[JsonValue] = [sha256_known(path) or path, settings.prompts.column, settings.prompts.limit]
    everyone: list[JsonValue] = [[name, model] for name, model in policies]
    warmth = settings.asked.temperature
    return report_name([*others, "against", last], about, prompts, warmth, constitution.hash, judge, everyone)


def derive(
    facts: Facts, plan: Plan, rows: Sequence[Compared], costs: Costs, metrics: Mapping[str, Metric], seconds: float
) -> PolicyReport:
    """The report; `rows` are all comparisons of the plan, read through `costs`. Nothing is asked."""
    settings = facts.settings
    criteria = criteria_of(facts.constitution, "each")
    values = {name: value_of(metric) for name, metric in metrics.items()}
    policies = tuple(_players(facts, criteria, costs, values))
    names = [criterion.id for criterion in plan.criteria]
    met = _Met(facts, values)
    matches = tuple(_match(pair, rows, settings, names, met) for pair in plan.pairs)
    return PolicyReport(
        made_by=f"rlaif {__version__}",
        about=_about(facts),
        warnings=_warnings(facts, policies, matches),
        baseline=policies[-1].name,
        policies=policies,
        matches=matches,
        ratings=_ratings([policy.name for policy in policies], rows, settings.pair.margin),
        cost=costs.total(facts.gathered, seconds),
    )


def _match(
    pair: tuple[str, str],
    rows: Sequence[Compared],
    settings: EvaluateSettings,
    names: Sequence[str],
    met: _Met,
) -> Match:
    own = [row for row in rows if (row.policy, row.baseline) == pair]
    found = match_of(*pair, own, margin=settings.pair.margin, principles=names)
    return found.model_copy(update={"metrics": met.compared(own)})


class _Met:
    """Which answer of a pair the caller's own measures prefer."""

    def __init__(self, facts: Facts, values: Mapping[str, Value]) -> None:
        self._values = values
        self._messages = {prompt.id: prompt.messages for prompt in facts.prompts}
        self._texts = {sample.id: sample.text for each in facts.gathered for sample in each.found()}

    def compared(self, rows: Sequence[Compared]) -> dict[str, Estimate]:
        """By measure, how often the policy's answer has the higher value, in the pairs whose answers both have one."""
        found = {}
        for name, value in self._values.items():
            ends = [(self._end(value, row), row.prompt) for row in rows]
            told = [(end, prompt) for end, prompt in ends if end is not None]
            if told:
                found[name] = share([end for end, _ in told], [prompt for _, prompt in told])
        return found

    def _end(self, value: Value, row: Compared) -> float | None:
        if None in row.samples:
            return None
        own, other = (value(self._messages[row.prompt], self._texts[str(sample)]) for sample in row.samples)
        if own is None or other is None:
            return None
        return 1.0 if own > other else 0.0 if own < other else 0.5


def _ratings(names: Sequence[str], rows: Sequence[Compared], margin: float) -> tuple[Rating, ...]:
    if len(names) < 3:
        return ()
    won = [
        Won(row.policy, row.baseline, row.prompt, outcome(row.probability, margin))
        for row in rows
        if row.probability is not None
    ]
    return ratings(names, won)


def _players(
    facts: Facts, criteria: Sequence[Criterion], costs: Costs, values: Mapping[str, Value]
) -> Iterator[PolicyMetrics]:
    settings, answered = facts.settings, {each.name: each.answers for each in facts.gathered}
    shared = shared_places(answered)
    kinds, bounds = (
        Kinds(tag_of(settings), settings.harmful),
        Bounds(settings.violation_below, settings.pair.min_label_mass),
    )
    for each in facts.gathered:
        answers = list(_answers(each, facts, criteria, costs))
        policy = metrics_of(
            each.name, each.identity, answers, each.missing, shared,
            criteria=criteria, kinds=kinds, bounds=bounds, values=values,
        )  # fmt: skip
        far = facts.distances.get(each.name, Distance(None))
        yield policy.model_copy(update={"kl": far.kl, "kl_note": far.note})


def _answers(own: Gathered, facts: Facts, criteria: Sequence[Criterion], costs: Costs) -> Iterator[PolicyResponse]:
    for prompt in facts.prompts:
        for sample in own.answers[prompt.id]:
            if sample is None:
                continue
            grades: dict[str, Score | None] = {}
            for criterion in criteria if facts.settings.grades else ():
                most = facts.settings.compare.max_chars
                question = score_question(prompt, sample, criterion, facts.judge, max_chars=most)
                grades[criterion.id] = costs.grade(question.id)
            yield PolicyResponse(prompt, sample, grades)


class Costs:
    """Counts, each question once, what the answers on disk took."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._seen: set[str] = set()
        self._failed: Counter[str] = Counter()
        self._spent: Counter[str] = Counter()

    def judgement(self, question: str) -> Judgement | None:
        """The judgement that answers a question."""
        found = self._tables.judgements.get(question)
        if self._new(question):
            self._count("compare", "judgements", question, found)
        return found

    def grade(self, question: str) -> Score | None:
        """The grade that answers a question."""
        found = self._tables.scores.get(question)
        if self._new(question):
            self._count("grade", "grades", question, found)
        return found

    def _new(self, question: str) -> bool:
        known = question in self._seen
        self._seen.add(question)
        return not known

    def _count(self, stage: str, kind: str, question: str, found: object) -> None:
        if found is None:
            self._failed[f"{stage}: {reason_of(question, self._tables.failures)}"] += 1
            return
        spent = {name: getattr(found, f"{name}_tokens") for name in ("prompt", "cached", "completion")}
        self._spent.update({kind: 1, **spent})

    def total(self, gathered: Sequence[Gathered], seconds: float) -> PolicyCost:
        """The sum, with what the policies took."""
        drawn = {sample.id: sample for each in gathered if each.drawn for sample in each.found()}
        sampled = Counter[str]()
        for each in gathered:
            sampled.update({f"sample: {reason}": count for reason, count in each.failed.items()})
        return PolicyCost(
            answers=len(drawn),
            judgements=self._spent["judgements"],
            grades=self._spent["grades"],
            failed=dict(sampled + self._failed),
            judge_prompt_tokens=self._spent["prompt"],
            judge_cached_tokens=self._spent["cached"],
            judge_completion_tokens=self._spent["completion"],
            policy_tokens=sum(each.completion_tokens for each in drawn.values()),
            seconds=seconds,
        )


def _about(facts: Facts) -> PolicyAbout:
    settings = facts.settings
    return PolicyAbout(
        judge=facts.judge.name,
        constitution=facts.constitution.name,
        constitution_hash=facts.constitution.hash,
        prompts=settings.prompts.path,
        prompts_sha256=sha256_known(settings.prompts.path),
        prompt_count=len(facts.prompts),
        input_issues=dict(facts.input_issues.counts),
        tag=settings.tag,
        harmful=settings.harmful,
        violation_below=settings.violation_below,
        drawing=settings.drawing,
        compare=settings.asked.model_dump(mode="json"),
        pair=settings.read.model_dump(mode="json"),
    )


def _warnings(facts: Facts, policies: Sequence[PolicyMetrics], matches: Sequence[Match]) -> tuple[str, ...]:
    lineages = {
        each.name: lineage_of(each.contestant.thing) if each.contestant.folder is not None else Lineage()
        for each in facts.gathered
    }
    return policy_warnings(
        Known(
            judge=facts.judge.name,
            constitution_hash=facts.constitution.hash,
            policies=policies,
            lineages=lineages,
            matches=matches,
            prompts=[prompt.id for prompt in facts.prompts],
            trained={name: trained_prompts(own) for name, own in lineages.items()},
            warn_same=facts.warn_same,
        )
    )
