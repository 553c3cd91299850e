"""Whole online trainings: they learn, they stop and go on, several processes are one, what they leave behind."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlaif.errors import ModelError, UserError
from rlaif.online.settings import OnlineSettings
from rlaif.training.folder import last_checkpoint
from tests.online.runs import begin, given, log_of, run
from tests.support import ROOT, command, environment, rlaif
from tests.training.runs import Heard, furthest, weights

ALGORITHMS = ["ppo", "rloo", "grpo", "reinforce++", "p3o", "online-dpo"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return begin(tmp_path_factory.mktemp("online"))


def flags(folder: Path, out: Path, *more: object) -> list[object]:
    return [
        "train", "ppo", "--model", folder / "model", "--prompts", folder / "prompts.jsonl", "--output", out,
        "--reward", f"{folder / 'reward.py'}:vowels", "--device", "cpu", "--algorithm", "ppo", "--batch-size", "8",
        "--samples", "4", "--learning-rate", "1e-3", "--rollout-max-tokens", "8", "--watch-on-alarm", "warn", *more,
    ]  # fmt: skip


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_learns(algorithm: str, folder: Path, tmp_path: Path) -> None:
    trained = run(
        folder, output=str(tmp_path), algorithm=algorithm, steps=30, batch_size=32, learning_rate=3e-3, epochs=2,
        kl={"beta": 0.01},
    )  # fmt: skip
    log = log_of(trained.folder)
    assert trained.finished and len(log) == 30
    first, last = (sum(line["reward"] for line in lines) / 5 for lines in (log[:5], log[-5:]))
    assert last > first + 0.1, (first, last)
    assert log[-1]["kl"] > 0.5 and log[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert all(math.isfinite(value) for line in log for value in line.values())


def test_what_is_left_behind(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(folder, output=str(out), algorithm="ppo")
    names = {path.name for path in out.iterdir()}
    assert {"train.json", "metrics.json", "log.jsonl", "responses.jsonl", "README.md", "curves.png"} < names
    assert not any(name.startswith(("checkpoint", "best")) or name.endswith((".bin", ".pt")) for name in names)
    AutoModelForCausalLM.from_pretrained(out)
    AutoTokenizer.from_pretrained(out)
    rows = [json.loads(line) for line in (out / "responses.jsonl").open()]
    assert [row["version"] for row in rows] == [0] * 8 + [1] * 8 + [2] * 8, "the weights that made each answer"
    assert rows[0]["reward"] == pytest.approx(
        sum(each in "ae" for each in rows[0]["response"]) / (len(rows[0]["response"]) + 1)
    )
    card = (out / "README.md").read_text()
    assert "apply_chat_template" in card, "its tokenizer has a template"
    assert "trained on its own answers by `ppo`" in card and str(folder) not in card


def test_a_killed_training_goes_on_as_if_nothing_had_been(folder: Path, tmp_path: Path) -> None:
    """kill -9 in the middle: the same weights, the same log, the same answers as in one piece."""
    more = ["--steps", "16", "--save-steps", "2", "--set", "kl.target=0.5"]
    calm, broken = tmp_path / "calm", tmp_path / "broken"
    rlaif(*flags(folder, calm, *more)).check_returncode()
    with subprocess.Popen(
        command(*flags(folder, broken, *more)), env=environment(), stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 120
        while last_checkpoint(broken) is None and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert last_checkpoint(broken) is not None and not (broken / "metrics.json").exists()
    rlaif(*flags(folder, broken, *more, "--resume")).check_returncode()
    assert furthest(weights(calm), weights(broken)) <= 1e-6
    one, other = log_of(calm), log_of(broken)
    assert [line["step"] for line in other] == list(range(1, 17))
    for ours, theirs in zip(one, other, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    assert (calm / "responses.jsonl").read_text() == (broken / "responses.jsonl").read_text()


@pytest.mark.parametrize("algorithm", ["ppo", "rloo"])
def test_an_adapter_stops_and_goes_on(
    algorithm: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C after a step; with several rewards, whose running means go on too."""
    (tmp_path / "other.py").write_text("def short(prompts, responses):\n    return [-len(r) for r in responses]\n")
    more: dict[str, Any] = {
        "algorithm": algorithm, "lora": {"rank": 4}, "steps": 6,
        "reward": f"{folder / 'reward.py'}:vowels,{tmp_path / 'other.py'}:short*0.5",
    }  # fmt: skip
    calm = run(folder, output=str(tmp_path / "calm"), **more)
    heard = Heard()
    with monkeypatch.context() as patch:
        plain = heard.progress

        def progress(stage: str, done: int, logs: dict[str, float]) -> None:
            plain(stage, done, logs)
            if done == 3:
                signal.raise_signal(signal.SIGINT)

        patch.setattr(heard, "progress", progress)
        stopped = run(folder, output=str(tmp_path / "broken"), heard=heard, **more)
    assert not stopped.finished and stopped.steps == 3
    assert any("stopping after this step" in note for note in heard.notes)
    resumed = run(folder, output=str(tmp_path / "broken"), resume=True, **more)
    assert resumed.finished and (resumed.folder / "adapter_model.safetensors").exists()
    assert furthest(weights(calm.folder), weights(resumed.folder)) <= 1e-6


def test_the_log_goes_where_it_is_sent(folder: Path, tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trained = run(folder, output=str(tmp_path / "out"), report_to=["tensorboard"])
    (events,) = {path.parent for path in trained.folder.rglob("events.out.tfevents.*")}
    read = reader.EventAccumulator(str(events))
    read.Reload()
    sent = [each.value for each in read.Scalars("reward")]
    assert sent == pytest.approx([line["reward"] for line in log_of(trained.folder)], abs=1e-6)


def test_memory_budget_does_not_change_the_result(folder: Path, tmp_path: Path) -> None:
    """Parts of a minibatch add up to it, whatever fits at once."""
    for algorithm in ("ppo", "p3o"):
        ends = [
            run(folder, output=str(tmp_path / f"{algorithm}{tokens}"), algorithm=algorithm, tokens=tokens, samples=2)
            for tokens in (64, 8192)
        ]
        assert furthest(*(weights(each.folder) for each in ends)) <= 2e-5, algorithm


@pytest.mark.parametrize("lora", [{}, {"rank": 4}])
def test_in_bfloat16_the_policy_starts_at_its_reference(lora: dict[str, int], folder: Path, tmp_path: Path) -> None:
    """The two are rounded alike: a deep model would be stopped before its first step otherwise."""
    trained = run(folder, output=str(tmp_path / "out"), dtype="bfloat16", steps=1, lora=lora)
    assert log_of(trained.folder)[0]["kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("lora", [{}, {"rank": 4}])
def test_what_layers_computed_is_forgotten_and_computed_again(
    lora: dict[str, int], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In policy and value network, while they learn and at no other time; to the same end."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    passes = {True: 0, False: 0}
    plain = LlamaMLP.forward

    def forward(self: Any, *given: Any, **more: Any) -> Any:
        passes[torch.is_grad_enabled()] += 1
        return plain(self, *given, **more)

    monkeypatch.setattr(LlamaMLP, "forward", forward)
    counted, ends = [], []
    for saving in (False, True):
        passes.update({True: 0, False: 0})
        end = run(folder, output=str(tmp_path / str(saving)), algorithm="ppo", lora=lora, gradient_checkpointing=saving)
        counted.append(dict(passes))
        ends.append(weights(end.folder))
    assert counted[1][True] == 2 * counted[0][True] > 0 and counted[1][False] == counted[0][False]
    assert furthest(*ends) <= 1e-5


def test_two_processes_are_one(folder: Path, tmp_path: Path) -> None:
    """With two rewards, which are normalised over the answers of both."""
    from tests.training.test_processes import alone, both

    one, two = tmp_path / "one", tmp_path / "two"
    (tmp_path / "other.py").write_text("def short(prompts, responses):\n    return [-len(r) for r in responses]\n")
    rewards = f"{folder / 'reward.py'}:vowels,{tmp_path / 'other.py'}:short*0.5"
    more = ["--steps", "3", "--minibatches", "1", "--reward", rewards]
    alone(*flags(folder, one, *more))
    both("rlaif", *flags(folder, two, *more))
    assert furthest(weights(one), weights(two)) <= 1e-4
    for ours, theirs in zip(log_of(one), log_of(two), strict=True):
        for name in ("reward", "kl", "grad_norm", "value/grad_norm", "entropy"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-4), name
    assert answers_of(one) == answers_of(two)


def answers_of(folder: Path) -> list[tuple[int, str, int, str]]:
    """Every answer that is kept, in some order of its own: several processes write theirs one after another."""
    rows = [json.loads(line) for line in (folder / "responses.jsonl").open()]
    assert len(rows) == 8 * rows[-1]["step"]
    return sorted((row["step"], row["prompt"][0]["content"], row["index"], row["response"]) for row in rows)


def test_a_process_may_have_nothing_to_learn_from(folder: Path, tmp_path: Path) -> None:
    """The second one's answers are all equal, and have no score in the second step: it goes along all the same."""
    from tests.training.test_processes import both

    (tmp_path / "odd.py").write_text(
        "import os\n"
        "calls = []\n"
        "def odd(prompts, responses):\n"
        "    calls.append(1)\n"
        "    if os.environ.get('RANK') == '1':\n"
        "        return [None if len(calls) == 2 else 0.0] * len(responses)\n"
        "    return [float(len(text)) for text in responses]\n"
    )
    for algorithm, name in (("online-dpo", "accuracy"), ("ppo", "clip_share")):
        out = tmp_path / algorithm
        more = ["--reward", f"{tmp_path / 'odd.py'}:odd", "--algorithm", algorithm, "--steps", "3"]
        both("rlaif", *flags(folder, out, *more))
        log = log_of(out)
        assert [line["unscored"] for line in log] == [0.0, 0.5, 0.0] and all(name in line for line in log)


def test_answers_without_a_score_are_left_out_and_counted(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "some.py").write_text(
        "def some(prompts, responses):\n"
        "    return [None if at % 4 == 1 else float(at % 3) for at in range(len(responses))]\n"
    )
    for algorithm in ALGORITHMS:
        trained = run(
            folder,
            output=str(tmp_path / algorithm),
            algorithm=algorithm,
            reward=f"{tmp_path / 'some.py'}:some",
            steps=1,
        )
        (line,) = log_of(trained.folder)
        assert line["unscored"] == 0.25
        # of eight scores 0 - 2 0 1 - 0 1
        assert line["reward"] == pytest.approx(4 / 6)


def test_what_an_answer_is_paid_by_hand(tmp_path: Path) -> None:
    """Scores 5, none, -7, 2 cut to 3 on either side; the second and the third answer met the limit, which costs 1."""
    from rlaif.online.loop import Loop
    from rlaif.online.responses import Asked, Response, Scores

    settings = OnlineSettings.model_validate(given(tmp_path, reward_clip=3.0, missing_eos_penalty=1.0))
    nobody: Any = None
    made = [Response(Asked("p", (), [1]), at, [2], [-1.0], "", at in (0, 3), 0) for at in range(4)]
    loop = Loop(settings, nobody, nobody, 0.0)
    kept, paid = loop._kept(made, Scores([5.0, None, -7.0, 2.0], {}))
    assert [each.index for each in kept] == [0, 2, 3] and paid == [3.0, -4.0, 2.0]


def test_long_answers_pay_before_they_meet_the_limit(tmp_path: Path) -> None:
    """Of at most 8 tokens the last 4 cost a quarter each: 4 tokens nothing, 5 a quarter, 8 all."""
    from rlaif.online.loop import Loop
    from rlaif.online.responses import Asked, Response, Scores

    settings = OnlineSettings.model_validate(given(tmp_path, overlong_buffer=4))
    nobody: Any = None
    made = [
        Response(Asked("p", (), [1]), at, [2] * size, [-1.0] * size, "", True, 0) for at, size in enumerate((4, 5, 8))
    ]
    _, paid = Loop(settings, nobody, nobody, 0.0)._kept(made, Scores([1.0, 1.0, 1.0], {}))
    assert paid == [1.0, 0.75, 0.0]


def test_a_step_without_any_score_is_no_step(folder: Path, tmp_path: Path) -> None:
    """The optimizer's memory would move the policy all the same."""
    (tmp_path / "none.py").write_text("def none(prompts, responses):\n    return [None] * len(responses)\n")
    with pytest.raises(ModelError, match="step 1: the reward has no score for any of 8 answers"):
        run(folder, output=str(tmp_path / "out"), reward=f"{tmp_path / 'none.py'}:none")


def test_a_reward_that_likes_length_is_caught(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "long.py").write_text("def long(prompts, responses):\n    return [len(r) / 10 for r in responses]\n")
    heard = Heard()
    trained = run(
        folder, output=str(tmp_path / "out"), reward=f"{tmp_path / 'long.py'}:long", steps=60, batch_size=32, epochs=2,
        learning_rate=5e-3, rollout={"max_tokens": 48}, kl={"beta": 0.0}, watch={"on_alarm": "stop"}, heard=heard,
    )  # fmt: skip
    assert trained.finished and trained.steps < 60, log_of(trained.folder)[-1]
    told = json.loads((trained.folder / "metrics.json").read_text())["alarms"]
    assert told and told == [note for note in heard.notes if note.startswith("step ")]


def test_in_the_tiny_world_a_sound_reward_raises_no_alarm_and_a_hollow_one_does(tmp_path: Path) -> None:
    """The oracle's quality of an answer as the reward, and then its length, with the watch as it comes."""
    (tmp_path / "world.py").write_text(
        "from rlaif.demo.oracle import quality\n"
        "def sound(prompts, responses):\n"
        "    return [quality(p[-1]['content'], r) / 4 for p, r in zip(prompts, responses)]\n"
        "def hollow(prompts, responses):\n"
        "    return [len(r) / 50 for r in responses]\n"
    )
    more: dict[str, Any] = {
        "model": "demo-policy", "prompts": str(ROOT / "prompts" / "policy" / "demo.jsonl"), "steps": 40,
        "batch_size": 64, "learning_rate": 5e-4, "epochs": 1, "kl": {"beta": 0.02}, "rollout": {"max_tokens": 96},
        "watch": {}, "missing_eos_penalty": 1.0,
    }  # fmt: skip
    found = {
        name: run(tmp_path, output=str(tmp_path / name), reward=f"{tmp_path / 'world.py'}:{name}", **more)
        for name in ("sound", "hollow")
    }
    alarms = {name: json.loads((each.folder / "metrics.json").read_text())["alarms"] for name, each in found.items()}
    log = log_of(found["sound"].folder)
    first, last = (sum(line["reward"] for line in lines) / 5 for lines in (log[:5], log[-5:]))
    assert last > first + 0.15 and alarms["sound"] == [], (first, last, alarms["sound"])
    assert any("length" in told or "long" in told for told in alarms["hollow"]), log_of(found["hollow"].folder)[-1]


def test_a_policy_that_is_not_its_sampler_is_caught(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a server that went on with older weights."""
    from rlaif.online.sampling import LocalSampler

    plain = LocalSampler.sample

    def stale(self: LocalSampler, *given: Any) -> Any:
        import dataclasses

        return [dataclasses.replace(each, logps=[logp - 0.5 for logp in each.logps]) for each in plain(self, *given)]

    monkeypatch.setattr(LocalSampler, "sample", stale)
    with pytest.raises(ModelError, match="not those of version 0"):
        run(folder, output=str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"batch_size": 6}, "no multiple of `samples: 4`"),
        ({"samples": 1, "batch_size": 4}, "compares answers to one prompt"),
        ({"algorithm": "online-dpo", "kl": {"beta": 0}}, "needs a beta above 0"),
        ({"algorithm": "ppo", "ratio": "sequence"}, "one ratio an answer is for `algorithm: grpo`, not ppo"),
        ({"overlong_buffer": 9}, "longer than the longest answer, 8 tokens"),
        ({"minibatches": 5}, "more than the 2 prompts of a step"),
    ],
)
def test_settings_that_do_not_fit_together(more: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=told):
        OnlineSettings.model_validate(given(tmp_path, **more))


def test_mistakes_are_told_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    for more, told in (
        ({"batch_size": 64}, "12 prompts are too few: a step takes 16"),
        ({"held_out": {"every": 1, "prompts": 12}}, "12 prompts are too few to set 12 of them aside"),
        ({"reward": "judge"}, "needs a judge"),
        ({"reward": "nothing here"}, "nothing here"),
    ):
        with pytest.raises(UserError, match=told):
            run(folder, output=str(tmp_path / "out"), **more)
        assert not (tmp_path / "out").exists()
