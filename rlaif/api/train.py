"""Training and its rewards: `rlaif train` and `rlaif score` as functions."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from rlaif.api.keywords import at_least_one, given, in_python, one_of, plain, progress_of, reading
from rlaif.errors import UserError
from rlaif.text import loads

if TYPE_CHECKING:
    from rlaif.training.config import CommonSettings
    from rlaif.training.examples import Template
    from rlaif.training.session import Trained


@in_python
def train(
    method: Literal["sft", "reward", "dpo", "ppo"],
    file: str | Path | None = None,
    /,
    *,
    resume: bool = False,
    quiet: bool = False,
    **settings: Any,
) -> Trained:
    """Train a model: `rlaif train`.

    `file` is a settings file; keywords are the settings that `rlaif train METHOD --help` lists, groups by the names of
    the flags (`lora_rank=16`) or as mappings (`lora={"rank": 16}`), and override the file's. Ctrl-C saves a
    checkpoint and returns with `finished` false; `resume=True` resumes from there.

    Raises UserError for mistakes, ModelError where the training fails.

        >>> import rlaif
        >>> tuned = rlaif.train(
        ...     "dpo", model="demo-policy", data="runs/notebook", output="models/notebook-dpo",
        ...     beta=0.3, lora={"rank": 8}, learning_rate=2e-3, holdout=0, quiet=True,
        ... )
        >>> tuned.finished, str(tuned.folder)
        (True, 'models/notebook-dpo')
    """
    from rlaif.rl.config import OnlineSettings
    from rlaif.training.config import SETTINGS, TrainSettings, load_settings

    settings_of: list[type[CommonSettings]] = [*SETTINGS.values(), OnlineSettings]
    kinds: dict[str, type[CommonSettings]] = {kind.method: kind for kind in settings_of}
    kind = kinds[one_of(str(method), tuple(kinds), "train()")]
    flags = given(kind, settings, f'train("{method}")', ("resume", "quiet"))
    loaded = load_settings(kind, None if file is None else Path(file), flags)
    with progress_of(quiet) as progress:
        if method == "ppo":
            from rlaif.rl.run import train_online

            return train_online(cast("OnlineSettings", loaded), progress, resume=resume)
        from rlaif.training.session import train as train_on_rows

        return train_on_rows(method, cast("TrainSettings", loaded), progress, resume=resume)


@in_python
def score(
    model: str | Path,
    data: str | Path | Iterable[Mapping[str, Any]],
    *,
    output: str | Path | None = None,
    column: str | None = None,
    prompt_column: str | None = None,
    template: Template | None = None,
    template_options: Mapping[str, Any] | None = None,
    max_length: int | None = None,
    tokens: int = 8192,
    limit: int | None = None,
    center: bool = True,
    device: Literal["auto", "cpu"] = "auto",
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """The rewards of a reward model: `rlaif score`. Its rows, in the order of `data`, with a `reward` in each.

    `data` is a file as for the command, or rows themselves: a prompt with a response, with several, or with `chosen`
    and `rejected`. A row that cannot be scored has None. `output` saves the rows in a file.

    Raises UserError for mistakes, ModelError where a reward is no number.

        >>> import rlaif
        >>> rows = [{"prompt": "How do I boil eggs?", "responses": ["Boil them for eight minutes.", "Who cares?"]}]
        >>> scored = rlaif.score("models/reward", rows, quiet=True)
        >>> [(row["response"], type(row["reward"]).__name__) for row in scored]
        [('Boil them for eight minutes.', 'float'), ('Who cares?', 'float')]
    """
    from rlaif.training.score import Columns
    from rlaif.training.score import score as score_file

    at_least_one(limit=limit)
    one_of(template, ("auto", "chat", "plain", None), "template")
    one_of(device, ("auto", "cpu"), "device")
    with tempfile.TemporaryDirectory(prefix="rlaif-") as folder:
        is_file = isinstance(data, (str, Path))
        source = str(data) if isinstance(data, (str, Path)) else _write_rows(data, Path(folder))
        target = Path(folder) / "rewards.jsonl" if output is None else Path(output)
        try:
            with reading(source if is_file else "data", quiet) as progress:
                score_file(
                    str(model), source, output=target, columns=Columns(column, prompt_column), template=template,
                    template_options=template_options,
                    max_length=max_length, tokens=tokens, limit=limit, centered=center, device=device, on_rows=progress,
                )  # fmt: skip
        except UserError as error:
            where = error.where if is_file or not str(error.where).startswith(folder) else "data"
            raise UserError(error.what, where=where, line=error.line, hint=error.hint) from error
        with target.open(encoding="utf-8") as lines:
            return [loads(line) for line in lines]


def _write_rows(rows: Iterable[object], folder: Path) -> str:
    """Write rows to a JSONL file. Raises UserError on a row that is no mapping, or not JSON."""
    path = folder / "rows.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for at, row in enumerate(rows, start=1):
            if not isinstance(row, Mapping):
                hint = 'for instance [{"prompt": "...", "response": "..."}]'
                raise UserError(f"is no row but {type(row).__name__}", where="data", line=at, hint=hint)
            try:
                file.write(json.dumps(plain(row)) + "\n")
            except (TypeError, ValueError) as error:
                raise UserError(f"cannot stand in JSON ({error})", where="data", line=at) from None
    return str(path)
