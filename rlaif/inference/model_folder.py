"""A model's folder: its files, its fingerprint, its tokenizer, and how it is opened.

transformers without its progress bars and advice.

What is wrong with a model's files, before anything is loaded from them: found in their headers, in milliseconds.

Weights that are missing are drawn at random by transformers, and left-over ones dropped, with a warning at most; files
of other kinds are unpickled, and code that lies beside them is run where somebody says yes. Nothing of that is wanted.

A model's files: where they lie, and the fingerprint that makes them part of a model's name.

A model in process is called `NAME@8 hex digits`. The digits hash the files that decide its answers, so a folder whose
weights, template or tokenizer changed has another name, and the questions put to it are asked anew.

A model's weights in memory, for whoever asks, scores or trains: one way to load them, and everything checked.

Weights that a file lacks would be random numbers, left-over ones are dropped without a word: both are refused, wherever
a model comes from, as a label or a text of such a model looks like any other.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rlaif.errors import UserError, nearest
from rlaif.inference.transport import hub_client
from rlaif.store import SHIPPED, shipped_model
from rlaif.text import loads

if TYPE_CHECKING:
    import torch


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no advice from transformers within the block."""
    import transformers

    logging: Any = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_INDEX = "model.safetensors.index.json"
_LENGTH = 8
_LONGEST = 100 * 2**20
"""Bytes of a header, as in the safetensors library itself."""
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_UNREAD = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.h5", "*.msgpack", "*.npz")
"""Weights in formats that are not read: most are pickles, which may run code."""
_SAVED_WHOLE = "save it with `save_pretrained`, and copy all of its files"


class Header(NamedTuple):
    """What a file of weights says of one tensor."""

    dtype: str
    shape: tuple[int, ...]


def require_loadable(folder: Path, where: str | Path) -> None:
    """Raise UserError where a whole model's folder is not one that is loaded; `where` is how the user calls it."""
    config = read_json(folder / "config.json")
    _require_no_code(config, where)
    require_ends(folder)
    found = dict(_headers(folder, where))
    if not found:
        raise UserError("has no weights in its files", where=where, hint=_SAVED_WHOLE)
    _require_floats(found, where, packed="quantization_config" in config)


def require_loadable_adapter(folder: Path, where: str | Path) -> None:
    """Raise UserError where an adapter's folder is not one that is loaded."""
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        raise _no_weights(folder, where, ADAPTER_WEIGHTS)
    _require_floats(headers(path, where), where, packed=False)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, perhaps with a copy of its model's config beside it.

    Raises UserError where it holds a whole model as well: which of the two is meant, nobody can tell.
    """
    if not (folder / ADAPTER).is_file():
        return False
    if next(folder.glob("model*.safetensors"), None) is not None:
        what = "holds an adapter and a whole model"
        raise UserError(what, where=folder, hint="leave one of the two in it")
    return True


def read_json(path: Path) -> dict[str, Any]:
    """An object in a file. Raises UserError where there is none."""
    try:
        found = loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise UserError("cannot be read as a JSON object", where=path, hint=_SAVED_WHOLE)
    return found


def require_ends(folder: Path) -> frozenset[int]:
    """The tokens that end a reply, of the generation config in a folder, if there is one.

    Raises UserError where that says something else: replies would never end, or end anywhere.
    """
    path = folder / "generation_config.json"
    if not path.is_file():
        return frozenset()
    told = read_json(path).get("eos_token_id")
    ends = told if isinstance(told, list) else [told]
    if any(each is not None and (isinstance(each, bool) or not isinstance(each, int) or each < 0) for each in ends):
        what = f"`eos_token_id` is {json.dumps(told)[:40]}"
        raise UserError(what, where=path, hint="set the number of the token that ends a reply, or a list of numbers")
    return frozenset(each for each in ends if each is not None)


def headers(path: Path, where: str | Path) -> dict[str, Header]:
    """The tensors of a file of weights by name. Raises UserError for one that is damaged or cut off."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH), "little")
            told: Any = loads(file.read(length)) if length <= min(_LONGEST, size) else None
        found = {name: each for name, each in told.items() if name != "__metadata__"}
        tensors = {name: Header(str(each["dtype"]), tuple(each["shape"])) for name, each in found.items()}
        wanted = _LENGTH + length + max((int(each["data_offsets"][1]) for each in found.values()), default=0)
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        what = f"{path.name} is no file of safetensors, or a damaged one"
        raise UserError(what, where=where, hint="copy or download it again") from None
    if size != wanted:
        gap = f"{wanted - size:,} bytes are missing" if size < wanted else f"{size - wanted:,} bytes are too many"
        raise UserError(f"{path.name} is damaged: {gap}", where=where, hint="copy or download it again")
    return tensors


def dtype_of(folder: Path) -> str:
    """The type of most weights of a whole model, as torch calls it."""
    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    kinds = [each.dtype for _, each in _headers(folder, folder)]
    return names.get(max(set(kinds), key=kinds.count), "float32")


def _headers(folder: Path, where: str | Path) -> Iterator[tuple[str, Header]]:
    """The tensors of a whole model, in one file or in shards that an index lists."""
    single = folder / "model.safetensors"
    if single.is_file():
        paths = [single]
    elif (folder / _INDEX).is_file():
        listed = read_json(folder / _INDEX).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
            raise UserError("does not list the files of its weights", where=folder / _INDEX, hint=_SAVED_WHOLE)
        paths = [folder / name for name in sorted(set(listed.values()))]
    else:
        raise _no_weights(folder, where, "model.safetensors")
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(f"lacks files of its weights: {', '.join(missing[:3])}{more}", where=where, hint=_SAVED_WHOLE)
    for path in paths:
        yield from headers(path, where).items()


def _no_weights(folder: Path, where: str | Path, name: str) -> UserError:
    unread = sorted(path.name for kind in _UNREAD for path in folder.glob(kind) if path.is_file())
    if unread:
        what = f"has its weights in {unread[0]}, and only safetensors are read, which run no code"
        return UserError(what, where=where, hint="convert it: load it with transformers, and `save_pretrained`")
    return UserError(f"has no weights: {name} is missing", where=where, hint=_SAVED_WHOLE)


def _require_floats(found: Mapping[str, Header], where: str | Path, *, packed: bool) -> None:
    """Numbers of a packed type, without what unpacks them, are loaded as if they were the weights themselves."""
    odd = next((name for name, each in found.items() if each.dtype not in _FLOATS), None)
    if odd is not None and not packed:
        what = f"{odd} holds {found[odd].dtype}, no floats, and no `quantization_config` says how they are packed"
        raise UserError(what, where=where, hint="save the weights as float32 or bfloat16")


def _require_no_code(config: Mapping[str, Any], where: str | Path) -> None:
    """A family that transformers does not know brings its own code, which is never run."""
    if "auto_map" not in config:
        return
    from transformers import CONFIG_MAPPING

    if config.get("model_type") not in CONFIG_MAPPING:
        what = f"needs code of its own (`auto_map` in config.json, `{config.get('model_type')}`), which is never run"
        raise UserError(what, where=where, hint="name a model of a family that transformers knows, or serve this one")


_DECIDING = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.model", "*.txt")
_BESIDE = frozenset({"trainer_state.json", "training_args.bin", "optimizer.bin", "README.txt", "metrics.json"})
"""Files of those kinds that trainers leave, and that change no answer; some tell how long a training took."""
_WHOLE = 64 * 2**20
_PIECES, _PIECE = 256, 2**16
"""Of a larger file so many pieces are hashed, evenly spread: a training that leaves some layers as they were changes
others, and the first and last tensors of a file may well be among those that it left."""


class Parts(NamedTuple):
    """Where the parts of a model lie: they are one folder, but for a LoRA adapter."""

    weights: Path
    """The folder of a whole model."""
    adapter: Path | None
    """What is added to it; None where it is all there is."""
    tokenizer: Path


def model_folder(model: str) -> Path:
    """The folder of a shipped model, of a local one, or of one from the Hugging Face hub (downloaded if need be)."""
    path = shipped_model(model)
    if path is None and _is_path(model):
        path = Path(model).expanduser()
    if path is None:
        return _from_hub(model)
    if not any((path / name).is_file() for name in ("config.json", ADAPTER)):
        inside = sorted(each.parent.name for each in path.glob(f"*/{ADAPTER}")) if path.is_dir() else []
        if inside:
            what = f"holds adapters in folders of their own: {', '.join(inside[:5])}"
            raise UserError(what, where=path, hint=f"name one of them, as in {path / inside[0]}")
        raise UserError("no model here: `config.json` is missing", where=path, hint="name the folder of a saved model")
    return path


def require_model(model: str) -> None:
    """Raise UserError where no model can be behind a name. Nothing is loaded, and no hub asked.

    Old models of the hub have no owner in their names; one of those has to be on this machine already.
    """
    if shipped_model(model) is not None or _is_path(model):
        model_folder(model)
    elif "/" not in model and not _is_cached(model):
        meant = nearest(model, SHIPPED)
        hint = "name the folder of a saved model, or one of the hub as `owner/name`"
        raise UserError(f"no model is called `{model}`", hint=meant if meant.startswith("did you mean") else hint)


def _is_cached(model: str) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(model, "config.json"), str)
    except HFValidationError:
        return False


def parts_of(folder: Path, *, rewards: bool = False) -> Parts:
    """The parts of the language model in a folder, or with `rewards` of a reward model.

    Raises UserError where an adapter does not lead to a whole model, or belongs to a reward model that is not wanted.
    """
    if not is_adapter(folder):
        return Parts(folder, None, folder)
    about = read_json(folder / ADAPTER)
    base = about.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError("does not say which model the adapter belongs to", where=folder / ADAPTER)
    if about.get("task_type") == "SEQ_CLS" and not rewards:
        raise UserError("is an adapter of a reward model", where=folder, hint="name a language model")
    weights = model_folder(base)
    if is_adapter(weights):
        hint = "merge the one below first (`lora.merge: true`)"
        raise UserError("is an adapter on top of another adapter", where=folder, hint=hint)
    return Parts(weights, folder, folder if has_tokenizer(folder) else weights)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder. Raises UserError where there is none.

    We look ourselves: transformers, before 5.24 at least, makes one of special tokens alone where a folder holds none.
    """
    from transformers import AutoTokenizer

    hint = "save the model together with its tokenizer"
    if not has_tokenizer(folder):
        raise UserError("no tokenizer here", where=folder, hint=hint)
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        # Its Rust half raises bare exceptions for files that it cannot read.
        if "trust_remote_code" in str(error):
            what, hint = "the tokenizer here needs code of its own, which is never run", "save it as tokenizer.json"
        else:
            what = "the tokenizer here cannot be loaded"
        raise UserError(what, where=folder, hint=hint) from error


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer."""
    kinds = ("tokenizer.json", "tekken.json", "vocab.json", "vocab.txt", "*.model", "*.tiktoken")
    return any(next(folder.glob(kind), None) for kind in kinds)


def identity(model: str, *, rewards: bool = False) -> str:
    """The full name of a model in process, worked out without loading it; `rewards` as for `parts_of`."""
    folder = model_folder(model)
    shown = folder.resolve().name if _is_path(model) else model
    parts = parts_of(folder, rewards=rewards)
    digits = fingerprint(folder)
    if parts.adapter is not None:  # the model below it decides its answers too
        digits = hashlib.sha256(f"{digits}{fingerprint(parts.weights)}".encode()).hexdigest()[:8]
    return f"{shown}@{digits}"


def fingerprint(folder: Path) -> str:
    """8 hex digits over names and contents of a model's files; of a file over 64 MB its size and 16 MB of it count."""
    files = {path for pattern in _DECIDING for path in folder.glob(pattern) if path.name not in _BESIDE}
    total = hashlib.sha256()
    for path in sorted(files, key=lambda each: each.name):
        total.update(f"{path.name}\0".encode())
        total.update(_digest(path))
    return total.hexdigest()[:8]


def _digest(path: Path) -> bytes:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= _WHOLE:
            digest.update(file.read())
        else:
            for number in range(_PIECES):
                file.seek((size - _PIECE) * number // (_PIECES - 1))
                digest.update(file.read(_PIECE))
    return digest.digest()


def _is_path(model: str) -> bool:
    """Whether `model` names a folder rather than a hub model (`owner/name`)."""
    looks_like_one = model.startswith((".", "/", "~")) or model.count("/") > 1 or "\\" in model
    return shipped_model(model) is None and (looks_like_one or Path(model).is_dir())


def _from_hub(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    hint = "check the name, or name the folder of a saved model"
    try:
        with hub_client():
            return Path(snapshot_download(model, allow_patterns=list(_DECIDING)))
    except LocalEntryNotFoundError:
        what = f"model `{model}` is not on this machine, and the Hugging Face hub cannot be reached"
        meant = "" if "/" in model else nearest(model, SHIPPED)  # a hub name has an owner, as a rule
        download = "download it first, or name the folder of a saved model"
        raise UserError(what, hint=meant if meant.startswith("did you mean") else download) from None
    except (OSError, ValueError) as error:  # the hub's own errors are OSErrors
        raise UserError(f"model `{model}` cannot be found: {str(error).splitlines()[0]}", hint=hint) from None


Task = Literal["language", "reward"]
_HEAD = "score."
"""Of a reward model: it stays in float32, as rewards have three digits in bfloat16, too few for a difference of two."""
_NAMED = 3
REFUSALS = (ValueError, TypeError, KeyError, AttributeError, RuntimeError)
"""What transformers and PEFT raise for files and settings that they cannot take."""
_SAVED_WHOLE_LAYERS = "name a model that was saved whole"


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

    from rlaif.inference.adapters import with_adapter

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
        raise UserError(what, where=where, hint="take the tokenizer that belongs to it, or resize its embeddings")


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


def refused(error: Exception, where: str | Path, hint: str) -> UserError:
    """What transformers or PEFT says, in a line."""
    first = str(error).strip().partition("\n")[0] or type(error).__name__
    if "trust_remote_code" in str(error) or "custom code" in str(error):
        return UserError("needs code of its own, which is never run", where=where, hint=hint)
    return UserError(f"cannot be loaded: {first}", where=where, hint=hint)


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
        raise UserError(f"lacks weights of a {task} model: {_some(missing)}", where=where, hint=_SAVED_WHOLE_LAYERS)
    if wrong:
        name, *shapes = wrong[0]
        theirs, ours = ("x".join(map(str, shape)) for shape in shapes)
        what = f"{name} is {theirs} in its files, and its config.json asks for {ours}"
        raise UserError(what, where=where, hint=_SAVED_WHOLE_LAYERS)
    if left:
        what = f"has weights that are no part of a {task} model of its kind: {_some(left)}"
        raise UserError(what, where=where, hint="does its config.json belong to it?")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"


def _require_numbers(model: Any, where: str | Path) -> None:
    import torch

    for name, each in model.named_parameters():
        if each.is_floating_point() and not torch.isfinite(each.sum(dtype=torch.float32)):
            hint = "take a version of it from before they were"
            raise UserError(f"has weights that are no numbers: {name}", where=where, hint=hint)


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
