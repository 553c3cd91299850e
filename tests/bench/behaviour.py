"""How a policy behaves in the tiny world: it answers prompts that no training saw, and the oracle reads the answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rlaif.demo.oracle import read_reply, violations
from rlaif.demo.world import fresh_scenes
from rlaif.inference.model_folder import quiet
from rlaif.records import Message
from rlaif.stats import wilson

TEMPERATURE = 0.7
"""How policies are usually served. At 1 a model of this size garbles 3% of its answers, whatever it has learned."""
_SEED = 12
_TOKENS = 128


class Behaviour(NamedTuple):
    """What the oracle finds in a policy's answers."""

    answers: int
    faulty: float
    """Share that breaks some principle; a malformed answer breaks all of them."""
    malformed: float
    """Share that is not made of this world's sentences: empty, cut off, garbled."""
    distinct: float
    """Different answers among all of them."""

    def __str__(self) -> str:
        _, low, high = wilson(self.faulty * self.answers, self.answers)
        return f"{self.faulty:6.1%} ({low:.1%} to {high:.1%}) of {self.answers:,}, malformed {self.malformed:.1%}"


def fresh_prompts(count: int, seed: int = _SEED) -> list[str]:
    """Prompts of all families that are not in the shipped file, four in ten in held-out wordings."""
    return [scene.prompt for scene in fresh_scenes(count, seed)]


def behaviour(
    folder: Path, prompts: Sequence[str], each: int = 2, temperature: float = TEMPERATURE, seed: int = 5
) -> Behaviour:
    """Draw `each` answers to every prompt, and have the oracle read them."""
    said = answers(folder, prompts, each, temperature, seed)
    texts = [(prompt, text) for prompt, found in said.items() for text in found]
    faulty = sum(bool(violations(prompt, text)) for prompt, text in texts)
    malformed = sum(read_reply(text).malformed is not None for _, text in texts)
    return Behaviour(len(texts), faulty / len(texts), malformed / len(texts), len(set(texts)) / len(texts))


def answers(folder: Path, prompts: Sequence[str], each: int, temperature: float, seed: int = 5) -> dict[str, list[str]]:
    """A policy's answers to every prompt; equal prompts share one list."""
    import torch

    from tools.train_demo_models.answering import Answerer

    torch.manual_seed(seed)
    asked = [prompt for prompt in prompts for _ in range(each)]
    questions = [(Message(role="user", content=prompt),) for prompt in asked]
    with quiet():
        texts = Answerer(folder).texts(questions, max_tokens=_TOKENS, temperature=temperature)
    found: dict[str, list[str]] = {}
    for prompt, text in zip(asked, texts, strict=True):
        found.setdefault(prompt, []).append(text)
    return found
