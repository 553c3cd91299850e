"""The peer's side of `ppo.py`: TRL 1.12's experimental PPO, the last release that had one. Run by its own Python."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Train as `ppo.py` does with ours; prints a line of JSON."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    root, plan = Path(sys.argv[1]), json.loads(sys.argv[2])
    tokenizer = AutoTokenizer.from_pretrained(root / "model", padding_side="left")
    prompts = [json.loads(line)["prompt"] for line in (root / "prompts.jsonl").read_text().splitlines()]
    rows = Dataset.from_list([{"input_ids": tokenizer(text)["input_ids"]} for text in prompts])
    batch = plan["batch"]
    options: dict[str, Any] = {
        "output_dir": str(root / "trl"), "learning_rate": 1e-5, "lr_scheduler_type": "constant", "seed": 0,
        "per_device_train_batch_size": plan["micro"], "gradient_accumulation_steps": batch // plan["micro"],
        "total_episodes": batch * plan["steps"], "num_ppo_epochs": plan["epochs"], "num_mini_batches": 1,
        "response_length": plan["tokens"], "temperature": 1.0, "local_rollout_forward_batch_size": batch,
        "missing_eos_penalty": 1.0, "stop_token": "eos", "num_sample_generations": 0, "report_to": [], "bf16": False,
        "gradient_checkpointing": False, "use_cpu": True, "save_strategy": "no", "kl_coef": 0.05,
    }  # fmt: skip
    policy, reference = (AutoModelForCausalLM.from_pretrained(root / "model") for _ in range(2))
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(root / "reward", num_labels=1) for _ in range(2)
    )
    trainer = PPOTrainer(
        args=PPOConfig(**options), processing_class=tokenizer, model=policy, ref_model=reference, reward_model=reward,
        value_model=value, train_dataset=rows, eval_dataset=rows.select(range(2)),
    )  # fmt: skip
    began = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps({"samples_s": batch * plan["steps"] / seconds, "seconds": seconds, "peak_rss_mb": peak}))


if __name__ == "__main__":
    main()
