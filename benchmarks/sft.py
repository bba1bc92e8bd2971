"""SFT of a LoRA adapter against TRL's SFTTrainer: same rows, ids, masks, adapter and settings.

    python benchmarks/sft.py [--data rows.jsonl] [--rows 96] [--rounds 3]

LoRA r=8 on all linear layers, batch 8, at most 512 tokens, float32, no gradient checkpointing. A
run is a process of its own, so that its peak memory is its own; the sides take turns.

    ours         main.trainer.lora
    trl          SFTTrainer as it comes: rows in random order
    trl_ordered  SFTTrainer given our steps, rows of like length together: its losses must be ours

Seconds are those of the training alone. Where CPU time falls below wall time x threads another
process held the cores: then the ratio of CPU times is the one to quote. Results go to
benchmarks/results/sft.json.
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
from collections.abc import Callable
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results" / "sft.json"
PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate")
SIDES = ("ours", "trl", "trl_ordered")
BATCH, LR, SEED = 8, 2e-4, 42


class Side(NamedTuple):
    """What is measured: the training, then the loss of each step; the loss of fixed rows."""

    train: Callable[[], Any]
    step_losses: Callable[[], list[float]]
    fixed_loss: Callable[[], float]


def our_trainer(options: argparse.Namespace) -> Any:
    from main.trainer.lora import Trainer

    return Trainer(
        from_pretrained=options.model,
        data_path="rows.jsonl",
        max_length=options.max_length,
        batch_size=BATCH,
        lora_r=8,
        lora_alpha=16,
        dtype="float32",
        device="cpu",
        seed=SEED,
    )


def our_side(trainer: Any) -> Side:
    settings = {
        "num_epochs": 1,
        "lr": LR,
        "lr_scheduler_type": "constant",
        "warmup_ratio": 0.0,
        "logging_steps": 1,
        "eval_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
    }

    def step_losses() -> list[float]:
        with open("data_record/default/train.csv", encoding="utf-8") as file:
            return [float(row["loss"]) for row in csv.DictReader(file)]

    def fixed_loss() -> float:
        batch = trainer.collate([trainer.train_data[i] for i in range(BATCH)])
        return float(trainer.loss(batch.tensors, batch.counts).loss)

    return Side(lambda: list(trainer(**settings)), step_losses, fixed_loss)


def trl_side(ours: Any, ordered: bool) -> Side:
    """TRL on the same base, adapter and encoded rows; the adapter computes as peft made it."""
    from datasets import Dataset
    from peft.tuners.lora import Linear
    from trl import SFTConfig, SFTTrainer

    from main.fused import FusedLinear
    from main.loaders.sampler import plan_epoch

    for module in ours.policy.modules():
        if type(module) is FusedLinear:
            module.__class__ = Linear
    steps = plan_epoch(ours.train_data.lengths, BATCH, SEED, 1)
    order = [i for step in steps for i in step] if ordered else range(len(ours.train_data))
    settings = SFTConfig(
        output_dir="trl",
        per_device_train_batch_size=BATCH,
        max_length=None,
        num_train_epochs=1,
        learning_rate=LR,
        lr_scheduler_type="constant",
        logging_steps=1,
        train_sampling_strategy="sequential" if ordered else "random",
        gradient_checkpointing=False,
        bf16=False,
        save_strategy="no",
        report_to="none",
        seed=SEED,
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        ours.policy,
        args=settings,
        train_dataset=Dataset.from_list([labelled(ours.train_data[i]) for i in order]),
        processing_class=ours.tokenizer,
    )

    def step_losses() -> list[float]:
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    def fixed_loss() -> float:
        batch = trainer.data_collator([labelled(ours.train_data[i]) for i in range(BATCH)])
        return float(trainer.compute_loss(trainer.model, batch))

    return Side(trainer.train, step_losses, fixed_loss)


def labelled(row: dict[str, Any]) -> dict[str, list[int]]:
    pairs = zip(row["input_ids"], row["loss_mask"], strict=True)
    return {"input_ids": row["input_ids"], "labels": [i if m else -100 for i, m in pairs]}


def be_measured(options: argparse.Namespace) -> None:
    """Run one side in this process and print what came of it as the last line."""
    import torch

    torch.set_num_threads(options.threads)
    ours = our_trainer(options)
    side = our_side(ours) if options.side == "ours" else trl_side(ours, options.side != "trl")
    with torch.no_grad():
        before = side.fixed_loss()
    started = usage()
    side.train()
    measured = usage(started)
    with torch.no_grad():
        after = side.fixed_loss()
    tokens = sum(sum(ours.train_data[i]["loss_mask"]) for i in range(len(ours.train_data)))
    losses = {"step_losses": side.step_losses(), "before": before, "after": after}
    print(json.dumps({"trained_tokens": tokens} | measured | losses))


def usage(since: dict[str, float] | None = None) -> dict[str, float]:
    """Seconds of wall and CPU time since then, and the most memory this process ever held."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    now = {"wall": time.perf_counter(), "cpu": spent.ru_utime + spent.ru_stime}
    if since:
        now = {name: now[name] - since[name] for name in now}
    return now | {"peak_mib": spent.ru_maxrss / 1024}


def measure(options: argparse.Namespace, side: str, folder: Path) -> dict[str, Any]:
    """One run of one side, in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--side", side]
    command += ["--model", str(Path(options.model).resolve()), "--threads", str(options.threads)]
    command += ["--max-length", str(options.max_length)]
    root = str(Path(__file__).resolve().parent.parent)
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": str(options.threads)}
    with tempfile.TemporaryDirectory(dir=folder) as place:
        (Path(place) / "rows.jsonl").symlink_to(folder / "rows.jsonl")
        done = subprocess.run(
            command, cwd=place, env=environment, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def summary(rounds: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians of each side, and each TRL side over ours."""
    sides = {
        side: {
            name: statistics.median(run[name] for run in runs)
            for name in ("wall", "cpu", "peak_mib", "after")
        }
        | {"trained_tokens_per_second": runs[0]["trained_tokens"]
           / statistics.median(run["wall"] for run in runs)}
        for side, runs in rounds.items()
    }  # fmt: skip
    ratios = {
        side: {
            name: sides[side][name] / sides["ours"][name] for name in ("wall", "cpu", "peak_mib")
        }
        for side in SIDES[1:]
    }
    ours, theirs = rounds["ours"][0]["step_losses"], rounds["trl_ordered"][0]["step_losses"]
    gaps = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    after = abs(sides["ours"]["after"] - sides["trl_ordered"]["after"])
    before = {run["before"] for runs in rounds.values() for run in runs}
    return {
        "medians": sides,
        "trl_over_ours": ratios,
        "largest_gap_of_step_losses": max(gaps),
        "gap_of_fixed_loss": {"before": max(before) - min(before), "after": after},
    }


def main() -> None:
    """Measure, print and write the result; with --side, be one of the measured processes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default="data/ticket_en_train.jsonl")
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        be_measured(options)
        return
    rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        with options.data.open(encoding="utf-8") as file:
            (Path(folder) / "rows.jsonl").write_text("".join(islice(file, options.rows)), "utf-8")
        for i in range(options.rounds):
            for side in SIDES[:: 1 if i % 2 == 0 else -1]:
                rounds[side].append(measure(options, side, Path(folder)))
                print(i + 1, side, rounds[side][-1], flush=True)
    write(options, rounds)


def write(options: argparse.Namespace, rounds: dict[str, list[dict[str, Any]]]) -> None:
    """Print the comparison and keep everything that it was made from."""
    result = {
        "rows": options.rows,
        "data": options.data.name,
        "model": Path(options.model).name,
        "settings": f"LoRA r=8 all-linear, batch {BATCH}, max {options.max_length}, fp32, lr {LR}",
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
