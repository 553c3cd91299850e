"""Reads a verdict in words: strictly, the last one that is stated, or none.

A judge writes much that has a label in it and is no verdict: headings ("Assistant B's answer:"), the right option of
an exam question ("the answer is (B) ribosomal"), the conclusion of one of the responses, the instructions over again.
So the kinds of statements have a rank, and a lower one counts only where nothing of a higher one does:

1. a whole output that is a label, or whose last line is;
2. a statement under a word that is about nothing but the verdict ("verdict", "winner", "better reply"), or in a form
   that judges are asked for (`[[A]]`, `[[A>B]]`, `[RESULT] A`): the last one in the text;
3. after the last such word, in the last two lines or at the start of the first one: a statement that opens its
   sentence with a word that is about much else as well ("answer", "choice", a LaTeX box), then a first line that is a
   label, then a sentence that concludes ("Therefore, reply A is better"; see `_concluded`).

An off-menu last verdict ("neither") never falls back to an earlier one, and neither does a list of labels. A verdict
that is taken back is none, and a text that states two has none. The thoughts of a reasoning model are no verdict,
whether it thinks aloud in tags or its thinking was cut off before it ended.

A sentence concludes only where it says itself that it does, names one response as the better one outright, and neither
denies it, nor makes it depend on anything, nor reports somebody else's view. A sentence that is passed over costs one
label; a sentence that is misread makes a wrong one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from rlaif.feedback.prompts import LABELS
from rlaif.records import Verdict
from rlaif.text import without_thinking

_NOUN = (
    r"(?:reply|response|option|assistant|answer|output|model|candidate|completion|summary|version|chatbot"
    r"|submission|solution|essay)"
)
"""What judges call a response."""
_OPEN, _SHUT = r"[(\[*_`\"'“‘]{0,6}", r"[)\]*_`\"'”’]{0,6}"


def _reply(number: int) -> str:
    """A pattern of one response by its label: in either case after a noun, a capital on its own."""
    return (
        rf"(?:(?:the\s+)?{_OPEN}(?P<noun{number}>{_NOUN})[\s_-]{{1,3}}{_OPEN}(?P<named{number}>[AB])"
        rf"|(?<![\w'’-]){_OPEN}(?P<bare{number}>(?-i:[AB])))(?![\w-]){_SHUT}(?:(?<!['’])['’]s\s+{_NOUN}(?!\w))?"
    )


_ADVERB = (
    r"(?:\w{2,20}ly\s+|(?:much|far|still|also|even|indeed|therefore|thus|hence|overall|just|by\s+far|a\s+bit|a\s+little"
    r"|in\s+my\s+(?:opinion|view|judge?ment)|on\s+balance|on\s+the\s+whole|in\s+the\s+end)\s+)"
)
_CHOICE = rf"(?:{_NOUN}|one|choice|pick|fit|match|alternative|of\s+the\s+(?:two|pair)|of\s+both|overall)(?!\w)"
_BETTER = re.compile(
    rf"{_reply(1)}\s+"
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
    rf"\s+{_reply(1)}(?=\s*(?:[.,;:!)—–]|$|over\b|because\b|since\b|as\b|for\b|here\b|overall\b))",
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
"""What may follow "better": not "better written" or "better in tone", which is one side of a response only."""
_THAN = re.compile(rf"\s*(?:{_CHOICE}\s*)?(?:than|over)\s+", re.IGNORECASE)
_OTHER = re.compile(rf"(?:{_reply(1)}|the\s+other\b|its\s+(?:rival|counterpart)\b)", re.IGNORECASE)

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
    rf"(?:{_NOUN}\s+\S{{1,6}}|user|he|she|they|it|expert|person)\s+(?:\w+\s+)?conclude[sd]?)\b",
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

_FIRST, _SECOND = LABELS
_WORDS = {_FIRST: Verdict.FIRST, _SECOND: Verdict.SECOND, "TIE": Verdict.TIE, "A TIE": Verdict.TIE}
_HEDGES = {"NOT", "NEITHER", "BOTH", "EITHER", "NONE", "NO", "UNCLEAR", "UNDECIDED", "EQUAL"}
_WINDOW = 160
"""Characters after a cue in which its statement must stand."""
_SHORT = 80
"""Most characters of a text that is no more than a label."""
_TAIL_LINES, _MOST_TAIL = 2, 4_000
"""Lines at the end in which a weak statement or a conclusion must stand, and the most characters of them."""
_MOST_REST = 600
"""Characters after a statement in which a sentence may speak against it."""

_MARKS = "*_`\"'“”‘’„«»()[]{}#>$\\.!。→⇒✅👉🏆"
_M = rf"[\s{re.escape(_MARKS)}]"
_NAMED = (
    rf"(?:(?:(?:the|die|la)\s+)?(?:{_NOUN}|antwort|réponse|respuesta|resposta|risposta|ответ)[\s_-]{{1,3}}"
    r"|(?:回答|回复)\s?)?"
)
_BARE = re.compile(rf"{_NAMED}[{re.escape(_MARKS)}\s]*(?P<word>a tie|\w+)\s*(?P<colon>:?)", re.IGNORECASE)
_RANKED = re.compile(
    rf"{_NAMED}{_M}{{0,4}}(?P<word>[AB]){_M}{{0,4}}[>≻]{{1,3}}{_M}{{0,4}}{_NAMED}{_M}{{0,4}}(?!(?P=word))[AB]", re.I
)

_STRONG = re.compile(
    r"(?<![^\W_])(?<!/)(?<!/final_)(?:verdict|winner|decision|judge?ment"
    r"|(?:better|preferred|superior|stronger|winning|best|preferable|selected|chosen)[\s_](?:reply|response|assistant|output|completion)"
    r"|better\s+one|better\s+of\s+the\s+two"
    r"|urteil|gewinner|sieger|gagnant|ganador|vencedor|vincitore|veredicto|verdetto|вердикт|победитель)(?!\w)"
    r"|结论|結論|判断|判定|判決|获胜者|勝者|판정|판결|승자",
    re.IGNORECASE,
)
_WEAK = re.compile(
    r"(?<![^\W_])(?<!/)(?<!/final_)(?:answer|choice|preference|antwort|réponse|respuesta|resposta|risposta|ответ)(?!\w)"
    r"|答案|回答|정답|답변|\\boxed(?=\s{0,3}\{)"
    r"|(?<![\w/])(?:preferred|selected|chosen|selection|pick|result|conclusion|better|best|label|response|vote|overall|final|therefore|thus|hence)"
    r"(?=[*_`\"'>]{0,4}\s?[:=]|>)",
    re.IGNORECASE,
)
_BEFORE_WEAK = re.compile(
    rf"(?:{_M}|[-,:;<{{•，、：]|(?<!\w)(?:so|therefore|thus|hence|then|and|the|my|our|a|final|overall|own|in|conclusion|answer|choice"
    r"|i|we|get|have|think|say|would|that|it|follows|is|ultimately|okay|ok|alright|now|result|json"
    r"|die|das|meine?|endgültige|letzte|bessere|la|le|el|il|ma|mon|mi|mia|mio|o|minha|mejor|meilleure|melhor|migliore"
    r"|final[ea]?|finale|dernière|définitive|мой|окончательный|итоговый)(?!\w)"
    r"|我的|最终|最後|最后|因此|所以|综上|故|的|の|最終|따라서|최종|제)*",
    re.IGNORECASE,
)
"""What may stand before such a word in its sentence: not "Assistant B's", "concludes that the" or "correct"."""
_NEAR = 80
"""Characters before a cue in which its sentence must begin."""
_BREAK = re.compile(r"[.!?](?=[\s\"'”’)])|[\n。]|</\w{1,20}>")
_OF_ANOTHER = re.compile(
    rf"(?:['’]s?\s+(?:\w+\s+){{0,2}}|(?<!\w){_NOUN}\s+{_M}{{0,2}}[AB]{_M}{{0,2}}\s?)\Z", re.IGNORECASE
)
_OWN = re.compile(
    r"(?:judge|evaluator|referee|reviewer|grader|here|there|that|it|this|what|today|let)['’]s?\s+(?:\w+\s+){0,2}\Z",
    re.I,
)
_QUALIFIED = re.compile(r"[\W_]{0,12}(?:my\s+)?(?:final|overall)?[\W_]{0,12}", re.IGNORECASE)
_KEY = re.compile(r"\"\s{0,3}:")

_FORM = re.compile(
    rf"\[\[{_M}{{0,4}}{_NAMED}{_M}{{0,4}}(?P<one>A|B|C|TIE){_M}{{0,4}}"
    rf"(?:(?P<sign>>{{1,3}}|<{{1,3}}|=|≈|~|≻){_M}{{0,4}}{_NAMED}(?P<two>[AB]){_M}{{0,4}})?\]\]"
    rf"|\[\s{{0,3}}(?:result|verdict|winner|decision)\s{{0,3}}\]\s{{0,9}}:?{_M}{{0,9}}{_NAMED}{_M}{{0,4}}"
    rf"(?P<word>[^\W_]{{1,20}})(?!\w)",
    re.IGNORECASE,
)
_INSTRUCTS = re.compile(r"[\W_]{0,6}(?:if|when|for|in\s+case|means|where|otherwise|or\s+else)(?!\w)", re.IGNORECASE)

_SAYS = re.compile(
    r"(?:\s{1,3}(?:final|finale|définitive|definitiva|here|now|then|overall|today|in\s+this\s+case|for\s+this\s+(?:pair|question|prompt|comparison)))?"
    r"(?P<is>\s+(?:is|would\s+be|goes\s+to|falls\s+on|favou?rs|ist|est|es|é|è|lautet)(?!\w)\s?|\s?[是为為은는は]\s?)?"
    rf"(?P<marks>[\s{re.escape(_MARKS)}:：=–—-]{{0,40}})(?P<that>(?:that|dass|que)\s+)?"
    r"(?:(?:clearly|definitely|for|in\s+favou?r\s+of)\s{1,3})?"
    rf"{_M}{{0,9}}{_NAMED}(?:\\?(?:text|mathrm|mathbf|boxed))?{_M}{{0,9}}(?P<word>a tie(?!\w)|[^\W_]{{1,40}})",
    re.IGNORECASE,
)
_FIRM = frozenset(":：=")
_SOFT = frozenset('→⇒–—-*[({"“>')
_LISTS = re.compile(
    rf"{_M}{{0,9}}(?:[/|,&+<=~≈≤≺]|or\b|and\b|oder\b|und\b|ou\b|o\b|vs\b)(?!\s?\[\[){_M}{{0,9}}{_NAMED}{_M}{{0,9}}"
    rf"(?:(?-i:{_FIRST}|{_SECOND})|TIE)\b",
    re.IGNORECASE,
)
_JOINS = re.compile(rf"{_M}{{0,9}}(?:or|and|[/|,]){_M}{{0,9}}", re.IGNORECASE)

_POSITIVE = (
    r"(?:better|kinder|clearer|safer|nicer|stronger|friendlier|fuller|richer|warmer|wiser|gentler|politer|closer"
    r"|superior|preferable|preferred|best|ahead|winner|more\s+(?:helpful|honest|harmless|accurate|complete|detailed|useful"
    r"|correct|relevant|informative|comprehensive|thorough|concise|polite|respectful|truthful|careful|considerate))"
)
_GOES_ON = re.compile(
    rf"{_M}{{0,9}}(?:$|[,;:：…|<>=~≻—–，。；、/+%&]|-(?!\w)|\n"
    r"|(?:because|since|as|for|over|by|due|wins?|though|although|but|with|and|or|here|overall|beats|edges|weil|da|car|parce|porque)\b"
    r"|(?:(?:is|was|being|seems|performs|does)\s+)?(?:(?:\w{2,20}ly|much|far|the|a|still|overall|bit)\s+){0,3}"
    rf"{_POSITIVE}(?!\w)|['’]s\s+{_NOUN}\s+(?:is\s+(?:\w{{2,20}}ly\s+)?{_POSITIVE}|wins)(?!\w))",
    re.IGNORECASE,
)
"""How a sentence goes on after the label that it states: not "is vague", "does not" or "'s tone"."""
_STOPS = re.compile(rf"[.!?]{_M}{{0,9}}(?:\s|$)|{_M}{{0,9}}(?:\(|\[)")
_STARTER = (
    r"(?:It|This|That|The|Reply|Response|Assistant|Output|Option|Because|Both|While|Although|Though|Since|As|Its|In|They"
    r"|There|My|I|A|B|Neither|However|Here|Reasons?|Explanation|Confidence|Thank|Verdict|Overall|Wait)(?!\w)"
)
_GOING = r"(?:because|since|as|is|was|wins|over|by|due|it)(?!\w)"
_OPTION = re.compile(
    rf"[*_\"'}}$]{{0,3}}(?:[).\]][).\]*_]{{0,3}}\s+(?!{_STARTER}|{_GOING})|:\s+(?!(?i:{_STARTER})))[^\W\d_]"
)
"""What follows the letter of an option: "(B) ribosomal", "B. Ribosomal", "B: ribosomal"."""
_ENDS = re.compile(rf"{_M}{{0,9}}[:：]?(?:[<,;]|\n|$)")
_TAKES_BACK = re.compile(
    r"(?<!\w)(?:on\s+second\s+thoughts?|(?:scratch|strike|forget|ignore)\s+(?:that|this)|never\s*mind"
    r"|I\s+take\s+(?:that|it)\s+back|(?:I\s+have\s+|I['’]ve\s+|I\s+)changed\s+my\s+mind|let\s+me\s+reconsider|I\s+retract"
    r"|(?:can(?:not|['’]t)|unable\s+to|impossible\s+to|hard\s+to)\s+(?:really\s+)?(?:decide|choose|say|tell|pick|determine)"
    r"|undecided|I\s+was\s+wrong)(?!\w)|(?:^|[.!?\n])\s{0,9}(?:wait|actually|correction|hmm+|no)\s?[,.!:…—-]",
    re.IGNORECASE,
)
_FIRST_LINE = re.compile(r"[(\[\"'*`]{0,4}(?P<word>[AB])[)\]\"'*`.]{0,4}\s*")


class _Statement(NamedTuple):
    """What is stated as the verdict: a word that may be a label; an empty one where no label is stated."""

    word: str
    start: int
    end: int
    """Where it ends in the text, its label included."""


def parse_verdict(text: str) -> Verdict:
    """Read a text verdict: an output that is only a label, its last line, or the verdict that it states last."""
    visible = without_thinking(text).strip()
    if not visible:
        return Verdict.UNPARSED
    alone = _alone(visible)
    stated = _stated(visible) if alone is None or _STRONG.search(visible) else ""
    if alone in _WORDS and stated in _WORDS and alone != stated:
        return Verdict.UNPARSED  # the last line contradicts what is stated before it
    return _WORDS.get(stated if alone is None else alone, Verdict.UNPARSED)


def _alone(text: str) -> str | None:
    """The label that a whole output or its last line is; nothing where that is the last of a list, or a heading."""
    lines = [line.strip() for line in text.splitlines() if _has_word(line)]
    if len(lines) < 2:
        return word if (word := _bare(text)) in _WORDS else None
    last = lines[-1]
    word = _bare(last)
    if word not in _WORDS:
        return None
    if last.endswith((":", "：")) or last.startswith("#"):
        return ""
    return "" if any(_mirrored(line, last) for line in lines[:-1]) else word


def _has_word(line: str) -> bool:
    return any(letter.isalnum() for letter in line)


def _bare(text: str) -> str | None:
    """The only word of a text that is no more than that."""
    if len(text) > _SHORT or text.count("[[") > text.count("]]"):
        return None
    plain = text.strip(f"{_MARKS} \n\t")
    match = _BARE.fullmatch(plain) or _RANKED.fullmatch(plain)
    return match["word"].upper() if match else None


def _mirrored(line: str, other: str) -> bool:
    """Whether two lines are the same but for the label in them."""
    if len(line) > _SHORT or len(line) != len(other):
        return False
    differ = [(one, two) for one, two in zip(line.upper(), other.upper(), strict=False) if one != two]
    return len(differ) == 1 and set(differ[0]) == set(LABELS)


def _stated(text: str) -> str:
    """The word that a text states as its verdict, or nothing."""
    cues = list(_STRONG.finditer(text))
    forms = list(_forms(text))
    shown = {at for form in forms for at in range(form.start, form.end)}
    named = [statement for statement in _statements(text, cues) if statement.end - 1 not in shown]
    strong = sorted([*forms, *named], key=lambda statement: statement.end)
    if strong:
        return _last(text, strong)
    tail = _last_lines(text)
    after = max(tail, cues[-1].end() if cues else 0)
    weak = [
        statement
        for statement in _statements(text, _WEAK.finditer(text))
        if statement.start >= after or (not cues and "\n" not in text[: statement.start])
    ]
    if weak:
        return _last(text, weak)
    takes_back = list(_TAKES_BACK.finditer(text))
    first = None if takes_back else _first_line(text)
    prose = _concluded(text[max([tail] + [match.end() for match in takes_back]) :])
    return "" if first and prose and first != prose else first or prose or ""


def _last(text: str, statements: list[_Statement]) -> str:
    """The word of the last statement, unless it is taken back, contradicted, or the last one of a list."""
    last = statements[-1]
    rest = text[last.end :]
    if _TAKES_BACK.search(rest):
        return ""
    rest_labels = {_first_decided(rest[:_MOST_REST]), _concluded(rest[_last_lines(rest) :])}
    if rest_labels - {None, last.word}:
        return ""
    line_at = text.rfind("\n", 0, last.start) + 1
    same_line = [statement.word for statement in statements if statement.start >= line_at]
    if text[last.start] == "[" and set(same_line) != {last.word}:  # a form repeats the statement before it
        return ""
    line, before = text[line_at:].split("\n", 1)[0], text[:line_at].rstrip().rsplit("\n", 1)[-1]
    return "" if _mirrored(before.strip(), line.strip()) else last.word


def _last_lines(text: str) -> int:
    """Where the last two lines with a word in them begin, or the last characters of very long ones."""
    at, lines = len(text), 0
    while at > 0 and lines < _TAIL_LINES:
        start = text.rfind("\n", 0, at - 1) + 1 if at > 1 else 0
        lines += _has_word(text[start:at])
        at = start
    return max(at, len(text) - _MOST_TAIL)


def _first_line(text: str) -> str | None:
    """The label that stands alone on the first line, with an empty line after it, if it is no heading."""
    first, *rest = text.splitlines()
    match = _FIRST_LINE.fullmatch(first)
    if match is None or len(rest) < 2 or rest[0].strip():
        return None
    return None if any(_mirrored(line.strip(), first.strip()) for line in rest) else match["word"]


def _forms(text: str) -> Iterator[_Statement]:
    """What stands in a form that judges are asked for; where several forms follow each other, they are a list."""
    run: set[str] = set()
    end = 0
    for match in _FORM.finditer(text):
        gap = text[end : match.start()]
        run = run if end and gap.count("\n") < 2 else set()
        word = _of_form(match)
        run.add(match[0].upper())
        if _INSTRUCTS.match(text, match.end()) or len(run) > 2:
            word = ""
        yield _Statement(word, match.start(), match.end())
        end = match.end()


def _of_form(match: re.Match[str]) -> str:
    one, sign, two = match["one"], match["sign"], match["two"]
    if one is None:
        rest = match.string[match.end() : match.end() + _WINDOW]
        word = str(match["word"]).upper()
        return word if _states(word, rest) else ""
    one = one.upper()
    if sign is None:
        return "TIE" if one == "C" else one
    two = two.upper()
    if sign in "=≈~" and {one, two} == set(LABELS):
        return "TIE"
    if one == two or one not in LABELS or sign in "=≈~":
        return ""
    return one if sign[0] in ">≻" else two


def _statements(text: str, cues: Iterable[re.Match[str]]) -> Iterator[_Statement]:
    """What is stated under each cue, a match of `_STRONG` or `_WEAK`; cues that "or" or "and" joins state nothing."""
    last_end: int | None = None
    for cue in cues:
        near = text[max(0, cue.start() - _NEAR) : cue.start()]
        before = _BREAK.split(near)[-1]
        statement = _statement(text, cue) if _is_cue(text, cue, before) else None
        if statement is None or (cue.re is _WEAK and _OPTION.match(text, statement.end)):
            continue
        foreign = cue.re is _STRONG and not _is_key(text, cue) and _is_foreign(before)
        if foreign or (last_end is not None and _JOINS.fullmatch(text, last_end, cue.start())):
            statement = statement._replace(word="")
        yield statement
        last_end = statement.end


def _is_cue(text: str, cue: re.Match[str], before: str) -> bool:
    """Whether a cue can be about the verdict, by the part of its sentence that stands before it.

    A strong word can unless it belongs to one of the responses; a weak one where it opens its sentence or is a key of
    JSON.
    """
    if cue.re is _STRONG:
        return _OF_ANOTHER.search(before) is None or _OWN.search(before) is not None
    return _is_key(text, cue) or _BEFORE_WEAK.fullmatch(before) is not None


def _is_key(text: str, cue: re.Match[str]) -> bool:
    """Whether a cue is a key of JSON."""
    return text[cue.start() - 1 : cue.start()] == '"' and _KEY.match(text, cue.end()) is not None


def _statement(text: str, cue: re.Match[str]) -> _Statement | None:
    """What is stated after a cue, if anything is."""
    window = text[cue.end() : cue.end() + _WINDOW]
    says = _SAYS.match(window)
    if says is None:
        return _Statement("", cue.start(), cue.end()) if _FIRM & set(window[:3]) else None
    marks = set(says["marks"])
    heads = "\n" in says["marks"]
    soft = _SOFT if cue.re is _STRONG or "boxed" in cue[0] else _SOFT - set("([{")
    if not (says["is"] or says["that"] or heads or marks & (_FIRM | soft)):
        return None
    end = cue.end() + says.end()
    rest = window[says.end() :]
    word = says["word"].upper()
    if word in LABELS and says["word"].islower() and not _ENDS.match(rest):
        word = says["word"]  # an article, and no label
    if word in _WORDS:
        stands = _states(word, rest) and not _LISTS.match(rest)
        return _Statement(word if stands else "", cue.start(), end)
    if not (says["that"] or marks & _FIRM or says["is"] or heads):
        return None
    hedges = word in _HEDGES and (says["is"] or marks & _FIRM)
    begins = cue.end() + (says.end("that") if says["that"] else says.end("marks"))
    prose = _first_decided(text[begins : begins + _MOST_REST])
    line = text[max(0, cue.start() - _NEAR) : cue.start()].rsplit("\n", 1)[-1]
    opens_line = marks & _FIRM and _QUALIFIED.fullmatch(line)
    if prose is None and not (says["that"] or hedges or opens_line):
        return None  # "the decision is based on", or a heading over a whole paragraph
    return _Statement(prose or "", cue.start(), end)


def _states(word: str, rest: str) -> bool:
    """Whether a sentence that goes on with `rest` states the label before that."""
    return word in _WORDS and (_GOES_ON.match(rest) or _STOPS.match(rest)) is not None


def _concluded(text: str) -> str | None:
    """The label ("A", "B" or "TIE") that the concluding sentences of a text name, if nothing speaks against it."""
    labels: set[str] = set()
    for sentence in _sentences(text):
        concludes = _CONCLUDES.search(sentence[:_MOST_CHARS]) is not None
        if (labels or concludes) and (label := _decided(sentence)):
            labels.add(label)
    return labels.pop() if len(labels) == 1 else None


def _first_decided(text: str) -> str | None:
    """The label that the first sentence of a text names as the better response."""
    return next((_decided(sentence) for sentence in _sentences(text)), None)


def _decided(sentence: str) -> str | None:
    """The label that one sentence names as the better response, whether or not it says that it concludes."""
    if len(sentence) > _MOST_CHARS:
        return None
    plain = _FORCED.sub("", sentence)
    if _DEPENDS.search(plain):
        return None
    labels = {
        _concluded_label(match)
        for pattern in (_BETTER, _PREFERS)
        for match in pattern.finditer(plain)
        if _holds(plain, match)
    }
    if not labels and (tie := _TIES.search(plain)) and not _undone(plain, tie):
        return "TIE"
    return labels.pop() if len(labels) == 1 else None


def _is_foreign(before: str) -> bool:
    """Whether a sentence that begins so denies what follows, asks for it, or reports somebody else's view."""
    before = _NO.sub("", before)
    reports = _REPORTS.search(before) and not _SPEAKER.search(before)
    return bool(reports or _DENIES.search(before) or _DEPENDS.search(_FORCED.sub("", before)))


def _sentences(text: str) -> list[str]:
    return [plain for part in _SENTENCE.split(text) if (plain := part.strip(" \t\r>#*_"))]


def _concluded_label(match: re.Match[str]) -> str:
    return str(match["named1"] or match["bare1"]).upper()


def _holds(sentence: str, match: re.Match[str]) -> bool:
    """Whether a match names the better response, by the text around it."""
    before, after = sentence[: match.start()], sentence[match.end() :]
    if _undone(sentence, match):
        return False
    if match.re is _BETTER and not _is_subject(before, match):
        return False
    good = match.groupdict().get("good")
    if good is None:
        return True
    if good.lower() == "best" and (match["noun1"] or "").lower() in ("", "option", "answer", "solution"):
        return False  # of the choices of an exam
    than = _THAN.match(after)
    if than is None:
        return _AFTER_GOOD.match(after) is not None
    rival = _OTHER.match(after, than.end())
    return rival is not None and (
        not (rival["named1"] or rival["bare1"]) or _concluded_label(rival) != _concluded_label(match)
    )


def _is_subject(before: str, match: re.Match[str]) -> bool:
    """Whether the response itself is called better: not "the tone of reply A", "A or B", or "vitamin A"."""
    near = before[-40:]
    if _JOINED.search(near):
        return False
    if match["noun1"]:
        return _PART_OF.search(near) is None or re.search(r"[,;:]\s*and\s+\Z", near) is not None
    return _STARTS.search(near) is not None


def _undone(sentence: str, match: re.Match[str]) -> bool:
    """Whether the clause denies the match, reports it as somebody else's view, or quotes it."""
    start = max((clause.end() for clause in _CLAUSE.finditer(sentence, 0, match.start() + 1)), default=0)
    if sentence[start : match.start()].strip(" *_").lower().startswith("that"):
        start = 0
    if _DENIES.search(sentence, start, match.end()):
        return True
    before = sentence[start : match.start()]
    if _REPORTS.search(before) and not _SPEAKER.search(before):
        return True
    shown = sentence[: match.start()]
    return shown.count('"') % 2 == 1 or shown.count("“") > shown.count("”")
