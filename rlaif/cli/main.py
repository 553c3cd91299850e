"""The entry point. It knows the commands by name and a line of help only.

Groups of commands that know each command by name and a line of help only; its module is loaded when it is run.

The entry point. It knows the commands by name and a line of help only; a command's module is loaded when it is run,
so that `rlaif --help` loads neither torch nor pydantic. All errors are told here, once, as one line.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
import threading
from collections.abc import Mapping
from typing import ClassVar, NamedTuple, NoReturn

import click

from rlaif import __version__
from rlaif.cli.terminal import echo
from rlaif.errors import RlaifError


class Entry(NamedTuple):
    """A command of a group."""

    module: str
    name: str
    """What the command is called in that module."""
    help: str
    """Its line in the overview."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    entries: ClassVar[Mapping[str, Entry]] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The names, in the order of the overview."""
        return list(self.entries)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        """The command of this name, its module imported now."""
        if name not in self.entries:
            return None
        entry = self.entries[name]
        command = getattr(importlib.import_module(entry.module), entry.name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that was asked for. Raises UsageError with the nearest name where there is none."""
        if args and args[0] not in self.entries and not args[0].startswith("-"):
            from rlaif.errors import nearest

            raise click.UsageError(f"no command `{args[0]}`; {nearest(args[0], self.entries)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the overview without importing any command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in self.entries.items()])


class _Commands(LazyGroup):
    entries: ClassVar[Mapping[str, Entry]] = {
        "demo": Entry("rlaif.cli.demo", "demo", "Run the whole loop offline on the tiny models of the package."),
        "init": Entry("rlaif.cli.setup", "init", "Make a folder with all that a run needs, to start from."),
        "run": Entry("rlaif.cli.workflow", "run", "The whole loop from one file: generate, train, evaluate, report."),
        "constitution": Entry("rlaif.cli.constitution", "constitution", "Write, check, test and diff constitutions."),
        "check": Entry("rlaif.cli.setup", "check", "Tell every problem of a run file; only the models are probed."),
        "preview": Entry(
            "rlaif.cli.generate", "preview", "Full transcripts of a few prompts, and the cost of the run."
        ),
        "generate": Entry("rlaif.cli.generate", "generate", "Sample, critique, compare, pair: prompts in, pairs out."),
        "sample": Entry("rlaif.cli.generate", "sample", "Only draw the policy's answers."),
        "critique": Entry("rlaif.cli.generate", "critique", "Only write the judge's critiques of the samples."),
        "compare": Entry("rlaif.cli.generate", "compare", "Only ask the judge's comparisons."),
        "pair": Entry("rlaif.cli.generate", "pair", "Derive the pairs again from the answers on disk."),
        "revise": Entry(
            "rlaif.cli.generate", "revise", "Critique and rewrite the samples, for supervised fine-tuning."
        ),
        "train": Entry("rlaif.cli.train", "train", "Train: SFT, a reward model or DPO on the data, PPO online."),
        "score": Entry("rlaif.cli.train", "score", "Rewards of a reward model for a file of responses."),
        "evaluate": Entry("rlaif.cli.evaluate", "evaluate", "Measure a judge, policies or a reward model."),
        "report": Entry("rlaif.cli.workflow", "report", "A run, its trainings and evaluations as one HTML page."),
        "data": Entry("rlaif.cli.data", "data", "Check preference data, ours or anybody's, and export it."),
        "judge": Entry("rlaif.cli.serve", "judge", "Serve a judge model with vLLM."),
    }


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(version)s")
def cli() -> None:
    """Preference data from a written constitution: a judge model ranks your policy's samples by your principles.

    Start with `rlaif demo`, then `rlaif init my-run` and `rlaif generate my-run/run.yaml`.

    Exit codes: 0 done, 1 a model or a record failed, 2 a mistake in what was given, 130 interrupted. Commands that
    check or measure have more, which their own help tells.
    """


def _leave_threads(code: int) -> None:
    """End at once where a thread is still at work: a model that is being loaded can take minutes, and nothing of it is
    to be kept; the interpreter would wait for it, or be taken down under it."""
    if threading.active_count() > 1:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def main() -> NoReturn:
    """Run the command line; every expected error is one line on standard error, and an exit code."""
    try:
        code = cli.main(standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        echo(shown.getvalue(), err=True, nl=False)
        code = error.exit_code
    except RlaifError as error:
        echo(f"Error: {error}", err=True)
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        echo("\nInterrupted. What was answered is kept; the same command goes on from there.", err=True)
        _leave_threads(code := 130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader went away (`rlaif ... | head`): nothing is left to say it to
        code = 1
    sys.exit(code if isinstance(code, int) else 0)
