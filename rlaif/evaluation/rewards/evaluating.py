"""The evaluation of a reward model: on gold pairs, and by best-of-n; plan, ask what is missing, append, then write.

In the folder: `rewards.jsonl`, `samples.jsonl`, `scores.jsonl` and `failures.jsonl`, what all evaluations there scored
and asked; and for every evaluation a report (`NAME.json`, written last), the rewards of each gold pair
(`NAME.pairs.jsonl`) and plots. Everything is found by content id: a second call scores and asks nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from rlaif import __version__
from rlaif.errors import ModelError
from rlaif.evaluation.gold import GoldPair, read_gold
from rlaif.evaluation.judging import Watch
from rlaif.evaluation.naming import data_word, report_name, sha256_known
from rlaif.evaluation.rewards.answers import Answers, Drawn, Given, Pool, draw, drawn_pool, given_pool
from rlaif.evaluation.rewards.curve import Rated, curve_of
from rlaif.evaluation.rewards.doubts import doubts
from rlaif.evaluation.rewards.meters import Grading, Meter, Own
from rlaif.evaluation.rewards.pairs import ScoredPair, gold_of, replies_of, scored_pair
from rlaif.evaluation.rewards.provenance import TrainedOn, overlap, trained_on
from rlaif.evaluation.rewards.report import BestOfN, Gold, RewardReport
from rlaif.evaluation.rewards.scorer import Reply, RewardModel
from rlaif.evaluation.rewards.table import Reward, keep_rewards
from rlaif.inference.ask import Tally
from rlaif.records import Failure, Sample, Score
from rlaif.samples.inputs import Oddities
from rlaif.store import Table, lock_folder, write_records, write_text

FOLDER = Path("runs/rewards")
"""Where evaluations are kept."""


@dataclass(frozen=True)
class OnGold:
    """Gold pairs to score."""

    path: str
    """File or `datasets` name."""
    column: str | None = None
    """Of the prompts, where it is not recognised."""
    limit: int | None = None
    """Only the first pairs."""


@dataclass(frozen=True)
class OnAnswers:
    """Best-of-n over answers, against another measure."""

    answers: Drawn | Given
    other: Grading | Own
    max_failed: float = 0.5
    """Stop drawing when more than this share of the questions failed."""


class EvaluatedReward(NamedTuple):
    """A finished evaluation."""

    report: RewardReport
    path: Path
    """Of the report."""
    tallies: tuple[Tally, ...]
    """What was scored and asked now."""


@dataclass
class _Open:
    """The tables, the model, who is told, and what was done."""

    model: RewardModel
    watch: Watch
    rewards: Table[Reward]
    samples: Table[Sample]
    scores: Table[Score]
    failures: Table[Failure]
    tallies: list[Tally] = field(default_factory=list)

    def reward_of(self, reply: Reply) -> Reward | None:
        return self.rewards.get(self.model.key(reply))

    async def score(self, replies: Sequence[Reply], stage: str) -> None:
        self.tallies.append(await keep_rewards(replies, self.model, self.rewards, stage=stage, watch=self.watch))


async def evaluate_reward(
    model: RewardModel,
    folder: Path,
    *,
    gold: OnGold | None = None,
    answers: OnAnswers | None = None,
    watch: Watch,
    plots: bool = True,
) -> EvaluatedReward:
    """Measure a reward model on gold pairs, by best-of-n, or both, and write what was found into `folder`.

    Raises UserError for the user's mistakes and ModelError when a model cannot go on; a second call resumes.
    """
    if gold is None and answers is None:
        raise ValueError("there is nothing to evaluate on: give gold pairs, or answers")
    path = folder / f"{name_of(model, gold, answers)}.json"
    oddities = Oddities()
    pairs = _read_gold(gold, oddities, watch)
    given = given_pool(answers.answers) if answers is not None and isinstance(answers.answers, Given) else None
    with _opened(folder, model, watch) as opened:
        known = trained_on(model.folder, keys=gold is not None)
        scored = await _scored(pairs, opened)
        on_gold = _on_gold(gold, pairs, scored, oddities, known) if gold is not None else None
        best = await _best_of(answers, given, opened) if answers is not None else None
        model.close()
        report = RewardReport(
            made_by=f"rlaif {__version__}",
            model=model.name,
            folder=model.folder,
            template=model.template,
            warnings=doubts(on_gold, best, raw=known is not None and known.raw and model.template == "chat"),
            gold=on_gold,
            best_of_n=best,
        )
        _write(report, scored, path, watch, plots)
    return EvaluatedReward(report, path, tuple(opened.tallies))


@contextlib.contextmanager
def _opened(folder: Path, model: RewardModel, watch: Watch) -> Iterator[_Open]:
    with (
        lock_folder(folder),
        contextlib.closing(Table(folder / "rewards.jsonl", Reward)) as rewards,
        contextlib.closing(Table(folder / "samples.jsonl", Sample, create=False)) as samples,
        contextlib.closing(Table(folder / "scores.jsonl", Score, create=False)) as scores,
        contextlib.closing(Table(folder / "failures.jsonl", Failure, create=False)) as failures,
    ):
        yield _Open(model, watch, rewards, samples, scores, failures)


def _read_gold(gold: OnGold | None, oddities: Oddities, watch: Watch) -> list[GoldPair]:
    """The pairs, but for ties, which no reward gets right; mistakes in the file are told before anything is scored."""
    if gold is None:
        return []
    watch.note(f"reading {gold.path}")
    found = []
    for pair in read_gold(gold.path, column=gold.column, limit=gold.limit, oddities=oddities):
        if pair.tie:
            oddities.add("tie (left out)", int(pair.source.rpartition(":")[2]))
        else:
            found.append(pair)
    return found


async def _scored(pairs: Sequence[GoldPair], opened: _Open) -> list[ScoredPair]:
    if not pairs:
        return []
    replies = [reply for pair in pairs for reply in replies_of(pair)]
    await opened.score(replies, "gold pairs")
    return [scored_pair(pair, opened.reward_of) for pair in pairs]


def _on_gold(
    gold: OnGold, pairs: Sequence[GoldPair], scored: Sequence[ScoredPair], oddities: Oddities, known: TrainedOn | None
) -> Gold:
    if not any(pair.margin is not None for pair in scored):
        reasons = sorted({pair.reason for pair in scored})
        raise ModelError(f"{gold.path}: no gold pair can be scored ({', '.join(reasons)})")
    sha256 = sha256_known(gold.path)
    return gold_of(
        scored,
        path=gold.path,
        sha256=sha256,
        oddities=oddities.counts,
        trained_on=overlap(known, pairs, sha256),
    )


async def _best_of(wanted: OnAnswers, given: Pool | None, opened: _Open) -> BestOfN:
    """Answers, their rewards, their other measure, and the curve; a model is closed when nothing is left to ask it."""
    pool = given if given is not None else await _drawn(wanted, opened)
    replies = [
        Reply(each.prompt.id, each.prompt.messages, sample.text) for each in pool.answers for sample in each.samples
    ]
    await opened.score(replies, "rewards")
    opened.model.close()
    meter = await _meter(wanted.other, pool, opened)
    rated = list(_rated(pool, opened.reward_of, meter))
    if not rated:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in pool.left_out.items())
        raise ModelError(f"no prompt is left for best-of-n: {reasons}")
    opened.watch.note("working out best-of-n, with its intervals")
    return curve_of(
        rated,
        policy=wanted.answers.name,
        measure=wanted.other.name,
        left_out=pool.left_out,
        truncated=pool.truncated,
    )


async def _drawn(wanted: OnAnswers, opened: _Open) -> Pool:
    assert isinstance(wanted.answers, Drawn)
    opened.watch.note(f"reading {wanted.answers.prompts}")
    prompts = list(wanted.answers.read())
    if any(question.id not in opened.samples for prompt in prompts for question in wanted.answers.questions(prompt)):
        opened.model.open()  # its mistakes are told before the policy has spent hours
    opened.watch.begin("answers", wanted.answers.settings.samples * len(prompts))
    tally = await draw(
        wanted.answers,
        prompts,
        opened.samples,
        opened.failures,
        stage="answers",
        max_failed=wanted.max_failed,
        progress=opened.watch.progress,
    )
    opened.watch.end(tally)
    opened.tallies.append(tally)
    await wanted.answers.source.close()
    return drawn_pool(wanted.answers, prompts, opened.samples)


async def _meter(other: Grading | Own, pool: Pool, opened: _Open) -> Meter:
    if isinstance(other, Own):
        return other.meter()
    opened.watch.begin("grades", other.most(pool.answers))
    tally = await other.ask(
        pool.answers, opened.scores, opened.failures, stage="grades", progress=opened.watch.progress
    )
    opened.watch.end(tally)
    opened.tallies.append(tally)
    await other.judge.close()
    return other.meter(opened.scores)


def _rated(pool: Pool, reward_of: Callable[[Reply], Reward | None], meter: Meter) -> Iterator[Rated]:
    """The prompts whose answers all have both numbers; the others are counted by what is missing first."""
    for each in pool.answers:
        rewards = [_reward(each, sample, reward_of) for sample in each.samples]
        if any(reward is None for reward in rewards):
            pool.left_out["an answer has no reward"] += 1
            continue
        golds = [meter(each.prompt, sample) for sample in each.samples]
        if any(gold is None for gold in golds):
            pool.left_out["an answer has no grade"] += 1
            continue
        yield Rated(
            tuple(reward for reward in rewards if reward is not None),
            tuple(gold for gold in golds if gold is not None),
            tuple(len(sample.text) for sample in each.samples),
        )


def _reward(answers: Answers, sample: Sample, reward_of: Callable[[Reply], Reward | None]) -> float | None:
    found = reward_of(Reply(answers.prompt.id, answers.prompt.messages, sample.text))
    return None if found is None else found.reward


def _write(report: RewardReport, scored: Sequence[ScoredPair], path: Path, watch: Watch, plots: bool) -> None:
    if scored:
        write_records(path.with_suffix(".pairs.jsonl"), scored)
    if plots:
        watch.note("drawing the plots")
        from rlaif.evaluation.rewards.plots import write_plots

        write_plots(report, path.with_suffix(""))
    write_text(path, report.model_dump_json(indent=2) + "\n")


def name_of(model: RewardModel, gold: OnGold | None, answers: OnAnswers | None) -> str:
    """What the files about one model on one gold file and one set of answers are called."""
    words = [model.name]
    asked: list[JsonValue] = [model.name, *model.reading]
    if gold is not None:
        words.append(data_word(gold.path))
        asked.append(["gold", sha256_known(gold.path) or gold.path, gold.column, gold.limit])
    if answers is not None:
        source = answers.answers
        words += ["best-of-n", source.name] if isinstance(source, Drawn) else ["best-of-n"]
        words.append(data_word(source.data))
        asked += [source.identity, answers.other.identity]
    return report_name(words, asked)
