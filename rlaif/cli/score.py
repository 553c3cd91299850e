"""`rlaif score`: rewards of a reward model for a file of responses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from rlaif.cli.reading import rows_read
from rlaif.cli.terminal import echo

if TYPE_CHECKING:
    from rlaif.training.rewardfigures import Figures, Shown
    from rlaif.training.texts import Template

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
    from rlaif.training.responses import Columns
    from rlaif.training.scoring import score as scored

    try:
        with rows_read(data) as told:
            figures = scored(
                model, data, output=output, columns=Columns(column, prompt_column),
                template=cast("Template | None", template), max_length=max_length, tokens=tokens, limit=limit, top=top,
                centered=center, device=device, told=told,
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
    from rlaif.cli.tables import print_table

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
    from rlaif.cli.tables import print_table, short

    rows = [(f"{each.reward:.3f}", short(each.prompt, 50), short(each.response, 80)) for each in shown]
    print_table((title, "prompt", "response"), rows, right=(title,), cut=("prompt", "response"))


def _more(count: int, lines: tuple[int, ...]) -> str:
    return ", ..." if count > len(lines) else ""
