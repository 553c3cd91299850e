"""Training beside TRL 1.16: the same model, pairs, batches and learning rate; tokens a second, peak memory, losses.

    python tests/bench/training.py [PAIRS]

The peer's script, and the one that makes model and data, lie in ../shared/bench; without them nothing is measured.
Each side is a process of its own. TRL runs with its defaults, and with its best settings for this: the reference
computed beforehand, and no padding.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

PEER = ROOT.parent / "shared" / "bench"
DATA = ROOT.parent / "shared" / "data" / "hh-rlhf-harmless-base-test.jsonl.gz"
PAIRS = 128
BEST: Mapping[str, tuple[dict[str, Any], ...]] = {
    "dpo": ({}, {"precompute_ref_log_probs": True}, {"precompute_ref_log_probs": True, "padding_free": True}),
    "reward": ({},),
}
"""TRL's settings beside its defaults."""


def compared(pairs: int, dtypes: tuple[str, ...] = ("float32", "bfloat16")) -> Iterator[str]:
    """Lines of a table."""
    if not (PEER.is_dir() and DATA.exists()):
        yield f"nothing measured: {PEER} is not there"
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _run([str(PEER / "make_model.py"), str(DATA), str(root), str(pairs)])
        for dtype in dtypes:
            for kind in ("dpo", "reward"):
                yield from _compared(kind, root, dtype)


def _compared(kind: str, root: Path, dtype: str) -> Iterator[str]:
    narrow = {"bf16": True} if dtype == "bfloat16" else {}
    start = root / "start"
    if kind == "reward" and not start.exists():
        _run([__file__, "start", str(root)])
    ours = json.loads(_run([__file__, kind, str(root), dtype]))
    yield f"{kind}, {dtype}: {ours['tok_s']:,.0f} tokens/s, {ours['peak_rss_mb']:,} MB"
    for extra in BEST[kind]:
        peer = json.loads(
            _run([str(PEER / "trl_train.py"), kind, str(_peer_root(kind, root)), json.dumps(extra | narrow)])
        )
        drift = max(abs(one - other) for one, other in zip(ours["losses"], peer["losses"], strict=True))
        yield (
            f"  TRL {extra or 'defaults'}: {peer['tok_s']:,.0f} tokens/s, {peer['peak_rss_mb']:,} MB; "
            f"ours {ours['tok_s'] / peer['tok_s']:.1f} times as fast, "
            f"{ours['peak_rss_mb'] / peer['peak_rss_mb']:.2f} of its memory, losses differ by {drift:.1e}"
        )


def _peer_root(kind: str, root: Path) -> Path:
    """Where the peer finds `model` and `pairs.jsonl`: a reward model starts from the same head on both sides."""
    return root / "start" if kind == "reward" else root


def _run(arguments: list[str]) -> str:
    result = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=os.environ, cwd=ROOT, check=False
    )
    if result.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{result.stderr[-2000:]}")
    return result.stdout.strip().splitlines()[-1] if result.stdout.strip() else ""


def start_reward_model(root: Path) -> None:
    """A classification model with its head, so that both sides start from the same weights."""
    from rlaif.inference.model_folder import load_tokenizer
    from rlaif.training.config import RewardSettings
    from rlaif.training.loading import load_reward_model

    settings = RewardSettings(model=str(root / "model"), data="-", output="-")
    target = root / "start" / "model"
    load_reward_model(settings, pad=0).save_pretrained(target)
    load_tokenizer(root / "model").save_pretrained(target)
    (root / "start" / "pairs.jsonl").write_bytes((root / "pairs.jsonl").read_bytes())


def ours(kind: str, root: Path, dtype: str, tokens: int) -> dict[str, Any]:
    """Train as the peer does; seconds are those of the loop with the reference's pass."""
    from transformers import AutoTokenizer

    from rlaif.progress import show_progress
    from rlaif.training.config import DpoSettings, RewardSettings
    from rlaif.training.session import train

    where = root / "start" if kind == "reward" else root
    out = Path(tempfile.mkdtemp(dir=root))
    given: dict[str, Any] = {
        "model": str(where / "model"), "data": str(root / "pairs.jsonl"), "output": str(out / "model"), "holdout": 0.0,
        "template": "plain", "batch_size": 8, "learning_rate": 1e-5, "schedule": "constant", "warmup": 0.0,
        "save_steps": 0, "dtype": dtype, "device": "cpu", "max_tokens_per_pass": tokens,
    }  # fmt: skip
    with show_progress() as told:
        if kind == "dpo":
            done = train("dpo", DpoSettings(**given, reference_cache=str(out / "cache")), told)
        else:
            done = train("reward", RewardSettings(**given), told)
    tokenizer = AutoTokenizer.from_pretrained(where / "model")
    rows = [json.loads(line) for line in (root / "pairs.jsonl").read_text().splitlines()]
    count = sum(
        len(tokenizer(row["prompt"] + row[side])["input_ids"]) for row in rows for side in ("chosen", "rejected")
    )
    log = [json.loads(line) for line in (out / "model" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in log if "loss" in line]
    seconds = done.metrics["seconds"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"tok_s": count / seconds, "seconds": seconds, "peak_rss_mb": peak, "losses": losses[:3] + losses[-1:]}


def main() -> None:
    """The comparison, or, with more words, one side of it: `start ROOT`, `dpo|reward ROOT DTYPE [TOKENS]`."""
    words = sys.argv[1:]
    if words[:1] == ["start"]:
        start_reward_model(Path(words[1]))
    elif len(words) > 2:
        print(json.dumps(ours(words[0], Path(words[1]), words[2], int(words[3]) if len(words) > 3 else 2048)))
    else:
        for line in compared(int(words[0]) if words else PAIRS):
            print(line, flush=True)


if __name__ == "__main__":
    main()
