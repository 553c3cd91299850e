"""A model and its tokenizer in memory, and the two passes that answer questions.

They answer as vLLM does, to 1e-3: the same chat template, the same spellings of a label, log-probabilities over the
full vocabulary in fp32. Label questions that begin alike share that part (see `rlaif.inference.prefixes`), if the first
ones come out as they do by the plain pass. There they are padded on the right: a causal model never looks to the right,
so padding needs no mask and changes no number. Texts are padded on the left, as generation wants it.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from rlaif.errors import ModelError, UserError
from rlaif.inference.base import Answer, Question
from rlaif.inference.chat_template import ChatTemplate, UnwritableError, special_tokens
from rlaif.inference.drawing import Draw, Halt
from rlaif.inference.folder import load_tokenizer, parts_of
from rlaif.inference.labels import checked, label_text, label_tokens, last_label, logsumexp
from rlaif.inference.opening import open_model, require_embeddings, require_parts
from rlaif.inference.prefixes import Alike, PrefixPass, alike, alone, batches
from rlaif.records import Message
from rlaif.templates import without_special_tokens

if TYPE_CHECKING:
    import torch


TOKENS_AT_ONCE = 32_768
"""Padded tokens of one forward pass, so that long prompts go in smaller batches."""
_TOKENS_KEPT = 16_384
"""The same where keys and values are kept: 150 KB a token in a model of 8 billion parameters, 2.4 GB."""
_OFF, _OFF_HALF = 1e-4, 0.02
"""How far a probability may be off where beginnings are shared, in float32 and in narrower types: rounding alone."""


@dataclass(frozen=True)
class Row:
    """One question that can be asked."""

    at: int
    """Its place in the call."""
    question: Question
    ids: list[int]
    """Tokens of the prompt."""
    room: int
    """Tokens that may be generated."""


class Loaded:
    """The model of a folder, on its device. Used by one thread at a time."""

    def __init__(self, folder: Path, device: str, dtype: str | None, options: Mapping[str, Any]) -> None:
        place = place_of(device)
        self._folder, self._device = folder, place
        self._tokenizer, self._model = read_model(folder, place, dtype)
        self._template = ChatTemplate(self._tokenizer, options)
        self._ends = _end_tokens(self._model, self._tokenizer)
        self._special = special_tokens(self._tokenizer)
        padding = self._tokenizer.pad_token_id
        self._pad = int(padding if padding is not None else min(self._ends, default=0))
        self._short_logits = "logits_to_keep" in inspect.signature(self._model.forward).parameters
        self._prefixes = PrefixPass(self._model, self._pad)
        self._proven = False
        """Whether sequences that begin alike, computed so, were seen to give what the plain pass gives."""
        self._label_ids: dict[tuple[str, ...], list[list[int]] | None] = {}
        length = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        self.context: int | None = length if isinstance(length, int) else None

    def problems(self, labels: tuple[str, ...]) -> list[str]:
        """What stands in the way of asking questions with these labels."""
        asked, system = Message(role="user", content="Is it 5?"), Message(role="system", content="Be brief.")
        problem = self.refusal([asked])
        if problem and (labels or self.refusal([system, asked])):  # a judge is asked without a system prompt
            return [f"{self._folder}: {problem}"]
        if labels and self._ids_of(labels) is None:
            return [f"{self._folder}: not every label of {', '.join(labels)} is one token of the model's vocabulary"]
        return []

    def refusal(self, conversation: Sequence[Message]) -> str:
        """Why the chat template cannot write a conversation, a line; empty where it can."""
        return self._template.problem(conversation)

    def row(self, at: int, question: Question) -> Row | Answer:
        """The question as tokens, or the reason why it cannot be asked."""
        try:
            (ids,) = self._template.ids([self._template.prompt(self._material(question), question.prefill)])
        except UnwritableError as error:
            return Answer(failure="bad_request", detail=str(error))
        left = question.sampling.max_tokens if self.context is None else self.context - len(ids)
        if left < 1:
            return Answer(
                failure="too_long", detail=f"{len(ids)} prompt tokens leave no room in a context of {self.context}"
            )
        if question.labels and self._ids_of(question.labels) is None:
            return Answer(failure="no_labels", detail="a label is not one token of the model's vocabulary")
        return Row(at, question, ids, min(left, question.sampling.max_tokens))

    def _material(self, question: Question) -> Sequence[Message]:
        """The conversation; what a judge reads holds no special token of this model, whatever its family calls them."""
        if question.kind == "sample":
            return question.messages
        return [
            Message(role=turn.role, content=without_special_tokens(turn.content, self._special))
            for turn in question.messages
        ]

    def labels(self, rows: Sequence[Row], most: int, halted: Event) -> Iterator[tuple[Row, Answer]]:
        """Each row's answer: log-probabilities of its labels as the next token. At most `most` rows go at once."""
        sequences = [row.ids for row in rows]
        able = self._prefixes.able
        found, tokens = (alike(sequences), _TOKENS_KEPT) if able else (alone(sequences), TOKENS_AT_ONCE)
        for groups in batches(found, sequences, most, tokens):
            if halted.is_set():
                raise ModelError("stopped")
            chosen = [at for group in groups for at in group.members]
            chances = self._chances([sequences[at] for at in chosen], sequences, groups)
            for at, row in zip(chosen, chances, strict=True):
                yield rows[at], self._label_answer(rows[at], row)

    def _chances(
        self, wanted: Sequence[list[int]], sequences: Sequence[list[int]], groups: Sequence[Alike]
    ) -> torch.Tensor:
        """[wanted, vocabulary]: log-probabilities of the next token; `groups` are what is wanted, as it begins."""
        import torch

        with torch.inference_mode():
            if not groups[0].prefix or not self._prefixes.able:
                return self._plain(wanted)
            if self._proven:
                return self._prefixes.last_logits(sequences, groups, self._device).float().log_softmax(-1).cpu()
            plain = self._plain(wanted)
            with contextlib.suppress(AttributeError, TypeError, ValueError, RuntimeError):
                found = self._prefixes.last_logits(sequences, groups, self._device).float().log_softmax(-1).cpu()
                off = float((found.exp() - plain.exp()).abs().max())
                self._proven = off <= (_OFF if self._model.dtype == torch.float32 else _OFF_HALF)
            self._prefixes.able = self._proven
            return plain

    def _plain(self, sequences: Sequence[list[int]]) -> torch.Tensor:
        """The same, every sequence from its beginning."""
        import torch

        width = max(map(len, sequences))
        padded = torch.tensor([ids + [self._pad] * (width - len(ids)) for ids in sequences], device=self._device)
        ends = [len(ids) - 1 for ids in sequences]
        kept = sorted(set(ends)) if self._short_logits else list(range(width))
        keep = {"logits_to_keep": torch.tensor(kept, device=self._device)} if self._short_logits else {}
        place = {position: at for at, position in enumerate(kept)}
        with torch.inference_mode():
            # Only the positions that end a row go through the output layer.
            logits = self._model(input_ids=padded, use_cache=False, **keep).logits
            last = logits[list(range(len(ends))), [place[end] for end in ends]]
            chances: torch.Tensor = last.float().log_softmax(-1).cpu()
        return chances

    def texts(self, rows: Sequence[Row], halted: Event) -> list[Answer]:
        """A text for each row; all have the same room."""
        import torch

        width = max(len(row.ids) for row in rows)
        padded = torch.tensor([[self._pad] * (width - len(row.ids)) + row.ids for row in rows], device=self._device)
        mask = torch.tensor([[0] * (width - len(row.ids)) + [1] * len(row.ids) for row in rows], device=self._device)
        with torch.inference_mode():
            out = self._model.generate(
                input_ids=padded,
                attention_mask=mask,
                max_new_tokens=rows[0].room,
                logits_processor=[Draw([row.question for row in rows], self._device)],
                stopping_criteria=[Halt(halted)],
            )
        said = [out[at, width:].tolist() for at in range(len(rows))]
        answers = [self._text_answer(row, tokens) for row, tokens in zip(rows, said, strict=True)]
        return self._with_labels(rows, said, answers)

    def _with_labels(self, rows: Sequence[Row], said: Sequence[list[int]], answers: Sequence[Answer]) -> list[Answer]:
        """The answers, those to reasoned questions with the labels' values where a text ends in one: in a second pass,
        as keeping the values of all tokens of all texts would take more memory than the model."""
        found = list(answers)
        for at, (row, tokens, answer) in enumerate(zip(rows, said, answers, strict=True)):
            if row.question.reasoned:
                strings = [self._tokenizer.decode([token]) for token in tokens[: answer.completion_tokens]]
                end = last_label(strings, row.question.labels)
                if end is not None:
                    (chances,) = self._plain([row.ids + tokens[:end]])
                    read = self._label_answer(row, chances)
                    found[at] = read if read.failure else replace(answer, logprobs=read.logprobs)
        return found

    def _label_answer(self, row: Row, chances: torch.Tensor) -> Answer:
        ids = self._ids_of(row.question.labels)
        assert ids is not None
        values = tuple(logsumexp(chances[tokens].tolist()) for tokens in ids)
        said = self._tokenizer.decode([int(chances.argmax())], skip_special_tokens=True)
        return checked(Answer(said, values, "length", len(row.ids), 1))

    def _text_answer(self, row: Row, tokens: list[int]) -> Answer:
        end = next((at for at, token in enumerate(tokens) if token in self._ends), None)
        tokens = tokens if end is None else tokens[: end + 1]
        text = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return Answer(text, None, "length" if end is None else "stop", len(row.ids), len(tokens))

    def _ids_of(self, labels: tuple[str, ...]) -> list[list[int]] | None:
        if labels not in self._label_ids:
            ids = self._tokenizer(label_text(labels), add_special_tokens=False)["input_ids"]
            strings = self._tokenizer.convert_ids_to_tokens(ids)
            self._label_ids[labels] = label_tokens(labels, ids, strings)
        return self._label_ids[labels]


def read_model(folder: Path, device: torch.device, dtype: str | None = None) -> tuple[Any, Any]:
    """Tokenizer and model of a folder, checked, on the device; an adapter is added to the weights that it belongs to.

    `dtype` None is fp32 on a CPU, the model's own elsewhere. Raises UserError where it cannot be loaded.
    """
    import torch

    transformers, parts = _transformers(), parts_of(folder)
    require_parts(parts, folder)
    tokenizer = load_tokenizer(parts.tokenizer)
    if not getattr(tokenizer, "chat_template", None):
        mend = "use an instruction-tuned model, or save a chat_template.jinja in its folder"
        raise UserError("the model has no chat template", where=folder, mend=mend)
    wanted: Any = dtype or ("float32" if device.type == "cpu" else "auto")
    model, _ = open_model(parts, "language", wanted if wanted == "auto" else getattr(torch, wanted), where=folder)
    require_embeddings(tokenizer, model, folder)
    model = _moved(model, device)
    # How a text is drawn is the question's business: nothing is taken over from the model's own defaults but its ends.
    ends = sorted(_end_tokens(model, tokenizer))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends or [0])[0]
    model.generation_config = transformers.GenerationConfig(
        do_sample=False, eos_token_id=ends or None, pad_token_id=pad
    )
    return tokenizer, model


def _transformers() -> Any:
    import transformers

    return transformers


def _moved(model: Any, device: torch.device) -> Any:
    try:
        return model.to(device).eval()
    except RuntimeError as error:
        raise UserError(f"the model does not fit on {device}: {str(error).splitlines()[0]}") from error


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Every token that ends an answer."""
    listed = getattr(model.generation_config, "eos_token_id", None)
    ends = set(listed) if isinstance(listed, list) else {listed}
    return {int(token) for token in ends | {tokenizer.eos_token_id} if token is not None}


def place_of(device: str) -> torch.device:
    """The device of that name; `auto` takes the best one there is."""
    import torch

    if device == "auto":
        return torch.device(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:  # an assertion is how a build without CUDA says so
        why = str(error).splitlines()[0]
        raise UserError(f"device `{device}` cannot be used: {why}", mend="take auto, cpu or cuda") from None
    return place
