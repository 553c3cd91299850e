"""A run folder: who made it, its tables, its models, and the plan that its settings make of its prompts.

Who made a finished run: what its manifest says of policy, judge and constitution.

The models of a run, each started when its first answer is wanted: the policy, and one judge or a panel of them.

A run folder: its tables, and the plan that its settings make of its prompts.

What each file holds: `run.yaml` the resolved settings, `prompts.jsonl` the prompts as read, `samples.jsonl`,
`critiques.jsonl`, `revisions.jsonl`, `judgements.jsonl` the answers of the models (append-only, never edited),
`failures.jsonl` questions without an answer, `asking.json` the form that each judge is asked in; derived by
`rlaif.feedback.dataset`: `rankings.jsonl`, `pairs.jsonl`, `pairs.parquet` and `manifest.json`.

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
from rlaif.feedback.aggregate import Vote
from rlaif.feedback.critique import critique_questions, notes_on
from rlaif.feedback.judge import Notes, compare_questions, votes
from rlaif.feedback.matchups import Criterion, Matchup, criteria_of, distinct_samples, matchups
from rlaif.feedback.prompt_forms import Forms
from rlaif.feedback.prompts import LABELS
from rlaif.feedback.sampling import given_samples, rehearsals, sample_questions
from rlaif.feedback.scoring import FINALISTS, finalists, score_question
from rlaif.inference.base import ModelSource, Question, Rehearsal
from rlaif.inference.models import LazyModel
from rlaif.records import Critique, Failure, Judgement, Order, Prompt, Revision, Sample, Score
from rlaif.store import Table, draft_of, lock_folder, read_records, sha256_of, write_records
from rlaif.text import loads


class RunProvenance(NamedTuple):
    """What the manifest of a finished run says that it was made with."""

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
        known = (folder / "run.yaml").is_file()
        hint = f"`rlaif generate {folder / 'run.yaml'}` goes on with it" if known else "give a folder that a run wrote"
        raise UserError("there is no finished run here", where=folder, hint=hint) from None
    except (ValueError, KeyError, TypeError):
        hint = f"`rlaif pair {folder / 'run.yaml'}` writes it again"
        raise UserError("this is not the manifest of a run", where=path, hint=hint) from None


class Models(NamedTuple):
    """Who answers the questions of a run."""

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
    policy = None
    if settings.policy is not None:
        draws = bool({"sample", "revise"} & set(stages))
        policy = LazyModel(
            settings.policy, log=settings.folder / "policy.log", say=say, asked=draws,
            rehearsals=lambda: _rehearsals(settings),
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


def _rehearsals(settings: RunSettings) -> list[Rehearsal]:
    """The first prompt, as the policy is asked; others that its chat template refuses fail one by one."""
    wanted, system = settings.prompts, settings.policy.system if settings.policy is not None else None
    first = read_prompts(wanted.path, column=wanted.column, responses=wanted.responses, limit=1)
    return rehearsals(first, system)


def require_different(names: Sequence[str]) -> None:
    """Raise UserError where two judges have one identity, such as two copies of the same weights in one-named folders:
    the answers of one would count twice."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        what = f"two judges of the panel are the same model, {twice[0]}"
        raise UserError(what, where="judge", hint="remove one of them, and give the other its weight")


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
    """What was odd about the prompts, by kind."""
    prompt_count: int = 0
    max_matchups: int = 0
    """Pairs of samples that meet if all answers of a prompt differ."""
    warnings: tuple[str, ...] = ()
    """What speaks against believing the labels, for the manifest."""
    _asked: dict[str, Judge] = field(default_factory=dict)
    slots: dict[str, float] = field(default_factory=dict)
    """By judge, what is taken off the log-odds of the first slot (see `rlaif.feedback.position_bias`)."""

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
        return self.asked(self.judge_name)

    def asked(self, name: str) -> Judge:
        """One of the judges, as it is asked: in its own words, and in the form that was chosen for it here; in the
        plain form until there is one. Raises UserError where its templates have a mistake."""
        if name not in self._asked:
            self.ask_as(name, Forms(self.folder))
        return self._asked[name]

    def ask_as(self, name: str, forms: Forms) -> None:
        """Ask a judge in the form that `forms` holds for it from now on."""
        templates = load_templates(dict(self.judges)[name].templates)
        chosen = forms.of(name, self.settings.compare, templates)
        self._asked[name] = Judge(name, templates, PLAIN if chosen is None else chosen.form)

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        """What pairs are judged by."""
        return criteria_of(self.constitution, self.settings.compare.principles)

    def read_prompts(self, others: Callable[[], None] = lambda: None) -> None:
        """Read the input into `prompts.jsonl`: the plan that the stages of this run go through.

        Where it holds other prompts than before, `others` is called before they take their place. Raises UserError for
        a mistake in the input; then nothing has changed.
        """
        path = self.folder / "prompts.jsonl"
        wanted = self.settings.prompts
        keep_given = wanted.responses is not None or self.settings.policy is None
        found = read_prompts(
            wanted.path,
            column=wanted.column,
            responses=wanted.responses,
            limit=wanted.limit,
            input_issues=self.input_issues,
        )
        prompts = found if keep_given else (prompt.model_copy(update={"responses": ()}) for prompt in found)
        with draft_of(path) as draft:
            self.prompt_count = write_records(draft, self._counted(prompts))
            if not path.exists() or sha256_of(draft) != sha256_of(path):
                others()

    def _counted(self, prompts: Iterator[Prompt]) -> Iterator[Prompt]:
        drawn = self.settings.policy.samples if self.settings.policy else 0
        opponents = self.settings.compare.opponents
        for prompt in prompts:
            self.max_matchups += sum(min(at, opponents) for at in range(drawn + len(prompt.responses)))
            yield prompt

    @property
    def max_comparisons(self) -> int:
        """Questions of the compare stage if all answers of a prompt differ."""
        compare = self.settings.compare
        orders = 2 if compare.orders == "both" else 1
        return self.max_matchups * orders * (len(self.criteria) if compare.principles == "each" else 1)

    def prompts(self) -> Iterator[Prompt]:
        """The prompts of the plan, streamed."""
        return read_records(self.folder / "prompts.jsonl", Prompt)

    def sample_questions(self, most: int | None = None) -> Iterator[Question]:
        """Every question of the sample stage, or those that bring each prompt to `most` answers, given ones counted."""
        for prompt in self.prompts():
            yield from self.drawn_questions(prompt, most)

    def drawn_questions(self, prompt: Prompt, most: int | None = None) -> list[Question]:
        """The questions that draw one prompt's samples, or only those that bring it to `most` answers."""
        policy = self.settings.policy
        if policy is None or self.policy_name is None:
            return []
        if most is not None:
            wanted = max(0, min(policy.samples, most - len(prompt.responses)))
            policy = policy.model_copy(update={"samples": wanted})
        return sample_questions(prompt, policy, self.policy_name)

    def samples_of(self, prompt: Prompt, most: int | None = None) -> list[Sample]:
        """The (first `most`) samples of a prompt that are on disk: the given ones, then the drawn ones, by index."""
        drawn = (self.samples.get(question.id) for question in self.drawn_questions(prompt, most))
        return [*given_samples(prompt), *(sample for sample in drawn if sample is not None)][:most]

    def matchups_of(self, prompt: Prompt, samples: list[Sample]) -> list[Matchup]:
        """Which of a prompt's samples meet, and under which criteria."""
        if self.settings.compare.method == "tournament":
            samples = finalists(distinct_samples(samples), lambda each: self.scores.get(self._final(prompt, each).id))
        return matchups(samples, self.criteria, self.settings.compare)

    def final_questions(self, prompt: Prompt, samples: list[Sample]) -> list[Question]:
        """The grades by which a tournament chooses its finalists; none where all can meet."""
        distinct = distinct_samples(samples)
        return [self._final(prompt, each) for each in distinct] if len(distinct) > 2 * FINALISTS else []

    def _final(self, prompt: Prompt, sample: Sample) -> Question:
        return self.score_question(prompt, sample, criteria_of(self.constitution, "all")[0])

    def score_question(self, prompt: Prompt, sample: Sample, criterion: Criterion) -> Question:
        """The question behind the grade of one sample."""
        return score_question(prompt, sample, criterion, self.judge, max_chars=self.settings.compare.max_chars)

    def critique_questions(self) -> Iterator[Question]:
        """Every question of the critique stage, as far as there are samples."""
        for prompt in self.prompts():
            yield from self.critique_questions_of(prompt, self.matchups_of(prompt, self.samples_of(prompt)))

    def critique_questions_of(self, prompt: Prompt, met: list[Matchup]) -> list[Question]:
        """The critiques of one prompt's samples, each once."""
        chars = self.settings.compare.max_chars
        return critique_questions(prompt, met, self.settings.critique, self.judge, max_chars=chars)

    def compare_questions(self, judge: str | None = None) -> Iterator[Question]:
        """The compare stage's questions to a judge (or the first) as far as there are samples (and critiques shown)."""
        for prompt in self.prompts():
            yield from self.compare_questions_of(prompt, self.matchups_of(prompt, self.samples_of(prompt)), judge)

    def compare_questions_of(self, prompt: Prompt, met: list[Matchup], judge: str | None = None) -> list[Question]:
        """The ordered questions of one prompt to a judge, or to the first; the judges of a panel read the same."""
        compare = self.settings.compare
        notes = self._notes(prompt) if compare.critique else None
        return list(compare_questions(prompt, met, compare, self.asked(judge or self.judge_name), notes))

    def votes_of(self, prompt: Prompt, met: list[Matchup]) -> Iterator[tuple[Matchup, list[Vote]]]:
        """What the (first) judge's answers on disk say about each of a prompt's matchups."""
        compare, slot = self.settings.compared_by(self.settings.judge), self.slots.get(self.judge_name, 0.0)
        return votes(met, self.compare_questions_of(prompt, met), self.judgements.get, compare, slot=slot)

    def under(self, constitution: Constitution) -> Run:
        """The same prompts and tables, planned under another constitution."""
        return replace(self, constitution=constitution)

    def _notes(self, prompt: Prompt) -> Notes:
        settings, chars = self.settings.critique, self.settings.compare.max_chars
        return notes_on(prompt, self.critiques.get, settings, self.judge, max_chars=chars)

    def save_settings(self) -> None:
        """Save the settings that this run goes by."""
        save_run(self.settings, self.folder / "run.yaml")

    def invalidate_manifest(self, *manifests: str) -> None:
        """Take manifests away: their presence means that what they tell of is finished."""
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
        before = _saved_settings(saved)
        with _tables(settings, constitution, policy_name, judge_name) as run:
            run.before, run.panel_names = before, panel_names
            yield run


def _saved_settings(path: Path) -> RunSettings | None:
    try:
        return load_yaml(path, RunSettings)
    except UserError:
        return None


@contextlib.contextmanager
def reopen_run(folder: Path, constitution: Constitution | None = None) -> Iterator[Run]:
    """Lock and open a finished run as it stands: its settings and derived files are left alone, and no model is loaded.

    It is planned under `constitution`, or else under the file that its settings name, which may have changed since.
    """
    making = read_provenance(folder)
    settings = load_yaml(folder / "run.yaml", RunSettings).model_copy(update={"output": str(folder)})
    if settings.compare.method in ("score", "rank"):
        what = f"this run was judged by `{settings.compare.method}`, and this looks at pairs shown in both orders"
        raise UserError(what, where=folder, hint="generate it with `compare.method: pairwise` or `tournament`")
    if settings.panel:
        what = f"this run has a panel of {len(settings.judges)} judges, and this looks at one judge's answers"
        raise UserError(what, where=folder, hint="generate it with one `judge`: its answers are here already")
    planned = constitution or load_constitution(settings.constitution)
    with lock_folder(folder), _tables(settings, planned, making.policy, making.judge) as run:
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
