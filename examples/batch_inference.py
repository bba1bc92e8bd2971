"""Answer a whole file, continue if interrupted, and score the answers.

    python examples/batch_inference.py --peft_path save_model/quickstart/Llama_110
    accelerate launch --num_processes 2 examples/batch_inference.py      # shares the work

Without GPUs, several processes need `accelerate launch --multi_gpu` all the same.
"""

import argparse
import json
import os

from main.evaluation.inferences import inference_with_data_path
from main.evaluation.metrics import evaluate_generation
from main.predictor.hf import Predictor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--peft_path")
    parser.add_argument("--data", default="data/ticket_en_test.jsonl")
    parser.add_argument("--save", default="outputs_ticket_en_test.jsonl")
    arguments = parser.parse_args()
    pred = Predictor(arguments.model, peft_path=arguments.peft_path)

    def batcher(item: dict) -> list[str]:
        return pred(**item, max_new_tokens=48, temperature=0)

    inference_with_data_path(
        data_path=arguments.data, batcher=batcher, save_path=arguments.save, batch_size=16
    )
    if os.environ.get("RANK", "0") != "0":
        return  # one process scores what all have answered
    with open(arguments.save, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    answers = [row["response"] for row in rows]  # None where a row failed: an empty answer
    evaluate_generation(pred.tokenizer, [row["answer"] for row in rows], answers)


if __name__ == "__main__":
    main()
