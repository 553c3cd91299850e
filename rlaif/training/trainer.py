"""The training loop: transformers' Trainer for schedules, checkpoints, logging and many processes; batches are ours.

An optimizer step takes `batch_size` groups over all processes. Each process cuts its share into parts that fit into
memory (`batches.split`) and adds up their gradients, weighted so that the sum is the gradient of the whole step: the
result depends neither on the memory budget nor on the number of processes. Processes that work on one model meet in
every pass through it, so one with fewer parts than another makes up for it with passes that count for nothing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from rlaif.errors import ModelError, UserError, nearest
from rlaif.training.batches import Batch, lay_out, split
from rlaif.training.config import CommonSettings, TrainSettings, rate_of
from rlaif.training.examples import Group
from rlaif.training.forward import ForwardPath, Kind

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
