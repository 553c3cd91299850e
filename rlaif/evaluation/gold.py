"""Gold pairs: two replies to a prompt of which the better one is known, and the judgement of each pair.

Gold pairs are read like all preference data (`rlaif.data.formats`): `pairs.jsonl`, `chosen` and `rejected` with a
`prompt` or as dialogues, two numbered responses with a column of the winner, RewardBench's rows; and also the 438
comparisons of the HHH evaluation (`text_correct`, `text_incorrect`). The column `subset` (or `category`) groups the
results, `principle` names the principle that decides a pair, and `tie: true` marks pairs between which people see no
difference, whose order means nothing.

A `Case` is a gold pair as the compare stage of a run would see it, and a `JudgedPair` what the judge says about it:
everything is about the better reply, whose log-odds are positive where the judge agrees with the gold pair.

`run_samples` reads the responses of a run (`samples.jsonl`) for all evaluations.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from rlaif.config.judge_templates import Judge
from rlaif.config.run_file import load_run
from rlaif.config.schemas import CompareSettings, PairSettings
from rlaif.constitution import Constitution
from rlaif.data.checks import check_texts, notes_of
from rlaif.data.conversations import UnreadableValueError, alternate, cut_dangling, joined
from rlaif.data.export import LEFT_OUT
from rlaif.data.files import Rows, read_rows
from rlaif.data.findings import RULES
from rlaif.data.formats import Reading, Shape, better_first, first_known, read, recognise
from rlaif.data.prompts import InputIssues, InvalidRowError, prompt_id, value_at
from rlaif.errors import RecordError, UserError, nearest
from rlaif.feedback.aggregate import Status, first_logit, folded, shares
from rlaif.feedback.judge import Criterion, Matchup, compare_questions, criteria_of, draw, votes
from rlaif.feedback.sampling import is_planned
from rlaif.inference.base import Question
from rlaif.records import Judgement, Message, Messages, Prompt, Record, Sample, content_id

TABLE = "samples.jsonl"

_WRITER = "gold"
"""Policy name of the replies in gold pairs."""

_LEFT_OUT = {
    "identical": "pair of equal answers (left out)",
    "empty-reply": "pair without two answers (left out)",
    "several-turns": "pair without two answers (left out)",
}
"""Counted reasons whose wording differs from that of the rule."""


class GoldPair(Record):
    """A prompt, the better and the worse reply to it."""

    id: str
    prompt: Messages
    better: str
    worse: str
    subset: str | None = None
    principle: str | None = None
    tie: bool = False
    """Neither is better."""
    source: str
    """File and line."""

    def as_prompt(self) -> Prompt:
        """The prompt as a record of the stages."""
        return Prompt(id=prompt_id(self.prompt), messages=self.prompt, source=self.source)

    def samples(self) -> tuple[Sample, Sample]:
        """The better and the worse reply as samples."""
        prompt = prompt_id(self.prompt)
        better, worse = (
            Sample(id=content_id(_WRITER, prompt, text), prompt=prompt, index=at, text=text, policy=_WRITER)
            for at, text in enumerate((self.better, self.worse))
        )
        return better, worse


def read_gold(
    path: str, *, column: str | None = None, limit: int | None = None, input_issues: InputIssues | None = None
) -> Iterator[GoldPair]:
    """The gold pairs of a file or of a `datasets` name, each once; `input_issues` counts the unusable rows.

    Raises UserError where the file is broken, where its rows are no pairs, or where none of them is usable.
    """
    counter = InputIssues() if input_issues is None else input_issues
    seen: set[str] = set()
    shape, rows = first_known(path, lambda row: recognise(_as_pair(row, column)))
    first = next(rows, None)
    if first is None:
        raise UserError("holds no rows", where=path)
    shape = _require_pairs(shape, first[1], path, first[0], column)
    for note in notes_of(shape):
        counter.add(note, first[0])
    for line, raw in itertools.chain([first], rows):
        counter.rows += 1
        pair = _parse_pair(shape, _as_pair(raw, column), f"{path}:{line}", line, counter)
        if pair is None:
            continue
        if pair.id in seen:
            counter.add("repeated pair", line)
            continue
        seen.add(pair.id)
        counter.prompts += 1
        yield pair
        if counter.prompts == limit:
            return
    if not counter.prompts:
        raise UserError("no row holds a usable pair" + (f": {counter}" if counter.counts else ""), where=path)


def _as_pair(row: Any, column: str | None) -> Any:
    """The row with the common column names instead of the HHH evaluation's, and the prompt under `prompt`."""
    if isinstance(row, dict) and "text_correct" in row and "text_incorrect" in row:
        renamed = {"chosen": row["text_correct"], "rejected": row["text_incorrect"]}
        return {**renamed, **{key: row[key] for key in ("subset", "category", "principle") if key in row}}
    if column is None or column == "prompt" or not isinstance(row, dict):
        return row
    try:
        prompt = value_at(row, column)
    except InvalidRowError:
        prompt = None
    return {"prompt": prompt, **{name: value for name, value in row.items() if name not in ("prompt", column)}}


def _require_pairs(shape: Shape | None, row: Any, path: str, line: int, column: str | None) -> Shape:
    names = list(map(str, row)) if isinstance(row, dict) else []
    if column is not None and column.split(".")[0] not in names and column not in names:
        raise UserError(f"no column `{column}`", where=path, line=line, hint=nearest(column, names))
    if shape is None or shape.kind == "unpaired":
        message = "gold pairs need the columns `chosen` and `rejected`, or two responses and a column of the winner"
        raise UserError(message, where=path, line=line, hint=f"columns: {', '.join(names) or 'none'}")
    return shape


def _require_usable(shape: Shape, row: Any) -> Reading:
    """The fields of a row. Raises UnreadableValueError with the broken rule where it is unusable."""
    reading = better_first(read(row, shape))
    reading.chosen, reading.rejected = (cut_dangling(text or "").strip() for text in (reading.chosen, reading.rejected))
    broken = set(reading.odd)
    check_texts(reading, broken.add)
    turns = tuple(turn for turn in reading.prompt if turn.role != "system")
    if "unknown-role" not in broken and turns and turns[-1].role == "user":
        broken.discard("role-order")  # one speaker twice in a row is joined
    rule = min(broken & LEFT_OUT, default=None)
    if rule is not None:
        raise UnreadableValueError(rule)
    if reading.probability in (0.5, "0.5"):
        raise UnreadableValueError("label-half")
    return reading


def _parse_pair(shape: Shape, row: Any, source: str, line: int, counter: InputIssues) -> GoldPair | None:
    try:
        reading = _require_usable(shape, row)
    except UnreadableValueError as error:
        rule = str(error)
        counter.add(_LEFT_OUT.get(rule, f"{RULES[rule].what} (left out)"), line)
        return None
    turns = tuple(Message.model_validate(turn._asdict()) for turn in reading.prompt)
    prompt = turns if alternate(turns) else joined(turns)
    better, worse = reading.chosen or "", reading.rejected or ""
    subset, principle = _cell(row, "subset") or _cell(row, "category"), _cell(row, "principle")
    return GoldPair(
        id=content_id("gold", prompt_id(prompt), better, worse, principle),
        prompt=prompt,
        better=better,
        worse=worse,
        subset=subset,
        principle=principle,
        tie=(_cell(row, "tie") or "").lower() in ("true", "1", "1.0", "yes"),
        source=source,
    )


def _cell(row: Any, column: str) -> str | None:
    """The text of a column; None for a blank cell and for NaN, which some tables write instead."""
    value = row.get(column)
    empty = value is None or (isinstance(value, float) and math.isnan(value))
    return None if empty else str(value).strip() or None


class Case(NamedTuple):
    """A gold pair as the compare stage sees it: the better reply (left) against the worse one."""

    pair: GoldPair
    prompt: Prompt
    matchup: Matchup


class JudgedPair(Record):
    """The judgement of one gold pair."""

    id: str
    """Of the gold pair."""
    source: str
    """File and line of the gold pair."""
    prompt: str
    """Id of its prompt: pairs of one prompt are right or wrong together."""
    subset: str | None
    status: str
    """`labelled`, `tie` (closer to one half than `pair.margin`), or why there is no label: `unparsed`, `failed`."""
    logit: float | None
    """Log-odds of the better reply, both orders and all principles folded; None where there is no label."""
    orders: tuple[float, ...]
    """The same for each judged order alone: with the better reply first, and with it second."""
    better_first: float
    """Share of the judged orders that show the better reply first: one half, or, with a single order, 0 or 1."""
    flip: bool
    """The two orders disagree."""
    own: dict[str, float | None]
    """Log-odds of the better reply by each principle on its own; None where it has no label."""
    slots: tuple[float, ...]
    """Log-odds of the first *slot*, for every single verdict that can be read."""
    masses: tuple[float, ...]
    """Probability of both labels together, for every answer with log-probabilities."""
    lengths: tuple[int, int]
    """Characters of the better and of the worse reply."""
    tie: bool = False
    """Neither reply is better, by the gold pair."""

    @property
    def labelled(self) -> bool:
        """Whether the pair has a label, including a tie."""
        return self.logit is not None


def cases(pairs: Iterable[GoldPair], constitution: Constitution, compare: CompareSettings) -> Iterator[Case]:
    """The gold pairs as matchups, judged by their own principle where they name one, else by `compare.principles`.

    Raises UserError where a pair names a principle that the constitution does not have.
    """
    criteria = criteria_of(constitution, compare.principles)
    single = {criterion.id: criterion for criterion in criteria_of(constitution, "each")}
    for pair in pairs:
        better, worse = pair.samples()
        if pair.principle is not None:
            if pair.principle not in single:
                message = f"`{constitution.name}` has no principle `{pair.principle}`"
                raise UserError(message, where=pair.source, hint=nearest(pair.principle, single))
            chosen: tuple[Criterion, ...] = (single[pair.principle],)
        elif compare.principles == "one":
            chosen = (draw(criteria, (better.id, worse.id)),)
        else:
            chosen = criteria
        yield Case(pair, pair.as_prompt(), Matchup(better, worse, chosen))


def questions_of(case: Case, compare: CompareSettings, judge: Judge) -> list[Question]:
    """The ordered questions of a gold pair: the same, by content and thus by id, as in a run."""
    return list(compare_questions(case.prompt, [case.matchup], compare, judge))


def judged_pair(
    case: Case,
    questions: Sequence[Question],
    answer_of: Callable[[str], Judgement | None],
    compare: CompareSettings,
    pair: PairSettings,
) -> JudgedPair:
    """One gold pair with the answers to its questions, looked up by id."""
    better, worse, _ = case.matchup
    ((_, ballots),) = votes([case.matchup], questions, answer_of, compare)
    comparison = folded(better.id, worse.id, ballots, pair.model_copy(update={"flips": "soft"}))
    silent = comparison.status in (Status.UNPARSED, Status.FAILED)
    outputs = [(vote, output) for vote in ballots for output in vote.judgements if output is not None]
    logits = (
        first_logit(output, min_mass=pair.min_label_mass, temperature=vote.temperature) for vote, output in outputs
    )
    parts = shares(better.id, worse.id, ballots, pair)
    return JudgedPair(
        id=case.pair.id,
        source=case.pair.source,
        prompt=case.prompt.id,
        subset=case.pair.subset,
        status=comparison.status.value,
        logit=None if silent else comparison.logit,
        orders=comparison.orders,
        better_first=sum(vote.wanted[0] for vote in ballots) / sum(sum(vote.wanted) for vote in ballots),
        flip=comparison.flip,
        own={part.principle: part.comparison.logit if part.readable else None for part in parts},
        slots=tuple(logit for logit in logits if logit is not None),
        masses=tuple(output.label_mass for _, output in outputs if output.label_mass is not None),
        lengths=(len(case.pair.better), len(case.pair.worse)),
        tie=case.pair.tie,
    )


def run_samples(path: Path, rows: Rows | None = None) -> dict[str, dict[int, Sample]]:
    """The responses of a run's samples.jsonl, by prompt and index, without revisions.

    The table also holds responses sampled under earlier settings: those of the `run.yaml` beside it count. Raises
    RecordError on a broken line, and UserError where responses of several policies or settings remain, which are not
    samples of one distribution.
    """
    samples = []
    for line, row in rows if rows is not None else read_rows(path):
        try:
            sample = Sample.model_validate(row)
        except ValidationError as error:
            raise RecordError(path, line, error.errors()[0]["msg"]) from None
        if sample.revision_of is None:
            samples.append(sample)
    by_prompt: dict[str, dict[int, Sample]] = {}
    for sample in _require_one_source(_planned_samples(samples, path) or samples, path):
        if by_prompt.setdefault(sample.prompt, {}).setdefault(sample.index, sample) is not sample:
            raise _mixed("several answers to one prompt with one number", path)
    return by_prompt


def _planned_samples(samples: Sequence[Sample], path: Path) -> list[Sample]:
    """The samples that the run beside the table plans; none where no run file says so."""
    try:
        policy = load_run(path.with_name("run.yaml")).policy if path.name == TABLE else None
    except UserError:
        policy = None
    return [
        sample
        for sample in samples
        if policy is not None
        and sample.sampling is not None
        and is_planned(policy, sample.prompt, sample.index, sample.sampling.model_dump())
    ]


def _require_one_source(samples: list[Sample], path: Path) -> list[Sample]:
    policies = sorted({each.policy for each in samples})
    if len(policies) > 1:
        raise _mixed(f"answers of {len(policies)} policies ({', '.join(policies[:5])})", path)
    settings = {each.sampling and each.sampling.model_copy(update={"seed": None}) for each in samples}
    if len(settings) > 1:
        temperatures = sorted({each.temperature for each in settings if each is not None})
        shown = ", ".join(f"{temperature:g}" for temperature in temperatures)
        detail = f" (temperatures {shown})" if len(temperatures) > 1 else ""
        raise _mixed(f"answers drawn with {len(settings)} settings{detail}", path)
    return samples


def _mixed(content: str, path: Path) -> UserError:
    return UserError(f"holds {content}", where=path, hint="give each its own file")
