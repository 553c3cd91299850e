"""From the answers on disk to the report on policies: metrics, matches, ratings, costs and warnings.

`Tables` are the records that all evaluations in one folder share. `derive` computes the report from them without
asking anything, and `policy_warnings` lists what speaks against believing it, most important first.
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
from rlaif.evaluation.policy_responses import Distance, Gathered, Likelihood, reason_of, tag_of
from rlaif.evaluation.policy_specs import EvaluateSettings
from rlaif.evaluation.provenance import Lineage, lineage_of, same_model, trained_prompts
from rlaif.evaluation.ratings import Won, ratings
from rlaif.evaluation.reports import (
    FOLDER,
    Match,
    PolicyAbout,
    PolicyCost,
    PolicyMetrics,
    PolicyReport,
    known_verdict,
    report_name,
    sha256_known,
)
from rlaif.feedback.judge import Criterion, criteria_of
from rlaif.feedback.scoring import score_question
from rlaif.inference.base import StageStats
from rlaif.inference.models import related, same_family
from rlaif.records import Failure, Judgement, Prompt, Sample, Score
from rlaif.stats import Estimate, share
from rlaif.store import Table, lock_folder, write_json
from rlaif.text import loads

MOST_MISSING = 0.1
"""Share of pairs without a label, or of responses cut off or missing, above which the rest does not represent them."""
LEAST_PROMPTS = 30
"""With fewer, an interval of the win rate is wider than 30 points."""

_SECONDS = "seconds.json"
_NOT_IN_NAME = {"judge", "max_failed", "prompts", "kl", "template_options"}
"""Settings that a report's name leaves out: they change no figure, or enter it in another way."""


@dataclass
class Tables:
    """The records of all evaluations in one folder."""

    prompts: Table[Prompt]
    samples: Table[Sample]
    judgements: Table[Judgement]
    scores: Table[Score]
    likelihoods: Table[Likelihood]
    failures: Table[Failure]


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Tables]:
    """The tables of a folder, which is created if missing and locked for this process."""
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
    """Store the time of the stages in the block, also where it is interrupted between two of them."""
    try:
        yield
    finally:
        seconds = sum(tally.seconds for tally in tallies)
        if seconds:
            earlier = seconds_of(folder)
            write_json(folder / _SECONDS, {**earlier, stem: earlier.get(stem, 0.0) + seconds})


def seconds_of(folder: Path) -> dict[str, float]:
    """Seconds with models by evaluation, as far as they are recorded."""
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        seconds = loads((folder / _SECONDS).read_text(encoding="utf-8"))
        return {name: float(value) for name, value in seconds.items()}
    return {}


class WarningFacts(NamedTuple):
    """The facts that the warnings depend on."""

    judge: str
    """Name of its model."""
    constitution_hash: str
    policies: Sequence[PolicyMetrics]
    lineages: dict[str, Lineage]
    """By policy; empty where nothing is known."""
    matches: Sequence[Match]
    prompts: Sequence[str]
    """Ids of the prompts."""
    trained: dict[str, frozenset[str]]
    """By policy, the prompts that it was trained on."""
    warn_same: Sequence[str] = ()
    """Policies that the caller knows to be trained on this judge's labels."""


def policy_warnings(facts: WarningFacts) -> tuple[str, ...]:
    """The warnings, a sentence each."""
    return tuple(
        text
        for part in (_training_warnings, _label_warnings, _response_warnings, _duplicate_warnings)
        for text in part(facts)
    )


def _training_warnings(facts: WarningFacts) -> Iterator[str]:
    for policy in facts.policies:
        if facts.lineages.get(policy.name, Lineage()).raw:
            yield (
                f"`{policy.name}` was trained on texts without its chat template, and is asked in that: train it with "
                "`template: chat`"
            )
    trained_by_judge = [
        f"`{policy.name}`"
        for policy in facts.policies
        if policy.name in facts.warn_same
        or any(same_model(judge, facts.judge) for judge in facts.lineages.get(policy.name, Lineage()).judges)
    ]
    if trained_by_judge:
        names = " and ".join(trained_by_judge)
        yield (
            f"the judge {facts.judge} labelled what {names} learned from, so a win may only say that "
            "its taste was learned: compare with another judge too"
        )
    for policy in facts.policies:
        bases = facts.lineages.get(policy.name, Lineage()).bases
        relative = next((name for name in (policy.model, *bases) if related(facts.judge, name)), None)
        message = same_family(relative, [facts.judge])
        if message is not None:
            yield f"`{policy.name}`: {message}"


def _label_warnings(facts: WarningFacts) -> Iterator[str]:
    verdict = known_verdict(facts.judge, facts.constitution_hash)
    if verdict is None:
        hint = "`rlaif evaluate judge` does one"
        yield f"{FOLDER} has no evaluation of {facts.judge} by this constitution: {hint}"
    elif verdict.level != "fit":
        yield f"by its evaluation in {FOLDER}, the judge {facts.judge} is {verdict}"
    for match in facts.matches:
        unlabelled = {kind: count for kind, count in match.no_label.items() if kind != "missing"}
        count = sum(unlabelled.values())
        total = match.compared + count
        if count > MOST_MISSING * total:
            reasons = ", ".join(f"{number:,} {kind}" for kind, number in unlabelled.items())
            yield (
                f"{count:,} of {total:,} pairs of `{match.policy}` and `{match.baseline}` have no label "
                f"({reasons}): the figures of the others may not hold for them"
            )
    if len(facts.prompts) < LEAST_PROMPTS:
        count = len(facts.prompts)
        yield f"only {count} prompt{'s' if count != 1 else ''}: the intervals are wide"


def _response_warnings(facts: WarningFacts) -> Iterator[str]:
    for match in facts.matches:
        if match.length_controlled_note and match.compared:
            names = f"`{match.policy}` against `{match.baseline}`"
            yield f"{names}, no length-controlled win rate: {match.length_controlled_note}"
    for policy in facts.policies:
        if policy.truncated is not None and policy.truncated > MOST_MISSING:
            yield f"{policy.truncated:.0%} of the answers of `{policy.name}` are cut off: raise `max_tokens`"
    for policy in facts.policies:
        wanted = policy.answers + policy.missing
        if policy.missing > MOST_MISSING * wanted:
            yield f"{policy.missing:,} of {wanted:,} answers of `{policy.name}` are missing"
    for policy in facts.policies:
        seen = len(facts.trained.get(policy.name, frozenset()) & set(facts.prompts))
        if seen:
            yield f"{seen:,} of the {len(facts.prompts):,} prompts are in the data that `{policy.name}` was trained on"


def _duplicate_warnings(facts: WarningFacts) -> Iterator[str]:
    names: dict[str, list[str]] = {}
    for policy in facts.policies:
        names.setdefault(policy.model, []).append(policy.name)
    for model, same in names.items():
        if len(same) > 1:
            shown = " and ".join(f"`{name}`" for name in same)
            yield f"{shown} are one model, {model}: with one seed they give the same answers"


class Facts(NamedTuple):
    """The subject of an evaluation and the responses to compare."""

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
    """The stem of the files of one evaluation. `policies` are names and identities, the baseline last."""
    *compared, baseline = [name for name, _ in policies]
    about = settings.model_dump(mode="json", include=set(EvaluateSettings.model_fields) - _NOT_IN_NAME)
    path = settings.prompts.path
    prompts: list[JsonValue] = [sha256_known(path) or path, settings.prompts.column, settings.prompts.limit]
    identities: list[JsonValue] = [[name, model] for name, model in policies]
    temperature = settings.compare_settings.temperature
    return report_name(
        [*compared, "against", baseline], about, prompts, temperature, constitution.hash, judge, identities
    )


def derive(
    facts: Facts, plan: Plan, rows: Sequence[Compared], costs: Costs, metrics: Mapping[str, Metric], seconds: float
) -> PolicyReport:
    """The report; `rows` are all comparisons of the plan, read through `costs`. It asks nothing."""
    settings = facts.settings
    criteria = criteria_of(facts.constitution, "each")
    values = {name: value_of(metric) for name, metric in metrics.items()}
    policies = tuple(_policy_metrics(facts, criteria, costs, values))
    names = [criterion.id for criterion in plan.criteria]
    preferences = _MetricPreferences(facts, values)
    matches = []
    for pair in plan.pairs:
        of_pair = [row for row in rows if (row.policy, row.baseline) == pair]
        match = match_of(*pair, of_pair, margin=settings.pair.margin, principles=names)
        matches.append(match.model_copy(update={"metrics": preferences.shares(of_pair)}))
    lineages = {
        each.name: lineage_of(each.contestant.thing) if each.contestant.folder is not None else Lineage()
        for each in facts.gathered
    }
    warning_facts = WarningFacts(
        judge=facts.judge.name,
        constitution_hash=facts.constitution.hash,
        policies=policies,
        lineages=lineages,
        matches=matches,
        prompts=[prompt.id for prompt in facts.prompts],
        trained={name: trained_prompts(lineage) for name, lineage in lineages.items()},
        warn_same=facts.warn_same,
    )
    won = [
        Won(row.policy, row.baseline, row.prompt, outcome(row.probability, settings.pair.margin))
        for row in rows
        if row.probability is not None
    ]
    return PolicyReport(
        made_by=f"rlaif {__version__}",
        about=_about(facts),
        warnings=policy_warnings(warning_facts),
        baseline=policies[-1].name,
        policies=policies,
        matches=tuple(matches),
        ratings=ratings([policy.name for policy in policies], won) if len(policies) > 2 else (),
        cost=costs.total(facts.gathered, seconds),
    )


class _MetricPreferences:
    """Which response of a pair the caller's measures prefer."""

    def __init__(self, facts: Facts, values: Mapping[str, Value]) -> None:
        self._values = values
        self._messages = {prompt.id: prompt.messages for prompt in facts.prompts}
        self._texts = {sample.id: sample.text for each in facts.gathered for sample in each.present()}

    def shares(self, rows: Sequence[Compared]) -> dict[str, Estimate]:
        """By measure, how often the policy's response has the higher value, in the pairs where both have one."""
        estimates = {}
        for name, value in self._values.items():
            wins, prompts = [], []
            for row in rows:
                if None in row.samples:
                    continue
                policy, baseline = (
                    value(self._messages[row.prompt], self._texts[str(sample)]) for sample in row.samples
                )
                if policy is not None and baseline is not None:
                    wins.append(1.0 if policy > baseline else 0.0 if policy < baseline else 0.5)
                    prompts.append(row.prompt)
            if wins:
                estimates[name] = share(wins, prompts)
        return estimates


def _policy_metrics(
    facts: Facts, criteria: Sequence[Criterion], costs: Costs, values: Mapping[str, Value]
) -> Iterator[PolicyMetrics]:
    settings, answered = facts.settings, {each.name: each.answers for each in facts.gathered}
    shared = shared_places(answered)
    kinds = Kinds(tag_of(settings), settings.harmful)
    bounds = Bounds(settings.violation_below, settings.pair.min_label_mass)
    for each in facts.gathered:
        answers = []
        for prompt in facts.prompts:
            for sample in each.answers[prompt.id]:
                if sample is not None:
                    questions = {
                        criterion.id: score_question(
                            prompt, sample, criterion, facts.judge, max_chars=settings.compare.max_chars
                        )
                        for criterion in (criteria if settings.grades else ())
                    }
                    grades = {name: costs.grade(question.id) for name, question in questions.items()}
                    answers.append(PolicyResponse(prompt, sample, grades))
        policy = metrics_of(
            each.name, each.identity, answers, each.missing, shared,
            criteria=criteria, kinds=kinds, bounds=bounds, values=values,
        )  # fmt: skip
        distance = facts.distances.get(each.name, Distance(None))
        yield policy.model_copy(update={"kl": distance.kl, "kl_note": distance.note})


class Costs:
    """Counts the cost of the answers on disk, each question once."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._seen: set[str] = set()
        self._failed: Counter[str] = Counter()
        self._spent: Counter[str] = Counter()

    def judgement(self, question: str) -> Judgement | None:
        """The judgement that answers a question."""
        judgement = self._tables.judgements.get(question)
        self._count("compare", "judgements", question, judgement)
        return judgement

    def grade(self, question: str) -> Score | None:
        """The grade that answers a question."""
        grade = self._tables.scores.get(question)
        self._count("grade", "grades", question, grade)
        return grade

    def _count(self, stage: str, kind: str, question: str, answer: object) -> None:
        if question in self._seen:
            return
        self._seen.add(question)
        if answer is None:
            self._failed[f"{stage}: {reason_of(question, self._tables.failures)}"] += 1
            return
        spent = {name: getattr(answer, f"{name}_tokens") for name in ("prompt", "cached", "completion")}
        self._spent.update({kind: 1, **spent})

    def total(self, gathered: Sequence[Gathered], seconds: float) -> PolicyCost:
        """The total, including the cost of sampling."""
        sampled = {sample.id: sample for each in gathered if each.sampled for sample in each.present()}
        failed = Counter[str]()
        for each in gathered:
            failed.update({f"sample: {reason}": count for reason, count in each.failed.items()})
        return PolicyCost(
            answers=len(sampled),
            judgements=self._spent["judgements"],
            grades=self._spent["grades"],
            failed=dict(failed + self._failed),
            judge_prompt_tokens=self._spent["prompt"],
            judge_cached_tokens=self._spent["cached"],
            judge_completion_tokens=self._spent["completion"],
            policy_tokens=sum(sample.completion_tokens for sample in sampled.values()),
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
        compare=settings.compare_settings.model_dump(mode="json"),
        pair=settings.pair_settings.model_dump(mode="json"),
    )
