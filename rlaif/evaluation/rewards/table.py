"""Rewards are kept by content id, so that a second call computes nothing: plan, score what is missing, append."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from rlaif.inference.ask import Tally
from rlaif.records import Record
from rlaif.store import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rlaif.evaluation.judging import Watch
    from rlaif.evaluation.rewards.scorer import Reply, Scored

_AT_ONCE = 64
"""Replies between two writes: what an interrupt loses at most."""


class Reward(Record):
    """The reward of one reply, or the reason why it has none."""

    id: str
    """Of the model, how texts become tokens, the prompt and the reply."""
    prompt: str
    """Prompt id."""
    model: str
    reward: float | None
    truncated: bool = False
    """The conversation lost its beginning, as it was too long with this reply."""
    reason: str = ""
    """Why there is no reward."""


class Scorer(Protocol):
    """What scores replies; `rlaif.evaluation.rewards.scorer.RewardModel` is one."""

    name: str

    def key(self, reply: Reply) -> str:
        """The content id of a reply's reward."""
        ...

    def score(self, replies: Sequence[Reply]) -> list[Scored]:
        """The rewards, in order."""
        ...


async def keep_rewards(
    replies: Iterable[Reply], scorer: Scorer, table: Table[Reward], *, stage: str, watch: Watch
) -> Tally:
    """Score the replies that `table` does not hold, equal ones once, and append their rewards as they come.

    Gives way after every few of them, so that an interrupt is heard.
    """
    wanted = {scorer.key(reply): reply for reply in replies}
    missing = iter([(key, reply) for key, reply in wanted.items() if key not in table])
    tally = Tally(stage, planned=len(wanted), known=sum(key in table for key in wanted))
    watch.begin(stage, len(wanted))
    start = time.perf_counter()
    while batch := list(itertools.islice(missing, _AT_ONCE)):
        scored = scorer.score([reply for _, reply in batch])
        table.append(
            Reward(id=key, prompt=reply.prompt, model=scorer.name, **each._asdict())
            for (key, reply), each in zip(batch, scored, strict=True)
        )
        tally.answered += len(batch)
        tally.seconds = time.perf_counter() - start
        watch.progress(tally)
        await asyncio.sleep(0)  # an interrupt comes in here
    watch.end(tally)
    return tally
