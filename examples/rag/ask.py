"""Ask with retrieved knowledge: the nearest clue, if it is near enough, goes before the question.

    python examples/rag/index.py add examples/rag/policies.jsonl
    python examples/rag/ask.py "Until when can I return things?"
    python examples/rag/ask.py "Until when can I return things?" --threshold 0     # without

Prints which clue was used, the answer with it, and the answer without it.
"""

import argparse

from index import ENCODER, Hit, Index

from main.predictor.hf import Predictor

# Words of the prompt, by the language of the question.
PROMPTS = {
    "en": "Answer with the retrieved knowledge.\n<rag>{clue}</rag>\nQuestion: {question}",
    "zh": "<rag>检索到的知识：\n{clue}</rag>\n请根据以上知识回答下面的问题。\n{question}",
}


def build_prompt(question: str, hit: Hit | None) -> str:
    """The question with its clue; without a hit the question alone."""
    if hit is None:
        return question
    language = "zh" if any("\u4e00" <= character <= "\u9fff" for character in question) else "en"
    return PROMPTS[language].format(clue=hit.clue, question=question)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question")
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--peft_path")
    parser.add_argument("--index", default="rag_index", help="folder of the index")
    parser.add_argument("--encoder", default=ENCODER)
    parser.add_argument("--threshold", type=float, default=0.3, help="largest cosine distance")
    arguments = parser.parse_args()
    index = Index(arguments.index, arguments.encoder)
    if not len(index):
        print(f"The index {arguments.index} is empty. Fill it first:\n"
              "    python examples/rag/index.py add examples/rag/policies.jsonl\n")  # fmt: skip
    hit = index.find(arguments.question, arguments.threshold)
    print(f"Clue: {hit.id}, distance {hit.distance:.3f}: {hit.clue}" if hit else "Clue: none used")
    pred = Predictor(arguments.model, peft_path=arguments.peft_path)
    queries = [arguments.question] + ([build_prompt(arguments.question, hit)] if hit else [])
    answers = pred(queries, max_new_tokens=80)
    if hit:
        print(f"\nWith the clue: {answers[1]}")
    print(f"\nWithout a clue: {answers[0]}")


if __name__ == "__main__":
    main()
