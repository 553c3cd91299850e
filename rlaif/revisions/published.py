"""The chains published with arXiv:2212.08073, into our records and back.

A row holds a dialogue that ends in the cue for an answer, the first answer, and its rounds: the key and the two texts
of the principle that was drawn, the critique, the revision. Nothing is lost on the way: exported rows equal those that
were read. Texts are kept to the character; `rlaif.revisions.guards.spoken` is what is taken from them.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.errors import UserError
from rlaif.records import Critique, Messages, Prompt, Revision, Sample, content_id
from rlaif.samples.inputs import prompt_id
from rlaif.samples.plan import GIVEN
from rlaif.samples.rows import read_rows
from rlaif.samples.transcripts import parse_transcript

_WRITER = GIVEN
"""Named as the policy and the judge: the rows do not say which models wrote them."""


class Request(NamedTuple):
    """The texts of one principle, as they stand in the rows."""

    key: str
    critique: tuple[str, ...]
    revise: str


class PublishedChain(NamedTuple):
    """One row."""

    prompt: Prompt
    """Whatever else the row says is in its `metadata`, and so is its dialogue where it is not written in our way."""
    sample: Sample
    critiques: tuple[Critique, ...]
    revisions: tuple[Revision, ...]


class Published(NamedTuple):
    """A file of chains, and the principles that they went by."""

    chains: tuple[PublishedChain, ...]
    requests: dict[str, Request]
    """By key."""


def read_chains(path: Path) -> Published:
    """Read a file of chains. Raises UserError with the line where a row is not one."""
    chains: list[PublishedChain] = []
    requests: dict[str, Request] = {}
    for line, row in read_rows(str(path)):
        try:
            chains.append(_chain(row, f"{path}:{line}", requests))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            what = f"not a chain of critiques and revisions ({type(error).__name__}: {error})"
            mend = "a row needs `rl_prompt`, `initial_response` and `cst`"
            raise UserError(what, where=path, line=line, mend=mend) from None
    return Published(tuple(chains), requests)


def _chain(row: Any, source: str, requests: dict[str, Request]) -> PublishedChain:
    messages = tuple(turn for turn in parse_transcript(row["rl_prompt"]) if turn.content)
    rest = {key: value for key, value in row.items() if key not in ("rl_prompt", "initial_response", "cst")}
    if _transcript(messages) != row["rl_prompt"]:
        rest["rl_prompt"] = row["rl_prompt"]
    prompt = Prompt(id=prompt_id(messages), messages=messages, source=source, metadata=rest)
    (first,) = row["initial_response"]
    text = _only(first, "sample")
    sample = Sample(id=content_id(GIVEN, prompt.id, 0, text), prompt=prompt.id, index=0, text=text, policy=GIVEN)
    critiques: list[Critique] = []
    revisions: list[Revision] = []
    for number, link in enumerate(row["cst"], start=1):
        if set(link) != {"cst_key", "cst_value", "critique", "revision"}:
            raise ValueError(f"round {number} has the keys {', '.join(sorted(link))}")
        request = Request(link["cst_key"], tuple(link["cst_value"]["prompt"]), link["cst_value"]["edit_request"])
        if requests.setdefault(request.key, request) != request:
            raise ValueError(f"`{request.key}` has other texts than before")
        parent = revisions[-1].id if revisions else sample.id
        critique = _critique(prompt, parent, request, _only(link["critique"], "sample"))
        critiques.append(critique)
        said = _only(link["revision"], "sample")
        revisions.append(
            Revision(
                id=content_id("revision", critique.id, number, said),
                prompt=prompt.id,
                sample=sample.id,
                parent=parent,
                critique=critique.id,
                principle=request.key,
                round=number,
                judge=_WRITER,
                text=said,
            )
        )
    return PublishedChain(prompt, sample, tuple(critiques), tuple(revisions))


def _critique(prompt: Prompt, parent: str, request: Request, text: str) -> Critique:
    return Critique(
        id=content_id("critique", parent, request.key, text),
        prompt=prompt.id,
        sample=parent,
        principle=request.key,
        judge=_WRITER,
        text=text,
    )


def _only(value: Any, key: str) -> str:
    """The text of an object that holds nothing else."""
    if set(value) != {key} or not isinstance(value[key], str):
        raise ValueError(f"expected an object with the text `{key}` alone")
    text: str = value[key]
    return text


def export_chains(chains: Iterable[PublishedChain], requests: dict[str, Request]) -> list[dict[str, Any]]:
    """The rows that the chains came from, joined by id."""
    return [_row(chain, requests) for chain in chains]


def _row(chain: PublishedChain, requests: dict[str, Request]) -> dict[str, Any]:
    notes = {critique.id: critique for critique in chain.critiques}
    by_parent = {revision.parent: revision for revision in chain.revisions}
    links, parent = [], chain.sample.id
    while parent in by_parent:
        revision = by_parent[parent]
        assert revision.critique is not None  # every published round has one
        request = requests[revision.principle]
        links.append(
            {
                "cst_key": request.key,
                "cst_value": {"prompt": list(request.critique), "edit_request": request.revise},
                "critique": {"sample": notes[revision.critique].text},
                "revision": {"sample": revision.text},
            }
        )
        parent = revision.id
    rest = dict(chain.prompt.metadata)
    dialogue = rest.pop("rl_prompt", _transcript(chain.prompt.messages))
    return {"rl_prompt": dialogue, "initial_response": [{"sample": chain.sample.text}], "cst": links, **rest}


def _transcript(messages: Messages) -> str:
    """The dialogue as one text, with the cue for the next answer at its end."""
    names = {"user": "Human", "assistant": "Assistant"}
    return "".join(f"\n\n{names[turn.role]}: {turn.content}" for turn in messages) + "\n\nAssistant:"
