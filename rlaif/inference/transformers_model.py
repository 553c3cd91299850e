"""Models in process, by transformers: loaded, sampled from, and judged with.

They answer as vLLM does, to 1e-3: the same chat template, the same spellings of a label, log-probabilities over the
full vocabulary in fp32. The work runs in a thread, so that Ctrl-C and the table writer stay responsive.

Texts are sampled so that each depends on its question alone, not on its neighbors in the batch: Gumbel noise added to
log-probabilities makes the largest a draw from them (Gumbel 1954), and every row has a noise generator of its own,
seeded by its question. They are padded on the left, as generation wants it.

Our judge templates put the principle last, so that all questions about one pair of responses differ in their ends only.
A server's prefix cache gains from that. Here the shared beginnings of a batch fill a cache of keys and values, its rows
are repeated, and the ends follow (`PrefixPass`): the same mathematics, different by rounding only, which the first
batch of a model must show. Label questions are padded on the right: a causal model never looks to the right, so padding
needs no mask and changes no number.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import inspect
import itertools
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, NamedTuple

from rlaif.config.judge_templates import without_special_tokens
from rlaif.errors import ModelError, UserError
from rlaif.inference.base import (
    Output,
    Question,
    Rehearsal,
    checked,
    in_thread,
    label_text,
    label_tokens,
    last_label,
    name_with,
)
from rlaif.inference.chat_api import LabelRoute
from rlaif.inference.chat_template import ChatTemplate, UnwritableError, special_tokens
from rlaif.inference.model_folder import (
    identity,
    load_tokenizer,
    model_folder,
    open_model,
    parts_of,
    require_embeddings,
    require_parts,
)
from rlaif.inference.probe import Capabilities
from rlaif.records import Message
from rlaif.stats import logsumexp

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Draw:
    """A logits processor: noisy scores for rows with a temperature, untouched ones for the others."""

    def __init__(self, questions: Sequence[Question], device: torch.device) -> None:
        import torch

        self._drawn = [row for row, question in enumerate(questions) if question.sampling.temperature > 0]
        hot = [questions[row] for row in self._drawn]
        self._generators = [torch.Generator(device).manual_seed(seed_of(question)) for question in hot]
        self._heat = torch.tensor([[question.sampling.temperature] for question in hot], device=device)
        self._top_p = torch.tensor([[question.sampling.top_p] for question in hot], device=device)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (batch, vocabulary) whose largest entry is the drawn token."""
        import torch

        del input_ids
        if not self._drawn:
            return scores
        kept = nucleus(scores[self._drawn].float() / self._heat, self._top_p)
        noise = torch.stack([torch.empty_like(row).exponential_(generator=own) for row, own in self._each(kept)])
        noisy = scores.float()
        noisy[self._drawn] = kept - noise.log()
        return noisy

    def _each(self, rows: torch.Tensor) -> list[tuple[torch.Tensor, torch.Generator]]:
        return list(zip(rows, self._generators, strict=True))


class Halt:
    """A stopping criterion: ends the generation when nobody waits for it any more."""

    def __init__(self, halted: Event) -> None:
        self._halted = halted

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        """One flag a row."""
        import torch

        del scores
        return torch.full((len(input_ids),), self._halted.is_set(), dtype=torch.bool, device=input_ids.device)


def nucleus(logits: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """`logits` (batch, vocabulary) with minus infinity outside the smallest set that holds `top_p` (batch, 1)."""
    if bool((top_p >= 1).all()):
        return logits
    ordered, places = logits.sort(dim=-1, descending=True)
    chances = ordered.softmax(dim=-1)
    before = chances.cumsum(dim=-1) - chances  # what more probable tokens hold already; 0 for the first, always kept
    beyond = before >= top_p
    return logits.masked_fill(beyond.scatter(-1, places, beyond), -float("inf"))


def seed_of(question: Question) -> int:
    """The seed of one question's noise: its own sampling seed and its id."""
    digest = hashlib.sha256(f"{question.sampling.seed}:{question.id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


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

    def row(self, at: int, question: Question) -> Row | Output:
        """The question as tokens, or the reason why it cannot be asked."""
        try:
            (ids,) = self._template.ids([self._template.prompt(self._material(question), question.prefill)])
        except UnwritableError as error:
            return Output(failure="bad_request", detail=str(error))
        left = question.sampling.max_tokens if self.context is None else self.context - len(ids)
        if left < 1:
            return Output(
                failure="too_long", detail=f"{len(ids)} prompt tokens leave no room in a context of {self.context}"
            )
        if question.labels and self._ids_of(question.labels) is None:
            return Output(failure="no_labels", detail="a label is not one token of the model's vocabulary")
        return Row(at, question, ids, min(left, question.sampling.max_tokens))

    def _material(self, question: Question) -> Sequence[Message]:
        """The conversation; what a judge reads holds no special token of this model, whatever its family calls them."""
        if question.kind == "sample":
            return question.messages
        return [
            Message(role=turn.role, content=without_special_tokens(turn.content, self._special))
            for turn in question.messages
        ]

    def labels(self, rows: Sequence[Row], most: int, halted: Event) -> Iterator[tuple[Row, Output]]:
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

    def texts(self, rows: Sequence[Row], halted: Event) -> list[Output]:
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

    def _with_labels(self, rows: Sequence[Row], said: Sequence[list[int]], answers: Sequence[Output]) -> list[Output]:
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

    def _label_answer(self, row: Row, chances: torch.Tensor) -> Output:
        ids = self._ids_of(row.question.labels)
        assert ids is not None
        values = tuple(logsumexp(chances[tokens].tolist()) for tokens in ids)
        said = self._tokenizer.decode([int(chances.argmax())], skip_special_tokens=True)
        return checked(Output(said, values, "length", len(row.ids), 1))

    def _text_answer(self, row: Row, tokens: list[int]) -> Output:
        end = next((at for at, token in enumerate(tokens) if token in self._ends), None)
        tokens = tokens if end is None else tokens[: end + 1]
        text = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return Output(text, None, "length" if end is None else "stop", len(row.ids), len(tokens))

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
        hint = "use an instruction-tuned model, or save a chat_template.jinja in its folder"
        raise UserError("the model has no chat template", where=folder, hint=hint)
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
        raise UserError(f"device `{device}` cannot be used: {why}", hint="take auto, cpu or cuda") from None
    return place


_CALLS_OF_ROWS = 2
"""Batches that one `answer` call takes: sorted by length among themselves, they carry less padding. More would lose
more to an interrupt, since answers are kept when the whole call is done."""


class Local:
    """A model in this process: a folder, a hub name, or a model that ships with the package."""

    def __init__(
        self,
        model: str,
        *,
        name: str | None = None,
        device: str = "auto",
        dtype: str | None = None,
        batch_size: int = 32,
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        """`batch_size` is the number of rows of a forward pass. `dtype` is fp32 on a CPU, the model's own elsewhere."""
        self._folder = model_folder(model)
        self._device, self._dtype, self._rows = device, dtype, batch_size
        self._options = dict(template_options or {})
        self._loaded: Loaded | None = None
        self._one_at_a_time = threading.Lock()
        own = identity(model) if name is None else f"{name}@{identity(model).rpartition('@')[2]}"
        self.name = name_with(own, template_options)
        self.batch_size = _CALLS_OF_ROWS * batch_size
        self.concurrency = 2
        self.capabilities: Capabilities | None = None
        """What `probe` found; None before."""

    async def probe(self, labels: tuple[str, ...] = ("A", "B")) -> list[str]:
        """Load the model and check that it can be asked. Returns everything that is wrong, one line each."""
        try:
            loaded = await in_thread(self._load)
        except UserError as error:
            return [str(error)]
        problems = loaded.problems(labels)
        self.capabilities = Capabilities(LabelRoute("exact"), batch=True, context=loaded.context, labels=labels)
        return problems

    async def rehearse(self, rehearsals: Sequence[Rehearsal]) -> list[str]:
        """Have the chat template write what will be asked. Returns the first problem of each setting, one line each."""
        loaded = await in_thread(self._load)
        found: dict[str, str] = {}
        for where, messages, hint in rehearsals:
            problem = loaded.refusal(messages)
            if problem:
                found.setdefault(where, f"{where}: {problem} ({self._folder}); {hint}")
        return list(found.values())

    async def answer(self, questions: Sequence[Question]) -> list[Output]:
        """One answer a question, in order. Raises UserError when the model cannot be loaded."""
        halted = threading.Event()
        try:
            return await in_thread(self._answer, list(questions), halted)
        except asyncio.CancelledError:
            halted.set()
            raise

    async def close(self) -> None:
        """Let go of the model's memory."""
        self._loaded = None

    def _load(self) -> Loaded:
        with self._one_at_a_time:
            if self._loaded is None:
                self._loaded = Loaded(self._folder, self._device, self._dtype, self._options)
            return self._loaded

    def _answer(self, questions: list[Question], halted: threading.Event) -> list[Output]:
        loaded = self._load()
        answers: dict[int, Output] = {}
        rows: list[Row] = []
        for at, question in enumerate(questions):
            row = loaded.row(at, question)
            if isinstance(row, Output):
                answers[at] = row
            else:
                rows.append(row)
        ends, texts = [row for row in rows if _next_token(row)], [row for row in rows if not _next_token(row)]
        with self._one_at_a_time:
            answers.update((row.at, answer) for row, answer in loaded.labels(ends, self._rows, halted))
            for batch in _batches(texts, self._rows):
                if halted.is_set():
                    raise ModelError("stopped")
                answers.update(zip((row.at for row in batch), loaded.texts(batch, halted), strict=True))
        return [answers[at] for at in range(len(questions))]


def _next_token(row: Row) -> bool:
    """Whether one pass answers it."""
    return bool(row.question.labels) and not row.question.reasoned


def _batches(rows: list[Row], most_rows: int) -> Iterator[list[Row]]:
    """Rows that are generated for together, of about equal length; they also share their room for the answer."""
    batch: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.room, len(row.ids))):
        full = len(batch) == most_rows or (len(batch) + 1) * (len(row.ids) + row.room) > TOKENS_AT_ONCE
        if batch and (full or row.room != batch[0].room):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


_NAMES = ("cache", "past_key_values")
"""Since transformers 5.24, and before."""


def cache_name(model: Any) -> str:
    """What a model calls its cache of keys and values, as an argument and in what it returns; empty where it has none.

    A pure state-space model may take a cache as well, but keeps no keys and values there: a Mamba's answers from it are
    not those of its plain pass (transformers 5.24).
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    taken = inspect.signature(type(model).forward).parameters
    name = next((each for each in _NAMES if each in taken), "")
    layers = DynamicCache(config=model.config).layers if name else []
    return name if not layers or any(isinstance(layer, DynamicLayer) for layer in layers) else ""


def move_rows(cache: Any, rows: Tensor) -> bool:
    """Make row i of a cache what row rows[i] was; False where a family's cache cannot do that, and is spoilt."""
    try:
        cache.reorder_cache(rows)
    except (AttributeError, NotImplementedError, TypeError):
        return False
    return True


class Alike(NamedTuple):
    """Sequences that begin alike."""

    prefix: int
    """Tokens that all have in common; every sequence is longer. 0 for a sequence on its own."""
    members: tuple[int, ...]
    """Which sequences."""


class _Cut(NamedTuple):
    """The best groups of the first so many sequences."""

    saved: int
    """Tokens that need not be computed."""
    start: int
    """Where the last of the groups begins."""
    prefix: int
    """Tokens that this one has in common."""


def alike(sequences: Sequence[Sequence[int]]) -> list[Alike]:
    """Every sequence in one group, so that as few tokens as possible are computed. Longest common beginnings first.

    Sorted, sequences that begin alike are neighbours, and a group is a stretch of them: the best cuts are found from
    left to right (in the square of their number, which is that of one call).
    """
    order = sorted(range(len(sequences)), key=lambda at: tuple(sequences[at]))
    commons = [0, *(_common(sequences[one], sequences[other]) for one, other in itertools.pairwise(order))]
    best = [_Cut(0, 0, 0)]
    for end in range(1, len(order) + 1):
        found, prefix = _Cut(best[end - 1].saved, end - 1, 0), sys.maxsize
        for start in range(end - 2, -1, -1):
            prefix = min(prefix, commons[start + 1])
            saved = best[start].saved + (end - 1 - start) * prefix
            if saved > found.saved:
                found = _Cut(saved, start, prefix)
        best.append(found)
    groups: list[Alike] = []
    end = len(order)
    while end:
        cut = best[end]
        groups.append(Alike(cut.prefix, tuple(order[cut.start : end])))
        end = cut.start
    return sorted(reversed(groups), key=lambda group: (-group.prefix, -len(sequences[group.members[0]])))


def alone(sequences: Sequence[Sequence[int]]) -> list[Alike]:
    """Every sequence on its own, longest first."""
    return [Alike(0, (at,)) for at in sorted(range(len(sequences)), key=lambda at: -len(sequences[at]))]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that both begin with; each keeps one of its own at least."""
    most = min(len(one), len(other)) - 1
    return next((at for at in range(most) if one[at] != other[at]), most)


class PrefixPass:
    """The passes of one causal model over sequences that begin alike."""

    def __init__(self, model: Any, pad: int) -> None:
        self._model, self._pad = model, pad
        taken = inspect.signature(type(model).forward).parameters
        self._name = cache_name(model)
        self.able = bool(self._name) and "position_ids" in taken
        """Whether the model can do it; whether it does it right, `last_logits` does not tell."""
        self._short = "logits_to_keep" in taken

    def last_logits(self, sequences: Sequence[Sequence[int]], groups: Sequence[Alike], device: Any) -> Tensor:
        """[members, vocabulary]: the logits after every sequence, group by group. Every group has a prefix.

        Raises RuntimeError where this family's cache cannot be repeated.
        """
        import torch

        beginnings = [sequences[group.members[0]][: group.prefix] for group in groups]
        ends = [sequences[at][group.prefix :] for group in groups for at in group.members]
        first, mask = _padded(beginnings, self._pad, left=True)
        second, more = _padded(ends, self._pad, left=False)
        first, mask, second, more = (each.to(device) for each in (first, mask, second, more))
        out = self._call(first, mask, None, [first.shape[1] - 1])
        spread = torch.tensor([at for at, group in enumerate(groups) for _ in group.members], device=device)
        cache = out[self._name]
        if not move_rows(cache, spread):
            raise RuntimeError("a cache whose rows cannot be repeated")
        lasts = [len(each) - 1 for each in ends]
        kept = sorted(set(lasts)) if self._short else list(range(second.shape[1]))
        logits: Tensor = self._call(second, torch.cat([mask[spread], more], 1), cache, kept).logits
        place = {position: at for at, position in enumerate(kept)}
        return logits[list(range(len(ends))), [place[last] for last in lasts]]

    def _call(self, ids: Tensor, mask: Tensor, cache: Any, kept: list[int]) -> Any:
        """`mask` is over the cache as well; `kept` are the places whose logits are wanted."""
        import torch

        positions = (mask.cumsum(-1) - 1)[:, -ids.shape[1] :].clamp_(min=0)
        options: dict[str, Any] = {self._name: cache, "position_ids": positions}
        if self._short:
            options["logits_to_keep"] = torch.tensor(kept, device=ids.device)
        return self._model(input_ids=ids, attention_mask=mask, use_cache=True, **options)


def _padded(rows: Sequence[Sequence[int]], pad: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """[rows, width] ids, and 1 where they are no padding."""
    import torch

    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), pad), torch.zeros(len(rows), width, dtype=torch.long)
    for at, row in enumerate(rows):
        places = slice(width - len(row), width) if left else slice(0, len(row))
        ids[at, places], mask[at, places] = torch.tensor(row), 1
    return ids, mask


def batches(
    groups: Sequence[Alike], sequences: Sequence[Sequence[int]], rows: int, tokens: int
) -> Iterator[list[Alike]]:
    """Groups that go through the model together: of one kind (with a prefix or alone), at most `rows` sequences and
    `tokens` tokens with padding in either pass, if one group alone does not take more.
    """
    for _, kind in itertools.groupby(groups, key=lambda group: group.prefix > 0):
        batch: list[Alike] = []
        for group in (part for whole in kind for part in _parts(whole, rows)):
            if batch and not _fits([*batch, group], sequences, rows, tokens):
                yield batch
                batch = []
            batch.append(group)
        yield batch


def _parts(group: Alike, rows: int) -> Iterator[Alike]:
    """A group of more sequences than go at once, in parts."""
    for start in range(0, len(group.members), rows):
        yield Alike(group.prefix, group.members[start : start + rows])


def _fits(batch: Sequence[Alike], sequences: Sequence[Sequence[int]], rows: int, tokens: int) -> bool:
    members = sum(len(group.members) for group in batch)
    longest = max(len(sequences[at]) for group in batch for at in group.members)
    return members <= rows and members * longest <= tokens
