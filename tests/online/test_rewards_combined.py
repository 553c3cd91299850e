"""Sums of rewards by pencil and paper, and from a setting to a reward."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from rlaif.config.schemas import JudgeSettings
from rlaif.errors import ModelError, UserError
from rlaif.records import Message, Messages
from rlaif.rl.experience import Reward, Scores
from rlaif.rl.remote_reward import RemoteReward
from rlaif.rl.reward_sources import FunctionReward, ModelReward
from rlaif.rl.rewards import JudgeReward, WeightedReward, only_model, open_reward
from tests.fakes import FakeServer
from tests.support import environment
from tests.training.scorers import save_scorer

HI = (Message(role="user", content="Hi"),)


class Given:
    """Gives the numbers that it was given, call by call."""

    def __init__(
        self, *calls: Sequence[float | None], parts: Mapping[str, Sequence[float | None]] | None = None
    ) -> None:
        self.calls, self.parts, self.closed = list(calls), parts, False

    def __call__(self, prompts: Sequence[Messages], responses: Sequence[str]) -> Scores:
        total = self.calls.pop(0)
        return Scores(total, self.parts or {"given": total})

    def state(self) -> Mapping[str, float]:
        return {}

    def restore(self, state: Mapping[str, float]) -> None:
        assert state == {}

    def close(self) -> None:
        self.closed = True


def call(reward: Reward, count: int) -> Scores:
    return reward([HI] * count, ["So."] * count)


def test_each_is_normalised_over_all_that_it_ever_gave() -> None:
    """First call: 1, 2, 3 has mean 2 and deviation sqrt(2/3); 10, 30, 20 mean 20 and sqrt(200/3).

    Second: the four 1, 2, 3, 6 have mean 3 and deviation sqrt(14/4); 10, 30, 20, 20 mean 20 and sqrt(200/4).
    """
    reward = WeightedReward([("a", Given([1, 2, 3], [6]), 1.0), ("b", Given([10, 30, 20], [20]), 0.5)])
    first, second = call(reward, 3), call(reward, 1)
    step = 1.5**0.5
    assert first.total == pytest.approx([-step - step / 2, step / 2, step])
    assert first.parts == {"a": [1, 2, 3], "b": [10, 30, 20]}
    assert second.total == pytest.approx([3 / 3.5**0.5])


def test_every_process_normalises_by_the_numbers_of_all() -> None:
    """One has 1 and 3, another 5 and 7: the mean is 4, the deviation the root of (9 + 1 + 1 + 9) / 4."""
    everyones = [1.0, 3.0, 5.0, 7.0]
    pair = [
        WeightedReward([("a", Given(mine), 1.0)], gather=lambda _: everyones) for mine in (everyones[:2], everyones[2:])
    ]
    totals = [call(each, 2).total for each in pair]
    assert [*totals[0], *totals[1]] == pytest.approx([each / 5**0.5 for each in (-3, -1, 1, 3)])
    assert pair[0].state() == pair[1].state(), "what is saved is that of the first"


def test_scores_that_are_missing() -> None:
    """They count in no mean: of 1 and 3 it is 2, with deviation 1."""
    reward = WeightedReward([("a", Given([1, None, 3, 2]), 1.0), ("b", Given([None, 5, 5, 5]), 2.0)])
    scores = call(reward, 4)
    assert [value is None for value in scores.total] == [True, True, False, False]
    assert scores.total[2] == pytest.approx(1 / (2 / 3) ** 0.5)
    assert scores.parts["b"] == [None, 5, 5, 5]
    assert reward.state()["a:count"] == 3
    nothing = WeightedReward([("a", Given([None, None]), 1.0)])
    assert call(nothing, 2).total == [None, None]


def test_equal_scores_are_worth_nothing_and_not_everything() -> None:
    """0.1 + 0.2 is not 0.3: a difference of rounding must not become one of deviations."""
    reward = WeightedReward([("a", Given([0.3, 0.1 + 0.2, 0.3]), 1.0), ("b", Given([7, 7, 7]), 1.0)])
    assert call(reward, 3).total == pytest.approx([0, 0, 0], abs=1e-9)
    assert call(WeightedReward([("a", Given([5]), 1.0)]), 1).total == [0.0]


def test_moments_do_not_lose_digits() -> None:
    """A million and a bit, a thousand times: against the standard library's exact fractions."""
    values = [1e6 + (at * 7919 % 1000) / 1000 for at in range(1000)]
    reward = WeightedReward([("a", Given(*[values[at : at + 50] for at in range(0, 1000, 50)]), 1.0)])
    for _ in range(19):
        call(reward, 50)
    mean, deviation = statistics.fmean(values), statistics.pstdev(values)
    wanted = [(value - mean) / deviation for value in values[-50:]]
    assert call(reward, 50).total == pytest.approx(wanted, abs=1e-6)


def test_without_normalising_it_is_the_plain_sum() -> None:
    reward = WeightedReward([("a", Given([1, 2]), 1.0), ("b", Given([10, None]), -0.5)], normalise=False)
    assert call(reward, 2).total == [-4.0, None]
    assert reward.state() == {}
    reward.restore({})


def made(calls: Sequence[Sequence[float]]) -> WeightedReward:
    inner = WeightedReward([("x", Given(*calls), 1.0), ("y", Given(*[each[::-1] for each in calls]), 0.3)])
    return WeightedReward([("a", Given(*calls), 1.0), ("sum", inner, 2.0)])


def test_state_goes_on_exactly() -> None:
    """Through JSON, and through a sum within the sum: bit for bit what it would have been."""
    calls = [[0.1, 0.7, 0.2], [1 / 3, -5.0, 2e-3], [0.4, 0.5, 1e3]]
    whole, before, after = made(calls), made(calls), made(calls[2:])
    expected = [call(whole, 3).total for _ in calls]
    assert [call(before, 3).total for _ in calls[:2]] == expected[:2]
    state = json.loads(json.dumps(dict(before.state())))
    assert set(state) == {
        f"{name}:{key}" for name in ("a", "sum", "sum/x", "sum/y") for key in ("count", "mean", "squares")
    }
    after.restore(state)
    assert call(after, 3).total == expected[2]
    assert after.state() == whole.state()


def test_state_of_other_rewards_is_refused() -> None:
    state = WeightedReward([("a", Given(), 1.0), ("b", Given(), 1.0)]).state()
    with pytest.raises(UserError, match=r"not those of these rewards \(a, c\); resume with the rewards"):
        WeightedReward([("a", Given(), 1.0), ("c", Given(), 1.0)]).restore(state)
    with pytest.raises(UserError, match="not those of these rewards"):
        WeightedReward([("a", Given(), 1.0)]).restore({})


def test_parts_of_parts_have_both_names() -> None:
    judge = Given([0.5], parts={"kind": [0.4], "short": [0.6]})
    scores = call(WeightedReward([("judge", judge, 1.0), ("rm", Given([3.0]), 1.0)]), 1)
    assert scores.parts == {"judge": [0.5], "judge/kind": [0.4], "judge/short": [0.6], "rm": [3.0]}


def test_numbers_that_are_none_stop() -> None:
    with pytest.raises(ModelError, match="the reward `a` gave a score of nan"):
        call(WeightedReward([("a", Given([1.0, float("nan")]), 1.0)]), 2)


def test_names_and_weights() -> None:
    for names in (["a", "a"], ["a/b"], [""]):
        with pytest.raises(UserError, match="needs a name of its own"):
            WeightedReward([(name, Given(), 1.0) for name in names])
    with pytest.raises(UserError, match="the weight of the reward `a` is nan"):
        WeightedReward([("a", Given(), float("nan"))])
    with pytest.raises(UserError, match="at least one"):
        WeightedReward([])


def test_all_are_closed_even_if_one_fails() -> None:
    class Stuck(Given):
        def close(self) -> None:
            raise OSError("stuck")

    parts = [Given(), Stuck(), Given()]
    with pytest.raises(OSError, match="stuck"):
        WeightedReward([(str(at), part, 1.0) for at, part in enumerate(parts)]).close()
    assert [part.closed for part in parts] == [True, False, True]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a reward model `rm` and a file of functions."""
    save_scorer(tmp_path / "rm")
    functions = "def length(prompts, responses):\n    return [len(text) for text in responses]\n"
    (tmp_path / "my_rewards.py").write_text(functions)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_each_form_opens_its_reward(place: Path) -> None:
    (place / "lr=1e-5,seed=0").symlink_to(place / "rm")
    with FakeServer() as fake:
        judge = JudgeSettings(model="fake", base_url=fake.url)
        forms: dict[str, type] = {
            "./rm": ModelReward,
            "rm": ModelReward,
            str(place / "rm"): ModelReward,
            "lr=1e-5,seed=0": ModelReward,
            "my_rewards.py:length": FunctionReward,
            "./my_rewards.py:length": FunctionReward,
            "my_rewards:length": FunctionReward,
            "http://127.0.0.1:5000/get_reward": RemoteReward,
            "judge": JudgeReward,
        }
        for form, kind in forms.items():
            reward = open_reward(form, judge=judge, constitution="harmless", device="cpu")
            assert type(reward) is kind, form
            reward.close()


def test_several_forms_become_a_sum(place: Path) -> None:
    """Names are short and of their own; lengths 2 and 4 have mean 3 and deviation 1."""
    with FakeServer() as fake:
        judge = JudgeSettings(model="fake", base_url=fake.url)
        spec = "judge*0.5, ./rm,my_rewards.py:length*-2,my_rewards:length"
        reward = open_reward(spec, judge=judge, constitution="harmless", principles="all", device="cpu")
        assert isinstance(reward, WeightedReward)
        scores = reward([HI, HI], ["No", "Yes!"])
        assert list(scores.parts) == ["judge", "rm", "length", "length-2"]
        assert scores.parts["length"] == [2, 4]
        parts = {name: [value or 0.0 for value in values] for name, values in scores.parts.items()}
        signs = {name: 1 if values[1] > values[0] else -1 for name, values in parts.items()}
        wanted = 0.5 * signs["judge"] + signs["rm"] - 2 + 1  # of two numbers, each is one deviation from the mean
        assert scores.total == pytest.approx([-wanted, wanted])
        reward.close()
    plain = open_reward("my_rewards.py:length*-2,my_rewards:length", normalise=False)
    assert plain([HI, HI], ["No", "Yes!"]).total == [-2.0, -4.0]


def test_unknown_forms_name_the_known_ones(place: Path) -> None:
    forms = "a reward is `judge`, the URL of a server, a function as .* reward model"
    for spec, close in {
        "jugde": "judge",
        "./rn": "./rm",
        "rmm": "rm",
        "my_rewards.py": "my_rewards.py:function",
        "localhost:5000/get_reward": "http://localhost:5000/get_reward",
    }.items():
        with pytest.raises(UserError, match=f"reward: no reward is called `{spec}`; {forms}.*; did you mean `{close}`"):
            open_reward(spec)
    with pytest.raises(UserError, match=f"no reward is called `qqqqqqqqqq`; {forms}") as raised:
        open_reward("qqqqqqqqqq")
    assert "did you mean" not in str(raised.value)
    with pytest.raises(UserError, match=f"model `nobody/nothing` .*; {forms}"):
        open_reward("nobody/nothing")


def test_settings_that_cannot_be_read(place: Path) -> None:
    for spec, what in {
        "judge*much,rm": "the weight `much` of `judge` is not a number; write `judge\\*0.5`",
        "rm*nan,judge": "the weight `nan` of `rm` is not a number",
        "rm,,judge": "there is an empty reward in `rm,,judge`",
        "": "there is an empty reward in ``",
        "rm*2": "a single reward has nothing to be weighed against: `rm\\*2`; write `rm`",
    }.items():
        with pytest.raises(UserError, match=what):
            open_reward(spec)


def test_judge_needs_its_settings(place: Path) -> None:
    with pytest.raises(UserError, match=r"the reward `judge` needs a judge; set `judge\.model`"):
        open_reward("rm,judge", constitution="harmless")
    with pytest.raises(UserError, match="the reward `judge` needs a constitution; set `constitution`"):
        open_reward("judge", judge=JudgeSettings(model="demo-judge"))


def test_choosing_is_light() -> None:
    code = "import sys, rlaif.rl.rewards, rlaif.rl.reward_sources, rlaif.rl.rewards\n"
    code += "print([name for name in ('torch', 'transformers', 'aiohttp', 'httpx') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert result.stdout.strip() == "[]", result.stderr


def test_a_reward_that_is_one_model_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "rm").mkdir()
    folder = str(tmp_path / "rm")
    wanted = {
        folder: folder, "owner/name": "owner/name", f"{folder},judge": None, f"{folder}*0.5,owner/name": None,
        "judge": None, "http://host/x": None, "module:fn": None,
    }  # fmt: skip
    assert {spec: only_model(spec) for spec in wanted} == wanted
