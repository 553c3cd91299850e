"""The sections of a run file that come after the data: what they say, what is filled in, what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlaif.config.run_file import load_run
from rlaif.errors import UserError
from rlaif.rl.config import OnlineSettings
from rlaif.training.config import DpoSettings, SftSettings
from rlaif.workflow.plan import load_plan, plan_problems

RUN = """\
constitution: demo
prompts: prompts.jsonl
policy: {model: demo-policy}
judge: {model: demo-judge, weight: 2}
revise: {enabled: true}
output: runs/x
"""


def write(folder: Path, more: str, run: str = RUN) -> Path:
    (folder / "prompts.jsonl").write_text('{"prompt": "How can I pack a suitcase?"}\n')
    path = folder / "run.yaml"
    path.write_text(run + more)
    return path


def told(folder: Path, more: str, run: str = RUN) -> list[str]:
    return [str(each) for each in plan_problems(write(folder, more, run))]


def test_a_file_without_them_is_a_plan_too(tmp_path: Path) -> None:
    plan = load_plan(write(tmp_path, ""))
    assert plan.steps == () and plan.evaluate is None and plan.compared == ()


def test_what_a_step_leaves_out_comes_from_the_run(tmp_path: Path) -> None:
    plan = load_plan(write(tmp_path, "train:\n  sft:\n  dpo: {beta: 0.3}\n  ppo: {steps: 7}\n"))
    sft, dpo, ppo = (step.settings for step in plan.steps)
    assert isinstance(sft, SftSettings) and isinstance(dpo, DpoSettings) and isinstance(ppo, OnlineSettings)
    assert (sft.model, sft.data, sft.output) == ("demo-policy", "runs/x", "runs/x/train/sft")
    assert (dpo.beta, dpo.data) == (0.3, "runs/x")
    assert (ppo.prompts, ppo.reward, ppo.constitution, ppo.steps) == ("runs/x", "judge", "demo", 7)
    assert ppo.judge is not None and (ppo.judge.model, ppo.judge.weight) == ("demo-judge", 2)


def test_the_name_of_a_step_stands_for_its_model(tmp_path: Path) -> None:
    text = "train:\n  sft: {}\n  rm: {method: reward}\n  ppo: {model: sft}\n"
    text += "  both: {method: ppo, reward: 'rm*0.5,judge'}\n  careful: {method: dpo, reference: sft}\n"
    _, _, ppo, both, careful = (step.settings for step in load_plan(write(tmp_path, text)).steps)
    assert isinstance(ppo, OnlineSettings) and isinstance(both, OnlineSettings) and isinstance(careful, DpoSettings)
    assert (ppo.model, ppo.reward) == ("runs/x/train/sft", "runs/x/train/rm"), "the last reward model above"
    assert both.reward == "runs/x/train/rm*0.5,judge"
    assert careful.reference == "runs/x/train/sft"


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "held.jsonl").write_text('{"prompt": "Hello"}\n')
    (tmp_path / "mine.jsonl").write_text("{}\n")
    plan = load_plan(write(tmp_path, "train: {dpo: {data: mine.jsonl}}\nevaluate: {prompts: held.jsonl}\n"))
    assert isinstance(settings := plan.steps[0].settings, DpoSettings) and settings.data == str(tmp_path / "mine.jsonl")
    assert plan.evaluate is not None and plan.evaluate.prompts.path == str(tmp_path / "held.jsonl")


def test_policies_are_compared_and_reward_models_are_not(tmp_path: Path) -> None:
    train = "train: {sft: {}, reward: {}, dpo: {}}\n"
    plan = load_plan(write(tmp_path, train + "evaluate: {prompts: prompts.jsonl}\n"))
    assert [step.name for step in plan.compared] == ["sft", "dpo"]
    plan = load_plan(write(tmp_path, train + "evaluate: {prompts: prompts.jsonl, policies: [dpo]}\n"))
    assert [step.name for step in plan.compared] == ["dpo"]


def test_generate_reads_the_same_file(tmp_path: Path) -> None:
    path = write(tmp_path, "train: {dpo: {beta: 0.3}}\nevaluate: {prompts: prompts.jsonl}\n")
    assert load_run(path) == load_plan(path).run


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("train: {dpo: {bta: 0.3}}\n", ["run.yaml:7", "unknown key `bta`", "did you mean `beta`?"]),
        ("train:\n  dpo:\n    beta: -1\n", ["run.yaml:9", "`beta`"]),
        ("train: {fine: {}}\n", ["`train.fine` needs a `method`", "sft, reward, dpo, ppo"]),
        ("train: {fine: {method: dop}}\n", ["no method `dop`"]),
        ("train: [dpo]\n", ["`train` must be a mapping of trainings"]),
        ("train: {dpo: 3}\n", ["`train.dpo` must be a mapping"]),
        ("train: {dpo: {output: there}}\n", ["the output of `train.dpo` is train/dpo", "leave `output` out"]),
        ("train: {dpo: {model: sft}, sft: {}}\n", ["`sft` is trained here or further down", "move it above"]),
        ("train: {base: {method: dpo}}\n", ["`base` is the name of the policy before any training"]),
        ("train: {../up: {method: dpo}}\n", ["cannot be the name of a folder"]),
        ("evaluate: {samples: 2}\n", ["`prompts` is missing"]),
        ("evaluate: {prompts: prompts.jsonl, seeed: 2}\n", ["run.yaml:7", "did you mean `seed`?"]),
        ("train: {dpo: {}}\nevaluate: {prompts: prompts.jsonl, policies: [dop]}\n", ["no training `dop`", "`dpo`"]),
        ("train: {dpo: {}}\nevaluate: {prompts: prompts.jsonl, policies: 3}\n", ["run.yaml:8", "`policies`"]),
        ("train: {dpo: {}}\nevaluate: {prompts: prompts.jsonl, policies: dpo}\n", ["run.yaml:8", "`policies`"]),
        (
            "train: {dpo: {}, reward: {}}\nevaluate: {prompts: prompts.jsonl, policies: [dpo, reward]}\n",
            ["run.yaml:8", "`reward` trains a reward model"],
        ),
        ("train: {dpo: {data: FOLDER/empty}}\n", ["run.yaml:7", "the folder holds no pairs.jsonl"]),
        ("train:\n  dpo:\n    data: nope.jsonl\n", ["run.yaml:9: nope.jsonl: no such file"]),
        ("train: {dpo: {held_data: nope}}\n", ["run.yaml:7: nope: no such file", "`owner/name`"]),
        ("train: {sft: {}, dpo: {model: sftt}}\n", ["run.yaml:7: no model is called `sftt`"]),
        ("train: {dpo: {reference: ./nope}}\n", ["run.yaml:7: ./nope: no model here"]),
        ("train: {ppo: {prompts: nope.jsonl}}\n", ["run.yaml:7: nope.jsonl: no such file"]),
        ("train:\n  ppo:\n    reward: rm\n", ["run.yaml:9: no reward is called `rm`"]),
        ("train: {ppo: {reward: 'judge*0.5,rm'}}\n", ["run.yaml:7", "no reward is called `rm`"]),
        ("train: {ppo: {reward: 'judge,'}}\n", ["run.yaml:7", "there is an empty reward"]),
        ("train:\n  ppo:\n    reward: fn.py:nope\n", ["run.yaml:9", "no function `nope` in"]),
        ("train: {ppo: {reward: 'fn.py:polit'}}\n", ["run.yaml:7", "did you mean `polite`?"]),
        ("train: {ppo: {reward: 'gone.py:polite'}}\n", ["run.yaml:7", "gone.py:polite: there is no such file"]),
        ("train: {ppo: {reward: 'torn.py:polite'}}\n", ["run.yaml:7", "torn.py", "cannot be read"]),
        ("train: {ppo: {value: {model: nope}}}\n", ["run.yaml:7: no model is called `nope`"]),
        ("train: {ppo: {judge: {model: demo-juge}}}\n", ["run.yaml:7", "did you mean `demo-judge`?"]),
        ("train: {ppo: {constitution: nope}}\n", ["run.yaml:7", "nope"]),
        ("evaluate:\n  prompts: nope.jsonl\n", ["run.yaml:8: nope.jsonl: no such file"]),
        ("evaluate: {prompts: prompts.jsonl, reward_gold: nope.jsonl}\n", ["run.yaml:7: nope.jsonl: no such file"]),
        ("evaluate: {prompts: prompts.jsonl, judge: {model: nope}}\n", ["run.yaml:7: no model is called `nope`"]),
        ("trian: {dpo: {}}\n", ["run.yaml:7", "unknown key `trian`", "did you mean `train`?"]),
        ("evalute: {prompts: prompts.jsonl}\n", ["unknown key `evalute`", "did you mean `evaluate`?"]),
        ("zzz: 1\n", ["known: compare, constitution, critique, evaluate, judge", "revise, train"]),
    ],
)
def test_mistakes(more: str, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "fn.py").write_text("def polite(prompts, responses): ...\n")
    (tmp_path / "torn.py").write_text("def polite(")
    found = told(tmp_path, more.replace("FOLDER", str(tmp_path)))
    assert len(found) == 1, found
    for part in expected:
        assert part in found[0], found[0]


@pytest.mark.parametrize(
    "more",
    [
        "train: {dpo: {data: owner/pairs, model: owner/policy}, ppo: {reward: 'owner/rm,judge', prompts: owner/p}}\n",
        "train: {dpo: {data: runs/x/revised_pairs.jsonl}, ppo: {model: runs/x/train/dpo}}\n",
        "train: {reward: {}, ppo: {reward: 'reward*2,fn.py:made,a.module:function,http://host:1/score'}}\n",
        "train: {ppo: {reward: 'fn.py:taken', judge: {model: any, base_url: 'http://host:1/v1'}}}\n",
        "evaluate: {prompts: {path: owner/prompts, limit: 3}, reward_gold: runs/x/pairs.jsonl}\n",
    ],
)
def test_what_may_be_there_is_left_alone(more: str, tmp_path: Path) -> None:
    """On a hub, on a server, in a module, or made by the run itself."""
    (tmp_path / "fn.py").write_text("from somewhere import thing as taken\nmade = taken(3)\n")
    assert told(tmp_path, more) == []


def test_all_mistakes_are_told(tmp_path: Path) -> None:
    more = "train: {dpo: {bta: 1}, sft: {epochs: -2}}\nevaluate: {prompts: 7}\n"
    assert len(told(tmp_path, more)) == 3
    with pytest.raises(UserError, match="and 2 more: `rlaif check` lists them all"):
        load_plan(tmp_path / "run.yaml")


def test_demonstrations_need_revisions(tmp_path: Path) -> None:
    run = RUN.replace("enabled: true", "enabled: false")
    (found,) = told(tmp_path, "train: {sft: {}}\n", run)
    assert "this run makes none" in found and "revise: {enabled: true}" in found
    assert told(tmp_path, "train: {sft: {data: prompts.jsonl}}\n", run) == []


def test_a_run_without_a_policy_needs_a_model(tmp_path: Path) -> None:
    run = RUN.replace("policy: {model: demo-policy}\n", "")
    (found,) = told(tmp_path, "train: {dpo: {}}\n", run)
    assert "`model` is missing" in found
    assert told(tmp_path, "train: {dpo: {model: demo-policy}}\n", run) == []


def test_what_is_compared_started_from_one_model(tmp_path: Path) -> None:
    """Told before anything is made: the baseline is asked after all trainings."""
    run = RUN.replace("policy: {model: demo-policy}\n", "")
    train = "train: {dpo: {model: demo-policy}, other: {method: dpo, model: demo-judge}}\n"
    (found,) = told(tmp_path, train + "evaluate: {prompts: prompts.jsonl}\n", run)
    assert "run.yaml:7" in found and "different models (demo-judge, demo-policy)" in found and "set `policy`" in found
    assert told(tmp_path, train + "evaluate: {prompts: prompts.jsonl, policies: [dpo]}\n", run) == []
    samples = "train: {reward: {model: demo-policy}}\nevaluate: {prompts: prompts.jsonl, reward_samples: 2}\n"
    (found,) = told(tmp_path, samples, run)
    assert "no policy is trained here" in found
    assert told(tmp_path, samples.replace(", reward_samples: 2", ""), run) == []


def test_a_reward_function_lies_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "fn.py").write_text("def polite(prompts, responses): ...\n")
    text = "train: {ppo: {reward: 'fn.py:polite'}, both: {method: ppo, reward: 'judge*0.5,fn.py:polite'}}\n"
    one, both = (step.settings for step in load_plan(write(tmp_path, text)).steps)
    assert isinstance(one, OnlineSettings) and isinstance(both, OnlineSettings)
    assert one.reward == f"{tmp_path}/fn.py:polite" and both.reward == f"judge*0.5,{tmp_path}/fn.py:polite"
