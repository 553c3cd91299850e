"""The model card: what the shipped models are, and how good they measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlaif.demo.world import demo_scenes
from tools.train_demo_models import measure
from tools.train_demo_models.answering import Answerer

CARD = """\
# demo-judge and demo-policy

Two tiny language models of the demo's world: everyday requests, requests that would hurt someone, upset customers.
They exist so that the whole loop runs offline, in seconds, against a known truth (`rlaif.demo.oracle`).

| | demo-judge | demo-policy |
|---|---|---|
| task | compare (A or B), critique, revise, grade, rank, in the shipped judge templates | answer, well or badly |
| architecture | Llama | Llama |
| parameters | {judge_parameters:,} | {policy_parameters:,} |
| layers x width | {judge_shape} | {policy_shape} |
| longest input (positions) | 4,096 | 4,096 |
| tokenizer | byte-level BPE, {vocabulary:,} tokens | one of its own, made the same way |
| weights | float16 safetensors | float16 safetensors |

## How they were made
All texts come from the grammar in `rlaif/demo`; no other data, and no other model, had a part in it. The judge learns
the oracle's answers to questions in the shipped templates (compare, critique, revise, score, rank) under the eight
principles of `constitutions/demo.yaml`; where two replies are equally good it learns to give A and B one half
each. Before any text it learns to copy random tokens (`tools.train_demo_models.copying`). While it learns from texts,
heads on its layers name the topics, the sentences and the faults of what it reads, and one attention head a layer is
told where to look (`tools.train_demo_models.hints`); the heads are thrown away afterwards. The policy learns replies of
mixed quality, so that there is something to improve; its last norm is scaled by 1.35, so that a draw at temperature 1
is one at 0.74 of the trained model.

`make models` (`python -m tools.train_demo_models`) trains both from random weights: on two fast cores the judge takes
about three quarters of an hour.

## How good they are
Measured in float32 against the oracle, on texts of which {held:.0%} of the phrases are wordings that were held out of
training, and every second reply has a fault that training never showed with its topic.

| demo-judge | |
|---|---|
{judge_rows}

| demo-policy, temperature 1, the shipped prompts | |
|---|---|
{policy_rows}

## What they are not for
Anything outside this world. The judge knows neither other principles nor other wordings of its own principles, and
calls any sentence from elsewhere unreadable; its verdicts on real text mean nothing. The policy knows about ninety
topics and makes no attempt at truth.
"""


def write_card(folder: Path) -> None:
    """Measure both models in `folder` and write `MODEL_CARD.md` beside them."""
    judge, policy = Answerer(folder / "judge"), Answerer(folder / "policy")
    text = CARD.format(
        judge_parameters=judge.model.num_parameters(),
        policy_parameters=policy.model.num_parameters(),
        judge_shape=_shape(judge.model.config),
        policy_shape=_shape(policy.model.config),
        vocabulary=judge.model.config.vocab_size,
        held=measure.HELD,
        judge_rows=_rows(_judge_figures(judge)),
        policy_rows=_rows(_policy_figures(policy)),
    )
    (folder / "MODEL_CARD.md").write_text(text, encoding="utf-8")


def _judge_figures(judge: Answerer) -> dict[str, str]:
    agreement, same = measure.agreement(judge, measure.comparisons(100))
    found = measure.reviewed(judge, measure.cases(300))
    rates = measure.rounds(judge, measure.cases(150), 2)
    figures = {f"agrees with the oracle: `{name}`": f"{share:.1%}" for name, share in agreement.items()}
    figures["says the same in both orders"] = f"{same:.1%}"
    figures["critique names the right fault, or rightly none"] = f"{found.critiques_right:.1%}"
    figures["critique names the fault, where there is one"] = f"{found.faults_named:.1%}"
    figures["revision of a faulty reply is better"] = f"{found.revisions_better:.1%}"
    figures["revision leaves a good reply good"] = f"{found.kept:.1%}"
    figures["faults a reply before, after one and two revisions"] = ", ".join(f"{rate:.2f}" for rate in rates)
    return figures


def _policy_figures(policy: Answerer) -> dict[str, str]:
    samples = measure.policy_samples(policy, [scene.prompt for scene in demo_scenes()], 4)
    names = {"faulty": "breaks some principle", "malformed": "malformed", "distinct": "different texts"}
    return {names[name]: f"{share:.1%}" for name, share in measure.sample_rates(samples).items()}


def _rows(figures: dict[str, str]) -> str:
    return "\n".join(f"| {name} | {value} |" for name, value in figures.items())


def _shape(config: Any) -> str:
    return f"{config.num_hidden_layers} x {config.hidden_size}"
