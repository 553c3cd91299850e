"""The evaluation of a reward model, on gold pairs and by best-of-n.

Gold pairs with the rewards of both replies, and what they come to. Pure: no model, no files.

A reward model is measured as a judge is: its margin, the better reply's reward less the worse one's, is its log-odds
of the better reply under Bradley-Terry. It sees one reply at a time, so that there is no slot to prefer.

The evaluation of a reward model: on gold pairs, and by best-of-n; plan, ask what is missing, append, then write.

In the folder: `rewards.jsonl`, `samples.jsonl`, `scores.jsonl` and `failures.jsonl`, what all evaluations there scored
and asked; and for every evaluation a report (`NAME.json`, written last), the rewards of each gold pair
(`NAME.pairs.jsonl`) and plots. Everything is found by content id: a second call scores and asks nothing.

The evaluations of judges and of reward models for callers without an event loop; they close what they opened.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from rlaif import __version__
from rlaif.config.schemas import PairSettings
from rlaif.data.prompts import InputIssues, prompt_id
from rlaif.errors import ModelError
from rlaif.evaluation.best_of_n import Grading, Metric, Own, Rated, best_of_n_warnings, curve_of
from rlaif.evaluation.gold import GoldPair, JudgedPair, read_gold
from rlaif.evaluation.judge import EvaluatedJudge, Evaluation, evaluate_judge
from rlaif.evaluation.judge_metrics import measure
from rlaif.evaluation.provenance import TrainedOn, overlap, trained_on
from rlaif.evaluation.reports import BestOfN, Cost, Gold, RewardReport, data_word, report_name, sha256_known
from rlaif.evaluation.reward_scores import (
    Answers,
    Drawn,
    Given,
    Pool,
    Reply,
    Reward,
    RewardModel,
    draw,
    drawn_pool,
    given_pool,
    keep_rewards,
)
from rlaif.feedback.aggregate import Status
from rlaif.inference.background import blocking
from rlaif.inference.base import ModelSource, StageStats
from rlaif.progress import Progress
from rlaif.records import Failure, Record, Sample, Score
from rlaif.stats import average_of
from rlaif.store import Table, lock_folder, write_records, write_text

_NO_COST = Cost(
    calls=0,
    prompt_tokens=0,
    cached_tokens=0,
    completion_tokens=0,
    calls_per_1000=None,
    prompt_tokens_per_1000=None,
    seconds_per_1000=None,
)


class ScoredPair(Record):
    """A gold pair with its rewards."""

    id: str
    """Of the gold pair."""
    source: str
    """File and line of the gold pair."""
    prompt: str
    """Id of its prompt."""
    subset: str | None
    better_reward: float | None
    worse_reward: float | None
    margin: float | None
    """The first less the second; None where one is missing."""
    truncated: bool
    """The conversation was too long with one of the replies, and lost its beginning."""
    reason: str
    """Why there is no margin."""
    lengths: tuple[int, int]
    """Characters of the better and of the worse reply."""


def replies_of(pair: GoldPair) -> tuple[Reply, Reply]:
    """The better and the worse reply of a pair."""
    prompt = prompt_id(pair.prompt)
    return Reply(prompt, pair.prompt, pair.better), Reply(prompt, pair.prompt, pair.worse)


def scored_pair(pair: GoldPair, reward_of: Callable[[Reply], Reward | None]) -> ScoredPair:
    """A pair with the rewards on disk, which are found by their ids."""
    better, worse = (reward_of(reply) for reply in replies_of(pair))
    values = [None if each is None else each.reward for each in (better, worse)]
    reasons = [each.reason for each in (better, worse) if each is not None and each.reason]
    whole = values[0] is not None and values[1] is not None
    return ScoredPair(
        id=pair.id,
        source=pair.source,
        prompt=prompt_id(pair.prompt),
        subset=pair.subset,
        better_reward=values[0],
        worse_reward=values[1],
        margin=values[0] - values[1] if values[0] is not None and values[1] is not None else None,
        truncated=any(each is not None and each.truncated for each in (better, worse)),
        reason="" if whole else (reasons or ["not scored"])[0],
        lengths=(len(pair.better), len(pair.worse)),
    )


def gold_of(
    pairs: Sequence[ScoredPair],
    *,
    path: str,
    sha256: str | None = None,
    input_issues: dict[str, int] | None = None,
    trained_on: int | None = None,
) -> Gold:
    """Everything about the rewards of gold pairs. Pairs without a margin are neither right nor wrong."""
    said = [pair for pair in pairs if pair.margin is not None]
    found = measure(
        [_as_judged(pair) for pair in pairs], PairSettings(), canaries=(), cost=_NO_COST, failures={}
    )  # of what it finds, slots and flips mean nothing here
    return Gold(
        path=path,
        sha256=sha256,
        pairs=len(said),
        input_issues=input_issues or {},
        no_reward=dict(Counter(pair.reason for pair in pairs if pair.margin is None)),
        truncated=sum(pair.truncated for pair in said) / len(said) if said else 0.0,
        accuracy=found.accuracy,
        margin=average_of([pair.margin for pair in said if pair.margin is not None], [pair.prompt for pair in said]),
        calibration=found.calibration,
        temperature=found.temperature,
        length=found.length,
        length_correlation=correlation([length for pair in said for length in pair.lengths], list(_rewards(said))),
        baselines=tuple(each for each in found.baselines if "slot" not in each.name),
        gain=found.gain,
        subsets=found.subsets,
        trained_on=trained_on,
    )


def correlation(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Pearson's; None of fewer than three points, and where one of the two does not vary."""
    if len(xs) < 3 or min(xs) == max(xs) or min(ys) == max(ys):
        return None
    return statistics.correlation(xs, ys)


def _rewards(said: Iterable[ScoredPair]) -> Iterator[float]:
    values = itertools.chain.from_iterable((pair.better_reward, pair.worse_reward) for pair in said)
    return (value for value in values if value is not None)


def _as_judged(pair: ScoredPair) -> JudgedPair:
    """A pair as a judge's that was asked once: the margin is the log-odds."""
    return JudgedPair(
        id=pair.id,
        source=pair.source,
        prompt=pair.prompt,
        subset=pair.subset,
        status=(Status.FAILED if pair.margin is None else Status.LABELLED).value,
        logit=pair.margin,
        orders=() if pair.margin is None else (pair.margin,),
        better_first=0.5,
        flip=False,
        own={},
        slots=(),
        masses=(),
        lengths=pair.lengths,
    )


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
    tallies: tuple[StageStats, ...]
    """What was scored and asked now."""


@dataclass
class _Open:
    """The tables, the model, who is told, and what was done."""

    model: RewardModel
    progress: Progress
    rewards: Table[Reward]
    samples: Table[Sample]
    scores: Table[Score]
    failures: Table[Failure]
    tallies: list[StageStats] = field(default_factory=list)

    def reward_of(self, reply: Reply) -> Reward | None:
        return self.rewards.get(self.model.key(reply))

    async def score(self, replies: Sequence[Reply], stage: str) -> None:
        self.tallies.append(await keep_rewards(replies, self.model, self.rewards, stage=stage, progress=self.progress))


async def evaluate_reward(
    model: RewardModel,
    folder: Path,
    *,
    gold: OnGold | None = None,
    answers: OnAnswers | None = None,
    progress: Progress,
    plots: bool = True,
) -> EvaluatedReward:
    """Measure a reward model on gold pairs, by best-of-n, or both, and write what was found into `folder`.

    Raises UserError for the user's mistakes and ModelError when a model cannot go on; a second call resumes.
    """
    if gold is None and answers is None:
        raise ValueError("there is nothing to evaluate on: give gold pairs, or answers")
    path = folder / f"{name_of(model, gold, answers)}.json"
    input_issues = InputIssues()
    pairs = _read_gold(gold, input_issues, progress)
    given = given_pool(answers.answers) if answers is not None and isinstance(answers.answers, Given) else None
    with _opened(folder, model, progress) as opened:
        known = trained_on(model.folder, keys=gold is not None)
        scored = await _scored(pairs, opened)
        on_gold = _on_gold(gold, pairs, scored, input_issues, known) if gold is not None else None
        best = await _best_of(answers, given, opened) if answers is not None else None
        model.close()
        report = RewardReport(
            made_by=f"rlaif {__version__}",
            model=model.name,
            folder=model.folder,
            template=model.template,
            warnings=best_of_n_warnings(
                on_gold, best, raw=known is not None and known.raw and model.template == "chat"
            ),
            gold=on_gold,
            best_of_n=best,
        )
        _write(report, scored, path, progress, plots)
    return EvaluatedReward(report, path, tuple(opened.tallies))


@contextlib.contextmanager
def _opened(folder: Path, model: RewardModel, progress: Progress) -> Iterator[_Open]:
    with (
        lock_folder(folder),
        contextlib.closing(Table(folder / "rewards.jsonl", Reward)) as rewards,
        contextlib.closing(Table(folder / "samples.jsonl", Sample, create=False)) as samples,
        contextlib.closing(Table(folder / "scores.jsonl", Score, create=False)) as scores,
        contextlib.closing(Table(folder / "failures.jsonl", Failure, create=False)) as failures,
    ):
        yield _Open(model, progress, rewards, samples, scores, failures)


def _read_gold(gold: OnGold | None, input_issues: InputIssues, progress: Progress) -> list[GoldPair]:
    """The pairs, but for ties, which no reward gets right; mistakes in the file are told before anything is scored."""
    if gold is None:
        return []
    progress.note(f"reading {gold.path}")
    found = []
    for pair in read_gold(gold.path, column=gold.column, limit=gold.limit, input_issues=input_issues):
        if pair.tie:
            input_issues.add("tie (left out)", int(pair.source.rpartition(":")[2]))
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
    gold: OnGold,
    pairs: Sequence[GoldPair],
    scored: Sequence[ScoredPair],
    input_issues: InputIssues,
    known: TrainedOn | None,
) -> Gold:
    if not any(pair.margin is not None for pair in scored):
        reasons = sorted({pair.reason for pair in scored})
        raise ModelError(f"{gold.path}: no gold pair can be scored ({', '.join(reasons)})")
    sha256 = sha256_known(gold.path)
    return gold_of(
        scored,
        path=gold.path,
        sha256=sha256,
        input_issues=input_issues.counts,
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
    metric = await _meter(wanted.other, pool, opened)
    rated = list(_rated(pool, opened.reward_of, metric))
    if not rated:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in pool.left_out.items())
        raise ModelError(f"no prompt is left for best-of-n: {reasons}")
    opened.progress.note("working out best-of-n, with its intervals")
    return curve_of(
        rated,
        policy=wanted.answers.name,
        measure=wanted.other.name,
        left_out=pool.left_out,
        truncated=pool.truncated,
    )


async def _drawn(wanted: OnAnswers, opened: _Open) -> Pool:
    assert isinstance(wanted.answers, Drawn)
    opened.progress.note(f"reading {wanted.answers.prompts}")
    prompts = list(wanted.answers.read())
    if any(question.id not in opened.samples for prompt in prompts for question in wanted.answers.questions(prompt)):
        opened.model.open()  # its mistakes are told before the policy has spent hours
    opened.progress.begin("answers", wanted.answers.settings.samples * len(prompts))
    tally = await draw(
        wanted.answers,
        prompts,
        opened.samples,
        opened.failures,
        stage="answers",
        max_failed=wanted.max_failed,
        progress=opened.progress,
    )
    opened.progress.end(tally.stage, tally.summary)
    opened.tallies.append(tally)
    await wanted.answers.source.close()
    return drawn_pool(wanted.answers, prompts, opened.samples)


async def _meter(other: Grading | Own, pool: Pool, opened: _Open) -> Metric:
    if isinstance(other, Own):
        return other.metric()
    opened.progress.begin("grades", other.most(pool.answers))
    tally = await other.ask(pool.answers, opened.scores, opened.failures, stage="grades", progress=opened.progress)
    opened.progress.end(tally.stage, tally.summary)
    opened.tallies.append(tally)
    await other.judge.close()
    return other.metric(opened.scores)


def _rated(pool: Pool, reward_of: Callable[[Reply], Reward | None], metric: Metric) -> Iterator[Rated]:
    """The prompts whose answers all have both numbers; the others are counted by what is missing first."""
    for each in pool.answers:
        rewards = [_reward(each, sample, reward_of) for sample in each.samples]
        if any(reward is None for reward in rewards):
            pool.left_out["an answer has no reward"] += 1
            continue
        golds = [metric(each.prompt, sample) for sample in each.samples]
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


def _write(report: RewardReport, scored: Sequence[ScoredPair], path: Path, progress: Progress, plots: bool) -> None:
    if scored:
        write_records(path.with_suffix(".pairs.jsonl"), scored)
    if plots:
        progress.note("drawing the plots")
        from rlaif.evaluation.plots import write_reward_plots

        write_reward_plots(report, path.with_suffix(""))
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


def evaluate_judge_now(
    wanted: Evaluation, judge: ModelSource, folder: Path, *, progress: Progress, plots: bool = True
) -> EvaluatedJudge:
    """`rlaif.evaluation.judge.evaluate_judge`, which see; the judge is closed at the end."""

    async def whole() -> EvaluatedJudge:
        try:
            return await evaluate_judge(wanted, judge, folder, progress=progress, plots=plots)
        finally:
            await judge.close()

    return blocking(whole())


def evaluate_reward_now(
    model: RewardModel,
    folder: Path,
    *,
    gold: OnGold | None = None,
    answers: OnAnswers | None = None,
    progress: Progress,
    plots: bool = True,
) -> EvaluatedReward:
    """`rlaif.evaluation.reward_model.evaluate_reward`, which see; all models are closed at the end."""

    async def whole() -> EvaluatedReward:
        try:
            return await evaluate_reward(model, folder, gold=gold, answers=answers, progress=progress, plots=plots)
        finally:
            model.close()
            if answers is not None and isinstance(answers.answers, Drawn):
                await answers.answers.source.close()
            if answers is not None and isinstance(answers.other, Grading):
                await answers.other.judge.close()

    return blocking(whole())
