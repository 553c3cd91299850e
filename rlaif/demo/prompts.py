"""The demo's prompts: `python -m rlaif.demo.prompts` writes `prompts/policy/demo.jsonl`, always the same."""

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


def prompt_file() -> Path:
    """Where the prompts are shipped."""
    return resource("prompts") / "policy" / "demo.jsonl"


def lines() -> str:
    """The content of the prompt file."""
    rows = [json.dumps({"prompt": scene.prompt}, ensure_ascii=False) for scene in demo_scenes()]
    return "".join(f"{row}\n" for row in rows)


if __name__ == "__main__":
    prompt_file().parent.mkdir(parents=True, exist_ok=True)
    prompt_file().write_text(lines(), encoding="utf-8")
