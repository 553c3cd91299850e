"""`rlaif init`: a folder to start from."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import click

from rlaif.cli.terminal import echo
from rlaif.errors import UserError
from rlaif.resources import resource

_RUN_FILE = """\
# Run it with:  rlaif check run.yaml;  rlaif preview run.yaml -n 3;  rlaif generate run.yaml
# Every key is also a flag: `rlaif generate --help` explains each.

constitution: constitution.yaml   # yours to edit; `harmless` and others ship with the package
prompts: prompts.jsonl            # JSONL with `prompt` or `messages`, text, CSV, Parquet, or a datasets name

# The model whose answers are judged. With base_url it runs on a server; without, in process.
policy:
  model: demo-policy              # a tiny offline model; for real work a hub name such as Qwen/Qwen3-0.6B
  samples: 4
  temperature: 1.0
  max_tokens: 128

# The judge. A real one on vLLM:  {model: Qwen/Qwen3-8B, base_url: http://127.0.0.1:8000/v1}
# started for the run by rlaif:   {model: Qwen/Qwen3-8B, launch: vllm}
# a hosted one:                   {model: NAME, base_url: https://HOST/v1, api_key_env: JUDGE_KEY}
judge:
  model: demo-judge

compare:
  principles: one                 # one drawn a pair | each, on its own | all, in one question
  orders: both                    # every pair is judged in both orders

pair:
  select: best_worst              # best_worst | all | revised
  margin: 0.05                    # closer to one half than this is a tie
  flips: drop                     # drop | soft

revise:                           # for `rlaif revise`; `enabled: true` does it in `generate` too
  rounds: 2                       # critique and revision, up to 4 times; each round draws its principle
  temperature: 0.3
  max_tokens: 128

output: runs/{name}
"""


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--constitution", default="demo", show_default=True, help="Shipped constitution to start from.")
def init(folder: Path, constitution: str) -> None:
    """Make FOLDER with a run file, a constitution and a few prompts; it runs as it is, on the tiny models."""
    from rlaif.constitution import find_constitution
    from rlaif.constitution.schema import SCHEMA_FILE

    source = find_constitution(constitution)
    prompts = "demo" if constitution == "demo" else "everyday"
    files = {
        "constitution.yaml": source,
        "prompts.jsonl": resource("prompts") / "policy" / f"{prompts}.jsonl",
    }
    for name in ("run.yaml", *files):
        if (folder / name).exists():
            raise UserError("already there", where=folder / name, mend="choose another folder, or move it away")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, path in files.items():
            shutil.copyfile(path, folder / name)
        if not (folder / SCHEMA_FILE).exists():  # for editors: the constitution's first line points to it
            shutil.copyfile(resource("constitutions") / SCHEMA_FILE, folder / SCHEMA_FILE)
        name = re.sub(r"[^\w.-]", "-", folder.resolve().name)
        (folder / "run.yaml").write_text(_RUN_FILE.replace("{name}", name), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write: {error.strerror}", where=folder, mend="choose another folder") from error
    made = "run.yaml, constitution.yaml (with its schema) and prompts.jsonl"
    echo(f"Made {folder}/{made}. Next: rlaif generate {folder}/run.yaml")
