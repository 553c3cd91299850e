"""A run folder: its tables, the plan that its settings make of its prompts, its provenance, and its models.

Files of a run:

- `run.yaml`: the resolved settings; `prompts.jsonl`: the prompts as read.
- `samples.jsonl`, `critiques.jsonl`, `revisions.jsonl`, `judgements.jsonl`: the answers of the models, append-only and
  never edited; by grades or rankings also `scores.jsonl`, `orders.jsonl`.
- `failures.jsonl`: questions without an answer; `asking.json`: the form that each judge is asked in.
- Derived by `rlaif.feedback.dataset`: `rankings.jsonl`, `pairs.jsonl`, `pairs.parquet` and `manifest.json`.

Plans are recomputed, not stored: the question behind every stored answer is rebuilt from prompts, samples, constitution
and settings, and its hash finds the answer. So only answers to the questions of *these* settings ever count.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.config.judge_templates import PLAIN, Judge, load_templates
from rlaif.config.run_file import save_run
from rlaif.config.schemas import JudgeSettings, RunSettings
from rlaif.config.yaml import load_yaml
from rlaif.constitution import Constitution, load_constitution
from rlaif.data.prompts import InputIssues, read_prompts
from rlaif.errors import UserError
from rlaif.feedback.aggregate import PositionBias, Vote, position_bias, removes_bias
from rlaif.feedback.critique import critique_questions, notes_on
from rlaif.feedback.judge import (
    Criterion,
    Forms,
    Matchup,
    Notes,
    compare_questions,
    criteria_of,
    distinct_samples,
    matchups,
    votes,
)
from rlaif.feedback.prompts import LABELS
from rlaif.feedback.sampling import given_samples, rehearsals, sample_questions
from rlaif.feedback.scoring import FINALISTS, finalists, score_question
from rlaif.inference.base import ModelSource, Question, Rehearsal
from rlaif.inference.models import LazyModel
from rlaif.records import Critique, Failure, Judgement, Order, Prompt, Revision, Sample, Score
from rlaif.store import Table, draft_of, lock_folder, read_records, sha256_of, write_records
from rlaif.text import loads


@dataclass
class Run:
    """An open run folder, locked for this process."""

    settings: RunSettings
    constitution: Constitution
    folder: Path
    samples: Table[Sample]
    critiques: Table[Critique]
    revisions: Table[Revision]
    judgements: Table[Judgement]
    scores: Table[Score]
    orders: Table[Order]
    failures: Table[Failure]
    policy_name: str | None
    """Identity of the policy; None where all answers are given."""
    judge_name: str
    """Identity of the judge, or of a panel's first one."""
    panel_names: tuple[str, ...] = ()
    """Those of a panel's other judges."""
    before: RunSettings | None = None
    """The settings that were saved in the folder before, if there were any that can be read."""
    input_issues: InputIssues = field(default_factory=InputIssues)
    """The issues of the prompts, by kind."""
    prompt_count: int = 0
    max_matchups: int = 0
    """Pairs of samples that are compared if all responses of a prompt differ."""
    warnings: tuple[str, ...] = ()
    """Reasons to doubt the labels, for the manifest."""
    slots: dict[str, float] = field(default_factory=dict)
    """By judge, the position bias that is taken off its log-odds (see `rlaif.feedback.aggregate`)."""
    _judges: dict[str, Judge] = field(default_factory=dict)

    @property
    def tables(self) -> tuple[Table[Any], ...]:
        """The journals."""
        answers = self.samples, self.critiques, self.revisions, self.judgements, self.scores, self.orders
        return *answers, self.failures

    @property
    def judges(self) -> tuple[tuple[str, JudgeSettings], ...]:
        """Every judge that compares, by its identity."""
        return tuple(zip((self.judge_name, *self.panel_names), self.settings.judges, strict=True))

    @property
    def judge(self) -> Judge:
        """The (first) judge, as it is asked."""
        return self.judge_named(self.judge_name)

    def judge_named(self, name: str) -> Judge:
        """One of the judges, as it is asked: with its templates, and in the form that was chosen for it here; in the
        plain form until there is one. Raises UserError where its templates have a mistake."""
        if name not in self._judges:
            self.use_form(name, Forms(self.folder))
        return self._judges[name]

    def use_form(self, name: str, forms: Forms) -> None:
        """Ask a judge in the form that `forms` holds for it from now on."""
        templates = load_templates(dict(self.judges)[name].templates)
        chosen = forms.of(name, self.settings.compare, templates)
        self._judges[name] = Judge(name, templates, PLAIN if chosen is None else chosen.form)

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        """What pairs are judged by."""
        return criteria_of(self.constitution, self.settings.compare.principles)

    def read_prompts(self, before_change: Callable[[], None] = lambda: None) -> None:
        """Read the input into `prompts.jsonl`: the plan that the stages of this run go through.

        Where it holds other prompts than before, `before_change` is called before they take their place. Raises
        UserError for a mistake in the input; then nothing has changed.
        """
        path, source, policy = self.folder / "prompts.jsonl", self.settings.prompts, self.settings.policy
        with_given = source.responses is not None or policy is None
        samples, opponents = policy.samples if policy else 0, self.settings.compare.opponents

        def counted() -> Iterator[Prompt]:
            for prompt in read_prompts(
                source.path,
                column=source.column,
                responses=source.responses,
                limit=source.limit,
                input_issues=self.input_issues,
            ):
                planned = prompt if with_given else prompt.model_copy(update={"responses": ()})
                self.max_matchups += sum(min(at, opponents) for at in range(samples + len(planned.responses)))
                yield planned

        with draft_of(path) as draft:
            self.prompt_count = write_records(draft, counted())
            if not path.exists() or sha256_of(draft) != sha256_of(path):
                before_change()

    @property
    def max_comparisons(self) -> int:
        """Questions of the compare stage if all responses of a prompt differ."""
        compare = self.settings.compare
        orders = 2 if compare.orders == "both" else 1
        return self.max_matchups * orders * (len(self.criteria) if compare.principles == "each" else 1)

    def prompts(self) -> Iterator[Prompt]:
        """The prompts of the plan, streamed."""
        return read_records(self.folder / "prompts.jsonl", Prompt)

    def sample_questions(self, most: int | None = None) -> Iterator[Question]:
        """Every question of the sample stage, or those that bring each prompt to `most` samples, given ones counted."""
        for prompt in self.prompts():
            yield from self.sample_questions_of(prompt, most)

    def sample_questions_of(self, prompt: Prompt, most: int | None = None) -> list[Question]:
        """The questions that draw one prompt's samples, or only those that bring it to `most` responses."""
        policy = self.settings.policy
        if policy is None or self.policy_name is None:
            return []
        if most is not None:
            wanted = max(0, min(policy.samples, most - len(prompt.responses)))
            policy = policy.model_copy(update={"samples": wanted})
        return sample_questions(prompt, policy, self.policy_name)

    def samples_of(self, prompt: Prompt, most: int | None = None) -> list[Sample]:
        """The (first `most`) samples of a prompt that are on disk: the given ones, then the generated, by index."""
        generated = (self.samples.get(question.id) for question in self.sample_questions_of(prompt, most))
        return [*given_samples(prompt), *(sample for sample in generated if sample is not None)][:most]

    def matchups_of(self, prompt: Prompt, samples: list[Sample]) -> list[Matchup]:
        """The matchups of a prompt's samples, and the criteria of each."""
        if self.settings.compare.method == "tournament":
            distinct = distinct_samples(samples)
            samples = finalists(distinct, lambda sample: self.scores.get(self._final(prompt, sample).id))
        return matchups(samples, self.criteria, self.settings.compare)

    def final_questions(self, prompt: Prompt, samples: list[Sample]) -> list[Question]:
        """The grades by which a tournament chooses its finalists; none where all can be compared."""
        distinct = distinct_samples(samples)
        return [self._final(prompt, sample) for sample in distinct] if len(distinct) > 2 * FINALISTS else []

    def _final(self, prompt: Prompt, sample: Sample) -> Question:
        return self.score_question(prompt, sample, criteria_of(self.constitution, "all")[0])

    def score_question(self, prompt: Prompt, sample: Sample, criterion: Criterion) -> Question:
        """The question behind the grade of one sample."""
        return score_question(prompt, sample, criterion, self.judge, max_chars=self.settings.compare.max_chars)

    def critique_questions(self) -> Iterator[Question]:
        """Every question of the critique stage, as far as there are samples."""
        for prompt in self.prompts():
            yield from self.critique_questions_of(prompt, self.matchups_of(prompt, self.samples_of(prompt)))

    def critique_questions_of(self, prompt: Prompt, pairings: list[Matchup]) -> list[Question]:
        """The critiques of one prompt's samples, each once."""
        chars = self.settings.compare.max_chars
        return critique_questions(prompt, pairings, self.settings.critique, self.judge, max_chars=chars)

    def compare_questions(self, judge: str | None = None) -> Iterator[Question]:
        """The compare stage's questions to a judge (or the first) as far as there are samples (and critiques shown)."""
        for prompt in self.prompts():
            yield from self.compare_questions_of(prompt, self.matchups_of(prompt, self.samples_of(prompt)), judge)

    def compare_questions_of(self, prompt: Prompt, pairings: list[Matchup], judge: str | None = None) -> list[Question]:
        """The ordered questions of one prompt to a judge, or to the first; the judges of a panel read the same."""
        compare = self.settings.compare
        notes: Notes | None = None
        if compare.critique:
            critique = self.settings.critique
            notes = notes_on(prompt, self.critiques.get, critique, self.judge, max_chars=compare.max_chars)
        return list(compare_questions(prompt, pairings, compare, self.judge_named(judge or self.judge_name), notes))

    def votes_of(self, prompt: Prompt, pairings: list[Matchup]) -> Iterator[tuple[Matchup, list[Vote]]]:
        """The votes on each of a prompt's matchups, by the (first) judge's answers on disk."""
        compare, slot = self.settings.compared_by(self.settings.judge), self.slots.get(self.judge_name, 0.0)
        return votes(pairings, self.compare_questions_of(prompt, pairings), self.judgements.get, compare, slot=slot)

    def under(self, constitution: Constitution) -> Run:
        """The same prompts and tables, planned under another constitution."""
        return replace(self, constitution=constitution)

    def failure_reason(self, question: str) -> str:
        """Why a question, by its id, has no answer."""
        failure = self.failures.get(question)
        return failure.reason if failure else "not asked yet"

    def save_settings(self) -> None:
        """Write the settings of this run to `run.yaml`."""
        save_run(self.settings, self.folder / "run.yaml")

    def invalidate_manifest(self, *manifests: str) -> None:
        """Remove manifests: the presence of one means that what it describes is finished."""
        for manifest in manifests or ("manifest.json",):
            (self.folder / manifest).unlink(missing_ok=True)


@contextlib.contextmanager
def open_run(
    settings: RunSettings, policy_name: str | None, judge_name: str, panel_names: tuple[str, ...] = ()
) -> Iterator[Run]:
    """Lock and open the run folder of `settings`.

    Raises UserError where another process writes there, where the folder cannot be written, or where it holds a dataset
    that no run has made.
    """
    constitution = load_constitution(settings.constitution)
    with lock_folder(settings.folder):
        saved = settings.folder / "run.yaml"
        for name in ("pairs.jsonl", "pairs.parquet", "rankings.jsonl"):
            if (settings.folder / name).exists() and not saved.exists():
                hint = "give another `output`"
                raise UserError("there is a file of this name here already", where=settings.folder / name, hint=hint)
        before: RunSettings | None = None
        with contextlib.suppress(UserError):
            before = load_yaml(saved, RunSettings)
        with _tables(settings, constitution, policy_name, judge_name) as run:
            run.before, run.panel_names = before, panel_names
            yield run


@contextlib.contextmanager
def reopen_run(folder: Path, constitution: Constitution | None = None) -> Iterator[Run]:
    """Lock and open a finished run as it stands: its settings and derived files are left alone, and no model is loaded.

    It is planned under `constitution`, or else under the file that its settings name, which may have changed since.
    """
    provenance = read_provenance(folder)
    settings = load_yaml(folder / "run.yaml", RunSettings).model_copy(update={"output": str(folder)})
    if settings.compare.method in ("score", "rank"):
        problem = f"this run was judged by `{settings.compare.method}`, and this looks at pairs shown in both orders"
        raise UserError(problem, where=folder, hint="generate it with `compare.method: pairwise` or `tournament`")
    if settings.panel:
        problem = f"this run has a panel of {len(settings.judges)} judges, and this looks at one judge's answers"
        raise UserError(problem, where=folder, hint="generate it with one `judge`: its answers are here already")
    planned = constitution or load_constitution(settings.constitution)
    with lock_folder(folder), _tables(settings, planned, provenance.policy, provenance.judge) as run:
        yield run


@contextlib.contextmanager
def _tables(
    settings: RunSettings, constitution: Constitution, policy_name: str | None, judge_name: str
) -> Iterator[Run]:
    """The run of a folder that this process has locked."""
    with contextlib.ExitStack() as stack:

        def table(name: str, record: type, *, create: bool = True) -> Table:  # type: ignore[type-arg]
            opened: Table = Table(settings.folder / name, record, create=create)  # type: ignore[type-arg]
            stack.callback(opened.close)
            return opened

        yield Run(
            settings,
            constitution,
            settings.folder,
            samples=table("samples.jsonl", Sample),
            critiques=table("critiques.jsonl", Critique),
            revisions=table("revisions.jsonl", Revision),
            judgements=table("judgements.jsonl", Judgement),
            scores=table("scores.jsonl", Score, create=False),
            orders=table("orders.jsonl", Order, create=False),
            failures=table("failures.jsonl", Failure),
            policy_name=policy_name,
            judge_name=judge_name,
        )


class RunProvenance(NamedTuple):
    """The models and the constitution that a finished run was made with, by its manifest."""

    policy: str | None
    judge: str
    constitution: str
    """Name of the constitution."""
    hash: str
    """Its content hash."""


def read_provenance(folder: Path) -> RunProvenance:
    """Who made a finished run. Raises UserError where there is none in `folder`."""
    path = folder / "manifest.json"
    try:
        manifest = loads(path.read_text(encoding="utf-8"))
        constitution = manifest["constitution"]
        return RunProvenance(manifest["policy"], manifest["judge"], constitution["name"], constitution["hash"])
    except OSError:
        resumable = (folder / "run.yaml").is_file()
        hint = (
            f"`rlaif generate {folder / 'run.yaml'}` goes on with it" if resumable else "give a folder that a run wrote"
        )
        raise UserError("there is no finished run here", where=folder, hint=hint) from None
    except (ValueError, KeyError, TypeError):
        hint = f"`rlaif pair {folder / 'run.yaml'}` writes it again"
        raise UserError("this is not the manifest of a run", where=path, hint=hint) from None


class Models(NamedTuple):
    """The models of a run, each started when its first answer is wanted."""

    policy: ModelSource | None
    """None where all answers are given."""
    judge: ModelSource
    panel: tuple[ModelSource, ...] = ()
    """The panel's other judges."""


@contextlib.asynccontextmanager
async def opened_models(
    settings: RunSettings, stages: Sequence[str], say: Callable[[str], None]
) -> AsyncIterator[Models]:
    """The models of `settings`, closed at the end however it comes.

    Raises UserError where two judges are the same, or where one that `stages` can ask has no key.
    """

    def first_prompt() -> list[Rehearsal]:
        """The first prompt, as the policy is asked; others that its chat template refuses fail one by one."""
        source, system = settings.prompts, settings.policy.system if settings.policy is not None else None
        first = read_prompts(source.path, column=source.column, responses=source.responses, limit=1)
        return rehearsals(first, system)

    policy = None
    if settings.policy is not None:
        draws = bool({"sample", "revise"} & set(stages))
        policy = LazyModel(
            settings.policy, log=settings.folder / "policy.log", say=say, asked=draws, rehearsals=first_prompt
        )  # fmt: skip
    logs = ["judge.log", *(f"judge-{number}.log" for number in range(2, len(settings.judges) + 1))]
    judged = bool({"revise", "critique", "compare"} & set(stages))
    judges = [
        LazyModel(judge, log=settings.folder / log, labels=LABELS, say=say, asked=judged)
        for judge, log in zip(settings.judges, logs, strict=True)
    ]
    if settings.panel:
        require_different([judge.name for judge in judges])
    try:
        yield Models(policy, judges[0], tuple(judges[1:]))
    finally:
        for source in (policy, *judges):
            if source is not None:
                await source.close()


def require_different(names: Sequence[str]) -> None:
    """Raise UserError where two judges have one identity, such as two copies of the same weights in two folders of one
    name: the answers of one would count twice."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        problem = f"two judges of the panel are the same model, {twice[0]}"
        raise UserError(problem, where="judge", hint="remove one of them, and give the other its weight")


def find_slots(run: Run) -> dict[str, PositionBias]:
    """Estimate every judge's bias from its answers on disk to the questions of this run, and let the run's votes be
    corrected by it; nothing where nothing is to be removed, and where grades or rankings decide."""

    def judgements(judge: str) -> Iterator[list[Judgement | None]]:
        for prompt in run.prompts():
            pairings = run.matchups_of(prompt, run.samples_of(prompt))
            yield [run.judgements.get(question.id) for question in run.compare_questions_of(prompt, pairings, judge)]

    estimates = {}
    if removes_bias(run.settings.compare) and run.settings.compare.method in ("pairwise", "tournament"):
        min_mass = run.settings.pair.min_label_mass
        estimates = {name: position_bias(judgements(name), min_mass=min_mass) for name, _ in run.judges}
    run.slots = {name: bias.removed for name, bias in estimates.items()}
    return estimates
