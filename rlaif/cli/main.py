"""The entry point. It knows the commands by name and a line of help only; a command's module is loaded when it is run,
so that `rlaif --help` loads neither torch nor pydantic. All errors are told here, once, as one line.
"""

from __future__ import annotations

import importlib
import sys
from typing import NoReturn

import click

from rlaif import __version__
from rlaif.errors import RlaifError

_COMMANDS = {
    "demo": ("rlaif.cli.demo", "Run the whole loop offline on the tiny models that ship with the package."),
    "init": ("rlaif.cli.init", "Make a folder with a run file, a constitution and a few prompts to start from."),
    "check": ("rlaif.cli.check", "Tell every problem of a run file at once; only the models are probed."),
    "preview": ("rlaif.cli.preview", "Full transcripts of a few prompts, and what the whole run would cost."),
    "generate": ("rlaif.cli.runs", "Sample, critique, compare, pair: prompts in, judged preference pairs out."),
    "sample": ("rlaif.cli.runs", "Only draw the policy's answers."),
    "critique": ("rlaif.cli.runs", "Only write the judge's critiques of the samples."),
    "compare": ("rlaif.cli.runs", "Only ask the judge's comparisons."),
    "pair": ("rlaif.cli.runs", "Derive the pairs again from the answers on disk; no model is asked."),
    "judge": ("rlaif.cli.judge", "Serve a judge model with vLLM."),
}
"""Name -> module that defines a click command of this name, and its line in the overview."""


class _Commands(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        if name not in _COMMANDS:
            return None
        command = getattr(importlib.import_module(_COMMANDS[name][0]), name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            from rlaif.errors import nearest

            raise click.UsageError(f"no command `{args[0]}`; {nearest(args[0], _COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(version)s")
def cli() -> None:
    """Preference data from a written constitution: a judge model ranks your policy's samples by your principles.

    Start with `rlaif demo`, then `rlaif init my-run` and `rlaif generate my-run/run.yaml`.

    Exit codes: 0 done, 1 a model or a record failed, 2 a mistake in what was given, 130 interrupted.
    """


def main() -> NoReturn:
    """Run the command line; every expected error is one line on standard error, and an exit code."""
    try:
        code = cli.main(standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except RlaifError as error:
        click.echo(f"Error: {error}", err=True)
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("\nInterrupted. What was answered is kept; the same command goes on from there.", err=True)
        code = 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader went away (`rlaif ... | head`): nothing is left to say it to
        code = 1
    sys.exit(code if isinstance(code, int) else 0)
