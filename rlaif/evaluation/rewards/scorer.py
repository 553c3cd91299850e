"""A reward model that scores replies to conversations, one by one, and says of each how it fitted.

Replies to one prompt share its computation, and equal ones are computed once. Texts become tokens as in the model's
training: by the chat template, or, for one trained on dialogues as text, as such a dialogue.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rlaif.data.turns import Turn, transcript
from rlaif.errors import ModelError, UserError
from rlaif.inference.folder import identity
from rlaif.jsontext import loads
from rlaif.records import Messages, content_id

if TYPE_CHECKING:
    from rlaif.training.groups import Group
    from rlaif.training.scoring import Apart
    from rlaif.training.texts import Example, Template
    from rlaif.training.tokens import Tokens


class Reply(NamedTuple):
    """What is scored: a reply in a conversation."""

    prompt: str
    """Prompt id."""
    messages: Messages
    text: str


class Scored(NamedTuple):
    """A reply with its reward, or without one."""

    reward: float | None
    """In the model's own unit, the mean taken off that it was centred on; None where it cannot be scored."""
    truncated: bool = False
    """The conversation lost its beginning, as it was too long with this reply."""
    reason: str = ""
    """Why there is no reward: `blank`, `half-character`, `too-long`, `template`, ..."""


class RewardModel:
    """A reward model, loaded when the first reply is scored; its name is known before."""

    def __init__(
        self,
        folder: str,
        *,
        template: Template | None = None,
        max_length: int | None = None,
        tokens: int = 8192,
        device: Literal["auto", "cpu"] = "auto",
    ) -> None:
        """`folder` may be a hub name. `template` and `max_length` are those of the training unless they are given
        (`auto` and `chat`: the chat template; `plain`: dialogues as text); `tokens` is what fits into memory at once.

        Raises UserError where there is no model.
        """
        self.folder = folder
        self.name = identity(folder, rewards=True)
        self._template, self._max_length, self._tokens, self._device = template, max_length, tokens, device
        self._limits: Tokens | None = None
        self._rewards: Apart | None = None

    def key(self, reply: Reply) -> str:
        """The content id of a reply's reward: of the model, how texts become tokens, the prompt and the reply."""
        return content_id("reward", self.name, *self.reading, reply.prompt, reply.text)

    @property
    def reading(self) -> tuple[str | None, int | None]:
        """The template and the limit of tokens that were given, not the training's own."""
        return self._template, self._max_length

    @property
    def template(self) -> Literal["chat", "plain"]:
        """How conversations become texts."""
        return "plain" if (self._template or _trained_template(self.folder)) == "plain" else "chat"

    def open(self) -> None:
        """Load the model. Raises UserError for one that is none, or that cannot read conversations."""
        if self._rewards is not None:
            return
        from rlaif.training.rewardmodel import load
        from rlaif.training.scoring import Apart
        from rlaif.training.tokens import Tokens

        loaded = load(self.folder, self._device)
        if self.template == "chat" and not getattr(loaded.tokenizer, "chat_template", None):
            mend = "save a chat_template.jinja in its folder, or read dialogues as text with --template plain"
            raise UserError(
                "the reward model has no chat template, and prompts are messages", where=self.folder, mend=mend
            )
        longest = self._max_length or loaded.max_length
        self._limits = Tokens(loaded.tokenizer, max_length=longest, ends=loaded.ends)
        self._rewards = Apart(loaded, self._tokens)

    def close(self) -> None:
        """Let go of the model's memory."""
        self._limits = self._rewards = None

    def score(self, replies: Sequence[Reply]) -> list[Scored]:
        """The rewards, in order. Raises ModelError where one is no finite number: the model is broken."""
        self.open()
        assert self._rewards is not None
        found: dict[int, Scored] = {}
        groups: dict[int, Group] = {}
        examples = []
        for at, reply in enumerate(replies):
            reason = _unreadable(reply)
            if reason:
                found[at] = Scored(None, reason=reason)
            else:
                examples.append(self._example(at, reply))
        for at, group, scored in self._fitted(examples):
            found[at] = scored
            if group is not None:
                groups[at] = group
        for at, reward in zip(groups, self._rewards(list(groups.values())), strict=True):
            if not math.isfinite(reward):
                shown = replies[at].text[:60]
                raise ModelError(f"{self.folder}: the reward of {shown!r} is {reward}: the model is broken")
            found[at] = found[at]._replace(reward=reward)
        return [found[at] for at in range(len(replies))]

    def _example(self, at: int, reply: Reply) -> Example:
        from rlaif.training.texts import Example

        turns = tuple(Turn(message.role, message.content) for message in reply.messages)
        if self.template == "plain":  # the reply of such a dialogue follows after a space
            return Example(str(at), transcript(turns), (f" {reply.text}",), {})
        return Example(str(at), turns, (reply.text,), {})

    def _fitted(self, examples: Sequence[Example]) -> Iterator[tuple[int, Group | None, Scored]]:
        """Each as tokens, and whether it lost something; those that cannot be used with the reason."""
        from rlaif.training.intake import Intake

        assert self._limits is not None
        intake, cut, kept = Intake(), 0, set()
        # Examples come one by one, in order, each counted just before: what the count grew by belongs to it.
        for example, group in self._limits.with_examples(examples, intake):
            kept.add(example.id)
            yield int(example.id), group, Scored(None, truncated=intake.truncated > cut)
            cut = intake.truncated
        for example in examples:
            if example.id not in kept:
                alone = Intake()
                list(self._limits.groups([example], alone))
                yield int(example.id), None, Scored(None, reason=next(iter(alone.left_out), "unusable"))


def _trained_template(name: str) -> str:
    """What the training of the model says, where it was ours."""
    try:
        begun: Any = loads((Path(name).expanduser() / "train.json").read_text(encoding="utf-8"))
        return str(begun["settings"]["template"])
    except (OSError, ValueError, KeyError, TypeError):
        return "auto"


def _unreadable(reply: Reply) -> str:
    """Why a reply cannot be scored: it says nothing, or a text holds half a surrogate pair; empty where it can."""
    try:
        for text in (reply.text, *(message.content for message in reply.messages)):
            text.encode()
    except UnicodeEncodeError:
        return "half-character"
    return "" if reply.text.strip() else "blank"
