"""The report on a data file: which rows a trainer gets, which are left out and why, how long they are."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rlaif.data.findings import RULES
from rlaif.errors import UserError
from rlaif.records import Record
from rlaif.training.examples import Group

_MOST_LINES = 5

_REASONS = {
    "undesirable": "labelled as bad: nothing to imitate",
    "cut-off": "a response was cut off at `max_tokens`: to learn where it stops would be wrong",
    "repeated": "the same reply to the same prompt stood in a pair before",
    "template": "the chat template refuses the conversation",
    "lost-system": "the chat template leaves out the system prompt",
    "lost-turn": "the chat template leaves out a turn of the prompt",
    "lost-reply": "the chat template leaves out what the reply says",
    "closed-thought": "a reply thinks behind a cue that has closed the thinking",
    "special-token": "a special token of the model, or the end of a reply in another chat format, stands in a reply",
    "no-form": "the model was trained on single prompts as text, and this is a conversation of several turns",
    "same-tokens": "chosen and rejected are the same tokens",
    "no-start": "an empty prompt, and the tokenizer has no beginning-of-sequence token to start from",
    "no-completion": "nothing is left of a completion after the prompt",
    "too-long": "a completion alone is longer than max_length",
}
"""Reasons beside the rules of the doctor."""
_HINTS = {
    "too-long": "raise max_length",
    "lost-system": "put the system prompt into the first turn of the user, or change the chat template",
    "lost-turn": "change the chat template, or set `template: plain`",
    "lost-reply": "change the chat template, or set `template: plain`",
    "closed-thought": "set `template_options: {enable_thinking: true}`, or take the thoughts out of the replies",
}
"""What helps where nothing is left, most likely first."""


@dataclass
class RowCounts:
    """Counts of one file. `rows` reads it, `tokens` goes on with what that gives: both count in here."""

    rows: int = 0
    """Rows read."""
    left_out: Counter[str] = field(default_factory=Counter)
    """What no trainer gets, by reason. A row that is a good and a bad reply to KTO may count twice."""
    lines: dict[str, list[int]] = field(default_factory=dict)
    """The first lines of each reason."""
    notes: list[str] = field(default_factory=list)
    """What else the user should know."""
    conversations: int = 0
    """Demonstrations, of which each may hold several replies."""
    replies: int = 0
    """Their replies, those in their prompts included."""
    merged: int = 0
    """Rows whose prompt lost its last tokens, as what follows makes other tokens of them."""
    ended: int = 0
    """Completions that got an end-of-sequence token, for neither they nor the chat template had one."""
    separate: int = 0
    """Rows whose prompt and replies are tokenized apart, as they share more than a token or two."""
    unended: int = 0
    """Replies that held an end token as text at their end, which was cut off."""
    apart: int = 0
    """Rows whose prompt the chat template writes otherwise once a reply follows: the reply is its own text."""
    thoughtless: int = 0
    """Rows with a reply that has no thought, where the chat template's cue begins one."""
    thoughts: int = 0
    """Rows with a reply whose thinking the chat template leaves out: it is learned with it."""
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
        why = "; ".join([*map(_describe, self.reasons()[:3]), *self.notes[:1]])
        hint = next((hint for reason, hint in _HINTS.items() if reason in self.left_out), "")
        return UserError(f"no row of {self.rows:,} can be trained on: {why}", where=path, hint=hint)

    def reasons(self) -> tuple[LeftOut, ...]:
        """What was left out, most frequent reason first."""
        return tuple(
            LeftOut(
                reason=reason,
                count=count,
                lines=tuple(self.lines[reason]),
                what=_REASONS[reason] if reason in _REASONS else RULES[reason].what,
            )
            for reason, count in self.left_out.most_common()
        )


class LeftOut(Record):
    """Rows that no trainer gets, for one reason."""

    reason: str
    count: int
    lines: tuple[int, ...]
    """The first lines (row numbers in Parquet and on the hub)."""
    what: str


class DatasetReport(Record):
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
    separate: int = 0
    """Rows whose prompt and replies are tokenized apart, as they share more than a token or two."""
    unended: int = 0
    """Replies that held an end token as text at their end, which was cut off."""
    apart: int = 0
    """Groups whose prompt the chat template writes otherwise once a reply follows: the reply is its own text."""
    thoughts: int = 0
    """Rows with a reply whose thinking the chat template leaves out: it is learned with it."""
    thoughtless: int = 0
    """Groups with a reply that has no thought, where the chat template's cue begins one."""
    soft: int
    """Pairs with a probability strictly between 0 and 1."""
    prompt_median: int
    prompt_p95: int
    completion_median: int
    completion_p95: int
    notes: tuple[str, ...]
    conversations: int = 0
    """Demonstrations, of which each may hold several replies."""
    replies: int = 0
    """Their replies, those in their prompts included."""
    learned: Literal["last", "all"] = "last"
    """Which of them are learned."""
    evaluation: DatasetReport | None = None
    """On the separate file to evaluate on, if there is one."""
    shared: int = 0
    """Groups of that file whose prompt is trained on as well."""

    def lines(self) -> list[str]:
        """A few lines for people."""
        trained = f"{self.kept - self.held:,} to train on, {self.held:,} held out"
        lines = [f"{self.path}: {self.rows:,} rows, {trained}"]
        if self.left_out:
            reasons = "; ".join(_describe(left) for left in self.left_out[:4])
            more = f"; {len(self.left_out) - 4} more reasons" if len(self.left_out) > 4 else ""
            lines.append(f"left out: {reasons}{more}")
        prompt = f"prompts {self.prompt_median:,} (95%: up to {self.prompt_p95:,})"
        lines.append(f"tokens: {prompt}, completions {self.completion_median:,} ({self.completion_p95:,}), medians")
        if self.replies > self.conversations:
            last = "the last of each is learned (`turns: all` learns every one)"
            which = last if self.learned == "last" else "every one is learned"
            lines.append(f"{self.replies:,} replies in {self.conversations:,} conversations; {which}")
        issues = self._issues()
        lines += [", ".join(issues)] if issues else []
        lines += list(self.notes[:3])
        if self.evaluation is not None:
            rows = f"{self.evaluation.rows:,} rows, {self.evaluation.kept:,} to evaluate on"
            also = f", of {self.shared:,} the prompt is trained on too" if self.shared else ""
            lines.append(f"{self.evaluation.path}: {rows}{also}")
        return lines

    def _issues(self) -> list[str]:
        """The counts that a line names only where they are not 0."""
        cut = self.truncated / max(self.kept, 1)
        counts = {
            f"{self.truncated:,} cut to {self.max_length} tokens ({cut:.1%})": self.truncated,
            f"{self.soft / max(self.kept, 1):.0%} soft labels": self.soft,
            f"{self.merged:,} where tokens merge across the end of the prompt": self.merged,
            f"{self.separate:,} whose prompt and replies are tokenized apart": self.separate,
            f"end-of-sequence token added to {self.ended:,} completions": self.ended,
            f"end token at the end of {self.unended:,} replies cut off": self.unended,
            f"{self.apart:,} where the chat template writes the prompt otherwise once a reply follows (the reply's own "
            "text is learned)": self.apart,
            f"{self.thoughtless:,} where a reply has no thought and the chat template's cue begins one (the reply is "
            "learned right behind the cue: `template_options` may switch thinking off)": self.thoughtless,
            f"{self.thoughts:,} where the chat template leaves out what a reply thinks (it is learned with it)": (
                self.thoughts
            ),
        }
        return [text for text, count in counts.items() if count]


def dataset_report(
    row_counts: RowCounts,
    path: str | Path,
    groups: Sequence[Group],
    max_length: int | None,
    learned: Literal["last", "all"] = "last",
) -> DatasetReport:
    """What was counted, as a record."""
    prompt_median, prompt_p95 = _median_and_p95(row_counts.prompts)
    completion_median, completion_p95 = _median_and_p95(row_counts.completions)
    return DatasetReport(
        path=str(path),
        rows=row_counts.rows,
        kept=len(groups),
        left_out=row_counts.reasons(),
        truncated=row_counts.truncated,
        max_length=max_length,
        merged=row_counts.merged,
        ended=row_counts.ended,
        separate=row_counts.separate,
        unended=row_counts.unended,
        apart=row_counts.apart,
        thoughts=row_counts.thoughts,
        thoughtless=row_counts.thoughtless,
        soft=sum(0 < group.values.get("probability", 1) < 1 for group in groups),
        prompt_median=prompt_median,
        prompt_p95=prompt_p95,
        completion_median=completion_median,
        completion_p95=completion_p95,
        notes=tuple(row_counts.notes),
        conversations=row_counts.conversations,
        replies=row_counts.replies,
        learned=learned,
    )


def _describe(left: LeftOut) -> str:
    word = "line" if left.count == 1 else "lines"
    more = ", ..." if left.count > len(left.lines) else ""
    return f"{left.count:,} where {left.what} ({word} {', '.join(map(str, left.lines))}{more})"


def _median_and_p95(lengths: array[int]) -> tuple[int, int]:
    """The median and the 95th percentile; both were really counted."""
    import numpy as np

    if not lengths:
        return 0, 0
    values = np.frombuffer(lengths, dtype=np.int32)
    median, high = np.percentile(values, [50, 95], method="lower")
    return int(median), int(high)
