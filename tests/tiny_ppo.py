"""Rows, rewards and trainers small enough for many PPO runs."""

import json
from pathlib import Path
from typing import Any

import torch

from main.trainer.loop.task import Run
from main.trainer.online.sample import Sample
from main.trainer.ppo import Trainer
from main.trainer.ppo.trainer import PPOTask

ROWS: list[tuple[str, list[str], list[str]]] = [
    ("What is two and two?", ["Four."], ["Five."]),
    ("The colour of the sky?", ["Blue", "It is blue today"], ["Green", "Red"]),
    ("请用一句话介绍北京。", ["北京是中国的首都。"], ["北京在海边。"]),
    ("Say a", ["a"], ["b c d e f g h"]),
    ("Name a fruit and nothing else, please.", ["an apple"], ["a stone"]),
    ("x?", ["a longer answer of several words"], ["no"]),
    ("And what do cows drink, if not milk?", ["Water"], ["Milk", "milk!"]),
    ("Count to three.", ["one two three"], ["one three two"]),
]


def write_rows(path: Path, count: int) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            question, gold, bad = ROWS[number % len(ROWS)]
            row = {
                "conversations": [{"role": "user", "content": question}],
                "gold_answers": gold,
                "bad_answers": bad,
                "level": number,
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


def spread(prompts, completions, level, **columns) -> list[float]:
    """Rewards that differ between completions and rows, without a model."""
    texts = [completion[-1]["content"] for completion in completions]
    return [
        (sum(map(ord, text)) % 17) / 8 - 1 + 0.1 * (n % 3)
        for text, n in zip(texts, level, strict=True)
    ]


def make_trainer(model: Path, rows: int = 8, **changes: Any) -> Trainer:
    arguments = {
        "from_pretrained": model,
        "data_path": {
            "train": write_rows(Path("train.jsonl"), rows),
            "dev": write_rows(Path("dev.jsonl"), 3),
        },
        "max_length": 128,
        "batch_size": 4,
        "lora_r": 4,
        "task_name": "demo",
    }
    return Trainer(**(arguments | changes))


QUICK: dict[str, Any] = {
    "reward_func": spread,
    "num_epochs": 1,
    "lr": 1e-2,
    "ppo_epochs": 2,
    "max_completion_length": 6,
    "report_to": "none",
    "save_strategy": "no",
    "eval_strategy": "no",
    "logging_steps": 1,
}


def started(trainer: Trainer, **options: Any) -> PPOTask:
    """A task as in a run, before its first step."""
    task = trainer.task(**(QUICK | options))
    task.open(Run(task.model, torch.device("cpu")))
    task.model.train()
    return task


def disturb(trainer: Trainer | PPOTask, std: float = 0.1) -> None:
    """Move adapter and critic away from their start."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if parameter.requires_grad and "lora_A" not in name:
                parameter.add_(torch.randn_like(parameter) * std)


def trained(trainer: Trainer | PPOTask) -> dict[str, torch.Tensor]:
    named = trainer.model.named_parameters()
    return {name: p.detach().clone() for name, p in named if p.requires_grad}


def samples_of(update: Any) -> list[Sample]:
    return [sample for micro in update.micro_batches for sample in micro.items]
