"""How often the judge of a run agrees with the oracle: by principle, and on the pairs that came out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from rlaif.demo.oracle import prefer, prefer_overall, violations
from rlaif.demo.reading import read_reply
from rlaif.records import Judgement, PreferencePair, Prompt, Sample
from rlaif.revisions.records import Chain

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
