"""What a constitution is made of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from rlaif.plainwords import NAME_PATTERN, Where, located
from rlaif.records import Record, content_id

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
"""A text that says something; white space around it (a block's last newline) does not count."""

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
"""A name that can stand in a file name, a column and a command."""


class Example(Record):
    """A case that the principle should decide one way: a unit test for it, and a help for its readers."""

    prompt: Text
    """What the user says."""
    better: Text
    """The reply that the principle should prefer."""
    worse: Text
    """The reply that it should not."""
    why: Text | None = None
    """What makes the one better under this principle."""

    @model_validator(mode="after")
    def _two_replies(self) -> Example:
        if self.better == self.worse:
            raise located("Example", [(("worse",), "`better` and `worse` are the same text")])
        return self


class Principle(Record):
    """One thing that makes a reply better."""

    id: Name
    """Stable name, written into every critique and pair that it caused."""
    compare: Text
    """The question that decides between two replies; it stands below them in the judge's prompt."""
    critique: Text | None = None
    """The request to a reviewer of one reply; without it, the principle only compares."""
    revise: Text | None = None
    """The request to whoever rewrites that reply."""
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Share in a pair's label, or in the draw, against the other principles'. To switch a principle off, delete it."""
    tags: tuple[Text, ...] = ()
    """Words to find and group principles by; no judge sees them."""
    examples: tuple[Example, ...] = ()
    """Cases with a known answer; no judge sees them, tests of the constitution do."""


class Constitution(Record):
    """The principles that a judge goes by."""

    name: Text
    """Written into every pair, with the hash."""
    description: Text | None = None
    """What it is for, in a sentence; no judge sees it."""
    principles: tuple[Principle, ...] = Field(min_length=1)
    """At least one; by default each pair of replies is judged by one of them, drawn at random."""

    @model_validator(mode="after")
    def _unique_ids(self) -> Constitution:
        repeated = repeated_ids([principle.id for principle in self.principles])
        if repeated:
            raise located("Constitution", repeated)
        return self

    @cached_property
    def hash(self) -> str:
        """32 hex digits of what a judge can notice: ids, texts, weights and their order.

        Name, description, tags, examples, comments and the order of keys do not enter it.
        """
        noticed = {"id", "compare", "critique", "revise", "weight"}
        return content_id([principle.model_dump(include=noticed) for principle in self.principles])

    def principle(self, id: str) -> Principle:
        """The principle with this id. Raises KeyError where there is none."""
        for principle in self.principles:
            if principle.id == id:
                return principle
        raise KeyError(id)


def repeated_ids(ids: Sequence[object]) -> list[tuple[Where, str]]:
    """For every principle whose id an earlier one has: the path of its id, and the complaint."""
    return [
        (("principles", at, "id"), f"the id `{id}` is taken by principle {ids.index(id) + 1} already")
        for at, id in enumerate(ids)
        if isinstance(id, str) and id in ids[:at]
    ]
