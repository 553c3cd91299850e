"""`rlaif run`: generate, train, evaluate and report from one run file; `rlaif report`: a folder as one HTML page."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rlaif.cli.generate import show_report
from rlaif.cli.options import COMMON, SettingsCommand, run_options
from rlaif.cli.terminal import echo, print_table, secho
from rlaif.config.run_file import Flags
from rlaif.progress import Progress, show_progress, show_rows

if TYPE_CHECKING:
    from rlaif.evaluation.reports import Match, PolicyMetrics, PolicyReport, RewardReport
    from rlaif.feedback.pipeline import Report
    from rlaif.progress import Progress
    from rlaif.stats import Estimate
    from rlaif.workflow.run import WorkflowResult


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def report(folder: Path) -> None:
    """Write DIR/report.html: one page that opens from disk, without a network.

    DIR is the folder of a run, a training or an evaluation. The page includes everything up to two levels below it:
    trainings with their curves, evaluations of policies, reward models and judges. The page of an unfinished run names
    each missing part with the command that makes it. No model is called.
    """
    from rlaif.report.page import write_page

    with show_rows(str(folder)) as progress:
        path = write_page(folder, progress)
    echo(f"Report in {path} ({path.stat().st_size / 1e6:.1f} MB)")


class Screen:
    """Shows the workflow on standard error: a heading per stage, and its progress below."""

    def stage(self, name: str) -> None:
        """A heading."""
        secho(f"\n{name}", err=True, bold=True)

    def note(self, text: str) -> None:
        """A line."""
        echo(text, err=True)

    def data(self, report: Report) -> None:
        """The counts of the data."""
        echo()
        show_report(report)

    def progress(self) -> AbstractContextManager[Progress]:
        """For a stage's questions, or a training."""
        return show_progress()


@click.command(
    cls=SettingsCommand,
    common=COMMON,
    epilog="A flag beats the environment (RLAIF_POLICY_SAMPLES for --policy-samples), which beats RUN.yaml; the "
    "sections `train` and `evaluate` are set only in the file.",
)
@run_options
def run(run_file: Path, flags: Flags) -> None:
    """Generate preference data, train on it, evaluate the policies and write the report.

    RUN.yaml is the file of `rlaif generate` with two more sections. `train:` lists trainings, each with the settings of
    `rlaif train`. `evaluate:` sets the prompts and the judge that compare the trained policies with the policy before
    training. The same command resumes after an interrupt, and after a change it re-runs only the affected steps.
    """
    from rlaif.cli.generate import warn_of_judges
    from rlaif.training.folder import leave_processes
    from rlaif.workflow.plan import load_plan
    from rlaif.workflow.run import run_workflow

    plan = load_plan(run_file, flags)
    warn_of_judges(run_file, plan.run)
    done = run_workflow(plan, Screen(), command=shlex.join(["rlaif", *sys.argv[1:]]))
    leave_processes()
    if done.stopped is not None:
        echo(f"Stopped in `train {done.stopped}`; the same command goes on from there.", err=True)
        raise SystemExit(130)
    show_loop(done)


def show_loop(done: WorkflowResult) -> None:
    """The result of the workflow: the models, how the policies compare, where the files are."""
    echo()
    for name, folder in done.trained.items():
        echo(f"Model of `{name}` in {folder}")
    if done.policies is not None:
        echo()
        show_policies(done.policies)
    for name, reward in done.rewards.items():
        echo()
        show_reward(name, reward)
    if done.page is not None:
        echo(f"\nReport in {done.page}")


def show_policies(report: PolicyReport) -> None:
    """The policies side by side, a column each, the baseline first."""
    policies = sorted(report.policies, key=lambda each: each.name != report.baseline)
    print_table(
        ["", *(policy.name for policy in policies)], _rows(report, policies), right=[each.name for each in policies]
    )
    about = report.about
    echo(
        f"\nAgainst `{report.baseline}` on {about.prompt_count:,} prompts by {about.judge}; 95% intervals over "
        "prompts, length in characters"
    )
    for warning in report.warnings:
        echo(f"note: {warning}")


def show_reward(name: str, report: RewardReport) -> None:
    """A reward model in a few lines."""
    gold, best = report.gold, report.best_of_n
    if gold is not None and gold.accuracy is not None:
        gain = f", {100 * gold.gain.value:+.1f} points over the best baseline" if gold.gain is not None else ""
        echo(f"Reward model `{name}`: right in {gold.accuracy} of {gold.pairs:,} pairs{gain}")
    if best is not None:
        first, last = best.points[0], best.points[-1]
        over = ", and falls after that" if best.overoptimised else ""
        echo(
            f"Reward model `{name}`: {best.measure} of best-of-{last.n} is {last.gold.value:.2f}, of a single response "
            f"{first.gold.value:.2f}; it is highest at n = {best.best_n}{over}"
        )
    for warning in report.warnings:
        echo(f"note: {warning}")


def _rows(report: PolicyReport, policies: Sequence[PolicyMetrics]) -> Iterator[list[str]]:
    """A row per metric that any policy has."""
    against = {match.policy: match for match in report.matches if match.baseline == report.baseline}
    matches = [against.get(policy.name) for policy in policies]
    yield ["better", *(_cell(match.wins if match else None) for match in matches)]
    yield ["worse", *(_cell(match.losses if match else None) for match in matches)]
    yield ["win rate", *(_cell(match.win_rate if match else None) for match in matches)]
    yield ["preference", *(_cell(match.preference if match else None) for match in matches)]
    yield ["length-controlled win rate", *(_controlled(match) for match in matches)]
    for name in dict.fromkeys(name for policy in policies for name in policy.metrics):
        values = [policy.metrics.get(name) for policy in policies]
        if all(value is None or 0 <= value.low <= value.high <= 1 for value in values):
            yield [name, *map(_cell, values)]
        else:
            yield [name, *map(_number, values)]
            yield ["  win rate by it", *(_cell(match.metrics.get(name) if match else None) for match in matches)]
    if any(policy.violations for policy in policies):
        yield ["violation rate (judge)", *(_cell(_violation_rate(policy)) for policy in policies)]
    if any(policy.kl for policy in policies):
        yield [
            "KL to base (nats per response)",
            *("" if each.kl is None else f"{each.kl.value:.1f}" for each in policies),
        ]
    yield ["length", *(f"{policy.length.value:.0f}" for policy in policies)]


def _violation_rate(policy: PolicyMetrics) -> Estimate | None:
    return next((each.share for each in policy.violations if each.principle == "*"), None)


def _controlled(match: Match | None) -> str:
    return "" if match is None else "withheld" if match.length_controlled is None else _cell(match.length_controlled)


def _cell(share: Estimate | None) -> str:
    """A share in percent with its interval."""
    return "" if share is None else f"{share.value:.1%} ({100 * share.low:.0f}-{100 * share.high:.0f})"


def _number(estimate: Estimate | None) -> str:
    """Any number with its interval."""
    return "" if estimate is None else f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"
