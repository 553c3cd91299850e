"""A reward model as the reward: ours, an adapter, or anybody's for sequence classification with one output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rlaif.data.turns import Turn
from rlaif.errors import ModelError, UserError
from rlaif.inference.chat_template import FAULTS
from rlaif.online.responses import Reward, Scores
from rlaif.records import Messages
from rlaif.training.intake import Intake
from rlaif.training.texts import Example, Template

if TYPE_CHECKING:
    from rlaif.training.scoring import Apart


class ModelReward(Reward):
    """The reward of a model for a whole answer, in the model's own unit; the mean it was centred on is taken off.

    Texts become tokens as in the model's training. The answers to one prompt share its computation where the model
    allows it, and equal ones are computed once. A prompt that is too long loses its beginning, as in training; an
    answer that is blank, or too long by itself, has no score.
    """

    def __init__(
        self,
        name_or_folder: str | Path,
        device: Literal["auto", "cpu"] = "auto",
        tokens: int = 8192,
        *,
        template: Template | None = None,
    ) -> None:
        """Load the model of a folder or of the hub. `tokens` is what fits into memory at once; `template` is that of
        its training unless it is given (`auto` and `chat`: the chat template; `plain`: dialogues as text).

        Raises UserError for a model that is none, or that cannot read messages.
        """
        from rlaif.training.rewardmodel import load
        from rlaif.training.scoring import Apart

        self._name = str(name_or_folder)
        loaded = load(self._name, device)
        self._learned = loaded.learned.asked(template)
        if self._learned.template in ("auto", "chat") and not getattr(loaded.tokenizer, "chat_template", None):
            mend = "save a chat_template.jinja in its folder, or take one that was trained with `template: plain`"
            raise UserError(
                "the reward model has no chat template, and prompts are messages", where=self._name, mend=mend
            )
        self._limits = loaded.tokens()
        self.note = ""
        """What there is to know of how it reads conversations."""
        if self._learned.template == "text" and self._limits.template.exists:
            self.note = (
                f"{self._name} was trained on texts without its chat template, and is given prompt and response as "
                "such texts: prompts of several turns have no reward"
            )
        self._rewards: Apart | None = Apart(loaded, tokens)

    def __call__(self, prompts: Sequence[Messages], responses: Sequence[str]) -> Scores:
        """One reward a response, None for one that cannot be scored; the one part is called `model`.

        Raises ModelError where a reward is no finite number, or where the chat template refuses all conversations.
        """
        if self._rewards is None:
            raise ModelError(f"the reward model {self._name} was closed")
        intake = Intake()
        pairs = enumerate(zip(prompts, responses, strict=True))
        readable = [self._example(at, *pair) for at, pair in pairs if _can_be_read(*pair)]
        examples = [example for example in readable if example is not None]
        groups = {int(example.id): group for example, group in self._limits.with_examples(examples, intake)}
        if readable and not groups and (why := _refused(intake, examples)):
            raise ModelError(f"{self._name}: no response can be scored: {why}")
        rewards = dict(zip(groups, self._rewards(list(groups.values())), strict=True))
        for at, reward in rewards.items():
            if not math.isfinite(reward):
                raise ModelError(f"{self._name}: the reward of response {at + 1} is {reward}: the model is broken")
        total = [rewards.get(at) for at in range(len(responses))]
        return Scores(total, {"model": total})

    def _example(self, at: int, prompt: Messages, response: str) -> Example | None:
        turns = tuple(Turn(message.role, message.content) for message in prompt)
        return self._learned.example(str(at), turns, response)

    def close(self) -> None:
        """Let go of the model's memory."""
        import torch

        self._rewards = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _refused(intake: Intake, examples: Sequence[Example]) -> str:
    """What keeps every conversation from being written; empty where it is another reason, such as a length."""
    if not examples:
        return "it was trained on single prompts without a chat template, and all prompts have several turns"
    found = next((each.what for each in intake.reasons() if each.reason in FAULTS), "")
    return intake.notes[0] if found and intake.notes else found


def _can_be_read(prompt: Messages, response: str) -> bool:
    """Whether the answer says something, and no text holds half a surrogate pair, which no tokenizer takes."""
    try:
        for text in (response, *(message.content for message in prompt)):
            text.encode()
    except UnicodeEncodeError:
        return False
    return bool(response.strip())
