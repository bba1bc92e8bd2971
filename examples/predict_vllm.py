"""Ask a model through vLLM: a batch, a stream, answers of a given form, several adapters.

python examples/predict_vllm.py --peft_path save_model/quickstart/Llama_150
"""

import argparse
import json

from main.predictor.vllm import Predictor

TASK = "Write this customer's request as one ticket line: action | item | order | deadline\n\n"
MESSAGES = [
    "Hi, the green kettle from order 4821 arrived broken. Please send a new one by Friday.",
    "I am not keeping the red lamp, order 7730, please have somebody pick it up.",
]
SCHEMA = {
    "type": "object",
    "properties": {"item": {"type": "string", "maxLength": 30}, "order": {"type": "integer"}},
    "required": ["item", "order"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--peft_path", action="append", default=[], help="may be repeated")
    parser.add_argument("--max_model_len", type=int, default=2048)
    arguments = parser.parse_args()
    queries = [TASK + message for message in MESSAGES]
    adapters = arguments.peft_path or [None]

    with Predictor(
        arguments.model, peft_path=adapters[0], max_model_len=arguments.max_model_len
    ) as pred:
        for adapter in adapters:
            print(f"Adapter: {adapter}")
            for query, text in zip(
                queries, pred(queries, max_new_tokens=64, peft_path=adapter), strict=True
            ):
                print(f"> {query.splitlines()[-1]}\n{text}\n")

        print("The first once more, as a stream:")
        for chunks, _ in pred.predict_stream(queries[0], max_new_tokens=64):
            print(chunks[0], end="", flush=True)
        print("\n")

        question = f"What does the customer want? {MESSAGES[0]}"
        print("One of two words:", pred(question, choice=["exchange", "refund"])[0])
        text = pred(f"Item and order as JSON: {MESSAGES[0]}", json_schema=SCHEMA)[0]
        print("JSON:", json.loads(text))
        (answer,) = pred.predict_with_logprobs(queries[0], max_new_tokens=64)
        mean = sum(answer.logprobs) / len(answer.logprobs)
        print(f"Mean log-probability of a token: {mean:.3f} ({answer.finish_reason})")


if __name__ == "__main__":
    main()
