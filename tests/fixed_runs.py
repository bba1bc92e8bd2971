"""One fixed run of every trainer, to the bit: whether a change leaves the numbers alone.

    python tests/fixed_runs.py > before.json     # then the change, and on the same machine
    python tests/fixed_runs.py | diff before.json -

Floats are printed as hexadecimal; the digest is of the tensors of the last checkpoint, by name.
"""

import contextlib
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import four_trainers
import torch
from safetensors.torch import load_file
from tiny_llama import save_tiny_llama

from main.trainer.loop.throughput import MEASURED

SMALL_MODEL = Path(__file__).resolve().parent.parent / "models" / "SmolLM2-135M-Instruct"
VARYING = MEASURED
OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {"gradient_accumulation_steps": 2, "warmup_ratio": 0},
    "dpo": {"gradient_accumulation_steps": 2, "warmup_ratio": 0},
    "ppo": {"kl_coef": 0.05, "lr": 6e-3},
    "grpo": {"lr": 3e-3},
}


def numbers(metrics: dict[str, float]) -> dict[str, float]:
    kept = sorted(name for name in metrics if not name.endswith(VARYING))
    return {name: metrics[name] for name in kept}


def digest(checkpoint: Path) -> str:
    tensors = load_file(checkpoint / "adapter_model.safetensors")
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()


def fixed_run(method: str, model: Path) -> dict[str, Any]:
    """The metrics of every epoch and the adapter's digest; writes into the working directory."""
    online = method in ("ppo", "grpo")
    four_trainers.write_data(Path(), train=5 if online else 11, dev=3 if online else 5)
    size = 4 if method == "grpo" else 2
    trainer = four_trainers.make_trainer(method, model, lora_dropout=0.0, seed=7, batch_size=size)
    results = list(four_trainers.run(trainer, method, **OPTIONS[method]))
    return {
        "train": [numbers(result.train) for result in results],
        "eval": [numbers(result.eval) for result in results],
        "steps": [result.step for result in results],
        "adapter": digest(Path(results[-1].checkpoint)),
    }


def exact(found: Any) -> Any:
    """The same with every float in hexadecimal digits."""
    if isinstance(found, dict):
        return {name: exact(value) for name, value in found.items()}
    if isinstance(found, list):
        return [exact(value) for value in found]
    return found.hex() if isinstance(found, float) else found


def main() -> None:
    torch.set_num_threads(1)
    runs = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        model = save_tiny_llama(SMALL_MODEL, Path(folder) / "llama")
        os.chdir(folder)
        for method in four_trainers.METHODS:
            runs[method] = exact(fixed_run(method, model))
        os.chdir("/")
    json.dump(runs, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
