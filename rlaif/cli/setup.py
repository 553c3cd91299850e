"""`rlaif init` makes a folder to start from; `rlaif check` reports every problem of a run file at once."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rlaif.cli.generate import warn_of_same_family
from rlaif.cli.options import COMMON, SettingsCommand, run_options
from rlaif.cli.terminal import echo, secho
from rlaif.config.run_file import Flags, load_run, read_run
from rlaif.config.schemas import JudgeSettings, PolicySettings, RunSettings
from rlaif.errors import RlaifError, UserError
from rlaif.store import resource
from rlaif.workflow.plan import plan_problems

if TYPE_CHECKING:
    from rlaif.constitution import Principle
    from rlaif.inference.models import LazyModel
    from rlaif.records import Prompt


_RUN_FILE = """\
# Run it with:  rlaif check run.yaml;  rlaif preview run.yaml -n 3;  rlaif generate run.yaml
# Every key is also a flag: `rlaif generate --help` explains each.

constitution: constitution.yaml   # yours to edit; `harmless` and others ship with the package
prompts: prompts.jsonl            # JSONL with `prompt` or `messages`, text, CSV, Parquet, or a datasets name

# The policy: the model that is trained. With base_url it runs on a server; without, in process.
policy:
  model: demo-policy              # a tiny offline model; for real work a hub name such as Qwen/Qwen3-0.6B
  samples: 4
  temperature: 1.0
  max_tokens: 128

# The judge. A real one on vLLM:  {model: Qwen/Qwen3-8B, base_url: http://127.0.0.1:8000/v1}
# started for the run by rlaif:   {model: Qwen/Qwen3-8B, launch: vllm}
# a hosted one:                   {model: NAME, base_url: https://HOST/v1, api_key_env: JUDGE_KEY}
judge:
  model: demo-judge

compare:
  principles: one                 # one random principle per pair | each, on its own | all, in one prompt
  orders: both                    # every pair is judged in both orders

pair:
  select: best_worst              # best_worst | all | revised
  margin: 0.05                    # closer to one half than this is a tie
  flips: drop                     # drop | soft

revise:                           # for `rlaif revise`; `enabled: true` does it in `generate` too
  rounds: 2                       # critique and revision, up to 4 times; each round samples a principle
  temperature: 0.3
  max_tokens: 128

output: runs/{name}
"""


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--constitution", default="demo", show_default=True, help="Shipped constitution to start from.")
def init(folder: Path, constitution: str) -> None:
    """Create FOLDER with a run file, a constitution and a few prompts; it runs without changes, on the toy models."""
    from rlaif.constitution import find_constitution
    from rlaif.constitution.model import SCHEMA_FILE

    source = find_constitution(constitution)
    prompts = "demo" if constitution == "demo" else "everyday"
    files = {
        "constitution.yaml": source,
        "prompts.jsonl": resource("prompts") / "policy" / f"{prompts}.jsonl",
    }
    for name in ("run.yaml", *files):
        if (folder / name).exists():
            raise UserError("already there", where=folder / name, hint="choose another folder, or move it away")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, path in files.items():
            shutil.copyfile(path, folder / name)
        if not (folder / SCHEMA_FILE).exists():  # for editors: the constitution's first line points to it
            shutil.copyfile(resource("constitutions") / SCHEMA_FILE, folder / SCHEMA_FILE)
        name = re.sub(r"[^\w.-]", "-", folder.resolve().name)
        (folder / "run.yaml").write_text(_RUN_FILE.replace("{name}", name), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write: {error.strerror}", where=folder, hint="choose another folder") from error
    made = "run.yaml, constitution.yaml (with its schema) and prompts.jsonl"
    echo(f"Made {folder}/{made}. Next: rlaif generate {folder}/run.yaml")


@click.command(cls=SettingsCommand, common=COMMON)
@click.option("--offline", is_flag=True, help="Do not probe the models.")
@run_options
def check(run_file: Path, flags: Flags, offline: bool) -> None:
    """Report every problem of the settings, the constitution, the prompts and the models.

    The check stores nothing. It sends a probe to each model on a server, and nothing else.

    Exit codes: 0 no problems, 1 only a judge that would give no labels, 2 any other problem.
    """
    problems: list[RlaifError] = list(plan_problems(run_file, flags))
    if not problems:
        settings = load_run(run_file, flags)
        problems += _output_problems(settings, run_file, flags)
        problems += _constitution_problems(settings)
        kinds: dict[tuple[str, ...], Prompt] = {}
        problems += _prompt_problems(settings, kinds)
        problems += _helpful_problems(settings)
        templates = _template_problems(settings)
        problems += templates
        warn_of_same_family(settings)
        if not problems:
            _warn_of_toys(settings)
        if not offline:
            problems += asyncio.run(_model_problems(settings, kinds.values(), measured=not templates))
    for problem in problems:
        echo(str(problem), err=True)
    if problems:
        echo(f"{len(problems)} problem{'s' if len(problems) > 1 else ''}; nothing was stored", err=True)
        raise SystemExit(1 if all(isinstance(problem, _NoLabelsError) for problem in problems) else 2)
    echo("No problems.")


class _NoLabelsError(RlaifError):
    """A judge that responds, but would give no labels."""


def _output_problems(settings: RunSettings, run_file: Path, flags: Flags) -> list[UserError]:
    from rlaif.store import require_writable

    try:
        require_writable(settings.folder)
    except UserError as error:
        where, line = read_run(run_file, flags).place(("output",))
        return [UserError(f"{settings.output}: {error.what}", where=where, line=line, hint=error.hint)]
    return []


def _constitution_problems(settings: RunSettings) -> list[UserError]:
    from rlaif.constitution import constitution_problems, load_constitution
    from rlaif.feedback.critique import require_critiques
    from rlaif.feedback.revise import reviser_principles

    problems = constitution_problems(settings.constitution)
    if not problems:
        constitution = load_constitution(settings.constitution)
        echo(f"constitution: {constitution.name}, {len(constitution.principles)} principles")
        try:
            if settings.writes_critiques:
                require_critiques(settings, constitution)
            if settings.revise.enabled:
                sampled = reviser_principles(constitution, settings)
                left_out = [each.id for each in constitution.principles if each not in sampled]
                if left_out:
                    echo(f"note: no round of `revise` can use {', '.join(left_out)}, which lack the texts for it")
                for note in _revise_notes(settings, sampled):
                    echo(f"note: {note}")
        except UserError as error:
            problems = [error]
    return problems


def _prompt_problems(settings: RunSettings, kinds: dict[tuple[str, ...], Prompt]) -> list[UserError]:
    """The problems of the prompts; `kinds` gets the first prompt of each kind by its roles."""
    from rlaif.data.prompts import InputIssues, read_prompts

    wanted, input_issues = settings.prompts, InputIssues()
    count = given = 0
    try:
        for prompt in read_prompts(
            wanted.path, column=wanted.column, responses=wanted.responses, limit=wanted.limit, input_issues=input_issues
        ):
            kinds.setdefault(tuple(message.role for message in prompt.messages), prompt)
            count += 1
            given += len(prompt.responses)
    except UserError as error:
        return [error]
    echo(f"prompts: {count:,}" + (f" with {given:,} responses" if given else ""))
    if input_issues.counts:
        echo(f"note: in the prompts, {input_issues}")
    if settings.policy is None and not given:
        hint = "set `policy`, or name the column of the responses in `prompts.responses`"
        return [UserError("no `policy`, and no responses in the input", where=wanted.path, hint=hint)]
    return []


def _revise_notes(settings: RunSettings, sampled: Sequence[Principle]) -> Iterator[str]:
    """Notes on settings of the revise stage that have less effect than they seem to have."""
    revise, policy = settings.revise, settings.policy
    solved = [case for each in sampled for case in each.examples if revise.skip_critique or case.why]
    if revise.shots and not solved:
        why = "" if revise.skip_critique else " with a `why`"
        yield f"`revise.shots` shows nothing: no principle has an example{why}"
    if policy is not None and settings.prompts.responses is None and revise.samples > policy.samples:
        yield f"`revise.samples` is {revise.samples}, and {policy.samples} are sampled"
    if settings.pair.select == "revised" and settings.prompts.responses is None:
        yield "`pair.select: revised` is for existing responses; the revise stage has its pairs in revised_pairs.jsonl"


def _helpful_problems(settings: RunSettings) -> list[UserError]:
    from rlaif.feedback.revise import helpful_demonstrations

    try:
        count = sum(1 for _ in helpful_demonstrations(settings))
    except UserError as error:
        return [error]
    if count:
        echo(f"helpful responses for the SFT dataset: {count:,}")
    return []


def _doubts(role: str, source: LazyModel, settings: RunSettings, mass: float | None) -> list[RlaifError]:
    """Why a judge would give no labels: by the label mass of a trial comparison, else by the probe. A chain-of-thought
    judge is not checked."""
    compare, least = settings.compare, settings.pair.min_label_mass
    if source.capabilities is None or compare.reasoning == "reply" or compare.method == "rank":
        return []
    if mass is not None and mass >= least:
        return []
    doubt = source.capabilities.doubt(least)
    if doubt is None and mass is not None:
        doubt = f"A and B have a share of {mass:.1%} in a trial comparison, and less than {least:g} is no label"
    return [] if doubt is None else [_NoLabelsError(f"{role}: {doubt}")]


def _warn_of_toys(settings: RunSettings) -> None:
    """A warning on standard error if the demo's judge would judge prompts or principles outside of its toy world."""
    from rlaif.constitution import load_constitution
    from rlaif.data.prompts import InputIssues, read_prompts
    from rlaif.demo.oracle import is_toy, outside_its_world

    wanted = settings.prompts
    for judge in filter(is_toy, [each.model for each in settings.judges]):
        prompts = read_prompts(
            wanted.path,
            column=wanted.column,
            responses=wanted.responses,
            limit=wanted.limit,
            input_issues=InputIssues(),
        )
        if (warning := outside_its_world(judge, load_constitution(settings.constitution), prompts)) is not None:
            secho(f"WARNING: {warning}", err=True, bold=True)


def _template_problems(settings: RunSettings) -> list[RlaifError]:
    from rlaif.config.judge_templates import load_templates, template_notes, template_problems

    problems: list[RlaifError] = []
    for folder in dict.fromkeys(each.templates for each in settings.judges if each.templates is not None):
        of_folder = template_problems(folder)
        problems += of_folder
        for note in () if of_folder else template_notes(load_templates(folder)):
            echo(f"note: {note}")
    return problems


async def _show_form(role: str, source: LazyModel, judge: JudgeSettings, settings: RunSettings) -> float | None:
    """Measure the prompt forms for this judge and show the one that a run takes. Returns its label mass; None where
    none is measured."""
    from rlaif.config.judge_templates import load_templates
    from rlaif.feedback.judge import Chosen, Forms, best, candidates, tried_forms

    templates, compare = load_templates(judge.templates), settings.compare
    if compare.method in ("score", "rank") or compare.reasoning != "none":
        return None
    known = Forms(settings.folder).of(source.name, compare, templates)
    if known is not None and known.tried:
        echo(f"{role}: form of asking, as this run was begun: {known}")
        return known.label_mass
    tried = await tried_forms(await source.open(), templates, candidates(compare, templates))
    chosen = Chosen(judge=source.name, key="", form=best(tried), tried=tuple(tried))
    echo(f"{role}: form of asking: {chosen}")
    return chosen.label_mass


async def _model_problems(settings: RunSettings, prompts: Iterable[Prompt], *, measured: bool) -> list[RlaifError]:
    from rlaif.feedback.prompts import LABELS
    from rlaif.feedback.run import require_different
    from rlaif.feedback.sampling import rehearsals
    from rlaif.inference.models import LazyModel

    problems: list[RlaifError] = []
    names: list[str] = []
    judges = [(f"judge {at}" if at > 1 else "judge", each) for at, each in enumerate(settings.judges, start=1)]
    for role, model in (("policy", settings.policy), *judges):
        if model is None:
            continue
        if model.launch is not None:
            echo(f"{role}: {model.model}, not probed (a run starts its server)")
            continue
        try:
            if isinstance(model, PolicySettings):
                written = partial(rehearsals, list(prompts), model.system)
                source = LazyModel(model, log=Path(f"{role}.log"), rehearsals=written)
            else:
                source = LazyModel(model, labels=LABELS, log=Path(f"{role}.log"))
        except UserError as error:
            problems.append(error)
            continue
        try:
            wrong = [UserError(problem, where=role) for problem in await source.probe()]
            problems += wrong
            echo(f"{role}: {source.name}{f', {source.described}' if source.described else ''}")
            for note in source.notes:
                echo(f"note: {role}: {note}")
            names += [source.name] if role != "policy" else []
            if isinstance(model, JudgeSettings) and not wrong:
                mass = await _show_form(role, source, model, settings) if measured else None
                problems += _doubts(role, source, settings, mass)
        except RlaifError as error:
            problems.append(error)
        finally:
            await source.close()
    try:
        require_different(names)
    except UserError as error:
        problems.append(error)
    return problems
