"""The demo's toy judge: how often it agrees with the oracle, and whether it is asked outside of its world.

Whether the demo's toy judge is asked about things outside of its tiny world, of which it knows nothing.

How often the judge of a run agrees with the oracle: by principle, and on the pairs that came out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rlaif.config.shipped import SHIPPED, shipped_model
from rlaif.constitution import Constitution, load_constitution
from rlaif.demo.oracle import prefer, prefer_overall, read_prompt, read_reply, violations
from rlaif.inference.model_folder import fingerprint
from rlaif.records import Chain, Judgement, PreferencePair, Prompt, Sample

_FEW = 0.1
"""Share of foreign prompts that a toy judge may meet unannounced."""


def is_toy(model: str) -> bool:
    """Whether a judge's model is one that ships with the package: by its name, or, of a folder, by its files."""
    if model in SHIPPED:
        return True
    folder = Path(model).expanduser()
    if not (folder / "config.json").is_file():
        return False
    shipped = [path for name in SHIPPED if (path := shipped_model(name)) is not None and path.is_dir()]
    return any(folder.resolve() == path.resolve() or fingerprint(folder) == fingerprint(path) for path in shipped)


def outside_its_world(model: str, constitution: Constitution, prompts: Iterable[Prompt]) -> str | None:
    """What to announce where the toy judge `model` judges by other principles than the demo's, or other prompts."""
    if not is_toy(model):
        return None
    own = {principle.compare for principle in load_constitution("demo").principles}
    foreign = [principle.id for principle in constitution.principles if principle.compare not in own]
    asked = unknown = 0
    for prompt in prompts:
        asked += 1
        unknown += read_prompt(prompt.messages[-1].content) is None
    parts = [f"{unknown:,} of {asked:,} prompts"] if unknown > _FEW * asked else []
    parts += [f"{len(foreign)} of {len(constitution.principles)} principles"] if foreign else []
    if not parts:
        return None
    return (
        f"{model} is a toy that knows the demo's tiny world alone, and {' and '.join(parts)} are from outside of it: "
        "its labels here mean nothing, and are not to be trained on; name a real judge"
    )


GARBLED = "(garbled reply)"
"""Instead of a principle's id: comparisons with a reply that is not made of this world's sentences."""


@dataclass
class Score:
    """Answers that were right, of those where the oracle has a preference."""

    right: int = 0
    total: int = 0

    def add(self, right: bool) -> None:
        """Count one."""
        self.right += right
        self.total += 1

    def __str__(self) -> str:
        return f"{self.right / self.total:.0%} of {self.total:,}" if self.total else "nothing to compare"


def by_principle(
    prompts: Mapping[str, Prompt], samples: Mapping[str, Sample], judgements: Iterable[Judgement]
) -> dict[str, Score]:
    """For every principle, the judge's preference (both orders averaged) against the oracle's.

    Pairs between which the oracle sees no difference under the principle are left out. Where a reply is garbled (the
    oracle calls any readable one better, under every principle) it counts under `GARBLED` instead: to spot a sentence
    that is nearly one of this world's is another skill than to judge it.
    """
    logits: dict[tuple[str, str, str], float] = defaultdict(float)
    for each in judgements:
        if each.logprobs is not None:
            gap = each.logprobs[0] - each.logprobs[1]
            forward = each.first < each.second
            left, right = (each.first, each.second) if forward else (each.second, each.first)
            logits[each.principle, left, right] += gap if forward else -gap
    scores: dict[str, Score] = defaultdict(Score)
    for (principle, left, right), logit in logits.items():
        prompt = prompts[samples[left].prompt].messages[-1].content
        texts = samples[left].text, samples[right].text
        wanted = prefer(principle, prompt, *texts)
        if wanted != 0.5:
            garbled = any(read_reply(text).malformed is not None for text in texts)
            scores[GARBLED if garbled else principle].add((logit > 0) == (wanted == 1.0))
    return dict(scores)


def violation_rates(
    prompts: Mapping[str, Prompt], samples: Mapping[str, Sample], chains: Collection[Chain]
) -> list[float]:
    """Share of revised samples that break some principle, by the oracle: as they were, and after each round.

    `samples` holds the revisions too; those of no use leave a reply as it was.
    """
    rounds = max((len(chain.rounds) for chain in chains), default=0)
    return [
        _violating(prompts, samples, [_reply_after(chain, number) for chain in chains]) for number in range(rounds + 1)
    ]


def _reply_after(chain: Chain, number: int) -> str:
    return next((each.revision for each in reversed(chain.rounds[:number]) if each.use == "revised"), chain.id)


def _violating(prompts: Mapping[str, Prompt], samples: Mapping[str, Sample], replies: Collection[str]) -> float:
    broken = [
        bool(violations(prompts[samples[each].prompt].messages[-1].content, samples[each].text)) for each in replies
    ]
    return sum(broken) / len(broken) if broken else 0.0


def confirmed(
    prompts: Mapping[str, Prompt],
    samples: Mapping[str, Sample],
    chains: Iterable[Chain],
    pairs: Iterable[PreferencePair],
) -> Score:
    """How often the judge prefers the end of a chain to its beginning, where the oracle does."""
    preferred = {(pair.chosen_id, pair.rejected_id) for pair in pairs}
    score = Score()
    for chain in chains:
        prompt = prompts[chain.prompt].messages[-1].content
        if prefer_overall(prompt, samples[chain.final].text, samples[chain.id].text) == 1.0:
            score.add((chain.final, chain.id) in preferred)
    return score


def of_pairs(pairs: Iterable[PreferencePair]) -> Score:
    """Whether `chosen` is the reply that the oracle prefers on the whole."""
    score = Score()
    for pair in pairs:
        wanted = prefer_overall(pair.prompt[-1].content, pair.chosen[0].content, pair.rejected[0].content)
        if wanted != 0.5:
            score.add(wanted == 1.0)
    return score
