"""`rlaif demo`: the whole workflow on the toy benchmark, whose oracle knows the quality of every response."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rlaif.cli.generate import show_report
from rlaif.cli.terminal import echo, secho
from rlaif.cli.transcript import Story, read_story, show_transcript
from rlaif.cli.workflow import Screen, show_loop
from rlaif.constitution import load_constitution
from rlaif.demo.agreement import by_principle, confirmed, of_pairs, violation_rates
from rlaif.records import Messages, Prompt
from rlaif.store import resource

if TYPE_CHECKING:
    from rlaif.feedback.pipeline import Report


class _Screen(Screen):
    """Shows the data before the trainings begin."""

    def data(self, report: Report) -> None:
        """One prompt in full, the counts, and the accuracy of the judge by the oracle."""
        story = read_story(report.run.folder)
        secho("\nOne prompt in full\n", bold=True)
        show_transcript(story, _telling(story), brief=True)
        secho("\nThe run in numbers\n", bold=True)
        show_report(report)
        _show_agreement(story)
        _show_revisions(story)


@click.command()
@click.option("--output", default="runs/demo", show_default=True, help="Run folder.")
@click.option("--prompts", default=40, show_default=True, type=click.IntRange(1), help="Prompts to use.")
def demo(output: str, prompts: int) -> None:
    """Run the whole workflow offline on a toy benchmark with tiny models.

    The models (a few MB, in the package) know a small world of everyday requests, bad requests and upset customers. An
    oracle, a program that knows this world completely, measures how often the judge is right and how much the trained
    policies improve.
    """
    from rlaif.workflow.plan import load_plan
    from rlaif.workflow.run import run_workflow

    file = resource("examples") / "loop.yaml"
    plan = load_plan(file, {("output",): output, ("prompts", "limit"): str(prompts)})
    constitution = load_constitution(plan.run.constitution)
    secho(f"The constitution `{constitution.name}`", bold=True)
    for principle in constitution.principles:
        echo(f"  {principle.id:<18} {principle.compare}")
    echo(
        f"\n{prompts} prompts, 4 responses each by `demo-policy`; `demo-judge` critiques every response under every "
        "principle, compares all pairs in both orders, and revises each response twice, after a critique. Then the "
        "policy is trained three times: on the revisions (sft), on the pairs (dpo), and on its own responses with the "
        f"judge's grades as the reward (ppo). This is `rlaif run {file}`.\n"
    )
    metrics = {"faulty (oracle)": _faulty, "malformed": _malformed, "quality (oracle)": _quality}
    done = run_workflow(plan, _Screen(), metrics=metrics, command=shlex.join(["rlaif", *sys.argv[1:]]))
    if done.stopped is not None:
        echo(f"Stopped in `train {done.stopped}`; the same command goes on from there.", err=True)
        raise SystemExit(130)
    show_loop(done)
    _show_files(plan.run.folder)


def _faulty(prompt: Messages, reply: str) -> float:
    from rlaif.demo.oracle import violations

    return float(bool(violations(prompt[-1].content, reply)))


def _quality(prompt: Messages, reply: str) -> float:
    from rlaif.demo.oracle import quality

    return quality(prompt[-1].content, reply)


def _malformed(prompt: Messages, reply: str) -> float:  # noqa: ARG001 - a metric's signature
    from rlaif.demo.oracle import read_reply

    return float(read_reply(reply).malformed is not None)


def _telling(story: Story) -> Prompt:
    """The prompt with the clearest pair among those whose responses all differ."""

    def gap(prompt: Prompt) -> float:
        made = story.pairs[prompt.id]
        return max((pair.strengths[0] - pair.strengths[1] for pair in made), default=-1.0)

    return max(story.prompts, key=gap)


def _show_agreement(story: Story) -> None:
    prompts = {prompt.id: prompt for prompt in story.prompts}
    secho("\nThe judge against the oracle, which knows this world completely\n", bold=True)
    for principle, score in sorted(by_principle(prompts, story.samples, story.judgements.values()).items()):
        echo(f"  {principle:<18} right in {score} comparisons that the oracle can decide")
    pairs = of_pairs(pair for made in story.pairs.values() for pair in made)
    echo(f"  {'the pairs':<18} `chosen` is the oracle's choice too in {pairs}")


def _show_revisions(story: Story) -> None:
    prompts = {prompt.id: prompt for prompt in story.prompts}
    rates = violation_rates(prompts, story.samples, story.chains.values())
    secho("\nViolation rate, by the oracle\n", bold=True)
    echo(f"  {'as sampled':<18} {rates[0]:.0%} of {len(story.chains):,}")
    for number, rate in enumerate(rates[1:], start=1):
        echo(f"  {f'after round {number}':<18} {rate:.0%}")
    score = confirmed(prompts, story.samples, story.chains.values(), story.revised_pairs)
    echo(f"  {'the judge':<18} confirms {score} revisions that the oracle calls better")


def _show_files(folder: Path) -> None:
    secho("\nWhere everything is\n", bold=True)
    for name, content in (
        ("pairs.jsonl", "the preference pairs (pairs.parquet too): prompt, chosen, rejected, probability, provenance"),
        ("judgements.jsonl", "every judge call, raw"),
        ("rankings.jsonl", "the responses of every prompt, ranked"),
        ("samples.jsonl", "the policy's responses"),
        ("sft.jsonl", "revised responses for fine-tuning: prompt, response, provenance"),
        ("revised_pairs.jsonl", "revisions against their originals, as the judge sees them"),
        ("critiques.jsonl", "the judge's critiques"),
        ("train/dpo", "the policy that DPO trained, with its card and curves; likewise sft and ppo"),
        ("evaluation", "their responses, the judge's comparisons and the report"),
        ("manifest.json", "the sources of the data, and all counts"),
        ("report.html", "all of it on one page"),
    ):
        echo(f"  {folder / name!s:<32} {content}")
    echo("\nNext: rlaif init my-run, then edit my-run/constitution.yaml and run rlaif generate my-run/run.yaml")
