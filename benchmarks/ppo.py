"""Does PPO learn? Held-out reward before and after, in the guide's offline and online form.

    python benchmarks/ppo.py [--rows 300] [--epochs 6] [--sft <adapter>]

Both forms start from the same SFT adapter (`--sft_steps` optimizer steps unless `--sft` names one)
and see the same rows of ticket_en_rlhf; the reward is the guide's similarity to gold and bad
answers, or with `--reward fields` the share of right fields plus 1 for a right answer. Greedy
completions of the held-out rows (those of dev and test) are scored before and after each epoch;
`kl` is k3 of the policy against its start on them, nats a completion. `gain` is the mean change of
a row's reward with its standard error. Results go to benchmarks/results/ppo.json.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from main.trainer.loop.records import Means
from main.trainer.loop.task import Run
from main.trainer.lora import Trainer as SFTTrainer
from main.trainer.ppo import Trainer
from main.trainer.ppo.trainer import PPOTask
from main.utils.reward_func import fields_reward, reward_exact

RESULTS = Path(__file__).parent / "results" / "ppo.json"
SETTINGS = ("rows", "epochs", "batch_size", "accumulation", "lr", "critic", "reward", "bf16")
FORMS = {"online": 1.0, "offline": -1.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--encoder", default="models/all-MiniLM-L6-v2")
    parser.add_argument("--sft", help="an adapter to start from")
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch_size", type=int, default=10)
    parser.add_argument("--accumulation", type=int, default=4, help="batches of a draw")
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--reward", default="similarity", choices=["similarity", "fields"])
    parser.add_argument("--sft_steps", type=int, default=20)
    parser.add_argument("--critic", default="detached", choices=["head", "detached", "adapter"])
    parser.add_argument("--bf16", action="store_true", help="half of the time where a CPU has AMX")
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        start = arguments.sft or train_sft(arguments.model, arguments.sft_steps, folder)
        data = {
            "train": first_rows("data/ticket_en_rlhf_train.jsonl", arguments.rows, folder),
            "dev": joined(
                ["data/ticket_en_rlhf_dev.jsonl", "data/ticket_en_rlhf_test.jsonl"], folder
            ),
        }
        for form in arguments.forms:
            save(form, measure(form, start, data, arguments, folder), arguments)


def train_sft(model: str, steps: int, folder: str) -> Path:
    """The start: so few steps that the form of the answers is learnt and the rest is not yet."""
    trainer = SFTTrainer(
        from_pretrained=model,
        data_path=first_rows("data/ticket_en_train.jsonl", 8 * steps, folder),
        max_length=256,
        batch_size=8,
        lora_r=8,
        task_name="sft",
        output_dir=folder,
    )
    (result,) = trainer(num_epochs=1, lr=1e-3, report_to="none")
    return result.checkpoint


def first_rows(path: str, count: int, folder: str) -> Path:
    target = Path(folder) / Path(path).name
    with open(path, encoding="utf-8") as source:
        target.write_text("".join(itertools.islice(source, count)), encoding="utf-8")
    return target


def joined(paths: list[str], folder: str) -> Path:
    target = Path(folder) / "held_out.jsonl"
    target.write_text("".join(Path(path).read_text(encoding="utf-8") for path in paths), "utf-8")
    return target


class WatchedTrainer(Trainer):
    """Keeps the rewards of the rows that were evaluated."""

    scored: dict[Any, float]

    def configured(self, options: Any) -> "Watched":
        return Watched(self, options)


class Watched(PPOTask):
    def evaluate(self, rows: list[Any], device: torch.device) -> Any:
        self.watching = True
        try:
            return super().evaluate(rows, device)
        finally:
            self.watching = False

    def reward(self, samples: Any) -> Any:
        metrics = super().reward(samples)
        if getattr(self, "watching", False):
            self.trainer.scored |= {sample.row["row"]: sample.reward for sample in samples}
        return metrics


def measure(
    form: str, start: str | Path, data: dict[str, Path], arguments: Any, folder: str
) -> dict[str, Any]:
    similar = arguments.reward == "similarity"
    trainer = WatchedTrainer(
        from_pretrained=arguments.model,
        actor_resume_path=start,
        reward_from_pretrained=arguments.encoder if similar else None,
        ratio_for_rlhf=FORMS[form],
        loader_name="LLM_RLHF",
        data_path=data,
        max_length=256,
        dtype="bfloat16" if arguments.bf16 else "float32",
        critic=arguments.critic,
        batch_size=arguments.batch_size,
        batch_size_eval=25,
        task_name=form,
        output_dir=folder,
    )
    options: dict[str, Any] = {
        "num_epochs": arguments.epochs,
        "reward_func": None if similar else [fields_reward("|"), reward_exact],
        "lr": arguments.lr,
        "gradient_accumulation_steps": arguments.accumulation,
        "ppo_epochs": 3,
        "ppo_epsilon": 0.15,
        "max_completion_length": 32,
        "bf16": arguments.bf16,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
    }
    began, cpu = time.perf_counter(), time.process_time()
    before, first = evaluate(trainer, options), trainer.scored
    print(form, "before", before, flush=True)
    trainer.scored, epochs = {}, []
    for result in trainer(**options):
        epochs.append(result.eval | {"gain": gained(first, trainer.scored)})
        trainer.scored = {}
        print(form, "epoch", result.epoch, epochs[-1], flush=True)
    print(Path(folder, "data_record", form, "train.csv").read_text(encoding="utf-8"), flush=True)
    print(
        Path(folder, "data_record", form, f"samples_{result.epoch}.md").read_text(encoding="utf-8"),
        flush=True,
    )
    return {
        "before": before,
        "after_each_epoch": epochs,
        "train": result.train,
        "optimizer_steps": result.step,
        "wall_seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
    }


def gained(before: dict[Any, float], after: dict[Any, float]) -> dict[str, float]:
    """Of the same rows."""
    changes = [after[row] - before[row] for row in before]
    error = statistics.stdev(changes) / len(changes) ** 0.5
    return {"mean": statistics.mean(changes), "standard_error": error}


def evaluate(trainer: WatchedTrainer, options: dict[str, Any]) -> dict[str, float]:
    """As the loop evaluates, before the first step."""
    trainer.scored = {}
    task, cpu = trainer.task(**options), torch.device("cpu")
    task.open(Run(task.model, cpu))
    means = Means()
    rows = task.eval_data or []
    for start in range(0, len(rows), task.batch_size_eval):
        part = range(start, min(start + task.batch_size_eval, len(rows)))
        means.add(task.evaluate([rows[i] for i in part], cpu))
    task.close()
    return means.means()


def save(form: str, figures: dict[str, Any], arguments: Any) -> None:
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    found[form] = figures | {name: getattr(arguments, name) for name in SETTINGS}
    found[form]["command"] = " ".join(["python", *sys.argv])
    steps = f"{arguments.sft_steps} SFT steps of 8 rows of ticket_en, lr 1e-3, lora_r 8"
    found["start"] = "another adapter" if arguments.sft else steps
    found["packages"] = {name: version(name) for name in ("torch", "transformers", "peft")}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
