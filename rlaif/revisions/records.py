"""What the revisions of a run come to: chains of rounds, and rows of the SFT dataset."""

from __future__ import annotations

from typing import Literal

from rlaif.records import Messages, Record


class Round(Record):
    """One round of a chain: what was asked, and what came of it."""

    round: int
    principle: str
    parent: str
    """Sample or revision that the round started from."""
    critique: str | None
    revision: str
    use: str
    """`revised`, or why the revision is of no use: `unchanged`, `empty`, `truncated`, `critique`, ..."""


class Chain(Record):
    """A sample and the rounds of critique and revision that it went through."""

    id: str
    """The sample's id."""
    prompt: str
    rounds: tuple[Round, ...]
    final: str
    """The reply at the end: a revision, or the sample itself."""


class Demonstration(Record):
    """A row of the SFT dataset: a reply to imitate, and where it comes from."""

    id: str
    prompt: Messages
    response: Messages
    source: Literal["revision", "helpful"]
    round: int | None = None
    """Round of the revision."""
    principles: tuple[str, ...] = ()
    """Principles of the rounds up to this one that changed the reply."""
    prompt_id: str
    sample_id: str | None = None
    """Sample that was revised."""
    revision_id: str | None = None
    critique_id: str | None = None
    writer: str | None = None
    """Model that wrote the reply."""
    constitution: str | None = None
    """Name and content hash of the constitution."""
