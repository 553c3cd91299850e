"""The transcript of one prompt: the ranked samples, the critiques, and every verdict in both orders.

It reads the files of a small run (a preview, the demo) into memory.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from rlaif.cli.terminal import echo, secho
from rlaif.feedback.revise import as_sample
from rlaif.feedback.revision_checks import spoken
from rlaif.records import (
    Chain,
    Critique,
    Judgement,
    Order,
    PreferencePair,
    Prompt,
    Ranking,
    Revision,
    Sample,
    Score,
    Settled,
)
from rlaif.store import read_records


@dataclass
class Story:
    """The records of a small run, by id."""

    prompts: list[Prompt]
    rankings: dict[str, Ranking]
    samples: dict[str, Sample]
    judgements: dict[str, Judgement]
    graded: dict[str, Score | Order] = field(default_factory=dict)
    """Grades and rankings, if responses are judged by those."""
    critiques: dict[str, list[Critique]] = field(default_factory=lambda: defaultdict(list))
    """By sample or revision."""
    notes: dict[str, Critique] = field(default_factory=dict)
    """Every critique, by its own id."""
    chains: dict[str, Chain] = field(default_factory=dict)
    """By sample; the revisions in them are among `samples`."""
    revised_pairs: list[PreferencePair] = field(default_factory=list)
    pairs: dict[str, list[PreferencePair]] = field(default_factory=lambda: defaultdict(list))
    """By prompt."""

    @property
    def judges(self) -> set[str]:
        """Who compared."""
        return {each.judge for each in self.judgements.values()}


def read_story(folder: Path) -> Story:
    """Everything in a finished run folder."""
    story = Story(
        prompts=list(read_records(folder / "prompts.jsonl", Prompt)),
        rankings={each.id: each for each in read_records(folder / "rankings.jsonl", Ranking)},
        samples={each.id: each for each in read_records(folder / "samples.jsonl", Sample)},
        judgements={each.id: each for each in read_records(folder / "judgements.jsonl", Judgement)},
    )
    if (scores := folder / "scores.jsonl").exists():
        story.graded |= {each.id: each for each in read_records(scores, Score)}
    if (orders := folder / "orders.jsonl").exists():
        story.graded |= {each.id: each for each in read_records(orders, Order)}
    for critique in read_records(folder / "critiques.jsonl", Critique):
        story.critiques[critique.sample].append(critique)
        story.notes[critique.id] = critique
    for pair in read_records(folder / "pairs.jsonl", PreferencePair):
        story.pairs[pair.prompt_id].append(pair)
    if (folder / "revised.json").exists():
        _read_revisions(folder, story)
    return story


def _read_revisions(folder: Path, story: Story) -> None:
    story.chains = {each.id: each for each in read_records(folder / "chains.jsonl", Chain)}
    revisions = {each.id: each for each in read_records(folder / "revisions.jsonl", Revision)}
    for chain in story.chains.values():
        for each in chain.rounds:
            revision = revisions[each.revision]
            story.samples[revision.id] = as_sample(revision, story.samples[chain.id], spoken(revision.text))
    story.revised_pairs += read_records(folder / "revised_pairs.jsonl", PreferencePair)


def show_transcript(story: Story, prompt: Prompt, *, brief: bool = False) -> None:
    """Print one prompt's story; `brief` shows the single verdicts of the chosen pair only."""
    secho("Prompt", bold=True)
    for message in prompt.messages:
        echo(_indented(f"{message.role}: {message.content}"))
    ranking = story.rankings[prompt.id]
    names = {each.sample: f"response {at}" for at, each in enumerate(ranking.samples, start=1)}
    secho("Responses, best first", bold=True)
    for each in ranking.samples:
        sample = story.samples[each.sample]
        echo(_indented(f"{names[each.sample]}  rank {each.rank}, strength {each.strength:+.2f}: {sample.text}"))
        for critique in story.critiques[each.sample]:
            echo(_indented(f"critique ({critique.principle}): {critique.text}", 6))
        _show_revisions(story, sample)
    if not ranking.samples:
        echo(_indented("(fewer than two different responses: nothing to compare)"))
    for sample in _only_revised(story, prompt):
        echo(_indented(f"not ranked: {sample.text}"))
        _show_revisions(story, sample)
    secho("Verdicts", bold=True)
    for settled in ranking.comparisons:
        outcome = settled.status if settled.probability is None else f"{settled.probability:.2f} ({settled.status})"
        echo(_indented(f"{names[settled.left]} better than {names[settled.right]}: {outcome}"))
        for key in settled.judgements if not brief or _made_a_pair(settled, story.pairs[prompt.id]) else ():
            _show_answer(story, key, _named(story, names))
    secho("Pairs", bold=True)
    for pair in story.pairs[prompt.id]:
        chosen, rejected = names[pair.chosen_id], names[pair.rejected_id]
        echo(_indented(f"chosen {chosen}, rejected {rejected}, probability {pair.probability:.3f}"))
    if not story.pairs[prompt.id]:
        echo(_indented("none"))


def _only_revised(story: Story, prompt: Prompt) -> list[Sample]:
    """Samples that were revised, and not compared with others."""
    ranked = {each.sample for each in story.rankings[prompt.id].samples}
    return [
        story.samples[each.id] for each in story.chains.values() if each.prompt == prompt.id if each.id not in ranked
    ]


def _show_revisions(story: Story, sample: Sample) -> None:
    chain = story.chains.get(sample.id)
    shown = {critique.id for critique in story.critiques[sample.id]}
    for each in chain.rounds if chain else ():
        if each.critique is not None and each.critique not in shown:
            echo(_indented(f"critique ({each.principle}): {story.notes[each.critique].text}", 6))
        use = "" if each.use == "revised" else f", {each.use}"
        text = story.samples[each.revision].text
        echo(_indented(f"revision {each.round} ({each.principle}{use}): {text}", 6))
    for pair in story.revised_pairs:
        if sample.id in (pair.chosen_id, pair.rejected_id):
            better = "the original" if pair.chosen_id == sample.id else "the revision"
            echo(_indented(f"the judge prefers {better}, probability {pair.probability:.3f}", 6))


def _made_a_pair(settled: Settled, pairs: Iterable[PreferencePair]) -> bool:
    return any({pair.chosen_id, pair.rejected_id} == {settled.left, settled.right} for pair in pairs)


def _named(story: Story, names: dict[str, str]) -> Callable[[str], str]:
    """The name of a sample by its id.

    A question is known by its texts: it may have been asked of a revision first that came out word for word like one of
    these samples, and then its answer names that revision.
    """
    by_text = {story.samples[key].text: name for key, name in names.items()}
    return lambda key: names.get(key) or by_text[story.samples[key].text]


def _show_answer(story: Story, key: str, named: Callable[[str], str]) -> None:
    """One answer behind a comparison: a verdict, a grade or a ranking."""
    answer = story.judgements.get(key) or story.graded[key]
    if isinstance(answer, Judgement):
        by = f"{answer.judge}, " if len(story.judges) > 1 else ""
        echo(_indented(by + _verdict(answer, named), 6))
        _show_reasons(answer)
    elif isinstance(answer, Score):
        grade = f"no grade ({answer.text[:60]!r})" if answer.value is None else f"{answer.value:.2f} of 9"
        echo(_indented(f"{answer.principle}: {named(answer.sample)} has {grade}", 6))
    else:
        order = "unreadable" if answer.ranking is None else " > ".join(map(named, answer.ranking))
        echo(_indented(f"{answer.principle}, shown as {', '.join(map(named, answer.shown))}: {order}", 6))


def _verdict(judgement: Judgement, named: Callable[[str], str]) -> str:
    order = f"{judgement.principle}: A = {named(judgement.first)}, B = {named(judgement.second)}"
    if judgement.logprobs is None:
        return f"{order}: {judgement.verdict.value} ({judgement.text[:60]!r})"
    first, second = (math.exp(each) for each in judgement.logprobs)
    return f"{order}: P(A) = {first:.3f}, P(B) = {second:.3f}"


def _show_reasons(judgement: Judgement) -> None:
    """The reasoning of a judge before its verdict, if there is any."""
    for name, text in (("thinks", judgement.reasoning), ("says", judgement.text)):
        if len(text.split()) > 2:
            echo(_indented(f"{name}: {text}", 8))


def _indented(text: str, by: int = 2) -> str:
    return "\n".join(" " * by + line for line in text.splitlines())
