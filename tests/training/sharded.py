"""`rlaif` with the model in shards (FSDP) over processes without a GPU.

accelerate's `AcceleratorState` takes FSDP where it finds several GPUs, and passes it over, without a word, for several
processes on a CPU; torch's own FSDP works there. So this program makes that one decision for it. What follows, wrapping
the model, the loop, saving and loading, is accelerate's and transformers' own.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from accelerate import state
from accelerate.utils import DistributedType

from rlaif.cli.main import main


def heed_sharding() -> None:
    """Let `AcceleratorState` take FSDP on a CPU."""
    plain = state.AcceleratorState.__init__

    def made(self: Any, *given: Any, **options: Any) -> None:
        plain(self, *given, **options)
        self.fsdp_plugin = options.get("fsdp_plugin") or getattr(self, "fsdp_plugin", None)
        if self.fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.FSDP
            self.device = torch.device("cpu")  # the first version takes `cpu:0` for another device

    state.AcceleratorState.__init__ = made  # type: ignore[method-assign]


if __name__ == "__main__":
    heed_sharding()
    try:
        main()
    except SystemExit as ended:
        # Threads of the exchange that outlive it abort the interpreter now and then.
        if not ended.code and torch.distributed.is_initialized():
            sys.exit("the exchange between processes was not ended")
        raise
