"""The pair stage: the dataset that all the answers on disk make. No model is asked, so new thresholds cost seconds.

`derive` writes whole files or none: `rankings.jsonl`, `pairs.jsonl`, `pairs.parquet`, and `manifest.json` last, so that
its presence means "finished". `why_no_pairs` and `why_no_labels` explain an empty dataset in one line.

`compare.method` decides what the comparisons come from:

- `pairwise`: ordered comparisons, folded over orders, principles and judges (`rlaif.feedback.aggregate`).
- `score`: every sample is graded alone, and a pair is decided by the two distributions over the grades. Calls grow
  with the samples, not with their pairs.
- `rank`: all samples of a prompt stand in one question, in several orders.
- `tournament`: every sample is graded once under the whole constitution, and only the two best and the two worst meet,
  in the ordered comparisons of `pairwise`: for eight samples 8 + 12 calls where the round robin has 56.

Grades and rankings have their own tables (`scores.jsonl`, `orders.jsonl`), and are looked up by their question's hash.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue

from rlaif import __version__
from rlaif.config.judge_templates import template_names
from rlaif.feedback.aggregate import (
    HARD_LOGIT,
    Comparison,
    JudgeVotes,
    PositionBias,
    Status,
    aggregate_panel,
    bias_summary,
)
from rlaif.feedback.agreement import Agreement, AgreementCounter
from rlaif.feedback.judge import Criterion, Forms, Matchup, distinct_samples, draw, matchups, votes
from rlaif.feedback.ranking import PromptRanking, Provenance, pairs, rank_samples, ranking_record, write_parquet
from rlaif.feedback.revise import Revised
from rlaif.feedback.run import Run, find_slots
from rlaif.feedback.scoring import (
    MAX_RANKED,
    CriterionVerdict,
    aggregate_scores,
    grade_logit,
    order_questions,
    readable,
    win_shares,
)
from rlaif.inference.base import Question
from rlaif.records import Critique, Judgement, Order, Prompt, Record, Sample, Score, Verdict
from rlaif.store import record_writer, resource, sha256_of, write_json

_HINTS = {
    "score": "begin its answer in a `score.txt` of your own (`judge.templates`), judge by pairs (`compare.method: "
    "pairwise`), or take another judge",
    "rank": "ask in other words in a `rank.txt` of your own (`judge.templates`), judge by pairs (`compare.method: "
    "pairwise`), or take another judge",
}
_PAIRWISE_HINT = (
    "begin its answer (`compare.prefill`), write templates of your own (`judge.templates`), let it give its reasons "
    "(`compare.reasoning: reply`), or take another judge; `rlaif check` measures each form of asking"
)
_STATUSES = tuple(status.value for status in Status)
_FILES = ("prompts.jsonl", "rankings.jsonl", "pairs.jsonl")
"""Hashed in the manifest. The journals are not: they may grow, and answers to other questions disturb nothing."""
_EXCERPT_CHARS, _MAX_EXCERPTS = 30, 1000


@dataclass
class Outcome:
    """The counts of a run, over all the sessions that made it; only what belongs to its present plan counts."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    """Questions without an answer, as `stage: reason`."""
    principles: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """For every principle: `labels` that it counts in, and `flips` of its own two orders."""
    panel: AgreementCounter | None = None
    """How the judges of a panel agree."""
    slots: dict[str, PositionBias] = field(default_factory=dict)
    """Each judge's position bias, where it was estimated to be removed."""
    unlabelled: Counter[str] = field(default_factory=Counter)
    """The first characters of the judge's outputs that have no label."""

    def note_unlabelled(self, text: str) -> None:
        """Count an output without a label; of many different ones only the first are kept apart."""
        excerpt = text[:_EXCERPT_CHARS]
        if excerpt in self.unlabelled or len(self.unlabelled) < _MAX_EXCERPTS:
            self.unlabelled[excerpt] += 1


def derive(run: Run, sessions: JsonValue = None) -> Outcome:
    """Fold, rank and pair everything that is on disk; write the derived files and, last, the manifest.

    `sessions` goes into the manifest as it is: what the stages did this time.
    """
    run.invalidate_manifest()
    names = [name for name, _ in run.judges]
    outcome = Outcome(panel=AgreementCounter(names) if len(names) > 1 else None, slots=find_slots(run))
    provenance = Provenance(" + ".join(names), f"{run.constitution.name}@{run.constitution.hash[:12]}")
    with (
        record_writer(run.folder / "rankings.jsonl") as write_ranking,
        record_writer(run.folder / "pairs.jsonl") as write_pair,
    ):
        for prompt in run.prompts():
            ranked = aggregate_prompt(run, prompt, outcome)
            write_ranking(ranking_record(ranked))
            rows = pairs(ranked, run.settings.pair, run.settings.compare, provenance)
            for pair in rows:
                write_pair(pair)
            outcome.counts.update(prompts=1, pairs=len(rows), prompts_without_pair=not rows)
    write_parquet(run.folder / "pairs.jsonl", run.folder / "pairs.parquet")
    write_json(run.folder / "manifest.json", _manifest(run, outcome, sessions))
    return outcome


def aggregate_prompt(run: Run, prompt: Prompt, outcome: Outcome) -> PromptRanking:
    """One prompt's samples, compared and ranked by the answers on disk; everything is counted into `outcome`."""
    samples = run.samples_of(prompt)
    _count_samples(run, prompt, samples, outcome)
    pairings = run.matchups_of(prompt, samples)
    if run.settings.compare.method in ("score", "rank"):
        comparisons = graded_comparisons(run, prompt, pairings)
    else:
        comparisons = _judged_comparisons(run, prompt, pairings, outcome)
    _count_other_stages(run, prompt, pairings, outcome)
    for row in comparisons:
        outcome.counts[f"comparisons_{row.status.value}"] += 1
        outcome.counts["comparisons_flipped"] += row.flip
        outcome.counts["comparisons_hard"] += row.hard
        for principle in row.principles:
            outcome.principles[principle].update(labels=row.status is Status.LABELLED, flips=principle in row.flips)
    return rank_samples(prompt, samples, comparisons)


def _judged_comparisons(run: Run, prompt: Prompt, pairings: list[Matchup], outcome: Outcome) -> list[Comparison]:
    def counted(key: str) -> Judgement | None:
        judgement = run.judgements.get(key)
        if judgement is None:
            outcome.failures[f"compare: {run.failure_reason(key)}"] += 1
            return None
        unparsed, low = judgement.verdict is Verdict.UNPARSED, _is_low(judgement.label_mass, run)
        if unparsed or low:
            outcome.note_unlabelled(judgement.text)
        outcome.counts.update(
            judgements=1,
            judgements_unparsed=unparsed,
            judgements_truncated=judgement.truncated,
            judgements_low_mass=low,
        )
        outcome.counts.update(tokens_of("judge", [judgement]))
        return judgement

    by_judge = []
    for name, judge in run.judges:
        questions = run.compare_questions_of(prompt, pairings, name)
        cast = votes(pairings, questions, counted, run.settings.compared_by(judge), slot=run.slots.get(name, 0.0))
        by_judge.append([JudgeVotes(judge.weight, ballot) for _, ballot in cast])
    comparisons = []
    for matchup, *ballots in zip(pairings, *by_judge, strict=True):
        verdict = aggregate_panel(matchup.left.id, matchup.right.id, ballots, run.settings.pair)
        comparisons.append(verdict.panel)
        if outcome.panel is not None:
            outcome.panel.add(verdict.panel, verdict.by_judge)
    return comparisons


def _count_samples(run: Run, prompt: Prompt, samples: Sequence[Sample], outcome: Outcome) -> None:
    distinct, blank = len(distinct_samples(samples)), sum(not sample.text.strip() for sample in samples)
    outcome.counts.update(
        samples=len(samples),
        samples_blank=blank,
        samples_repeated=len(samples) - blank - distinct,
        samples_truncated=sum(sample.finish_reason == "length" for sample in samples),
    )
    outcome.counts.update(tokens_of("policy", samples))
    for question in run.sample_questions_of(prompt):
        if question.id not in run.samples:
            outcome.failures[f"sample: {run.failure_reason(question.id)}"] += 1


def _count_other_stages(run: Run, prompt: Prompt, pairings: list[Matchup], outcome: Outcome) -> None:
    """Count the judge's answers that are no comparisons: grades, rankings and critiques."""
    critiques = run.critique_questions_of(prompt, pairings) if run.settings.writes_critiques else []
    for stage, questions, table in (
        ("score", score_questions_of(run, prompt), run.scores),
        ("rank", rank_questions_of(run, prompt), run.orders),
        ("critique", critiques, run.critiques),
    ):
        for question in questions:
            row = table.get(question.id)
            if row is None:
                outcome.failures[f"{stage}: {run.failure_reason(question.id)}"] += 1
                continue
            if isinstance(row, Critique):
                unparsed = not row.text.strip()
            else:
                unparsed = (row.value if isinstance(row, Score) else row.ranking) is None
            low = isinstance(row, Score) and _is_low(row.label_mass, run)
            outcome.counts.update({f"{stage}s": 1, f"{stage}s_unparsed": unparsed, f"{stage}s_low_mass": low})
            if low or (unparsed and not isinstance(row, Critique)):
                outcome.note_unlabelled(row.text)
            outcome.counts.update(tokens_of("judge", [row]))


def _is_low(mass: float | None, run: Run) -> bool:
    return mass is not None and mass < run.settings.pair.min_label_mass


def tokens_of(model: str, records: Iterable[Record]) -> Counter[str]:
    """The tokens that `model` (`policy` or `judge`) read, took from its cache and wrote, over its records."""
    spent: Counter[str] = Counter()
    for record in records:
        for kind in ("prompt", "cached", "completion"):
            spent[f"{model}_{kind}_tokens"] += getattr(record, f"{kind}_tokens", 0)
    return spent


def score_questions(run: Run) -> Iterator[Question]:
    """Every grade that `compare.method` wants, as far as there are samples."""
    for prompt in run.prompts():
        yield from score_questions_of(run, prompt)


def score_questions_of(run: Run, prompt: Prompt) -> list[Question]:
    """The grades of one prompt's samples, each once."""
    samples = run.samples_of(prompt)
    if run.settings.compare.method == "tournament":
        return run.final_questions(prompt, samples)
    if run.settings.compare.method == "score":
        pairings = matchups(samples, run.criteria, run.settings.compare)
        sides = [(side, criterion) for row in pairings for side in (row.left, row.right) for criterion in row.criteria]
        wanted = {(sample.id, criterion.id): (sample, criterion) for sample, criterion in sides}
        return [run.score_question(prompt, sample, criterion) for sample, criterion in wanted.values()]
    return []


def rank_questions(run: Run) -> Iterator[Question]:
    """Every ranking that the run wants."""
    for prompt in run.prompts():
        yield from rank_questions_of(run, prompt)


def rank_questions_of(run: Run, prompt: Prompt) -> list[Question]:
    """The rankings of one prompt's samples."""
    if run.settings.compare.method != "rank":
        return []
    return [question for _, _, questions in _rankings(run, prompt) for question in questions]


def graded_comparisons(run: Run, prompt: Prompt, pairings: Sequence[Matchup]) -> list[Comparison]:
    """The comparisons that the grades, or the rankings, of one prompt give its pairs."""
    margin = run.settings.pair.margin
    if run.settings.compare.method == "rank":
        ranked = _ranked_verdicts(run, prompt)
        return [aggregate_scores(*pair, verdicts, margin=margin) for pair, verdicts in ranked.items()]
    return [
        aggregate_scores(
            row.left.id, row.right.id, [_graded(run, prompt, row, one) for one in row.criteria], margin=margin
        )
        for row in pairings
    ]


def _graded(run: Run, prompt: Prompt, matchup: Matchup, criterion: Criterion) -> CriterionVerdict:
    left, right = (run.scores.get(run.score_question(prompt, side, criterion).id) for side in matchup[:2])
    scores = [score for score in (left, right) if score is not None]
    logit, mass = None, run.settings.pair.min_label_mass
    if left and right and readable(left, min_mass=mass) and readable(right, min_mass=mass):
        logit = grade_logit(left, right)
    ids, hard = tuple(score.id for score in scores), any(score.logprobs is None for score in scores)
    return CriterionVerdict(criterion.id, criterion.weight, logit, len(scores) == 2, ids, hard)


def _ranked_verdicts(run: Run, prompt: Prompt) -> dict[tuple[str, str], list[CriterionVerdict]]:
    """For every pair of samples, the verdicts of the rankings under each criterion."""
    verdicts: dict[tuple[str, str], list[CriterionVerdict]] = {}
    for criterion, samples, questions in _rankings(run, prompt):
        looked_up: list[Order | None] = [run.orders.get(question.id) for question in questions]
        orders = [order for order in looked_up if order is not None]
        shares = win_shares(orders)
        ids = tuple(order.id for order in orders)
        for left, right in itertools.combinations([sample.id for sample in samples], 2):
            share = shares.get((left, right))
            logit = None if share is None else max(-HARD_LOGIT, min(HARD_LOGIT, math.log(share / (1 - share))))
            complete = len(orders) == len(questions)
            verdict = CriterionVerdict(criterion.id, criterion.weight, logit, complete, ids, hard=True)
            verdicts.setdefault((left, right), []).append(verdict)
    return verdicts


def _rankings(run: Run, prompt: Prompt) -> Iterator[tuple[Criterion, list[Sample], list[Question]]]:
    """The criteria that the samples of a prompt are ranked under, these samples (the first ten), and the questions."""
    samples, compare = distinct_samples(run.samples_of(prompt))[:MAX_RANKED], run.settings.compare
    if len(samples) < 2:
        return
    for criterion in (draw(run.criteria, ("rank", prompt.id)),) if compare.principles == "one" else run.criteria:
        questions = order_questions(
            prompt, samples, criterion, run.judge, shuffles=compare.shuffles, max_chars=compare.max_chars
        )
        yield criterion, samples, questions


def _panel(run: Run, agreement: Agreement) -> JsonValue:
    accuracies = agreement.accuracies or [None for _ in agreement.judges]
    judges: list[JsonValue] = [
        {
            "judge": part.judge,
            "weight": judge.weight,
            "temperature": judge.temperature,
            "agrees": part.agrees,
            "opposes": part.opposes,
            "abstains": part.abstains,
            "flips": part.flips,
            "dawid_skene_accuracy": accuracy,
        }
        for judge, part, accuracy in zip(run.settings.judges, agreement.judges, accuracies, strict=True)
    ]
    two = len(judges) == 2
    return {
        "judges": judges,
        "comparisons": agreement.comparisons,
        "cohen_kappa" if two else "krippendorff_alpha": agreement.kappa if two else agreement.alpha,
        "correlation": agreement.correlation,
        "effective_judges_at_least": agreement.effective_at_least,
    }


def _asking(run: Run) -> JsonValue:
    """By judge, the form that its comparisons are asked in, and the label mass that it leaves."""
    forms, by_judge = Forms(run.folder), dict[str, JsonValue]()
    for name, settings in run.judges:
        judge = run.judge_named(name)
        chosen = forms.of(name, run.settings.compare, judge.templates)
        row: dict[str, JsonValue] = {
            "prefill": judge.form.prefill or None,
            "fence": judge.form.fence,
            "label_mass": None if chosen is None else chosen.label_mass,
        }
        by_judge[name] = row | ({"templates": dict(judge.templates.hashes)} if settings.templates else {})
    return by_judge


def _manifest(run: Run, outcome: Outcome, sessions: JsonValue) -> JsonValue:
    source, templates = Path(run.settings.prompts.path), run.judge.templates
    shipped = resource("prompts") / "judge"
    return {
        "made_by": f"rlaif {__version__}",
        "schema": 1,
        "constitution": {"name": run.constitution.name, "hash": run.constitution.hash},
        "judge": " + ".join(name for name, _ in run.judges),
        "policy": run.policy_name,
        "templates": {
            name: templates.hashes.get(name) or sha256_of(shipped / f"{name}.txt") for name in template_names()
        },
        "asking": _asking(run),
        "prompts": {
            "path": run.settings.prompts.path,
            "sha256": sha256_of(source) if source.is_file() else None,
            "input_issues": {kind: count for kind, count in run.input_issues.counts.items()},
        },
        "settings": run.settings.plain(),
        "counts": dict(sorted((name, int(count)) for name, count in outcome.counts.items())),
        "failures": dict(outcome.failures),
        "principles": {
            name: {kind: int(count) for kind, count in counts.items()} for name, counts in outcome.principles.items()
        },
        **({} if outcome.panel is None else {"panel": _panel(run, outcome.panel.result())}),
        **({"position_bias": bias_summary(outcome.slots)} if outcome.slots else {}),
        **({"warnings": list(run.warnings)} if run.warnings else {}),
        "healed_lines": sum(table.healed for table in run.tables),
        "session": sessions,
        "files": {name: sha256_of(run.folder / name) for name in _FILES},
    }


def why_no_pairs(run: Run, outcome: Outcome) -> str | None:
    """Why there is no pair, and what to do about it; None where there is one."""
    count = outcome.counts
    if count["pairs"]:
        return None
    if not count["samples"]:
        return "no pairs: there are no responses; `rlaif generate` draws them, and failures.jsonl tells what failed"
    statuses = Counter({status: count[f"comparisons_{status}"] for status in _STATUSES})
    if not statuses.total():
        responses = f"{count['samples']:,} responses to {count['prompts']:,} prompts"
        unusable = [
            f"{count[f'samples_{kind}']:,} {kind}" for kind in ("blank", "repeated") if count[f"samples_{kind}"]
        ]
        responses = f"{responses} ({', '.join(unusable)})" if unusable else responses
        problem = f"no pairs: no prompt has two different responses to compare, of {responses}"
        return f"{problem}; raise `policy.samples` or its `temperature`"
    if statuses["labelled"]:
        problem = f"no pairs: of {_summary(statuses)}, none is selected by `pair.select: {run.settings.pair.select}`"
        return f"{problem}; select another way"
    return f"no pairs: {_summary(statuses)}: {_reason(run, statuses, count, outcome.failures, outcome.unlabelled)}"


def why_no_labels(run: Run, revised: Revised) -> str | None:
    """The same of the comparisons of revisions with their originals; None where there are none, or one has a label."""
    count = revised.counts
    statuses = Counter({status: count[f"judged_{status}"] for status in _STATUSES[1:]})
    if count["confirmed"] or count["refuted"] or not statuses.total():
        return None
    reason = _reason(run, statuses, count, revised.failures, Counter())
    return f"the judge labels no revision: {_summary(statuses)}: {reason}"


def _summary(statuses: Counter[str]) -> str:
    names = {"flip": "whose orders disagree", "tie": "tied", "unparsed": "without a label"}
    parts = [f"{number:,} {names.get(status, status)}" for status, number in statuses.most_common() if number]
    return f"{statuses.total():,} comparisons, {', '.join(parts)}"


def _reason(
    run: Run, statuses: Counter[str], count: Counter[str], failures: Counter[str], unlabelled: Counter[str]
) -> str:
    (status, _), *_ = statuses.most_common()
    if status == "failed":
        reasons = ", ".join(f"{kind} {number:,}" for kind, number in failures.most_common(3))
        return f"questions without an answer ({reasons}); see failures.jsonl, and run the same command again"
    if status == "flip":
        return "the two orders of a pair disagree; take another judge, or keep such pairs with `pair.flips: soft`"
    if status == "tie":
        margin = run.settings.pair.margin
        return f"the judge sees no difference beyond `pair.margin` ({margin:g}); lower it, or take another judge"
    return _unreadable(run, count, unlabelled)


def _unreadable(run: Run, count: Counter[str], unlabelled: Counter[str]) -> str:
    method, min_mass = run.settings.compare.method, run.settings.pair.min_label_mass
    hint = _HINTS.get(method, _PAIRWISE_HINT)
    stage = {"score": "scores", "rank": "ranks"}.get(method, "judgements")
    total, low, unparsed = count[stage], count[f"{stage}_low_mass"], count[f"{stage}_unparsed"]
    often = f"; most often it says {unlabelled.most_common(1)[0][0]!r}" if unlabelled else ""
    if low and low >= unparsed:
        labels = "digits" if method == "score" else "labels"
        return f"{low:,} of {total:,} answers put less than {min_mass:g} probability on the {labels}{often}; {hint}"
    if count["judgements_truncated"] > unparsed / 2:
        return f"{unparsed:,} of {total:,} answers were cut off before a verdict; raise `compare.reasoning_tokens`"
    problem = (
        f"{unparsed:,} of {total:,} answers have no verdict that can be read" if total else "no answer has a label"
    )
    return f"{problem}{often}; {hint}"
