"""What `plan` says before a run, against what the run then takes: five settings.

    python benchmarks/plan.py [--model models/SmolLM2-135M-Instruct]

The run is the plan's own trial with all layers, in a process of its own. Both are made on a machine
that does nothing else. Results go to benchmarks/results/plan.json.
"""

import argparse
from pathlib import Path
from typing import Any

from kept import keep

from main.utils.plan import PlanOptions, attempt, plan, specification

SETTINGS: dict[str, dict[str, Any]] = {
    "SFT, 8 x 512, float32": {"method": "lora", "max_length": 512, "batch_size": 8},
    "SFT, 4 x 1024, bfloat16": {
        "method": "lora", "max_length": 1024, "batch_size": 4, "dtype": "bfloat16", "bf16": True,
    },
    "DPO, 4 x 384": {"method": "dpo", "max_length": 384, "batch_size": 4},
    "GRPO, 16 x 128 + 64, groups of 8": {
        "method": "grpo", "max_length": 128, "batch_size": 16, "num_generations": 8,
        "max_completion_length": 64, "beta": 0.04,
    },
    "PPO, 8 x 128 + 64": {
        "method": "ppo", "max_length": 128, "batch_size": 8, "max_completion_length": 64,
        "ratio_for_rlhf": 1.0,
    },
}  # fmt: skip


def both(model: Path, arguments: dict[str, Any]) -> dict[str, float]:
    """Planned and measured: GiB of the peak, seconds of a step, and their ratios."""
    planned = plan(model, **arguments)
    rest = {name: value for name, value in arguments.items() if name != "method"}
    found = attempt(specification(PlanOptions(model, arguments["method"]), rest)[0], None)
    peak = (found.process + found.base + found.adapter + found.passes) / 2**30
    return {
        "planned_gib": planned.peak,
        "measured_gib": peak,
        "memory_ratio": planned.peak / peak,
        "planned_step": planned.step,
        "measured_step": found.step,
        "time_ratio": planned.step / found.step,
    }


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, default=Path("models/SmolLM2-135M-Instruct"))
    model = parser.parse_args().model
    results = {}
    for name, arguments in SETTINGS.items():
        results[name] = found = both(model, arguments)
        print(name, *(f"{key}={value:.3g}" for key, value in found.items()), flush=True)
    keep(__file__, {"settings": results}, ("torch", "transformers", "peft"))


if __name__ == "__main__":
    main()
