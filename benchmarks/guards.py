"""Which share of a run's steps its guards take: it has to be under 2 %.

    python benchmarks/guards.py [--steps 6] [--threads 1]

SFT (8 rows a step) and GRPO (2 prompts, 4 completions of at most 32 tokens) of SmolLM2-135M, LoRA
r=16 on all linear layers, recorded after every step: the most that guards can be asked. CPU time of
each guard over that of the epoch, in one process: what else runs on the machine changes neither.
Results go to benchmarks/results/guards.json.
"""

import argparse
import os
import tempfile
import time
from collections import defaultdict
from importlib import import_module
from pathlib import Path
from typing import Any

from kept import ROOT, keep

PACKAGES = ("torch", "transformers", "peft", "accelerate")
LIMIT = 0.02

EPOCH = "main.trainer.loop.run:Loop._trained_epoch"
GUARDS = {
    "memory: did every process compute": "main.trainer.loop.step:all_computed",
    "memory: the longest row first": "main.trainer.loop.run:Loop._rehearse",
    "signs: the weights at the start": "main.trainer.loop.watch:Watch.__init__",
    "signs: of every record": "main.trainer.loop.watch:Watch.see",
    "rewards: finite numbers": "main.trainer.rewards.functions:_checked",
    "rewards: one for each completion": "main.trainer.rewards.functions:Rewards._refuse_unscored",
    "completions that were all cut": "main.trainer.grpo.trainer:GRPOTask._warn_if_all_are_cut",
    "Ctrl-C between two steps": "main.trainer.loop.run:Loop._stop_if_asked",
}


def timed(place: str, name: str, seconds: dict[str, float]) -> None:
    """The function at 'module:attributes' adds its CPU time to `seconds[name]` from now on."""
    module, _, path = place.partition(":")
    owner: Any = import_module(module)
    *outer, last = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    function = getattr(owner, last)

    def measured(*args: Any, **kwargs: Any) -> Any:
        began = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[name] += time.process_time() - began

    setattr(owner, last, measured)


def arguments(method: str, steps: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of the constructor and of the call."""
    common = {"num_epochs": 1, "logging_steps": 1, "max_steps": steps, "save_strategy": "no",
              "eval_strategy": "no", "report_to": "none"}  # fmt: skip
    if method == "lora":
        data = {"train": ROOT / "data" / "ticket_en_train.jsonl"}
        return {"data_path": data, "max_length": 256, "batch_size": 8}, common
    group = {"num_generations": 4, "per_device_train_batch_size": 8, "max_completion_length": 32}
    rewarded = {"reward_func": lambda completion_ids, **columns: list(map(len, completion_ids))}
    return {"data_path": "ticket_en_grpo", "max_length": 256}, common | group | rewarded


def shares(method: str, model: Path, steps: int) -> dict[str, Any]:
    """CPU seconds of the steps, and of each guard in them."""
    seconds: dict[str, float] = defaultdict(float)
    for name, place in {"epoch": EPOCH, **GUARDS}.items():
        timed(place, name, seconds)
    setup, call = arguments(method, steps)
    data = {"data_present_path": str(ROOT / "data" / "present.json")}
    trainer = import_module(f"main.trainer.{method}").Trainer(
        from_pretrained=model, lora_r=16, dtype="float32", device="cpu", **(data | setup)
    )
    (result,) = trainer(**call)
    epoch = seconds.pop("epoch")
    found = {name: value / epoch for name, value in seconds.items()}
    return {"steps": result.step, "cpu": epoch, "share": sum(found.values()), "of": found}


def main() -> None:
    """Measure, print and write; fails where guards take more than `LIMIT`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=Path("models/SmolLM2-135M-Instruct"))
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    model, folder = options.model.resolve(), tempfile.mkdtemp()
    os.chdir(folder)
    methods = {method: shares(method, model, options.steps) for method in ("lora", "grpo")}
    result = {
        "model": model.name,
        "threads": options.threads,
        "limit": LIMIT,
        "methods": methods,
    }
    keep(__file__, result, PACKAGES)
    worst = max(found["share"] for found in methods.values())
    if worst > LIMIT:
        raise SystemExit(f"guards take {worst:.1%} of the steps, over {LIMIT:.0%}")


if __name__ == "__main__":
    main()
