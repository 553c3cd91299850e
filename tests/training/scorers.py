"""Reward models for the tests: tiny, random, with the tokenizer of the shipped policy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlaif.store import shipped_model

POLICY = shipped_model("demo-policy")


def save_scorer(folder: Path, *, labels: int = 1, **config: Any) -> Path:
    """A Llama of two layers whose rewards differ well from text to text."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    AutoTokenizer.from_pretrained(POLICY).save_pretrained(folder)
    torch.manual_seed(0)
    made = LlamaConfig(
        vocab_size=2048,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        num_labels=labels,
        **config,
    )
    LlamaForSequenceClassification(made).save_pretrained(folder)
    return folder


class Plain:
    """The rewards as anybody would compute them: the template's text, the model's own forward, one at a time."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForSequenceClassification.from_pretrained(folder).eval()

    def chat(self, prompt: str | list[dict[str, str]], reply: str) -> float:
        """Of a reply in a conversation."""
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        dialogue = [*turns, {"role": "assistant", "content": reply}]
        return self.text(self.tokenizer.apply_chat_template(dialogue, tokenize=False), special=False)

    def text(self, text: str, *, special: bool = True) -> float:
        """Of a text as it stands."""
        import torch

        ids = self.tokenizer(text, add_special_tokens=special, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            return float(self.model(input_ids=ids).logits[0, 0])


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
