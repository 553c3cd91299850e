"""The agreement of a run's judge with the oracle: by principle, on pairs, and on revisions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from rlaif.demo.oracle import prefer, prefer_overall, read_reply, violations
from rlaif.records import Chain, Judgement, PreferencePair, Prompt, Sample

GARBLED = "(garbled reply)"
"""In place of a principle's id: comparisons with a malformed reply."""


@dataclass
class Score:
    """Right preferences, of those where the oracle has one."""

    right: int = 0
    total: int = 0

    def add(self, right: bool) -> None:
        """Count one preference."""
        self.right += right
        self.total += 1

    def __str__(self) -> str:
        return f"{self.right / self.total:.0%} of {self.total:,}" if self.total else "nothing to compare"


def by_principle(
    prompts: Mapping[str, Prompt], samples: Mapping[str, Sample], judgements: Iterable[Judgement]
) -> dict[str, Score]:
    """For every principle, the judge's preference (both orders averaged) against the oracle's.

    Pairs without a difference to the oracle are left out. Pairs with a malformed reply, which loses under every
    principle, count under `GARBLED` instead: detecting a malformed sentence is another skill than judging a good one.
    """
    logits: dict[tuple[str, str, str], float] = defaultdict(float)
    for judgement in judgements:
        if judgement.logprobs is not None:
            logit = judgement.logprobs[0] - judgement.logprobs[1]
            left, right = sorted((judgement.first, judgement.second))
            logits[judgement.principle, left, right] += logit if judgement.first < judgement.second else -logit
    scores: dict[str, Score] = defaultdict(Score)
    for (principle, left, right), logit in logits.items():
        prompt = prompts[samples[left].prompt].messages[-1].content
        texts = samples[left].text, samples[right].text
        preference = prefer(principle, prompt, *texts)
        if preference != 0.5:
            malformed = any(read_reply(text).malformed is not None for text in texts)
            scores[GARBLED if malformed else principle].add((logit > 0) == (preference == 1.0))
    return dict(scores)


def violation_rates(
    prompts: Mapping[str, Prompt], samples: Mapping[str, Sample], chains: Collection[Chain]
) -> list[float]:
    """The violation rate of revised samples by the oracle: of the originals, and after each round.

    `samples` holds the revisions too; only a revision with use `revised` replaces the text before it.
    """
    rates = []
    for number in range(max((len(chain.rounds) for chain in chains), default=0) + 1):
        violating = 0
        for chain in chains:
            revisions = [revision.revision for revision in chain.rounds[:number] if revision.use == "revised"]
            sample = samples[revisions[-1] if revisions else chain.id]
            violating += bool(violations(prompts[sample.prompt].messages[-1].content, sample.text))
        rates.append(violating / len(chains) if chains else 0.0)
    return rates


def confirmed(
    prompts: Mapping[str, Prompt],
    samples: Mapping[str, Sample],
    chains: Iterable[Chain],
    pairs: Iterable[PreferencePair],
) -> Score:
    """How often the judge prefers the last revision to the original, where the oracle does."""
    preferred = {(pair.chosen_id, pair.rejected_id) for pair in pairs}
    score = Score()
    for chain in chains:
        prompt = prompts[chain.prompt].messages[-1].content
        if prefer_overall(prompt, samples[chain.final].text, samples[chain.id].text) == 1.0:
            score.add((chain.final, chain.id) in preferred)
    return score


def of_pairs(pairs: Iterable[PreferencePair]) -> Score:
    """How often `chosen` is the reply that the oracle prefers overall."""
    score = Score()
    for pair in pairs:
        preference = prefer_overall(pair.prompt[-1].content, pair.chosen[0].content, pair.rejected[0].content)
        if preference != 0.5:
            score.add(preference == 1.0)
    return score
