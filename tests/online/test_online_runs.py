"""Whole online trainings: they learn, they stop and go on, several processes are one, what they leave behind."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlaif.errors import ModelError, UserError
from rlaif.rl.config import OnlineSettings
from rlaif.training.folder import last_checkpoint
from tests.online.runs import begin, given, log_of, run
from tests.support import ROOT, command, environment, rlaif
from tests.training.runs import Heard, furthest, weights
from tests.training.scorers import save_scorer

ALGORITHMS = ["ppo", "rloo", "grpo", "reinforce++", "p3o", "online-dpo"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return begin(tmp_path_factory.mktemp("online"))


def flags(folder: Path, out: Path, *more: object) -> list[object]:
    return [
        "train", "ppo", "--model", folder / "model", "--prompts", folder / "prompts.jsonl", "--output", out,
        "--reward", f"{folder / 'reward.py'}:vowels", "--device", "cpu", "--algorithm", "ppo", "--batch-size", "8",
        "--samples", "4", "--learning-rate", "1e-3", "--rollout-max-tokens", "8", "--monitor-on-alarm", "warn", *more,
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


def test_a_server_that_is_not_there_leaves_no_training(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing stands in the way of the same command with the right address."""
    monkeypatch.setattr("rlaif.rl.weight_sync.TRIES", 1)
    out, nowhere = tmp_path / "out", {"base_url": "http://127.0.0.1:1/v1", "max_tokens": 8, "timeout": 1.0}
    for more in ({}, {"async_rollout": True}):
        with pytest.raises(ModelError, match=r"127\.0\.0\.1:1/v1: connection refused; start the server, or set"):
            run(folder, output=str(out), rollout=nowhere | more)
        assert not out.exists()


@pytest.mark.curves
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
        plain = heard.advance

        def advance(stage: str, done: int, note: str = "") -> None:
            plain(stage, done, note)
            if done == 3:
                signal.raise_signal(signal.SIGINT)

        patch.setattr(heard, "advance", advance)
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
            run(
                folder,
                output=str(tmp_path / f"{algorithm}{tokens}"),
                algorithm=algorithm,
                samples=2,
                max_tokens_per_pass=tokens,
            )
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
    from rlaif.rl.experience import Response, Scores, TokenizedPrompt
    from rlaif.rl.trainer import OnlineTrainer

    settings = OnlineSettings.model_validate(given(tmp_path, reward_clip=3.0, missing_eos_penalty=1.0))
    nobody: Any = None
    made = [Response(TokenizedPrompt("p", (), [1]), at, [2], [-1.0], "", at in (0, 3), 0) for at in range(4)]
    loop = OnlineTrainer(settings, nobody, nobody, 0.0)
    kept, paid = loop._filter_scored(made, Scores([5.0, None, -7.0, 2.0], {}))
    assert [each.index for each in kept] == [0, 2, 3] and paid == [3.0, -4.0, 2.0]


def test_long_answers_pay_before_they_meet_the_limit(tmp_path: Path) -> None:
    """Of at most 8 tokens the last 4 cost a quarter each: 4 tokens nothing, 5 a quarter, 8 all."""
    from rlaif.rl.experience import Response, Scores, TokenizedPrompt
    from rlaif.rl.trainer import OnlineTrainer

    settings = OnlineSettings.model_validate(given(tmp_path, overlong_buffer=4))
    nobody: Any = None
    made = [
        Response(TokenizedPrompt("p", (), [1]), at, [2] * size, [-1.0] * size, "", True, 0)
        for at, size in enumerate((4, 5, 8))
    ]
    _, paid = OnlineTrainer(settings, nobody, nobody, 0.0)._filter_scored(made, Scores([1.0, 1.0, 1.0], {}))
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
        learning_rate=5e-3, rollout={"max_tokens": 48}, kl={"beta": 0.0}, monitor={"on_alarm": "stop"}, heard=heard,
    )  # fmt: skip
    assert trained.finished and trained.steps < 60, log_of(trained.folder)[-1]
    told = json.loads((trained.folder / "metrics.json").read_text())["alarms"]
    assert told and told == [note for note in heard.notes if note.startswith("step ")]


def test_an_alarm_leaves_a_checkpoint_to_go_back_to(folder: Path, tmp_path: Path) -> None:
    """The bound on the divergence is next to nothing: an alarm as soon as the median of three steps is above it."""
    out, heard = str(tmp_path / "out"), Heard()
    more: dict[str, Any] = {"output": out, "steps": 6, "save_steps": 1, "batch_size": 32, "kl": {"beta": 0.01}}
    hasty = {"kl": None, "kl_stop": 1e-6}
    stopped = run(folder, heard=heard, monitor=hasty, **more)
    assert stopped.finished and 3 <= stopped.steps < 6
    done = stopped.steps - 1
    back = stopped.folder / f"checkpoint-{done}"
    assert last_checkpoint(stopped.folder) == back
    assert any(note.startswith(f"{back}, from before the alarm, is kept") for note in heard.notes)
    with pytest.raises(UserError, match="holds a finished training"):
        run(folder, monitor=hasty, **more)
    with pytest.raises(UserError, match="was begun with `epochs: 1`, not 2"):
        run(folder, monitor=hasty, resume=True, **more | {"epochs": 2})
    again = run(folder, resume=True, **more | {"kl": {"beta": 0.5}, "learning_rate": 1e-4})
    assert again.finished and again.steps == 6 and last_checkpoint(again.folder) is None
    log = log_of(again.folder)
    assert [line["kl/beta"] for line in log] == [0.01] * done + [0.5] * (6 - done)
    # Both rates fall to 0 over six steps.
    rates = [(1e-3 if at < done else 1e-4) * (6 - at) / 6 for at in range(6)]
    assert [line["learning_rate"] for line in log] == pytest.approx(rates)
    with pytest.raises(UserError, match="holds a finished training"):
        run(folder, resume=True, **more)


class Killed(BaseException):
    pass


def killed_after(step: int, patch: pytest.MonkeyPatch, folder: Path, **more: Any) -> None:
    """A training that dies when a step is in the log."""
    import rlaif.rl.run

    plain = rlaif.rl.run.add_to_log

    def add(to: Path, line: dict[str, Any]) -> None:
        plain(to, line)
        if line["step"] == step:
            raise Killed

    with patch.context() as inner, pytest.raises(Killed):
        inner.setattr(rlaif.rl.run, "add_to_log", add)
        run(folder, **more)


def test_a_reward_that_draws_lots_goes_on_where_it_was(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lots.py").write_text(
        "import random\nimport numpy\nimport torch\n"
        "def lots(prompts, responses):\n"
        "    return [random.random() + numpy.random.rand() + torch.rand(()).item() for _ in responses]\n"
    )
    more: dict[str, Any] = {"reward": f"{tmp_path / 'lots.py'}:lots", "steps": 4, "save_steps": 2}
    calm = run(folder, output=str(tmp_path / "calm"), **more)
    killed_after(3, monkeypatch, folder, output=str(tmp_path / "broken"), **more)
    resumed = run(folder, output=str(tmp_path / "broken"), resume=True, **more)
    assert furthest(weights(calm.folder), weights(resumed.folder)) <= 1e-6
    assert [line["reward"] for line in log_of(calm.folder)] == [line["reward"] for line in log_of(resumed.folder)]


def test_the_best_weights_are_those_of_the_training_that_went_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 1 is the best at the checkpoint; the better step 3 dies with its process, and is not so good again."""
    from rlaif.rl import monitor
    from tests.online.test_watch import held_out

    rates = {1: 0.6, 2: 0.5, 3: 0.9, 4: 0.4}
    kept: dict[int, Any] = {}
    plain = monitor.save_best

    def save(to: Path, done: int, loop: Any) -> None:
        plain(to, done, loop)
        kept.setdefault(
            done, {name: each.detach().clone() for name, each in loop.networks.policy.model.named_parameters()}
        )

    monkeypatch.setattr(monitor, "save_best", save)
    monkeypatch.setattr(monitor.Monitoring, "_evaluate", lambda _, done: held_out(done, rates[done]))
    more: dict[str, Any] = {
        "output": str(tmp_path / "out"), "steps": 4, "save_steps": 2, "held_out": {"every": 1, "prompts": 2},
        "judge": {"model": "demo-judge"},
    }  # fmt: skip
    killed_after(3, monkeypatch, folder, **more)
    assert {path.name for path in (tmp_path / "out").glob("best-*")} == {"best-1", "best-3"}
    rates[3], heard = 0.5, Heard()
    resumed = run(folder, resume=True, heard=heard, **more)
    assert any("the model is that of step 1" in note for note in heard.notes)
    saved = weights(resumed.folder)
    assert furthest(saved, {name: each for name, each in kept[1].items() if name in saved}) <= 1e-6
    assert not list(resumed.folder.glob("best-*"))
    first, *_, last = log_of(resumed.folder)
    told = {"reward": first["reward"], "kl": first["kl"], "length": first["length"], "held_out/win_rate": 0.6}
    assert last["step"] == 4 and last["held_out/win_rate"] == 0.4 and last["kl"] != first["kl"]
    assert {name: resumed.metrics[name] for name in told} == told, "the figures are those of the model"
    assert json.loads((resumed.folder / "metrics.json").read_text())["kl"] == first["kl"]
    card = (resumed.folder / "README.md").read_text()
    assert "are those of step 1, which the held-out judge likes best" in card
    assert f"| reward | {first['reward']:.4f} |" in card and "by the held-out judge | 0.6000 |" in card


def test_what_a_checkpoint_brings_back(tmp_path: Path) -> None:
    """What later steps are compared with, and the price of KL only where it is steered."""
    from rlaif.rl.trainer import OnlineTrainer, load_checkpoint, save_checkpoint

    networks = MagicMock()
    networks.value, networks.reward.state.return_value = None, {}
    for kl, beta in (({"target": 3.0}, 0.7), ({}, 0.05)):
        settings = OnlineSettings.model_validate(given(tmp_path, kl=kl))
        save_checkpoint(tmp_path, 2, OnlineTrainer(settings, networks, None, 0.7, 0.25, 0.5), {}, best=None, keep=1)
        loop = OnlineTrainer(settings, networks, None, settings.kl.beta)
        assert load_checkpoint(tmp_path / "checkpoint-2", loop)["step"] == 2
        assert (loop.beta, loop.mismatch, loop.drift) == (beta, 0.25, 0.5)
        networks.sampler.update.assert_called_with(2)


def test_a_damaged_checkpoint_is_one_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more: dict[str, Any] = {"output": str(tmp_path / "out"), "save_steps": 1}
    killed_after(3, monkeypatch, folder, **more)
    made = tmp_path / "out" / "checkpoint-2"
    whole = (made / "policy.safetensors").read_bytes()
    for broken in (whole[:1000], b"", whole[:-1000]):
        (made / "policy.safetensors").write_bytes(broken)
        with pytest.raises(
            UserError, match=r"checkpoint-2: policy.safetensors is damaged \(.*; delete this folder"
        ) as caught:
            run(folder, resume=True, **more)
        assert "\n" not in str(caught.value)


def test_a_training_goes_on_with_another_server_and_prompts_elsewhere(tmp_path: Path) -> None:
    from rlaif.training.folder import TrainState, begin, resume_checkpoint

    def begun(**more: Any) -> TrainState:
        settings = OnlineSettings.model_validate(given(tmp_path, **more)).plain()
        return TrainState(method="ppo", settings=settings, data_hash="d", model_hash="m")

    def served(port: int, **more: Any) -> dict[str, Any]:
        return {"max_tokens": 8, "base_url": f"http://127.0.0.1:{port}/v1", **more}

    tmp_path.joinpath("out").mkdir()
    begin(tmp_path / "out", begun(rollout=served(8000)))
    other = served(8001, timeout=600, concurrency=3, weights="/dev/shm/x", served_model="x")
    assert resume_checkpoint(tmp_path / "out", begun(rollout=other, prompts="moved.jsonl")) is None
    with pytest.raises(UserError, match=r'`rollout\.base_url: "a server"`, not null'):
        resume_checkpoint(tmp_path / "out", begun())
    with pytest.raises(UserError, match=r"`rollout\.max_tokens: 8`, not 9"):
        resume_checkpoint(tmp_path / "out", begun(rollout=other | {"max_tokens": 9}))


def test_the_policy_has_a_schedule_of_its_own_steps(folder: Path, tmp_path: Path) -> None:
    """Two steps for the value network alone; then the policy's rate falls from 1e-3 to 0 over its three."""
    trained = run(folder, output=str(tmp_path), algorithm="ppo", steps=5, value={"warmup": 2})
    rates = [line["learning_rate"] for line in log_of(trained.folder)]
    assert rates == pytest.approx([0.0, 0.0, 1e-3, 2e-3 / 3, 1e-3 / 3])


def test_a_value_network_reads_the_tokens_of_the_policy(folder: Path, tmp_path: Path) -> None:
    """A reward model with another tokenizer is the reward all the same, and no start for the values."""
    other = str(save_scorer(tmp_path / "other"))
    heard = Heard()
    more: dict[str, Any] = {"algorithm": "ppo", "steps": 1, "heard": heard}
    run(folder, output=str(tmp_path / "one"), reward=other, **more)
    assert f"the value network starts from the policy: {other} has other tokens" in heard.notes
    with pytest.raises(UserError, match="has other tokens than the policy"):
        run(folder, output=str(tmp_path / "two"), value={"model": other}, **more)
    same, less = tmp_path / "same", tmp_path / "less"
    for place, size in ((same, 300), (less, 299)):
        made = AutoModelForSequenceClassification.from_pretrained(folder / "model", num_labels=1)
        made.resize_token_embeddings(size)
        made.save_pretrained(place)
        AutoTokenizer.from_pretrained(folder / "model").save_pretrained(place)
    heard.notes.clear()
    run(folder, output=str(tmp_path / "three"), reward=str(same), **more)
    assert not any("value network" in note for note in heard.notes)
    with pytest.raises(UserError, match="has other tokens than the policy"):
        run(folder, output=str(tmp_path / "four"), value={"model": str(less)}, **more)


def test_prompts_that_cannot_be_answered_are_left_out(folder: Path, tmp_path: Path) -> None:
    """One that the chat template refuses; one that fills the model's context, 256 tokens, to the last."""
    model = tmp_path / "model"
    shutil.copytree(folder / "model", model)
    template = model / "chat_template.jinja"
    refusal = "{% if 'refuse' in messages[0]['content'] %}{{ raise_exception('not this') }}{% endif %}"
    template.write_text(refusal + template.read_text())
    rows = [*(f"{at} hello" for at in range(4)), "refuse me", "long " * 300]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows))
    heard = Heard()
    out = run(
        folder, model=str(model), prompts=str(tmp_path / "prompts.jsonl"), output=str(tmp_path / "out"), steps=2,
        heard=heard,
    )  # fmt: skip
    assert out.finished
    assert "1 prompts are left out: the chat template refuses the conversation: not this" in heard.notes
    assert "1 prompts of more than 255 tokens are left out" in heard.notes and "4 prompts to train on" in heard.notes


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
        "monitor": {}, "missing_eos_penalty": 1.0,
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
    from rlaif.rl.rollout import LocalSampler

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
        ({"algorithm": "ppo", "ratio": "sequence"}, "`ratio` does nothing for `algorithm: ppo`"),
        ({"algorithm": "rloo", "gamma": 0.5}, "`gamma` does nothing for `algorithm: rloo`: leave it out"),
        ({"algorithm": "rloo", "value": {"clip": 0.5}}, "`value.clip` does nothing for `algorithm: rloo`"),
        (
            {"algorithm": "rloo", "loss_normalization": "sequence"},
            "`loss_normalization` does nothing for `algorithm: rloo`",
        ),
        (
            {"algorithm": "grpo", "ratio": "sequence", "loss_normalization": "token", "kl": {"apply_to": "reward"}},
            "`loss_normalization` does nothing with `ratio: sequence`",
        ),
        ({"algorithm": "ppo", "scale": "none"}, "`scale` does nothing for `algorithm: ppo`"),
        ({"algorithm": "p3o", "clip_high": 0.28}, "`clip_high` does nothing for `algorithm: p3o`"),
        ({"algorithm": "online-dpo", "clip": 0.1}, "`clip` does nothing for `algorithm: online-dpo`"),
        (
            {"algorithm": "online-dpo", "kl": {"apply_to": "loss"}},
            "`kl.apply_to` does nothing for `algorithm: online-dpo`",
        ),
        ({"mismatch": {"cap": 9.0}}, "`mismatch.cap` does nothing without `rollout.base_url`"),
        ({"kl": {"horizon": 3}}, "`kl.horizon` does nothing without `kl.target`"),
        ({"algorithm": "ppo", "steps": 4, "value": {"warmup": 4}}, "leaves the policy none of 4 steps"),
        ({"lora": {"rank": 4, "dropout": 0.1}}, "`lora.dropout` makes the policy that learns another one"),
        ({"overlong_buffer": 9}, "longer than the longest answer, 8 tokens"),
        ({"minibatches": 5}, "more than the 2 prompts of a step"),
    ],
)
def test_settings_that_do_not_fit_together(more: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=told):
        OnlineSettings.model_validate(given(tmp_path, **more))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_settings_are_read_again(algorithm: str, tmp_path: Path) -> None:
    """Defaults are fine for all; what is written down holds no word that would be refused."""
    priced = {} if algorithm == "online-dpo" else {"kl": {"apply_to": "loss"}}
    for more in (
        {},
        priced,
        {"overlong_buffer": 4},
        {"loss_normalization": "constant"} if algorithm in ("ppo", "grpo") else {},
    ):
        made = OnlineSettings.model_validate(given(tmp_path, algorithm=algorithm, **more))
        assert OnlineSettings.model_validate(made.plain()) == made


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
