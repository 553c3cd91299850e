"""Rewards in process: a Python function (`module:function`, `path/to/file.py:function`), or a reward model.

A reward model is one of `rlaif train reward`, whole or an adapter, or any model for sequence classification with one
output.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from rlaif.data.conversations import Turn
from rlaif.errors import ModelError, UserError, nearest
from rlaif.inference.chat_template import FAULTS
from rlaif.records import Messages
from rlaif.rl.experience import Reward, Scores
from rlaif.training.examples import Example, RowCounts, Template

if TYPE_CHECKING:
    from rlaif.training.score import Apart

_SHOWN = 300
"""Characters of a user's error that a message repeats."""


class FunctionReward(Reward):
    """The reward of a function, in its own unit: `fn(prompts, responses)` returns a number or None for each response.

    `prompts` is a list with one conversation a response, each a list of `{"role": ..., "content": ...}`; `responses` is
    a list of texts. The result is a list, a tuple, a numpy array or a tensor; None is no score, and True counts
    as 1.
    """

    def __init__(self, name: str) -> None:
        """Import the function. Modules are searched on sys.path and in the working directory; a file may import the
        files beside it.

        Raises UserError where there is no such function, or where importing it fails.
        """
        module, _, function = name.rpartition(":")
        if not module or not function:
            raise UserError(f"no function: `{name}`", hint="write it like `module:function` or `file.py:function`")
        self._name, self._part = name, function
        is_file = module.endswith(".py")
        imported = _import_file(Path(module).expanduser(), name) if is_file else _import_module(module, name)
        self._function = _function(imported, function, name)
        code = getattr(inspect.unwrap(getattr(imported, function)), "__code__", None)
        self._file = str(code.co_filename if code is not None else imported.__file__)
        """As tracebacks name it."""

    def __call__(self, prompts: Sequence[Messages], responses: Sequence[str]) -> Scores:
        """One number a response; the one part is named like the function.

        Raises ModelError, with the function's name, where it raises an error itself or returns anything else.
        """
        dialogues = [[message.model_dump() for message in messages] for messages in prompts]
        try:
            result = self._function(dialogues, list(responses))
        except Exception as error:
            # The error of a user's code, whatever it is, in one line.
            text = f"{type(error).__name__}: {error}"[:_SHOWN]
            raise ModelError(f"reward `{self._name}` raised {text} ({_line(error, self._file)})") from error
        listed = result.tolist() if hasattr(result, "tolist") else result
        if not isinstance(listed, Sequence) or isinstance(listed, (str, bytes)):
            raise self._wrong(f"a {type(result).__name__}, not a list with one number a response")
        if len(listed) != len(responses):
            raise self._wrong(f"{len(listed)} rewards for {len(responses)} responses")
        total = [None if value is None else self._number(at, value) for at, value in enumerate(listed)]
        return Scores(total, {self._part: total})

    def _number(self, at: int, value: Any) -> float:
        if getattr(value, "ndim", None) == 0:  # a number of numpy's, or a tensor of one
            value = value.item()
        try:
            number = float(value) if isinstance(value, Real) else None
        except OverflowError:
            number = math.inf
        if number is None:
            raise self._wrong(f"a {type(value).__name__} as reward {at + 1}, not a number")
        if not math.isfinite(number):
            raise self._wrong(f"{number} as reward {at + 1}; where there is no score it should return None")
        return number

    def _wrong(self, what: str) -> ModelError:
        return ModelError(f"reward `{self._name}` returned {what}")

    def close(self) -> None:
        """Nothing to release."""


def require_function(name: str) -> None:
    """Raise UserError where a file is missing or defines no such function. Nothing is run.

    Modules are not checked, as to find one in a package runs the package.
    """
    file, _, function = name.rpartition(":")
    if not file.endswith(".py"):
        return
    path = Path(file).expanduser()
    _require_file(path)
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError) as error:
        raise UserError(f"cannot be read: {error}", where=path, hint="fix that file") from None
    names = {name for node in ast.walk(tree) for name in _defined(node)}
    if not names & {function, "*", "__getattr__"}:
        suggestion = nearest(function, names)
        hint = suggestion if suggestion.startswith("did you mean") else "define it there"
        raise UserError(f"no function `{function}` in {path}", where=name, hint=hint)


def _defined(node: ast.AST) -> Iterator[str]:
    """The names that a node of a syntax tree binds."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.alias):
        yield node.asname or node.name


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise UserError("there is no such file", where=path, hint="name the file of the reward function")


def _import_file(path: Path, name: str) -> ModuleType:
    _require_file(path)
    path = path.resolve()
    module_name = f"_reward_of_{path.stem}"  # a json.py of the user must not become the `json` of all modules
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their own module up
    _append_to_path(path.parent)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise _import_error(error, name, str(path)) from error
    return module


def _import_module(module: str, name: str) -> ModuleType:
    _append_to_path(Path.cwd())
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = str(error.name)
        if module != missing and not module.startswith(f"{missing}."):
            raise _import_error(error, name) from error
        hint = "install it, go to the folder that it lies in, or name its file like `path/to/file.py:function`"
        raise UserError(f"there is no module `{missing}`", where=name, hint=hint) from None
    except Exception as error:
        raise _import_error(error, name) from error


def _append_to_path(folder: Path) -> None:
    """Search a folder for modules too; after all others, so that it shadows none of those."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _import_error(error: Exception, name: str, file: str = "") -> UserError:
    text = f"{type(error).__name__}: {error}"[:_SHOWN]
    where = "" if isinstance(error, SyntaxError) else f" ({_line(error, file)})"  # whose text has file and line
    return UserError(f"cannot be imported: {text}{where}", where=name, hint="fix that file")


def _line(error: Exception, file: str) -> str:
    """The last line of a file that an error went through; without one, the line that it came from."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")]
    in_file = [frame for frame in frames if frame.filename == file]
    frame = (in_file or frames)[-1]
    return f"{frame.filename}:{frame.lineno}"


def _function(module: ModuleType, function: str, name: str) -> Callable[..., Any]:
    if not hasattr(module, function):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        hint = nearest(function, names) if names else "define it there"
        raise UserError(f"there is no function `{function}`", where=name, hint=hint)
    value = getattr(module, function)
    if not callable(value):
        what = f"`{function}` is a {type(value).__name__}, not a function"
        raise UserError(what, where=name, hint="name a function that takes prompts and responses")
    reward: Callable[..., Any] = value
    return reward


class ModelReward(Reward):
    """The reward of a model for a whole response, in its own unit, less the mean that it was centered on.

    Texts become tokens as in the model's training. The responses to one prompt share its forward pass where the
    model allows it, and equal ones are computed once. A prompt that is too long loses its beginning, as in training; a
    response that is blank, or too long by itself, has no score.
    """

    def __init__(
        self,
        name_or_folder: str | Path,
        device: Literal["auto", "cpu"] = "auto",
        tokens: int = 8192,
        *,
        template: Template | None = None,
    ) -> None:
        """Load the model of a folder or of the hub. `tokens` bounds a forward pass; `template` defaults to that of its
        training (`auto` and `chat`: the chat template; `plain`: dialogues as text).

        Raises UserError where there is no such model, or it cannot read messages.
        """
        from rlaif.training.reward_model import load
        from rlaif.training.score import Apart

        self._name = str(name_or_folder)
        loaded = load(self._name, device)
        self._text_format = loaded.learned.asked(template)
        if self._text_format.template in ("auto", "chat") and not getattr(loaded.tokenizer, "chat_template", None):
            hint = "save a chat_template.jinja in its folder, or take one that was trained with `template: plain`"
            raise UserError(
                "the reward model has no chat template, and prompts are messages", where=self._name, hint=hint
            )
        self._tokens = loaded.tokens()
        self.note = ""
        """A caveat on how it reads conversations."""
        if self._text_format.template == "text" and self._tokens.template.exists:
            self.note = (
                f"{self._name} was trained on texts without its chat template, and is given prompt and response as "
                "such texts: prompts of several turns have no reward"
            )
        self._rewards: Apart | None = Apart(loaded, tokens)

    def __call__(self, prompts: Sequence[Messages], responses: Sequence[str]) -> Scores:
        """One reward a response, None for one that cannot be scored; the one part is called `model`.

        Raises ModelError where a reward is no finite number, or where the chat template refuses all conversations.
        """
        if self._rewards is None:
            raise ModelError(f"the reward model {self._name} was closed")
        row_counts = RowCounts()
        readable = []
        for at, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            if _is_readable(prompt, response):
                turns = tuple(Turn(message.role, message.content) for message in prompt)
                readable.append(self._text_format.example(str(at), turns, response))
        examples = [example for example in readable if example is not None]
        groups = {int(example.id): group for example, group in self._tokens.with_examples(examples, row_counts)}
        if readable and not groups and (why := _unscored_reason(row_counts, examples)):
            raise ModelError(f"{self._name}: no response can be scored: {why}")
        rewards = dict(zip(groups, self._rewards(list(groups.values())), strict=True))
        for at, reward in rewards.items():
            if not math.isfinite(reward):
                raise ModelError(f"{self._name}: the reward of response {at + 1} is {reward}: the model is broken")
        total = [rewards.get(at) for at in range(len(responses))]
        return Scores(total, {"model": total})

    def close(self) -> None:
        """Release the model's memory."""
        import torch

        self._rewards = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _unscored_reason(row_counts: RowCounts, examples: Sequence[Example]) -> str:
    """Why the template can write no conversation; empty for another reason, such as a length."""
    if not examples:
        return "it was trained on single prompts without a chat template, and all prompts have several turns"
    fault = next((row.what for row in row_counts.reasons() if row.reason in FAULTS), "")
    return row_counts.notes[0] if fault and row_counts.notes else fault


def _is_readable(prompt: Messages, response: str) -> bool:
    """Whether the response is not blank, and no text holds half a surrogate pair, which no tokenizer takes."""
    try:
        for text in (response, *(message.content for message in prompt)):
            text.encode()
    except UnicodeEncodeError:
        return False
    return bool(response.strip())
