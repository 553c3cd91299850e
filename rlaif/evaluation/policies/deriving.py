"""From what was asked to the report: figures of the players, the matches and the ratings, costs and warnings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pydantic import JsonValue

from rlaif import __version__
from rlaif.asking import Judge
from rlaif.constitution import Constitution
from rlaif.evaluation.intervals import share
from rlaif.evaluation.naming import report_name, sha256_known
from rlaif.evaluation.policies.comparing import Compared, Plan
from rlaif.evaluation.policies.distance import Distance
from rlaif.evaluation.policies.doubts import Known, doubts
from rlaif.evaluation.policies.gathering import Gathered, reason_of, tag_of
from rlaif.evaluation.policies.lineage import Lineage, lineage_of, trained_prompts
from rlaif.evaluation.policies.matches import match_of, outcome
from rlaif.evaluation.policies.players import Answer, Bounds, Kinds, Meter, Value, player_of, shared_places, value_of
from rlaif.evaluation.policies.ratings import Won, ratings
from rlaif.evaluation.policies.report import About, Cost, Match, Player, PolicyReport, Rating
from rlaif.evaluation.policies.settings import EvaluateSettings
from rlaif.evaluation.report import Estimate
from rlaif.records import Judgement, Prompt, Score
from rlaif.samples.inputs import Oddities
from rlaif.samples.meetings import Criterion, criteria_of
from rlaif.scores.grades import score_question

if TYPE_CHECKING:
    from rlaif.evaluation.policies.tables import Tables

_UNTOLD = {"judge", "max_failed", "prompts", "kl", "template_options"}


class Facts(NamedTuple):
    """What an evaluation was about."""

    settings: EvaluateSettings
    constitution: Constitution
    oddities: Oddities
    judge: Judge
    gathered: Sequence[Gathered]
    """The baseline last."""
    prompts: Sequence[Prompt]
    distances: Mapping[str, Distance]
    warn_same: tuple[str, ...]


def report_stem(
    settings: EvaluateSettings, constitution: Constitution, judge: str, players: Sequence[tuple[str, str]]
) -> str:
    """What the files of one evaluation are called. `players` are names and identities, the baseline last."""
    *others, last = [name for name, _ in players]
    about = settings.model_dump(mode="json", include=set(EvaluateSettings.model_fields) - _UNTOLD)
    path = settings.prompts.path
    prompts: list[JsonValue] = [sha256_known(path) or path, settings.prompts.column, settings.prompts.limit]
    everyone: list[JsonValue] = [[name, model] for name, model in players]
    warmth = settings.asked.temperature
    return report_name([*others, "against", last], about, prompts, warmth, constitution.hash, judge, everyone)


def derive(
    facts: Facts, plan: Plan, rows: Sequence[Compared], costs: Costs, meters: Mapping[str, Meter], seconds: float
) -> PolicyReport:
    """The report; `rows` are all comparisons of the plan, read through `costs`. Nothing is asked."""
    settings = facts.settings
    criteria = criteria_of(facts.constitution, "each")
    values = {name: value_of(meter) for name, meter in meters.items()}
    players = tuple(_players(facts, criteria, costs, values))
    names = [criterion.id for criterion in plan.criteria]
    met = _Met(facts, values)
    matches = tuple(_match(pair, rows, settings, names, met) for pair in plan.pairs)
    return PolicyReport(
        made_by=f"rlaif {__version__}",
        about=_about(facts),
        warnings=_warnings(facts, players, matches),
        baseline=players[-1].name,
        players=players,
        matches=matches,
        ratings=_ratings([player.name for player in players], rows, settings.pair.margin),
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
    return found.model_copy(update={"meters": met.compared(own)})


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
) -> Iterator[Player]:
    settings, answered = facts.settings, {each.name: each.answers for each in facts.gathered}
    shared = shared_places(answered)
    kinds, bounds = (
        Kinds(tag_of(settings), settings.harmful),
        Bounds(settings.violation_below, settings.pair.min_label_mass),
    )
    for each in facts.gathered:
        answers = list(_answers(each, facts, criteria, costs))
        player = player_of(
            each.name, each.identity, answers, each.missing, shared,
            criteria=criteria, kinds=kinds, bounds=bounds, values=values,
        )  # fmt: skip
        far = facts.distances.get(each.name, Distance(None))
        yield player.model_copy(update={"kl": far.kl, "kl_note": far.note})


def _answers(own: Gathered, facts: Facts, criteria: Sequence[Criterion], costs: Costs) -> Iterator[Answer]:
    for prompt in facts.prompts:
        for sample in own.answers[prompt.id]:
            if sample is None:
                continue
            grades: dict[str, Score | None] = {}
            for criterion in criteria if facts.settings.grades else ():
                most = facts.settings.compare.max_chars
                question = score_question(prompt, sample, criterion, facts.judge, max_chars=most)
                grades[criterion.id] = costs.grade(question.id)
            yield Answer(prompt, sample, grades)


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

    def total(self, gathered: Sequence[Gathered], seconds: float) -> Cost:
        """The sum, with what the policies took."""
        drawn = {sample.id: sample for each in gathered if each.drawn for sample in each.found()}
        sampled = Counter[str]()
        for each in gathered:
            sampled.update({f"sample: {reason}": count for reason, count in each.failed.items()})
        return Cost(
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


def _about(facts: Facts) -> About:
    settings = facts.settings
    return About(
        judge=facts.judge.name,
        constitution=facts.constitution.name,
        constitution_hash=facts.constitution.hash,
        prompts=settings.prompts.path,
        prompts_sha256=sha256_known(settings.prompts.path),
        prompt_count=len(facts.prompts),
        oddities=dict(facts.oddities.counts),
        tag=settings.tag,
        harmful=settings.harmful,
        violation_below=settings.violation_below,
        drawing=settings.drawing,
        compare=settings.asked.model_dump(mode="json"),
        pair=settings.read.model_dump(mode="json"),
    )


def _warnings(facts: Facts, players: Sequence[Player], matches: Sequence[Match]) -> tuple[str, ...]:
    lineages = {
        each.name: lineage_of(each.contestant.thing) if each.contestant.folder is not None else Lineage()
        for each in facts.gathered
    }
    return doubts(
        Known(
            judge=facts.judge.name,
            constitution_hash=facts.constitution.hash,
            players=players,
            lineages=lineages,
            matches=matches,
            prompts=[prompt.id for prompt in facts.prompts],
            trained={name: trained_prompts(own) for name, own in lineages.items()},
            warn_same=facts.warn_same,
        )
    )
