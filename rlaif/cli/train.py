"""`rlaif train sft|reward|dpo|ppo`: the built-in trainers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from rlaif.cli.options import flag, parameter
from rlaif.cli.progress import watch_training
from rlaif.cli.terminal import echo
from rlaif.cli.variables import warn_of_variables
from rlaif.runfile import settable
from rlaif.training.folder import first_process, is_begun, last_checkpoint, leave_processes
from rlaif.training.settings import SETTINGS, CommonSettings
from rlaif.training.settingsfile import load_settings

if TYPE_CHECKING:
    from rlaif.training.callbacks import Told
    from rlaif.training.running import Trained

_HELP = {
    "sft": """Supervised fine-tuning on demonstrations.

    DATA is a run folder with sft.jsonl (`rlaif revise` makes it), rows with `messages`, with `prompt` and `completion`,
    or preference pairs, of which the chosen answer is learned.""",
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
    "eval_rewards/good", "eval_rewards/bad", "eval_kl", "reward", "length", "held_out/win_rate", "held_out/controlled",
)  # fmt: skip
_EPILOG = """SETTINGS.yaml has the same keys as the flags. A flag beats the environment (RLAIF_TRAIN_BETA for --beta),
which beats the file; `--set lora.rank=16` is another way to write a flag. Several processes:
`accelerate launch -m rlaif train ...`."""


def _kind(method: str) -> type[CommonSettings]:
    from rlaif.online.settings import OnlineSettings

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


def _run(settings: CommonSettings, told: Told, resume: bool) -> Trained:
    from rlaif.online.running import train_online
    from rlaif.online.settings import OnlineSettings
    from rlaif.training.running import train as train_on_rows
    from rlaif.training.settings import TrainSettings

    if isinstance(settings, OnlineSettings):
        return train_online(settings, told, resume=resume)
    assert isinstance(settings, TrainSettings)
    return train_on_rows(settings.method, settings, told, resume=resume)


def _train(
    method: str, path: Path | None, flags: dict[tuple[str, ...], str], pairs: tuple[str, ...], resume: bool
) -> None:
    first = first_process()  # it speaks for all of them
    if first:
        warn_of_variables()
    settings = load_settings(_kind(method), path, flags, pairs)
    try:
        with watch_training() as told:
            trained = _run(settings, told, resume)
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
    if not is_begun(folder):
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
