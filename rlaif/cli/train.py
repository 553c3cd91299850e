"""`rlaif train`: the built-in trainers; `rlaif score`: the rewards of a reward model for a file of responses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast, get_args

import click

from rlaif.cli.main import Entry, LazyGroup
from rlaif.cli.options import SettingsCommand, option, parameter, template_options, warn_of_variables
from rlaif.cli.terminal import echo
from rlaif.config.run_file import Flags, Setting, settable
from rlaif.progress import first_process, show_progress, show_rows
from rlaif.rl.config import Algorithm, OnlineSettings, read_by
from rlaif.training.config import SETTINGS, CommonSettings, load_settings
from rlaif.training.folder import is_started, last_checkpoint, leave_processes

if TYPE_CHECKING:
    from rlaif.progress import Progress
    from rlaif.training.examples import Template
    from rlaif.training.score import Figures, Shown
    from rlaif.training.session import Trained

_HELP = {
    "sft": """Supervised fine-tuning on demonstrations.

    DATA is a run folder with sft.jsonl (`rlaif revise` writes it), rows with `messages`, rows with `prompt` and
    `completion`, or preference pairs, whose chosen responses are learned. In a conversation of several turns the model
    learns the last response, and with `--turns all` every one.""",
    "reward": """Train a reward model on preference pairs.

    DATA is a run folder with pairs, or rows with `prompt`, `chosen` and `rejected`. The target is a pair's
    `probability`, its soft label. `rlaif score` applies the model.""",
    "dpo": """Direct preference optimization and its variants, on preference pairs.

    DATA is a run folder with pairs, or rows with `prompt`, `chosen` and `rejected`; for `--loss kto` also rows with
    `prompt`, `completion` and `label`. The target is a pair's `probability`, its soft label. KTO splits a pair into a
    desirable and an undesirable response, whatever its `probability`.""",
    "ppo": """Reinforcement learning on the policy's own responses: PPO and other algorithms.

    PROMPTS is a file of prompts or a run folder. The reward is a reward model (`rlaif train reward`), the judge under
    the constitution (`--reward judge --judge-model ...`), the URL of a reward server, or a Python function. With
    `--held-out-every`, another judge compares the policy with its start on held-out prompts.""",
}
_SHOWN = (
    "loss", "accuracy", "rewards/good", "rewards/bad", "kl", "eval_loss", "eval_accuracy", "eval_margin",
    "eval_rewards/good", "eval_rewards/bad", "eval_kl", "reward", "length", "held_out/win_rate",
    "held_out/length_controlled",
)  # fmt: skip
_EPILOG = """SETTINGS.yaml has the same keys as the flags. A flag beats the environment (RLAIF_TRAIN_BETA for --beta),
which beats the file; `--set lora.rank=16` is another way to write a flag. Several processes:
`accelerate launch -m rlaif train ...`."""


_COMMON = {
    "model", "data", "prompts", "output", "held_data", "holdout", "max_length", "epochs", "max_steps", "batch_size",
    "learning_rate", "lora.rank", "four_bit", "gradient_checkpointing", "max_tokens_per_pass", "turns", "soft_labels",
    "loss", "beta", "reward", "algorithm", "judge.model", "judge.base_url", "constitution", "steps", "samples",
    "kl.beta", "rollout.max_tokens", "rollout.base_url", "held_out.every",
}  # fmt: skip
"""The settings that the help shows, as far as a method has them; `--help-all` shows all."""
_RARELY_ONLINE = {"epochs", "four_bit", "gradient_checkpointing", "max_tokens_per_pass"}
_SECTIONS = {
    "model and output": ("model", "output", "reference", "reference_cache", "template_options", "seed"),
    "data": (
        "data", "held_data", "holdout", "prompts", "limit", "template", "max_length", "max_prompt", "turns",
        "eval_steps", "patience",
    ),
    "loss": (
        "loss", "beta", "soft_labels", "margins", "centering", "center_dataset", "label_smoothing",
        "gamma_beta_ratio", "orpo_weight", "sft_weight", "desirable_weight", "undesirable_weight",
    ),
    "reward": (
        "reward", "judge", "constitution", "principles", "missing_eos_penalty", "overlong_buffer", "reward_clip",
        "normalise",
    ),
    "algorithm": (
        "algorithm", "steps", "samples", "minibatches", "clip", "clip_high", "dual_clip", "ratio", "p3o_clip", "gamma",
        "lam", "whiten", "scale", "loss_normalization", "group_baseline",
    ),
    "optimization": (
        "batch_size", "epochs", "max_steps", "optimizer", "learning_rate", "schedule", "warmup", "weight_decay",
        "max_grad_norm",
    ),
    "memory and speed": (
        "max_tokens_per_pass", "dtype", "attention", "four_bit", "gradient_checkpointing", "device",
    ),
    "checkpoints and logs": ("save_steps", "checkpoints_to_keep", "log_steps", "report_to"),
}  # fmt: skip
SECTION_OF = {name: section for section, names in _SECTIONS.items() for name in names}
"""Where the help shows a setting that belongs to no group."""


def _kind(method: str) -> type[CommonSettings]:
    kinds: list[type[CommonSettings]] = [*SETTINGS.values(), OnlineSettings]
    return next(kind for kind in kinds if kind.method == method)


def _command(name: str) -> click.Command:
    """The command of a method, or of an algorithm of online training, which then has no `--algorithm`."""
    algorithm = name if name in get_args(Algorithm) and name not in _HELP else None
    method = "ppo" if algorithm else name
    known = {parameter(setting): setting for setting in settable(_kind(method))}
    if algorithm:
        del known["algorithm"]

    def call(settings_file: Path | None, pairs: tuple[str, ...], resume: bool, **given: Any) -> None:
        flags = {known[name].path: value for name, value in given.items() if value is not None}
        if algorithm:
            _require_no_algorithm(pairs, algorithm)
            flags[("algorithm",)] = algorithm
        _train(method, settings_file, flags, pairs, resume)

    def hidden(setting: Setting) -> bool:
        return algorithm is not None and not read_by(algorithm, setting.path)

    parameters: list[click.Parameter] = [
        click.Argument(["settings_file"], metavar="[SETTINGS.yaml]", required=False, type=click.Path(path_type=Path)),
        click.Option(["--set", "pairs"], multiple=True, metavar="KEY=VALUE", help="A setting; may be given again."),
        click.Option(["--resume"], is_flag=True, help="Resume the unfinished training in the output folder."),
        *(option(setting, SECTION_OF, hidden=hidden(setting)) for setting in known.values()),
    ]
    common = _COMMON - _RARELY_ONLINE if method == "ppo" else _COMMON
    text = _HELP["ppo"].partition("\n")[2] if algorithm else _HELP[method]
    text = f"{_Methods.entries[name].help}\n{text}" if algorithm else text
    return SettingsCommand(name, callback=call, params=parameters, help=text, epilog=_EPILOG, common=common)


def _require_no_algorithm(pairs: tuple[str, ...], algorithm: str) -> None:
    for pair in pairs:
        if pair.partition("=")[0].strip() == "algorithm":
            hint = f"leave `--set {pair}` out, or use `rlaif train ppo`"
            raise click.UsageError(f"`rlaif train {algorithm}` sets the algorithm itself: {hint}")


def _run(settings: CommonSettings, progress: Progress, resume: bool) -> Trained:
    from rlaif.rl.run import train_online
    from rlaif.training.config import TrainSettings
    from rlaif.training.session import train as train_on_rows

    if isinstance(settings, OnlineSettings):
        return train_online(settings, progress, resume=resume)
    assert isinstance(settings, TrainSettings)
    return train_on_rows(settings.method, settings, progress, resume=resume)


def _train(method: str, path: Path | None, flags: Flags, pairs: tuple[str, ...], resume: bool) -> None:
    first = first_process()  # only one process writes to the terminal
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
            echo(f"{name.replace('eval_', 'held-out '):<28} {trained.metrics[name]:.4f}")
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


class _Methods(LazyGroup):
    """The methods and algorithms; their flags are made from their settings when one of them is called."""

    entries: ClassVar[Mapping[str, Entry]] = {
        name: Entry("rlaif.cli.train", "train", text)
        for name, text in {
            "sft": "Supervised fine-tuning on demonstrations.",
            "reward": "A reward model on preference pairs.",
            "dpo": "DPO and its variants on preference pairs (ipo, kto, simpo, orpo, ...).",
            "ppo": "PPO with a value network, or any algorithm below by --algorithm, on the policy's own responses.",
            "rloo": "REINFORCE with a leave-one-out baseline.",
            "grpo": "Group relative policy optimization, with DAPO, Dr. GRPO and GSPO as options.",
            "reinforce++": "REINFORCE++: PPO's clipped loss without a value network.",
            "p3o": "P3O: policy gradients on pairs of responses to the same prompt.",
            "online-dpo": "DPO on the best and the worst of the policy's own responses.",
        }.items()
    }

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        """The command of a method or an algorithm."""
        return _command(name) if name in self.entries else None


@click.group(cls=_Methods)
def train() -> None:
    """Train a policy by SFT, DPO or reinforcement learning, or train a reward model."""


_AT_LEAST = click.IntRange(min=1)


@click.command()
@click.option("--model", required=True, metavar="DIR", help="A reward model: a folder (adapters too) or a hub name.")
@click.option("--data", required=True, metavar="FILE", help="File of responses; see above.")
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
@click.option("--max-length", type=_AT_LEAST, metavar="N", help="Maximum tokens of a row, as for `rlaif train`.")
@click.option(
    "--tokens", type=click.IntRange(min=64), default=8192, show_default=True, help="Maximum tokens per forward pass."
)
@click.option("--limit", type=_AT_LEAST, metavar="N", help="Score only the first N rows.")
@click.option(
    "--top",
    type=click.IntRange(min=0),
    default=5,
    show_default=True,
    metavar="N",
    help="Number of highest and lowest rewards to show.",
)
@click.option(
    "--center/--raw", default=True, help="Subtract the mean that the model was centered on.  [default: center]"
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
    """Score responses with a reward model and show the distribution of the rewards.

    FILE holds rows with a prompt and one response (response, completion) or several (responses, completions), whole
    conversations (messages), or preference data in any shape that `rlaif train reward` takes; of a run folder its
    samples. In preference data both responses are scored, and the output has the accuracy.

    Texts are tokenized as in the model's training. The output has the rows in the order of FILE: id, prompt, response,
    reward; for preference data id, prompt, chosen, rejected, chosen_reward, rejected_reward. A row that cannot be
    scored has no reward and is counted.
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
    for line in _statistics(figures):
        echo(line)
    for title, shown in (("highest", figures.highest), ("lowest", figures.lowest)):
        if shown:
            echo("")
            _show_extremes(title, shown)


def _statistics(figures: Figures) -> list[str]:
    lines = []
    if figures.accuracy is not None and figures.margin is not None:
        share = f"{figures.accuracy} of {figures.accuracy.pairs:,} pairs"
        lines.append(f"accuracy           {share}: chosen above rejected, with its 95% interval")
        lines.append(f"mean margin        {figures.margin:+.3f}: chosen less rejected")
    if figures.length_correlation is not None:
        lines.append(f"length             correlation of reward and tokens {figures.length_correlation:+.2f}")
    if figures.centered_by:
        lines.append(
            f"centered           {figures.centered_by:.3f} is subtracted, the mean that the model was centered on"
        )
    return lines


def _show_extremes(title: str, shown: tuple[Shown, ...]) -> None:
    from rlaif.cli.terminal import print_table, short

    rows = [(f"{each.reward:.3f}", short(each.prompt, 50), short(each.response, 80)) for each in shown]
    print_table((title, "prompt", "response"), rows, right=(title,), cut=("prompt", "response"))


def _more(count: int, lines: tuple[int, ...]) -> str:
    return ", ..." if count > len(lines) else ""
