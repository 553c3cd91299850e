"""The policy as it was at the start: what divergence is measured from."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from rlaif.online.network import Network
from rlaif.training.groups import Group


class Reference:
    """Log-probabilities by the start: of a frozen copy, or of the policy itself with its adapter off."""

    def __init__(self, network: Network, adapted: Any | None) -> None:
        """`adapted` is the model whose adapter is switched off meanwhile; None for a copy."""
        self._network, self._adapted = network, adapted

    def compute(self, groups: Sequence[Group]) -> Tensor:
        """[tokens], in the order of the groups and their completions."""
        off = self._adapted.disable_adapter() if self._adapted is not None else contextlib.nullcontext()
        with off:
            return self._network.compute(groups)
