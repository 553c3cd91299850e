"""The conclusion that a judge draws in a sentence: "Therefore, reply A is better."

A sentence counts only where it says itself that it concludes, names one reply as the better one outright, and neither
denies it, nor makes it depend on anything, nor reports what somebody else says. Everything else is no verdict: a
sentence that is passed over costs one label, a sentence that is misread makes a wrong one.
"""

from __future__ import annotations

import re

NOUN = (
    r"(?:reply|response|option|assistant|answer|output|model|candidate|completion|summary|version|chatbot"
    r"|submission|solution|essay)"
)
"""What judges call a reply."""
_OPEN, _SHUT = r"[(\[*_`\"'“‘]{0,6}", r"[)\]*_`\"'”’]{0,6}"


def reply(number: int) -> str:
    """A pattern of one reply by its label: in either case after a noun, a capital on its own."""
    return (
        rf"(?:(?:the\s+)?{_OPEN}(?P<noun{number}>{NOUN})[\s_-]{{1,3}}{_OPEN}(?P<named{number}>[AB])"
        rf"|(?<![\w'’-]){_OPEN}(?P<bare{number}>(?-i:[AB])))(?![\w-]){_SHUT}(?:(?<!['’])['’]s\s+{NOUN}(?!\w))?"
    )


_ADVERB = (
    r"(?:\w{2,20}ly\s+|(?:much|far|still|also|even|indeed|therefore|thus|hence|overall|just|by\s+far|a\s+bit|a\s+little"
    r"|in\s+my\s+(?:opinion|view|judge?ment)|on\s+balance|on\s+the\s+whole|in\s+the\s+end)\s+)"
)
_CHOICE = rf"(?:{NOUN}|one|choice|pick|fit|match|alternative|of\s+the\s+(?:two|pair)|of\s+both|overall)(?!\w)"
_BETTER = re.compile(
    rf"{reply(1)}\s+"
    rf"(?:{_ADVERB}{{0,3}}(?:is|was|seems|appears|proves|remains|would\s+be|comes\s+out|stands\s+out)\s+"
    rf"(?:to\s+be\s+|as\s+)?{_ADVERB}{{0,3}}(?:(?:the|a|my)\s+)?(?:clear\s+|overall\s+|{_ADVERB})?"
    r"(?P<good>better|superior|preferable|preferred|winner|stronger|best|ahead|on\s+top)"
    rf"|{_ADVERB}{{0,3}}(?:wins|prevails|has\s+the\s+edge|outperforms"
    r"|better\s+(?:executes|follows|answers|addresses|fulfill?s|meets|satisfies|adheres|serves|responds|completes)))"
    r"(?![\w-])",
    re.IGNORECASE,
)
_PREFERS = re.compile(
    r"\bI(?:['’]d|['’]ll|\s+would|\s+will|\s+do|\s+must|\s+have\s+to)?\s+"
    rf"{_ADVERB}{{0,2}}(?:prefer|choose|pick|select|favou?r|go\s+with|vote\s+for|side\s+with|decide\s+for|opt\s+for)"
    rf"\s+{reply(1)}(?=\s*(?:[.,;:!)—–]|$|over\b|because\b|since\b|as\b|for\b|here\b|overall\b))",
    re.IGNORECASE,
)
_TIES = re.compile(
    r"\b(?:it(?:['’]s|\s+is)|this\s+is|call\s+(?:it|this)|result\s+is|ends\s+in)\s+a\s+tie(?=\s*(?:[.,;:!]|$))",
    re.IGNORECASE,
)
_AFTER_GOOD = re.compile(
    r"\s*(?:$|[.,;:!)*_\"'”’—–]|-\s|(?:than|over|because|since|as|here|overall|by|and|but|with|due\s+to)\b"
    r"|for\s+(?:this|these|the)\b|at\s+\w+ing\b|in\s+(?:terms\s+of|executing|following|answering|this|my|general)\b"
    rf"|{_CHOICE})",
    re.IGNORECASE,
)
"""What may follow "better": not "better written" or "better in tone", which is one side of a reply only."""
_THAN = re.compile(rf"\s*(?:{_CHOICE}\s*)?(?:than|over)\s+", re.IGNORECASE)
_OTHER = re.compile(rf"(?:{reply(1)}|the\s+other\b|its\s+(?:rival|counterpart)\b)", re.IGNORECASE)

_CONNECTIVE = (
    r"(?:therefore|(?:thus|so)(?!\s+(?:far|that|much|many|long|called|as)\b)|hence|overall|ultimately|consequently"
    r"|accordingly|altogether|all\s+in\s+all|in\s+(?:short|conclusion|summary|sum|total|the\s+end)"
    r"|to\s+(?:conclude|sum\s+up|summari[sz]e)|on\s+(?:balance|the\s+whole)|as\s+a\s+result"
    r"|for\s+(?:this|that|(?:all\s+)?these)\s+reasons?|because\s+of\s+(?:this|that)|(?:that|this|which)\s+is\s+why)(?!\w)"
)
_OPENING = (
    r"(?:based\s+on|after\s+(?:\w+\s+){0,2}(?:consideration|review|comparison|evaluation|analysis|\w+ing)"
    r"|conclusion|final\s+thoughts?)(?!\w)"
)
_CONCLUDES = re.compile(
    rf"^[\W_]{{0,12}}(?:(?:and|but)\s+)?(?:{_CONNECTIVE}|{_OPENING})|[,;:—–]\s*(?:and\s+)?{_CONNECTIVE}", re.IGNORECASE
)
_DENIES = re.compile(
    r"\b(?:not|no|never|neither|nor|none|nothing|nobody|hardly|barely|scarcely|rarely|seldom|cannot|without|nowhere|less"
    r"|least|instead\s+of|rather\s+than|unlike|wrong|false|untrue|doubt|deny|difficult|impossible|worse)\b|n['’]t\b",
    re.IGNORECASE,
)
_DEPENDS = re.compile(
    r"\b(?:if|unless|whether|whichever|depend(?:s|ing)?|assuming|provided\s+that|suppos(?:e|ing)|might|may|could|should"
    r"|ought|would\s+have|imagine|until|once|were\s+it|when|where"
    r"|(?:to|for)\s+(?:some|many|most|others|people|readers|beginners|users|experts|children))\b|\?",
    re.IGNORECASE,
)
_REPORTS = re.compile(
    r"\b(?:says?|said|saying|claims?|claimed|argues?|argued|thinks?|thought|believes?|believed|states?|stated"
    r"|suggests?|insists?|insisted|according|told|tells?|writes?|wrote|asks?|asked|hopes?|wants?|pretends?|"
    rf"(?:{NOUN}\s+\S{{1,6}}|user|he|she|they|it|expert|person)\s+(?:\w+\s+)?conclude[sd]?)\b",
    re.IGNORECASE,
)
_SPEAKER = re.compile(r"\bI(?:['’]d|\s+would|\s+do|\s+must)?\s+(?:think|say|believe|argue)\b", re.IGNORECASE)
_FORCED = re.compile(
    r"\bif\s+(?:I|one|we)\s+(?:(?:had|have|were|was|am)\s+(?:forced\s+)?to|must)\s+(?:choose|pick|decide|select)\b,?",
    re.IGNORECASE,
)
_NO = re.compile(r"\A[\W_]{0,9}no\s?[,:.!—–-]", re.IGNORECASE)
_CLAUSE = re.compile(rf"[,;:—–]|(?<!\w){_CONNECTIVE}", re.IGNORECASE)
_PART_OF = re.compile(
    r"\b(?:of|in|by|from|for|than|to|with|like|about|between|and|or|nor|both|on|&|/)\s+\Z", re.IGNORECASE
)
_JOINED = re.compile(r"\b(?:A|B)\W{0,3}\s+(?:and|or|nor|&|/)\s+\Z|\b(?:both|either)\s+\Z", re.IGNORECASE)
_STARTS = re.compile(
    r"(?:\A|[,;:.!—–\-*(]|\b(?:that|and|but|so|therefore|thus|hence|overall|because|as|since|while|although|though|whereas"
    r"|ultimately|consequently|accordingly|clearly|conclude|think|believe|say|why|conclusion|end|is|shows|means))[\s*_]{0,9}\Z",
    re.IGNORECASE,
)
"""What may stand before a label without a noun: not "vitamin", "plan" or "group"."""
_SENTENCE = re.compile(r"(?<=[.!?。])[\"'”’)*_]{0,4}\s+|\n")
_MOST_CHARS = 600
"""A sentence with more than that is no conclusion."""


def concluded(text: str) -> str | None:
    """The label ("A", "B" or "TIE") that the concluding sentences of a text name, if nothing speaks against it."""
    said: set[str] = set()
    for sentence in _sentences(text):
        concludes = _CONCLUDES.search(sentence[:_MOST_CHARS]) is not None
        if (said or concludes) and (label := decided(sentence)):
            said.add(label)
    return said.pop() if len(said) == 1 else None


def first_decided(text: str) -> str | None:
    """The label that the first sentence of a text names as the better reply."""
    return next((decided(sentence) for sentence in _sentences(text)), None)


def decided(sentence: str) -> str | None:
    """The label that one sentence names as the better reply, whether or not it says that it concludes."""
    if len(sentence) > _MOST_CHARS:
        return None
    plain = _FORCED.sub("", sentence)
    if _DEPENDS.search(plain):
        return None
    said = {_label(found) for way in (_BETTER, _PREFERS) for found in way.finditer(plain) if _holds(plain, found)}
    if not said and (tie := _TIES.search(plain)) and not _undone(plain, tie):
        return "TIE"
    return said.pop() if len(said) == 1 else None


def is_foreign(before: str) -> bool:
    """Whether a sentence that begins so denies what follows, asks for it, or says that somebody else says it."""
    before = _NO.sub("", before)
    reports = _REPORTS.search(before) and not _SPEAKER.search(before)
    return bool(reports or _DENIES.search(before) or _DEPENDS.search(_FORCED.sub("", before)))


def _sentences(text: str) -> list[str]:
    return [each for part in _SENTENCE.split(text) if (each := part.strip(" \t\r>#*_"))]


def _label(found: re.Match[str]) -> str:
    return str(found["named1"] or found["bare1"]).upper()


def _holds(sentence: str, found: re.Match[str]) -> bool:
    """Whether a match says what it seems to say, by what stands around it."""
    before, after = sentence[: found.start()], sentence[found.end() :]
    if _undone(sentence, found):
        return False
    if found.re is _BETTER and not _is_subject(before, found):
        return False
    good = found.groupdict().get("good")
    if good is None:
        return True
    if good.lower() == "best" and (found["noun1"] or "").lower() in ("", "option", "answer", "solution"):
        return False  # of the choices of an exam
    than = _THAN.match(after)
    if than is None:
        return _AFTER_GOOD.match(after) is not None
    other = _OTHER.match(after, than.end())
    return other is not None and (not (other["named1"] or other["bare1"]) or _label(other) != _label(found))


def _is_subject(before: str, found: re.Match[str]) -> bool:
    """Whether the reply itself is called better: not "the tone of reply A", "A or B", or "vitamin A"."""
    near = before[-40:]
    if _JOINED.search(near):
        return False
    if found["noun1"]:
        return _PART_OF.search(near) is None or re.search(r"[,;:]\s*and\s+\Z", near) is not None
    return _STARTS.search(near) is not None


def _undone(sentence: str, found: re.Match[str]) -> bool:
    """Whether the clause denies what the match says, or says that somebody else says it, or quotes it."""
    start = max((each.end() for each in _CLAUSE.finditer(sentence, 0, found.start() + 1)), default=0)
    if sentence[start : found.start()].strip(" *_").lower().startswith("that"):
        start = 0
    if _DENIES.search(sentence, start, found.end()):
        return True
    before = sentence[start : found.start()]
    if _REPORTS.search(before) and not _SPEAKER.search(before):
        return True
    shown = sentence[: found.start()]
    return shown.count('"') % 2 == 1 or shown.count("“") > shown.count("”")
