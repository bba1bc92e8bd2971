"""DPO of a LoRA adapter against TRL's DPOTrainer: same pairs, ids, adapter, order and settings.

    python benchmarks/dpo.py [--data pairs.jsonl] [--rows 8] [--min-prompt 200] [--rounds 3]

LoRA r=8 on all linear layers, 2 pairs a step, at most 512 tokens, float32, no gradient
checkpointing, one epoch; of the data the first rows whose prompt has `--min-prompt` tokens or more.
Seconds are those of the training alone; benchmarks/paired.py tells how they are measured.

    ours         main.trainer.dpo, its reference pass over the pairs counted
    trl          DPOTrainer as it comes: the reference computed in every step

`weights` counts the parameters that a run holds in the unit of the base model's: 1 and the
adapters.
"""

import argparse
import csv
import statistics
from pathlib import Path
from typing import Any

from paired import TRL_PLAIN, Rounds, compare, usage

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
        **TRL_PLAIN,
        per_device_train_batch_size=BATCH,
        max_length=None,
        learning_rate=LR,
        beta=BETA,
        train_sampling_strategy="sequential",
        seed=SEED,
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
    from main.loaders.order import plan_epoch

    return [row for step in plan_epoch(trainer.train_data.lengths, BATCH, SEED, 1) for row in step]


def parameters(model: Any) -> int:
    """Numbers held, each storage once."""
    return sum({p.data_ptr(): p.numel() for p in model.parameters()}.values())


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


def summary(rounds: Rounds) -> dict[str, Any]:
    """How far the step losses are apart, and how often the base is held."""
    pairs = zip(rounds["ours"][0]["losses"], rounds["trl"][0]["losses"], strict=True)
    return {
        "largest_gap_of_step_losses": max(abs(a - b) for a, b in pairs),
        "weights": {s: runs[0]["parameters"] / runs[0]["base"] for s, runs in rounds.items()},
    }


def base_parameters(options: argparse.Namespace) -> dict[str, int]:
    from transformers import AutoModelForCausalLM

    return {"base": parameters(AutoModelForCausalLM.from_pretrained(options.model))}


def main() -> None:
    compare(
        __file__,
        __doc__,
        {
            "ours": lambda options: run_ours(options) | base_parameters(options),
            "trl": lambda options: run_trl(options) | base_parameters(options),
        },
        select,
        data="data/ticket_en_dpo_train.jsonl",
        numbers={"rows": 8, "min_prompt": 100},
        settings={
            "settings": f"LoRA r=8 all-linear, {BATCH} pairs a step, max {MAX_LENGTH}, float32, "
            f"lr {LR}, beta {BETA}"
        },
        summarise=summary,
    )


if __name__ == "__main__":
    main()
