"""Ask a model, with or without an adapter: one question, a batch, a stream.

python examples/predict.py --peft_path save_model/quickstart/Llama_110
"""

import argparse

from main.predictor.hf import Predictor

TASK = "Write this customer's request as one ticket line: action | item | order | deadline\n\n"
MESSAGES = [
    "Hi, the green kettle from order 4821 arrived broken. Please send a new one by Friday.",
    "I am not keeping the red lamp, order 7730, please have somebody pick it up.",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--peft_path")
    parser.add_argument("--message", action="append", help="ask this instead; may be repeated")
    arguments = parser.parse_args()
    pred = Predictor(arguments.model, peft_path=arguments.peft_path)
    queries = arguments.message or [TASK + message for message in MESSAGES]

    for query, text in zip(queries, pred(queries, max_new_tokens=64), strict=True):
        print(f"> {query.splitlines()[-1]}\n{text}\n")

    print("The first once more, as a stream:")
    for chunks, _ in pred.predict_stream(queries[0], max_new_tokens=64):
        print(chunks[0], end="", flush=True)
    print()


if __name__ == "__main__":
    main()
