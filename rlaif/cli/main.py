"""The entry point. It knows the commands by name and a line of help only; a command's module is loaded when it is run,
so that `rlaif --help` loads neither torch nor pydantic. All errors are told here, once, as one line.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from collections.abc import Mapping
from typing import ClassVar, NoReturn

import click

from rlaif import __version__
from rlaif.cli.lazy import Entry, LazyGroup
from rlaif.cli.terminal import echo
from rlaif.errors import RlaifError


class _Commands(LazyGroup):
    entries: ClassVar[Mapping[str, Entry]] = {
        "demo": Entry("rlaif.cli.demo", "demo", "Run the whole loop offline on the tiny models of the package."),
        "init": Entry("rlaif.cli.init", "init", "Make a folder with all that a run needs, to start from."),
        "run": Entry("rlaif.cli.run", "run", "The whole loop from one file: generate, train, evaluate, report."),
        "constitution": Entry("rlaif.cli.constitution", "constitution", "Write, check, test and diff constitutions."),
        "check": Entry("rlaif.cli.check", "check", "Tell every problem of a run file; only the models are probed."),
        "preview": Entry("rlaif.cli.preview", "preview", "Full transcripts of a few prompts, and the cost of the run."),
        "generate": Entry("rlaif.cli.runs", "generate", "Sample, critique, compare, pair: prompts in, pairs out."),
        "sample": Entry("rlaif.cli.runs", "sample", "Only draw the policy's answers."),
        "critique": Entry("rlaif.cli.runs", "critique", "Only write the judge's critiques of the samples."),
        "compare": Entry("rlaif.cli.runs", "compare", "Only ask the judge's comparisons."),
        "pair": Entry("rlaif.cli.runs", "pair", "Derive the pairs again from the answers on disk."),
        "revise": Entry("rlaif.cli.revise", "revise", "Critique and rewrite the samples, for supervised fine-tuning."),
        "train": Entry("rlaif.cli.train", "train", "Train: SFT, a reward model or DPO on the data, PPO online."),
        "score": Entry("rlaif.cli.score", "score", "Rewards of a reward model for a file of responses."),
        "evaluate": Entry("rlaif.cli.evaluate", "evaluate", "Measure a judge, policies or a reward model."),
        "report": Entry("rlaif.cli.report", "report", "A run, its trainings and evaluations as one HTML page."),
        "data": Entry("rlaif.cli.data", "data", "Check preference data, ours or anybody's, and export it."),
        "judge": Entry("rlaif.cli.judge", "judge", "Serve a judge model with vLLM."),
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
