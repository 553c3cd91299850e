"""The nouns of the pipeline: what the stages read and write, one JSON object a line.

Records are frozen and join by id, never by position. An id is a hash of whatever determines the record, so equal
records have equal ids on every machine, and merging two tables is concatenation.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue


class Record(BaseModel):
    """A frozen record that refuses unknown fields; the text under a field documents it everywhere."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def contradiction(self) -> str:
        """In what a stored record contradicts itself, as where a disk changed a digit; empty where in nothing."""
        return ""


def content_id(*parts: Any) -> str:
    """32 hex digits of the SHA-256 of `parts` as canonical JSON: equal parts, equal id."""
    text = json.dumps(parts, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class Message(Record):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


Messages = tuple[Message, ...]


class Sampling(Record):
    """How a text is drawn from a model; part of the identity of every question."""

    max_tokens: int = Field(gt=0)
    """Most tokens to generate."""
    temperature: float = Field(0.0, ge=0)
    """0 takes the most probable token."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus: the smallest set of tokens with this probability (arXiv:1904.09751)."""
    seed: int | None = None
    """Seed of this one draw."""


class Prompt(Record):
    """A conversation that waits for the assistant's next turn, with the answers that came with it, if any."""

    id: str
    messages: Messages
    source: str
    """File and line it was read from."""
    responses: tuple[GivenResponse, ...] = ()
    """Answers given in the input, to be labelled as they are."""
    metadata: dict[str, JsonValue] = {}


class GivenResponse(Record):
    """An answer that the input brought along."""

    text: str
    revision_of: int | None = None
    """Index, among the prompt's responses, of the answer that this one revises."""


class Sample(Record):
    """One answer to one prompt."""

    id: str
    prompt: str
    """Prompt id."""
    index: int
    """Number of this sample among the prompt's samples, from 0."""
    text: str
    policy: str
    """Model that wrote it; `given` for answers that came with the input."""
    sampling: Sampling | None = None
    finish_reason: str | None = None
    """`stop`, or `length` where the answer was cut at `max_tokens`."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    revision_of: str | None = None
    """Id of the sample that this one revises."""

    @property
    def truncated(self) -> bool:
        """Whether it was cut off at `max_tokens`."""
        return self.finish_reason == "length"


class Critique(Record):
    """The judge's text on one sample under one principle."""

    id: str
    prompt: str
    sample: str
    principle: str
    judge: str
    text: str
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Revision(Record):
    """A rewritten reply: what it was made from, and in which round."""

    id: str
    prompt: str
    sample: str
    """Sample at the beginning of the chain."""
    parent: str
    """Sample or revision that was rewritten."""
    critique: str | None
    """Critique that it answers; None where none was asked for."""
    principle: str
    round: int
    """From 1."""
    judge: str
    text: str
    """As it came; `rlaif.feedback.revision_checks.spoken` is the reply in it."""
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Verdict(StrEnum):
    """What one ordered judge call said. `unparsed` is kept, counted, and never becomes a label."""

    FIRST = "first"
    SECOND = "second"
    TIE = "tie"
    UNPARSED = "unparsed"

    @classmethod
    def likelier(cls, first: float, second: float) -> Verdict:
        """Of two labels by their log-probabilities."""
        return cls.TIE if first == second else cls.FIRST if first > second else cls.SECOND


def mean_grade(logprobs: Sequence[float]) -> tuple[float, float]:
    """The expected grade by the log-probabilities of the digits, renormalised to them (arXiv:2309.00267, section
    2.2.2), and their probability together, at most 1. The grade is NaN where every probability is beyond a float."""
    chances = [math.exp(each) for each in logprobs]
    mass = math.fsum(chances)
    value = math.fsum(digit * chance for digit, chance in enumerate(chances)) / mass if mass else math.nan
    return value, min(1.0, mass)


_ROUNDING = 1e-6
"""What summing in another order may change of a probability or a grade."""
_ABOVE = 0.1
"""Most that rounding makes of the logarithm of a probability of 1."""


def _wrong_mass(logprobs: Sequence[float] | None, mass: float | None) -> str:
    """A line holds its log-probabilities and what they add up to: in what they disagree.

    Labels that a server does not list share one bound, the least of the values, and are not counted in the mass.
    """
    if logprobs is None or mass is None:
        return "" if logprobs is None and mass is None else "of `logprobs` and `label_mass` one is missing"
    if any(each > _ABOVE for each in logprobs):
        return "`logprobs` holds a number above 0"
    chances = [math.exp(each) for each in logprobs]
    least = min(chances, default=0.0)
    sums = [min(1.0, sum(chances) - unlisted * least) for unlisted in range(chances.count(least) + 1)]
    return (
        "" if any(abs(mass - each) <= _ROUNDING for each in sums) else "`label_mass` is not what `logprobs` add up to"
    )


class Judgement(Record):
    """One *ordered* judge call, raw and never edited; `first` was shown as A, `second` as B."""

    id: str
    prompt: str
    first: str
    """Sample shown in the first slot."""
    second: str
    principle: str
    """Principle id, or `*` when the whole constitution was put in one question."""
    judge: str
    verdict: Verdict
    logprobs: tuple[float, float] | None = None
    """Natural-log probabilities of the first and the second label; none for a text verdict (a hard label)."""
    label_mass: float | None = None
    """Probability of both labels together; low mass means that the judge wanted to say something else."""
    text: str = ""
    """The judge's reply as it came."""
    reasoning: str = ""
    """What it thought before, where the server tells that apart."""
    truncated: bool = False
    """A reply with reasons that was cut off: it has no verdict."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def contradiction(self) -> str:
        """Whether mass and verdict are those of the log-probabilities."""
        wrong = _wrong_mass(self.logprobs, self.label_mass)
        if not wrong and self.logprobs is not None:
            likelier = Verdict.likelier(*self.logprobs)
            if self.verdict is not likelier:
                return f"`verdict` is {self.verdict.value}, and by `logprobs` it is {likelier.value}"
        return wrong


class Score(Record):
    """One judge call that graded one sample, raw and never edited."""

    id: str
    prompt: str
    sample: str
    principle: str
    """Principle id, or `*` for the whole constitution."""
    judge: str
    value: float | None
    """Expected grade from 0 to 9 over the digits' probabilities, or the digit of a text answer; None if unreadable."""
    logprobs: tuple[float, ...] | None = None
    """Natural-log probabilities of the digits 0 to 9; none for a text answer."""
    label_mass: float | None = None
    """Probability of all digits together."""
    text: str = ""
    """The judge's reply as it came."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def contradiction(self) -> str:
        """Whether mass and grade are those of the log-probabilities."""
        wrong = _wrong_mass(self.logprobs, self.label_mass)
        if not wrong and self.logprobs is not None:
            mean, _ = mean_grade(self.logprobs)
            if not math.isnan(mean) and (self.value is None or abs(self.value - mean) > _ROUNDING):
                return "`value` is not the mean grade by `logprobs`"
        return wrong


class Order(Record):
    """One judge call that ranked several samples of a prompt, raw and never edited."""

    id: str
    prompt: str
    shown: tuple[str, ...]
    """Samples in the order in which they were shown."""
    ranking: tuple[str, ...] | None
    """Samples from best to worst; None if the answer was not readable."""
    principle: str
    judge: str
    text: str
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


class Failure(Record):
    """A question that got no answer in one run; asked again by the next."""

    id: str
    stage: str
    reason: str
    """A short kind, for counting: `timeout`, `too_long`, `http_500`, ..."""
    detail: str = ""


class Ranked(Record):
    """A sample's place among the samples of its prompt."""

    sample: str
    rank: int
    """1 is best; equal strengths share a rank."""
    strength: float
    """Bradley-Terry log-strength; the mean over the prompt's samples is 0."""


class Settled(Record):
    """An unordered pair of samples with both orders and all its principles folded."""

    left: str
    right: str
    status: str
    """`labelled`, or why there is no label: `tie`, `flip`, `unparsed`, `failed`."""
    probability: float | None
    """Probability that `left` is better."""
    flip: bool
    principles: tuple[str, ...]
    judgements: tuple[str, ...]


class Ranking(Record):
    """What the judge's answers about one prompt come to: the samples, best first, and every comparison."""

    id: str
    """The prompt's id."""
    samples: tuple[Ranked, ...]
    comparisons: tuple[Settled, ...]


class PreferencePair(Record):
    """A row of the preference dataset, with the evidence for its label."""

    id: str
    prompt: Messages
    chosen: Messages
    rejected: Messages
    probability: float = Field(ge=0, le=1)
    """Probability that `chosen` is better: the soft label (clamped where critiques were used)."""
    raw_probability: float
    """The same before any clamp."""
    margin: float
    """`raw_probability` minus one half."""
    flip: bool
    """The two orders disagreed."""
    hard: bool
    """The label comes from text verdicts, not from log-probabilities: over-confident while no temperature is fitted."""
    strengths: tuple[float, float]
    """Bradley-Terry log-strengths of chosen and rejected among the prompt's samples (mean 0)."""
    ranks: tuple[int, int]
    """Their ranks, 1 is best."""
    principles: tuple[str, ...]
    prompt_id: str
    chosen_id: str
    rejected_id: str
    judgements: tuple[str, ...]
    """Ids of the judge calls behind the label."""
    policies: tuple[str, str]
    """Models that wrote chosen and rejected."""
    judge: str
    constitution: str
    """Name and content hash of the constitution."""
    chosen_truncated: bool = False
    """The chosen response was cut off at `max_tokens`: its end is none, and no trainer learns it."""
    rejected_truncated: bool = False
    """The rejected response was cut off."""


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
