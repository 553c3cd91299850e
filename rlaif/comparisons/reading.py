"""Reading a verdict in words: strictly, the last one that is stated, or none.

A verdict is *stated* where a whole reply or its last line is a label, or where a label follows `verdict`, `answer` and
the like by a colon or an "is". No letter is ever picked out of prose, and the article "a" is no label; an off-menu
last verdict ("neither") never falls back to an earlier one, and neither does a list of labels, which is the
instructions over again. What a reasoning model thinks is no verdict, whether it thinks aloud in tags or its thinking
was cut off before it ended.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from rlaif.comparisons.questions import LABELS
from rlaif.records import Verdict

_FIRST, _SECOND = LABELS
_WORDS = {_FIRST: Verdict.FIRST, _SECOND: Verdict.SECOND, "TIE": Verdict.TIE, "A TIE": Verdict.TIE}
_HEDGES = {"NOT", "NEITHER", "BOTH", "EITHER", "NONE", "NO", "UNCLEAR", "UNDECIDED", "EQUAL"}
_WINDOW = 80
"""Characters after a cue in which its label must stand."""

_OPENS = r"<\s*(?:think|thinking|thought|reasoning|scratchpad)\s*>|\[THINK\]|<\|channel\|>analysis"
_CLOSES = r"<\s*/\s*(?:think|thinking|thought|reasoning|scratchpad)\s*>|\[/THINK\]|<\|channel\|>final(?:<\|message\|>)?"
_TAG = re.compile(rf"(?P<open>{_OPENS})|(?P<close>{_CLOSES})", re.IGNORECASE)

_MARKS = "*_`\"'“”‘’„«»()[]{}#>$\\.!。"
_NAMED = r"(?:(?:the\s+)?(?:reply|response|option|assistant|answer)\s+)?"
_BARE = re.compile(rf"{_NAMED}[{re.escape(_MARKS)}\s]*(?P<word>a tie|\w+)\s*:?", re.IGNORECASE)
_CUE = re.compile(
    r"(?<!\w)(?:verdict|answer|choice|decision|judge?ment|winner|preference"
    r"|(?:preferred|better) (?:reply|response|option)"
    r"|antwort|urteil|réponse|respuesta|veredicto|resposta|risposta|ответ|вердикт)(?!\w)"
    r"|答案|回答|结论|結論|判断|判定|정답|답변|\\boxed(?=\s*\{)",
    re.IGNORECASE,
)
_SAYS = re.compile(
    rf"(?P<is>\s+(?:is|would be|ist|est|es|é|è)\s+|\s*[是为為は은는]\s*)?(?P<marks>[\s{re.escape(_MARKS)}:：=–—-]*)"
    rf"{_NAMED}(?:\\?text)?[\s{re.escape(_MARKS)}]*(?P<word>a tie(?!\w)|[^\W_]+)",
    re.IGNORECASE,
)
_LISTS = re.compile(
    rf"[\s{re.escape(_MARKS)}]*(?:[/|,&+<=~≈≤≺]|or\b|and\b|oder\b|und\b|ou\b|o\b)[\s{re.escape(_MARKS)}]*{_NAMED}"
    rf"[\s{re.escape(_MARKS)}]*(?:(?-i:{_FIRST}|{_SECOND})|TIE)\b",
    re.IGNORECASE,
)
_ENDS = re.compile(rf"[\s{re.escape(_MARKS)}:：]*?(?:\n|$)")
_ARTICLE = re.compile(
    r"\s+(?!(?:is|was|wins|has|does|because|since|as|for|over|by|due|though|although|but|not|or|and|with"
    r"|ist|weil|da|est|car|parce|es|porque)\b)[^\W\d_]"
)
"""What follows "A" where it is an article: a word that does not go on about reply A."""
_JOINS = re.compile(rf"[\s{re.escape(_MARKS)}]*(?:or|and|[/|,])[\s{re.escape(_MARKS)}]*", re.IGNORECASE)


def parse_verdict(text: str) -> Verdict:
    """Read a text verdict: a reply that is only a label, its last line, or the last stated one ("verdict: A")."""
    said = without_thinking(text).strip()
    if not said:
        return Verdict.UNPARSED
    for whole in (said, said.splitlines()[-1]):
        bare = _bare(whole)
        if bare in _WORDS:
            return _WORDS[bare]
    stated = list(_statements(said))
    if not stated or stated[-1].listed:
        return Verdict.UNPARSED
    return _WORDS.get(stated[-1].word, Verdict.UNPARSED)


def without_thinking(text: str) -> str:
    """What is said outside of thinking; nothing after thinking that never ended.

    A closing tag without an opening one ends thinking too: some chat templates open it in the prompt.
    """
    said: list[str] = []
    at, thinking = 0, False
    for tag in _TAG.finditer(text):
        if tag["close"] and not thinking:
            said.clear()
        elif not thinking:
            said.append(text[at : tag.start()])
        at, thinking = tag.end(), bool(tag["open"]) or (thinking and not tag["close"])
    return "".join(said) + ("" if thinking else text[at:])


def _bare(text: str) -> str | None:
    """The only word of a text that is no more than that."""
    if len(text) > _WINDOW:
        return None
    match = _BARE.fullmatch(text.strip(f"{_MARKS} \n\t"))
    return match["word"].upper() if match else None


def _label(word: str, rest: str) -> str:
    """The word that is stated, in capitals; where a letter is no label but an article, it is left small."""
    if word.upper() not in LABELS:
        return word.upper()
    article = _ARTICLE.match(rest) if word == _FIRST else not word.isupper() and not _ENDS.match(rest)
    return word.lower() if article else word.upper()


class _Statement(NamedTuple):
    """A word that is stated as the verdict."""

    word: str
    listed: bool
    """It stands in a list of labels."""


def _statements(text: str) -> Iterator[_Statement]:
    """The stated verdicts, in order; where `answer` only stands in a sentence, there is none."""
    last_end: int | None = None
    for cue in _CUE.finditer(text):
        window = text[cue.end() : cue.end() + _WINDOW]
        says = _SAYS.match(window)
        if says is None or not (says["is"] or set(says["marks"]) & set(':：=–—-*[({"“')):
            continue
        word = _label(says["word"], window[says.end() :])
        if says["is"] and word not in _WORDS and word not in _HEDGES:
            continue  # "the answer is well written"
        joined = last_end is not None and _JOINS.fullmatch(text[last_end : cue.start()]) is not None
        yield _Statement(word, joined or _LISTS.match(window, says.end()) is not None)
        last_end = cue.end() + says.end()
