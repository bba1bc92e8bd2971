"""Questions with four choices: MMLU (arXiv 2009.03300) and C-Eval (arXiv 2305.08322).

    MMLU     CSV without titles: question, A, B, C, D, letter; or {"question", "choices", "answer"
             (0 to 3 or a letter), "subject"}
    C-Eval   CSV with titles: id, question, A, B, C, D, answer, explanation; or the same as objects

A file's name gives the subject where the row does not: `abstract_algebra_test.csv`.
"""

from main.evaluation.benchmarks.benchmark import Benchmark, Marks, Row, missing
from main.evaluation.final_answer import chosen

LETTERS = "ABCD"
ASK = "Think first if you need to. The last line of your answer is: The answer is X. (X: a letter)"
ASK_ZH = "以下是一道单项选择题。可以先分析，最后一行写：答案是X（X 为选项字母）。"


def problems(row: Row) -> list[str]:
    if "choices" not in row:
        found = missing(row, "question", *LETTERS)
    else:
        given = row["choices"]
        four = isinstance(given, list) and len(given) == len(LETTERS)
        found = missing(row, "question")
        found += [] if four else [f"'choices' must be a list of four; found {given!r}."]
    return found if _letter(row) else [*found, _no_answer(row)]


def _no_answer(row: Row) -> str:
    return (
        f"'answer' must be one of {', '.join(LETTERS)} or 0 to 3; found {row.get('answer')!r}. "
        "Files of tests without answers cannot be scored here: take dev or val."
    )


def _letter(row: Row) -> str:
    """The right one; '' where the row does not say."""
    answer = row.get("answer")
    if isinstance(answer, str):
        answer = answer.strip()
        return answer if len(answer) == 1 and answer in LETTERS else ""
    if isinstance(answer, bool) or not isinstance(answer, int):
        return ""
    return LETTERS[answer] if 0 <= answer < len(LETTERS) else ""


def _listed(row: Row) -> str:
    given = row["choices"] if "choices" in row else [row[letter] for letter in LETTERS]
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, given, strict=True)]
    return "\n".join([str(row["question"]).strip(), *lines])


def question(row: Row) -> str:
    return f"{_listed(row)}\n\n{ASK}"


def question_zh(row: Row) -> str:
    return f"{ASK_ZH}\n\n{_listed(row)}"


def mark(row: Row, answer: str) -> Marks:
    return {"accuracy": (int(chosen(answer, LETTERS) == _letter(row)), 1)}


def group(row: Row) -> str:
    return str(row.get("subject") or "")


SCORED = "zero-shot|the letter that the answer ends with choosing"
MMLU = Benchmark(("question", *LETTERS, "answer"), problems, question, mark, group, SCORED)
CEVAL = Benchmark((), problems, question_zh, mark, group, SCORED)
