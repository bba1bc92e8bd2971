"""The whole library in one run: fine-tune a small real model and see what it learned.

    python examples/quickstart.py            # about five minutes on two cores

The task (data/ticket_en_*.jsonl): turn a customer's message into one ticket line. The model is
asked before and after on rows that it was not trained on.
"""

import argparse
import json
import time
from pathlib import Path

from prettytable import PrettyTable
from transformers.utils.logging import disable_progress_bar

from main.evaluation.metrics import evaluate_generation
from main.models import load_tokenizer
from main.predictor.hf import Predictor
from main.trainer.lora import Trainer

MODEL = Path("models/SmolLM2-135M-Instruct")
DEV = Path("data/ticket_en_dev.jsonl")
TASK = "quickstart"


def read_rows(path: Path, rows: int) -> tuple[list[list[dict]], list[str]]:
    """Prompts (all messages but the last) and gold answers of a file's first rows."""
    lines = path.read_text(encoding="utf-8").splitlines()[:rows]
    dialogues = [json.loads(line)["conversations"] for line in lines]
    return [d[:-1] for d in dialogues], [d[-1]["content"] for d in dialogues]


def answer(title: str, prompts: list[list[dict]], peft_path: Path | None = None) -> list[str]:
    print(f"\n== {title}: answering {len(prompts)} dev rows")
    began = time.perf_counter()
    answers = Predictor(MODEL, peft_path=peft_path)(prompts, max_new_tokens=48)
    print(f"   done in {time.perf_counter() - began:.0f} s")
    return answers


def train(epochs: int) -> Path:
    print("\n== Training a LoRA adapter on data/ticket_en_train.jsonl")
    trainer = Trainer(
        from_pretrained=MODEL,
        data_path="ticket_en",
        max_length=256,
        batch_size=8,
        task_name=TASK,
    )
    rows = len(trainer.train_data)
    print(f"   {rows} rows, {epochs} epochs: a few minutes on two cores")
    began = time.perf_counter()
    for result in trainer(num_epochs=epochs, lr=1e-3, logging_steps=5, eval_strategy="no"):
        print(
            f"   epoch {result.epoch}: loss {result.train['loss']:.4f}, "
            f"{time.perf_counter() - began:.0f} s"
        )
    assert result.checkpoint is not None
    return result.checkpoint


def side_by_side(prompts: list, gold: list[str], before: list[str], after: list[str]) -> str:
    table = PrettyTable(["customer", "before", "after", "gold"], align="l", hrules=1)
    table.max_width = 34
    for prompt, *answers in list(zip(prompts, before, after, gold, strict=True))[:5]:
        shown = [text.replace("\n", " ")[:150] for text in answers]
        table.add_row([prompt[-1]["content"].split("\n")[-1][:150], *shown])
    return table.get_string()


def exact(answers: list[str], gold: list[str]) -> str:
    hits = sum(a.strip() == g for a, g in zip(answers, gold, strict=True))
    return f"{hits} of {len(gold)} answers exactly right"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rows", type=int, default=60, help="dev rows to answer")
    arguments = parser.parse_args()
    disable_progress_bar()  # transformers': the weights of a small model are there at once
    prompts, gold = read_rows(DEV, arguments.rows)
    before = answer("Before", prompts)
    checkpoint = train(arguments.epochs)
    after = answer("After", prompts, checkpoint)

    print("\n== Five dev rows, before and after")
    print(side_by_side(prompts, gold, before, after))
    tokenizer = load_tokenizer(MODEL)
    for title, answers in (("before", before), ("after", after)):
        print(f"\nScores {title} ({exact(answers, gold)}):")
        evaluate_generation(tokenizer, gold, answers)

    print(f"""
Where things are
   adapter and state   {checkpoint}
   records             data_record/{TASK}/train.csv
   TensorBoard log     logs/tensorboard_logs/{TASK}

Try next
   .venv/bin/python examples/predict.py --peft_path {checkpoint}
   .venv/bin/python examples/batch_inference.py --peft_path {checkpoint}
   .venv/bin/tensorboard --logdir logs/tensorboard_logs
""")


if __name__ == "__main__":
    main()
