"""SFT of a LoRA adapter against TRL's SFTTrainer: same rows, ids, masks, adapter and settings.

    python benchmarks/sft.py [--data rows.jsonl] [--rows 96] [--rounds 3]

LoRA r=8 on all linear layers, batch 8, at most 512 tokens, float32, no gradient checkpointing.
Seconds are those of the training alone; benchmarks/paired.py tells how they are measured.

    ours         main.trainer.lora
    trl          SFTTrainer as it comes: rows in random order
    trl_ordered  SFTTrainer given our steps, rows of like length together: its losses must be ours
"""

import argparse
import csv
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from paired import TRL_PLAIN, Rounds, compare, usage

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
        task = trainer.task()
        batch = task.collate([trainer.train_data[i] for i in range(BATCH)])
        return float(task.loss(batch.tensors, batch.counts).loss)

    return Side(lambda: list(trainer(**settings)), step_losses, fixed_loss)


def trl_side(ours: Any, ordered: bool) -> Side:
    """TRL on the same base, adapter and encoded rows; the adapter computes as peft made it."""
    from datasets import Dataset
    from peft.tuners.lora import Linear
    from trl import SFTConfig, SFTTrainer

    from main.loaders.order import plan_epoch
    from main.models.fused import FusedLinear

    for module in ours.policy.modules():
        if type(module) is FusedLinear:
            module.__class__ = Linear
    steps = plan_epoch(ours.train_data.lengths, BATCH, SEED, 1)
    order = [i for step in steps for i in step] if ordered else range(len(ours.train_data))
    settings = SFTConfig(
        **TRL_PLAIN,
        per_device_train_batch_size=BATCH,
        max_length=None,
        learning_rate=LR,
        train_sampling_strategy="sequential" if ordered else "random",
        seed=SEED,
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


def measure(options: argparse.Namespace, side: str) -> dict[str, Any]:
    """Train one side in this process."""
    import torch

    ours = our_trainer(options)
    measured = our_side(ours) if side == "ours" else trl_side(ours, side == "trl_ordered")
    with torch.no_grad():
        before = measured.fixed_loss()
    started = usage()
    measured.train()
    costs = usage(started)
    with torch.no_grad():
        after = measured.fixed_loss()
    tokens = sum(sum(ours.train_data[i]["loss_mask"]) for i in range(len(ours.train_data)))
    losses = {"step_losses": measured.step_losses(), "before": before, "after": after}
    return {"trained_tokens": tokens} | costs | losses


def select(options: argparse.Namespace, target: Path) -> dict[str, Any]:
    """The first rows of the data."""
    with options.data.open(encoding="utf-8") as file:
        lines = list(islice(file, options.rows))
    target.write_text("".join(lines), encoding="utf-8")
    return {"rows": len(lines)}


def summary(rounds: Rounds) -> dict[str, Any]:
    """How far the losses of the two sides are apart."""
    ours, theirs = rounds["ours"][0], rounds["trl_ordered"][0]
    gaps = [abs(a - b) for a, b in zip(ours["step_losses"], theirs["step_losses"], strict=True)]
    before = {run["before"] for runs in rounds.values() for run in runs}
    return {
        "trained_tokens": ours["trained_tokens"],
        "largest_gap_of_step_losses": max(gaps),
        "gap_of_fixed_loss": {
            "before": max(before) - min(before),
            "after": abs(ours["after"] - theirs["after"]),
        },
    }


def main() -> None:
    compare(
        __file__,
        __doc__,
        {
            "ours": lambda options: measure(options, "ours"),
            "trl": lambda options: measure(options, "trl"),
            "trl_ordered": lambda options: measure(options, "trl_ordered"),
        },
        select,
        data="data/ticket_en_train.jsonl",
        numbers={"rows": 96, "max_length": 512},
        settings={"settings": f"LoRA r=8 all-linear, batch {BATCH}, float32, lr {LR}"},
        summarise=summary,
    )


if __name__ == "__main__":
    main()
