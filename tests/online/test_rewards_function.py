"""A function as the reward: what it is given, what it may return, and what is told where it goes wrong."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rlaif.errors import ModelError, UserError
from rlaif.records import Message
from rlaif.rl.reward_sources import FunctionReward

HI = (Message(role="system", content="Be kind."), Message(role="user", content="Hi"))

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Write]:
    """Writes a file of Python and returns its path."""
    before, known = list(sys.path), set(sys.modules)

    def written(code: str, name: str = "rewards.py") -> str:
        path = tmp_path / name
        path.write_text(textwrap.dedent(code))
        return str(path)

    yield written
    sys.path[:] = before
    for name in set(sys.modules) - known:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def score(name: str, count: int = 2) -> list[float | None]:
    reward = FunctionReward(name)
    scores = reward([HI] * count, ["Hello.", "Good morning."][:count])
    assert scores.parts == {name.rpartition(":")[2]: scores.total}
    return list(scores.total)


def test_what_a_function_is_given(write: Write) -> None:
    path = write("""
        def length(prompts, responses):
            assert type(prompts) is list and type(prompts[0]) is list
            assert prompts[1] == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
            assert type(responses) is list
            return [len(text) / 2 for text in responses]
    """)
    assert score(f"{path}:length") == [3.0, 6.5]


@pytest.mark.parametrize(
    ("returned", "wanted"),
    [
        ("[1, None]", [1.0, None]),
        ("(0.5, True)", [0.5, 1.0]),
        ("np.array([1, 2])", [1.0, 2.0]),
        ("np.array([1.5, 2], dtype=np.float32)", [1.5, 2.0]),
        ("[np.float32(0.25), np.int64(3)]", [0.25, 3.0]),
        ("np.array([None, 2.0])", [None, 2.0]),
        ("torch.tensor([0.5, 2], dtype=torch.bfloat16, requires_grad=True)", [0.5, 2.0]),
        ("[torch.tensor(0.5), torch.tensor(2)]", [0.5, 2.0]),
        ("Fraction(1, 2), Fraction(3)", [0.5, 3.0]),
    ],
)
def test_what_a_function_may_return(write: Write, returned: str, wanted: list[float | None]) -> None:
    path = write(f"""
        from fractions import Fraction
        import numpy as np
        import torch  # noqa: TID253

        def reward(prompts, responses):
            return {returned}
    """)
    assert score(f"{path}:reward") == wanted


@pytest.mark.parametrize(
    ("returned", "what"),
    [
        ("[1.0, float('nan')]", "returned nan as reward 2; where there is no score it should return None"),
        ("[float('inf'), 1]", "returned inf as reward 1"),
        ("[10**400, 1]", "returned inf as reward 1"),
        ("[1]", "returned 1 rewards for 2 responses"),
        ("[1, 2, 3]", "returned 3 rewards for 2 responses"),
        ("[1, '2']", "returned a str as reward 2, not a number"),
        ("[[1], [2]]", "returned a list as reward 1, not a number"),
        ("None", "returned a NoneType, not a list"),
        ("'ab'", "returned a str, not a list"),
        ("3.0", "returned a float, not a list"),
        ("{'rewards': [1, 2]}", "returned a dict, not a list"),
        ("(x for x in (1, 2))", "returned a generator, not a list"),
    ],
)
def test_what_a_function_may_not_return(write: Write, returned: str, what: str) -> None:
    path = write(f"def reward(prompts, responses):\n    return {returned}\n")
    with pytest.raises(ModelError, match=f"^reward `{path}:reward` {what}"):
        score(f"{path}:reward")


def test_errors_name_the_line_of_the_users_file(write: Write) -> None:
    """Also where they come from further down, here from within the standard library."""
    path = write("""\
        import json

        def reward(prompts, responses):
            return [json.loads(text) for text in responses]

        def divided(prompts, responses):
            return 1 / 0
    """)
    with pytest.raises(ModelError, match=rf"reward` raised JSONDecodeError: Expecting value.* \({path}:4\)$"):
        score(f"{path}:reward")
    with pytest.raises(
        ModelError, match=rf"divided` raised ZeroDivisionError: division by zero \({path}:7\)$"
    ) as raised:
        score(f"{path}:divided")
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_long_errors_are_cut(write: Write) -> None:
    path = write("def reward(prompts, responses):\n    raise ValueError('x' * 9000)\n")
    with pytest.raises(ModelError, match=r"raised ValueError: xxx") as raised:
        score(f"{path}:reward")
    assert len(str(raised.value)) < 700


def test_interrupt_passes(write: Write) -> None:
    path = write("def reward(prompts, responses):\n    raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        score(f"{path}:reward")


def test_modules_are_found_as_usual_and_in_the_working_directory(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("def reward(prompts, responses):\n    return [4] * len(responses)\n", "my_own_rewards.py")
    monkeypatch.chdir(tmp_path)
    assert score("my_own_rewards:reward") == [4.0, 4.0]


def test_files_may_be_called_like_anything_and_import_their_neighbours(write: Write) -> None:
    import json

    write("def four():\n    return 4\n", "beside_it.py")
    path = write("""
        from __future__ import annotations
        from dataclasses import dataclass
        from beside_it import four

        @dataclass
        class Kept:
            value: int

        def reward(prompts, responses):
            return [Kept(four()).value] * len(responses)
    """, "json.py")  # fmt: skip
    assert score(f"{path}:reward") == [4.0, 4.0]
    assert sys.modules["json"] is json


def test_objects_that_are_called(write: Write) -> None:
    path = write("""\
        class Reward:
            def __call__(self, prompts, responses):
                raise ValueError("no")

        reward = Reward()
    """)
    with pytest.raises(ModelError, match=rf"raised ValueError: no \({path}:3\)"):
        score(f"{path}:reward")


def test_what_is_not_there(write: Write) -> None:
    path = write("from json import loads\nlevel = 3\n\ndef polite(prompts, responses):\n    return []\n")
    with pytest.raises(UserError, match=f"{path}:polit: there is no function `polit`; did you mean `polite`"):
        FunctionReward(f"{path}:polit")
    with pytest.raises(UserError, match="`level` is a int, not a function; name a function"):
        FunctionReward(f"{path}:level")
    with pytest.raises(UserError, match=r"gone.py: there is no such file; name the file"):
        FunctionReward(str(Path(path).with_name("gone.py")) + ":polite")
    with pytest.raises(UserError, match=r"no_such_module:x: there is no module `no_such_module`; install it, go to"):
        FunctionReward("no_such_module:x")
    with pytest.raises(UserError, match=r"there is no module `json.none`"):
        FunctionReward("json.none:x")
    for name in ("polite", "polite:", ":polite"):
        with pytest.raises(UserError, match=f"no function: `{name}`; write it like"):
            FunctionReward(name)


def test_files_that_break_on_import(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = write("\nx = 1 / 0\n", "broken_one.py")
    with pytest.raises(
        UserError, match=rf"cannot be imported: ZeroDivisionError: division by zero \({broken}:2\); fix that file"
    ):
        FunctionReward(f"{broken}:reward")
    missing = write("import math\nimport no_such_module\n", "missing_one.py")
    with pytest.raises(UserError, match=rf"No module named 'no_such_module' \({missing}:2\)"):
        FunctionReward(f"{missing}:reward")
    typo = write("def reward(:\n", "typo_one.py")
    with pytest.raises(UserError, match=r"cannot be imported: SyntaxError: .*typo_one\.py, line 1\)"):
        FunctionReward(f"{typo}:reward")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"missing_one:reward: cannot be imported: .*no_such_module' \({missing}:2\)"):
        FunctionReward("missing_one:reward")


def test_nothing_to_remember(write: Write) -> None:
    path = write("def reward(prompts, responses):\n    return []\n")
    reward = FunctionReward(f"{path}:reward")
    assert reward([], []).total == []
    assert reward.state() == {}
    reward.restore({})
    reward.close()
