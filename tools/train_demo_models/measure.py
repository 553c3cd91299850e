"""How good the models are, measured against the oracle on wordings and combinations that training never saw."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rlaif.demo import oracle
from rlaif.demo.critiques import critique_right
from rlaif.demo.oracle import read_reply
from rlaif.demo.world import Scene, Voice, draw_plan, draw_scene, write_reply
from rlaif.feedback.prompts import compare_messages, critique_messages, revise_messages
from tools.train_demo_models.answering import Answerer
from tools.train_demo_models.examples import is_held_out, principles, user

HELD = 0.7
"""Share of held-out wordings in the measured texts."""


@dataclass(frozen=True)
class Case:
    """A prompt and a reply."""

    prompt: str
    reply: str


@dataclass(frozen=True)
class Comparison:
    """Two replies of which the oracle prefers one under `principle`."""

    principle: str
    prompt: str
    first: str
    second: str
    better: float


@dataclass(frozen=True)
class Reviewed:
    """What critique and revision achieve."""

    critiques_right: float
    """Share of critiques that name the right fault, or rightly none."""
    faults_named: float
    """The same, over replies that do break the principle."""
    revisions_better: float
    """Share of revisions of faulty replies that break fewer principles (by weight) than the reply did."""
    revisions_clean: float
    """Share of revisions of faulty replies that no longer break the principle."""
    kept: float
    """Share of faultless replies that a revision leaves faultless."""


def held_out_reply(scene: Scene, voice: Voice) -> str:
    """A reply in held-out wordings; every second one shows a fault that training never showed with this topic."""
    seek = voice.chance(0.5)
    for _ in range(200):
        reply = write_reply(scene, draw_plan(voice, scene.family), voice)
        broken = oracle.violations(scene.prompt, reply)
        if not seek or any(is_held_out(scene.topic, fault) for fault in broken):
            break
    return reply


def comparisons(each: int, *, seed: int = 1) -> list[Comparison]:
    """`each` comparisons a principle, all with a preference, from the held-out half of the world."""
    voice = Voice(random.Random(seed), HELD)
    missing = dict.fromkeys(oracle.PRINCIPLES, each)
    found: list[Comparison] = []
    while any(missing.values()):
        scene = draw_scene(voice)
        first, second = held_out_reply(scene, voice), held_out_reply(scene, voice)
        for name in oracle.PRINCIPLES:
            better = oracle.prefer(name, scene.prompt, first, second)
            if missing[name] and better != 0.5:
                missing[name] -= 1
                found.append(Comparison(name, scene.prompt, first, second, better))
    return found


def cases(count: int, *, seed: int = 2) -> list[Case]:
    """Prompts and replies from the held-out half of the world."""
    voice = Voice(random.Random(seed), HELD)
    scenes = [draw_scene(voice) for _ in range(count)]
    return [Case(scene.prompt, held_out_reply(scene, voice)) for scene in scenes]


def judge_orders(judge: Answerer, asked: Sequence[Comparison]) -> tuple[list[float], list[float]]:
    """Logit of "the first reply is better", asked with the first reply first, and asked the other way round."""
    texts = principles()
    forward = [compare_messages(user(c.prompt), c.first, c.second, texts[c.principle].compare) for c in asked]
    back = [compare_messages(user(c.prompt), c.second, c.first, texts[c.principle].compare) for c in asked]
    logits = judge.label_logprobs([*forward, *back])
    margins = (logits[:, 0] - logits[:, 1]).tolist()
    return margins[: len(asked)], [-margin for margin in margins[len(asked) :]]


def agreement(judge: Answerer, asked: Sequence[Comparison]) -> tuple[dict[str, float], float]:
    """Share of single ordered verdicts that agree with the oracle, per principle, and of pairs that do not flip."""
    forward, back = judge_orders(judge, asked)
    right: dict[str, list[bool]] = {name: [] for name in oracle.PRINCIPLES}
    for comparison, margins in zip(asked, zip(forward, back, strict=True), strict=True):
        right[comparison.principle] += [(margin > 0) == (comparison.better == 1.0) for margin in margins]
    same = [(one > 0) == (other > 0) for one, other in zip(forward, back, strict=True)]
    return {name: _share(found) for name, found in right.items() if found}, _share(same)


def critique(judge: Answerer, about: Sequence[tuple[str, Case]]) -> list[str]:
    """The judge's critique of each case under its principle."""
    texts = principles()
    return judge.texts(
        [critique_messages(user(case.prompt), case.reply, texts[name].critique) for name, case in about],
        max_tokens=64,
    )


def revise(judge: Answerer, about: Sequence[tuple[str, Case]], critiques: Sequence[str]) -> list[str]:
    """The judge's revision of each case in the light of its critique."""
    texts = principles()
    asked = [
        revise_messages(user(case.prompt), case.reply, notes, texts[name].revise)
        for (name, case), notes in zip(about, critiques, strict=True)
    ]
    return judge.texts(asked, max_tokens=128)


def reviewed(judge: Answerer, found: Sequence[Case], *, seed: int = 3) -> Reviewed:
    """Critique and revise every case under one principle, a broken one where there is one in two cases of three."""
    rng = random.Random(seed)
    about = [(_some_principle(case, rng), case) for case in found]
    critiques = critique(judge, about)
    revisions = revise(judge, about, critiques)
    named = [
        critique_right(name, case.prompt, case.reply, text) for (name, case), text in zip(about, critiques, strict=True)
    ]
    faulty = [name in oracle.violations(case.prompt, case.reply) for name, case in about]
    before = [oracle.quality(case.prompt, case.reply) for _, case in about]
    after = [oracle.quality(case.prompt, text) for (_, case), text in zip(about, revisions, strict=True)]
    mended = [
        name not in oracle.violations(case.prompt, text) for (name, case), text in zip(about, revisions, strict=True)
    ]
    return Reviewed(
        critiques_right=_share(named),
        faults_named=_share([right for right, fault in zip(named, faulty, strict=True) if fault]),
        revisions_better=_share([new > old for old, new in zip(before, after, strict=True) if old < 0]),
        revisions_clean=_share([clean for clean, fault in zip(mended, faulty, strict=True) if fault]),
        kept=_share([new == 0 for old, new in zip(before, after, strict=True) if old == 0]),
    )


def rounds(judge: Answerer, found: Sequence[Case], count: int, *, seed: int = 4) -> list[float]:
    """Mean number of broken principles a reply before and after each round, the principle drawn anew every round."""
    rng = random.Random(seed)
    now = list(found)
    rates = [_broken(now)]
    for _ in range(count):
        about = [(rng.choice(oracle.PRINCIPLES), case) for case in now]
        texts = revise(judge, about, critique(judge, about))
        now = [Case(case.prompt, text) for case, text in zip(now, texts, strict=True)]
        rates.append(_broken(now))
    return rates


def policy_samples(policy: Answerer, prompts: Sequence[str], each: int, *, seed: int = 5) -> list[Case]:
    """`each` replies to every prompt at temperature 1."""
    torch.manual_seed(seed)
    asked = [prompt for prompt in prompts for _ in range(each)]
    texts = policy.texts([user(prompt) for prompt in asked], max_tokens=128, temperature=1.0)
    return [Case(prompt, text) for prompt, text in zip(asked, texts, strict=True)]


def sample_rates(samples: Sequence[Case]) -> dict[str, float]:
    """Of policy samples: the share that breaks some principle, that is malformed, and of different texts."""
    return {
        "faulty": _share([bool(oracle.violations(case.prompt, case.reply)) for case in samples]),
        "malformed": _share([read_reply(case.reply).malformed is not None for case in samples]),
        "distinct": len({case.reply for case in samples}) / len(samples),
    }


def _some_principle(case: Case, rng: random.Random) -> str:
    broken = sorted(oracle.violations(case.prompt, case.reply))
    return rng.choice(broken if broken and rng.random() < 2 / 3 else oracle.PRINCIPLES)


def _broken(found: Sequence[Case]) -> float:
    return sum(len(oracle.violations(case.prompt, case.reply)) for case in found) / len(found)


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else float("nan")
