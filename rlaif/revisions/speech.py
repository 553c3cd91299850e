"""What of a model's revision is the reply: without the talk around it, the frame it was shown in, the turn after it.

Each pattern takes off only what no reply would say: a reply may well speak of "the new version: ..." or of notes.
"""

from __future__ import annotations

import re

from rlaif.thinking import without_thinking

_NEW = r"(?:revised|rewritten|reworded|improved|updated|new|kinder|better|(?:more|less) \w+)"
_REPLY = r"(?:reply|response|answer)"
_LEADS = (
    # "Sure! Here is the revised reply that leaves out the insult:"
    re.compile(
        r"\A\W{0,3}(?:(?:sure|okay|ok|certainly|of course|absolutely)\b[!,.]?\s+)?"
        rf"(?:here(?:['’]s| is)|this is)\s+(?:the|my|a|an)\s+(?:attempt at )?(?:\w+ ){{0,2}}?"
        rf"(?:{_NEW}\s+(?:{_REPLY}|version)|rewrite|revision)\b[^\n:]{{0,60}}:\W{{0,3}}\s+",
        re.IGNORECASE,
    ),
    # "**Revised response:** ..."
    re.compile(rf"\A\W{{0,3}}(?:(?:the|my)\s+)?{_NEW}\s+{_REPLY}(?:\*\*)?\s*[:–-](?:\*\*)?\s+", re.IGNORECASE),
    re.compile(r"\A\W{0,3}(?:revision|revised|rewritten|reply|assistant)(?:\*\*)?:(?:\*\*)?\s+", re.IGNORECASE),
    # A heading of its own
    re.compile(rf"\A(?:#+\s*|\*\*)?(?:the\s+)?{_NEW}\s+{_REPLY}(?:\*\*)?\s*\n\s*", re.IGNORECASE),
)
_FENCED = re.compile(r"\A<<<(\w+)\n(.*)\n\1>>>\Z", re.DOTALL)
_BREAK = re.compile(r"\n(?:[^\S\n]*\n)+")
"""The end of a paragraph: each run of empty lines is looked at once, however long a stuck model made it."""
_NEXT_TURN = re.compile(r"(?:human|user|assistant|critique ?request|revision ?request)\s*:", re.IGNORECASE)
_AFTERWORD = re.compile(
    r"[(*_\[\s]*(?:(?:note|explanation|changes(?: made)?)\b\W{0,4}(?:that )?)?"
    r"I(?:['’]ve| have)? (?:removed|rewrote|rewritten|reworded|revised|changed|rephrased|replaced|kept|tried to)\b",
    re.IGNORECASE,
)
_QUOTED = re.compile(r'\A["“]([^"“”]+)["”]\Z')


def spoken(text: str) -> str:
    """The reply in a revision: its writer's thoughts, its lead, an echoed fence, quotes around it all, a next turn and
    an afterword go."""
    said = without_thinking(text).strip()
    for lead in _LEADS:
        found = lead.match(said)
        if found and found.end() < len(said):
            said = said[found.end() :].strip()
            break
    ends = list(_BREAK.finditer(said))
    turn = next((at for at, end in enumerate(ends) if _NEXT_TURN.match(said, end.end())), len(ends))
    said, ends = said[: ends[turn].start()] if turn < len(ends) else said, ends[:turn]
    if ends and _AFTERWORD.match(said, ends[-1].end()):
        said = said[: ends[-1].start()].strip()
    for frame, part in ((_FENCED, 2), (_QUOTED, 1)):
        if found := frame.match(said):
            said = found[part].strip()
    return said
