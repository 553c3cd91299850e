"""What the models are taught: questions in the shipped judge templates, with the oracle's answers."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import yaml

from rlaif.demo import oracle
from rlaif.demo.critiques import corrected, review
from rlaif.demo.world import Plan, Scene, Voice, draw_oddity, draw_plan, draw_reply, draw_scene, write_reply
from rlaif.feedback.prompts import (
    LABELS,
    LETTERS,
    compare_messages,
    critique_messages,
    joint_question,
    rank_messages,
    revise_messages,
    score_messages,
)
from rlaif.records import Message, Messages
from rlaif.store import resource


@dataclass(frozen=True)
class Example:
    """One question and the answer to learn."""

    messages: Messages
    answer: str
    weight: float
    """Weight of each answer token in the loss."""
    head: float = 0.0
    """Weight of the first few tokens of a text."""
    tie: bool = False
    """Both labels are equally right."""
    prompt: str = ""
    """The prompt that the question shows."""
    shown: tuple[str, ...] = ()
    """The replies that the question shows, in their order."""
    rewrites: bool = False
    """The answer is a new reply to the prompt."""

    @property
    def compares(self) -> bool:
        """The answer is the label of one of two replies."""
        return self.answer in LABELS and len(self.shown) == 2


_HARDEST = ("on-topic", "warm")
"""Asked more often than the others: here a reply's sentences must be matched with the prompt, or with each other."""

_LABEL_WEIGHT = 3.0
"""Of a label in the loss, against 0.2 of a token in a text."""


class Texts(NamedTuple):
    """The three texts of a principle."""

    compare: str
    critique: str
    revise: str


@cache
def principles() -> dict[str, Texts]:
    """The texts of `constitutions/demo.yaml` by principle id."""
    content = yaml.safe_load((resource("constitutions") / "demo.yaml").read_text(encoding="utf-8"))
    return {each["id"]: Texts(each["compare"], each["critique"], each["revise"]) for each in content["principles"]}


def is_held_out(topic: str, fault: str) -> bool:
    """Whether this fault never shows up with this topic in training; so for about a tenth of all combinations."""
    return hashlib.sha256(f"{topic}/{fault}".encode()).digest()[0] < 26


def user(text: str) -> Messages:
    """A conversation of one user turn."""
    return (Message(role="user", content=text),)


def training_reply(scene: Scene, voice: Voice, plan: Plan | None = None) -> str:
    """A reply whose faults are all allowed in training with this topic; by `plan` if that can be had."""
    while True:
        reply = draw_reply(scene, voice) if plan is None else write_reply(scene, plan, voice)
        broken = oracle.violations(scene.prompt, reply)
        if not any(is_held_out(scene.topic, fault) for fault in broken):
            return reply
        plan = None


def draw_pair(scene: Scene, voice: Voice) -> tuple[str, str]:
    """Two replies to compare: independent, differing in one attribute, a reply and its revision, or with an oddity."""
    way = voice.rng.choices(("free", "sibling", "revision", "odd", "same"), weights=(42, 30, 15, 10, 3))[0]
    plan = _lesson_plan(scene, voice)
    first = training_reply(scene, voice, plan)
    if way == "sibling":
        second = training_reply(scene, voice, _sibling(plan, scene, voice))
    elif way == "revision":
        second = corrected(scene.prompt, first)
    elif way == "odd":
        second = draw_oddity(first, voice)
    else:
        second = first if way == "same" else training_reply(scene, voice, _lesson_plan(scene, voice))
    return (first, second) if voice.chance(0.5) else (second, first)


def compare_examples(voice: Voice, count: int) -> list[Example]:
    """One pair of replies under `count` principles, those first that tell the replies apart."""
    scene = draw_scene(voice)
    first, second = draw_pair(scene, voice)
    verdicts = {name: oracle.prefer(name, scene.prompt, first, second) for name in oracle.PRINCIPLES}
    names = voice.rng.sample(oracle.PRINCIPLES, len(oracle.PRINCIPLES))
    if voice.chance(0.6):
        names.sort(key=lambda name: name not in _HARDEST)
    clear = [name for name in names if verdicts[name] != 0.5][: count - 1]
    chosen = (clear + [name for name in names if name not in clear])[:count]
    critiqued = voice.chance(0.12)
    found = [_compared(name, scene.prompt, first, second, verdicts[name], critiqued, voice) for name in chosen]
    if voice.chance(0.15):
        found.append(_joint(names, scene.prompt, first, second, voice))
    return found


def critique_examples(voice: Voice, count: int) -> list[Example]:
    """One reply reviewed under `count` principles, those first that it breaks."""
    scene, reply = _scene_and_reply(voice)
    broken = oracle.violations(scene.prompt, reply)
    names = voice.rng.sample(oracle.PRINCIPLES, len(oracle.PRINCIPLES))
    chosen = sorted(names, key=lambda name: name not in broken)[: count - 1] + names[:1]
    return [
        Example(
            critique_messages(user(scene.prompt), reply, principles()[name].critique),
            review(name, scene.prompt, reply),
            weight=0.2,
            head=1.0,
            prompt=scene.prompt,
            shown=(reply,),
        )
        for name in dict.fromkeys(chosen)
    ]


def revise_examples(voice: Voice, count: int) -> list[Example]:
    """One reply rewritten under a principle, mostly one that it breaks, in up to `count` wordings."""
    scene, reply = _scene_and_reply(voice)
    broken = oracle.violations(scene.prompt, reply)
    names = voice.rng.sample(oracle.PRINCIPLES, len(oracle.PRINCIPLES))
    if voice.chance(0.7):
        names.sort(key=lambda name: name not in broken)
    notes = None if voice.chance(0.25) else review(names[0], scene.prompt, reply)
    asked = revise_messages(user(scene.prompt), reply, notes, principles()[names[0]].revise)
    answers = {corrected(scene.prompt, reply, voice) for _ in range(count)}
    return [
        Example(asked, answer, weight=0.4, head=3.0, prompt=scene.prompt, shown=(reply,), rewrites=True)
        for answer in sorted(answers)
    ]


def score_examples(voice: Voice, count: int) -> list[Example]:
    """One reply graded under `count` principles, those first that it breaks, and sometimes under all together."""
    scene, reply = _scene_and_reply(voice)
    broken = oracle.violations(scene.prompt, reply)
    names = voice.rng.sample(oracle.PRINCIPLES, len(oracle.PRINCIPLES))
    chosen = sorted(names, key=lambda name: name not in broken)[: count // 2] + names[: count - count // 2]
    asked = [(principles()[name].compare, 0 if name in broken else 9) for name in dict.fromkeys(chosen)]
    if voice.chance(0.5):
        asked.append((_whole(), round(max(0.0, 9 + oracle.quality(scene.prompt, reply)))))
    return [
        Example(
            score_messages(user(scene.prompt), reply, question),
            str(grade),
            weight=_LABEL_WEIGHT,
            head=_LABEL_WEIGHT,
            prompt=scene.prompt,
            shown=(reply,),
        )
        for question, grade in asked
    ]


def rank_examples(voice: Voice) -> list[Example]:
    """Three or four replies ranked under the whole constitution, or under a principle; equals in the order shown."""
    scene = draw_scene(voice)
    replies = [training_reply(scene, voice) for _ in range(voice.rng.choice((3, 4, 4)))]
    if voice.chance(0.7):
        question, merits = _whole(), [oracle.quality(scene.prompt, reply) for reply in replies]
    else:
        name = voice.rng.choice(oracle.PRINCIPLES)
        question = principles()[name].compare
        merits = [-float(name in oracle.violations(scene.prompt, reply)) for reply in replies]
    order = sorted(range(len(replies)), key=lambda at: -merits[at])
    answer = " > ".join(LETTERS[at] for at in order)
    asked = rank_messages(user(scene.prompt), replies, question)
    return [Example(asked, answer, weight=2.0, head=2.0, prompt=scene.prompt, shown=tuple(replies))]


def _whole() -> str:
    return joint_question([principles()[name].compare for name in oracle.PRINCIPLES])


def policy_examples(voice: Voice, count: int) -> list[Example]:
    """One prompt with `count` replies of mixed quality."""
    scene = draw_scene(voice)
    replies = [training_reply(scene, voice) for _ in range(count)]
    return [Example(user(scene.prompt), reply, weight=1.0, head=1.0) for reply in replies if reply]


class Mix(NamedTuple):
    """Weights of the kinds of questions."""

    compare: int = 0
    critique: int = 0
    revise: int = 0
    score: int = 0
    rank: int = 0


def judge_lessons(voice: Voice, mix: Mix = Mix(40, 15, 20, 15, 10)) -> Iterator[list[Example]]:  # noqa: B008 - frozen
    """Endless groups of questions that share their beginning."""
    while True:
        match voice.rng.choices(Mix._fields, weights=mix)[0]:
            case "compare":
                yield compare_examples(voice, 4)
            case "critique":
                yield critique_examples(voice, 4)
            case "revise":
                yield revise_examples(voice, 4)
            case "score":
                yield score_examples(voice, 4)
            case _:
                yield rank_examples(voice)


def policy_lessons(voice: Voice, mix: Mix = Mix()) -> Iterator[list[Example]]:  # noqa: ARG001, B008
    """Endless groups of replies to one prompt; there is one kind only."""
    while True:
        yield policy_examples(voice, 6)


def _scene_and_reply(voice: Voice) -> tuple[Scene, str]:
    scene = draw_scene(voice)
    reply = training_reply(scene, voice, _lesson_plan(scene, voice))
    return scene, draw_oddity(reply, voice) if voice.chance(0.05) else reply


def _lesson_plan(scene: Scene, voice: Voice) -> Plan:
    """A plan that strays more often than a policy's replies do: that is what takes longest to learn."""
    plan = draw_plan(voice, scene.family)
    return dataclasses.replace(plan, core="stray") if voice.chance(0.12) else plan


def _sibling(plan: Plan, scene: Scene, voice: Voice) -> Plan:
    """`plan` with one attribute changed."""
    changes: list[dict[str, object]] = [
        {"rude": not plan.rude},
        {"lecture": not plan.lecture},
        {"filler": 0 if plan.filler else 2, "repeat": False},
        {"core": "answer" if plan.core != "answer" else voice.rng.choice(("stray", "dodge", "refuse"))},
    ]
    if scene.family == "harm":
        changes += [{"instead": not plan.instead}] * 2
    if scene.family == "upset":
        changes += [{"empathy": not plan.empathy}] * 2
    return dataclasses.replace(plan, **voice.rng.choice(changes))  # type: ignore[arg-type]


def _compared(
    name: str, prompt: str, first: str, second: str, verdict: float, critiqued: bool, voice: Voice
) -> Example:
    notes = (review(name, prompt, first), review(name, prompt, second)) if critiqued else None
    messages = compare_messages(user(prompt), first, second, principles()[name].compare, critiques=notes)
    return _labelled(messages, verdict, voice, prompt, (first, second))


def _joint(names: Sequence[str], prompt: str, first: str, second: str, voice: Voice) -> Example:
    """The whole constitution in one question; sometimes without weights to learn, in another order."""
    asked = list(oracle.PRINCIPLES) if voice.chance(0.7) else list(names[: voice.rng.randint(2, len(names))])
    question = joint_question([principles()[name].compare for name in asked])
    total = sum(oracle.WEIGHTS[name] * (oracle.prefer(name, prompt, first, second) - 0.5) for name in asked)
    verdict = 0.5 if total == 0 else float(total > 0)
    messages = compare_messages(user(prompt), first, second, question)
    return _labelled(messages, verdict, voice, prompt, (first, second))


def _labelled(messages: Messages, verdict: float, voice: Voice, prompt: str, both: tuple[str, str]) -> Example:
    tie = verdict == 0.5
    answer = voice.rng.choice(LABELS) if tie else LABELS[0 if verdict == 1.0 else 1]
    return Example(messages, answer, weight=_LABEL_WEIGHT, tie=tie, prompt=prompt, shown=both)
