"""A dataset folder with its card, and its way to the hub.

The card of an exported dataset, the README.md that the hub shows: what made the labels, and what is odd in them.

A dataset folder out of one file of preference data: the rows, and a card that says where they come from.

A dataset folder to the Hugging Face hub, by its own client and with its own token (`hf auth login`, or HF_TOKEN).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from rlaif import __version__
from rlaif.config.judge_templates import PLAIN
from rlaif.config.judge_templates import Form as JudgeForm
from rlaif.config.yaml import dump_yaml
from rlaif.data.doctor import examine
from rlaif.data.export import Exported, FileKind, Form, draft_folder, export_rows
from rlaif.data.findings import Report
from rlaif.errors import ModelError, UserError
from rlaif.inference.transport import hub_client
from rlaif.store import write_text
from rlaif.text import loads

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_USES = {
    "trl": "TRL's DPOTrainer and RewardTrainer take the rows as they are. They read `prompt`, `chosen` and `rejected`.",
    "openrlhf": "For OpenRLHF, with `--data.apply_chat_template`; `chosen` and `rejected` are its default keys.",
    "kto": "One reply a row, for KTO: TRL's KTOTrainer takes the rows as they are.",
}
_COUNTS = (
    ("prompts", "prompts"), ("samples", "replies drawn"), ("judgements", "judge calls"),
    ("judgements_unparsed", "judge calls without a verdict"), ("judgements_low_mass", "judge calls off the menu"),
    ("comparisons_labelled", "comparisons with a label"), ("comparisons_tie", "ties"),
    ("comparisons_flipped", "comparisons whose two orders disagreed"), ("pairs", "pairs"),
)  # fmt: skip
Manifest = Mapping[str, Any]


def manifest_of(source: str | Path) -> Manifest | None:
    """The manifest of the run that made a pairs file, None where there is none or the file has changed since."""
    file = Path(source)
    beside = file.parent / "manifest.json"
    pairs = file.with_name("pairs.jsonl")
    if file.stem != "pairs" or not (beside.is_file() and pairs.is_file()):
        return None
    try:
        manifest = loads(beside.read_text(encoding="utf-8"))
        known = manifest["files"]["pairs.jsonl"]
    except (ValueError, KeyError, TypeError):
        return None
    with pairs.open("rb") as content:
        same = hashlib.file_digest(content, "sha256").hexdigest() == known
    return manifest if same else None


def card(report: Report, exported: Exported, manifest: Manifest | None, form: Form, kind: FileKind, name: str) -> str:
    """The card of a dataset that was made of the file in `report`."""
    parts = [_head(exported, form, kind, name), f"# {name}", _USES[form], _rows(exported, form)]
    if manifest is not None:
        parts += [_announced(manifest), "## How the labels were made", _provenance(manifest), _counts(manifest)]
    parts += ["## What was measured", "\n".join(_measured(report)), _about(manifest)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(exported: Exported, form: Form, kind: FileKind, name: str) -> str:

    total = sum(exported.rows.values())
    size = next((label for most, label in _SIZES if total < most), "n>1M")
    files = [{"split": split, "path": f"{split}.{kind}"} for split, rows in exported.rows.items() if rows]
    head = {
        "pretty_name": name,
        "license": "unknown",
        "tags": [
            "preference",
            "kto" if form == "kto" else "dpo",
            "rlaif",
            *([] if form == "kto" else ["reward-model"]),
        ],
        "size_categories": [size],
        "configs": [{"config_name": "default", "data_files": files}],
    }
    text = dump_yaml(head)
    return f"---\n# Put your licence here before you publish.\n{text}---"


def _rows(exported: Exported, form: Form) -> str:
    told = ", ".join(f"{rows:,} {split}" for split, rows in exported.rows.items() if rows)
    text = f"Rows: {told}."
    if exported.rows["test"]:
        text += " The split is by prompt: no prompt stands in both."
    if exported.left_out:
        left = ", ".join(f"{count:,} {rule}" for rule, count in exported.left_out.most_common())
        text += f" Left out of the source: {left}."
    if form != "kto":
        text += (
            "\n\n`probability`, where there is one, is the judge's probability that `chosen` is better, `label_margin`"
            " how far it is above one half. Trainers do not read them. (A column `margin` would be read as a margin of"
            " rewards, which is another scale.)"
        )
    return text


def _announced(manifest: Manifest) -> str:
    """What the run itself says against its labels, before anything else."""
    found = manifest.get("warnings")
    return "\n\n".join(f"> **Warning:** {_cell(each)}." for each in found) if isinstance(found, list) else ""


def _provenance(manifest: Manifest) -> str:
    constitution = manifest.get("constitution") or {}
    settings = manifest.get("settings") or {}
    compare = settings.get("compare") or {}
    rows = [
        ("constitution", f"{constitution.get('name')}, hash `{constitution.get('hash')}`"),
        ("judge", f"`{manifest.get('judge')}`"),
        ("policy", f"`{manifest.get('policy')}`"),
        ("principles a pair", compare.get("principles")),
        ("orders", compare.get("orders")),
        *_asking(manifest),
        ("made by", manifest.get("made_by")),
        *_templates(manifest.get("templates") or {}, compare),
    ]
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows)


def _asking(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """How the judges were asked, where it was not in the plain form."""
    asking = manifest.get("asking")
    asking = asking if isinstance(asking, dict) else {}
    for judge, told in asking.items():
        with contextlib.suppress(ValidationError):
            form = JudgeForm.model_validate(told)
            if form != PLAIN:
                yield ("asked with" if len(asking) == 1 else f"`{judge}` asked with"), str(form)


def _templates(hashes: Mapping[str, str], compare: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The hashes, as the run noted them, of the judge templates behind the labels."""
    pairwise = "compare_reasoned" if compare.get("reasoning") == "reply" else "compare"
    names = {"score": ("score",), "rank": ("rank",), "tournament": ("score", pairwise)}.get(
        str(compare.get("method")), ("compare_critiqued", "critique") if compare.get("critique") else (pairwise,)
    )
    for name in names:
        if name in hashes:
            yield f"template `{name}.txt`", f"sha256 `{hashes[name]}`"


def _counts(manifest: Manifest) -> str:
    counts = manifest.get("counts") or {}
    rows = [(label, counts[name]) for name, label in _COUNTS if isinstance(counts.get(name), int)]
    rows += [(f"failed: {reason}", count) for reason, count in (manifest.get("failures") or {}).items()]
    return "| | |\n|---|---|\n" + "\n".join(f"| {_cell(label)} | {count:,} |" for label, count in rows) if rows else ""


def _measured(report: Report) -> Iterator[str]:
    """Known biases and defects of the source file, as the doctor found them."""
    if (lengths := report.lengths) is not None:
        longer = (
            "" if lengths.chosen_longer is None else f"chosen is longer in {lengths.chosen_longer:.1%} of the pairs; "
        )
        effect = "" if lengths.effect_size is None else f"Cohen's d of log length {lengths.effect_size:+.2f}; "
        yield f"- Length: {longer}{effect}length alone as a reward has AUC {lengths.auc:.3f}."
    if (labels := report.labels) is not None and labels.entropy is not None:
        yield f"- Soft labels: mean entropy {labels.entropy:.2f} bits, {labels.certain or 0:.1%} exactly 0 or 1."
    if labels is not None and labels.desirable is not None:
        yield f"- Desirable replies: {labels.desirable:.1%}."
    if (refusals := report.refusals) is not None:
        shares = f"{refusals.chosen:.1%} of the chosen, {refusals.rejected:.1%} of the rejected replies"
        yield f"- Open as refusals in English: {shares}."
    for finding in report.findings:
        often = f"{finding.count:,} of {report.rows:,} rows: " if finding.lines else ""
        yield f"- {finding.level}, `{finding.rule}`: {often}{finding.what}."


def _about(manifest: Manifest | None) -> str:
    text = f"Measured on the source file by `rlaif data check`, exported by `rlaif data export` ({__version__})."
    return text if manifest is None else f"{text} The labels are a model's judgement, not people's."


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


class Dataset(NamedTuple):
    """What was made."""

    folder: Path
    exported: Exported
    report: Report
    """The doctor's on the source file."""


def make_dataset(
    source: str | Path,
    folder: Path,
    form: Form,
    *,
    kind: FileKind = "parquet",
    margin: float = 0.0,
    split: float = 0.0,
    name: str | None = None,
    told: Callable[[int], None] | None = None,
) -> Dataset:
    """Write `train`, perhaps `test`, and README.md into `folder`: all of them or nothing.

    The source is read twice: by the doctor, whose figures go into the card, and to write the rows. `name` is the title
    of the card. Raises UserError where there is nothing to export, or `folder` is not empty.
    """
    with draft_folder(folder) as draft:
        report = examine(source, told=told)
        soft = report.labels is not None and report.labels.entropy is not None
        exported = export_rows(source, draft, form, soft=soft, kind=kind, margin=margin, split=split, told=told)
        title = name or folder.resolve().name
        write_text(draft / "README.md", card(report, exported, manifest_of(source), form, kind, title))
    return Dataset(folder, exported, report)


def push(folder: Path, name: str, *, public: bool = False) -> str:
    """Upload `folder` to the dataset `name` (owner/name), which is made if need be, private unless `public`.

    Returns its address. Raises UserError where the hub refuses, ModelError where it cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    api = HfApi()
    try:
        with hub_client():
            address = api.create_repo(name, repo_type="dataset", private=not public, exist_ok=True)
            api.upload_folder(repo_id=name, folder_path=folder, repo_type="dataset", commit_message="Upload by rlaif")
    except HFValidationError as error:
        raise UserError(f"no name of a dataset: {_first_line(error)}", where=name, hint="write owner/name") from None
    except OfflineModeIsEnabled:
        raise UserError("HF_HUB_OFFLINE is set", where=name, hint="unset it to push") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status is not None and status >= 500:
            raise ModelError(f"{name}: the hub failed ({_first_line(error)}); push again later") from None
        hint = "log in with `hf auth login`, or set HF_TOKEN to a token that may write there"
        raise UserError(f"the hub refuses ({_first_line(error)})", where=name, hint=hint) from None
    except _transport_errors() as error:
        raise ModelError(f"{name}: the hub cannot be reached ({_first_line(error)}); push again later") from None
    return str(address)


def _transport_errors() -> tuple[type[Exception], ...]:
    """What the hub's client raises where the network fails: errors of httpx, or of httpx2 in its newer versions."""
    errors: list[type[Exception]] = [OSError]
    for name in ("httpx", "httpx2"):
        with contextlib.suppress(ImportError):
            errors.append(importlib.import_module(name).HTTPError)
    return tuple(errors)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
