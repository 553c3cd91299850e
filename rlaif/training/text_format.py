"""How a model was trained to read texts: by its chat template and with which options, or as texts as they stand.

`train.json` records it, so that the model is prompted and scored as it was trained. What the setting `template: auto`
came to depends on the data, which may not be there any more.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, JsonValue

from rlaif.config.yaml import read_yaml
from rlaif.data.conversations import CUE, Turns, transcript
from rlaif.errors import UserError
from rlaif.records import Record
from rlaif.text import loads
from rlaif.training.config import CommonSettings
from rlaif.training.examples import Example

_OF_RUNS = ("samples.jsonl", "manifest.json")
"""Files that tell the folder of a run from one in which somebody keeps run files beside other data."""

Settings = TypeVar("Settings", bound=CommonSettings)


class TextFormat(Record):
    """What the texts of a training looked like."""

    template: Literal["auto", "chat", "plain", "text"] = "auto"
    """`chat`: conversations in the chat template; `plain`: dialogues as text; `text`: a prompt and its response joined
    as they stand; `auto`: not known."""
    seam: str = ""
    """Of `text`, the blank text that most responses began with."""
    template_options: dict[str, JsonValue] = Field(default_factory=dict)
    """What the chat template was given."""

    def asked(self, template: Literal["auto", "chat", "plain"] | None) -> TextFormat:
        """The same with the form that is asked for, if one is."""
        return self if template is None else self.model_copy(update={"template": template})

    @property
    def reading(self) -> Literal["auto", "chat", "plain"]:
        """How rows of data are read for a model that learned this."""
        return "auto" if self.template == "text" else self.template

    def example(self, name: str, turns: Turns, response: str) -> Example | None:
        """A response in a conversation as the model read such; None where it read nothing like it.

        A model of prompts and responses that were joined as they stand has no form for a conversation of several turns.
        """
        if self.template == "plain":  # the response of such a dialogue follows after a space
            return Example(name, transcript(turns), (f" {response}",), {})
        if self.template != "text":
            return Example(name, turns, (response,), {})
        if len(turns) > 1:
            return None
        seam = "" if response[:1].isspace() or turns[0].content[-1:].isspace() else self.seam
        return Example(name, turns[0].content, (seam + response,), {})


class Forms:
    """Counts the forms of the examples that a training takes."""

    def __init__(self, marks: tuple[str, ...] = ()) -> None:
        """`marks` are the special tokens by which a text is known that a chat template has written already."""
        self._marks = marks
        self._forms: Counter[Literal["chat", "plain", "text"]] = Counter()
        self._seams: Counter[str] = Counter()

    def add(self, example: Example) -> None:
        """Take one in."""
        prompt = example.prompt
        if not isinstance(prompt, str) or any(mark in (prompt or example.completions[0]) for mark in self._marks):
            self._forms["chat"] += 1
        elif prompt.endswith(CUE):
            self._forms["plain"] += 1
        else:
            self._forms["text"] += 1
            reply = example.completions[0]
            self._seams[reply[: len(reply) - len(reply.lstrip())] if prompt else ""] += 1

    def learned(self, template_options: Mapping[str, Any]) -> TextFormat:
        """The form of most of them."""
        if not self._forms:
            return TextFormat()
        ((form, _),) = self._forms.most_common(1)
        seam = self._seams.most_common(1)[0][0] if form == "text" else ""
        return TextFormat(template=form, seam=seam, template_options=dict(template_options))


def text_format_of(folder: str | Path) -> TextFormat:
    """How the model in a folder was trained to read, as far as the folder tells."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        begun: Any = loads((Path(folder).expanduser() / "train.json").read_text(encoding="utf-8"))
        if begun.get("learned") is not None:
            return TextFormat.model_validate(begun["learned"])
        settings = begun["settings"]
        template = settings.get("template", "auto")
        options = settings.get("template_options") or {}
        return TextFormat(template=template, template_options=options)
    return TextFormat()


def run_options(data: str) -> dict[str, JsonValue] | None:
    """What the chat template of a run's policy was given, where `data` is the folder of a run or a file in it."""
    path = Path(data).expanduser()
    folder = path if path.is_dir() else path.parent
    file = folder / "run.yaml"
    made_here = path.is_dir() or any((folder / name).is_file() for name in _OF_RUNS)
    if not path.exists() or not file.is_file() or not made_here:
        return None
    with contextlib.suppress(UserError, OSError, AttributeError, TypeError):
        policy = read_yaml(file).data.get("policy")
        if isinstance(policy, dict):
            return dict(policy.get("template_options") or {})
    return None


def asked_options(
    model: str, given: Mapping[str, JsonValue] | None, of_run: Mapping[str, JsonValue] | None = None
) -> dict[str, JsonValue]:
    """What the chat template of a policy is given: what is set, else as it was trained, else as in the run."""
    if given is not None:
        return dict(given)
    return text_format_of(model).template_options or dict(of_run or {})


def with_template_options(settings: Settings, data: str) -> tuple[Settings, str]:
    """The settings with the chat template's options: those that are set, else those of the run that `data` is of, else
    those that the model was trained with; and what there is to say of that, if anything."""
    given, theirs = "template_options" in settings.model_fields_set, run_options(data)
    if given and theirs and theirs != settings.template_options:
        message = f"the policy of the data was asked with template_options {json.dumps(theirs)}"
        return settings, f"{message}, and is trained with {json.dumps(settings.template_options)}"
    if given:
        return settings, ""
    options, whose = (
        (theirs, "of the run") if theirs else (text_format_of(settings.model).template_options, "of the model")
    )
    if not options:
        return settings, ""
    note = f"template_options {json.dumps(options)}: those {whose}, as none are set"
    return settings.model_copy(update={"template_options": options}), note
