"""The pair stage: what all the answers on disk come to. No model is asked, so new thresholds cost seconds.

Written whole or not at all: `rankings.jsonl`, `pairs.jsonl`, `pairs.parquet`, and `manifest.json` last, so that its
presence means "finished".
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue

from rlaif import __version__
from rlaif.asking import Templates, template_names
from rlaif.comparisons.agreement import Agreement, Counting
from rlaif.comparisons.fold import Comparison, Status
from rlaif.comparisons.forms import Forms
from rlaif.comparisons.panel import Ballot, elect
from rlaif.comparisons.plan import votes
from rlaif.comparisons.slots import SlotBias
from rlaif.grading import comparisons as graded_comparisons
from rlaif.grading import rank_questions_of, score_questions_of
from rlaif.preferences.export import write_parquet
from rlaif.preferences.pairs import Provenance, Standing, pairs, ranking, stand
from rlaif.records import Critique, Judgement, Order, Prompt, Record, Sample, Score, Verdict
from rlaif.resources import resource
from rlaif.run import Run
from rlaif.samples.meetings import Meeting, distinct_samples
from rlaif.slots import find_slots, told_slots
from rlaif.store import record_writer, sha256_of, write_json

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
    slots: dict[str, SlotBias] = field(default_factory=dict)
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
    run.unfinish()
    names = [name for name, _ in run.judges]
    outcome = Outcome(panel=Counting(names) if len(names) > 1 else None, slots=find_slots(run))
    provenance = Provenance(" + ".join(names), f"{run.constitution.name}@{run.constitution.hash[:12]}")
    with (
        record_writer(run.folder / "rankings.jsonl") as write_ranking,
        record_writer(run.folder / "pairs.jsonl") as write_pair,
    ):
        for prompt in run.prompts():
            standing = settle(run, prompt, outcome)
            write_ranking(ranking(standing))
            made = pairs(standing, run.settings.pair, run.settings.compare, provenance)
            for pair in made:
                write_pair(pair)
            outcome.counts.update(prompts=1, pairs=len(made), prompts_without_pair=not made)
    write_parquet(run.folder / "pairs.jsonl", run.folder / "pairs.parquet")
    write_json(run.folder / "manifest.json", _manifest(run, outcome, sessions))
    return outcome


def settle(run: Run, prompt: Prompt, outcome: Outcome) -> Standing:
    """One prompt's samples, compared and ranked by the answers on disk; everything is counted into `outcome`."""
    samples = run.samples_of(prompt)
    _count_samples(run, prompt, samples, outcome)
    met = run.meetings_of(prompt, samples)
    graded = run.settings.compare.method in ("score", "rank")
    comparisons = graded_comparisons(run, prompt, met) if graded else _comparisons(run, prompt, met, outcome)
    _count_others(run, prompt, met, outcome)
    for each in comparisons:
        outcome.counts[f"comparisons_{each.status.value}"] += 1
        outcome.counts["comparisons_flipped"] += each.flip
        outcome.counts["comparisons_hard"] += each.hard
        for principle in each.principles:
            outcome.principles[principle].update(labels=each.status is Status.LABELLED, flips=principle in each.flips)
    return stand(prompt, samples, comparisons)


def _comparisons(run: Run, prompt: Prompt, met: Sequence[Meeting], outcome: Outcome) -> list[Comparison]:
    def answer_of(key: str) -> Judgement | None:
        judgement = run.judgements.get(key)
        _count_judgement(run, key, judgement, outcome)
        return judgement

    settings, found = run.settings, []
    cast = []
    for name, judge in run.judges:
        questions = run.compare_questions_of(prompt, list(met), name)
        own = votes(met, questions, answer_of, settings.compared_by(judge), slot=run.slots.get(name, 0.0))
        cast.append([Ballot(judge.weight, said) for _, said in own])
    for meeting, *ballots in zip(met, *cast, strict=True):
        election = elect(meeting.left.id, meeting.right.id, ballots, settings.pair)
        found.append(election.panel)
        if outcome.panel is not None:
            outcome.panel.add(election.panel, election.owns)
    return found


def _count_others(run: Run, prompt: Prompt, met: list[Meeting], outcome: Outcome) -> None:
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
            "oddities": {kind: count for kind, count in run.oddities.counts.items()},
        },
        "settings": run.settings.plain(),
        "counts": dict(sorted((name, int(count)) for name, count in outcome.counts.items())),
        "failures": dict(outcome.failures),
        "principles": {
            name: {kind: int(count) for kind, count in counts.items()} for name, counts in outcome.principles.items()
        },
        **({} if outcome.panel is None else {"panel": _panel(run, outcome.panel.result())}),
        **({"slot_bias": told_slots(outcome.slots)} if outcome.slots else {}),
        **({"warnings": list(run.warnings)} if run.warnings else {}),
        "healed_lines": sum(table.healed for table in run.tables),
        "session": sessions,
        "files": {name: sha256_of(run.folder / name) for name in _FILES},
    }
