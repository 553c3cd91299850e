"""How often the judge of a run agrees with the oracle: by principle, and on the pairs that came out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from rlaif.demo.oracle import prefer, prefer_overall, violations
from rlaif.demo.reading import read_reply
from rlaif.records import Demonstration, Judgement, PreferencePair, Prompt, Revision, Sample

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
    prompts: Mapping[str, Prompt], samples: Mapping[str, Sample], revised: Iterable[Revision], usable: Collection[str]
) -> list[float]:
    """Share of revised samples that break some principle, by the oracle: as they were, and after each round.

    `usable` are the ids of the revisions that count; elsewhere a reply stays as it was.
    """
    chains: dict[str, dict[int, str]] = defaultdict(dict)
    for each in revised:
        chains[each.sample][each.round] = each.id
    rounds = max((number for chain in chains.values() for number in chain), default=0)
    now = {sample: sample for sample in chains}
    rates = [_violating(prompts, samples, now.values())]
    for number in range(1, rounds + 1):
        for sample, chain in chains.items():
            if chain.get(number) in usable:
                now[sample] = chain[number]
        rates.append(_violating(prompts, samples, now.values()))
    return rates


def _violating(prompts: Mapping[str, Prompt], samples: Mapping[str, Sample], replies: Collection[str]) -> float:
    broken = [
        bool(violations(prompts[samples[each].prompt].messages[-1].content, samples[each].text)) for each in replies
    ]
    return sum(broken) / len(broken) if broken else 0.0


def confirmed(
    prompts: Mapping[str, Prompt],
    samples: Mapping[str, Sample],
    rows: Iterable[Demonstration],
    pairs: Iterable[PreferencePair],
) -> Score:
    """How often the judge prefers a chain's last revision to the original, where the oracle does."""
    chosen = {pair.chosen_id for pair in pairs}
    by_round = sorted(rows, key=lambda row: row.round or 0)
    last = {row.sample_id: row for row in by_round if row.sample_id is not None}
    score = Score()
    for sample, row in last.items():
        prompt = prompts[row.prompt_id].messages[-1].content
        if prefer_overall(prompt, row.response[0].content, samples[sample].text) == 1.0:
            score.add(row.revision_id in chosen)
    return score


def of_pairs(pairs: Iterable[PreferencePair]) -> Score:
    """Whether `chosen` is the reply that the oracle prefers on the whole."""
    score = Score()
    for pair in pairs:
        wanted = prefer_overall(pair.prompt[-1].content, pair.chosen[0].content, pair.rejected[0].content)
        if wanted != 0.5:
            score.add(wanted == 1.0)
    return score
