"""What speaks against a reward model, or against believing its figures: rules over what was measured."""

from __future__ import annotations

from collections.abc import Iterator

from rlaif.evaluation.rewards.curve import LEAST_PROMPTS
from rlaif.evaluation.rewards.report import BestOfN, Gold
from rlaif.evaluation.verdict import LEAST_PAIRS

MOST_CORRELATION = 0.5
"""Of reward and length, in size: over it a quarter of the rewards' variance is length, and a policy will find that."""
MOST_LEFT_OUT = 0.1
"""Share of the prompts of best-of-n: over it, what is told of the others tells little of them."""
MOST_CUT = 0.2
"""Share of the answers cut off at the limit: over it, the other measure is that of halves."""
FEW_PROMPTS = 30


def doubts(gold: Gold | None, best_of_n: BestOfN | None, *, raw: bool = False) -> tuple[str, ...]:
    """The warnings, most important first; `raw` says that a model learned raw text and now gets its chat template."""
    found = list(_gold(gold)) if gold is not None else []
    if raw:
        found.append(
            "the model was trained on raw text, and conversations are given to it in its chat template: train it with "
            "`template: chat`, or for dialogues try --template plain"
        )
    return (*found, *(_best_of(best_of_n) if best_of_n is not None else ()))


def _gold(gold: Gold) -> Iterator[str]:
    best = gold.best_baseline
    if not gold.beats_baselines and gold.gain is not None and best is not None:
        points = [f"{100 * each:+.1f}" for each in (gold.gain.value, gold.gain.low, gold.gain.high)]
        yield f"no better than `{best.name}`: {points[0]} points ({points[1]} to {points[2]})"
    if gold.trained_on:
        yield (
            f"{gold.trained_on:,} of the {_all(gold):,} gold pairs stand in the data that the model was trained on: "
            "the accuracy is no measure for new pairs"
        )
    if gold.length_correlation is not None and abs(gold.length_correlation) > MOST_CORRELATION:
        liked = "longer" if gold.length_correlation > 0 else "shorter"
        yield f"the reward follows length (correlation {gold.length_correlation:+.2f}): a policy learns to be {liked}"
    if gold.no_reward:
        told = ", ".join(f"{count:,} {reason}" for reason, count in gold.no_reward.items())
        yield f"{sum(gold.no_reward.values()):,} of the {_all(gold):,} gold pairs have no reward ({told})"
    if gold.truncated:
        yield f"in {gold.truncated:.1%} of the pairs the conversation was too long, and lost its beginning"
    if gold.pairs < LEAST_PAIRS:
        yield f"only {gold.pairs} pairs: the intervals are wide"


def _all(gold: Gold) -> int:
    return gold.pairs + sum(gold.no_reward.values())


def _best_of(found: BestOfN) -> Iterator[str]:
    if found.overoptimised and found.drop is not None:
        drop = found.drop
        yield (
            f"over-optimised: from best-of-{found.best_n} to best-of-{found.points[-1].n} the other measure falls by "
            f"{drop.value:.2f} ({drop.low:.2f} to {drop.high:.2f}) while the reward rises"
        )
    left_out = sum(found.left_out.values())
    if left_out > MOST_LEFT_OUT * (left_out + found.prompts):
        told = ", ".join(f"{count:,} {reason}" for reason, count in found.left_out.items())
        yield f"best-of-n leaves out {left_out:,} of {left_out + found.prompts:,} prompts ({told})"
    if found.truncated is not None and found.truncated > MOST_CUT:
        yield f"{found.truncated:.0%} of the answers were cut off at the limit of tokens"
    if found.prompts < LEAST_PROMPTS:
        yield f"best-of-n on only {found.prompts} prompts: too few to call it over-optimised or not"
    elif found.prompts < FEW_PROMPTS:
        yield f"best-of-n on only {found.prompts} prompts: the intervals are wide"
