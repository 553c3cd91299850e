"""The models of a run, each started when its first answer is wanted: the policy, and one judge or a panel of them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import NamedTuple

from rlaif.comparisons.questions import LABELS
from rlaif.errors import UserError
from rlaif.inference.base import ModelSource, Rehearsal
from rlaif.inference.source import LazyModel
from rlaif.samples.inputs import read_prompts
from rlaif.samples.plan import rehearsals
from rlaif.settings import RunSettings


class Models(NamedTuple):
    """Who answers the questions of a run."""

    policy: ModelSource | None
    """None where all answers are given."""
    judge: ModelSource
    panel: tuple[ModelSource, ...] = ()
    """The panel's other judges."""


@contextlib.asynccontextmanager
async def opened_models(
    settings: RunSettings, stages: Sequence[str], say: Callable[[str], None]
) -> AsyncIterator[Models]:
    """The models of `settings`, closed at the end however it comes.

    Raises UserError where two judges are the same, or where one that `stages` can ask has no key.
    """
    policy = None
    if settings.policy is not None:
        draws = bool({"sample", "revise"} & set(stages))
        policy = LazyModel(
            settings.policy, log=settings.folder / "policy.log", say=say, asked=draws,
            rehearsals=lambda: _rehearsals(settings),
        )  # fmt: skip
    logs = ["judge.log", *(f"judge-{number}.log" for number in range(2, len(settings.judges) + 1))]
    judged = bool({"revise", "critique", "compare"} & set(stages))
    judges = [
        LazyModel(judge, log=settings.folder / log, labels=LABELS, say=say, asked=judged)
        for judge, log in zip(settings.judges, logs, strict=True)
    ]
    if settings.panel:
        require_different([judge.name for judge in judges])
    try:
        yield Models(policy, judges[0], tuple(judges[1:]))
    finally:
        for source in (policy, *judges):
            if source is not None:
                await source.close()


def _rehearsals(settings: RunSettings) -> list[Rehearsal]:
    """The first prompt, as the policy is asked; others that its chat template refuses fail one by one."""
    wanted, system = settings.prompts, settings.policy.system if settings.policy is not None else None
    first = read_prompts(wanted.path, column=wanted.column, responses=wanted.responses, limit=1)
    return rehearsals(first, system)


def require_different(names: Sequence[str]) -> None:
    """Raise UserError where two judges have one identity, such as two copies of the same weights in one-named folders:
    the answers of one would count twice."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        what = f"two judges of the panel are the same model, {twice[0]}"
        raise UserError(what, where="judge", mend="remove one of them, and give the other its weight")
