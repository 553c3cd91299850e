"""One training from start to end: data, model, reference, loop, and what is saved.

`train` runs it; the errors of a full disk or memory become `UserError`s. Before the first step, `ReferencePass` gives
the groups the log-probabilities of the reference. After the last one, `complete` centers a reward model.

Centering: the mean reward of some demonstrations becomes the zero (Stiennon et al. 2020, arXiv:2009.01325). None of
transformers' decoders has a bias in its reward head, and behind the last norm of most of them no other weight adds a
constant either. So the mean stands in config.json as `reward_mean` (beside `reward_std`), of an adapter in reward.json;
`rlaif score` and every caller of `score.rewards_of` subtract it. Other loaders give rewards that differ by that
constant: no ranking and no difference of rewards depends on it, and a server can be told to subtract it.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import broadcast_object_list
from pydantic import JsonValue

from rlaif.errors import ModelError, UserError
from rlaif.inference.model_folder import load_tokenizer, quiet
from rlaif.progress import Progress
from rlaif.store import write_json
from rlaif.training import reference
from rlaif.training.card import is_adapter, write_card
from rlaif.training.config import DpoSettings, Method, RewardSettings, SftSettings, TrainSettings, resolved
from rlaif.training.curves import draw_curves
from rlaif.training.dataset import DataKind, Prepared, demonstrations, prepare
from rlaif.training.examples import RowCounts
from rlaif.training.folder import TrainState, begin, finish, locked, remove_checkpoints, resume_checkpoint, write_log
from rlaif.training.forward import ForwardPath, Kind, answering, bare, select_forward_path
from rlaif.training.loading import (
    ADAPTER_FILE,
    Start,
    cast_files,
    find_start,
    load_frozen,
    load_policy,
    load_reward_model,
    merged,
    require_fit,
    require_same_vocabulary,
    round_to,
    type_of,
    weights_type,
)
from rlaif.training.losses import REFERENCE, DpoObjective, KtoObjective, RewardObjective, SftObjective
from rlaif.training.score import rewards_apart
from rlaif.training.tokenize import Group, Tokens, ends_of, pad_id, with_template_options
from rlaif.training.trainer import (
    Callback,
    Clock,
    Falling,
    GroupTrainer,
    LogFile,
    Objective,
    ProgressCallback,
    StopCleanly,
    StoppedError,
    arguments,
    enough_memory,
    narrow,
    room_to_write,
)


def check_center(tokenizer: Any, settings: RewardSettings) -> None:
    """Raise UserError where `center_dataset` could not be scored: before the training, not after it."""
    if settings.center_dataset is None:
        return
    if any(os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true" for name in ("FSDP", "DEEPSPEED")):
        message = "`center_dataset` needs the whole model in one process, and it is sharded over several"
        raise UserError(message, hint="leave `center_dataset` out")
    _center_groups(tokenizer, settings, first=True)


def complete(model: Any, tokenizer: Any, settings: RewardSettings) -> dict[str, float]:
    """Give a trained reward model's config and folder what its loaders need; called before it is saved.

    Returns what it was centred on, if it was. The model's parameters have to be whole in this process.
    """
    config = bare(model).config
    config.problem_type = "regression"  # or pipelines and vLLM put the reward through a sigmoid
    for name in ("reward_mean", "reward_std"):  # perhaps left from the model that the training started from
        config.__dict__.pop(name, None)
    metrics = {}
    if settings.center_dataset is not None:
        metrics = {"reward_mean": center(model, tokenizer, settings), "reward_std": config.reward_std}
    settings.folder.mkdir(parents=True, exist_ok=True)
    if metrics and bare(model) is not model:  # an adapter's folder has no config.json, or it is taken for a whole model
        write_json(settings.folder / ADAPTER_FILE, dict(metrics))
    with contextlib.suppress(FileNotFoundError):  # it names the ends of replies; a classifier is saved without it
        shutil.copyfile(
            find_start(settings.model).weights / "generation_config.json", settings.folder / "generation_config.json"
        )
    return metrics


def center(model: Any, tokenizer: Any, settings: RewardSettings) -> float:
    """Put mean and standard deviation of the rewards of `settings.center_dataset` into the model's config; returns the
    mean.

    Each demonstration counts once. Raises UserError where there are none.
    """
    groups = _center_groups(tokenizer, settings)
    rewards = rewards_apart(model, groups, tokens=settings.max_tokens_per_pass, centered=False, narrow=narrow(settings))
    values = torch.tensor(rewards, dtype=torch.float64)
    mean, std = float(values.mean()), float(values.std(correction=0))
    if not math.isfinite(mean):
        raise UserError(
            "the mean reward is no number", where=settings.center_dataset, hint="leave `center_dataset` out"
        )
    config = bare(model).config
    config.reward_mean, config.reward_std = mean, std
    return mean


def _center_groups(tokenizer: Any, settings: RewardSettings, first: bool = False) -> list[Group]:
    """The demonstrations as tokens, or the first of them. Raises UserError where there are none."""
    assert settings.center_dataset is not None
    row_counts = RowCounts()
    tokens = Tokens(
        tokenizer, max_length=settings.max_length, ends=ends_of(find_start(settings.model).weights),
        template_options=settings.template_options,
    )  # fmt: skip
    stream = tokens.groups(demonstrations(settings.center_dataset, settings.template, row_counts), row_counts)
    groups = [group for group in (next(stream, None),) if group is not None] if first else list(stream)
    if not groups:
        raise row_counts.nothing(settings.center_dataset)
    return groups


_START_TOLERANCE, _START_TOLERANCE_TOKEN = 1e-3, 2e-5
"""Nats of a whole completion, in float32, or of each of its tokens: the same function computed in other batches."""
_START_TOLERANCE_NARROW = 0.02
"""Nats a token, on average, in bfloat16."""
_CHECKED = 16


class ReferencePass(Callback):
    """Gives every group the reference's log-probabilities before the first step.

    By then the trainer has placed the model, sharded over processes perhaps. A resumed model is no reference any more:
    where nothing is kept, the start is loaded once more.
    """

    def __init__(self, path: Path, settings: DpoSettings, resumed: bool, stop: StopCleanly, progress: Progress) -> None:
        """`path` is where they are kept."""
        self.path, self.settings, self.resumed, self.stop, self.progress = path, settings, resumed, stop, progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Find or compute them.

        Raises UserError where they cannot be kept, ModelError where they do not fit, StoppedError on Ctrl-C.
        """
        trainer = self.trainer
        train, held = trainer.train_groups, trainer.held_groups
        groups = [*train, *held]
        logps = self._load_cached(groups)
        if logps is None:
            if trainer.is_world_process_zero():
                reference.require_writable(self.path)
            logps = self._compute(groups)
        with_logps = reference.with_reference(groups, logps, REFERENCE)
        train[:] = with_logps[: len(train)]
        held[:] = with_logps[len(train) :]
        if self.settings.reference is None and not self.resumed:
            self._require_same_at_start(logps)

    def _load_cached(self, groups: list[Group]) -> list[list[float]] | None:
        """What the first process finds on its disk: all of them have to compute, or none."""
        cached = reference.load(self.path, groups) if self.trainer.is_world_process_zero() else None
        if self.trainer.accelerator.num_processes == 1:
            return cached
        (shared,) = broadcast_object_list([cached])
        return shared  # type: ignore[no-any-return]

    def _compute(self, groups: list[Group]) -> list[list[float]]:
        """By the model itself where it is at its start; another one is loaded for this, and dropped again."""
        settings = self.settings
        if settings.reference is None and not self.resumed:
            return self._compute_with(self.trainer.model_wrapped, groups, self.trainer.forward_path)
        if settings.reference is None:
            model = load_frozen(settings, weights_type(settings))  # as it was at the start
        else:
            dtype = torch.bfloat16 if narrow(settings) else torch.float32
            model = load_frozen(settings.model_copy(update={"model": settings.reference}), dtype)
            require_fit(model, groups, settings.reference)
        forward_path = select_forward_path(model, self.trainer.train_groups, "logps")
        model = model.to(self.trainer.accelerator.device)
        with answering(model, forward_path, "logps"), self.trainer.accelerator.autocast():
            return self._compute_with(model, groups, forward_path)

    def _compute_with(self, model: Any, groups: list[Group], forward_path: ForwardPath) -> list[list[float]]:
        trainer, done = self.trainer, 0
        self.progress.begin("reference", len(groups))

        def advance(more: int) -> None:
            nonlocal done
            done += more
            self.progress.advance("reference", done)
            if trainer.any_process(self.stop.asked) and done < len(groups):
                raise StoppedError

        logps = reference.compute(model, groups, forward_path, trainer.tokens, trainer.accelerator, advance)
        self.progress.end("reference", f"{len(groups)} of {len(groups)}")
        if trainer.is_world_process_zero():
            reference.keep(self.path, logps)
        return logps

    def _require_same_at_start(self, reference_logps: list[list[float]]) -> None:
        """At its start the policy is the reference: margins are 0 and the loss of DPO is ln 2.

        The model is asked as it is trained: dropout that is still on would be seen.
        """
        trainer = self.trainer
        groups = trainer.train_groups[:_CHECKED]
        trainer.model_wrapped.train()
        with torch.no_grad():
            values = trainer._values(trainer.model_wrapped, groups).cpu()
        expected = torch.tensor([logp for sums in reference_logps[: len(groups)] for logp in sums])
        lengths = torch.tensor([len(completion) for group in groups for completion in group.completions])
        off = (values - expected).abs()
        if trainer.args.bf16 or trainer.starting_dtype != torch.float32:
            worst, limit, of = float(off.sum() / lengths.sum()), _START_TOLERANCE_NARROW, "a token"
        else:
            limits = (_START_TOLERANCE_TOKEN * lengths).clamp(min=_START_TOLERANCE)
            at = int((off / limits).nan_to_num(nan=torch.inf).argmax())
            worst, limit, of = float(off[at]), float(limits[at]), f"over {int(lengths[at])} tokens"
        if not worst < limit:
            raise ModelError(
                f"before the first step the model differs from its reference by {worst:.2g} nats {of} (at most "
                f"{limit:.2g}): it is not the same function twice; remove {self.path} if it is of another model"
            )


_LARGE_MODEL = 2e9
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


def train(method: Method, settings: TrainSettings, progress: Progress, *, resume: bool = False) -> Trained:
    """Train a model. Raises UserError for what the user can fix, ModelError where the training cannot go on."""
    with quiet(), warnings.catch_warnings(), enough_memory(settings.folder):
        warnings.simplefilter("ignore", FutureWarning)  # names that newer versions of transformers have others for
        settings, defaults = resolved(settings, narrow(settings))
        if defaults:
            progress.note(
                f"{', '.join(f'{name} {value:g}' for name, value in defaults.items())}: the usual, as none is set"
            )
        settings, note = with_template_options(settings, settings.data)
        if note:
            progress.note(note)
        with locked(settings.folder, resume):
            return _train(method, settings, progress, resume)


def _train(method: Method, settings: TrainSettings, progress: Progress, resume: bool) -> Trained:
    start = find_start(settings.model)
    if start.adapter is not None and is_adapter(settings):
        message = "is an adapter, and another one on top of it would have no model to lie on"
        raise UserError(message, where=settings.model, hint="set `lora.merge: true`, or train all weights")
    tokenizer = load_tokenizer(start.tokenizer)
    if isinstance(settings, RewardSettings):
        check_center(tokenizer, settings)
    prepared = _prepare_data(method, settings, start, tokenizer, progress)
    groups = [*prepared.train, *prepared.held]
    training_arguments = arguments(settings, len(prepared.train), len(prepared.held))
    if start.size > _LARGE_MODEL:
        progress.note(f"hashing {start.size / 1e9:.0f} GB of weights")
    weights, source = start.hash(), _checked_reference(settings, tokenizer, groups)
    state = TrainState(
        method=method, settings=settings.plain(), data_hash=prepared.data_hash, model_hash=weights,
        learned=prepared.learned,
    )  # fmt: skip
    checkpoint = resume_checkpoint(settings.folder, state) if resume else None
    kind: Kind = "rewards" if method == "reward" else "logps"
    model = load_reward_model(settings, pad_id(tokenizer)) if kind == "rewards" else load_policy(settings)
    if (note := require_fit(model, groups, settings.model)) is not None:
        progress.note(note)
    forward_path = select_forward_path(model, prepared.train, kind)
    if not forward_path.fast:
        progress.note(f"{type(model).__name__} takes the plain way: its own forward pass, prompts not shared")
    stop, clock = StopCleanly(progress.note), Clock(settings.folder, checkpoint)
    around = _optional_callbacks(settings, groups, source or weights, checkpoint is not None, stop, progress)
    callbacks = [stop, LogFile(settings.folder), clock, *around, ProgressCallback(progress)]
    with room_to_write(settings.folder):
        with answering(model, forward_path, kind), contextlib.ExitStack() as on_exit:
            on_exit.callback(stop.restore)
            trainer = _make_trainer(
                model,
                settings,
                training_arguments,
                _objective(method, settings),
                forward_path,
                prepared,
                tokenizer,
                callbacks,
            )
            if not resume:
                begin(settings.folder, state)
            clock.start()
            with contextlib.suppress(StoppedError):
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return _save(trainer, method, settings, prepared, clock.seconds(), stopped=stop.asked)


def _prepare_data(
    method: Method, settings: TrainSettings, start: Start, tokenizer: Any, progress: Progress
) -> Prepared:
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
        on_rows=_row_progress(progress),
    )
    for line in prepared.report.lines():
        progress.note(line)
    if settings.template == "auto" and tokens.template.exists and prepared.learned.template in ("text", "plain"):
        progress.note(
            "the data are texts, and the model has a chat template: it is trained without it (`template: chat` uses it)"
        )
    if len(prepared.train) < settings.batch_size:
        progress.note(f"only {len(prepared.train)} rows: each step takes all of them, not {settings.batch_size}")
    return prepared


def _row_progress(progress: Progress) -> Callable[[int], None]:
    """Tells how many rows are read, where that takes long."""
    last = time.monotonic()

    def read(rows: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _EVERY:
            last = time.monotonic()
            progress.note(f"{rows:,} rows read")

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


def _optional_callbacks(
    settings: TrainSettings, groups: Sequence[Group], source: str, resumed: bool, stop: StopCleanly, progress: Progress
) -> Iterator[Any]:
    """The callbacks that depend on the settings; `source` is the hash of the reference."""
    from transformers import EarlyStoppingCallback

    if settings.patience is not None:
        yield EarlyStoppingCallback(settings.patience)
    if not isinstance(settings, DpoSettings) or not settings.uses_reference:
        return
    yield Falling(progress.note)
    computed = f"{settings.dtype} {weights_type(settings)} {settings.four_bit}"
    key = reference.reference_key(source, groups, computed)
    folder = Path(settings.reference_cache) if settings.reference_cache else reference.default_folder()
    yield ReferencePass(folder / f"{key}.safetensors", settings, resumed, stop, progress)


def _make_trainer(
    model: Any,
    settings: TrainSettings,
    training_arguments: Any,
    objective: Objective,
    forward_path: ForwardPath,
    prepared: Prepared,
    tokenizer: Any,
    callbacks: list[Any],
) -> GroupTrainer:
    train, held = list(prepared.train), list(prepared.held)
    trainer = GroupTrainer(
        model,
        training_arguments,
        objective,
        forward_path,
        settings.max_tokens_per_pass,
        train,
        held,
        tokenizer,
        callbacks,
    )
    for callback in callbacks:
        if isinstance(callback, Callback):
            callback.trainer = trainer
    return trainer


def _save(
    trainer: GroupTrainer, method: Method, settings: TrainSettings, prepared: Prepared, seconds: float, stopped: bool
) -> Trained:
    """Save the model with its card, curves and metrics; of a training that was stopped, only the log."""
    state, folder = trainer.state, settings.folder
    final_metrics = _final_metrics(state, kept_best=settings.patience is not None) | {"seconds": round(seconds, 2)}
    finished = not stopped or state.global_step >= state.max_steps
    trained = Trained(folder, state.global_step, finished, final_metrics)
    first = trainer.is_world_process_zero()
    if first:
        write_log(folder, state.log_history)
    if not finished:
        return trained
    _save_weights(trainer, settings, final_metrics)
    if first:
        draw_curves(state.log_history, folder / "curves.png")
        metrics: dict[str, JsonValue] = {**final_metrics, "steps": state.global_step}
        write_card(method, settings, prepared, metrics)
        finish(folder, metrics)
        remove_checkpoints(folder)
    return trained


def _save_weights(trainer: GroupTrainer, settings: TrainSettings, metrics: dict[str, float]) -> None:
    """Save the model in the type of the one that it started from; of a reward model, add its center to the metrics."""
    folder, dtype = settings.folder, type_of(find_start(settings.model).weights)
    if settings.lora.rank is not None and settings.lora.merge:
        trainer.model = merged(trainer.model)
    if isinstance(settings, RewardSettings) and trainer.is_world_process_zero():
        if settings.center_dataset is not None and not is_adapter(settings):
            round_to(trainer.model, dtype)
        metrics.update(complete(trainer.model, trainer.processing_class, settings))
    if trainer.is_fsdp_enabled:
        # Checkpoints may be in shards; of the finished model, transformers saves nothing then.
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(str(folder))
    if trainer.is_world_process_zero() and not is_adapter(settings):
        cast_files(folder, dtype)


def _final_metrics(state: Any, kept_best: bool) -> dict[str, float]:
    """The last value of everything that was logged; held-out ones of the weights that are kept."""
    metrics: dict[str, float] = {}
    for line in state.log_history:
        metrics |= _numbers(line)
    if kept_best and state.best_global_step is not None:
        for line in state.log_history:
            if line.get("step") == state.best_global_step and "eval_loss" in line:
                metrics |= {name: value for name, value in _numbers(line).items() if name.startswith("eval_")}
        metrics["best_step"] = float(state.best_global_step)
    return {name: value for name, value in metrics.items() if name not in ("step", "total_flos")}


def _numbers(line: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in line.items() if isinstance(value, (int, float))}
