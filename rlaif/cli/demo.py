"""`rlaif demo`: the whole loop on the tiny world, where an oracle knows every answer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import click

from rlaif.cli.progress import watch_training
from rlaif.cli.show import show_report, watch
from rlaif.cli.transcript import Story, read_story, show_transcript
from rlaif.constitution import load_constitution
from rlaif.demo.agreement import by_principle, confirmed, of_pairs, violation_rates
from rlaif.pipeline import generate
from rlaif.records import Prompt
from rlaif.resources import resource, shipped_model
from rlaif.settings import (
    CompareSettings,
    CritiqueSettings,
    JudgeSettings,
    PairSettings,
    PolicySettings,
    PromptSettings,
    ReviseSettings,
    RunSettings,
)

_DPO: dict[str, Any] = {"batch_size": 16, "epochs": 6, "learning_rate": 2e-4, "save_steps": 0, "holdout": 0.0}
"""The policy has 2 million parameters: its rate is a hundred times the usual one."""
_PPO: dict[str, Any] = {
    "reward": "judge", "judge": {"model": "demo-judge"}, "constitution": "demo", "steps": 30, "epochs": 2,
    "learning_rate": 5e-4, "kl": {"beta": 0.01}, "rollout": {"max_tokens": 96}, "save_steps": 0, "device": "cpu",
}  # fmt: skip
"""The judge's grades lie between 0 and 1 and differ by a tenth, so a nat away from the start costs little."""
_TRAINED = ("dpo", "ppo")
_ASKED = 120


@click.command()
@click.option("--output", default="runs/demo", show_default=True, help="Run folder.")
@click.option("--prompts", default=40, show_default=True, type=click.IntRange(1), help="Prompts to use.")
def demo(output: str, prompts: int) -> None:
    """Run the whole loop offline: a tiny policy answers, a tiny judge compares, and the policy learns from the pairs.

    The models (a few MB, in the package) live in a small world of everyday requests, bad requests and upset customers.
    An oracle that knows this world completely says how often the judge was right, and how much better the trained
    policy behaves.
    """
    settings = _settings(output, prompts)
    constitution = load_constitution(settings.constitution)
    click.secho(f"The constitution `{constitution.name}`", bold=True)
    for principle in constitution.principles:
        click.echo(f"  {principle.id:<18} {principle.compare}")
    click.echo(
        f"\n{prompts} prompts, 4 replies each by `demo-policy`; `demo-judge` reviews every reply under every "
        "principle, compares every two of them in both orders, and rewrites each twice, after a critique; then the "
        "policy is trained on the pairs.\n"
    )
    with watch() as told:
        report = generate(settings, watch=told)
    story = read_story(settings.folder)
    click.secho("\nOne prompt in full\n", bold=True)
    show_transcript(story, _telling(story), brief=True)
    click.secho("\nThe run in numbers\n", bold=True)
    show_report(report)
    _show_agreement(story)
    _show_revisions(story)
    _show_training(settings.folder)
    _show_files(settings.folder)


def _settings(output: str, prompts: int) -> RunSettings:
    return RunSettings(
        constitution="demo",
        prompts=PromptSettings(path=str(resource("prompts") / "policy" / "demo.jsonl"), limit=prompts),
        policy=PolicySettings(model="demo-policy", samples=4, max_tokens=96),
        judge=JudgeSettings(model="demo-judge"),
        critique=CritiqueSettings(enabled=True, max_tokens=48),
        compare=CompareSettings(principles="each"),
        pair=PairSettings(select="all", per_prompt=6),
        revise=ReviseSettings(enabled=True, samples=4, temperature=0.3, max_tokens=96),
        output=output,
    )


def _telling(story: Story) -> Prompt:
    """The prompt with the clearest pair among those whose replies all differ."""

    def gap(prompt: Prompt) -> float:
        made = story.pairs[prompt.id]
        return max((pair.strengths[0] - pair.strengths[1] for pair in made), default=-1.0)

    return max(story.prompts, key=gap)


def _show_agreement(story: Story) -> None:
    prompts = {prompt.id: prompt for prompt in story.prompts}
    click.secho("\nThe judge against the oracle, which knows this world completely\n", bold=True)
    for principle, score in sorted(by_principle(prompts, story.samples, story.judgements.values()).items()):
        click.echo(f"  {principle:<18} right in {score} comparisons that the oracle can tell apart")
    pairs = of_pairs(pair for made in story.pairs.values() for pair in made)
    click.echo(f"  {'the pairs':<18} `chosen` is the oracle's choice too in {pairs}")


def _show_revisions(story: Story) -> None:
    prompts = {prompt.id: prompt for prompt in story.prompts}
    rates = violation_rates(prompts, story.samples, story.chains.values())
    click.secho("\nReplies that break some principle, by the oracle\n", bold=True)
    click.echo(f"  {'as sampled':<18} {rates[0]:.0%} of {len(story.chains):,}")
    for number, rate in enumerate(rates[1:], start=1):
        click.echo(f"  {f'after round {number}':<18} {rate:.0%}")
    score = confirmed(prompts, story.samples, story.chains.values(), story.revised_pairs)
    click.echo(f"  {'the judge':<18} confirms {score} revisions that the oracle calls better")


def _show_training(run: Path) -> None:
    """DPO on the pairs, PPO with the judge as its reward, and what they do on prompts that no training saw."""
    from rlaif.demo.behaviour import behaviour, fresh_prompts
    from rlaif.online.running import train_online
    from rlaif.online.settings import OnlineSettings
    from rlaif.training.running import train
    from rlaif.training.settings import DpoSettings

    for name in _TRAINED:
        shutil.rmtree(run / name, ignore_errors=True)  # of an earlier demo here, whose pairs may have been others
    given = {name: {"model": "demo-policy", "output": str(run / name)} for name in _TRAINED}
    pairs, prompts = str(run / "pairs.jsonl"), str(resource("prompts") / "policy" / "demo.jsonl")
    click.secho("\nDirect preference optimisation on the pairs\n", bold=True)
    with watch_training() as told:
        train("dpo", DpoSettings(**given["dpo"], data=pairs, **_DPO), told)
    click.secho("\nPPO, with the judge's grades of fresh answers as the reward\n", bold=True)
    with watch_training() as told:
        train_online(OnlineSettings(**given["ppo"], prompts=prompts, **_PPO), told)
    asked = fresh_prompts(_ASKED)
    start = shipped_model("demo-policy")
    assert start is not None
    click.secho(f"\nAnswers to {len(asked)} fresh prompts that break some principle, by the oracle\n", bold=True)
    for name, folder in {"before": start, "after DPO": run / "dpo", "after PPO": run / "ppo"}.items():
        click.echo(f"  {name:<18}{behaviour(folder, asked)}")


def _show_files(folder: Path) -> None:
    click.secho("\nWhere everything is\n", bold=True)
    for name, what in (
        ("pairs.jsonl", "the preference pairs (pairs.parquet too): prompt, chosen, rejected, probability, provenance"),
        ("judgements.jsonl", "every judge call, raw"),
        ("rankings.jsonl", "the replies of every prompt, ranked"),
        ("samples.jsonl", "the policy's replies"),
        ("sft.jsonl", "revised replies to imitate: prompt, response, provenance"),
        ("revised_pairs.jsonl", "revisions against their originals, as the judge sees them"),
        ("critiques.jsonl", "the judge's notes on them"),
        ("dpo", "the policy that DPO trained, with its card and curves; likewise ppo"),
        ("manifest.json", "what it was made from, and all counts"),
    ):
        click.echo(f"  {folder / name!s:<32} {what}")
    click.echo("\nNext: rlaif init my-run, then edit my-run/constitution.yaml and run rlaif generate my-run/run.yaml")
