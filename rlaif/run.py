"""A run folder: its tables, and the plan that its settings make of its prompts.

What each file holds: `run.yaml` the resolved settings, `prompts.jsonl` the prompts as read, `samples.jsonl`,
`critiques.jsonl`, `judgements.jsonl` the answers of the models (append-only, never edited), `failures.jsonl` questions
without an answer; derived by `rlaif.outcome`: `rankings.jsonl`, `pairs.jsonl`, `pairs.parquet` and `manifest.json`.

Plans are recomputed, not stored: the question behind every stored answer is rebuilt from prompts, samples, constitution
and settings, and its hash finds the answer. So only answers to the questions of *these* settings ever count.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rlaif.comparisons.plan import Notes, compare_questions
from rlaif.constitution import Constitution, load_constitution
from rlaif.critiques.plan import critique_question, critique_questions
from rlaif.errors import UserError
from rlaif.inference.base import Question
from rlaif.records import Critique, Failure, Judgement, Prompt, Sample
from rlaif.runfile import save_run
from rlaif.samples.inputs import Oddities, read_prompts
from rlaif.samples.meetings import Criterion, Meeting, criteria_of, meetings
from rlaif.samples.plan import given_samples, sample_questions
from rlaif.settings import RunSettings
from rlaif.store import Table, lock_folder, read_records, write_records


@dataclass
class Run:
    """An open run folder, locked for this process."""

    settings: RunSettings
    constitution: Constitution
    folder: Path
    samples: Table[Sample]
    critiques: Table[Critique]
    judgements: Table[Judgement]
    failures: Table[Failure]
    policy_name: str | None
    """Identity of the policy; None where all answers are given."""
    judge_name: str
    oddities: Oddities = field(default_factory=Oddities)
    """What was odd about the prompts, by kind."""
    prompt_count: int = 0
    most_meetings: int = 0
    """Pairs of samples that meet if all answers of a prompt differ."""

    @property
    def tables(self) -> tuple[Table[Sample], Table[Critique], Table[Judgement], Table[Failure]]:
        """The four journals."""
        return self.samples, self.critiques, self.judgements, self.failures

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        """What pairs are judged by."""
        return criteria_of(self.constitution, self.settings.compare.principles)

    def read_prompts(self) -> None:
        """Read the input into `prompts.jsonl`: the plan that the stages of this run go through."""
        wanted = self.settings.prompts
        keep_given = wanted.responses is not None or self.settings.policy is None
        found = read_prompts(
            wanted.path, column=wanted.column, responses=wanted.responses, limit=wanted.limit, oddities=self.oddities
        )
        prompts = found if keep_given else (prompt.model_copy(update={"responses": ()}) for prompt in found)
        self.prompt_count = write_records(self.folder / "prompts.jsonl", self._counted(prompts))

    def _counted(self, prompts: Iterator[Prompt]) -> Iterator[Prompt]:
        drawn = self.settings.policy.samples if self.settings.policy else 0
        opponents = self.settings.compare.opponents
        for prompt in prompts:
            self.most_meetings += sum(min(at, opponents) for at in range(drawn + len(prompt.responses)))
            yield prompt

    @property
    def most_comparisons(self) -> int:
        """Questions of the compare stage if all answers of a prompt differ."""
        compare = self.settings.compare
        orders = 2 if compare.orders == "both" else 1
        return self.most_meetings * orders * (len(self.criteria) if compare.principles == "each" else 1)

    def prompts(self) -> Iterator[Prompt]:
        """The prompts of the plan, streamed."""
        return read_records(self.folder / "prompts.jsonl", Prompt)

    def sample_questions(self) -> Iterator[Question]:
        """Every question of the sample stage."""
        for prompt in self.prompts():
            yield from self.drawn_questions(prompt)

    def drawn_questions(self, prompt: Prompt) -> list[Question]:
        """The questions that draw one prompt's samples."""
        policy = self.settings.policy
        return [] if policy is None or self.policy_name is None else sample_questions(prompt, policy, self.policy_name)

    def samples_of(self, prompt: Prompt) -> list[Sample]:
        """The samples of a prompt that are on disk: the given ones, then the drawn ones, by index."""
        drawn = (self.samples.get(question.id) for question in self.drawn_questions(prompt))
        return [*given_samples(prompt), *(sample for sample in drawn if sample is not None)]

    def meetings_of(self, samples: list[Sample]) -> list[Meeting]:
        """Which of a prompt's samples meet, and under which criteria."""
        return meetings(samples, self.criteria, self.settings.compare)

    def critique_questions(self) -> Iterator[Question]:
        """Every question of the critique stage, as far as there are samples."""
        for prompt in self.prompts():
            met = self.meetings_of(self.samples_of(prompt))
            chars = self.settings.compare.max_chars
            yield from critique_questions(prompt, met, self.settings.critique, self.judge_name, max_chars=chars)

    def compare_questions(self) -> Iterator[Question]:
        """Every question of the compare stage, as far as there are samples (and critiques, where they are shown)."""
        for prompt in self.prompts():
            yield from self.compare_questions_of(prompt, self.meetings_of(self.samples_of(prompt)))

    def compare_questions_of(self, prompt: Prompt, met: list[Meeting]) -> list[Question]:
        """The ordered questions of one prompt."""
        compare = self.settings.compare
        notes = self._notes(prompt) if compare.critique else None
        return list(compare_questions(prompt, met, compare, self.judge_name, notes))

    def _notes(self, prompt: Prompt) -> Notes:
        settings, chars = self.settings.critique, self.settings.compare.max_chars
        known: dict[tuple[str, str], str | None] = {}

        def notes(sample: Sample, criterion: Criterion) -> str | None:
            key = (sample.id, criterion.id)
            if key not in known:
                question = critique_question(prompt, sample, criterion, settings, self.judge_name, max_chars=chars)
                critique = self.critiques.get(question.id)
                known[key] = None if critique is None else critique.text
            return known[key]

        return notes

    def unfinish(self) -> None:
        """Take the manifest away: its presence means that the run is finished."""
        (self.folder / "manifest.json").unlink(missing_ok=True)


@contextlib.contextmanager
def open_run(settings: RunSettings, policy_name: str | None, judge_name: str) -> Iterator[Run]:
    """Lock and open the run folder of `settings`, and save the settings in it.

    Raises UserError where another process writes there, or where the folder cannot be written.
    """
    constitution = load_constitution(settings.constitution)
    folder = settings.folder
    with lock_folder(folder), contextlib.ExitStack() as stack:

        def table(name: str, record: type) -> Table:  # type: ignore[type-arg]
            opened: Table = Table(folder / name, record)  # type: ignore[type-arg]
            stack.callback(opened.close)
            return opened

        save_run(settings, folder / "run.yaml")
        yield Run(
            settings,
            constitution,
            folder,
            samples=table("samples.jsonl", Sample),
            critiques=table("critiques.jsonl", Critique),
            judgements=table("judgements.jsonl", Judgement),
            failures=table("failures.jsonl", Failure),
            policy_name=policy_name,
            judge_name=judge_name,
        )


def require_critiques(settings: RunSettings, constitution: Constitution) -> None:
    """Raise UserError where a principle has no request for the critiques that are to be written under it."""
    for principle in constitution.principles:
        if principle.critique is None:
            raise UserError(
                f"principle `{principle.id}` has no `critique`, which this run asks for",
                where=settings.constitution,
                mend="write one, or set `compare.critique` and `critique.enabled` to false",
            )
