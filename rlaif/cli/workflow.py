"""`rlaif run`: generate, train, evaluate and report from one run file; `rlaif report`: a folder as one HTML page."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rlaif.cli.flags import COMMON, run_options
from rlaif.cli.options import SettingsCommand
from rlaif.cli.render import show_report
from rlaif.cli.terminal import echo, print_table, secho
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

    DIR is a run folder, or that of a training or an evaluation. What lies up to two levels below it is told too:
    trainings with their curves, evaluations of policies, reward models and judges. The page of an unfinished run says
    so, and what is missing is named with the command that makes it. Nothing is asked of any model.
    """
    from rlaif.report.page import write_page

    with show_rows(str(folder)) as progress:
        path = write_page(folder, progress)
    echo(f"Report in {path} ({path.stat().st_size / 1e6:.1f} MB)")


class Screen:
    """Shows the loop on standard error: a heading a stage, and its progress below."""

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
    "sections `train` and `evaluate` are set in the file alone.",
)
@run_options
def run(run_file: Path, flags: dict[tuple[str, ...], str]) -> None:
    """The whole loop: generate the data, train on them, evaluate the policies, write the report.

    RUN.yaml is the file of `rlaif generate` with two sections more. `train:` names trainings, each with the settings of
    `rlaif train`; `evaluate:` says on which prompts and by which judge the trained policies are compared with the one
    that they started from. The same command goes on after an interrupt, and after a change it does anew only what the
    change touches.
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
    """What the loop has come to: the models, how the policies compare, where everything is."""
    echo()
    for name, folder in done.trained.items():
        echo(f"Model of `{name}` in {folder}")
    if done.policies is not None:
        echo()
        show_policies(done.policies)
    for name, found in done.rewards.items():
        echo()
        show_reward(name, found)
    if done.page is not None:
        echo(f"\nReport in {done.page}")


def show_policies(report: PolicyReport) -> None:
    """The policies beside each other, a column each, the one that they started from first."""
    policies = sorted(report.policies, key=lambda each: each.name != report.baseline)
    print_table(
        ["", *(policy.name for policy in policies)], _rows(report, policies), right=[each.name for each in policies]
    )
    about = report.about
    echo(
        f"\nAgainst `{report.baseline}` on {about.prompt_count:,} prompts by {about.judge}; 95% intervals over "
        "prompts, KL in nats an answer, length in characters"
    )
    for warning in report.warnings:
        echo(f"note: {warning}")


def show_reward(name: str, report: RewardReport) -> None:
    """A reward model in a few lines."""
    gold, best = report.gold, report.best_of_n
    if gold is not None and gold.accuracy is not None:
        told = f", {100 * gold.gain.value:+.1f} points over the best baseline" if gold.gain is not None else ""
        echo(f"Reward model `{name}`: right in {gold.accuracy} of {gold.pairs:,} pairs{told}")
    if best is not None:
        first, last = best.points[0], best.points[-1]
        over = ", and falls after that" if best.overoptimised else ""
        echo(
            f"Reward model `{name}`: the best of {last.n} by it has {best.measure} {last.gold.value:.2f}, any one "
            f"{first.gold.value:.2f}; it is highest at n = {best.best_n}{over}"
        )
    for warning in report.warnings:
        echo(f"note: {warning}")


def _rows(report: PolicyReport, policies: Sequence[PolicyMetrics]) -> Iterator[list[str]]:
    """A line a measure, as far as any policy has it."""
    against = {match.policy: match for match in report.matches if match.baseline == report.baseline}
    met = [against.get(policy.name) for policy in policies]
    yield ["better", *(_cell(match.wins if match else None) for match in met)]
    yield ["worse", *(_cell(match.losses if match else None) for match in met)]
    yield ["win rate", *(_cell(match.win_rate if match else None) for match in met)]
    yield ["preference", *(_cell(match.preference if match else None) for match in met)]
    yield ["  at equal length", *(_controlled(match) for match in met)]
    for name in dict.fromkeys(name for policy in policies for name in policy.metrics):
        own = [policy.metrics.get(name) for policy in policies]
        if all(found is None or 0 <= found.low <= found.high <= 1 for found in own):
            yield [name, *map(_cell, own)]
        else:
            yield [name, *map(_number, own)]
            yield ["  win rate by it", *(_cell(match.metrics.get(name) if match else None) for match in met)]
    if any(policy.violations for policy in policies):
        yield ["faulty (judge)", *(_cell(_broken(policy)) for policy in policies)]
    if any(policy.kl for policy in policies):
        yield ["KL, nats", *("" if each.kl is None else f"{each.kl.value:.1f}" for each in policies)]
    yield ["length", *(f"{policy.length.value:.0f}" for policy in policies)]


def _broken(policy: PolicyMetrics) -> Estimate | None:
    return next((each.share for each in policy.violations if each.principle == "*"), None)


def _controlled(match: Match | None) -> str:
    return "" if match is None else "withheld" if match.length_controlled is None else _cell(match.length_controlled)


def _cell(found: Estimate | None) -> str:
    """A share in percent with its interval."""
    return "" if found is None else f"{found.value:.1%} ({100 * found.low:.0f}-{100 * found.high:.0f})"


def _number(found: Estimate | None) -> str:
    """Any number with its interval."""
    return "" if found is None else f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"
