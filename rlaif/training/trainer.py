"""The training loop: transformers' Trainer for schedules, checkpoints, logging and many processes; batches are ours.

An optimizer step takes `batch_size` groups over all processes. Each process cuts its share into parts that fit into
memory (`batches.split`) and adds up their gradients, weighted so that the sum is the gradient of the whole step: the
result depends neither on the memory budget nor on the number of processes. Processes that work on one model meet in
every pass through it, so one with fewer parts than another makes up for it with passes that count for nothing.

Beside it the callbacks around its steps: progress, the log on disk, a clock, a clean stop, a warning.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from rlaif.errors import ModelError, UserError, nearest
from rlaif.progress import Progress
from rlaif.training.batches import Batch, lay_out, split
from rlaif.training.config import CommonSettings, TrainSettings, rate_of
from rlaif.training.folder import add_to_log, keep_seconds, seconds_of, write_log
from rlaif.training.forward import ForwardPath, Kind
from rlaif.training.tokenize import Group

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
            hint=f"set a multiple of {processes}",
        )
    interval = settings.eval_steps or max(1, steps_of(settings, rows) // _EVALUATIONS)
    evaluation: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": interval} if held else {"eval_strategy": "no"}
    best = settings.patience is not None
    if best and not held:
        raise UserError("`patience` needs held-out rows", hint="set `holdout` or `held_data`")
    training_arguments = TrainingArguments(
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
        optim=_checked_optimizer(settings.optimizer),
        bf16=narrow(settings),
        save_strategy="no" if settings.save_steps == 0 and not best else "steps",
        save_steps=interval if best else settings.save_steps or interval,
        # Of one checkpoint beside the best, transformers would remove it at the end: a stopped training its progress.
        save_total_limit=max(settings.checkpoints_to_keep, 2) if best else settings.checkpoints_to_keep,
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
        **evaluation,
    )
    # One process drives one device; transformers would deal batches out to all GPUs that it sees, by their first axis.
    training_arguments._n_gpu = min(training_arguments.n_gpu, 1)
    _require_optimizer(training_arguments)
    return training_arguments


def _checked_optimizer(name: str) -> str:
    from transformers.training_args import OptimizerNames

    names = [member.value for member in OptimizerNames]
    if name not in names:
        raise UserError(f"no optimizer `{name}`", where="optimizer", hint=nearest(name, names))
    if name.startswith("schedule_free"):
        # They keep two sets of weights, of which a model and its checkpoints would have to be saved with the right one.
        message = f"`{name}` trains other weights than those to be used, which no training here tells apart"
        raise UserError(message, where="optimizer", hint="take adamw_torch with `schedule: constant`")
    return name


def _require_optimizer(training_arguments: Any) -> None:
    """Some come from packages that are not ours, and some want arguments that we do not pass on."""
    from transformers import Trainer

    try:
        Trainer.get_optimizer_cls_and_kwargs(training_arguments)
    except (ValueError, ImportError, RuntimeError) as error:
        message = f"`{training_arguments.optim.value}` cannot be used: {str(error).strip().partition(chr(10))[0]}"
        raise UserError(message, where="optimizer", hint="take adamw_torch") from error


def require_reporters(settings: CommonSettings) -> None:
    """Raise UserError where what the log goes to is not installed."""
    for name in settings.report_to:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"`{name}` is not installed", where="report_to", hint=f"pip install {name}")


def narrow(settings: CommonSettings) -> bool:
    """Whether the model computes in bfloat16."""
    if settings.dtype != "auto":
        return settings.dtype == "bfloat16"
    return settings.device == "auto" and torch.cuda.is_available() and torch.cuda.is_bf16_supported()


Metrics = dict[str, Tensor]
"""Values by name, one a group, [groups]; their means are logged."""


class Step(NamedTuple):
    """What an objective may ask for before the losses of a step."""

    compute: Callable[[Sequence[Group]], Tensor]
    """What the model gives for the completions of some groups, gradients off: summed log-probabilities, or rewards."""
    mean: Callable[[Tensor], float]
    """The mean of such values over all processes."""


class Objective(Protocol):
    """What a method trains for."""

    kind: Kind
    """What the model has to give for a batch."""

    def weight(self, group: Group) -> float:
        """What the group counts in the mean over a step: 1, or its tokens."""

    def before(self, groups: Sequence[Group], step: Step) -> Sequence[Group]:
        """A step's groups as they are trained on, with what the loss needs of the whole step."""

    def losses(self, values: Tensor, batch: Batch, groups: Sequence[Group]) -> tuple[Tensor, Metrics]:
        """The loss of every group, [groups], to be divided by the step's weight, and values to be logged.

        `values` are summed log-probabilities or rewards of the completions, [completions].
        """


class GroupTrainer(Trainer):
    """Trains a model on groups for an objective."""

    def __init__(
        self,
        model: Any,
        arguments: TrainingArguments,
        objective: Objective,
        forward_path: ForwardPath,
        tokens: int,
        train: Sequence[Group],
        held: Sequence[Group],
        tokenizer: Any,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self.objective: Objective = objective
        self.forward_path, self.tokens = forward_path, tokens
        self.train_groups, self.held_groups = list(train), list(held)
        self.starting_dtype: torch.dtype = model.dtype
        self._logged: dict[str, list[Tensor]] = {}
        data: dict[str, Any] = {"train_dataset": self.train_groups, "eval_dataset": self.held_groups or None}
        same: Any = list
        super().__init__(
            model=model,
            args=arguments,
            data_collator=same,
            **data,
            processing_class=tokenizer,
            callbacks=list(callbacks),
        )
        self.remove_callback(PrinterCallback)
        if self.is_deepspeed_enabled:
            # It takes a step with every part of a batch that fits into memory.
            raise UserError("trainings do not run on DeepSpeed", hint="choose FSDP or none in `accelerate config`")

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:  # noqa: ARG002
        """Add the gradients of one step; returns this process's share of its loss.

        Raises ModelError where the loss is no number.
        """
        model.train()
        groups = self.objective.before(self._mine(inputs), self._step(model))
        processes = self.accelerator.num_processes
        share = processes / self._total(sum(map(self.objective.weight, groups)))
        parts = self._parts(groups)
        part_losses: list[Tensor] = []
        for at, part in enumerate(parts):
            # Processes exchange gradients once a step, with its last part.
            last = at == len(parts) - 1 or processes == 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                losses, metrics = self._losses(model, [groups[index] for index in part])
                self.accelerator.backward(losses.sum() * share)
            part_losses.append(losses.detach())
            for name, values in metrics.items():
                self._logged.setdefault(name, []).append(values.detach())
        # Looked at once a step, not once a part: a GPU would wait each time.
        losses = torch.cat(part_losses)
        if not bool(torch.isfinite(losses).all()):
            ordered = [groups[index].id for part in parts for index in part]
            bad = [(name, loss) for name, loss in zip(ordered, losses.tolist(), strict=True) if not math.isfinite(loss)]
            raise self._no_number(f"the loss is {bad[0][1]} of the rows {', '.join(name for name, _ in bad[:8])}")
        mine: Tensor = losses.sum() * share
        return mine

    def _clip_grad_norm(self, model: Any) -> Any:
        """As transformers does it. Raises ModelError where the gradient is no number: it would spoil the model."""
        clip: Any = super()._clip_grad_norm
        norm = clip(model)
        if norm is not None and not math.isfinite(float(norm)):
            raise self._no_number(f"the gradient is {float(norm)}")
        return norm

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Whole batches in every process, which takes its share of them: the last may be too small to be dealt out."""
        from accelerate.data_loader import prepare_data_loader

        size = self.args.train_batch_size * self.accelerator.num_processes
        whole: DataLoader[Any] = DataLoader(self.train_dataset, size, shuffle=True, collate_fn=self.data_collator)  # type: ignore[arg-type]
        once = {"num_processes": 1, "process_index": 0}
        # Its sampler is seeded by the epoch, so that a resumed training finds its place in the order again.
        return prepare_data_loader(whole, **once, use_seedable_sampler=True, data_seed=self.args.seed)  # type: ignore[no-any-return]

    def _mine(self, groups: Sequence[Group]) -> list[Group]:
        """This process's share of some groups, which may be none."""
        return list(groups[self.accelerator.process_index :: self.accelerator.num_processes])

    def _step(self, model: Any) -> Step:
        return Step(lambda groups: self._values(model, groups), lambda values: self._means({"": values})[""])

    def _losses(self, model: Any, groups: Sequence[Group]) -> tuple[Tensor, Metrics]:
        """Losses and metrics of some groups; of none, those of a pass that counts for nothing, with no entries."""
        batch, values = self._given(model, groups or self._filler())
        losses, metrics = self.objective.losses(values, batch, groups or self._filler())
        if groups:
            return losses, metrics
        return losses[:0], {name: metric[:0] for name, metric in metrics.items()}

    def _filler(self) -> Sequence[Group]:
        """A group to keep a process busy with while others compute their parts: sharded models need all of them."""
        nothing = Step(lambda groups: torch.zeros(len(groups)), lambda values: 0.0)  # noqa: ARG005
        return self.objective.before(self.train_groups[:1], nothing)

    def _given(self, model: Any, groups: Sequence[Group]) -> tuple[Batch, Tensor]:
        """A batch and what the model gives for its completions."""
        batch = lay_out(groups, self.forward_path.layout).to(self.accelerator.device)
        values = model(batch)
        return batch, batch.summed(values) if self.objective.kind == "logps" else values

    def _parts(self, groups: Sequence[Group]) -> list[list[int]]:
        """What fits into memory at once, by index: as many parts in every process, some of them empty perhaps."""
        parts = split(groups, self.tokens, self.forward_path.layout)
        if self.accelerator.num_processes == 1:
            return parts
        most = self.accelerator.gather(torch.tensor([len(parts)], device=self.accelerator.device)).max()
        parts = split(groups, self.tokens, self.forward_path.layout, least=int(most))
        return parts + [[]] * (int(most) - len(parts))

    def any_process(self, flag: bool) -> bool:
        """Whether any process says so; all of them have to ask."""
        return self._total(flag) > 0

    def _total(self, weight: float) -> float:
        if self.accelerator.num_processes == 1:
            return weight
        mine = torch.tensor([weight], device=self.accelerator.device, dtype=torch.float64)
        return float(self.accelerator.gather(mine).sum())

    def _no_number(self, message: str) -> ModelError:
        step = self.state.global_step + 1
        hint = "look at the rows, or start again with a lower `learning_rate` in another folder"
        return ModelError(f"{message} at step {step}, and no step was taken with it: {hint}")

    @torch.no_grad()
    def _values(self, model: Any, groups: Sequence[Group]) -> Tensor:
        """What the model gives for the completions of some groups, in their order, gradients off."""
        by_group: dict[int, Tensor] = {}
        for part in self._parts(groups):
            some = [groups[at] for at in part]
            values = self._given(model, some or self._filler())[1][: sum(len(group.completions) for group in some)]
            by_group |= zip(part, torch.split(values, [len(group.completions) for group in some]), strict=True)
        return torch.cat([by_group[at] for at in range(len(groups))]) if by_group else torch.zeros(0)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: Any = None,  # noqa: ARG002
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """The means of loss and metrics over all held-out groups, each process taking its share of them."""
        groups: Sequence[Group] = eval_dataset or self.held_groups
        self.model_wrapped.eval()
        parts: dict[str, list[Tensor]] = {}
        with torch.no_grad():
            # What the loss needs of a whole step is here that of all held-out groups: it must not depend on
            # `max_tokens_per_pass`.
            prepared = self.objective.before(self._mine(groups), self._step(self.model_wrapped))
            for part in self._parts(prepared):
                losses, metrics = self._losses(self.model_wrapped, [prepared[at] for at in part])
                for name, values in {"loss": losses, **metrics}.items():
                    parts.setdefault(name, []).append(values)
        weight = self._total(sum(map(self.objective.weight, prepared)))
        loss = self._total(float(torch.cat(parts.pop("loss")).double().sum())) / weight
        means = {"loss": loss} | self._means({name: torch.cat(values) for name, values in parts.items()})
        evaluation = {f"{metric_key_prefix}_{name}": value for name, value in means.items()}
        self.log(evaluation)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, evaluation)
        return evaluation

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means of the metrics since the last line."""
        if "loss" in logs:
            logged, self._logged = self._logged, {}
            logs = logs | self._means({name: torch.cat(values) for name, values in logged.items()})
        super().log(logs, start_time)

    def _means(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """The means of values over all processes, in one exchange; every process has to ask for the same names.

        Without those of nothing, as for the good answers of a step that has none: 0 would be a point of their curve.
        """
        names = sorted(values)
        if not names:
            return {}
        sums = torch.stack([values[name].double().sum().to(self.accelerator.device) for name in names])
        counts = torch.tensor([values[name].numel() for name in names], dtype=torch.float64, device=sums.device)
        if self.accelerator.num_processes > 1:
            sums, counts = self.accelerator.reduce(torch.stack([sums, counts]), "sum")
        totals = zip(names, sums.tolist(), counts.tolist(), strict=True)
        return {name: total / count for name, total, count in totals if count}

    def floating_point_ops(self, inputs: Any) -> int:  # noqa: ARG002 - transformers' signature
        """Not counted: transformers estimates them from padded batches."""
        return 0

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save as transformers does, without its pickled copy of the arguments: train.json says them in the open."""
        super()._save(output_dir, state_dict)
        (Path(output_dir or self.args.output_dir or ".") / "training_args.bin").unlink(missing_ok=True)


_FALLING = 20
"""Lines of the log in a row in which the chosen completions are less likely than at the start."""


_SHOWN = {
    "loss": "loss", "accuracy": "accuracy", "eval_loss": "held-out loss", "eval_accuracy": "held-out accuracy",
    "reward": "reward", "kl": "KL",
}  # fmt: skip


def shown_metrics(logs: Mapping[str, float]) -> str:
    """The metrics that stand beside the progress of a training."""
    return ", ".join(f"{name} {logs[key]:.3f}" for key, name in _SHOWN.items() if key in logs)


class Callback(TrainerCallback):
    """A callback that knows its trainer: transformers makes the callbacks first."""

    trainer: GroupTrainer


class StoppedError(Exception):
    """Raised where a training is stopped before its first step."""


class ProgressCallback(Callback):
    """Shows how far the training is."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self._logs: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Begin with the number of steps."""
        self.progress.begin("train", state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:  # noqa: ARG002
        """Keep the last metrics."""
        self._logs |= {name: value for name, value in (logs or {}).items() if isinstance(value, float)}

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Say how many are done: only now is the last one logged, and evaluated where it was its turn."""
        if state.global_step:
            self.progress.advance("train", state.global_step, shown_metrics(self._logs))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """End with the last metrics."""
        metrics = shown_metrics(self._logs)
        summary = f"{state.global_step} of {state.max_steps}{', ' if metrics else ''}{metrics}"
        self.progress.end("train", summary)


class LogFile(Callback):
    """Keeps the log on disk while it grows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """What a resumed training has logged up to its checkpoint; what it logged after that comes again."""
        if state.is_world_process_zero:
            write_log(self.folder, state.log_history)

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Add the last line."""
        if state.is_world_process_zero:
            add_to_log(self.folder, state.log_history[-1])


class Clock(Callback):
    """Counts the seconds of a training, those before its checkpoint included."""

    def __init__(self, folder: Path, checkpoint: Path | None) -> None:
        self.folder = folder
        self._before = seconds_of(checkpoint)
        self.start()

    def start(self) -> None:
        """Count from here on."""
        self._began = time.monotonic()

    def seconds(self) -> float:
        """Up to now."""
        return self._before + time.monotonic() - self._began

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Write them into the checkpoint, for who goes on from it."""
        checkpoint_folder = self.folder / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and checkpoint_folder.is_dir():
            keep_seconds(checkpoint_folder, self.seconds())


class StopCleanly(Callback):
    """Ctrl-C finishes the step, saves a checkpoint and stops; a second one stops at once.

    A request to end (SIGTERM) is heard as well: launchers of many processes pass Ctrl-C on like that, and so does a
    cluster that wants its machine back; both wait a while before they kill.
    """

    def __init__(self, note: Callable[[str], None] | None = None) -> None:
        self.asked = False
        self._note = note
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Listen, where Python lets us: signals come to the main thread."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self._note is not None and not self.asked:
            again = "; press again to stop at once" if number == signal.SIGINT else ""
            with contextlib.suppress(RuntimeError):  # the signal came in the midst of another line
                self._note(f"stopping after this step{again}")
        self.asked = True
        if number == signal.SIGINT:
            self._restore(number)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Save and stop, all processes after the same step, where it was asked for and is not the end anyway."""
        self.asked = self.trainer.any_process(self.asked)
        if self.asked and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True

    def restore(self) -> None:
        """Leave the signals to whom they were before."""
        for number in list(self._before):
            self._restore(number)

    def _restore(self, number: int) -> None:
        if number in self._before:
            signal.signal(number, self._before.pop(number))


class Falling(Callback):
    """Warns when chosen completions stay less likely than at the start: the policy learns to avoid, not to prefer.

    The margin grows all the same (likelihood displacement, Razin et al. 2024, arXiv:2410.08847).
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self.note = note
        self._lows = 0
        self._last = 0.0
        self._warned = False

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:  # noqa: ARG002
        """Look at the reward of the chosen completions: below 0 they are less likely than at the start."""
        reward = (logs or {}).get("rewards/chosen")
        if reward is None:
            return
        self._lows = self._lows + 1 if reward < min(0.0, self._last) or (reward < 0 and self._lows) else 0
        self._last = reward
        if self._lows >= _FALLING and not self._warned:
            self._warned = True
            self.note(
                f"the chosen answers have been less likely than at the start for {_FALLING} lines of the log: "
                "`sft_weight: 1` holds them, a smaller learning rate or larger beta helps too"
            )


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or beside it."""
    is_memory_error = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    return is_memory_error or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_MEMORY))


def first_line(error: BaseException) -> str:
    """What an error says first."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


@contextlib.contextmanager
def enough_memory(folder: Path) -> Iterator[None]:
    """Raise UserError for memory that ran out; `folder` is that of the training."""
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        hint = "lower `max_tokens_per_pass`, or set `gradient_checkpointing: true`"
        hint += " (`--resume` goes on with these)" if (folder / "train.json").exists() else ""
        raise UserError("memory ran out", hint=f"{hint}, or start again with `lora.rank`") from error


@contextlib.contextmanager
def room_to_write(folder: Path) -> Iterator[None]:
    """Raise UserError for a training's folder that cannot be written any more."""
    try:
        yield
    except BrokenPipeError:
        raise  # whoever read our lines went away
    except Exception as error:
        if not isinstance(error, OSError) and not any(sign in str(error) for sign in _NOT_WRITTEN):
            raise
        why = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        hint = "free the place; `--resume` goes on from the last checkpoint"
        raise UserError(f"cannot be written any more: {why}", where=folder, hint=hint) from error


_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


_NOT_WRITTEN = ("PytorchStreamWriter", "No space left", "StorageFull", "inline_container")
"""Those that write in Rust and C++ raise errors of their own kinds."""
