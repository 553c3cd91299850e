"""A run of online training: `train_online` builds the networks, takes the steps, and saves model, card and curves."""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from rlaif import __version__
from rlaif.config.yaml import dump_yaml
from rlaif.errors import UserError
from rlaif.inference.chat_template import ChatTemplate
from rlaif.inference.model_folder import load_tokenizer, quiet
from rlaif.progress import Progress, first_process
from rlaif.rl.config import OnlineSettings
from rlaif.rl.experience import Prompts, load_prompts
from rlaif.rl.monitor import Monitoring
from rlaif.rl.networks import policy_of, prompt_sampler_of, reference_of, reward_of, sampler_of, value_of
from rlaif.rl.trainer import (
    Networks,
    OnlineTrainer,
    add_responses,
    load_checkpoint,
    remove_best,
    restore_best,
    save_checkpoint,
    truncate_logs,
)
from rlaif.store import write_text
from rlaif.training.card import base_model, is_adapter, name_of, setting_rows, table, use
from rlaif.training.config import resolved
from rlaif.training.curves import BLUE, GREEN, GREY, ORANGE, Curve, Panel, draw, figure_of, points_of
from rlaif.training.folder import (
    TrainState,
    add_to_log,
    begin,
    finish,
    last_checkpoint,
    locked,
    remove_checkpoints,
    resume_checkpoint,
)
from rlaif.training.loading import Start, cast_files, find_start, merged, positions_of, type_of
from rlaif.training.session import Trained
from rlaif.training.tokenize import TextFormat, ends_of, text_format_of, with_template_options
from rlaif.training.trainer import StopCleanly, enough_memory, narrow, require_reporters, room_to_write, shown_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CARD_SETTINGS = (
    "algorithm", "learning_rate", "kl.beta", "batch_size", "samples", "steps", "epochs", "rollout.temperature", "seed",
)  # fmt: skip
_CARD_METRICS = {
    "reward": "reward",
    "kl": "divergence from the start, nats per response",
    "entropy": "entropy, nats per token",
    "length": "tokens of an answer",
    "truncated": "answers that reached the limit",
    "distinct_2": "distinct pairs of words",
    "held_out/win_rate": "wins against the start, by the held-out judge",
    "held_out/length_controlled": "length-controlled win rate",
    "unscored": "answers without a score, left out",
}
_CURVES = (
    ("kl", "divergence from the start, nats per response", 0.0),
    ("entropy", "entropy, nats per token", None),
    ("distinct_2", "distinct pairs of words", None),
    ("clip_share", "clipped share", 0.0),
    ("value/explained", "variance explained by the values", 0.0),
    ("grad_norm", "gradient norm", None),
)
_CHECKPOINTS = 10


def train_online(settings: OnlineSettings, progress: Progress, *, resume: bool = False) -> Trained:
    """Train a policy on its own responses.

    Raises UserError for what the user can fix, ModelError where the training cannot go on.
    """
    with quiet(), warnings.catch_warnings(), enough_memory(settings.folder):
        warnings.simplefilter("ignore", FutureWarning)  # names that newer versions of transformers have others for
        settings, defaults = resolved(settings, narrow(settings))
        if defaults:
            values = ", ".join(f"{name} {value:g}" for name, value in defaults.items())
            progress.note(f"{values}: the usual, as none is set")
        settings, note = with_template_options(settings, settings.prompts)
        if note:
            progress.note(note)
        require_reporters(settings)
        with locked(settings.folder, resume), contextlib.ExitStack() as stack:
            return _Training(settings, progress, stack).run(resume)


@dataclass
class _Training:
    settings: OnlineSettings
    progress: Progress
    stack: contextlib.ExitStack
    history: list[dict[str, Any]] = field(default_factory=list)

    def run(self, resume: bool) -> Trained:
        settings = self.settings
        start = find_start(settings.model)
        if start.adapter is not None and is_adapter(settings):
            what = "is an adapter, and another one on top of it would have no model to lie on"
            raise UserError(what, where=settings.model, hint="set `lora.merge: true`, or train all weights")
        tokenizer = load_tokenizer(start.tokenizer)
        prompts = self._load_prompts(tokenizer, start)
        template = "chat" if tokenizer.chat_template else "text"
        train_state = TrainState(
            method=settings.method, settings=settings.plain(), data_hash=prompts.hash, model_hash=start.hash(),
            learned=TextFormat(template=template, template_options=settings.template_options),
        )  # fmt: skip
        checkpoint = resume_checkpoint(settings.folder, train_state) if resume else None
        trainer = self._build_trainer(start, tokenizer, prompts)
        # Before anything is written, as the server may be down; `load_checkpoint` sends the weights of a checkpoint.
        if checkpoint is None:
            trainer.networks.sampler.update(0)
        monitoring = self.stack.enter_context(
            Monitoring.opened(settings, prompts.held_out, trainer, self.progress.note)
        )
        state = load_checkpoint(checkpoint, trainer) if checkpoint is not None else None
        begin(settings.folder, train_state)
        stop = StopCleanly(self.progress.note)
        stop.on_train_begin(None, None, None)
        self.stack.callback(stop.restore)
        if settings.report_to:
            trainer.accelerator.init_trackers(settings.folder.resolve().name)
            self.stack.callback(trainer.accelerator.end_training)
        with room_to_write(settings.folder):
            self._train(trainer, monitoring, stop, state)
            return self._save(trainer, monitoring, tokenizer, start, prompts)

    def _load_prompts(self, tokenizer: Any, start: Start) -> Prompts:
        from transformers import AutoConfig

        settings = self.settings
        held_out = settings.held_out.prompts if settings.held_out.every else 0
        context = positions_of(AutoConfig.from_pretrained(start.weights, trust_remote_code=False)) or sys.maxsize
        longest = min(settings.max_prompt, context - 1)  # a response needs room for a token
        prompts = load_prompts(
            settings.prompts,
            tokenizer,
            held_out=held_out,
            longest=longest,
            limit=settings.limit,
            template_options=settings.template_options,
        )
        for note in prompts.notes:
            self.progress.note(note)
        template = ChatTemplate(tokenizer, settings.template_options, ends=ends_of(start.weights))
        if end := template.unknown_end if template.exists else "":
            self.progress.note(
                f"the chat template ends a reply with `{end}`, and the model's texts do not end there: name it as "
                "`eos_token_id` in generation_config.json, or answers go on behind it"
            )
        if template.exists and text_format_of(settings.model).template in ("text", "plain"):
            self.progress.note(f"{settings.model} was trained on texts, and is asked in its chat template")
        step_prompts = settings.batch_size // settings.samples
        if len(prompts.train) < step_prompts:
            what = f"{len(prompts.train)} prompts are too few: a step takes {step_prompts}"
            raise UserError(what, where=settings.prompts, hint="lower `batch_size`, or raise `samples`")
        return prompts

    def _build_trainer(self, start: Start, tokenizer: Any, prompts: Prompts) -> OnlineTrainer:
        settings = self.settings
        accelerator = _accelerator(settings)
        reward = reward_of(settings, tokenizer, self.progress.note)
        self.stack.callback(reward.close)
        policy = policy_of(settings, prompts.train, accelerator, self.progress.note)
        ppo = settings.algorithm == "ppo"
        value = value_of(settings, prompts.train, accelerator, tokenizer, self.progress.note) if ppo else None
        prompt_sampler = prompt_sampler_of(settings, prompts)
        sampler = sampler_of(settings, policy, tokenizer, start, prompt_sampler)
        self.stack.callback(sampler.close)
        networks = Networks(policy, reference_of(settings, policy, accelerator), value, sampler, reward, prompt_sampler)
        return OnlineTrainer(settings, networks, accelerator, settings.kl.beta)

    def _train(
        self, trainer: OnlineTrainer, monitoring: Monitoring, stop: StopCleanly, state: dict[str, Any] | None
    ) -> None:
        settings, folder, first, before = self.settings, self.settings.folder, 0, 0.0
        if state is not None:
            monitoring.restore(state["monitor"])
            first, before = int(state["step"]), float(state["seconds"])
        if first_process():
            self.history = truncate_logs(folder, first)
        self.began = time.monotonic() - before
        self.done, self.ended, self.alarmed = first, False, False
        save_steps = settings.save_steps if settings.save_steps is not None else max(1, settings.steps // _CHECKPOINTS)
        self.progress.begin("train", settings.steps)
        monitoring.begin()
        for number in range(first, settings.steps):
            result = trainer.step(number)
            self.done = number + 1
            line = {"step": self.done, **result.metrics}
            stop_training = monitoring.look(self.done, line)
            self.history.append(line)
            if first_process():
                add_to_log(folder, line)
            trainer.accelerator.log(_last_metrics([line], self.done), step=self.done)
            add_responses(folder, number, result)
            shown = shown_metrics({"reward": line["reward"], "kl": line["kl"]})
            last = self.done == settings.steps
            if last:
                self.progress.end("train", f"{self.done} of {settings.steps}, {shown}")
            else:
                self.progress.advance("train", self.done, shown)
            interrupted = stop.asked = trainer.any_process(stop.asked)
            due = interrupted or (save_steps and self.done % save_steps == 0)
            if due and not last and not stop_training:
                if first_process():
                    extra: dict[str, JsonValue] = {
                        "monitor": monitoring.state(),
                        "seconds": time.monotonic() - self.began,
                    }
                    best, keep = monitoring.best_step, settings.checkpoints_to_keep
                    save_checkpoint(folder, self.done, trainer, extra, best=best, keep=keep)
                trainer.accelerator.wait_for_everyone()
            self.ended, self.alarmed = last or stop_training, stop_training
            if interrupted or stop_training:
                break

    def _save(
        self, trainer: OnlineTrainer, monitoring: Monitoring, tokenizer: Any, start: Start, prompts: Prompts
    ) -> Trained:
        settings, folder, best = self.settings, self.settings.folder, monitoring.best_step
        seconds = {"seconds": round(time.monotonic() - self.began, 2)}
        metrics = _last_metrics(self.history, self.done) | seconds
        if not self.ended or not first_process():
            return Trained(folder, self.done, self.ended, metrics)
        if best is not None and restore_best(folder, best, trainer):
            self.progress.note(
                f"the model is that of step {best}, which the held-out judge likes best; so are its figures"
            )
            metrics = _last_metrics(self.history, best) | seconds | {"best_step": float(best)}
        model = trainer.networks.policy.model
        if settings.lora.rank is not None and settings.lora.merge:
            model = merged(model)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if not is_adapter(settings):
            cast_files(folder, type_of(start.weights))
        draw_curves(self.history, folder / "curves.png")
        report: dict[str, JsonValue] = {**metrics, "steps": self.done, "alarms": [*monitoring.alarms]}
        write_card(settings, prompts, report, chat=bool(tokenizer.chat_template))
        back = last_checkpoint(folder) if self.alarmed else None
        finish(folder, report if back is None else {**report, "stopped": True})
        if back is None:
            remove_checkpoints(folder)
            remove_best(folder)
        else:
            self.progress.note(
                f"{back}, from before the alarm, is kept: the same command with `--resume` goes on from there, and "
                "the KL coefficient, the learning rate, the penalties and `monitor` may be other ones"
            )
        return Trained(folder, self.done, self.ended, metrics)


def _last_metrics(history: Sequence[dict[str, Any]], done: int) -> dict[str, float]:
    """The last value of everything that was logged up to step `done`; nothing where the last one is None."""
    values: dict[str, Any] = {}
    for line in history:
        values |= line if line["step"] <= done else {}
    return {name: float(value) for name, value in values.items() if isinstance(value, (int, float)) and name != "step"}


def _accelerator(settings: OnlineSettings) -> Any:
    """One process or many, in the type that the model computes in. Raises UserError for what does not work here."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs, DistributedType, set_seed

    # The type of an earlier training of this process binds no later one; transformers does the same.
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        # Buffers are constants, and a process without responses makes no forward pass in which to receive them.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        mixed_precision="bf16" if narrow(settings) else "no",
        cpu=settings.device == "cpu",
        log_with=list(settings.report_to) or None,
        project_dir=str(settings.folder),
    )
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        what = "online training needs whole weights in every process, to answer with them"
        raise UserError(
            what, hint="choose neither FSDP nor DeepSpeed in `accelerate config`, and train with `lora.rank`"
        )
    if settings.rollout.base_url is not None and accelerator.num_processes > 1:
        what = "a server that samples follows the weights of one process"
        raise UserError(what, where="rollout.base_url", hint="start the training without `accelerate launch`")
    step_prompts = settings.batch_size // settings.samples
    if step_prompts % accelerator.num_processes:
        what = (
            f"{step_prompts} prompts of a step cannot be shared out evenly among {accelerator.num_processes} processes"
        )
        raise UserError(
            what, where="batch_size", hint=f"set a multiple of {accelerator.num_processes * settings.samples}"
        )
    set_seed(settings.seed)
    return accelerator


def write_card(settings: OnlineSettings, prompts: Prompts, metrics: Mapping[str, JsonValue], chat: bool) -> None:
    """Write README.md into the folder of a training; `chat` says that prompts go through the chat template."""
    adapter, alarms, best = is_adapter(settings), metrics.get("alarms"), metrics.get("best_step")
    front_matter: dict[str, Any] = {
        "base_model": base_model(settings.model),
        **({"base_model_relation": "adapter"} if adapter else {}),
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["rlaif", settings.algorithm, *(["lora"] if adapter else [])],
    }
    best_text = ""
    if isinstance(best, (int, float)):
        best_text = f"The weights, and with them the figures, are those of step {best:.0f}, which the held-out judge "
        best_text += "likes best."
    defaults = OnlineSettings(model="-", output="-", prompts="-", reward="-")
    parts = [
        f"---\n{dump_yaml(front_matter)}---",
        f"# {settings.folder.resolve().name}",
        _card_summary(settings),
        "## Prompts",
        table(_prompt_rows(settings, prompts)),
        "## Settings",
        table(setting_rows(settings, defaults, _CARD_SETTINGS)),
        "Everything else stands at its default. All of it is in `train.json`.",
        "## Figures",
        table(_metric_rows(metrics)),
        best_text,
        *(["## Alarms", "\n".join(f"- {alarm}" for alarm in alarms)] if isinstance(alarms, list) and alarms else []),
        "![curves](curves.png)" if (settings.folder / "curves.png").exists() else "",
        "## Use",
        use(settings.method, settings, chat=chat),
        f"Trained by `rlaif train ppo` ({__version__}).",
    ]
    write_text(settings.folder / "README.md", "\n\n".join(part for part in parts if part) + "\n")


def _card_summary(settings: OnlineSettings) -> str:
    start, base = name_of(settings.model), base_model(settings.model)
    origin = f"`{start}`" if start == base else f"`{start}`, which was made from `{base}`"
    reward = f"the judge `{settings.judge.model}`" if settings.reward == "judge" and settings.judge else "its reward"
    text = f"A language model, trained on its own answers by `{settings.algorithm}` for {reward}."
    text += f" It started from {origin}."
    if settings.lora.rank is not None:
        merge = "added to the weights" if settings.lora.merge else "to be loaded on top of them"
        text += f" What was trained is a LoRA adapter of rank {settings.lora.rank}, {merge}."
    return text


def _prompt_rows(settings: OnlineSettings, prompts: Prompts) -> Iterator[tuple[str, object]]:
    yield "prompts", f"`{name_of(settings.prompts)}`"
    yield "to train on", f"{len(prompts.train):,}"
    if prompts.held_out:
        yield "for the held-out judge", f"{len(prompts.held_out):,}"
    yield "hash of the prompts", f"`{prompts.hash}`"
    if settings.reward == "judge":
        yield "constitution", f"`{name_of(settings.constitution)}`"


def _metric_rows(metrics: Mapping[str, JsonValue]) -> Iterator[tuple[str, object]]:
    for name, description in _CARD_METRICS.items():
        value = metrics.get(name)
        if isinstance(value, (int, float)):
            yield description, f"{value:.4f}"
    yield "steps", metrics.get("steps")
    seconds = metrics.get("seconds")
    if isinstance(seconds, (int, float)):
        yield "seconds", f"{seconds:,.0f}"


def draw_curves(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the log into a PNG; nothing where nothing was logged."""
    draw(list(_panels(history)), path, "step")


def curves_figure(history: Sequence[Mapping[str, Any]], most: int = 4) -> Figure | None:
    """The curves of a log as a figure of `most` panels a row, to be drawn elsewhere; None where nothing was logged."""
    panels = list(_panels(history))
    return figure_of(panels, "step", most) if panels else None


def _panels(history: Sequence[Mapping[str, Any]]) -> Iterator[Panel]:
    yield from _panel(history, "reward", {"reward": BLUE})
    held_out = {"held_out/win_rate": ORANGE, "held_out/length_controlled": GREEN}
    yield from _panel(history, "wins against the start, by the held-out judge", held_out, line=0.5, share=True)
    yield from _panel(history, "tokens of an answer", {"length": BLUE, "length_p95": GREY})
    for name, title, line in _CURVES:
        yield from _panel(history, title, {name: BLUE}, line=line)


def _panel(
    history: Sequence[Mapping[str, Any]], title: str, colors: Mapping[str, str], **options: Any
) -> Iterator[Panel]:
    """The panel of some metrics, given with their colors; none where none of them was logged."""
    curves = [
        Curve(name.rpartition("/")[2].replace("_", " "), color, points, held=name.startswith("held_out"))
        for name, color in colors.items()
        if (points := points_of(history, name))
    ]
    if curves:
        yield Panel(title, curves, **options)
