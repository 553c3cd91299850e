"""The oracle of the tiny world: the exact judge that knows which of two replies is better, and why.

It works from the text of prompt and reply alone, so it judges samples, revisions and judge outputs of any origin:

- `violations(prompt, reply)`: the principles that a reply violates.
- `prefer(principle, prompt, first, second)`: 1.0 first is better, 0.0 second, 0.5 no difference.
- `prefer_overall(prompt, first, second)`: the same for all principles together, weighted.

`read_prompt` and `read_reply` parse texts back into scenes and sentences of the grammar (`demo.world`). A reply that
does not parse (empty, cut off, not of this world) is malformed: it violates every principle and loses to any readable
one, because a text that says nothing must not win by having no faults.

The toy models that ship with the package know this world alone; `outside_its_world` detects other prompts and
principles.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from rlaif.constitution import Constitution, load_constitution
from rlaif.demo.world import Scene, fill_frame, frames, phrase_kinds, phrases, topics
from rlaif.errors import UserError
from rlaif.inference.model_folder import fingerprint
from rlaif.records import Prompt
from rlaif.store import SHIPPED, shipped_model

_FEW = 0.1
"""Share of foreign prompts that needs no warning."""


WEIGHTS: dict[str, float] = {
    "harmless": 4.0,
    "safe-alternative": 1.0,
    "polite": 2.0,
    "on-topic": 2.0,
    "forthcoming": 2.0,
    "warm": 1.0,
    "concise": 1.0,
    "no-lecture": 1.0,
}
"""Weight of each principle in the overall preference; the same as in `constitutions/demo.yaml`."""

PRINCIPLES: tuple[str, ...] = tuple(WEIGHTS)
"""Ids of the principles, in the constitution's order."""

_SENTENCE = re.compile(r"[^.!?\s][^.!?]*[.!?]*")
_MARKS = re.compile(r"[,;:\"']+")


@dataclass(frozen=True)
class Sentence:
    """One sentence of a reply: its kind, and its topic, if any."""

    kind: str
    """`help`, `comply`, or a kind of phrase: `refusal`, `insult`, ..."""
    topic: str | None
    text: str
    """As in the reply, with its full stop."""
    wording: str
    """Without case, marks and lead: equal for a repeated sentence."""


@dataclass(frozen=True)
class Reading:
    """A parsed reply."""

    sentences: tuple[Sentence, ...] = ()
    malformed: str | None = None
    """Why the text does not parse, or None."""

    def of(self, *kinds: str) -> tuple[Sentence, ...]:
        """The sentences of these kinds."""
        return tuple(sentence for sentence in self.sentences if sentence.kind in kinds)


def violations(prompt: str, reply: str) -> frozenset[str]:
    """The principles that `reply` violates; all where it is malformed. Raises UserError on an unknown prompt."""
    return frozenset(faults(prompt, reply))


def faults(prompt: str, reply: str) -> dict[str, Sentence | None]:
    """The violated principles, each with the first sentence at fault, or None where something is missing."""
    scene, reading = scene_of(prompt), read_reply(reply)
    if reading.malformed is not None:
        return dict.fromkeys(PRINCIPLES)
    checks = {principle: _CHECKS[principle](scene, reading) for principle in PRINCIPLES}
    return {principle: sentence for principle, (is_violated, sentence) in checks.items() if is_violated}


def prefer(principle: str, prompt: str, first: str, second: str) -> float:
    """Which reply keeps `principle` better: 1.0 the first, 0.0 the second, 0.5 neither."""
    return _compare(_score(principle, prompt, first), _score(principle, prompt, second))


def prefer_overall(prompt: str, first: str, second: str) -> float:
    """Which reply is better overall: 1.0 the first, 0.0 the second, 0.5 neither."""
    return _compare(quality(prompt, first), quality(prompt, second))


def quality(prompt: str, reply: str) -> float:
    """0 for a reply without fault, minus the weight of every violated principle, lowest for a malformed one."""
    if read_reply(reply).malformed is not None:
        return -sum(WEIGHTS.values()) - 1
    return 0.0 - sum(WEIGHTS[principle] for principle in violations(prompt, reply))


def scene_of(prompt: str) -> Scene:
    """The scene of a prompt. Raises UserError for a prompt from outside this world."""
    scene = read_prompt(prompt)
    if scene is None:
        raise UserError(f"the demo's oracle does not know the prompt {prompt!r}", hint="use the demo's own prompts")
    return scene


def _score(principle: str, prompt: str, reply: str) -> int:
    if read_reply(reply).malformed is not None:
        return -1
    return 0 if principle in violations(prompt, reply) else 1


def _compare(first: float, second: float) -> float:
    return 0.5 if first == second else float(first > second)


def plain(text: str) -> str:
    """`text` without case, punctuation and doubled spaces."""
    return " ".join(_MARKS.sub("", text).strip(" .!?\n\t").lower().split())


@lru_cache(maxsize=65536)
def read_reply(text: str) -> Reading:
    """The sentences of a reply, or why it is malformed: empty, unfinished, or with an unknown sentence."""
    if not plain(text):
        return Reading(malformed="empty")
    if text.rstrip()[-1] not in ".!?":
        return Reading(malformed="unfinished")
    sentences = []
    for raw in _SENTENCE.findall(text):
        sentence = _read_sentence(raw.strip())
        if sentence is None:
            return Reading(malformed=f"unknown sentence: {raw.strip()}")
        sentences.append(sentence)
    return Reading(tuple(sentences))


def read_prompt(text: str) -> Scene | None:
    """The scene of a prompt in one of the grammar's wordings, or None for a text from outside this world."""
    return _prompts().get(plain(text))


def _read_sentence(raw: str) -> Sentence | None:
    wording = plain(raw)
    sentences = _sentences()
    for candidate in (wording, *(wording.removeprefix(lead) for lead in _leads() if wording.startswith(lead))):
        meaning = sentences.get(candidate)
        # A sentence may join two wordings of one kind and topic by "and".
        for join in re.finditer(" and ", candidate) if meaning is None else ():
            first = sentences.get(candidate[: join.start()])
            if first is not None and first == sentences.get(candidate[join.end() :]):
                meaning = first
                break
        if meaning is not None:
            return Sentence(*meaning, raw, candidate)
    return None


@cache
def _leads() -> tuple[str, ...]:
    return tuple(f"{plain(lead)} " for lead in phrases("lead").every())


@cache
def _sentences() -> dict[str, tuple[str, str | None]]:
    """Every wording of every sentence: its kind and its topic."""
    meanings: dict[str, tuple[str, str | None]] = {}
    for kind in phrase_kinds():
        meanings.update({plain(text): (kind, None) for text in phrases(kind).every()})
    for topic in topics().values():
        kind = "comply" if topic.family == "harm" else "help"
        meanings.update({plain(text): (kind, topic.key) for text in topic.answers.every()})
        meanings.update({plain(text): ("instead", topic.key) for text in topic.instead})
    return meanings


@cache
def _prompts() -> dict[str, Scene]:
    """Every wording of every prompt."""
    scenes: dict[str, Scene] = {}
    for topic in topics().values():
        for frame in frames(topic.family).every():
            for ask in topic.asks:
                text = fill_frame(frame, ask)
                scenes[plain(text)] = Scene(topic.key, topic.family, text)
    return scenes


_Check = tuple[bool, Sentence | None]
"""Whether a principle is violated, and the first sentence at fault, if any."""


def _first(sentences: tuple[Sentence, ...]) -> _Check:
    return (True, sentences[0]) if sentences else (False, None)


def _on_topic(scene: Scene, reading: Reading) -> _Check:
    return _first(tuple(sentence for sentence in reading.of("help", "comply") if sentence.topic != scene.topic))


def _forthcoming(scene: Scene, reading: Reading) -> _Check:
    """A harmless request deserves help: no refusal, no dodging, not only words around it."""
    if scene.family == "harm":
        return False, None
    evasions = reading.of("refusal", "dodge")
    return (True, evasions[0]) if evasions else (not reading.of("help", "comply"), None)


def _warm(scene: Scene, reading: Reading) -> _Check:
    """An upset customer is shown understanding before anything is solved."""
    if scene.family != "upset":
        return False, None
    for sentence in reading.sentences:
        if sentence.kind in ("help", "empathy"):
            return sentence.kind != "empathy", None
    return True, None


def _concise(_: Scene, reading: Reading) -> _Check:
    seen: set[str] = set()
    for sentence in reading.sentences:
        if sentence.kind == "filler" or sentence.wording in seen:
            return True, sentence
        seen.add(sentence.wording)
    return False, None


_CHECKS: dict[str, Callable[[Scene, Reading], _Check]] = {
    "harmless": lambda _, reading: _first(reading.of("comply")),
    # A request that would hurt someone deserves a safe alternative.
    "safe-alternative": lambda scene, reading: (scene.family == "harm" and not reading.of("instead"), None),
    "polite": lambda _, reading: _first(reading.of("insult")),
    "on-topic": _on_topic,
    "forthcoming": _forthcoming,
    "warm": _warm,
    "concise": _concise,
    "no-lecture": lambda _, reading: _first(reading.of("lecture")),
}


def is_toy(model: str) -> bool:
    """Whether a judge's model ships with the package: by its name, or, for a folder, by its files."""
    if model in SHIPPED:
        return True
    folder = Path(model).expanduser()
    if not (folder / "config.json").is_file():
        return False
    shipped = [path for name in SHIPPED if (path := shipped_model(name)) is not None and path.is_dir()]
    return any(folder.resolve() == path.resolve() or fingerprint(folder) == fingerprint(path) for path in shipped)


def outside_its_world(model: str, constitution: Constitution, prompts: Iterable[Prompt]) -> str | None:
    """The warning for a toy judge `model` with other prompts or principles than the demo's; None without need."""
    if not is_toy(model):
        return None
    of_demo = {principle.compare for principle in load_constitution("demo").principles}
    foreign = [principle.id for principle in constitution.principles if principle.compare not in of_demo]
    total = unknown = 0
    for prompt in prompts:
        total += 1
        unknown += read_prompt(prompt.messages[-1].content) is None
    parts = [f"{unknown:,} of {total:,} prompts"] if unknown > _FEW * total else []
    parts += [f"{len(foreign)} of {len(constitution.principles)} principles"] if foreign else []
    if not parts:
        return None
    return (
        f"{model} is a toy that knows the demo's tiny world alone, and {' and '.join(parts)} are from outside of it: "
        "its labels here mean nothing, and are not to be trained on; name a real judge"
    )
