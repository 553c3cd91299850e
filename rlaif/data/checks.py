"""What can be wrong with texts, columns and labels, seen row by row.

Special tokens that are written out in replies: at the end, where sampling kept them, and inside.

Which texts are special is known of a tokenizer; without one, those of the common chat formats are looked for.

What can be wrong with one row's texts, seen from that row alone.

What a file's columns are called, and whether each holds one kind of value.

What the labels of a file carry, and whether refusing is what they teach.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rlaif.data.conversations import Odd, ordered
from rlaif.data.findings import Finding, FindingCounter, Labels, Level, Refusals, about_file
from rlaif.data.formats import Reading, Shape
from rlaif.data.length_bias import LEAST_PAIRS
from rlaif.data.winners import number_of
from rlaif.errors import nearest
from rlaif.text import refuses

_FORMATS = re.compile(
    r"<\|[A-Za-z][A-Za-z0-9_]{1,40}\|>"  # ChatML, Llama 3, Phi, Cohere, gpt-oss and others
    r"|<｜[^｜<>\s]{1,40}｜>"  # DeepSeek
    r"|<(?:start|end)_of_(?:turn|utterance|text)>|<eos>|<bos>|\[EOS\]|</s>"
    r"|\[/?INST\]|<</?SYS>>"
)
_OPENS = "<s>"
"""Beside this, `</s>` closes what is struck out in HTML."""


def _found(text: str, special: frozenset[str]) -> Iterator[tuple[int, int]]:
    """Where special tokens stand."""
    for each in _FORMATS.finditer(text):
        if each.group() != "</s>" or _OPENS not in text or _OPENS in special:
            yield each.span()
    for token in special:
        at = text.find(token)
        while at >= 0:
            yield at, at + len(token)
            at = text.find(token, at + len(token))


def cut_end_tokens(reply: str, special: frozenset[str] = frozenset()) -> str:
    """A reply without the special tokens at its end, and without the space around these."""
    end, cut = _without_space(reply, len(reply)), False
    while True:
        begin = max(end - _TAIL, 0)
        starts = {begin + stop: begin + start for start, stop in _found(reply[begin:end], special)}
        if end not in starts:
            return reply[:end] if cut else reply
        while end in starts:
            end, cut = _without_space(reply, starts[end]), True


def _without_space(text: str, end: int) -> int:
    while end and text[end - 1].isspace():
        end -= 1
    return end


_TAIL = 200
"""Characters at the end that an end token is looked for in."""


def check_special(reading: Reading, special: frozenset[str], odd: Odd) -> None:
    """Tell `odd` of special tokens in the replies of a row."""
    for reply in (reading.chosen, reading.rejected):
        if reply is None:
            continue
        text = cut_end_tokens(reply, special)
        if text != reply:
            odd("end-token")
        if any(_found(text, special)):
            odd("special-token")


NEXT_TURN = (
    "\n\nHuman:",
    "\n\nUser:",
    "<|im_start|>user",
    "<|user|>",
    "<|start_header_id|>user",
    "<start_of_turn>user",
    "<|User|>",
    "<｜User｜>",
    "[INST]",
    "\n### Human:",
    "\n### User:",
    "\n### Instruction:",
)
"""How a user's turn begins in hh-rlhf, ChatML, Llama 2 and 3, Gemma, DeepSeek, Alpaca and Vicuna data."""

_GARBLED = (
    "\ufffd", "Ã©", "Ã¨", "Ã¼", "Ã¶", "Ã¤", "Ã±", "Ã§", "Ã¡", "Ã³",
    "â€™", "â€œ", "â€\x9d", "â€“", "â€”", "â€¦", "Â\xa0",
)  # fmt: skip
"""The replacement character, and what frequent UTF-8 letters and quotes become when they are read as Windows-1252."""

_LEAST_LEAK = 20
"""Characters of the shortest prompt that counts as leaked: a reply to `Hello` may well hold it."""
_NEAR = 0.9


def check_texts(reading: Reading, odd: Odd) -> None:
    """Tell `odd` every rule that the row's prompt and replies break."""
    users = [turn.content for turn in reading.prompt if turn.role == "user"]
    if not ordered(reading.prompt):
        odd("role-order")
    if not users or any(not said.strip() for said in users):
        odd("empty-prompt")
    replies = [reply for reply in (reading.chosen, reading.rejected) if reply is not None]
    asked = users[-1].strip() if users else ""
    for reply in replies:
        _check_reply(reply, asked, odd)
    for text in (*(turn.content for turn in reading.prompt), *replies):
        if not text.isascii():
            _check_letters(text, odd)
    if reading.chosen is not None and reading.rejected is not None:
        _check_pair(reading.chosen.strip(), reading.rejected.strip(), odd)


def _check_reply(reply: str, asked: str, odd: Odd) -> None:
    if not reply.strip():
        odd("empty-reply")
    if len(asked) >= _LEAST_LEAK and asked in reply:
        odd("prompt-in-reply")
    if any(mark in reply for mark in NEXT_TURN):
        odd("next-turn")


def _check_letters(text: str, odd: Odd) -> None:
    if any(sign in text for sign in _GARBLED):
        odd("garbled")
    try:
        text.encode()
    except UnicodeEncodeError:
        odd("half-character")


def _check_pair(chosen: str, rejected: str, odd: Odd) -> None:
    if chosen == rejected:
        odd("identical" if chosen else "empty-reply")
        return
    shorter, longer = sorted((len(chosen), len(rejected)))
    if shorter >= _NEAR * longer and alike(chosen, rejected) >= _NEAR:
        odd("near-identical")


def alike(one: str, other: str) -> float:
    """Jaccard similarity of the sets of three-character pieces, from 0 to 1; 0 for texts shorter than that."""
    first = {one[at : at + 3] for at in range(len(one) - 2)}
    second = {other[at : at + 3] for at in range(len(other) - 2)}
    shared = len(first & second)
    return shared / max(len(first) + len(second) - shared, 1)


_KINDS: dict[type, str] = {
    str: "text", list: "list", dict: "object", bool: "true/false", int: "number", float: "number"
}  # fmt: skip
_MOST_COLUMNS = 200
_WANTED = ("prompt", "chosen", "rejected", "completion", "label", "completions")


class Kinds:
    """The kind of value that each column held first; None fits every kind."""

    def __init__(self) -> None:
        self._kinds: dict[str, str] = {}

    def add(self, row: dict[str, object], line: int, main: Iterable[str], tally: FindingCounter) -> None:
        """Take one row in, and count it where a column holds another kind of value than before."""
        odd = []
        for name, value in row.items():
            kind = _KINDS.get(type(value))
            if kind is None:
                continue
            first = self._kinds.get(name)
            if first is None:
                if len(self._kinds) < _MOST_COLUMNS:
                    self._kinds[name] = kind
            elif first != kind:
                odd.append(name)
        if odd:
            tally.add("mixed-types" if any(name in main for name in odd) else "other-types", line)


def main_columns(shape: Shape) -> frozenset[str]:
    """The columns that hold the data themselves."""
    sided = () if shape.sided is None else (shape.sided.first, shape.sided.second)
    prompt = () if shape.prompt is None else (shape.prompt.main, *shape.prompt.parts)
    return frozenset({*shape.columns.values(), *sided, *prompt})


def name_findings(shape: Shape | None, columns: tuple[str, ...], rows: int) -> Iterator[Finding]:
    """What to say about the names of the columns."""
    if shape is None:
        yield about_file("error", "columns", rows, _unknown(columns), _wanted(columns))
        return
    for name, wanted in shape.misnamed.items():
        yield about_file(
            "error",
            "columns",
            rows,
            f"the column `{name}` should be called `{wanted}`: it is read as that here, trainers do not find it",
            f'dataset.rename_column("{name}", "{wanted}"), or `rlaif data export`',
        )
    if shape.sided is not None or shape.dialogue is not None:
        yield about_file("error", "columns", rows, f"{notes_of(shape)[0]}; trainers do not find them", _EXPORT)
    for note in notes_of(shape)[shape.sided is not None or shape.dialogue is not None :]:
        level: Level = "warning" if note.startswith(_RIVAL) else "note"
        yield about_file(level, "column-use", rows, note, "rename a column that is meant otherwise, or drop it")


_EXPORT = "`rlaif data export FILE --format trl -o DIR` writes the usual columns"
_RIVAL = "columns that may name a winner"


def notes_of(shape: Shape) -> list[str]:
    """What to say of how columns are read, and of those that are not: a line each, the winner's first."""
    notes = []
    if shape.sided is not None and shape.winner is not None:
        names = dict.fromkeys((shape.sided.first, shape.sided.second))
        notes.append(f"{quoted(names)} are read as chosen and rejected, {shape.winner.says}")
    if shape.dialogue is not None:
        notes.append(
            f"`{shape.dialogue}` is read as a prompt and a completion, which `{shape.columns['label']}` judges"
        )
    if shape.prompt is not None and shape.prompt.parts:
        notes.append(f"the prompt is {quoted((shape.prompt.main, *shape.prompt.parts))} together")
    if shape.rivals:
        notes.append(f"{_RIVAL} and are not read: {quoted(shape.rivals)}")
    if shape.unused:
        notes.append(f"columns not used: {quoted(shape.unused)}")
    return notes


def quoted(names: Iterable[str]) -> str:
    """Names of columns, for people."""
    return ", ".join(f"`{name}`" for name in names)


def _unknown(columns: tuple[str, ...]) -> str:
    held = f"columns: {', '.join(columns)}" if columns else "the rows are not objects"
    return f"this is no preference data that is known ({held})"


def _wanted(columns: tuple[str, ...]) -> str:
    hints = {name: close for name in columns if (close := nearest(name, _WANTED)).startswith("did")}
    told = "".join(f"`{name}`: {hint} " for name, hint in hints.items() if name not in _WANTED)
    return f"{told}needed: prompt, chosen, rejected; or chosen, rejected; or prompt, completion, label"


_REFUSAL_GAP = 0.1
_MINORITY = 0.2
_FLAT = 0.98
"""Bits; labels of 0.58 have as many."""


@dataclass
class LabelSums:
    """Soft labels, or classes."""

    soft: int = 0
    half: int = 0
    certain: int = 0
    good: int = 0
    bad: int = 0
    _entropy: float = 0.0

    def add(self, reading: Reading, odd: Odd) -> None:
        """Take one row's label in; `odd` is told the rules that it breaks."""
        if reading.rejected is None or reading.chosen is None:
            self.good += reading.chosen is not None
            self.bad += reading.chosen is None
        if reading.scores is not None and reading.scores[0] < reading.scores[1]:
            odd("score-side")
        if reading.probability is not None:
            self._add_soft(reading.probability, odd)

    def _add_soft(self, value: object, odd: Odd) -> None:
        probability = number_of(value)
        if probability is None or not 0 <= probability <= 1:
            odd("probability-range")
            return
        self.soft += 1
        self.half += probability == 0.5
        self.certain += probability in (0.0, 1.0)
        self._entropy += entropy(probability)
        if probability == 0.5:
            odd("label-half")
        elif probability < 0.5:
            odd("probability-side")

    def result(self) -> Labels | None:
        """The figures, or None where there are no labels but the order itself."""
        if self.good + self.bad:
            return Labels(rows=self.good + self.bad, desirable=self.good / (self.good + self.bad))
        if not self.soft:
            return None
        half, certain = self.half / self.soft, self.certain / self.soft
        return Labels(rows=self.soft, half=half, certain=certain, entropy=self._entropy / self.soft)


def entropy(probability: float) -> float:
    """Of one soft label, in bits."""
    return -sum(p * math.log2(p) for p in (probability, 1 - probability) if p > 0)


def label_finding(labels: Labels | None) -> Finding | None:
    """What to say about the labels as a whole."""
    if labels is None:
        return None
    if labels.desirable is not None:
        return _class_finding(labels.rows, labels.desirable)
    if labels.certain == 1.0:
        what, hint = "all soft labels are exactly 0 or 1: they are hard labels", "nothing, if that is meant"
        return about_file("note", "hard-labels", labels.rows, what, hint)
    if labels.rows >= LEAST_PAIRS and labels.entropy is not None and labels.entropy > _FLAT:
        what = f"soft labels are all near 0.5 (mean entropy {labels.entropy:.3f} bits): they say next to nothing"
        return about_file("warning", "flat-labels", labels.rows, what, "ask a better judge, or for other replies")
    return None


def _class_finding(rows: int, desirable: float) -> Finding | None:
    if desirable in (0.0, 1.0):
        what = f"all replies are {'desirable' if desirable else 'undesirable'}: nothing to tell apart"
        return about_file("error", "one-class", rows, what, "add the others")
    if min(desirable, 1 - desirable) >= _MINORITY:
        return None
    hint = "weigh the classes (TRL: desirable_weight, undesirable_weight), or balance them"
    return about_file("warning", "class-balance", rows, f"{desirable:.0%} of the replies are desirable", hint)


@dataclass
class RefusalSums:
    """Replies that open like a refusal, on both sides."""

    chosen: int = 0
    rejected: int = 0

    def add(self, reading: Reading) -> None:
        """Take one row in."""
        self.chosen += reading.chosen is not None and refuses(reading.chosen)
        self.rejected += reading.rejected is not None and refuses(reading.rejected)

    def result(self, chosen: int, rejected: int) -> Refusals:
        """The shares of so many chosen and rejected replies."""
        return Refusals(chosen=self.chosen / max(chosen, 1), rejected=self.rejected / max(rejected, 1))


def refusal_finding(refusals: Refusals, rows: int) -> Finding | None:
    """What to say about refusals: a gap between the sides is what a model learns."""
    gap = refusals.chosen - refusals.rejected
    if rows < LEAST_PAIRS or abs(gap) < _REFUSAL_GAP:
        return None
    what = f"{refusals.chosen:.0%} of the chosen and {refusals.rejected:.0%} of the rejected replies open as refusals"
    hint = "if the model should not " + ("refuse more" if gap > 0 else "refuse less") + ", balance the two sides"
    return about_file("warning", "refusal-gap", rows, what, hint)
