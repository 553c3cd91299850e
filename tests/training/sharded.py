"""`rlaif` with the model in shards (FSDP) over processes without a GPU.

accelerate's `AcceleratorState` takes FSDP where it finds several GPUs, and passes it over, without a word, for several
processes on a CPU; torch's own FSDP works there. So this program makes that decision for it. What follows, wrapping the
model, the loop, saving and loading, is accelerate's and transformers' own, but for one thing: weights gathered for
saving arrive as promises that moving them to the CPU redeems, and on a CPU nothing is moved.
"""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator, state
from accelerate.utils import DistributedType
from torch.distributed._functional_collectives import AsyncCollectiveTensor

from rlaif.cli.main import main


def heed_sharding() -> None:
    """Let `AcceleratorState` take FSDP on a CPU."""
    plain = state.AcceleratorState.__init__

    def made(self: Any, *given: Any, **options: Any) -> None:
        plain(self, *given, **options)
        plugin = options.get("fsdp_plugin")
        if plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, plugin

    state.AcceleratorState.__init__ = made  # type: ignore[method-assign]


def await_weights() -> None:
    """Let gathered weights have arrived when they are saved."""
    plain = Accelerator.get_state_dict

    def gathered(self: Any, *given: Any, **options: Any) -> dict[str, Any]:
        found = plain(self, *given, **options)
        return {name: each.wait() if isinstance(each, AsyncCollectiveTensor) else each for name, each in found.items()}

    Accelerator.get_state_dict = gathered  # type: ignore[method-assign]


if __name__ == "__main__":
    heed_sharding()
    await_weights()
    main()
