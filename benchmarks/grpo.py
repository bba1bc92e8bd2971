"""GRPO steps of a LoRA adapter against TRL's GRPOTrainer, both generating with transformers.

    python benchmarks/grpo.py [--steps 2] [--prompts 2] [--tokens 48] [--rounds 3]

LoRA r=8 on all linear layers, 8 completions a prompt, exactly `--tokens` tokens each (end tokens do
not end them), float32, no gradient checkpointing, beta 0, the same prompts on both sides. Every run
is a process of its own, so that its peak memory is its own; the sides take turns.

Seconds are those of the training alone: generation, rewards and updates. Where CPU time falls below
wall time x threads another process held the cores: then the ratio of CPU times is the one to
quote. Results go to benchmarks/results/grpo.json.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "grpo.json"
PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate")
SIDES = ("ours", "trl")
GROUP, LR, SEED = 8, 1e-4, 42


def reward_half(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """Share of tokens with an even id: cheap, and different for every completion."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


def run_ours(options: argparse.Namespace) -> dict[str, Any]:
    trainer = our_trainer(options)
    started = usage()
    (result,) = trainer(
        reward_func=reward_half,
        per_device_train_batch_size=GROUP * options.prompts,
        num_generations=GROUP,
        max_completion_length=options.tokens,
        num_epochs=1,
        lr=LR,
        lr_scheduler_type="constant",
        warmup_ratio=0.0,
        save_strategy="no",
        report_to="none",
    )
    measured = usage(started)
    assert result.step == options.steps
    return measured | {"completion_length": result.train["completion_length"]}


def run_trl(options: argparse.Namespace) -> dict[str, Any]:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    ours = our_trainer(options)  # the same base with the same adapter
    rows = [{"prompt": json.loads(row["prompt"])} for row in ours.train_data]
    settings = GRPOConfig(
        output_dir="trl",
        per_device_train_batch_size=GROUP * options.prompts,
        num_generations=GROUP,
        max_completion_length=options.tokens,
        generation_kwargs={"min_new_tokens": options.tokens},
        num_train_epochs=1,
        learning_rate=LR,
        lr_scheduler_type="constant",
        gradient_checkpointing=False,
        bf16=False,
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        seed=SEED,
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        ours.policy,
        reward_funcs=reward_half,
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=ours.tokenizer,
    )
    started = usage()
    trainer.train()
    measured = usage(started)
    assert trainer.state.global_step == options.steps
    lengths = [e["completions/mean_length"] for e in trainer.state.log_history if "loss" in e]
    return measured | {"completion_length": statistics.mean(lengths)}


def our_trainer(options: argparse.Namespace) -> Any:
    from main.trainer.grpo import Trainer

    class Endless(Trainer):
        """No token ends a completion, so that both sides generate as many."""

        @property
        def stop_ids(self) -> list[int]:
            return []

    return Endless(
        from_pretrained=options.model,
        data_path={"train": "rows.jsonl"},
        max_length=512,
        lora_r=8,
        lora_alpha=16,
        dtype="float32",
        device="cpu",
        seed=SEED,
    )


def usage(since: dict[str, float] | None = None) -> dict[str, float]:
    """Seconds of wall and CPU time since then, and the most memory this process ever held."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    now = {"wall": time.perf_counter(), "cpu": spent.ru_utime + spent.ru_stime}
    if since:
        now = {name: now[name] - since[name] for name in now}
    return now | {"peak_mib": spent.ru_maxrss / 1024}


def select(options: argparse.Namespace, target: Path) -> list[int]:
    """Write the measured rows, the longest prompts of the data; returns their lengths."""
    from main.loaders import get_template, load_dataset_split
    from main.models import load_tokenizer

    template = get_template(load_tokenizer(options.model), "LLM_GRPO")
    encoded = load_dataset_split(options.data, "LLM_GRPO", template)
    kept = sorted(encoded, key=lambda row: -row["length"])[: options.steps * options.prompts]
    lines = options.data.read_text(encoding="utf-8").splitlines()
    target.write_text("\n".join(lines[row["row"] - 1] for row in kept), encoding="utf-8")
    return [row["length"] for row in kept]


def measure(side: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One run in a process of its own."""
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
        "OMP_NUM_THREADS": str(options.threads),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, str(Path(__file__).resolve()), "--side", side]
    for name in ("model", "data", "steps", "prompts", "tokens", "threads"):
        command += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-4000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("models/SmolLM2-135M-Instruct"))
    parser.add_argument("--data", type=Path, default=Path("data/ticket_en_grpo_train.jsonl"))
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=2, help="of a step")
    parser.add_argument("--tokens", type=int, default=48, help="of a completion")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.model, options.data = options.model.resolve(), options.data.resolve()
    if options.side:
        import torch

        torch.set_num_threads(options.threads)
        print(json.dumps({"ours": run_ours, "trl": run_trl}[options.side](options)))
        return
    rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as name:
        lengths = select(options, Path(name) / "rows.jsonl")
        for number in range(options.rounds):
            for side in SIDES[:: 1 if number % 2 == 0 else -1]:
                rounds[side].append(measure(side, options, Path(name)))
                print(number + 1, side, rounds[side][-1], flush=True)
    write(options, lengths, rounds)


def write(
    options: argparse.Namespace, lengths: list[int], rounds: dict[str, list[dict[str, Any]]]
) -> None:
    """Print the ratios and keep everything that they were made from."""

    def ratio(key: str) -> float:
        ours, theirs = (statistics.median(r[key] for r in rounds[side]) for side in SIDES)
        return ours / theirs

    result = {
        "prompt_tokens": lengths,
        "completions_a_prompt": GROUP,
        "completion_tokens": options.tokens,
        "steps": options.steps,
        "prompts_a_step": options.prompts,
        "model": options.model.name,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": options.threads,
        "versions": {package: version(package) for package in PACKAGES},
        "rounds": rounds,
        "ratio_wall": ratio("wall"),
        "ratio_cpu": ratio("cpu"),
        "ratio_peak": ratio("peak_mib"),
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in result.items() if k != "rounds"}, indent=2))


if __name__ == "__main__":
    main()
