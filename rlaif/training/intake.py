"""What became of the rows of a file on their way to a trainer: counted while they are read, and told at the end."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlaif.data.rules import RULES
from rlaif.errors import UserError
from rlaif.records import Record
from rlaif.training.groups import Group

_MOST_LINES = 5

_WHY = {
    "undesirable": "labelled as bad: nothing to imitate",
    "cut-off": "a response was cut off at `max_tokens`: to learn where it stops would be wrong",
    "repeated": "the same reply to the same prompt stood in a pair before",
    "template": "the chat template refuses the conversation",
    "no-start": "an empty prompt, and the tokenizer has no beginning-of-sequence token to start from",
    "no-completion": "nothing is left of a completion after the prompt",
    "too-long": "a completion alone is longer than max_length",
}
"""Reasons beside the rules of the doctor."""


@dataclass
class Intake:
    """Counts of one file. `rows` reads it, `tokens` goes on with what that gives: both count in here."""

    rows: int = 0
    """Rows read."""
    left_out: Counter[str] = field(default_factory=Counter)
    """What no trainer gets, by reason. A row that is a good and a bad reply to KTO may count twice."""
    lines: dict[str, list[int]] = field(default_factory=dict)
    """The first lines of each reason."""
    notes: list[str] = field(default_factory=list)
    """What else the user should know."""
    merged: int = 0
    """Rows whose prompt lost its last tokens, as what follows makes other tokens of them."""
    ended: int = 0
    """Completions that got an end-of-sequence token, for neither they nor the chat template had one."""
    truncated: int = 0
    """Rows that were cut to the limit on their tokens."""
    prompts: array[int] = field(default_factory=lambda: array("i"))
    """Tokens of each prompt."""
    completions: array[int] = field(default_factory=lambda: array("i"))
    """Tokens of each completion."""

    def leave_out(self, reason: str, line: int) -> None:
        """Count a row that is of no use."""
        self.left_out[reason] += 1
        lines = self.lines.setdefault(reason, [])
        if len(lines) < _MOST_LINES:
            lines.append(line)

    def note(self, text: str) -> None:
        """Keep what the user should know, once."""
        if text not in self.notes:
            self.notes.append(text)

    def nothing(self, path: str | Path) -> UserError:
        """The error for a file of which nothing is left."""
        why = "; ".join([*map(_told, self.reasons()[:3]), *self.notes[:1]])
        mend = "raise max_length" if "too-long" in self.left_out else ""
        return UserError(f"no row of {self.rows:,} can be trained on: {why}", where=path, mend=mend)

    def reasons(self) -> tuple[LeftOut, ...]:
        """What was left out, most frequent reason first."""
        return tuple(
            LeftOut(reason=reason, count=count, lines=tuple(self.lines[reason]), what=_what(reason))
            for reason, count in self.left_out.most_common()
        )


class LeftOut(Record):
    """Rows that no trainer gets, for one reason."""

    reason: str
    count: int
    lines: tuple[int, ...]
    """The first lines (row numbers in Parquet and on the hub)."""
    what: str


class Report(Record):
    """What became of the rows of one file."""

    path: str
    rows: int
    """Rows read."""
    kept: int
    """Groups for the trainer; of a pair, KTO makes two."""
    held: int = 0
    """Of these, the ones that are set aside to evaluate on."""
    left_out: tuple[LeftOut, ...]
    """Most frequent reason first."""
    truncated: int
    """Groups that were cut to `max_length`."""
    max_length: int | None
    merged: int
    """Groups whose prompt lost its last tokens, as what follows makes other tokens of them."""
    ended: int
    """Completions that got an end-of-sequence token, for neither they nor the chat template had one."""
    soft: int
    """Pairs with a probability strictly between 0 and 1."""
    prompt_median: int
    prompt_p95: int
    completion_median: int
    completion_p95: int
    notes: tuple[str, ...]
    evaluation: Report | None = None
    """On the separate file to evaluate on, if there is one."""
    shared: int = 0
    """Groups of that file whose prompt is trained on as well."""

    def lines(self) -> list[str]:
        """A few lines for people."""
        trained = f"{self.kept - self.held:,} to train on, {self.held:,} held out"
        lines = [f"{self.path}: {self.rows:,} rows, {trained}"]
        if self.left_out:
            told = "; ".join(_told(each) for each in self.left_out[:4])
            more = f"; {len(self.left_out) - 4} more reasons" if len(self.left_out) > 4 else ""
            lines.append(f"left out: {told}{more}")
        prompt = f"prompts {self.prompt_median:,} (95%: up to {self.prompt_p95:,})"
        lines.append(f"tokens: {prompt}, completions {self.completion_median:,} ({self.completion_p95:,}), medians")
        odd = self._odd()
        lines += [", ".join(odd)] if odd else []
        lines += list(self.notes[:3])
        if self.evaluation is not None:
            kept = f"{self.evaluation.rows:,} rows, {self.evaluation.kept:,} to evaluate on"
            also = f", of {self.shared:,} the prompt is trained on too" if self.shared else ""
            lines.append(f"{self.evaluation.path}: {kept}{also}")
        return lines

    def _odd(self) -> list[str]:
        """What is told only where there is some of it."""
        cut = self.truncated / max(self.kept, 1)
        told = {
            f"{self.truncated:,} cut to {self.max_length} tokens ({cut:.1%})": self.truncated,
            f"{self.soft / max(self.kept, 1):.0%} soft labels": self.soft,
            f"{self.merged:,} where tokens merge across the end of the prompt": self.merged,
            f"end-of-sequence token added to {self.ended:,} completions": self.ended,
        }
        return [text for text, count in told.items() if count]


def report(intake: Intake, path: str | Path, groups: Sequence[Group], max_length: int | None) -> Report:
    """What was counted, as a record."""
    prompt_median, prompt_p95 = _middle(intake.prompts)
    completion_median, completion_p95 = _middle(intake.completions)
    return Report(
        path=str(path),
        rows=intake.rows,
        kept=len(groups),
        left_out=intake.reasons(),
        truncated=intake.truncated,
        max_length=max_length,
        merged=intake.merged,
        ended=intake.ended,
        soft=sum(0 < group.values.get("probability", 1) < 1 for group in groups),
        prompt_median=prompt_median,
        prompt_p95=prompt_p95,
        completion_median=completion_median,
        completion_p95=completion_p95,
        notes=tuple(intake.notes),
    )


def _what(reason: str) -> str:
    return _WHY[reason] if reason in _WHY else RULES[reason].what


def _told(left: LeftOut) -> str:
    word = "line" if left.count == 1 else "lines"
    more = ", ..." if left.count > len(left.lines) else ""
    return f"{left.count:,} where {left.what} ({word} {', '.join(map(str, left.lines))}{more})"


def _middle(lengths: array[int]) -> tuple[int, int]:
    """The median and the 95th percentile; both were really counted."""
    import numpy as np

    if not lengths:
        return 0, 0
    values = np.frombuffer(lengths, dtype=np.int32)
    median, high = np.percentile(values, [50, 95], method="lower")
    return int(median), int(high)
