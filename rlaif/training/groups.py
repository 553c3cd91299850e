"""What a trainer learns from: a prompt and the completions that continue it, as token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Group:
    """A prompt with its completions: one for SFT and KTO, chosen and rejected for a pair, any number otherwise.

    One noun for every trainer: the prompt is computed once for all completions of a group (see `batches`).

    Token ids are any sequence. `rlaif.training.tokens` makes `array("i")`, as it takes a sixth of the memory of a tuple
    (100,000 pairs of 300 tokens: 200 MB, not 1,271), adds up and compares like one, and turns into a numpy array or a
    tensor without a copy.
    """

    id: str
    """Names the row where something is wrong with it: its own id, or file and line."""
    prompt: Sequence[int]
    """Token ids; never empty, as the first token of a completion is predicted from the last of the prompt."""
    completions: tuple[Sequence[int], ...]
    """Token ids, the end-of-sequence token included; none of them empty."""
    values: Mapping[str, float] = field(default_factory=dict)
    """Numbers of the row that its loss takes, for instance `probability` (the soft label) and `margin`."""

    @property
    def tokens(self) -> int:
        """Tokens of the group when its prompt stands once."""
        return len(self.prompt) + sum(map(len, self.completions))
