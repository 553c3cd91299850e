"""Asking a model of the tiny world in process: label log-probabilities and texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlaif.feedback.prompts import LABELS
from rlaif.records import Messages
from tools.train_demo_models.models import load_model
from tools.train_demo_models.tokenizer import load_tokenizer


class Answerer:
    """A saved model with its tokenizer, computing in float32."""

    def __init__(self, folder: Path, *, batch_size: int = 32) -> None:
        self.model: Any = load_model(folder)
        self.tokenizer: Any = load_tokenizer(folder)
        self._batch_size = batch_size
        self._labels = [self.tokenizer.encode(label, add_special_tokens=False)[0] for label in LABELS]

    @torch.inference_mode()
    def label_logprobs(self, questions: Sequence[Messages]) -> Tensor:
        """Log-probabilities of the labels over the full vocabulary, (questions, 2), in the questions' order."""
        found = torch.zeros(len(questions), len(LABELS))
        for places, coded in self._batches(questions):
            logits = self.model(**coded, logits_to_keep=1).logits[:, -1]
            found[places] = logits.log_softmax(-1)[:, self._labels]
        return found

    @torch.inference_mode()
    def texts(self, questions: Sequence[Messages], *, max_tokens: int, temperature: float = 0.0) -> list[str]:
        """One text a question: the likeliest tokens, or a draw (seed it with `torch.manual_seed`)."""
        found = [""] * len(questions)
        how = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        for places, coded in self._batches(questions):
            made = self.model.generate(**coded, max_new_tokens=max_tokens, **how)
            texts = self.tokenizer.batch_decode(made[:, coded["input_ids"].shape[1] :], skip_special_tokens=True)
            for place, text in zip(places, texts, strict=True):
                found[place] = text
        return found

    def _batches(self, questions: Sequence[Messages]) -> Iterator[tuple[list[int], Any]]:
        """Batches of like length, padded on the left."""
        turns = [[message.model_dump() for message in messages] for messages in questions]
        rendered = [
            self.tokenizer.apply_chat_template(each, tokenize=False, add_generation_prompt=True) for each in turns
        ]
        order = sorted(range(len(questions)), key=lambda at: len(rendered[at]))
        for start in range(0, len(order), self._batch_size):
            places = order[start : start + self._batch_size]
            yield (
                places,
                self.tokenizer(
                    [rendered[at] for at in places],
                    padding=True,
                    add_special_tokens=False,
                    return_tensors="pt",
                    return_token_type_ids=False,
                ),
            )
