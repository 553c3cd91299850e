"""A model's weights in memory, for whoever asks, scores or trains: one way to load them, and everything checked.

Weights that a file lacks would be random numbers, left-over ones are dropped without a word: both are refused, wherever
a model comes from, as a label or a text of such a model looks like any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlaif.errors import UserError
from rlaif.inference.files import dtype_of, require_loadable, require_loadable_adapter
from rlaif.inference.quiet import quiet

if TYPE_CHECKING:
    import torch

    from rlaif.inference.folder import Parts

Task = Literal["language", "reward"]
_HEAD = "score."
"""Of a reward model: it stays in float32, as rewards have three digits in bfloat16, too few for a difference of two."""
_NAMED = 3
REFUSALS = (ValueError, TypeError, KeyError, AttributeError, RuntimeError)
"""What transformers and PEFT raise for files and settings that they cannot take."""
_SAVED_WHOLE = "name a model that was saved whole"


def open_model(
    parts: Parts,
    task: Task,
    dtype: torch.dtype | Literal["auto"],
    *,
    where: str | Path,
    new_head: bool = False,
    options: Mapping[str, Any] | None = None,
) -> tuple[Any, bool]:
    """The model, an adapter added to its weights, and whether its reward head is a new one, which `new_head` allows.

    `where` is how the user calls it. Raises UserError where it cannot be loaded, or is not whole.
    """
    import torch

    from rlaif.inference.merging import with_adapter

    require_parts(parts, where)
    # What comes out of adding an adapter is rounded once, afterwards.
    first = dtype if parts.adapter is None else torch.float32
    model, found = _loaded(parts.weights, task, first, where, options or {})
    of_adapter = parts.adapter is not None and task == "reward"
    missing = [name for name in found["missing_keys"] if not (name.startswith(_HEAD) and (new_head or of_adapter))]
    left = [name for name in found["unexpected_keys"] if not _is_other_head(name, model, task)]
    _require_whole(sorted(missing), sorted(left), sorted(found["mismatched_keys"]), task, where)
    _require_numbers(model, where)
    _require_flag(model)
    fresh = any(name.startswith(_HEAD) for name in found["missing_keys"])
    if parts.adapter is not None:
        model, brought = with_adapter(model, parts, task, new_head=new_head, where=where)
        fresh = fresh and not brought
        cast(model, getattr(torch, dtype_of(parts.weights)) if dtype == "auto" else dtype)
    return model, fresh


def require_parts(parts: Parts, where: str | Path) -> None:
    """Raise UserError where the files of a model are not what can be loaded; nothing is loaded yet."""
    require_loadable(parts.weights, where if parts.adapter is None else parts.weights)
    if parts.adapter is not None:
        require_loadable_adapter(parts.adapter, where)


def require_embeddings(tokenizer: Any, model: Any, where: str | Path) -> None:
    """Raise UserError where the tokenizer writes tokens that the model has no embedding for.

    Special tokens that no chat template writes are passed over: some families have one of images in their tokenizer.
    """
    rows = len(model.get_input_embeddings().weight)
    special = {token for token, each in tokenizer.added_tokens_decoder.items() if each.special}
    template = str(getattr(tokenizer, "chat_template", None))
    beyond = {number: token for token, number in tokenizer.get_vocab().items() if number >= rows}
    written = [number for number, token in beyond.items() if number not in special or token in template]
    if written:
        first, last = min(written), max(written)
        what = f"has {rows:,} embeddings, and its tokenizer gives ids up to {last:,} (`{beyond[first]}` is {first:,})"
        raise UserError(what, where=where, mend="take the tokenizer that belongs to it, or resize its embeddings")


def cast(model: Any, dtype: torch.dtype) -> None:
    """Bring a model's weights into a type, a reward model's head apart; its buffers stay as they are."""
    for name, each in model.named_parameters():
        if each.is_floating_point() and not name.startswith(_HEAD):
            each.data = each.data.to(dtype)


def is_tied(model: Any) -> bool:
    """Whether a model's head is its table of embeddings."""
    head = model.get_output_embeddings()
    table = model.get_input_embeddings()
    return head is not None and head is not table and getattr(head, "weight", None) is getattr(table, "weight", 0)


def untie(model: Any) -> None:
    """Give the head weights of its own, equal to those of the embeddings; nothing that the model says changes."""
    import torch

    if is_tied(model):
        head = model.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    _tell_untied(model)


def refused(error: Exception, where: str | Path, mend: str) -> UserError:
    """What transformers or PEFT says, in a line."""
    first = str(error).strip().partition("\n")[0] or type(error).__name__
    if "trust_remote_code" in str(error) or "custom code" in str(error):
        return UserError("needs code of its own, which is never run", where=where, mend=mend)
    return UserError(f"cannot be loaded: {first}", where=where, mend=mend)


def _loaded(
    folder: Path, task: Task, dtype: torch.dtype | Literal["auto"], where: str | Path, options: Mapping[str, Any]
) -> tuple[Any, Mapping[str, Any]]:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind: Any = AutoModelForCausalLM if task == "language" else AutoModelForSequenceClassification
    outputs = {} if task == "language" else {"num_labels": 1}
    try:
        with quiet():
            model, found = kind.from_pretrained(
                folder, dtype=dtype, trust_remote_code=False, local_files_only=True, use_safetensors=True,
                output_loading_info=True, ignore_mismatched_sizes=True, **outputs, **options,
            )  # fmt: skip
    except (OSError, MemoryError, ImportError, SafetensorError, *REFUSALS) as error:
        raise refused(error, where, "name another model") from error
    return model, found


def _is_other_head(name: str, model: Any, task: Task) -> bool:
    """Whether left-over weights are those of a language model's head, which a reward model has no use for."""
    return task == "reward" and not name.startswith(f"{model.base_model_prefix}.")


def _require_whole(
    missing: Sequence[str], left: Sequence[str], wrong: Sequence[Any], task: Task, where: str | Path
) -> None:
    if missing:
        raise UserError(f"lacks weights of a {task} model: {_some(missing)}", where=where, mend=_SAVED_WHOLE)
    if wrong:
        name, *shapes = wrong[0]
        theirs, ours = ("x".join(map(str, shape)) for shape in shapes)
        what = f"{name} is {theirs} in its files, and its config.json asks for {ours}"
        raise UserError(what, where=where, mend=_SAVED_WHOLE)
    if left:
        what = f"has weights that are no part of a {task} model of its kind: {_some(left)}"
        raise UserError(what, where=where, mend="does its config.json belong to it?")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"


def _require_numbers(model: Any, where: str | Path) -> None:
    import torch

    for name, each in model.named_parameters():
        if each.is_floating_point() and not torch.isfinite(each.sum(dtype=torch.float32)):
            mend = "take a version of it from before they were"
            raise UserError(f"has weights that are no numbers: {name}", where=where, mend=mend)


def _require_flag(model: Any) -> None:
    """A file may hold a head of its own where the config says that there is none: what it holds counts."""
    head = model.get_output_embeddings()
    if head is not None and not is_tied(model):
        _tell_untied(model)


def _tell_untied(model: Any) -> None:
    for config in (model.config, model.config.get_text_config()):
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False
    if getattr(model, "all_tied_weights_keys", None):
        model.all_tied_weights_keys = {}
