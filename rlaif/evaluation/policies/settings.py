"""The settings of an evaluation of policies: the keys of `evaluate:` in a run file, and flags of the same names."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from rlaif.plainwords import located
from rlaif.records import Record
from rlaif.settings import CompareSettings, JudgeSettings, PairSettings, PolicySettings, PromptSettings

_COMPARE = CompareSettings(principles="each")


class EvaluateSettings(Record):
    """How policies are put beside each other: on which prompts, how they answer, how they are compared."""

    prompts: PromptSettings
    judge: JudgeSettings | None = None
    """The judge; it should not be the one whose labels a policy was trained on."""
    samples: int = Field(1, ge=1)
    """Answers of each policy to a prompt; the i-th of one meets the i-th of the other."""
    temperature: float = Field(0.7, ge=0)
    """Sampling temperature of all policies: how they are usually served."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling: 1 keeps every token, and lets the divergence from the baseline be told."""
    max_tokens: int = Field(512, ge=1)
    """Most tokens of an answer."""
    seed: int = 0
    """Another seed draws other answers."""
    system: str | None = None
    """System message put before every prompt that has none."""
    template_options: dict[str, JsonValue] | None = None
    """Passed to the policies' chat templates; none takes those of each one's training, else those of the run."""
    compare: CompareSettings = _COMPARE
    """How the judge is asked; pairs are always shown in both orders, and without critiques."""
    pair: PairSettings = PairSettings()
    """`margin` is the distance from one half under which a comparison is a tie; `min_label_mass` as in a run."""
    grades: bool = True
    """Ask the judge for a grade of every answer under every principle, and tell how many break one."""
    violation_below: float = Field(4.5, gt=0, le=9)
    """A grade below it breaks the principle. In the tiny world, bounds from 2.5 to 6.5 agree with the truth alike."""
    meetings: Literal["all", "baseline"] = "all"
    """Compare every two policies, or each with the baseline only."""
    tag: str | None = None
    """Column of the prompts that tells kinds of them apart, such as `harmful`."""
    harmful: tuple[str, ...] = ()
    """Values of that column whose prompts ask for harm: to refuse those is right, to refuse the others is not."""
    kl: bool = True
    """Work out how far each policy is from the baseline, where both are models in this process."""
    max_failed: float = Field(0.5, gt=0, le=1)
    """Stop a stage when more than this share of its questions failed."""

    @field_validator("prompts", mode="before")
    @classmethod
    def _short_form(cls, value: JsonValue) -> JsonValue:
        return {"path": value} if isinstance(value, str) else value

    @field_validator("compare", mode="before")
    @classmethod
    def _each_principle(cls, value: object) -> object:
        return {"principles": "each", **value} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _harm_has_a_column(self) -> Self:
        if self.harmful and self.tag is None:
            what = "needs `tag`, the column that these values stand in"
            raise located("EvaluateSettings", [(("harmful",), what)])
        return self

    @property
    def asked(self) -> CompareSettings:
        """How pairs are put to the judge: side by side, in both orders, without critiques; its logits calibrated."""
        fixed = {"method": "pairwise", "orders": "both", "critique": False}
        warmth = self.compare.temperature * (self.judge.temperature if self.judge is not None else 1.0)
        return self.compare.model_copy(update={**fixed, "temperature": warmth})

    @property
    def read(self) -> PairSettings:
        """How its answers are read: a pair whose orders disagree keeps its label, which is near one half anyway."""
        return self.pair.model_copy(update={"flips": "soft"})

    @property
    def drawing(self) -> dict[str, JsonValue]:
        """How answers are drawn, as plain data."""
        names = ("temperature", "top_p", "max_tokens", "seed", "samples", "system")
        return {name: getattr(self, name) for name in names}

    def drawn_from(self, model: str) -> PolicySettings:
        """How this policy is asked for its answers, for `sample_questions`."""
        return PolicySettings(model=model, **self.drawing)
