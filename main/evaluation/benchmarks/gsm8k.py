"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168): {"question": ..., "answer": "... #### 72"}."""

from main.evaluation.benchmarks.benchmark import Benchmark, Marks, Row, missing
from main.evaluation.numbers import last_number

ASK = "Solve this problem step by step. Write the number alone in the last line, after ####."


def problems(row: Row) -> list[str]:
    found = missing(row, "question", "answer")
    if not found and last_number(row["answer"]) is None:
        found.append(f"'answer' ends with no number: {row['answer'][-60:]!r}.")
    return found


def question(row: Row) -> str:
    return f"{row['question'].strip()}\n\n{ASK}"


def mark(row: Row, answer: str) -> Marks:
    return {"accuracy": (int(last_number(answer) == last_number(row["answer"])), 1)}


BENCHMARK = Benchmark(
    (), problems, question, mark, lambda row: "", "zero-shot|last number or \\boxed"
)
