"""`rlaif train` and `rlaif score`.

`rlaif train sft|reward|dpo|ppo`: the built-in trainers.

`rlaif score`: rewards of a reward model for a file of responses.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import click

from rlaif.cli.flags import flag, parameter, template_options, warn_of_variables
from rlaif.cli.terminal import echo
from rlaif.config.run_file import settable
from rlaif.progress import Progress, first_process, show_progress, show_rows
from rlaif.training.config import SETTINGS, CommonSettings, load_settings
from rlaif.training.folder import is_started, last_checkpoint, leave_processes

if TYPE_CHECKING:
    from rlaif.progress import Progress
    from rlaif.training.examples import Template
    from rlaif.training.score import Figures, Shown
    from rlaif.training.session import Trained

_HELP = {
    "sft": """Supervised fine-tuning on demonstrations.

    DATA is a run folder with sft.jsonl (`rlaif revise` makes it), rows with `messages`, with `prompt` and `completion`,
    or preference pairs, of which the chosen answer is learned. Of a conversation of several replies the last one is
    learned, and with `--turns all` every one.""",
    "reward": """A reward model on preference pairs.

    DATA is a run folder with pairs, or rows with `prompt`, `chosen` and `rejected`. A pair's `probability`, its soft
    label, is the target. `rlaif score` applies the model.""",
    "dpo": """Direct preference optimisation and its relatives, on preference pairs.

    DATA is a run folder with pairs, or rows with `prompt`, `chosen` and `rejected`; for `--loss kto` also rows with
    `prompt`, `completion` and `label`. A pair's `probability`, its soft label, is the target; kto takes a pair as a
    good answer and a bad one, whatever its `probability`.""",
    "ppo": """PPO and its relatives: the policy answers, the answers are scored, and it learns from them.

    PROMPTS is a file of prompts or a run folder. The reward is a reward model (`rlaif train reward`), the judge itself
    under the constitution (`--reward judge --judge-model ...`), a URL that scores, or a Python function. With
    `--held-out-every` a judge that is not the reward watches whether the answers really become better.""",
}
_SHOWN = (
    "loss", "accuracy", "rewards/good", "rewards/bad", "kl", "eval_loss", "eval_accuracy", "eval_margin",
    "eval_rewards/good", "eval_rewards/bad", "eval_kl", "reward", "length", "held_out/win_rate",
    "held_out/length_controlled",
)  # fmt: skip
_EPILOG = """SETTINGS.yaml has the same keys as the flags. A flag beats the environment (RLAIF_TRAIN_BETA for --beta),
which beats the file; `--set lora.rank=16` is another way to write a flag. Several processes:
`accelerate launch -m rlaif train ...`."""


def _kind(method: str) -> type[CommonSettings]:
    from rlaif.rl.config import OnlineSettings

    kinds: list[type[CommonSettings]] = [*SETTINGS.values(), OnlineSettings]
    return next(kind for kind in kinds if kind.method == method)


def _command(method: str) -> click.Command:
    known = {parameter(setting): setting for setting in settable(_kind(method))}

    def call(settings_file: Path | None, pairs: tuple[str, ...], resume: bool, **given: Any) -> None:
        flags = {known[name].path: value for name, value in given.items() if value is not None}
        _train(method, settings_file, flags, pairs, resume)

    parameters: list[click.Parameter] = [
        click.Argument(["settings_file"], metavar="[SETTINGS.yaml]", required=False, type=click.Path(path_type=Path)),
        click.Option(["--set", "pairs"], multiple=True, metavar="KEY=VALUE", help="A setting; may be given again."),
        click.Option(["--resume"], is_flag=True, help="Go on with the unfinished training in the output folder."),
        *map(flag, known.values()),
    ]
    return click.Command(method, callback=call, params=parameters, help=_HELP[method], epilog=_EPILOG)


def _run(settings: CommonSettings, progress: Progress, resume: bool) -> Trained:
    from rlaif.rl.config import OnlineSettings
    from rlaif.rl.run import train_online
    from rlaif.training.config import TrainSettings
    from rlaif.training.session import train as train_on_rows

    if isinstance(settings, OnlineSettings):
        return train_online(settings, progress, resume=resume)
    assert isinstance(settings, TrainSettings)
    return train_on_rows(settings.method, settings, progress, resume=resume)


def _train(
    method: str, path: Path | None, flags: dict[tuple[str, ...], str], pairs: tuple[str, ...], resume: bool
) -> None:
    first = first_process()  # it speaks for all of them
    if first:
        warn_of_variables()
    settings = load_settings(_kind(method), path, flags, pairs)
    try:
        with show_progress() as progress:
            trained = _run(settings, progress, resume)
    except KeyboardInterrupt:
        echo(_interrupted(settings.folder) if first else "", err=True, nl=first)
        raise SystemExit(130) from None
    leave_processes()
    if not trained.finished:
        again = f"Stopped after step {trained.steps}; the same command with --resume goes on from there."
        echo(again if first else "", err=True, nl=first)
        raise SystemExit(130)
    if not first:
        return
    for name in _SHOWN:
        if name in trained.metrics:
            echo(f"{name.replace('eval_', 'held-out '):<24}{trained.metrics[name]:.4f}")
    echo(f"Model in {trained.folder}")


def _interrupted(folder: Path) -> str:
    """What is left of a training that was stopped at once, and how to go on."""
    if not is_started(folder):
        return "\nInterrupted before the first step; the same command starts again."
    checkpoint = last_checkpoint(folder)
    if checkpoint is None:
        return "\nInterrupted before the first checkpoint; the same command with --resume starts again."
    step = checkpoint.name.rpartition("-")[2]
    return f"\nInterrupted; the same command with --resume goes on from step {step}, the last checkpoint."


class _Methods(click.Group):
    """The methods; their flags are made from their settings when one of them is called."""

    methods: ClassVar[dict[str, str]] = {
        "sft": "Supervised fine-tuning on demonstrations.",
        "reward": "A reward model on preference pairs.",
        "dpo": "DPO and its relatives on preference pairs (ipo, kto, simpo, orpo, ...).",
        "ppo": "PPO and its relatives on the policy's own answers (rloo, grpo, p3o, ...).",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The methods."""
        return list(self.methods)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        """The command of a method."""
        return _command(name) if name in self.methods else None


@click.group(cls=_Methods)
def train() -> None:
    """Train: supervised fine-tuning, a reward model, DPO and its relatives on data; PPO and its relatives online."""


_AT_LEAST = click.IntRange(min=1)


@click.command()
@click.option("--model", required=True, metavar="DIR", help="A reward model: a folder (adapters too) or a hub name.")
@click.option("--data", required=True, metavar="FILE", help="Responses: see above.")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), metavar="FILE", help="Write the rewards here, as JSONL."
)
@click.option("--column", metavar="NAME", help="Column of the responses: a text, or a list of them.")
@click.option("--prompt-column", metavar="NAME", help="Column of the prompts.")
@click.option(
    "--template",
    type=click.Choice(["auto", "chat", "plain"]),
    help="As for `rlaif train`.  [default: as the model was trained]",
)
@template_options("of the reward model.  [default: as it was trained]")
@click.option("--max-length", type=_AT_LEAST, metavar="N", help="Most tokens; as for `rlaif train`, with that default.")
@click.option("--tokens", type=click.IntRange(min=64), default=8192, show_default=True, help="Most tokens at once.")
@click.option("--limit", type=_AT_LEAST, metavar="N", help="Score only the first N rows.")
@click.option("--top", type=click.IntRange(min=0), default=5, show_default=True, metavar="N", help="Extremes to show.")
@click.option(
    "--center/--raw", default=True, help="Take the mean off that the model was centred on.  [default: center]"
)
@click.option("--device", type=click.Choice(["auto", "cpu"]), default="auto", show_default=True)
@click.option("--format", "shape", type=click.Choice(["text", "json"]), default="text", show_default=True)
def score(
    model: str,
    data: str,
    output: Path | None,
    column: str | None,
    prompt_column: str | None,
    template: str | None,
    template_options: dict[str, Any] | None,
    max_length: int | None,
    tokens: int,
    limit: int | None,
    top: int,
    center: bool,
    device: str,
    shape: str,
) -> None:
    """Tell the rewards of a reward model for responses, and how they are spread.

    FILE holds rows with a prompt and one response (response, completion) or several (responses, completions), whole
    conversations (messages), or preference data in any shape that `rlaif train reward` takes; of a run folder its
    samples. Of preference data both responses are scored, and the accuracy is told.

    Texts become tokens as in the model's training. The output has the rows in the order of FILE: id, prompt, response,
    reward; of preference data id, prompt, chosen, rejected, chosen_reward, rejected_reward. What cannot be scored has
    no reward, and is counted.
    """
    from rlaif.training.score import Columns
    from rlaif.training.score import score as scored

    try:
        with show_rows(data) as progress:
            figures = scored(
                model, data, output=output, columns=Columns(column, prompt_column),
                template=cast("Template | None", template),
                template_options=template_options, max_length=max_length, tokens=tokens, limit=limit, top=top,
                centered=center, device=device, on_rows=progress,
            )  # fmt: skip
    except KeyboardInterrupt:
        echo("\nInterrupted; nothing was written.", err=True)
        raise SystemExit(130) from None
    if shape == "json":
        echo(figures.model_dump_json(indent=2))
        return
    _show(figures)
    if output is not None:
        echo(f"\nRewards in {output}")


def _show(figures: Figures) -> None:
    from rlaif.cli.terminal import print_table

    echo(f"{figures.data}: {figures.rows:,} rows, {figures.responses:,} responses scored by {figures.model}")
    for each in figures.left_out:
        lines = ", ".join(map(str, each.lines))
        echo(f"without a reward: {each.count:,} where {each.what} (line {lines}{_more(each.count, each.lines)})")
    if figures.truncated:
        echo(f"prompts that lost their beginning to --max-length: {figures.truncated:,}")
    echo("")
    spread = figures.rewards
    names = ("mean", "std", "min", "25%", "median", "75%", "max")
    values = (
        spread.mean, spread.std, spread.min, spread.quartile, spread.median, spread.third_quartile, spread.max
    )  # fmt: skip
    print_table(names, [[f"{value:.3f}" for value in values]], right=names)
    echo("")
    for line in _told(figures):
        echo(line)
    for title, shown in (("highest", figures.highest), ("lowest", figures.lowest)):
        if shown:
            echo("")
            _show_extremes(title, shown)


def _told(figures: Figures) -> list[str]:
    told = []
    if figures.accuracy is not None and figures.margin is not None:
        share = f"{figures.accuracy} of {figures.accuracy.pairs:,} pairs"
        told.append(f"accuracy           {share}: chosen above rejected, with its 95% interval")
        told.append(f"mean margin        {figures.margin:+.3f}: chosen less rejected")
    if figures.length_correlation is not None:
        told.append(f"length             correlation of reward and tokens {figures.length_correlation:+.2f}")
    if figures.centered_by:
        told.append(
            f"centred            {figures.centered_by:.3f} is taken off, the mean that the model was centred on"
        )
    return told


def _show_extremes(title: str, shown: tuple[Shown, ...]) -> None:
    from rlaif.cli.terminal import print_table, short

    rows = [(f"{each.reward:.3f}", short(each.prompt, 50), short(each.response, 80)) for each in shown]
    print_table((title, "prompt", "response"), rows, right=(title,), cut=("prompt", "response"))


def _more(count: int, lines: tuple[int, ...]) -> str:
    return ", ..." if count > len(lines) else ""
