"""Marks: what the side tasks of training ask for, and at which token of a question.

Where a sentence of a reply ends, what that sentence does; where the conversation or a sentence about some topic ends,
which topic it is; where a reply ends, which faults it has; and where attention should look from there (see `hints`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from rlaif.config.judge_templates import conversation, fence
from rlaif.demo.oracle import PRINCIPLES, Sentence, read_reply, scene_of, violations
from rlaif.demo.world import phrase_kinds, topics
from rlaif.records import Message
from tools.train_demo_models.sources import Said


class Mark(NamedTuple):
    """Something true of what ends with the token at `at`, one flag a property."""

    at: int
    flags: tuple[bool, ...]

    @property
    def faults(self) -> tuple[bool, ...]:
        """Of a reply: the faults by principle, without the last flag."""
        return self.flags[:-1]


class TopicMark(NamedTuple):
    """What ends with the token at `at` is about the topic of this number."""

    at: int
    topic: int


class Look(NamedTuple):
    """What the token at `at` is to look at: the token at `to`."""

    at: int
    to: int


@dataclass
class Marks:
    """The marks of one question."""

    sentences: list[Mark] = field(default_factory=list)
    """Flags: `sentence_flags`."""
    topics: list[TopicMark] = field(default_factory=list)
    topic_looks: list[Look] = field(default_factory=list)
    """From a sentence about a topic to the end of the prompt where that is its topic too, else to the first token."""
    reply_looks: list[Look] = field(default_factory=list)
    """From the end of a reply to the ends of its sentences."""
    start_looks: list[Look] = field(default_factory=list)
    """From the end of a sentence to its first token."""
    said: list[Said] = field(default_factory=list)
    replies: list[Mark] = field(default_factory=list)
    """Flags: the faults by principle, and whether it is the second reply."""

    def before(self, end: int) -> Marks:
        """Those at tokens before `end`."""
        return Marks(
            [mark for mark in self.sentences if mark.at < end],
            [mark for mark in self.topics if mark.at < end],
            [look for look in self.topic_looks if look.at < end],
            [look for look in self.reply_looks if look.at < end],
            [look for look in self.start_looks if look.at < end],
            [sentence for sentence in self.said if sentence.end < end],
            [mark for mark in self.replies if mark.at < end],
        )


@cache
def sentence_kinds() -> tuple[str, ...]:
    """What a sentence can do."""
    return (*phrase_kinds(), "help", "comply")


def sentence_flags() -> int:
    """Flags of a sentence: one a kind, whether it strays from the topic of the prompt, whether it is a repetition."""
    return len(sentence_kinds()) + 2


REPLY_FLAGS = len(PRINCIPLES) + 1


def marks_of(text: str, offsets: Sequence[tuple[int, int]], prompt: str, replies: Sequence[str]) -> Marks:
    """The marks of the question `text`, which shows `prompt` and then `replies`, with its tokens' places in it."""
    starts = [start for start, _ in offsets]
    scene, found = scene_of(prompt), Marks()

    def token(end: int) -> int:
        """The token that holds the character before `end`."""
        return bisect_left(starts, end) - 1

    fenced = fence(_shown(prompt))
    at = text.index(fenced) + len(fenced)
    found.topics.append(TopicMark(token(at), topic_number(scene.topic)))
    for number, reply in enumerate(replies):
        fenced = fence(reply)
        start = text.index(fenced, at)
        at = start + len(fenced)
        broken = violations(prompt, reply)
        found.replies.append(Mark(token(at), (*(name in broken for name in PRINCIPLES), number == 1)))
        inside = start + max(0, fenced.find(reply))
        for sentence, end, repeated in _ends(reply):
            found.reply_looks.append(Look(token(at), token(inside + end)))
            found.sentences.append(Mark(token(inside + end), _flags(sentence, scene.topic, repeated)))
            begin = inside + end - len(sentence.text)
            found.said.append(_said_at(sentence.text, begin, token(begin + 1), token(inside + end), offsets))
            found.start_looks.append(Look(token(inside + end), token(begin + 1)))
            if sentence.topic is not None:
                found.topics.append(TopicMark(token(inside + end), topic_number(sentence.topic)))
                same = sentence.topic == scene.topic
                found.topic_looks.append(Look(token(inside + end), found.topics[0].at if same else 0))
    return found


def topic_number(key: str) -> int:
    """The place of a topic among all."""
    return _topic_numbers()[key]


@cache
def _topic_numbers() -> dict[str, int]:
    return {key: number for number, key in enumerate(topics())}


def _said_at(text: str, begin: int, first: int, last: int, offsets: Sequence[tuple[int, int]]) -> Said:
    return Said(text, last, {offsets[at][1] - begin: at for at in range(first, last + 1)})


def _shown(prompt: str) -> str:
    return conversation((Message(role="user", content=prompt),))


def _ends(reply: str) -> Iterator[tuple[Sentence, int, bool]]:
    """Every sentence of a readable reply, where it ends, and whether it was said before."""
    end, seen = 0, set[str]()
    for sentence in read_reply(reply).sentences:
        end = reply.index(sentence.text, end) + len(sentence.text)
        yield sentence, end, sentence.wording in seen
        seen.add(sentence.wording)


def _flags(sentence: Sentence, topic: str, repeated: bool) -> tuple[bool, ...]:
    kinds = tuple(sentence.kind == kind for kind in sentence_kinds())
    return (*kinds, sentence.kind in ("help", "comply") and sentence.topic != topic, repeated)
