"""The evaluation of a reward model: accuracy on gold pairs, and best-of-n curves.

A reward model is measured as a judge is: its margin, the reward of the better reply minus that of the worse one, is
the log-odds of the better reply under Bradley-Terry. It scores one reply at a time, so it has no position bias.

The folder of an evaluation holds `rewards.jsonl`, `samples.jsonl`, `scores.jsonl` and `failures.jsonl`, which all
evaluations in it share; and for each evaluation a report (`NAME.json`, written last), the rewards of each gold pair
(`NAME.pairs.jsonl`) and plots. Records are looked up by content id: a second call computes nothing twice.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from rlaif import __version__
from rlaif.config.schemas import PairSettings
from rlaif.data.prompts import InputIssues, prompt_id
from rlaif.errors import ModelError
from rlaif.evaluation.best_of_n import CustomMeasure, Grading, Metric, Rated, best_of_n_warnings, curve_of
from rlaif.evaluation.gold import GoldPair, JudgedPair, read_gold
from rlaif.evaluation.judge_metrics import correlation, measure
from rlaif.evaluation.provenance import TrainedOn, overlap, trained_on
from rlaif.evaluation.reports import BestOfN, Cost, Gold, RewardReport, data_word, report_name, sha256_known
from rlaif.evaluation.reward_scores import (
    Drawn,
    Given,
    Pool,
    Reply,
    Reward,
    RewardModel,
    compute_rewards,
    draw,
    drawn_pool,
    given_pool,
)
from rlaif.feedback.aggregate import Status
from rlaif.inference.base import ModelSource, StageStats
from rlaif.progress import Progress
from rlaif.records import Failure, Record, Sample, Score
from rlaif.stats import average_of
from rlaif.store import Table, lock_folder, write_records, write_text

FOLDER = Path("runs/rewards")
"""The default folder of evaluations."""

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
    """A gold pair with the rewards that `reward_of` looks up."""
    better, worse = (reward_of(reply) for reply in replies_of(pair))
    values = [None if each is None else each.reward for each in (better, worse)]
    reasons = [each.reason for each in (better, worse) if each is not None and each.reason]
    margin = values[0] - values[1] if values[0] is not None and values[1] is not None else None
    return ScoredPair(
        id=pair.id,
        source=pair.source,
        prompt=prompt_id(pair.prompt),
        subset=pair.subset,
        better_reward=values[0],
        worse_reward=values[1],
        margin=margin,
        truncated=any(each is not None and each.truncated for each in (better, worse)),
        reason="" if margin is not None else (reasons or ["not scored"])[0],
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
    """The metrics of a reward model on gold pairs. Pairs without a margin are neither right nor wrong."""
    labelled = [pair for pair in pairs if pair.margin is not None]
    rewards = [reward for pair in labelled for reward in (pair.better_reward, pair.worse_reward) if reward is not None]
    # A reward model sees no order, so the measured position bias and flips are left out of the report.
    measures = measure([_as_judged(pair) for pair in pairs], PairSettings(), canaries=(), cost=_NO_COST, failures={})
    return Gold(
        path=path,
        sha256=sha256,
        pairs=len(labelled),
        input_issues=input_issues or {},
        no_reward=dict(Counter(pair.reason for pair in pairs if pair.margin is None)),
        truncated=sum(pair.truncated for pair in labelled) / len(labelled) if labelled else 0.0,
        accuracy=measures.accuracy,
        margin=average_of(
            [pair.margin for pair in labelled if pair.margin is not None], [pair.prompt for pair in labelled]
        ),
        calibration=measures.calibration,
        temperature=measures.temperature,
        length=measures.length,
        length_correlation=correlation([length for pair in labelled for length in pair.lengths], rewards),
        baselines=tuple(baseline for baseline in measures.baselines if "slot" not in baseline.name),
        gain=measures.gain,
        subsets=measures.subsets,
        trained_on=trained_on,
    )


def _as_judged(pair: ScoredPair) -> JudgedPair:
    """The pair as if a judge had seen it once, with the margin as the log-odds."""
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
    """Best-of-n over responses, against another measure."""

    answers: Drawn | Given
    """`Drawn` from a policy, or `Given` in a file."""
    other: Grading | CustomMeasure
    max_failed: float = 0.5
    """Stop sampling when more than this share of the requests failed."""

    @property
    def models(self) -> list[ModelSource]:
        """The policy and the judge, as far as there are any."""
        policy = [self.answers.source] if isinstance(self.answers, Drawn) else []
        return policy + ([self.other.judge] if isinstance(self.other, Grading) else [])


class EvaluatedReward(NamedTuple):
    """A finished evaluation."""

    report: RewardReport
    path: Path
    """Of the report."""
    tallies: tuple[StageStats, ...]
    """Statistics of the stages of this call."""


@dataclass
class _Session:
    """An evaluation in progress: the model, the open tables, and the statistics of the stages so far."""

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
        stats = await compute_rewards(replies, self.model, self.rewards, stage=stage, progress=self.progress)
        self.tallies.append(stats)

    def finish_stage(self, stats: StageStats) -> None:
        self.progress.end(stats.stage, stats.summary)
        self.tallies.append(stats)


async def evaluate_reward(
    model: RewardModel,
    folder: Path,
    *,
    gold: OnGold | None = None,
    answers: OnAnswers | None = None,
    progress: Progress,
    plots: bool = True,
) -> EvaluatedReward:
    """Measure a reward model on gold pairs, by best-of-n, or both, and write the report into `folder`.

    Raises UserError for the user's mistakes and ModelError when a model cannot go on; a second call resumes.
    """
    if gold is None and answers is None:
        raise ValueError("there is nothing to evaluate on: give gold pairs, or answers")
    path = folder / f"{name_of(model, gold, answers)}.json"
    input_issues = InputIssues()
    pairs = _read_gold(gold, input_issues, progress)
    given = given_pool(answers.answers) if answers is not None and isinstance(answers.answers, Given) else None
    with (
        lock_folder(folder),
        contextlib.closing(model),
        contextlib.closing(Table(folder / "rewards.jsonl", Reward)) as rewards,
        contextlib.closing(Table(folder / "samples.jsonl", Sample, create=False)) as samples,
        contextlib.closing(Table(folder / "scores.jsonl", Score, create=False)) as scores,
        contextlib.closing(Table(folder / "failures.jsonl", Failure, create=False)) as failures,
    ):
        session = _Session(model, progress, rewards, samples, scores, failures)
        training_data = trained_on(model.folder, keys=gold is not None)
        scored: list[ScoredPair] = []
        if pairs:
            await session.score([reply for pair in pairs for reply in replies_of(pair)], "gold pairs")
            scored = [scored_pair(pair, session.reward_of) for pair in pairs]
        on_gold = _gold_report(gold, pairs, scored, input_issues, training_data) if gold is not None else None
        curve = await _best_of_n(answers, given, session) if answers is not None else None
        raw = training_data is not None and training_data.raw and model.template == "chat"
        report = RewardReport(
            made_by=f"rlaif {__version__}",
            model=model.name,
            folder=model.folder,
            template=model.template,
            warnings=best_of_n_warnings(on_gold, curve, raw=raw),
            gold=on_gold,
            best_of_n=curve,
        )
        if scored:
            write_records(path.with_suffix(".pairs.jsonl"), scored)
        if plots:
            progress.note("drawing the plots")
            from rlaif.evaluation.plots import write_reward_plots

            write_reward_plots(report, path.with_suffix(""))
        write_text(path, report.model_dump_json(indent=2) + "\n")
    return EvaluatedReward(report, path, tuple(session.tallies))


def _read_gold(gold: OnGold | None, input_issues: InputIssues, progress: Progress) -> list[GoldPair]:
    """The gold pairs except ties, which no reward gets right; errors in the file surface before anything is scored."""
    if gold is None:
        return []
    progress.note(f"reading {gold.path}")
    pairs = []
    for pair in read_gold(gold.path, column=gold.column, limit=gold.limit, input_issues=input_issues):
        if pair.tie:
            input_issues.add("tie (left out)", int(pair.source.rpartition(":")[2]))
        else:
            pairs.append(pair)
    return pairs


def _gold_report(
    gold: OnGold,
    pairs: Sequence[GoldPair],
    scored: Sequence[ScoredPair],
    input_issues: InputIssues,
    training_data: TrainedOn | None,
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
        trained_on=overlap(training_data, pairs, sha256),
    )


async def _best_of_n(wanted: OnAnswers, given: Pool | None, session: _Session) -> BestOfN:
    """Collect the responses, their rewards and their other measure, and compute the curve.

    Each model is closed as soon as nothing is left to ask it.
    """
    pool = given if given is not None else await _sample_pool(wanted, session)
    await session.score([reply for group in pool.answers for reply in group.replies()], "rewards")
    session.model.close()
    if isinstance(wanted.other, CustomMeasure):
        metric = wanted.other.metric()
    else:
        grading = wanted.other
        session.progress.begin("grades", grading.max_questions(pool.answers))
        session.finish_stage(
            await grading.ask(pool.answers, session.scores, session.failures, stage="grades", progress=session.progress)
        )
        await grading.judge.close()
        metric = grading.metric(session.scores)
    rated = list(_rated(pool, session.reward_of, metric))
    if not rated:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in pool.left_out.items())
        raise ModelError(f"no prompt is left for best-of-n: {reasons}")
    session.progress.note("working out best-of-n, with its intervals")
    return curve_of(
        rated,
        policy=wanted.answers.name,
        measure=wanted.other.name,
        left_out=pool.left_out,
        truncated=pool.truncated,
    )


async def _sample_pool(wanted: OnAnswers, session: _Session) -> Pool:
    assert isinstance(wanted.answers, Drawn)
    session.progress.note(f"reading {wanted.answers.prompts}")
    prompts = list(wanted.answers.read())
    if any(question.id not in session.samples for prompt in prompts for question in wanted.answers.questions(prompt)):
        session.model.open()  # its errors surface before the policy has spent hours
    session.progress.begin("answers", wanted.answers.settings.samples * len(prompts))
    session.finish_stage(
        await draw(
            wanted.answers, prompts, session.samples, session.failures,
            stage="answers", max_failed=wanted.max_failed, progress=session.progress,
        )
    )  # fmt: skip
    await wanted.answers.source.close()
    return drawn_pool(wanted.answers, prompts, session.samples)


def _rated(pool: Pool, reward_of: Callable[[Reply], Reward | None], metric: Metric) -> Iterator[Rated]:
    """The prompts whose responses all have both numbers; the others are counted by what is missing first."""
    for group in pool.answers:
        rewards = [None if (scored := reward_of(reply)) is None else scored.reward for reply in group.replies()]
        if any(reward is None for reward in rewards):
            pool.left_out["an answer has no reward"] += 1
            continue
        golds = [metric(group.prompt, sample) for sample in group.samples]
        if any(gold is None for gold in golds):
            pool.left_out["an answer has no grade"] += 1
            continue
        yield Rated(
            tuple(reward for reward in rewards if reward is not None),
            tuple(gold for gold in golds if gold is not None),
            tuple(len(sample.text) for sample in group.samples),
        )


def name_of(model: RewardModel, gold: OnGold | None, answers: OnAnswers | None) -> str:
    """The stem of the files about one model on one gold file and one set of responses."""
    words = [model.name]
    identity: list[JsonValue] = [model.name, *model.reading]
    if gold is not None:
        words.append(data_word(gold.path))
        identity.append(["gold", sha256_known(gold.path) or gold.path, gold.column, gold.limit])
    if answers is not None:
        source = answers.answers
        words += ["best-of-n", source.name] if isinstance(source, Drawn) else ["best-of-n"]
        words.append(data_word(source.data))
        identity += [source.identity, answers.other.identity]
    return report_name(words, identity)
