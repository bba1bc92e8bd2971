"""The four trainers on small data; under a launcher: `four_trainers.py JSON ...`, see `main`."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

OPTIONS: dict[str, Any] = {
    "num_epochs": 2,
    "lr": 1e-2,
    "adam_epsilon": 1e-3,  # small gradients are not blown up: adapters can be compared closely
    "logging_steps": 1,
    "report_to": "none",
}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dpo": {},
    "ppo": {"ppo_epochs": 2, "max_completion_length": 5},
    "grpo": {"num_generations": 4, "max_completion_length": 5, "beta": 0.1},
}
QUESTIONS = [
    ("What is two and two?", ["Four."], ["Five."]),
    ("The colour of the sky?", ["Blue"], ["Green", "Red"]),
    ("请用一句话介绍北京。", ["北京是中国的首都，历史悠久。"], ["北京在海边。"]),
    ("Say a", ["a"], ["b c d e f g h"]),
    ("Name a fruit and nothing else, please; one word is enough.", ["an apple"], ["a stone"]),
]


def rows(method: str, count: int) -> list[dict[str, Any]]:
    """Prompts and answers of very unequal length, no two rows alike."""
    found = []
    for number in range(count):
        question, gold, bad = QUESTIONS[number % len(QUESTIONS)]
        user = {"role": "user", "content": f"{number}. {question}"}
        row: dict[str, Any] = {"conversations": [user], "gold_answers": gold, "bad_answers": bad}
        if method == "lora":
            answer = {"role": "assistant", "content": f"{gold[0]} {number}"}
            row = {"conversations": [user, answer]}
        elif method == "grpo":
            row = {"prompt": [user], "answer": gold[0]}
        found.append(row)
    return found


def write_data(folder: Path, train: int = 7, dev: int = 7) -> None:
    for method in METHODS:
        for split, count in (("train", train), ("dev", dev)):
            lines = [json.dumps(row, ensure_ascii=False) for row in rows(method, count)]
            (folder / f"{method}_{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")


def letters(prompts: list, completions: list, **columns: Any) -> list[float]:
    """Rewards that differ between completions, without a model."""
    return [(sum(map(ord, c[-1]["content"])) % 17) / 8 - 1 for c in completions]


def make_trainer(method: str, model: str | Path, **changes: Any) -> Any:
    data = {split: f"{method}_{split}.jsonl" for split in ("train", "dev")}
    arguments: dict[str, Any] = {
        "data_path": data,
        "max_length": 128,
        "batch_size": 4,
        "lora_r": 4,
        "task_name": method,
    }
    if method == "ppo":
        arguments |= {"ratio_for_rlhf": 1.0}
    module = importlib.import_module(f"main.trainer.{method}")
    return module.Trainer(from_pretrained=model, **(arguments | changes))


def run(trainer: Any, method: str, **options: Any) -> Any:
    rewards = {"reward_func": letters} if method in ("ppo", "grpo") else {}
    return trainer(**(OPTIONS | METHODS[method] | rewards | options))


def main() -> None:
    for argument in sys.argv[1:]:
        given = json.loads(argument)
        method, options = given.pop("method"), given.pop("options", {})
        for result in run(make_trainer(method, **given), method, **options):
            found = [method, result.train, result.eval, result.step]
            # One write: lines of several processes must not mix.
            sys.stdout.write(f"RESULT {json.dumps(found)}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
