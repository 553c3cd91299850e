"""Why a run came to no pair, or its judge to no label: one line with the counts, the reason, and what to change."""

from __future__ import annotations

from collections import Counter

from rlaif.outcome import Outcome
from rlaif.revising import Revised
from rlaif.run import Run

_OTHERWISE = {
    "score": "begin its answer in a `score.txt` of your own (`judge.templates`), judge by pairs (`compare.method: "
    "pairwise`), or take another judge",
    "rank": "ask in other words in a `rank.txt` of your own (`judge.templates`), judge by pairs (`compare.method: "
    "pairwise`), or take another judge",
}
_PAIRWISE = (
    "begin its answer (`compare.prefill`), write templates of your own (`judge.templates`), let it give its reasons "
    "(`compare.reasoning: reply`), or take another judge; `rlaif check` measures each form of asking"
)
_STATUSES = ("labelled", "tie", "flip", "unparsed", "failed")


def why_no_pairs(run: Run, outcome: Outcome) -> str | None:
    """Why there is no pair, and what to do about it; None where there is one."""
    count = outcome.counts
    if count["pairs"]:
        return None
    statuses = Counter({status: count[f"comparisons_{status}"] for status in _STATUSES})
    if not statuses.total():
        return f"no pairs: {_nothing_compared(count)}"
    if statuses["labelled"]:
        what = f"no pairs: of {_summed_up(statuses)}, none is selected by `pair.select: {run.settings.pair.select}`"
        return f"{what}; select another way"
    return f"no pairs: {_summed_up(statuses)}: {_reason(run, statuses, count, outcome.failures, outcome.said)}"


def why_no_labels(run: Run, made: Revised) -> str | None:
    """The same of the comparisons of revisions with their originals; None where there are none, or one has a label."""
    count = made.counts
    statuses = Counter({status: count[f"judged_{status}"] for status in _STATUSES[1:]})
    if count["confirmed"] or count["refuted"] or not statuses.total():
        return None
    reason = _reason(run, statuses, count, made.failures, Counter())
    return f"the judge labels no revision: {_summed_up(statuses)}: {reason}"


def _nothing_compared(count: Counter[str]) -> str:
    if not count["samples"]:
        return "there are no responses; `rlaif generate` draws them, and failures.jsonl tells what failed"
    found = f"{count['samples']:,} responses to {count['prompts']:,} prompts"
    odd = [f"{count[f'samples_{kind}']:,} {kind}" for kind in ("blank", "repeated") if count[f"samples_{kind}"]]
    found = f"{found} ({', '.join(odd)})" if odd else found
    return f"no prompt has two different responses to compare, of {found}; raise `policy.samples` or its `temperature`"


def _summed_up(statuses: Counter[str]) -> str:
    names = {"flip": "whose orders disagree", "tie": "tied", "unparsed": "without a label"}
    parts = [f"{number:,} {names.get(status, status)}" for status, number in statuses.most_common() if number]
    return f"{statuses.total():,} comparisons, {', '.join(parts)}"


def _reason(run: Run, statuses: Counter[str], count: Counter[str], failures: Counter[str], said: Counter[str]) -> str:
    (status, _), *_ = statuses.most_common()
    if status == "failed":
        reasons = ", ".join(f"{kind} {number:,}" for kind, number in failures.most_common(3))
        return f"questions without an answer ({reasons}); see failures.jsonl, and run the same command again"
    if status == "flip":
        return "the two orders of a pair disagree; take another judge, or keep such pairs with `pair.flips: soft`"
    if status == "tie":
        margin = run.settings.pair.margin
        return f"the judge sees no difference beyond `pair.margin` ({margin:g}); lower it, or take another judge"
    return _unreadable(run, count, said)


def _unreadable(run: Run, count: Counter[str], said: Counter[str]) -> str:
    method, least = run.settings.compare.method, run.settings.pair.min_label_mass
    otherwise = _OTHERWISE.get(method, _PAIRWISE)
    stage = {"score": "scores", "rank": "ranks"}.get(method, "judgements")
    answers, low, silent = count[stage], count[f"{stage}_low_mass"], count[f"{stage}_unparsed"]
    often = f"; most often it says {said.most_common(1)[0][0]!r}" if said else ""
    if low and low >= silent:
        named = "digits" if method == "score" else "labels"
        return f"{low:,} of {answers:,} answers put less than {least:g} probability on the {named}{often}; {otherwise}"
    if count["judgements_truncated"] > silent / 2:
        return f"{silent:,} of {answers:,} answers were cut off before a verdict; raise `compare.reasoning_tokens`"
    what = f"{silent:,} of {answers:,} answers have no verdict that can be read" if answers else "no answer has a label"
    return f"{what}{often}; {otherwise}"
