"""Answers drawn ahead: which step, which weights, in which order, and what becomes of errors."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from rlaif.errors import ModelError
from rlaif.rl.config import OnlineSettings
from rlaif.rl.experience import Response, TokenizedPrompt
from rlaif.rl.rollout import AheadSampler
from tests.online.runs import given

PROMPTS = [[TokenizedPrompt(f"{step}", (), [1])] for step in range(4)]


class Server:
    """Draws one answer a prompt, tagged with the weights at hand; `gate` holds it back."""

    def __init__(self) -> None:
        self.version, self.calls = 0, list[str]()
        self.gate, self.fail = threading.Event(), False
        self.gate.set()
        self.closed = False

    def sample(self, asked: Sequence[TokenizedPrompt], each: int, step: int) -> list[Response]:
        assert self.gate.wait(10)
        if self.fail:
            raise ModelError("gone")
        self.calls.append(f"sample {step}")
        return [Response(one, 0, [1], [0.0], "", True, self.version) for one in asked for _ in range(each)]

    def update(self, version: int) -> None:
        self.calls.append(f"update {version}")
        self.version = version

    def close(self) -> None:
        self.closed = True


def steps(sampler: AheadSampler, count: int) -> list[list[tuple[str, int]]]:
    found = []
    for step in range(count):
        found.append([(each.prompt.id, each.version) for each in sampler.sample(PROMPTS[step], 2, step)])
        sampler.update(step + 1)
    return found


def test_every_step_after_the_first_is_one_update_old() -> None:
    server = Server()
    sampler = AheadSampler(server, PROMPTS.__getitem__, 4)
    assert steps(sampler, 4) == [[("0", 0)] * 2, [("1", 0)] * 2, [("2", 1)] * 2, [("3", 2)] * 2]
    assert server.calls == [
        "sample 0", "sample 1", "update 1", "sample 2", "update 2", "sample 3", "update 3", "update 4",
    ]  # fmt: skip
    sampler.close()
    assert server.closed


def test_the_next_answers_are_drawn_while_the_caller_goes_on() -> None:
    server = Server()
    sampler = AheadSampler(server, PROMPTS.__getitem__, 4)
    sampler.sample(PROMPTS[0], 1, 0)
    sampler.update(1)
    server.gate.clear()
    sampler.sample(PROMPTS[1], 1, 1)  # drawn before; that of step 2 hangs, and nobody waits for it
    server.gate.set()
    sampler.update(2)
    assert server.calls[-2:] == ["sample 2", "update 2"]
    sampler.close()


def test_a_look_at_other_prompts_loses_nothing() -> None:
    server = Server()
    sampler = AheadSampler(server, PROMPTS.__getitem__, 4)
    sampler.sample(PROMPTS[0], 1, 0)
    (other,) = sampler.sample([TokenizedPrompt("held", (), [1])], 1, 1_000_000_000)
    assert other.prompt.id == "held"
    (drawn,) = sampler.sample(PROMPTS[1], 1, 1)
    assert drawn.prompt.id == "1" and server.calls.count("sample 1") == 1
    sampler.close()


def test_an_error_reaches_the_caller() -> None:
    server = Server()
    sampler = AheadSampler(server, PROMPTS.__getitem__, 4)
    server.gate.clear()
    server.fail = True
    server.gate.set()
    with pytest.raises(ModelError, match="gone"):
        sampler.sample(PROMPTS[0], 1, 0)
    server.fail = False
    sampler.sample(PROMPTS[0], 1, 0)
    sampler.update(1)
    server.fail = True
    sampler.sample(PROMPTS[1], 1, 1)
    with pytest.raises(ModelError, match="gone"):
        sampler.update(2)
    sampler.close()


def test_it_needs_a_server(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="drawn ahead on a server only"):
        OnlineSettings.model_validate(given(tmp_path, rollout={"async_rollout": True}))
