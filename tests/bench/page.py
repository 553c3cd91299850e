"""The HTML page of a run of 100,000 pairs: seconds, megabytes, peak memory.

    python tests/bench/page.py [PAIRS [PRINCIPLES]]

Makes a finished run folder with valid, made-up records (four samples a prompt, six comparisons, both orders, two
principles each), then runs `rlaif report` on it as a process of its own. Targets: under 30 s and under 5 MB.
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rlaif.constitution import load_constitution  # noqa: E402
from rlaif.records import Judgement, Message, PreferencePair, Prompt, Ranked, Ranking, Sample, Settled, content_id  # noqa: E402
from rlaif.stats import sigmoid  # noqa: E402
from rlaif.store import sha256_of  # noqa: E402

_WORDS = ["please", "could", "the", "station", "train", "home", "letter", "answer", "kind", "slow", "morning", "river"]
_SAMPLES, _LABELS = 4, 5
"""Samples of a prompt; of its six comparisons five have a label, on average."""


class Maker:
    """Writes a run prompt by prompt."""

    def __init__(self, folder: Path, principles: int, seed: int = 0) -> None:
        self._source = random.Random(seed)
        constitution = load_constitution("demo")
        self._principles = [each.id for each in constitution.principles][:principles]
        self._hash = constitution.hash
        self._files: dict[str, TextIO] = {
            name: (folder / f"{name}.jsonl").open("w")
            for name in ("prompts", "samples", "judgements", "rankings", "pairs", "critiques", "failures")
        }
        self.counts = {"prompts": 0, "samples": 0, "judgements": 0, "pairs": 0}

    def _write(self, name: str, record: Any) -> None:
        self._files[name].write(record.model_dump_json() + "\n")

    def text(self, least: int, most: int) -> str:
        return " ".join(self._source.choices(_WORDS, k=self._source.randint(least, most)))

    def prompt(self, number: int) -> None:
        messages = (Message(role="user", content=f"{number} {self.text(10, 40)}"),)
        prompt = Prompt(id=content_id(number), messages=messages, source=f"made:{number}")
        samples = [
            Sample(id=content_id(number, at), prompt=prompt.id, index=at, text=self.text(5, 120), policy="policy")
            for at in range(_SAMPLES)
        ]
        self._write("prompts", prompt)
        for sample in samples:
            self._write("samples", sample)
        settled = [self._settled(prompt, *pair) for pair in combinations(samples, 2)]
        ranked = tuple(Ranked(sample=each.id, rank=at + 1, strength=1.5 - at) for at, each in enumerate(samples))
        self._write("rankings", Ranking(id=prompt.id, samples=ranked, comparisons=tuple(settled)))
        places = {each.id: at for at, each in enumerate(samples)}
        for each in settled:
            if each.status == "labelled":
                self._pair(prompt, samples, places, each)
        self.counts["prompts"] += 1
        self.counts["samples"] += len(samples)

    def _settled(self, prompt: Prompt, left: Sample, right: Sample) -> Settled:
        ids, logits = [], []
        for principle in self._principles:
            for first, second, sign in ((left, right, 1), (right, left, -1)):
                logit = self._source.gauss(0, 2)
                logits.append(sign * logit)
                ids.append(self._judgement(prompt, first, second, principle, logit))
        logit = math.fsum(logits) / len(logits)
        labelled = self._source.random() < _LABELS / 6
        return Settled(
            left=left.id, right=right.id, status="labelled" if labelled else "tie", probability=sigmoid(logit),
            flip=False, principles=tuple(self._principles), judgements=tuple(ids),
        )  # fmt: skip

    def _judgement(self, prompt: Prompt, first: Sample, second: Sample, principle: str, logit: float) -> str:
        key = content_id(first.id, second.id, principle)
        made = Judgement.model_validate({
            "id": key, "prompt": prompt.id, "first": first.id, "second": second.id, "principle": principle,
            "judge": "judge", "verdict": "first" if logit > 0 else "second", "label_mass": 0.99,
            "logprobs": (math.log(0.99 * sigmoid(logit)), math.log(0.99 * sigmoid(-logit))), "text": "A",
            "prompt_tokens": 300, "completion_tokens": 1,
        })  # fmt: skip
        self._write("judgements", made)
        self.counts["judgements"] += 1
        return key

    def _pair(self, prompt: Prompt, samples: list[Sample], places: dict[str, int], settled: Settled) -> None:
        better, worse = settled.left, settled.right
        probability = settled.probability or 0.5
        if probability < 0.5:
            better, worse, probability = worse, better, 1 - probability
        texts = [samples[places[each]].text for each in (better, worse)]
        self._write("pairs", PreferencePair(
            id=content_id(better, worse), prompt=prompt.messages, probability=probability, raw_probability=probability,
            chosen=(Message(role="assistant", content=texts[0]),), margin=probability - 0.5, flip=False, hard=False,
            rejected=(Message(role="assistant", content=texts[1]),), strengths=(0.5, -0.5), prompt_id=prompt.id,
            ranks=(places[better] + 1, places[worse] + 1), principles=tuple(self._principles), chosen_id=better,
            rejected_id=worse, judgements=settled.judgements, policies=("policy", "policy"), judge="judge",
            constitution="demo",
        ))  # fmt: skip
        self.counts["pairs"] += 1

    def finish(self, folder: Path) -> None:
        for file in self._files.values():
            file.close()
        settings = {
            "constitution": "demo", "prompts": {"path": "prompts.jsonl"}, "judge": {"model": "judge"},
            "pair": {"select": "all"}, "output": str(folder),
        }  # fmt: skip
        (folder / "run.yaml").write_text(json.dumps(settings))  # JSON is YAML
        manifest = {
            "made_by": "rlaif (made up)", "schema": 1, "constitution": {"name": "demo", "hash": self._hash},
            "judge": "judge", "policy": "policy", "settings": settings, "counts": self.counts, "failures": {},
            "principles": {}, "session": {"seconds": 1.0, "stages": {}},
            "files": {name: sha256_of(folder / name) for name in ("prompts.jsonl", "rankings.jsonl", "pairs.jsonl")},
        }  # fmt: skip
        (folder / "manifest.json").write_text(json.dumps(manifest))


def make(folder: Path, pairs: int, principles: int) -> dict[str, int]:
    """A finished run of about so many pairs; returns its counts."""
    maker = Maker(folder, principles)
    for number in _numbers(maker, pairs):
        maker.prompt(number)
    maker.finish(folder)
    return maker.counts


def _numbers(maker: Maker, pairs: int) -> Iterator[int]:
    number = 0
    while maker.counts["pairs"] < pairs:
        yield number
        number += 1


def main() -> None:
    """Measure and print."""
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    principles = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        counts = make(folder, pairs, principles)
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "rlaif", "report", name], cwd=ROOT, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        assert status == 0, "rlaif report failed"
        size, read = (
            (folder / "report.html").stat().st_size,
            sum(path.stat().st_size for path in folder.glob("*.jsonl")),
        )
        told = ", ".join(f"{count:,} {what}" for what, count in counts.items())
        print(f"{told} ({read / 1e6:,.0f} MB)")
        print(f"{seconds:.1f} s, a page of {size / 1e6:.2f} MB, peak memory {usage.ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
