"""A Python function, or a reward model, as the reward.

A Python function as the reward: `module:function`, or `path/to/file.py:function`.

A reward model as the reward: ours, an adapter, or anybody's for sequence classification with one output.
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
from rlaif.rl.responses import Reward, Scores
from rlaif.training.dataset_report import RowCounts
from rlaif.training.examples import Example, Template

if TYPE_CHECKING:
    from rlaif.training.score import Apart

_SHOWN = 300
"""Characters of a user's error that a message repeats."""


class FunctionReward(Reward):
    """What a function says, in its own unit: `fn(prompts, responses)` returns one number or None for each response.

    `prompts` is a list with one conversation a response, each a list of `{"role": ..., "content": ...}`; `responses` is
    a list of texts. What is returned is a list, a tuple, a numpy array or a tensor; None is no score, and True counts
    as 1.
    """

    def __init__(self, name: str) -> None:
        """Import it. A module is looked for where Python looks, and in the working directory; a file may import what
        lies beside it.

        Raises UserError where there is no such function, or where importing it fails.
        """
        module, _, function = name.rpartition(":")
        if not module or not function:
            raise UserError(f"no function: `{name}`", hint="write it like `module:function` or `file.py:function`")
        self._name, self._part = name, function
        found = _of_file(Path(module).expanduser(), name) if module.endswith(".py") else _of_name(module, name)
        self._function, self._file = _function(found, function, name), _file_of(found, function)

    def __call__(self, prompts: Sequence[Messages], responses: Sequence[str]) -> Scores:
        """One number a response; the one part is called like the function.

        Raises ModelError, with the function's name, where it raises an error itself or returns anything else.
        """
        talks = [[message.model_dump() for message in messages] for messages in prompts]
        try:
            result = self._function(talks, list(responses))
        except Exception as error:
            # Whatever goes wrong in a user's code is the user's to see, in one line.
            said = f"{type(error).__name__}: {error}"[:_SHOWN]
            raise ModelError(f"reward `{self._name}` raised {said} ({_line(error, self._file)})") from error
        total = self._numbers(result, len(responses))
        return Scores(total, {self._part: total})

    def _numbers(self, result: Any, count: int) -> list[float | None]:
        listed = result.tolist() if hasattr(result, "tolist") else result
        if not isinstance(listed, Sequence) or isinstance(listed, (str, bytes)):
            raise self._wrong(f"a {type(result).__name__}, not a list with one number a response")
        if len(listed) != count:
            raise self._wrong(f"{len(listed)} rewards for {count} responses")
        return [None if each is None else self._number(at, each) for at, each in enumerate(listed)]

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
        """Nothing to let go of."""


def require_function(name: str) -> None:
    """Raise UserError where a file is not there or defines no such function. Nothing is run.

    Of a module nothing is told, for to find one in a package runs it.
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
    known = {each for node in ast.walk(tree) for each in _defined(node)}
    if not known & {function, "*", "__getattr__"}:
        meant = nearest(function, known)
        hint = meant if meant.startswith("did you mean") else "define it there"
        raise UserError(f"no function `{function}` in {path}", where=name, hint=hint)


def _defined(node: ast.AST) -> Iterator[str]:
    """The names that a piece of code gives to something."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.alias):
        yield node.asname or node.name


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise UserError("there is no such file", where=path, hint="name the file of the reward function")


def _of_file(path: Path, name: str) -> ModuleType:
    _require_file(path)
    path = path.resolve()
    called = f"_reward_of_{path.stem}"  # of its own: a json.py of the user's must not become everybody's `json`
    spec = importlib.util.spec_from_file_location(called, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[called] = module  # dataclasses look their own module up
    _look_in(path.parent)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise _broken(error, name, str(path)) from error
    return module


def _of_name(module: str, name: str) -> ModuleType:
    _look_in(Path.cwd())
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = str(error.name)
        if module != missing and not module.startswith(f"{missing}."):
            raise _broken(error, name) from error
        hint = "install it, go to the folder that it lies in, or name its file like `path/to/file.py:function`"
        raise UserError(f"there is no module `{missing}`", where=name, hint=hint) from None
    except Exception as error:
        raise _broken(error, name) from error


def _look_in(folder: Path) -> None:
    """Let modules be found in a folder too; behind all others, so that none of those changes."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _broken(error: Exception, name: str, file: str = "") -> UserError:
    said = f"{type(error).__name__}: {error}"[:_SHOWN]
    where = "" if isinstance(error, SyntaxError) else f" ({_line(error, file)})"  # which names file and line itself
    return UserError(f"cannot be imported: {said}{where}", where=name, hint="fix that file")


def _line(error: Exception, file: str) -> str:
    """The last line of a file that an error went through; without one, the line that it came from."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")]
    own = [frame for frame in frames if frame.filename == file]
    frame = (own or frames)[-1]
    return f"{frame.filename}:{frame.lineno}"


def _function(module: ModuleType, function: str, name: str) -> Callable[..., Any]:
    if not hasattr(module, function):
        known = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        hint = nearest(function, known) if known else "define it there"
        raise UserError(f"there is no function `{function}`", where=name, hint=hint)
    found = getattr(module, function)
    if not callable(found):
        what = f"`{function}` is a {type(found).__name__}, not a function"
        raise UserError(what, where=name, hint="name a function that takes prompts and responses")
    called: Callable[..., Any] = found
    return called


def _file_of(module: ModuleType, function: str) -> str:
    """The file that a function is written in, as tracebacks name it."""
    code = getattr(inspect.unwrap(getattr(module, function)), "__code__", None)
    return str(code.co_filename if code is not None else module.__file__)


class ModelReward(Reward):
    """The reward of a model for a whole answer, in the model's own unit; the mean it was centred on is taken off.

    Texts become tokens as in the model's training. The answers to one prompt share its computation where the model
    allows it, and equal ones are computed once. A prompt that is too long loses its beginning, as in training; an
    answer that is blank, or too long by itself, has no score.
    """

    def __init__(
        self,
        name_or_folder: str | Path,
        device: Literal["auto", "cpu"] = "auto",
        tokens: int = 8192,
        *,
        template: Template | None = None,
    ) -> None:
        """Load the model of a folder or of the hub. `tokens` is what fits into memory at once; `template` is that of
        its training unless it is given (`auto` and `chat`: the chat template; `plain`: dialogues as text).

        Raises UserError for a model that is none, or that cannot read messages.
        """
        from rlaif.training.reward_model import load
        from rlaif.training.score import Apart

        self._name = str(name_or_folder)
        loaded = load(self._name, device)
        self._learned = loaded.learned.asked(template)
        if self._learned.template in ("auto", "chat") and not getattr(loaded.tokenizer, "chat_template", None):
            hint = "save a chat_template.jinja in its folder, or take one that was trained with `template: plain`"
            raise UserError(
                "the reward model has no chat template, and prompts are messages", where=self._name, hint=hint
            )
        self._limits = loaded.tokens()
        self.note = ""
        """What there is to know of how it reads conversations."""
        if self._learned.template == "text" and self._limits.template.exists:
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
        pairs = enumerate(zip(prompts, responses, strict=True))
        readable = [self._example(at, *pair) for at, pair in pairs if _can_be_read(*pair)]
        examples = [example for example in readable if example is not None]
        groups = {int(example.id): group for example, group in self._limits.with_examples(examples, row_counts)}
        if readable and not groups and (why := _refused(row_counts, examples)):
            raise ModelError(f"{self._name}: no response can be scored: {why}")
        rewards = dict(zip(groups, self._rewards(list(groups.values())), strict=True))
        for at, reward in rewards.items():
            if not math.isfinite(reward):
                raise ModelError(f"{self._name}: the reward of response {at + 1} is {reward}: the model is broken")
        total = [rewards.get(at) for at in range(len(responses))]
        return Scores(total, {"model": total})

    def _example(self, at: int, prompt: Messages, response: str) -> Example | None:
        turns = tuple(Turn(message.role, message.content) for message in prompt)
        return self._learned.example(str(at), turns, response)

    def close(self) -> None:
        """Let go of the model's memory."""
        import torch

        self._rewards = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _refused(row_counts: RowCounts, examples: Sequence[Example]) -> str:
    """What keeps every conversation from being written; empty where it is another reason, such as a length."""
    if not examples:
        return "it was trained on single prompts without a chat template, and all prompts have several turns"
    found = next((each.what for each in row_counts.reasons() if each.reason in FAULTS), "")
    return row_counts.notes[0] if found and row_counts.notes else found


def _can_be_read(prompt: Messages, response: str) -> bool:
    """Whether the answer says something, and no text holds half a surrogate pair, which no tokenizer takes."""
    try:
        for text in (response, *(message.content for message in prompt)):
            text.encode()
    except UnicodeEncodeError:
        return False
    return bool(response.strip())
