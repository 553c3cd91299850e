"""One online training from start to end: players, steps, what is watched, what is saved."""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import JsonValue

from rlaif.errors import UserError
from rlaif.inference.chat_template import ChatTemplate
from rlaif.inference.folder import load_tokenizer
from rlaif.inference.quiet import quiet
from rlaif.online.card import write_card
from rlaif.online.curves import draw_curves
from rlaif.online.keeping import (
    add_responses,
    cut_back,
    load_checkpoint,
    remove_best,
    save_checkpoint,
    take_best,
)
from rlaif.online.loop import Loop, Players
from rlaif.online.players import dealer_of, policy_of, reference_of, reward_of, sampler_of, value_of
from rlaif.online.prompts import Prompts, load_prompts
from rlaif.online.settings import OnlineSettings
from rlaif.online.watching import Watching
from rlaif.training.arguments import narrow, require_reporters
from rlaif.training.callbacks import StopCleanly, Told
from rlaif.training.defaults import resolved
from rlaif.training.fitting import positions_of
from rlaif.training.folder import (
    Begun,
    add_to_log,
    begin,
    claimed,
    finish,
    first_process,
    going_on,
    last_checkpoint,
    remove_checkpoints,
)
from rlaif.training.learned import Learned, learned_of, with_template_options
from rlaif.training.loading import merged
from rlaif.training.mishaps import enough_memory, room_to_write
from rlaif.training.rewardmodel import ends_of
from rlaif.training.running import Trained
from rlaif.training.saving import cast_files, type_of
from rlaif.training.starts import Start, find_start
from rlaif.training.use import is_adapter

_CHECKPOINTS = 10


def train_online(settings: OnlineSettings, told: Told, *, resume: bool = False) -> Trained:
    """Train a policy on its own answers.

    Raises UserError for what the user can fix, ModelError where the training cannot go on.
    """
    with quiet(), warnings.catch_warnings(), enough_memory(settings.folder):
        warnings.simplefilter("ignore", FutureWarning)  # names that newer versions of transformers have others for
        settings, found = resolved(settings, narrow(settings))
        if found:
            told.note(f"{', '.join(f'{name} {value:g}' for name, value in found.items())}: the usual, as none is set")
        settings, note = with_template_options(settings, settings.prompts)
        if note:
            told.note(note)
        require_reporters(settings)
        with claimed(settings.folder, resume), contextlib.ExitStack() as opened:
            return _Training(settings, told, opened).run(resume)


@dataclass
class _Training:
    settings: OnlineSettings
    told: Told
    opened: contextlib.ExitStack
    history: list[dict[str, Any]] = field(default_factory=list)

    def run(self, resume: bool) -> Trained:
        settings = self.settings
        start = find_start(settings.model)
        if start.adapter is not None and is_adapter(settings):
            what = "is an adapter, and another one on top of it would have no model to lie on"
            raise UserError(what, where=settings.model, mend="set `lora.merge: true`, or train all weights")
        tokenizer = load_tokenizer(start.tokenizer)
        prompts = self._prompts(tokenizer, start)
        learned = Learned(
            template="chat" if tokenizer.chat_template else "text", template_options=settings.template_options
        )
        begun = Begun(
            method=settings.method, settings=settings.plain(), data_hash=prompts.hash, model_hash=start.hash(),
            learned=learned,
        )  # fmt: skip
        checkpoint = going_on(settings.folder, begun) if resume else None
        loop = self._loop(start, tokenizer, prompts)
        if checkpoint is None:  # whose weights go there below; before a word is written, as the server may not be there
            loop.players.sampler.update(0)
        watching = self.opened.enter_context(Watching.opened(settings, prompts.held, loop, self.told.note))
        state = load_checkpoint(checkpoint, loop) if checkpoint is not None else None
        begin(settings.folder, begun)
        stop = StopCleanly(self.told.note)
        stop.on_train_begin(None, None, None)
        self.opened.callback(stop.restore)
        if settings.report_to:
            loop.accelerator.init_trackers(settings.folder.resolve().name)
            self.opened.callback(loop.accelerator.end_training)
        with room_to_write(settings.folder):
            self._steps(loop, watching, stop, state)
            return self._saved(loop, watching, tokenizer, start, prompts)

    def _prompts(self, tokenizer: Any, start: Start) -> Prompts:
        from transformers import AutoConfig

        settings = self.settings
        held = settings.held_out.prompts if settings.held_out.every else 0
        context = positions_of(AutoConfig.from_pretrained(start.weights, trust_remote_code=False)) or sys.maxsize
        longest = min(settings.max_prompt, context - 1)  # an answer needs room for a token
        prompts = load_prompts(
            settings.prompts,
            tokenizer,
            held=held,
            longest=longest,
            limit=settings.limit,
            template_options=settings.template_options,
        )
        for line in prompts.notes:
            self.told.note(line)
        template = ChatTemplate(tokenizer, settings.template_options, ends=ends_of(start.weights))
        if end := template.unknown_end if template.exists else "":
            self.told.note(
                f"the chat template ends a reply with `{end}`, and the model's texts do not end there: name it as "
                "`eos_token_id` in generation_config.json, or answers go on behind it"
            )
        if template.exists and learned_of(settings.model).template in ("text", "plain"):
            self.told.note(f"{settings.model} was trained on texts, and is asked in its chat template")
        wanted = settings.batch_size // settings.samples
        if len(prompts.train) < wanted:
            what = f"{len(prompts.train)} prompts are too few: a step takes {wanted}"
            raise UserError(what, where=settings.prompts, mend="lower `batch_size`, or raise `samples`")
        return prompts

    def _loop(self, start: Start, tokenizer: Any, prompts: Prompts) -> Loop:
        settings = self.settings
        accelerator = _accelerator(settings)
        reward = reward_of(settings, tokenizer, self.told.note)
        self.opened.callback(reward.close)
        policy = policy_of(settings, prompts.train, accelerator, self.told.note)
        ppo = settings.algorithm == "ppo"
        value = value_of(settings, prompts.train, accelerator, tokenizer, self.told.note) if ppo else None
        dealer = dealer_of(settings, prompts)
        sampler = sampler_of(settings, policy, tokenizer, start, dealer)
        self.opened.callback(sampler.close)
        players = Players(policy, reference_of(settings, policy, accelerator), value, sampler, reward, dealer)
        return Loop(settings, players, accelerator, settings.kl.beta)

    def _steps(self, loop: Loop, watching: Watching, stop: StopCleanly, state: dict[str, Any] | None) -> None:
        settings, first, before = self.settings, 0, 0.0
        if state is not None:
            watching.restore(state["watch"])
            first, before = int(state["step"]), float(state["seconds"])
        if first_process():
            self.history = cut_back(settings.folder, first)
        self.began = time.monotonic() - before
        self.done, self.ended, self.alarmed = first, False, False
        often = settings.save_steps if settings.save_steps is not None else max(1, settings.steps // _CHECKPOINTS)
        self.told.begin("train", settings.steps)
        watching.begin()
        for number in range(first, settings.steps):
            found = loop.step(number)
            self.done = number + 1
            line = {"step": self.done, **found.figures}
            ended = watching.look(self.done, line)
            self._log(line)
            loop.accelerator.log(_figures([line], self.done), step=self.done)
            add_responses(settings.folder, number, found)
            self.told.progress("train", self.done, {"reward": line["reward"], "kl": line["kl"]})
            asked = loop.any_process(stop.asked)
            stop.asked = asked
            last = self.done == settings.steps
            if (asked or (often and self.done % often == 0)) and not last and not ended:
                self._checkpoint(loop, watching)
            self.ended, self.alarmed = last or ended, ended
            if asked or ended:
                break

    def _log(self, line: dict[str, Any]) -> None:
        self.history.append(line)
        if first_process():
            add_to_log(self.settings.folder, line)

    def _checkpoint(self, loop: Loop, watching: Watching) -> None:
        if first_process():
            more: dict[str, JsonValue] = {"watch": watching.state(), "seconds": time.monotonic() - self.began}
            best, keep = watching.kept_best, self.settings.keep
            save_checkpoint(self.settings.folder, self.done, loop, more, best=best, keep=keep)
        loop.accelerator.wait_for_everyone()

    def _saved(self, loop: Loop, watching: Watching, tokenizer: Any, start: Start, prompts: Prompts) -> Trained:
        settings, folder, best = self.settings, self.settings.folder, watching.kept_best
        seconds = {"seconds": round(time.monotonic() - self.began, 2)}
        if not self.ended or not first_process():
            return Trained(folder, self.done, self.ended, _figures(self.history, self.done) | seconds)
        if best is not None and take_best(folder, best, loop):
            self.told.note(f"the model is that of step {best}, which the held-out judge likes best; so are its figures")
            figures = _figures(self.history, best) | seconds | {"best_step": float(best)}
        else:
            figures = _figures(self.history, self.done) | seconds
        model = loop.players.policy.model
        if settings.lora.rank is not None and settings.lora.merge:
            model = merged(model)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if not is_adapter(settings):
            cast_files(folder, type_of(start.weights))
        draw_curves(self.history, folder / "curves.png")
        metrics: dict[str, JsonValue] = {**figures, "steps": self.done, "alarms": watching.told()}
        write_card(settings, prompts, metrics, chat=bool(tokenizer.chat_template))
        back = last_checkpoint(folder) if self.alarmed else None
        finish(folder, metrics if back is None else {**metrics, "stopped": True})
        if back is None:
            remove_checkpoints(folder)
            remove_best(folder)
        else:
            self.told.note(
                f"{back}, from before the alarm, is kept: the same command with `--resume` goes on from there, and "
                "the price of KL, the learning rate, penalties and `watch` may be other ones"
            )
        return Trained(folder, self.done, self.ended, figures)


def _figures(history: Sequence[dict[str, Any]], done: int) -> dict[str, float]:
    """The last value of everything that was logged up to step `done`; nothing where the last one is None."""
    found: dict[str, Any] = {}
    for line in (each for each in history if each["step"] <= done):
        found |= line
    return {name: float(value) for name, value in found.items() if isinstance(value, (int, float)) and name != "step"}


def _accelerator(settings: OnlineSettings) -> Any:
    """One process or many, in the type that the model computes in. Raises UserError for what does not work here."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs, DistributedType, set_seed

    # What an earlier training of this Python process computed in binds no later one; transformers does so as well.
    AcceleratorState._reset_state()
    made = Accelerator(
        # Buffers are constants; and a process without answers makes no pass in which to take them over from another.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        mixed_precision="bf16" if narrow(settings) else "no",
        cpu=settings.device == "cpu",
        log_with=list(settings.report_to) or None,
        project_dir=str(settings.folder),
    )
    if made.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        what = "online training needs whole weights in every process, to answer with them"
        raise UserError(
            what, mend="choose neither FSDP nor DeepSpeed in `accelerate config`, and train with `lora.rank`"
        )
    if settings.rollout.base_url is not None and made.num_processes > 1:
        what = "a server that samples follows the weights of one process"
        raise UserError(what, where="rollout.base_url", mend="start the training without `accelerate launch`")
    wanted = settings.batch_size // settings.samples
    if wanted % made.num_processes:
        what = f"{wanted} prompts of a step cannot be shared out evenly among {made.num_processes} processes"
        raise UserError(what, where="batch_size", mend=f"set a multiple of {made.num_processes * settings.samples}")
    set_seed(settings.seed)
    return made
