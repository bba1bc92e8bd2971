"""Rows, a reward and trainers small enough for many GRPO runs."""

import json
from pathlib import Path

import torch

from main.trainer.grpo import Trainer

WORDS = ["red", "a blue boat", "green", "one two three four", "grey", "a", "b c", "the sea"]


def write_rows(path: Path, count: int) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            text = f"{WORDS[number % len(WORDS)]} {number}?"
            prompt = [{"role": "user", "content": text}]
            file.write(json.dumps({"prompt": prompt, "anwer": WORDS[number % 8]}) + "\n")
    return path


def make_trainer(model: Path, rows: int = 4, **changes) -> Trainer:
    data = {"train": write_rows(Path("train.jsonl"), rows), "dev": write_rows(Path("dev.jsonl"), 3)}
    arguments = {"from_pretrained": model, "data_path": data, "task_name": "demo", "lora_r": 4}
    trainer = Trainer(**(arguments | changes))
    # One token in five ends a completion, so that their lengths differ.
    trainer.causal_lm.generation_config.eos_token_id = list(range(0, 49152, 5))
    return trainer


def run(trainer: Trainer, **changes):
    """The generator of one run on 8 completions a step, two groups of 4."""
    return trainer(**(RUN | changes))


def early_tokens(completion_ids, **kwargs):
    """Share of tokens from the first half of the vocabulary: a random model has about 0.5."""
    return [sum(token < 24576 for token in ids) / len(ids) for ids in completion_ids]


RUN = {
    "reward_func": early_tokens,
    "num_generations": 4,
    "per_device_train_batch_size": 8,
    "max_completion_length": 6,
    "num_epochs": 1,
    "lr": 1e-2,
    "lr_scheduler_type": "constant",
    "warmup_ratio": 0.0,
    "report_to": "none",
    "save_strategy": "no",
    "eval_strategy": "no",
}


def adapter(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


def trained(model: Path, **changes) -> dict[str, torch.Tensor]:
    setup = {name: changes.pop(name) for name in ("share_prompts", "seed") if name in changes}
    trainer = make_trainer(model, **setup)
    list(run(trainer, **changes))
    return adapter(trainer)


def distance(one, other) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)
