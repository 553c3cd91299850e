"""One training from start to end: data, model, reference, loop, what is saved."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import JsonValue

from rlaif.errors import UserError
from rlaif.inference.folder import load_tokenizer
from rlaif.inference.quiet import quiet
from rlaif.training import reference
from rlaif.training.arguments import arguments, narrow
from rlaif.training.callbacks import Callback, Clock, Falling, LogFile, Progress, StopCleanly, StoppedError, Told
from rlaif.training.card import write_card
from rlaif.training.centering import check_center, complete
from rlaif.training.curves import draw_curves
from rlaif.training.defaults import resolved
from rlaif.training.dpo import DpoObjective, KtoObjective
from rlaif.training.fitting import require_fit, require_same_vocabulary
from rlaif.training.folder import Begun, begin, claimed, finish, going_on, remove_checkpoints, write_log
from rlaif.training.forward import Kind, Way, answering, choose_way
from rlaif.training.groups import Group
from rlaif.training.learned import with_template_options
from rlaif.training.loading import load_policy, load_reward_model, merged, weights_type
from rlaif.training.mishaps import enough_memory, room_to_write
from rlaif.training.preparing import DataKind, Prepared, prepare
from rlaif.training.referencepass import ReferencePass
from rlaif.training.reward import RewardObjective
from rlaif.training.rewardmodel import ends_of
from rlaif.training.saving import cast_files, round_to, type_of
from rlaif.training.settings import DpoSettings, Method, RewardSettings, SftSettings, TrainSettings
from rlaif.training.sft import SftObjective
from rlaif.training.starts import Start, find_start
from rlaif.training.tokens import Tokens, pad_id
from rlaif.training.trainer import GroupTrainer, Objective
from rlaif.training.use import is_adapter

_LARGE = 2e9
"""Bytes of weights that take a while to be hashed."""
_EVERY = 10.0
"""Seconds between two words on how many rows are read."""


class Trained(NamedTuple):
    """What a training came to."""

    folder: Path
    steps: int
    finished: bool
    """False where it was stopped before its end; `--resume` goes on."""
    metrics: dict[str, float]
    """The last figures of the log, held-out ones as `eval_...`."""


def train(method: Method, settings: TrainSettings, told: Told, *, resume: bool = False) -> Trained:
    """Train a model. Raises UserError for what the user can fix, ModelError where the training cannot go on."""
    with quiet(), warnings.catch_warnings(), enough_memory(settings.folder):
        warnings.simplefilter("ignore", FutureWarning)  # names that newer versions of transformers have others for
        settings, found = resolved(settings, narrow(settings))
        if found:
            told.note(f"{', '.join(f'{name} {value:g}' for name, value in found.items())}: the usual, as none is set")
        settings, note = with_template_options(settings, settings.data)
        if note:
            told.note(note)
        with claimed(settings.folder, resume):
            return _train(method, settings, told, resume)


def _train(method: Method, settings: TrainSettings, told: Told, resume: bool) -> Trained:
    start = find_start(settings.model)
    if start.adapter is not None and is_adapter(settings):
        what = "is an adapter, and another one on top of it would have no model to lie on"
        raise UserError(what, where=settings.model, mend="set `lora.merge: true`, or train all weights")
    tokenizer = load_tokenizer(start.tokenizer)
    if isinstance(settings, RewardSettings):
        check_center(tokenizer, settings)
    prepared = _prepared(method, settings, start, tokenizer, told)
    groups = [*prepared.train, *prepared.held]
    made = arguments(settings, len(prepared.train), len(prepared.held))
    if start.size > _LARGE:
        told.note(f"hashing {start.size / 1e9:.0f} GB of weights")
    weights, source = start.hash(), _checked_reference(settings, tokenizer, groups)
    begun = Begun(
        method=method, settings=settings.plain(), data_hash=prepared.data_hash, model_hash=weights,
        learned=prepared.learned,
    )  # fmt: skip
    checkpoint = going_on(settings.folder, begun) if resume else None
    kind: Kind = "rewards" if method == "reward" else "logps"
    model = load_reward_model(settings, pad_id(tokenizer)) if kind == "rewards" else load_policy(settings)
    if (note := require_fit(model, groups, settings.model)) is not None:
        told.note(note)
    way = choose_way(model, prepared.train, kind)
    if not way.fast:
        told.note(f"{type(model).__name__} takes the plain way: its own forward pass, prompts not shared")
    stop, clock = StopCleanly(told.note), Clock(settings.folder, checkpoint)
    around = _around(settings, groups, source or weights, checkpoint is not None, stop, told)
    callbacks = [stop, LogFile(settings.folder), clock, *around, Progress(told)]
    with room_to_write(settings.folder):
        with answering(model, way, kind), _restored(stop):
            trainer = _trainer(model, settings, made, _objective(method, settings), way, prepared, tokenizer, callbacks)
            if not resume:
                begin(settings.folder, begun)
            clock.start()
            with contextlib.suppress(StoppedError):
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return _saved(trainer, method, settings, prepared, clock.seconds(), stopped=stop.asked)


def _prepared(method: Method, settings: TrainSettings, start: Start, tokenizer: Any, told: Told) -> Prepared:
    """The data, and what there is to say of them."""
    options, ends = settings.template_options, ends_of(start.weights)
    tokens = Tokens(tokenizer, max_length=settings.max_length, ends=ends, template_options=options)
    kinds: dict[Method, DataKind] = {"sft": "demonstrations", "reward": "pairs", "dpo": "pairs"}
    kind: DataKind = "judged" if isinstance(settings, DpoSettings) and settings.loss == "kto" else kinds[method]
    prepared = prepare(
        settings.data,
        tokens,
        kind,
        template=settings.template,
        holdout=settings.holdout,
        held_data=settings.held_data,
        limit=settings.limit,
        seed=settings.seed,
        turns=settings.turns if isinstance(settings, SftSettings) else "last",
        told=_now_and_then(told),
    )
    for line in prepared.report.lines():
        told.note(line)
    if settings.template == "auto" and tokens.template.exists and prepared.learned.template in ("text", "plain"):
        told.note(
            "the data are texts, and the model has a chat template: it is trained without it (`template: chat` uses it)"
        )
    if len(prepared.train) < settings.batch_size:
        told.note(f"only {len(prepared.train)} rows: each step takes all of them, not {settings.batch_size}")
    return prepared


def _now_and_then(told: Told) -> Callable[[int], None]:
    """Tells how many rows are read, where that takes long."""
    last = time.monotonic()

    def read(rows: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _EVERY:
            last = time.monotonic()
            told.note(f"{rows:,} rows read")

    return read


def _checked_reference(settings: TrainSettings, tokenizer: Any, groups: Sequence[Group]) -> str | None:
    """The hash of another model as the reference, which has to have the same vocabulary."""
    if not isinstance(settings, DpoSettings) or settings.reference is None:
        return None
    other = find_start(settings.reference)
    if other.has_tokenizer:
        require_same_vocabulary(tokenizer, load_tokenizer(other.tokenizer), groups, settings.reference)
    return other.hash()


def _objective(method: Method, settings: TrainSettings) -> Objective:
    if isinstance(settings, DpoSettings):
        return KtoObjective(settings) if settings.loss == "kto" else DpoObjective(settings)
    if isinstance(settings, RewardSettings):
        return RewardObjective(settings)
    assert isinstance(settings, SftSettings), method
    return SftObjective()


def _around(
    settings: TrainSettings, groups: Sequence[Group], source: str, resumed: bool, stop: StopCleanly, told: Told
) -> Iterator[Any]:
    """The callbacks that depend on the settings; `source` is the hash of the reference."""
    from transformers import EarlyStoppingCallback

    if settings.patience is not None:
        yield EarlyStoppingCallback(settings.patience)
    if not isinstance(settings, DpoSettings) or not settings.uses_reference:
        return
    yield Falling(told.note)
    computed = f"{settings.dtype} {weights_type(settings)} {settings.four_bit}"
    key = reference.reference_key(source, groups, computed)
    folder = Path(settings.reference_cache) if settings.reference_cache else reference.default_folder()
    yield ReferencePass(folder / f"{key}.safetensors", settings, resumed, stop, told)


def _trainer(
    model: Any,
    settings: TrainSettings,
    made: Any,
    objective: Objective,
    way: Way,
    prepared: Prepared,
    tokenizer: Any,
    callbacks: list[Any],
) -> GroupTrainer:
    train, held = list(prepared.train), list(prepared.held)
    trainer = GroupTrainer(model, made, objective, way, settings.tokens, train, held, tokenizer, callbacks)
    for callback in callbacks:
        if isinstance(callback, Callback):
            callback.trainer = trainer
    return trainer


@contextlib.contextmanager
def _restored(stop: StopCleanly) -> Iterator[None]:
    try:
        yield
    finally:
        stop.restore()


def _saved(
    trainer: GroupTrainer, method: Method, settings: TrainSettings, prepared: Prepared, seconds: float, stopped: bool
) -> Trained:
    """Save the model with its card, curves and figures; of a training that was stopped, only the log."""
    state, folder = trainer.state, settings.folder
    figures = _figures(state, kept_best=settings.patience is not None) | {"seconds": round(seconds, 2)}
    finished = not stopped or state.global_step >= state.max_steps
    trained = Trained(folder, state.global_step, finished, figures)
    first = trainer.is_world_process_zero()
    if first:
        write_log(folder, state.log_history)
    if not finished:
        return trained
    _save_weights(trainer, settings, figures)
    if first:
        draw_curves(state.log_history, folder / "curves.png")
        metrics: dict[str, JsonValue] = {**figures, "steps": state.global_step}
        write_card(method, settings, prepared, metrics)
        finish(folder, metrics)
        remove_checkpoints(folder)
    return trained


def _save_weights(trainer: GroupTrainer, settings: TrainSettings, figures: dict[str, float]) -> None:
    """Save the model in the type of the one that it started from; of a reward model, add its centre to the figures."""
    folder, dtype = settings.folder, type_of(find_start(settings.model).weights)
    if settings.lora.rank is not None and settings.lora.merge:
        trainer.model = merged(trainer.model)
    if isinstance(settings, RewardSettings) and trainer.is_world_process_zero():
        if settings.center_on is not None and not is_adapter(settings):
            round_to(trainer.model, dtype)
        figures.update(complete(trainer.model, trainer.processing_class, settings))
    if trainer.is_fsdp_enabled:
        # Checkpoints may be in shards; of the finished model, transformers saves nothing then.
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(folder))
    if trainer.is_world_process_zero() and not is_adapter(settings):
        cast_files(folder, dtype)


def _figures(state: Any, kept_best: bool) -> dict[str, float]:
    """The last value of everything that was logged; held-out ones of the weights that are kept."""
    found: dict[str, float] = {}
    for line in state.log_history:
        found |= _numbers(line)
    if kept_best and state.best_global_step is not None:
        for line in state.log_history:
            if line.get("step") == state.best_global_step and "eval_loss" in line:
                found |= {name: value for name, value in _numbers(line).items() if name.startswith("eval_")}
        found["best_step"] = float(state.best_global_step)
    return {name: value for name, value in found.items() if name not in ("step", "total_flos")}


def _numbers(line: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in line.items() if isinstance(value, (int, float))}
