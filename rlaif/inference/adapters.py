"""Adapters added to the weights of the model that they were trained on, and the proof that this changed nothing.

A model that answers with an adapter beside its weights, and the one whose weights have taken it up, are one function:
a forward pass before and after tells. Where the two differ, nobody has trained, measured or chosen what would answer.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rlaif.errors import UserError
from rlaif.inference.model_folder import (
    ADAPTER,
    ADAPTER_WEIGHTS,
    REFUSALS,
    Task,
    is_tied,
    quiet,
    read_json,
    refused,
    untie,
)

if TYPE_CHECKING:
    from torch import Tensor

    from rlaif.inference.model_folder import Parts

_MERGED = ("LORA", "IA3", "LOHA", "LOKR", "VERA", "OFT")
"""Kinds that become a part of the weights. All others act beside them, in the prompt, or are not tried here."""
_KINDS = "LoRA (with DoRA and rsLoRA), IA3, LoHa, LoKr, VeRA and OFT"
_FROM_SCRATCH = (True, False, None, "gaussian", "orthogonal", "eva", "mica")
"""Beginnings of a LoRA adapter that leave its model's weights alone; PiSSA, OLoRA, CorDA and LoftQ change them."""
_ROOT, _COMPILED = "base_model.model.", "_orig_mod."
_MERGE = "merge it with PEFT where it was trained, and name the whole model"
_PROBED = 16
"""Tokens of the forward passes."""
_OFF, _OFF_ROUNDED = 1e-3, 0.1
"""How far logits may be apart, as a share of the largest: in float32, and where narrower weights are rounded."""


class _Table(NamedTuple):
    """Embeddings or a head: where they are in the model, and all of their weights, if the adapter's file has them."""

    name: str
    saved: Tensor | None


def with_adapter(model: Any, parts: Parts, task: Task, *, new_head: bool, where: str | Path) -> tuple[Any, bool]:
    """The model with the adapter added to its weights, and whether the adapter brought a head for rewards.

    Raises UserError where the adapter is of another model or kind, lacks weights or has others than it should have.
    """
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    assert parts.adapter is not None
    about = read_json(parts.adapter / ADAPTER)
    config = _config(about, where)
    weights = _weights(parts.adapter)
    if task == "language" and about.get("task_type") == "SEQ_CLS":
        raise UserError("is an adapter of a reward model", where=where, hint="name a language model")
    if task == "reward" and about.get("task_type") != "SEQ_CLS":  # its layers are the same, its head is of no use here
        inner = f"{_ROOT}{model.base_model_prefix}."
        weights = {name: each for name, each in weights.items() if name.startswith(inner)}
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weights = _fitted(model, weights, about, parts, where)
        try:
            adapted = get_peft_model(model, config)
            wanted = get_peft_model_state_dict(adapted, save_embedding_layers=False)
            _require_same(wanted, weights, parts, where)
            set_peft_model_state_dict(adapted, weights)
        except REFUSALS as error:
            raise refused(error, where, _MERGE) from error
        brought = any(name.startswith(f"{_ROOT}score.") for name in weights)
        if task == "reward" and not (brought or new_head) and not _has_own_head(parts):
            what = "is an adapter without the head of a reward model"
            raise UserError(what, where=where, hint="`rlaif train reward` trains one")
        return merged(adapted, where, hint=_MERGE), brought


def merged(model: Any, where: str | Path, *, hint: str) -> Any:
    """The whole model with its adapter added to the weights, which answers as the two did apart.

    Raises UserError where it does not.
    """
    import torch

    was_training = model.training
    model.eval()
    before = _logits(model)
    whole = model.merge_and_unload()
    after = _logits(whole)
    whole.train(was_training)
    exact = all(each.dtype in (torch.float32, torch.float64) for each in whole.parameters())
    most = (_OFF if exact else _OFF_ROUNDED) * max(1.0, float(before.abs().max()))
    off = float((after - before).abs().max())
    if not off <= most:
        what = f"the adapter cannot be added to the weights: what the model says changes (logits by {off:.2g})"
        raise UserError(what, where=where, hint=hint)
    return whole


def require_kind(about: Mapping[str, Any], where: str | Path) -> None:
    """Raise UserError for an adapter that cannot become a part of its model's weights, or would with other numbers."""
    kind = str(about.get("peft_type"))
    if kind not in _MERGED:
        what = f"is an adapter of the kind {kind}; those that can be loaded are {_KINDS}"
        raise UserError(what, where=where, hint=_MERGE)
    begun = about.get("init_lora_weights")
    if kind == "LORA" and begun not in _FROM_SCRATCH:
        what = f"began as `{begun}`, which changed the weights of its model as well"
        raise UserError(what, where=where, hint="convert it to a plain LoRA adapter with PEFT, or merge it there")


def _config(about: Mapping[str, Any], where: str | Path) -> Any:
    """The adapter's settings. What this PEFT does not know would be left out without a word."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType

    require_kind(about, where)
    kind: Any = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(about["peft_type"])]
    known = {field.name for field in dataclasses.fields(kind) if field.init}
    unknown = [name for name, value in about.items() if name not in known and value and name not in _BESIDE]
    if unknown:
        what = f"has settings that this PEFT does not know: {', '.join(sorted(unknown)[:3])}"
        raise UserError(what, where=where, hint="pip install --upgrade peft")
    given = {name: value for name, value in about.items() if name in known}
    # One of a language model is added to a reward model as well; how an adapter began is nothing to what it became.
    given |= {"task_type": None, "inference_mode": True}
    try:
        return kind(**given)
    except REFUSALS as error:
        raise refused(error, where, "save the adapter again") from error


_BESIDE = frozenset({"peft_type", "peft_version", "auto_mapping"})


def _weights(folder: Path) -> dict[str, Tensor]:
    """The adapter's tensors under the names that they have in a model that was not compiled."""
    from safetensors.torch import load_file

    return {name.replace(_COMPILED, ""): each for name, each in load_file(folder / ADAPTER_WEIGHTS).items()}


def _fitted(
    model: Any, weights: dict[str, Tensor], about: Mapping[str, Any], parts: Parts, where: str | Path
) -> dict[str, Tensor]:
    """Make the model's embeddings those that the adapter was trained with; its weights without whole embeddings."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    found = [table for module in modules if (table := _table(model, module, weights)) is not None]
    _resize(model, found, parts, where)
    trained = tuple(about.get("modules_to_save") or ())
    whole = [each for each in found if each.saved is not None and not each.name.endswith(trained)]
    used = {name for each in whole for name in _names(each.name)}
    rest = {name: each for name, each in weights.items() if name not in used}
    if is_tied(model) and _parts_them(found, whole, rest) and not about.get("ensure_weight_tying"):
        untie(model)
    for each in whole:
        model.get_submodule(each.name).weight.data.copy_(each.saved)
    return rest


def _table(model: Any, module: Any, weights: Mapping[str, Tensor]) -> _Table | None:
    name = next((name for name, each in model.named_modules() if each is module), None)
    if module is None or name is None:
        return None
    return _Table(name, next((weights[full] for full in _names(name) if full in weights), None))


def _names(table: str) -> tuple[str, str]:
    """What an adapter's file calls all weights of a table: as it is, or beside low-rank ones."""
    return f"{_ROOT}{table}.weight", f"{_ROOT}{table}.base_layer.weight"


def _resize(model: Any, tables: list[_Table], parts: Parts, where: str | Path) -> None:
    """Give the model as many embeddings as it had when the adapter was trained: tokens had been added to it."""
    here = len(model.get_input_embeddings().weight)
    rows = {len(each.saved) for each in tables if each.saved is not None} - {here}
    if not rows:
        return
    lacking = [each.name for each in tables if each.saved is None and not is_tied(model)]
    if lacking or len(rows) > 1:
        what = f"has embeddings for {max(rows):,} tokens, its model {parts.weights.name} for {here:,}"
        more = f", and lacks those of {', '.join(lacking)}" if lacking else ""
        raise UserError(f"{what}{more}", where=where, hint=_MERGE)
    model.resize_token_embeddings(rows.pop(), mean_resizing=False)


def _parts_them(tables: list[_Table], whole: list[_Table], rest: Mapping[str, Tensor]) -> bool:
    """Whether an adapter makes embeddings and head, which share their weights, two different things.

    One that trains single tokens' embeddings changes both.
    """
    import torch

    if len(whole) == 2 and not torch.equal(*(each.saved for each in whole if each.saved is not None)):
        return True
    places = tuple(f"{_ROOT}{each.name}." for each in tables)
    return any(name.startswith(places) and "token_adapter" not in name for name in rest)


def _require_same(wanted: Mapping[str, Tensor], weights: Mapping[str, Tensor], parts: Parts, where: str | Path) -> None:
    """Every weight of the adapter stands in its file, in its shape, and no other."""
    hint = f"is {parts.weights.name} the model that it was trained on, and was it saved with `save_pretrained`?"
    missing, left = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    if missing:
        seen = f" (its file has {_short(left[0])} in their place)" if left else ""
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        what = f"the adapter lacks weights: {_short(missing[0])}{more}{seen}"
        raise UserError(what, where=where, hint=hint)
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        what = f"the adapter has weights that have no place in {parts.weights.name}: {_short(left[0])}{more}"
        raise UserError(what, where=where, hint=hint)
    for name, each in wanted.items():
        if weights[name].shape != each.shape:
            theirs, ours = ("x".join(map(str, shape)) for shape in (weights[name].shape, each.shape))
            what = f"the adapter does not fit {parts.weights.name}: {_short(name)} is {theirs}, not {ours}"
            raise UserError(what, where=where, hint=hint)


def _short(name: str) -> str:
    return name.removeprefix(_ROOT)[:120]


def _has_own_head(parts: Parts) -> bool:
    kind, *_ = read_json(parts.weights / "config.json").get("architectures") or [""]
    return str(kind).endswith("ForSequenceClassification")


def _logits(model: Any) -> Tensor:
    """What a model says after tokens from all over its vocabulary."""
    import torch

    table = model.get_input_embeddings().weight
    ids = torch.linspace(0, len(table) - 1, _PROBED, device=table.device).long()[None]
    # The head of a reward model is float32 whatever its layers are.
    mixed = len({each.dtype for each in model.parameters() if each.is_floating_point()}) > 1
    with torch.no_grad(), torch.autocast(table.device.type, torch.bfloat16, enabled=mixed):
        logits: Tensor = model(input_ids=ids).logits
    return logits.float()
