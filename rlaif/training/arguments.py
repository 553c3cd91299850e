"""Our settings as transformers' TrainingArguments."""

from __future__ import annotations

import importlib.util
import math
import os
from typing import Any

import torch

from rlaif.errors import UserError, nearest
from rlaif.training.defaults import rate_of
from rlaif.training.settings import CommonSettings, TrainSettings

_EVALUATIONS = 10


def steps_of(settings: TrainSettings, rows: int) -> int:
    """Optimizer steps of a training on so many rows."""
    if settings.max_steps is not None:
        return settings.max_steps
    return max(1, math.ceil(settings.epochs * math.ceil(rows / settings.batch_size)))


def arguments(settings: TrainSettings, rows: int, held: int) -> Any:
    """What the trainer takes.

    Raises UserError where the batch cannot be shared out among the processes, and for what is not installed.
    """
    from transformers import TrainingArguments

    require_reporters(settings)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if settings.batch_size % processes:
        raise UserError(
            f"`batch_size: {settings.batch_size}` cannot be shared out evenly among {processes} processes",
            mend=f"set a multiple of {processes}",
        )
    often = settings.eval_steps or max(1, steps_of(settings, rows) // _EVALUATIONS)
    evaluated: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": often} if held else {"eval_strategy": "no"}
    best = settings.patience is not None
    if best and not held:
        raise UserError("`patience` needs held-out rows", mend="set `holdout` or `held_data`")
    made = TrainingArguments(
        output_dir=str(settings.folder),
        per_device_train_batch_size=settings.batch_size // processes,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        learning_rate=rate_of(settings),
        lr_scheduler_type=settings.schedule,
        lr_scheduler_kwargs={"min_lr_rate": 0.1} if settings.schedule == "cosine_with_min_lr" else None,
        warmup_steps=math.ceil(settings.warmup * steps_of(settings, rows)),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim=_known_optimizer(settings.optimizer),
        bf16=narrow(settings),
        save_strategy="no" if settings.save_steps == 0 and not best else "steps",
        save_steps=often if best else settings.save_steps or often,
        # Of one checkpoint beside the best, transformers would remove it at the end: a stopped training its progress.
        save_total_limit=max(settings.keep, 2) if best else settings.keep,
        load_best_model_at_end=best,
        metric_for_best_model="loss" if best else None,
        restore_callback_states_from_checkpoint=best,  # how many evaluations ago the best one was
        logging_steps=settings.log_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        report_to=list(settings.report_to),
        run_name=settings.folder.resolve().name,
        seed=settings.seed,
        use_cpu=settings.device == "cpu" or not torch.cuda.is_available(),
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=[],
        ddp_find_unused_parameters=False if processes > 1 else None,
        **evaluated,
    )
    # One process drives one device; transformers would deal batches out to all GPUs that it sees, by their first axis.
    made._n_gpu = min(made.n_gpu, 1)
    _require_optimizer(made)
    return made


def _known_optimizer(name: str) -> str:
    from transformers.training_args import OptimizerNames

    known = [each.value for each in OptimizerNames]
    if name not in known:
        raise UserError(f"no optimizer `{name}`", where="optimizer", mend=nearest(name, known))
    if name.startswith("schedule_free"):
        # They keep two sets of weights, of which a model and its checkpoints would have to be saved with the right one.
        what = f"`{name}` trains other weights than those to be used, which no training here tells apart"
        raise UserError(what, where="optimizer", mend="take adamw_torch with `schedule: constant`")
    return name


def _require_optimizer(made: Any) -> None:
    """Some come from packages that are not ours, and some want arguments that we do not pass on."""
    from transformers import Trainer

    try:
        Trainer.get_optimizer_cls_and_kwargs(made)
    except (ValueError, ImportError, RuntimeError) as error:
        what = f"`{made.optim.value}` cannot be used: {str(error).strip().partition(chr(10))[0]}"
        raise UserError(what, where="optimizer", mend="take adamw_torch") from error


def require_reporters(settings: CommonSettings) -> None:
    """Raise UserError where what the log goes to is not installed."""
    for name in settings.report_to:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"`{name}` is not installed", where="report_to", mend=f"pip install {name}")


def narrow(settings: CommonSettings) -> bool:
    """Whether the model computes in bfloat16."""
    if settings.dtype != "auto":
        return settings.dtype == "bfloat16"
    return settings.device == "auto" and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
