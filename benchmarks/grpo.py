"""GRPO steps of a LoRA adapter against TRL's GRPOTrainer, both generating with transformers.

    python benchmarks/grpo.py [--steps 2] [--prompts 4] [--tokens 48] [--rounds 3] [--threads 2]

LoRA r=8 on all linear layers, 8 completions a prompt, exactly `--tokens` tokens each (end tokens do
not end them), float32, no gradient checkpointing, beta 0, the same prompts on both sides.
Seconds are those of the training alone: generation, rewards and updates; benchmarks/paired.py tells
how they are measured. Where vLLM is installed a third side draws with it in the same process. The
engine's start is not counted, nor is its CPU time, which is another process's; its peak memory is.
It takes all cores: its wall time compares with the others' when `--threads` is the number of cores.
"""

import argparse
import importlib.util
import json
import resource
import statistics
from pathlib import Path
from typing import Any

from paired import TRL_PLAIN, compare, usage

GROUP, LR, SEED = 8, 1e-4, 42


def reward_half(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """Share of tokens with an even id: cheap, and different for every completion."""
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


def run_ours(options: argparse.Namespace, **drawing: Any) -> dict[str, Any]:
    trainer = our_trainer(options)
    (result,) = trainer(
        **drawing,
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
    measured = usage(trainer.started)
    assert result.step == options.steps
    engine = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return measured | {
        "peak_mib": measured["peak_mib"] + engine,
        "completion_length": result.train["completion_length"],
    }


def run_trl(options: argparse.Namespace) -> dict[str, Any]:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    ours = our_trainer(options)  # the same base with the same adapter
    rows = [{"prompt": json.loads(row["prompt"])} for row in ours.train_data]
    settings = GRPOConfig(
        **TRL_PLAIN,
        per_device_train_batch_size=GROUP * options.prompts,
        num_generations=GROUP,
        max_completion_length=options.tokens,
        generation_kwargs={"min_new_tokens": options.tokens},
        learning_rate=LR,
        seed=SEED,
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
    from main.trainer.grpo.trainer import GRPOTask

    class Task(GRPOTask):
        """No token ends a completion, so that both sides generate as many."""

        def open(self, run: Any) -> None:
            self.stop_ids = []
            super().open(run)
            self.trainer.started = usage()  # an engine's start is not a step's time

    class Endless(Trainer):
        def configured(self, options: Any) -> Task:
            return Task(self, options)

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


def select(options: argparse.Namespace, target: Path) -> dict[str, Any]:
    """Write the measured rows, the longest prompts of the data; returns their lengths."""
    from main.loaders import get_template, load_dataset_split
    from main.models import load_tokenizer

    template = get_template(load_tokenizer(options.model), "LLM_GRPO")
    encoded = load_dataset_split(options.data, "LLM_GRPO", template)
    kept = sorted(encoded, key=lambda row: -row["length"])[: options.steps * options.prompts]
    lines = options.data.read_text(encoding="utf-8").splitlines()
    target.write_text("\n".join(lines[row["row"] - 1] for row in kept), encoding="utf-8")
    return {"prompt_tokens": [row["length"] for row in kept]}


def main() -> None:
    sides = {"ours": run_ours, "trl": run_trl}
    if importlib.util.find_spec("vllm"):
        sides["ours_vllm"] = lambda o: run_ours(o, use_vllm=True, vllm_mode="colocate")
    compare(
        __file__,
        __doc__,
        sides,
        select,
        data="data/ticket_en_grpo_train.jsonl",
        numbers={"steps": 2, "prompts": 4, "tokens": 48, "threads": 2},
        settings={"settings": f"LoRA r=8 all-linear, {GROUP} completions a prompt, lr {LR}"},
    )


if __name__ == "__main__":
    main()
