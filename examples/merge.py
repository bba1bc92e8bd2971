"""Merge an adapter into its base model, and see that the answers stay the same.

    python examples/merge.py --peft_path save_model/quickstart/Llama_150 --output merged

The same from the shell, with more choices (--weights, --quantization, --format ollama):

    python -m main.utils.merge_model BASE --peft_path ADAPTER --output DIR
    python -m main.utils.parity BASE --peft_path ADAPTER --merged DIR --data FILE

The folder is a plain model: `Predictor("merged")`, `vllm serve merged`,
`trl vllm-serve --model merged`.
"""

import argparse

from main.utils.merge_model import merge_model
from main.utils.parity import parity


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--peft_path", required=True, help="an adapter that a trainer saved")
    parser.add_argument("--output", default="merged")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--data", default="data/ticket_en_dev.jsonl")
    arguments = parser.parse_args()

    report = merge_model(
        arguments.model, arguments.peft_path, arguments.output, dtype=arguments.dtype
    )
    print(f"{report.output}: largest difference of a logit {report.saved:.2g}")
    print("Asking both the same ...")
    comparison = parity(
        arguments.model,
        arguments.peft_path,
        merged=report.output,
        data=arguments.data,
        limit=8,
        vllm=False,
    )
    print(comparison.table)


if __name__ == "__main__":
    main()
