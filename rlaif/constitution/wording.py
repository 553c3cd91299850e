"""What is wrong with the wording of a text that a judge reads. Each function quotes the words it objects to.

All of it is pattern matching on English: what it finds is nearly always a weak spot, what it misses may be one too.
"""

from __future__ import annotations

import re

_REPLY = r"(?:reply|response|answer|option|candidate|choice|completion|output|assistant)"
_COUNTED = r"(?:questions|parts|steps|times|points|things|to|or|and|of|in|per)\b"
_SLOTS = (
    re.compile(rf"\b(?i:{_REPLY})s?\s*[(\[\"'“‘]?[AB][)\]\"'”’]?(?![\w’'-])"),
    re.compile(r"(?<![Vv]itamin )(?<![Vv]itamins )(?<![Hh]epatitis )\b[AB] (?:or|and|vs\.?|versus|over|than) [AB]\b"),
    re.compile(r"[(\[][AB][)\]]"),
    re.compile(
        rf"\b(?:the|this|that|your) (?:very )?(?:first|second|former|latter|1st|2nd|left-hand|right-hand) {_REPLY}\b",
        re.IGNORECASE,
    ),
    re.compile(
        rf"\b{_REPLY} (?:(?:no\.|number|#) ?(?:[12]|one|two)|#?[12])\b(?![.,]?\d| ?%|[ –-]+{_COUNTED})", re.IGNORECASE
    ),
    re.compile(r"\b(?:prefer|choose|pick|select|is|than) the (?:first|second|former|latter) one\b", re.IGNORECASE),
)
_LISTED = re.compile(r"[(\[]C[)\]]")
"""A third letter: (A), (B), (C) number the points of a list."""


def names_a_slot(text: str) -> str | None:
    """Words that point to one of the two places in the judge's prompt, such as `response A` or `the first reply`."""
    for pattern in _SLOTS[:2] if _LISTED.search(text) else _SLOTS:
        found = pattern.search(text)
        if found:
            return found[0].strip()
    return None


def left_slot(text: str) -> str | None:
    """A slot of some other template that nothing fills here: `{first}`, `{{question}}`."""
    found = re.search(r"\{\{?\s*[A-Za-z_]\w*\s*\}?\}", text)
    return found[0] if found else None


_CLAUSE = re.compile(
    r"[.;:?!,()\[\]—–\n]|\b(?:and|or|but|nor|that|which|who|whom|whose|where|when|while|because|if|whether|although|though"
    r"|unless|until|so|than|as|what|why|how|before|after|since)\b",
    re.IGNORECASE,
)
_IDIOM = re.compile(
    r"\b(?:not (?:only|just|merely|simply|necessarily|least)|no (?:longer|matter|doubt|more|less|fewer)|says? no"
    r"|whether or not|(?:why|if|or) not)\b|[\"“'‘`]no[\"”'’`]",
    re.IGNORECASE,
)
_NOT = r"(?:not|cannot|\w+n['’]t|never)"
_NEGATION = r"(?:not|cannot|\w+n['’]t|never|no|none|nobody|nothing|without|no one)"
_FAILING = r"(?:fail(?:s|ed|ing)?|neglect(?:s|ed|ing)?|refrain(?:s|ed|ing)?|lack(?:s|ed|ing)?|avoid(?:s|ed|ing)?)"
_MILD = r"(?:be|been|being|is|are|seem|sound|feel|appear|look|so|too|very|at all|entirely|completely|in any way)"
_WORDS = r"(?:\s+[\w'’-]+)"
_DOUBLE = (
    re.compile(rf"\b{_NEGATION}{_WORDS}{{0,3}}\s+(?!without\b){_NEGATION}\b", re.IGNORECASE),
    re.compile(rf"\b{_NEGATION}(?:\s+{_MILD}){{0,3}}\s+without\b", re.IGNORECASE),
    re.compile(rf"\b{_NEGATION}{_WORDS}{{0,1}}\s+{_FAILING}\b", re.IGNORECASE),
    re.compile(rf"\b(?:fail|neglect)(?:s|ed|ing)? to{_WORDS}{{0,1}}\s+(?:not|{_FAILING})\b", re.IGNORECASE),
    re.compile(rf"\bavoid(?:s|ed|ing)?{_WORDS}{{0,1}}\s+(?:not|never|no|{_FAILING})\b", re.IGNORECASE),
)
_LITOTES = re.compile(
    rf"\b{_NOT}(?:\s+{_MILD}){{0,3}}\s+(un[a-z]{{3,}}|dis(?:honest|respectful|courteous|loyal|obedient)"
    r"|im(?:polite|moral|patient|proper)|in(?:accurate|correct|appropriate|considerate|complete|sensitive|tolerant|sincere)"
    r"|irr(?:esponsible|elevant|ational))\b",
    re.IGNORECASE,
)
_NOT_NEGATIVE = re.compile(
    r"un(?:der|less|til|ion|it|iq|iv|ify|cle|iform|anim|load|do\b|leash|pack|wind)", re.IGNORECASE
)
"""Words with `un` in front that negate nothing, or are acts."""


def double_negative(text: str) -> str | None:
    """Two negatives within one clause, such as `not unhelpful` or `does not fail to avoid`."""
    for clause in _CLAUSE.split(_IDIOM.sub(",", text)):
        for pattern in _DOUBLE:
            found = pattern.search(clause)
            if found:
                return " ".join(found[0].split())
        for litotes in _LITOTES.finditer(clause):
            if not _NOT_NEGATIVE.match(litotes[1]):
                return " ".join(litotes[0].split())
    return None


_CHOICE = re.compile(
    r"\b(?:which|whichever|choose|pick|select|prefer|compare|rank|better|best|worse|worst|other"
    r"|(?:both|either|two|the|these) (?:replies|responses|answers)|between)\b",
    re.IGNORECASE,
)
_DEGREE = re.compile(r"\b(?:more|most|less|least|fewer|fewest|than)\b", re.IGNORECASE)
_COMPARATIVE = re.compile(r"\b(?!answer|whether|user|offer|never|after|ever|customer)\w{3,}er\b", re.IGNORECASE)
_ABOUT_ONE = re.compile(
    r"(?:^|(?<=[.?!] ))(?:(?:if|when|where|in)\b[^.?!]*?, )?"
    r"(?:does|do|did|is|are|was|has|have|had|can|could|will|would|should|must|might|how|rate|score|grade)\b[^.?!]*",
    re.IGNORECASE,
)


def asks_about_one(text: str) -> str | None:
    """The question about a single reply (`Is the reply polite?`) in a text that offers no choice between two."""
    if _CHOICE.search(text):
        return None
    found = _ABOUT_ONE.search(" ".join(text.split()))
    return found[0] if found else None


def offers_a_choice(text: str) -> bool:
    """Whether the text holds any word of choosing or comparing; `kinder` and its like count."""
    return any(pattern.search(text) for pattern in (_CHOICE, _DEGREE, _COMPARATIVE))


_COMMON = """
which reply replies response responses answer assistant the a an is are be more most better one of to in on and or it
that this with as for its does do than please choose from person user by at who what
"""
_LITTLE = frozenset(_COMMON.split())


def content_words(text: str) -> frozenset[str]:
    """The words that set a question apart, cut to their first six letters so that `politer` meets `polite`."""
    words = re.findall(r"[^\W_]+", text.lower())
    return frozenset(_stem(word) for word in words if word not in _LITTLE)


def _stem(word: str) -> str:
    for ending in ("ing", "est", "er", "ed", "es", "ly", "e", "s", "r"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            break
    return word[:6]
