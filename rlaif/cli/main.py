"""The entry point.

It knows each command by name and a line of help only. A command's module is loaded when the command is run, so that
`rlaif --help` loads neither torch nor pydantic. Every expected error is printed here, once, as one line.
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
from rlaif.errors import RlaifError, closest, nearest


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
        """The command by its name. Raises UsageError with the nearest name where there is none."""
        if args and args[0] not in self.entries and not args[0].startswith("-"):
            raise click.UsageError(f"no command `{args[0]}`; {nearest(args[0], self.entries)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the overview without importing any command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in self.entries.items()])


class _Commands(LazyGroup):
    entries: ClassVar[Mapping[str, Entry]] = {
        "demo": Entry("rlaif.cli.demo", "demo", "Run the whole workflow offline on the toy models of the package."),
        "init": Entry("rlaif.cli.setup", "init", "Create a folder with everything that a run needs."),
        "run": Entry("rlaif.cli.workflow", "run", "Generate, train, evaluate and report from one run file."),
        "constitution": Entry("rlaif.cli.constitution", "constitution", "Write, check, test and diff constitutions."),
        "check": Entry("rlaif.cli.setup", "check", "Report every problem of a run file and probe the models."),
        "preview": Entry(
            "rlaif.cli.generate", "preview", "Show transcripts of a few prompts and estimate the cost of the run."
        ),
        "generate": Entry("rlaif.cli.generate", "generate", "Sample, critique, compare, pair: prompts in, pairs out."),
        "sample": Entry("rlaif.cli.generate", "sample", "Only generate the policy's responses."),
        "critique": Entry("rlaif.cli.generate", "critique", "Only write the judge's critiques of the samples."),
        "compare": Entry("rlaif.cli.generate", "compare", "Only run the judge's comparisons."),
        "pair": Entry("rlaif.cli.generate", "pair", "Derive the pairs again from the judgements on disk."),
        "revise": Entry(
            "rlaif.cli.generate", "revise", "Critique and rewrite the samples, for supervised fine-tuning."
        ),
        "train": Entry("rlaif.cli.train", "train", "Train by SFT, DPO or RL (PPO, GRPO, ...), or a reward model."),
        "score": Entry("rlaif.cli.train", "score", "Score a file of responses with a reward model."),
        "evaluate": Entry("rlaif.cli.evaluate", "evaluate", "Measure a judge, policies or a reward model."),
        "report": Entry("rlaif.cli.workflow", "report", "Write a run, its trainings and evaluations as one HTML page."),
        "data": Entry("rlaif.cli.data", "data", "Check and export preference data from rlaif or elsewhere."),
        "judge": Entry("rlaif.cli.serve", "judge", "Serve a judge model with vLLM."),
        "version": Entry("rlaif.cli.version", "version", "Show the versions of rlaif and what it runs on."),
    }


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(version)s")
def cli() -> None:
    """Preference data from a written constitution: a judge model ranks your policy's samples by your principles.

    Start with `rlaif demo`, then `rlaif init my-run` and `rlaif generate my-run/run.yaml`.

    Exit codes: 0 done, 1 a model or a record failed, 2 an invalid argument, file or setting, 130 interrupted. Commands
    that check or measure have further codes; see their own help.
    """


def _leave_threads(code: int) -> None:
    """End at once if a thread is still at work, such as one that loads a model for minutes: the interpreter would wait
    for it, or crash under it."""
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
        if isinstance(error, click.NoSuchOption):  # of what click finds similar, only what is close
            close = [each for each in error.possibilities or () if closest(error.option_name, [each])]
            error = click.NoSuchOption(error.option_name, possibilities=close, ctx=error.ctx)
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
