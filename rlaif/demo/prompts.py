"""The demo's prompts: `python -m rlaif.demo.prompts` writes them, always the same.

`prompts/policy/demo.jsonl` are those that a run asks; `demo-held-out.jsonl` are others, for evaluations.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Mapping
from pathlib import Path

from rlaif.demo.grammar import Scene, Voice, word_scene
from rlaif.demo.words import Family, topics_of
from rlaif.resources import resource

SHARES: dict[Family, int] = {"ordinary": 60, "harm": 30, "upset": 30}
"""Prompts of each family: every topic at least once."""
_HELD_OUT = 120


def demo_scenes(seed: int = 7, shares: Mapping[Family, int] | None = None) -> list[Scene]:
    """The scenes of the prompt file in its order: all different, four in ten in held-out wordings."""
    voice = Voice(random.Random(seed), held=0.4)
    found: dict[str, Scene] = {}
    for family, count in (shares or SHARES).items():
        wanted = len(found) + count
        for topic in itertools.cycle(topics_of(family)):
            if len(found) == wanted:
                break
            scene = word_scene(topic, voice)
            found.setdefault(scene.prompt, scene)
    scenes = list(found.values())
    voice.rng.shuffle(scenes)
    return scenes


def fresh_scenes(count: int, seed: int = 12) -> list[Scene]:
    """Scenes of all families that are not in the shipped prompts of a run."""
    shares: dict[Family, int] = {"ordinary": count, "harm": count // 2, "upset": count // 2}
    known = {scene.prompt for scene in demo_scenes()}
    return [scene for scene in demo_scenes(seed, shares) if scene.prompt not in known][:count]


def prompt_file(name: str = "demo.jsonl") -> Path:
    """Where the prompts are shipped."""
    return resource("prompts") / "policy" / name


def lines() -> str:
    """The content of the prompt file."""
    return _rows([{"prompt": scene.prompt} for scene in demo_scenes()])


def held_out_lines() -> str:
    """The content of the file for evaluations; `kind` says what a prompt is: ordinary, harm or upset."""
    return _rows([{"prompt": scene.prompt, "kind": scene.family} for scene in fresh_scenes(_HELD_OUT)])


def _rows(rows: list[dict[str, str]]) -> str:
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


if __name__ == "__main__":
    prompt_file().parent.mkdir(parents=True, exist_ok=True)
    prompt_file().write_text(lines(), encoding="utf-8")
    prompt_file("demo-held-out.jsonl").write_text(held_out_lines(), encoding="utf-8")
