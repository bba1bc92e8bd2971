"""One model through the stages, scored after each: SFT -> DPO -> GRPO, and SFT -> PPO.

    python examples/stages.py
    python examples/stages.py --stages sft dpo

Every stage starts from the adapter of the one before (PPO from that of SFT), and its reference is
that start. SFT is cut short on purpose: after twenty steps the model knows what a ticket line looks
like and still gets many wrong, so that there is something left to align.
"""

import argparse
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prettytable import PrettyTable
from quickstart import read_rows
from transformers.utils.logging import disable_progress_bar

from main.predictor.hf import Predictor
from main.trainer import dpo, grpo, lora, ppo
from main.utils.reward_func import fields_reward, reward_exact


class Plan(NamedTuple):
    """What a stage trains on, and how.

    rows: of the training data, the first ones.
    setup: for the trainer's constructor; options: for its call.
    """

    trainer: Any
    data: str
    rows: int
    setup: dict[str, Any]
    options: dict[str, Any]


PLANS = {
    "sft": Plan(lora.Trainer, "ticket_en", 160, {"batch_size": 8}, {"num_epochs": 1, "lr": 1e-3}),
    "dpo": Plan(
        dpo.Trainer,
        "ticket_en_dpo",
        240,
        {"batch_size": 8},
        {"num_epochs": 1, "lr": 1e-4, "beta": 0.1, "sft_weight": 1.0},
    ),
    "grpo": Plan(
        grpo.Trainer,
        "ticket_en_grpo",
        300,
        {},
        {
            "reward_func": [fields_reward("|"), reward_exact],
            "per_device_train_batch_size": 32,
            "gradient_accumulation_steps": 2,
            "num_generations": 8,
            "max_completion_length": 32,
            "num_epochs": 2,
            "lr": 1e-4,
        },
    ),
    "ppo": Plan(
        ppo.Trainer,
        "ticket_en_rlhf",
        300,
        {"batch_size": 10, "ratio_for_rlhf": 0.5, "critic": "detached"},
        {
            "gradient_accumulation_steps": 4,
            "ppo_epochs": 3,
            "max_completion_length": 32,
            "num_epochs": 2,
            "lr": 2e-4,
        },
    ),
}
START = {"dpo": "sft", "grpo": "dpo", "ppo": "sft"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--encoder", default="models/all-MiniLM-L6-v2", help="for PPO's reward")
    parser.add_argument("--stages", nargs="+", choices=list(PLANS), default=list(PLANS))
    parser.add_argument("--sft", help="an SFT adapter to start from, instead of the sft stage")
    parser.add_argument("--task", default="stages")
    parser.add_argument("--test_rows", type=int, default=60)
    parser.add_argument("--max_rows", type=int, help="at most so many training rows a stage")
    arguments = parser.parse_args()
    disable_progress_bar()
    prompts, gold = read_rows(Path("data/ticket_en_test.jsonl"), arguments.test_rows)
    table = PrettyTable(["after", "exactly right", "fields right", "minutes"], align="l")
    adapters: dict[str, Any] = {"sft": arguments.sft}
    table.add_row(["the base model", *scores(arguments.model, None, prompts, gold), ""])
    for stage in arguments.stages:
        started = time.perf_counter()
        adapters[stage] = train(stage, adapters.get(START.get(stage, "")), arguments)
        minutes = f"{(time.perf_counter() - started) / 60:.1f}"
        name = f"{START[stage]} -> {stage}" if stage in START else stage
        table.add_row([name, *scores(arguments.model, adapters[stage], prompts, gold), minutes])
        print(table, flush=True)


def train(stage: str, start: Any, arguments: argparse.Namespace) -> Any:
    """The last checkpoint of a stage that begins at the adapter `start`."""
    plan = PLANS[stage]
    setup = dict(plan.setup)
    if stage == "ppo":
        setup["reward_from_pretrained"] = arguments.encoder
    folder = Path("save_model") / arguments.task / "rows"
    trainer = plan.trainer(
        from_pretrained=arguments.model,
        resume_path=start,
        data_path=first_rows(plan.data, min(plan.rows, arguments.max_rows or plan.rows), folder),
        max_length=256,
        task_name=f"{arguments.task}/{stage}",
        **setup,
    )
    checkpoint = None
    for result in trainer(**plan.options):
        shown = {name: round(value, 4) for name, value in result.train.items()}
        print(f"{stage}, epoch {result.epoch}: {shown}", flush=True)
        checkpoint = result.checkpoint
    return checkpoint


def first_rows(data: str, count: int, folder: Path) -> Path:
    """A file of the first training rows of a shipped data set."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{data}.jsonl"
    with open(f"data/{data}_train.jsonl", encoding="utf-8") as source:
        target.write_text("".join(itertools.islice(source, count)), encoding="utf-8")
    return target


def scores(model: str, adapter: Any, prompts: Sequence[Any], gold: Sequence[str]) -> list[str]:
    """Shares of greedy answers and of their fields that are right."""
    answers = Predictor(model, peft_path=adapter)(prompts, max_new_tokens=32)
    exact = sum(a.strip() == g for a, g in zip(answers, gold, strict=True)) / len(gold)
    fields = fields_reward("|")(answers, gold)
    return [f"{exact:.2f}", f"{sum(fields) / len(fields):.2f}"]


if __name__ == "__main__":
    main()
