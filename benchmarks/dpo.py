"""DPO of a LoRA adapter against TRL's DPOTrainer: same pairs, ids, adapter, order and settings.

    python benchmarks/dpo.py [--data pairs.jsonl] [--rows 8] [--min-prompt 200] [--rounds 3]

LoRA r=8 on all linear layers, 2 pairs a step, at most 512 tokens, float32, no gradient
checkpointing, one epoch; of the data the first rows whose prompt has `--min-prompt` tokens or more.
Every run is a process of its own, so that its peak memory is its own; the sides take turns.

    ours         main.trainer.dpo, its reference pass over the pairs counted
    trl          DPOTrainer as it comes: the reference computed in every step

Seconds are those of the training alone. Where CPU time falls below wall time x threads another
process held the cores: then the ratio of CPU times is the one to quote. `weights` counts the
parameters that a run holds in the unit of the base model's: 1 and the adapters. Results go to
benchmarks/results/dpo.json.
"""

import argparse
import csv
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

RESULTS = Path(__file__).parent / "results" / "dpo.json"
PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate")
SIDES = ("ours", "trl")
BATCH, MAX_LENGTH, LR, BETA, SEED = 2, 512, 2e-4, 0.1, 42


def run_ours(options: argparse.Namespace) -> dict[str, Any]:
    trainer = our_trainer(options)
    started = usage()
    list(
        trainer(
            num_epochs=1,
            lr=LR,
            beta=BETA,
            lr_scheduler_type="constant",
            warmup_ratio=0.0,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
        )
    )
    measured = usage(started)
    with open("data_record/default/train.csv", encoding="utf-8") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    return measured | {"losses": losses, "parameters": parameters(trainer.model)}


def run_trl(options: argparse.Namespace) -> dict[str, Any]:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    ours = our_trainer(options)  # the same base with the same adapter, the same encoded pairs
    rows = [ours.train_data[i] for i in order(ours)]
    settings = DPOConfig(
        output_dir="trl",
        per_device_train_batch_size=BATCH,
        max_length=None,
        num_train_epochs=1,
        learning_rate=LR,
        beta=BETA,
        lr_scheduler_type="constant",
        logging_steps=1,
        train_sampling_strategy="sequential",
        gradient_checkpointing=False,
        bf16=False,
        save_strategy="no",
        report_to="none",
        seed=SEED,
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    trainer = DPOTrainer(
        ours.policy,
        args=settings,
        train_dataset=Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}]),
        processing_class=ours.tokenizer,
    )
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    trainer.train_dataset = Dataset.from_list([{name: row[name] for name in names} for row in rows])
    started = usage()
    trainer.train()
    measured = usage(started)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return measured | {"losses": losses, "parameters": parameters(ours.policy)}


def our_trainer(options: argparse.Namespace) -> Any:
    from main.trainer.dpo import Trainer

    return Trainer(
        from_pretrained=options.model,
        data_path="rows.jsonl",
        max_length=MAX_LENGTH,
        batch_size=BATCH,
        lora_r=8,
        lora_alpha=16,
        dtype="float32",
        device="cpu",
        seed=SEED,
    )


def order(trainer: Any) -> list[int]:
    """Row numbers in the order of our steps."""
    from main.loaders.sampler import plan_epoch

    return [row for step in plan_epoch(trainer.train_data.lengths, BATCH, SEED, 1) for row in step]


def parameters(model: Any) -> int:
    """Numbers held, each storage once."""
    return sum({p.data_ptr(): p.numel() for p in model.parameters()}.values())


def usage(since: dict[str, float] | None = None) -> dict[str, float]:
    """Seconds of wall and CPU time since then, and the most memory this process ever held."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    now = {"wall": time.perf_counter(), "cpu": spent.ru_utime + spent.ru_stime}
    if since:
        now = {name: now[name] - since[name] for name in now}
    return now | {"peak_mib": spent.ru_maxrss / 1024}


def select(options: argparse.Namespace, target: Path) -> dict[str, Any]:
    """Write the measured pairs; returns what they are like."""
    from main.loaders import get_template, load_dataset_split
    from main.models import load_tokenizer

    template = get_template(load_tokenizer(options.model), "LLM_DPO")
    encoded = load_dataset_split(options.data, "LLM_DPO", template)
    kept = [r for r in encoded if len(r["prompt_ids"]) >= options.min_prompt
            and r["length"] <= MAX_LENGTH][: options.rows]  # fmt: skip
    if len(kept) < options.rows:
        raise SystemExit(f"{options.data} has only {len(kept)} such rows; lower --min-prompt.")
    lines = options.data.read_text(encoding="utf-8").splitlines()
    target.write_text("\n".join(lines[row["row"] - 1] for row in kept), encoding="utf-8")
    return {
        name: {"median": statistics.median(sizes), "sum": sum(sizes)}
        for name in ("prompt_ids", "chosen_ids", "rejected_ids")
        for sizes in [[len(row[name]) for row in kept]]
    }


def measure(options: argparse.Namespace, side: str, folder: Path) -> dict[str, Any]:
    """One run of one side, in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--side", side]
    command += ["--model", str(Path(options.model).resolve()), "--threads", str(options.threads)]
    root = str(Path(__file__).resolve().parent.parent)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        environment = os.environ | {
            "PYTHONPATH": root,
            "OMP_NUM_THREADS": str(options.threads),
            "HF_DATASETS_CACHE": place,  # nothing is kept from one run to the next
        }
        (Path(place) / "rows.jsonl").symlink_to(folder / "rows.jsonl")
        done = subprocess.run(
            command, cwd=place, env=environment, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def summary(rounds: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians of each side, TRL over ours, and how far the step losses are apart."""
    sides = {
        side: {n: statistics.median(r[n] for r in runs) for n in ("wall", "cpu", "peak_mib")}
        for side, runs in rounds.items()
    }
    pairs = zip(rounds["ours"][0]["losses"], rounds["trl"][0]["losses"], strict=True)
    return {
        "medians": sides,
        "trl_over_ours": {name: sides["trl"][name] / sides["ours"][name] for name in sides["ours"]},
        "largest_gap_of_step_losses": max(abs(a - b) for a, b in pairs),
        "weights": {s: runs[0]["parameters"] / runs[0]["base"] for s, runs in rounds.items()},
    }


def main() -> None:
    """Measure, print and write the result; with --side, be one of the measured processes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default="data/ticket_en_dpo_train.jsonl")
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--min-prompt", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        be_measured(options)
        return
    rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        tokens = select(options, Path(folder) / "rows.jsonl")
        for i in range(options.rounds):
            for side in SIDES[:: 1 if i % 2 == 0 else -1]:
                rounds[side].append(measure(options, side, Path(folder)))
                print(i + 1, side, rounds[side][-1], flush=True)
    write(options, tokens, rounds)


def be_measured(options: argparse.Namespace) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(options.threads)
    result = (run_ours if options.side == "ours" else run_trl)(options)
    base = parameters(AutoModelForCausalLM.from_pretrained(options.model))
    print(json.dumps(result | {"base": base}))


def write(
    options: argparse.Namespace, tokens: dict[str, Any], rounds: dict[str, list[dict[str, Any]]]
) -> None:
    """Print the comparison and keep everything that it was made from."""
    result = {
        "pairs": options.rows,
        "tokens": tokens,
        "data": options.data.name,
        "model": Path(options.model).name,
        "settings": f"LoRA r=8 all-linear, {BATCH} pairs a step, max {MAX_LENGTH}, float32, "
        f"lr {LR}, beta {BETA}",
        "threads": options.threads,
        "cores": os.cpu_count(),
        "device": f"cpu, {platform.machine()}",
        "versions": {package: version(package) for package in PACKAGES},
        **summary(rounds),
        "rounds": rounds,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in result.items() if k != "rounds"}, indent=2))


if __name__ == "__main__":
    main()
