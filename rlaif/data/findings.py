"""What the data linter reports: its rules, and its findings as frozen records.

What the doctor found, as frozen records: `Report.model_dump()` is the JSON of `rlaif data check --format json`.

The rules of the doctor: how bad breaking one is, what it means, and how to fix it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from rlaif.records import Record

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")


class Finding(Record):
    """One rule that rows break."""

    level: Level
    """`error`: training would break or learn nonsense; `warning`: it would learn something unmeant; `note`: to know."""
    rule: str
    count: int
    """Rows that break it; for a rule about the whole file, the rows that it was measured on."""
    share: float
    """`count` over the rows read."""
    lines: tuple[int, ...]
    """The first lines (row numbers in Parquet and on the hub); none for a rule about the whole file."""
    what: str
    hint: str


class Lengths(Record):
    """How much longer the chosen replies are, in characters without the space around them."""

    pairs: int
    chosen_longer: float | None
    """Share of the pairs; None for unpaired data."""
    rejected_longer: float | None
    median_chosen: int
    median_rejected: int
    effect_size: float | None
    """Cohen's d of log(1 + length): the difference of the means over the pooled standard deviation of both sides."""
    auc: float
    """Length alone as a reward: P(a chosen reply is longer than a rejected one) + P(equal) / 2, over all of either."""


class Labels(Record):
    """What the labels carry: soft labels of pairs, or the classes of unpaired data."""

    rows: int
    half: float | None = None
    """Share of soft labels that are exactly 0.5."""
    certain: float | None = None
    """Share that are exactly 0 or 1."""
    entropy: float | None = None
    """Mean entropy of the soft labels in bits: 0 where all are certain, 1 where all are 0.5."""
    desirable: float | None = None
    """Share of desirable replies, in unpaired data."""


class Refusals(Record):
    """Shares of replies that open like an English refusal."""

    chosen: float
    rejected: float


class Truncation(Record):
    """What a limit on the tokens of prompt and reply together cuts."""

    max_length: int
    tokenizer: str | None
    """None: estimated at four characters a token."""
    prompt: float
    """Share of the rows whose prompt alone fills the limit."""
    chosen: float | None
    rejected: float | None


class Overlap(Record):
    """Rows that share words with an evaluation set."""

    path: str
    items: int
    rows: int


class Report(Record):
    """What the doctor says about one file."""

    path: str
    shape: str | None
    """`preference`, `dialogues`, `rated`, `unpaired`; None where it is none of them."""
    columns: tuple[str, ...]
    """Columns of the first row."""
    rows: int
    usable: int
    """Rows that could be read as a prompt with its replies."""
    worst: Level | None
    findings: tuple[Finding, ...]
    """Errors first, then by count."""
    lengths: Lengths | None = None
    labels: Labels | None = None
    refusals: Refusals | None = None
    truncation: Truncation | None = None
    overlaps: tuple[Overlap, ...] = ()


_MOST_LINES = 10


class Rule(NamedTuple):
    """One thing that can be wrong with a row."""

    level: Level
    what: str
    hint: str
    note_up_to: float = 0.0
    """Up to this share of the rows it is only a note."""


_DROP = "leave these rows out (`rlaif data export` does)"
_EXPORT = "`rlaif data export FILE --format trl -o DIR` writes one form"

RULES: dict[str, Rule] = {
    "missing": Rule("error", "a value is missing", "fill it in, or leave these rows out (`rlaif data export` does)"),
    "type": Rule("error", "a prompt or a reply is neither a text nor a list of messages", _DROP),
    "unknown-role": Rule("error", "a message has a role other than system, user, assistant",
                         "rename the role, or leave these rows out; most chat templates refuse others"),
    "role-order": Rule("error", "the roles do not alternate, or the user does not have the last word before the reply",
                       "join turns of one speaker, or leave these rows out; chat templates refuse them"),
    "empty-prompt": Rule("error", "the prompt, or a user's turn in it, is blank", _DROP),
    "empty-reply": Rule("error", "a reply is blank", _DROP),
    "identical": Rule("error", "chosen and rejected are the same text: nothing to learn", _DROP),
    "contradictory": Rule("error", "another row has the same prompt with chosen and rejected the other way round",
                          "keep one of them, or neither"),
    "no-shared-prompt": Rule("error", "chosen and rejected share no prompt",
                             "give the prompt in a column `prompt`, or whole dialogues that begin alike"),
    "prompt-mismatch": Rule("error", "a reply's dialogue is not the prompt's",
                            "one prompt a row, the same on both sides"),
    "probability-range": Rule("error", "`probability` is not a number between 0 and 1", "it is P(chosen is better)"),
    "label-type": Rule("error", "`label` is neither true nor false", "write booleans"),
    "winner": Rule("error", "the column of the winner names none of the two responses",
                   "name the better one, or leave these rows out (`rlaif data export` does)"),
    "tool-calls": Rule("error", "a message calls a tool, or is what one answered: calls are not read",
                       "leave these rows out (`rlaif data export` does)"),
    "prompt-part": Rule("error", "a column that is part of the prompt cannot be joined with it",
                        "write the whole prompt into one column"),
    "unparsed-messages": Rule("error", "messages are written into a text in a form that cannot be read back",
                              "store lists (JSONL, Parquet), or write them with json.dumps"),
    "special-token": Rule("error", "a special token of a chat format stands inside a reply: a model ends there",
                          "remove it, or leave these rows out (`rlaif data export` does)"),
    "messages-as-text": Rule("error", "messages are written into a text as JSON or Python: a trainer would learn that",
                             f"{_EXPORT}, or store lists (JSONL, Parquet)"),
    "half-character": Rule("error", "half a surrogate pair, which no tokenizer takes", "encode the text again"),
    "mixed-types": Rule("error", "a column holds values of different kinds: loaders and trainers break on it",
                        "one kind of value a column"),
    "near-identical": Rule("warning", "chosen and rejected are nearly the same text (arXiv:2410.08847: pairs like that "
                           "push down the chosen reply too)", "leave these rows out, or ask for other replies"),
    "duplicate-row": Rule("warning", "the same prompt, chosen and rejected stood in a row before", "keep one of them"),
    "prompt-in-reply": Rule("warning", "a reply holds its whole prompt", "cut the prompt off the reply"),
    "next-turn": Rule("warning", "a reply goes on into the next turn: it holds the marker of a user's turn",
                      "cut the reply at the marker; a model would learn to speak for the user"),
    "several-turns": Rule("warning", "a reply is several turns: the dialogues part early, or it speaks for the user",
                          "cut it after its first turn, or leave these rows out"),
    "end-token": Rule("warning", "a reply ends in an end token that is written out: trainers add another one",
                      "cut it off (`rlaif data export` does)"),
    "ratings-disagree": Rule("warning", "ratings of one row disagree about the best completion: those of single "
                             "aspects count before an overall score", "check the overall scores: some have 10 for 1"),
    "prompt-column": Rule("warning", "a column that looks like a part of the prompt is not read",
                          "join it with the prompt, or rename it"),
    "forms": Rule("warning", "texts and message lists are mixed, or replies repeat the prompt: trainers that join "
                  "prompt and reply (TRL) break or read the prompt twice", _EXPORT),
    "probability-side": Rule("warning", "`probability` is below 0.5: the label says that rejected is better",
                             "swap chosen and rejected, or fix the label"),
    "score-side": Rule("warning", "the rejected reply has the higher score", "swap them, or fix the scores"),
    "label-half": Rule("warning", "`probability` is exactly 0.5: no preference at all",
                       "leave these rows out (`rlaif data export --margin` does)"),
    "garbled": Rule("warning", "replacement characters or text decoded with the wrong encoding",
                    "read the source as UTF-8 again"),
    "other-types": Rule("warning", "a column beside the data holds values of different kinds: loaders may refuse it",
                        "one kind of value a column, or drop it"),
    "unrated": Rule("warning", "fewer than two rated completions", "rate them, or leave these rows out"),
    "eval-overlap": Rule("warning", "the row shares 13 words in a row with an evaluation set, or its whole prompt",
                         "leave these rows out, or report the evaluation without them"),
    "near-prompt": Rule("warning", "the prompt is nearly the same as an earlier one",
                        "few distinct prompts teach few things; thin them out", note_up_to=0.1),
    "repeated-prompt": Rule("note", "the prompt stood in a row before", "keep all rows of a prompt in one split"),
    "tie": Rule("note", "neither response is called better: no pair", "they are left out of a training set"),
    "tied-ratings": Rule("note", "all completions are rated the same: no pair", "they are left out of a training set"),
}  # fmt: skip
"""Rules about rows. Those about the whole file are made where they are measured."""


class FindingCounter:
    """Counts the rows that break each rule, and keeps the first few lines."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._lines: dict[str, list[int]] = {}

    def add(self, rule: str, line: int) -> None:
        """Count one row."""
        self.add_many(rule, 1, [line])

    def add_many(self, rule: str, count: int, lines: list[int]) -> None:
        """Count several rows, of which `lines` are the first."""
        if not count:
            return
        self._counts[rule] = self._counts.get(rule, 0) + count
        kept = self._lines.setdefault(rule, [])
        kept.extend(lines[: _MOST_LINES - len(kept)])

    def findings(self, rows: int) -> Iterator[Finding]:
        """What was counted, `rows` being all that were read."""
        for name, count in self._counts.items():
            rule, share = RULES[name], count / max(rows, 1)
            level = "note" if share <= rule.note_up_to else rule.level
            lines = tuple(self._lines[name])
            yield Finding(level=level, rule=name, count=count, share=share, lines=lines, what=rule.what, hint=rule.hint)


def about_file(level: Level, rule: str, rows: int, what: str, hint: str) -> Finding:
    """A finding about the file as a whole, measured on `rows` rows."""
    return Finding(level=level, rule=rule, count=rows, share=1.0, lines=(), what=what, hint=hint)


def in_order(findings: list[Finding]) -> tuple[Finding, ...]:
    """The worst first; of one level, the most frequent first."""
    return tuple(sorted(findings, key=lambda each: (LEVELS.index(each.level), -each.count, each.rule)))
