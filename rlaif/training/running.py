"""One training from start to end: data, model, reference, loop, what is saved."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import JsonValue

from rlaif.errors import UserError
from rlaif.inference.folder import model_folder
from rlaif.inference.quiet import quiet
from rlaif.training import reference
from rlaif.training.arguments import arguments, narrow
from rlaif.training.callbacks import Callback, Falling, Progress, ReferencePass, StopCleanly, Told
from rlaif.training.card import write_card
from rlaif.training.centering import check_center, complete
from rlaif.training.curves import draw_curves
from rlaif.training.dpo import DpoObjective, KtoObjective
from rlaif.training.folder import Begun, begin, claim, finish, remove_checkpoints, write_log
from rlaif.training.forward import Kind, Way, answering, choose_way
from rlaif.training.loading import load_policy, load_reward_model, load_tokenizer, merged
from rlaif.training.losses import NEEDS_REFERENCE
from rlaif.training.preparing import DataKind, Prepared, prepare
from rlaif.training.reward import RewardObjective
from rlaif.training.settings import DpoSettings, Method, RewardSettings, SftSettings, TrainSettings
from rlaif.training.sft import SftObjective
from rlaif.training.tokens import Tokens, end_ids, pad_id
from rlaif.training.trainer import GroupTrainer, Objective


class Trained(NamedTuple):
    """What a training came to."""

    folder: Path
    steps: int
    finished: bool
    """False where it was stopped before its end; `--resume` goes on."""
    metrics: dict[str, float]
    """The last figures of the log, held-out ones as `eval_...`."""


def train(method: Method, settings: TrainSettings, told: Told, *, resume: bool = False) -> Trained:
    """Train a model. Raises UserError for what the user can mend, ModelError where the training cannot go on."""
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # names that newer versions of transformers have others for
        return _train(method, settings, told, resume)


def _train(method: Method, settings: TrainSettings, told: Told, resume: bool) -> Trained:
    claim(settings.folder, resume)
    start = model_folder(settings.model)
    tokenizer = load_tokenizer(start)
    if isinstance(settings, RewardSettings):
        check_center(tokenizer, settings)
    prepared = _prepared(method, settings, start, tokenizer)
    for line in prepared.report.lines():
        told.note(line)
    weights = reference.weights_hash(start)
    plain = settings.plain()
    checkpoint = begin(
        settings, Begun(method=method, settings=plain, data_hash=prepared.data_hash, model_hash=weights), resume
    )
    kind: Kind = "rewards" if method == "reward" else "logps"
    model = load_reward_model(settings, pad_id(tokenizer)) if kind == "rewards" else load_policy(settings)
    way = choose_way(model, prepared.train, kind)
    if not way.fast:
        told.note(f"{type(model).__name__} takes the plain way: its own forward pass, prompts not shared")
    stop = StopCleanly()
    callbacks: list[Any] = [stop, *_around(settings, prepared, weights, bool(checkpoint), told), Progress(told)]
    with answering(model, way, kind), _restored(stop):
        trainer = _trainer(model, settings, _objective(method, settings), way, prepared, tokenizer, callbacks)
        began = time.monotonic()
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        seconds = time.monotonic() - began
    return _saved(trainer, method, settings, prepared, seconds, stopped=stop.asked)


def _prepared(method: Method, settings: TrainSettings, start: Path, tokenizer: Any) -> Prepared:
    from transformers import GenerationConfig

    ends: frozenset[int] = frozenset()
    with contextlib.suppress(OSError):
        ends = end_ids(GenerationConfig.from_pretrained(start))
    tokens = Tokens(tokenizer, max_length=settings.max_length, ends=ends)
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
    )
    if len(prepared.train) < settings.batch_size:
        raise UserError(
            f"only {len(prepared.train)} rows to train on, fewer than one batch of {settings.batch_size}",
            where=settings.data,
            mend="lower `batch_size`",
        )
    return prepared


def _objective(method: Method, settings: TrainSettings) -> Objective:
    if isinstance(settings, DpoSettings):
        return KtoObjective(settings) if settings.loss == "kto" else DpoObjective(settings)
    if isinstance(settings, RewardSettings):
        return RewardObjective(settings)
    assert isinstance(settings, SftSettings), method
    return SftObjective()


def _around(settings: TrainSettings, prepared: Prepared, weights: str, resumed: bool, told: Told) -> Iterator[Any]:
    """The callbacks that depend on the settings."""
    from transformers import EarlyStoppingCallback

    if settings.patience is not None:
        yield EarlyStoppingCallback(settings.patience)
    if not isinstance(settings, DpoSettings):
        return
    yield Falling(told.note)
    if settings.loss in {*NEEDS_REFERENCE, "kto"}:
        other = settings.reference
        source = weights if other is None else reference.weights_hash(model_folder(other))
        dtype = "bfloat16" if narrow(settings) else "float32"
        key = reference.reference_key(source, [*prepared.train, *prepared.held], f"{dtype} {settings.four_bit}")
        folder = Path(settings.reference_cache) if settings.reference_cache else reference.default_folder()
        yield ReferencePass(folder / f"{key}.safetensors", settings, resumed, told)


def _trainer(
    model: Any,
    settings: TrainSettings,
    objective: Objective,
    way: Way,
    prepared: Prepared,
    tokenizer: Any,
    callbacks: list[Any],
) -> GroupTrainer:
    trainer = GroupTrainer(
        model,
        arguments(settings, len(prepared.train), len(prepared.held)),
        objective,
        way,
        settings.tokens,
        list(prepared.train),
        list(prepared.held),
        tokenizer,
        callbacks,
    )
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
    figures = _last_figures(state.log_history) | {"seconds": round(seconds, 2)}
    finished = not stopped or state.global_step >= state.max_steps
    trained = Trained(folder, state.global_step, finished, figures)
    if trainer.is_world_process_zero():
        write_log(folder, state.log_history)
    if not finished:
        return trained
    if settings.lora.rank is not None and settings.lora.merge:
        trainer.model = merged(trainer.model)
    if isinstance(settings, RewardSettings) and trainer.is_world_process_zero():
        figures.update(complete(trainer.model, trainer.processing_class, settings))
    trainer.save_model(str(folder))
    if trainer.is_world_process_zero():
        draw_curves(state.log_history, folder / "curves.png")
        metrics: dict[str, JsonValue] = {**figures, "steps": state.global_step}
        write_card(method, settings, prepared, metrics)
        finish(folder, metrics)
        remove_checkpoints(folder)
    return trained


def _last_figures(history: list[dict[str, Any]]) -> dict[str, float]:
    """The last value of everything that was logged."""
    found: dict[str, float] = {}
    for line in history:
        found |= {name: float(value) for name, value in line.items() if isinstance(value, (int, float))}
    return {name: value for name, value in found.items() if name not in ("step", "total_flos")}
