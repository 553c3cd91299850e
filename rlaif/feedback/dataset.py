"""The pair stage: what all the answers on disk come to. No model is asked, so new thresholds cost seconds.

Why a run came to no pair, or its judge to no label: one line with the counts, the reason, and what to change.

The other ways of judging over a run: by grades, by rankings of all samples at once, and the tournament.

- `score`: every sample is graded alone, and a pair is decided by the two distributions over the grades. Calls grow
  with the samples, not with their pairs.
- `rank`: all samples of a prompt stand in one question, in several orders.
- `tournament`: every sample is graded once under the whole constitution, and only the two best and the two worst meet,
  in the usual ordered comparisons: for eight samples 8 + 12 calls where the round robin has 56.

All answers are in tables of their own (`scores.jsonl`, `orders.jsonl`), found again by the hash of their question.

The pair stage: what all the answers on disk come to. No model is asked, so new thresholds cost seconds.

Written whole or not at all: `rankings.jsonl`, `pairs.jsonl`, `pairs.parquet`, and `manifest.json` last, so that its
presence means "finished".
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
from rlaif.config.judge_templates import Templates, template_names
from rlaif.config.shipped import resource
from rlaif.feedback.aggregate import HARD_LOGIT, Comparison, JudgeVotes, Status, aggregate_panel
from rlaif.feedback.agreement import Agreement, Counting
from rlaif.feedback.judge import votes
from rlaif.feedback.matchups import Criterion, Matchup, distinct_samples, draw, matchups
from rlaif.feedback.position_bias import PositionBias, bias_summary, find_slots
from rlaif.feedback.prompt_forms import Forms
from rlaif.feedback.ranking import PromptRanking, Provenance, pairs, rank_samples, ranking, write_parquet
from rlaif.feedback.revise import Revised
from rlaif.feedback.run import Run
from rlaif.feedback.scoring import MOST, Said, aggregate_scores, grade_logit, order_questions, readable, win_shares
from rlaif.inference.base import Question
from rlaif.records import Critique, Judgement, Order, Prompt, Record, Sample, Score, Verdict
from rlaif.store import record_writer, sha256_of, write_json

_OTHERWISE = {
    "score": "begin its answer in a `score.txt` of your own (`judge.templates`), judge by pairs (`compare.method: "
    "pairwise`), or take another judge",
    "rank": "ask in other words in a `rank.txt` of your own (`judge.templates`), judge by pairs (`compare.method: "
    "pairwise`), or take another judge",
}
_PAIRWISE = (
    "begin its answer (`compare.prefill`), write templates of your own (`judge.templates`), let it give its reasons "
    "(`compare.reasoning: reply`), or take another judge; `rlaif check` measures each form of asking"
)
_STATUSES = ("labelled", "tie", "flip", "unparsed", "failed")


def why_no_pairs(run: Run, outcome: Outcome) -> str | None:
    """Why there is no pair, and what to do about it; None where there is one."""
    count = outcome.counts
    if count["pairs"]:
        return None
    statuses = Counter({status: count[f"comparisons_{status}"] for status in _STATUSES})
    if not statuses.total():
        return f"no pairs: {_nothing_compared(count)}"
    if statuses["labelled"]:
        what = f"no pairs: of {_summed_up(statuses)}, none is selected by `pair.select: {run.settings.pair.select}`"
        return f"{what}; select another way"
    return f"no pairs: {_summed_up(statuses)}: {_reason(run, statuses, count, outcome.failures, outcome.said)}"


def why_no_labels(run: Run, made: Revised) -> str | None:
    """The same of the comparisons of revisions with their originals; None where there are none, or one has a label."""
    count = made.counts
    statuses = Counter({status: count[f"judged_{status}"] for status in _STATUSES[1:]})
    if count["confirmed"] or count["refuted"] or not statuses.total():
        return None
    reason = _reason(run, statuses, count, made.failures, Counter())
    return f"the judge labels no revision: {_summed_up(statuses)}: {reason}"


def _nothing_compared(count: Counter[str]) -> str:
    if not count["samples"]:
        return "there are no responses; `rlaif generate` draws them, and failures.jsonl tells what failed"
    found = f"{count['samples']:,} responses to {count['prompts']:,} prompts"
    odd = [f"{count[f'samples_{kind}']:,} {kind}" for kind in ("blank", "repeated") if count[f"samples_{kind}"]]
    found = f"{found} ({', '.join(odd)})" if odd else found
    return f"no prompt has two different responses to compare, of {found}; raise `policy.samples` or its `temperature`"


def _summed_up(statuses: Counter[str]) -> str:
    names = {"flip": "whose orders disagree", "tie": "tied", "unparsed": "without a label"}
    parts = [f"{number:,} {names.get(status, status)}" for status, number in statuses.most_common() if number]
    return f"{statuses.total():,} comparisons, {', '.join(parts)}"


def _reason(run: Run, statuses: Counter[str], count: Counter[str], failures: Counter[str], said: Counter[str]) -> str:
    (status, _), *_ = statuses.most_common()
    if status == "failed":
        reasons = ", ".join(f"{kind} {number:,}" for kind, number in failures.most_common(3))
        return f"questions without an answer ({reasons}); see failures.jsonl, and run the same command again"
    if status == "flip":
        return "the two orders of a pair disagree; take another judge, or keep such pairs with `pair.flips: soft`"
    if status == "tie":
        margin = run.settings.pair.margin
        return f"the judge sees no difference beyond `pair.margin` ({margin:g}); lower it, or take another judge"
    return _unreadable(run, count, said)


def _unreadable(run: Run, count: Counter[str], said: Counter[str]) -> str:
    method, least = run.settings.compare.method, run.settings.pair.min_label_mass
    otherwise = _OTHERWISE.get(method, _PAIRWISE)
    stage = {"score": "scores", "rank": "ranks"}.get(method, "judgements")
    answers, low, silent = count[stage], count[f"{stage}_low_mass"], count[f"{stage}_unparsed"]
    often = f"; most often it says {said.most_common(1)[0][0]!r}" if said else ""
    if low and low >= silent:
        named = "digits" if method == "score" else "labels"
        return f"{low:,} of {answers:,} answers put less than {least:g} probability on the {named}{often}; {otherwise}"
    if count["judgements_truncated"] > silent / 2:
        return f"{silent:,} of {answers:,} answers were cut off before a verdict; raise `compare.reasoning_tokens`"
    what = f"{silent:,} of {answers:,} answers have no verdict that can be read" if answers else "no answer has a label"
    return f"{what}{often}; {otherwise}"


def score_questions(run: Run) -> Iterator[Question]:
    """Every grade that the run's way of judging wants, as far as there are samples."""
    for prompt in run.prompts():
        yield from score_questions_of(run, prompt)


def score_questions_of(run: Run, prompt: Prompt) -> list[Question]:
    """The grades of one prompt's samples, each once."""
    samples = run.samples_of(prompt)
    if run.settings.compare.method == "tournament":
        return run.final_questions(prompt, samples)
    if run.settings.compare.method == "score":
        met = matchups(samples, run.criteria, run.settings.compare)
        sides = [(side, criterion) for each in met for side in (each.left, each.right) for criterion in each.criteria]
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
    found = [_rank_questions(run, prompt, criterion, samples) for criterion, samples in _rankings(run, prompt)]
    return [question for questions in found for question in questions]


def graded_comparisons(run: Run, prompt: Prompt, met: Sequence[Matchup]) -> list[Comparison]:
    """What the grades, or the rankings, of one prompt say about its pairs."""
    margin = run.settings.pair.margin
    if run.settings.compare.method == "rank":
        return [aggregate_scores(*pair, said, margin=margin) for pair, said in _ranked_pairs(run, prompt)]
    return [
        aggregate_scores(
            each.left.id, each.right.id, [_graded(run, prompt, each, one) for one in each.criteria], margin=margin
        )
        for each in met
    ]


def _graded(run: Run, prompt: Prompt, met: Matchup, criterion: Criterion) -> Said:
    left, right = (run.scores.get(run.score_question(prompt, side, criterion).id) for side in (met.left, met.right))
    known = [score for score in (left, right) if score is not None]
    logit = None
    if _both(run, left, right):
        assert left is not None and right is not None
        logit = grade_logit(left, right)
    hard = any(score.logprobs is None for score in known)
    return Said(criterion.id, criterion.weight, logit, len(known) == 2, tuple(score.id for score in known), hard)


def _both(run: Run, left: Score | None, right: Score | None) -> bool:
    mass = run.settings.pair.min_label_mass
    return readable(left, min_mass=mass) and readable(right, min_mass=mass)


def _ranked_pairs(run: Run, prompt: Prompt) -> Iterator[tuple[tuple[str, str], list[Said]]]:
    """Every pair of samples with what the rankings under each criterion say."""
    said: dict[tuple[str, str], list[Said]] = {}
    for criterion, samples in _rankings(run, prompt):
        asked = _rank_questions(run, prompt, criterion, samples)
        found: list[Order | None] = [run.orders.get(question.id) for question in asked]
        orders = [order for order in found if order is not None]
        shares = win_shares(orders)
        ids = tuple(order.id for order in orders)
        for left, right in itertools.combinations([sample.id for sample in samples], 2):
            share = shares.get((left, right))
            logit = None if share is None else max(-HARD_LOGIT, min(HARD_LOGIT, math.log(share / (1 - share))))
            word = Said(criterion.id, criterion.weight, logit, len(orders) == len(asked), ids, hard=True)
            said.setdefault((left, right), []).append(word)
    yield from said.items()


def _rankings(run: Run, prompt: Prompt) -> Iterator[tuple[Criterion, list[Sample]]]:
    """Under which criteria the samples of a prompt are ranked, and which: the first ten."""
    samples = distinct_samples(run.samples_of(prompt))[:MOST]
    if len(samples) < 2:
        return
    one = run.settings.compare.principles == "one"
    for criterion in (draw(run.criteria, ("rank", prompt.id)),) if one else run.criteria:
        yield criterion, samples


def _rank_questions(run: Run, prompt: Prompt, criterion: Criterion, samples: Sequence[Sample]) -> list[Question]:
    compare = run.settings.compare
    return order_questions(
        prompt, samples, criterion, run.judge, shuffles=compare.shuffles, max_chars=compare.max_chars
    )


_FILES = ("prompts.jsonl", "rankings.jsonl", "pairs.jsonl")
"""Hashed in the manifest. The journals are not: they may grow, and answers to other questions disturb nothing."""


_SAID, _MOST_SAID = 30, 1000


@dataclass
class Outcome:
    """The counts of a run, over all the sessions that made it; only what belongs to its present plan counts."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    """Questions without an answer, as `stage: reason`."""
    principles: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """For every principle: `labels` that it counts in, and `flips` of its own two orders."""
    panel: Counting | None = None
    """How the judges of a panel agree."""
    slots: dict[str, PositionBias] = field(default_factory=dict)
    """Each judge's liking for a slot, where it was estimated to be removed."""
    said: Counter[str] = field(default_factory=Counter)
    """What the judge says where it has no label, its first characters."""

    def note_unlabelled(self, text: str) -> None:
        """Count what was said in place of a label; of many different things only the first are told apart."""
        key = text[:_SAID]
        if key in self.said or len(self.said) < _MOST_SAID:
            self.said[key] += 1


def derive(run: Run, sessions: JsonValue = None) -> Outcome:
    """Fold, rank and pair everything that is on disk; write the derived files and, last, the manifest.

    `sessions` goes into the manifest as it is: what the stages did this time.
    """
    run.invalidate_manifest()
    names = [name for name, _ in run.judges]
    outcome = Outcome(panel=Counting(names) if len(names) > 1 else None, slots=find_slots(run))
    provenance = Provenance(" + ".join(names), f"{run.constitution.name}@{run.constitution.hash[:12]}")
    with (
        record_writer(run.folder / "rankings.jsonl") as write_ranking,
        record_writer(run.folder / "pairs.jsonl") as write_pair,
    ):
        for prompt in run.prompts():
            standing = aggregate_prompt(run, prompt, outcome)
            write_ranking(ranking(standing))
            made = pairs(standing, run.settings.pair, run.settings.compare, provenance)
            for pair in made:
                write_pair(pair)
            outcome.counts.update(prompts=1, pairs=len(made), prompts_without_pair=not made)
    write_parquet(run.folder / "pairs.jsonl", run.folder / "pairs.parquet")
    write_json(run.folder / "manifest.json", _manifest(run, outcome, sessions))
    return outcome


def aggregate_prompt(run: Run, prompt: Prompt, outcome: Outcome) -> PromptRanking:
    """One prompt's samples, compared and ranked by the answers on disk; everything is counted into `outcome`."""
    samples = run.samples_of(prompt)
    _count_samples(run, prompt, samples, outcome)
    met = run.matchups_of(prompt, samples)
    graded = run.settings.compare.method in ("score", "rank")
    comparisons = graded_comparisons(run, prompt, met) if graded else _comparisons(run, prompt, met, outcome)
    _count_others(run, prompt, met, outcome)
    for each in comparisons:
        outcome.counts[f"comparisons_{each.status.value}"] += 1
        outcome.counts["comparisons_flipped"] += each.flip
        outcome.counts["comparisons_hard"] += each.hard
        for principle in each.principles:
            outcome.principles[principle].update(labels=each.status is Status.LABELLED, flips=principle in each.flips)
    return rank_samples(prompt, samples, comparisons)


def _comparisons(run: Run, prompt: Prompt, met: Sequence[Matchup], outcome: Outcome) -> list[Comparison]:
    def answer_of(key: str) -> Judgement | None:
        judgement = run.judgements.get(key)
        _count_judgement(run, key, judgement, outcome)
        return judgement

    settings, found = run.settings, []
    cast = []
    for name, judge in run.judges:
        questions = run.compare_questions_of(prompt, list(met), name)
        own = votes(met, questions, answer_of, settings.compared_by(judge), slot=run.slots.get(name, 0.0))
        cast.append([JudgeVotes(judge.weight, said) for _, said in own])
    for matchup, *ballots in zip(met, *cast, strict=True):
        election = aggregate_panel(matchup.left.id, matchup.right.id, ballots, settings.pair)
        found.append(election.panel)
        if outcome.panel is not None:
            outcome.panel.add(election.panel, election.owns)
    return found


def _count_others(run: Run, prompt: Prompt, met: list[Matchup], outcome: Outcome) -> None:
    """Count the judge's answers that are no comparisons."""
    for stage, asked, table in (
        ("score", score_questions_of(run, prompt), run.scores),
        ("rank", rank_questions_of(run, prompt), run.orders),
        ("critique", run.critique_questions_of(prompt, met) if run.settings.writes_critiques else [], run.critiques),
    ):
        for question in asked:
            answer = table.get(question.id)
            if answer is None:
                _count_failure(run, question.id, stage, outcome)
                continue
            low = isinstance(answer, Score) and _is_low(answer.label_mass, run)
            outcome.counts.update({f"{stage}s": 1, f"{stage}s_unparsed": _unread(answer), f"{stage}s_low_mass": low})
            if low or (_unread(answer) and not isinstance(answer, Critique)):
                outcome.note_unlabelled(answer.text)
            outcome.counts.update(tokens_of("judge", [answer]))


def _unread(answer: Score | Order | Critique) -> bool:
    if isinstance(answer, Critique):
        return not answer.text.strip()
    return (answer.value if isinstance(answer, Score) else answer.ranking) is None


def tokens_of(model: str, answers: Iterable[Record]) -> Counter[str]:
    """What `model` (`policy` or `judge`) read, took from its cache and wrote, over the records of its answers."""
    spent: Counter[str] = Counter()
    for answer in answers:
        for kind in ("prompt", "cached", "completion"):
            spent[f"{model}_{kind}_tokens"] += getattr(answer, f"{kind}_tokens", 0)
    return spent


def _count_samples(run: Run, prompt: Prompt, samples: Sequence[Sample], outcome: Outcome) -> None:
    distinct, blank = len(distinct_samples(samples)), sum(not sample.text.strip() for sample in samples)
    outcome.counts.update(
        samples=len(samples),
        samples_blank=blank,
        samples_repeated=len(samples) - blank - distinct,
        samples_truncated=sum(sample.finish_reason == "length" for sample in samples),
    )
    outcome.counts.update(tokens_of("policy", samples))
    for question in run.drawn_questions(prompt):
        if question.id not in run.samples:
            _count_failure(run, question.id, "sample", outcome)


def _count_judgement(run: Run, key: str, judgement: Judgement | None, outcome: Outcome) -> None:
    if judgement is None:
        _count_failure(run, key, "compare", outcome)
        return
    silent, low = judgement.verdict is Verdict.UNPARSED, _is_low(judgement.label_mass, run)
    if silent or low:
        outcome.note_unlabelled(judgement.text)
    outcome.counts.update(
        judgements=1,
        judgements_unparsed=silent,
        judgements_truncated=judgement.truncated,
        judgements_low_mass=low,
    )
    outcome.counts.update(tokens_of("judge", [judgement]))


def _is_low(mass: float | None, run: Run) -> bool:
    return mass is not None and mass < run.settings.pair.min_label_mass


def _count_failure(run: Run, key: str, stage: str, outcome: Outcome) -> None:
    failure = run.failures.get(key)
    outcome.failures[f"{stage}: {failure.reason if failure else 'not asked yet'}"] += 1


def _panel(run: Run, found: Agreement) -> JsonValue:
    right = found.accuracies or [None for _ in found.judges]
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
        for judge, part, accuracy in zip(run.settings.judges, found.judges, right, strict=True)
    ]
    two = len(judges) == 2
    return {
        "judges": judges,
        "comparisons": found.comparisons,
        "cohen_kappa" if two else "krippendorff_alpha": found.kappa if two else found.alpha,
        "correlation": found.correlation,
        "effective_judges_at_least": found.effective_at_least,
    }


def _template_hashes(used: Templates) -> dict[str, JsonValue]:
    """SHA-256 of every judge template, of one's own where there is one."""
    folder = resource("prompts") / "judge"
    return {name: used.hashes.get(name) or sha256_of(folder / f"{name}.txt") for name in template_names()}


def _asking(run: Run) -> JsonValue:
    """By judge, the form that its comparisons are asked in, and what that leaves to the labels."""
    forms, found = Forms(run.folder), dict[str, JsonValue]()
    for name, judge in run.judges:
        asked = run.asked(name)
        chosen = forms.of(name, run.settings.compare, asked.templates)
        mass = None if chosen is None else chosen.label_mass
        own: dict[str, JsonValue] = {"templates": dict(asked.templates.hashes)} if judge.templates else {}
        found[name] = {"prefill": asked.form.prefill or None, "fence": asked.form.fence, "label_mass": mass, **own}
    return found


def _manifest(run: Run, outcome: Outcome, sessions: JsonValue) -> JsonValue:
    source = Path(run.settings.prompts.path)
    return {
        "made_by": f"rlaif {__version__}",
        "schema": 1,
        "constitution": {"name": run.constitution.name, "hash": run.constitution.hash},
        "judge": " + ".join(name for name, _ in run.judges),
        "policy": run.policy_name,
        "templates": _template_hashes(run.judge.templates),
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
