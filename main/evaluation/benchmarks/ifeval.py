"""IFEval (Zhou et al. 2023, arXiv 2311.07911): instructions whose following can be verified.

Rows: {"key": 1000, "prompt": ..., "instruction_id_list": [...], "kwargs": [{...}, ...]}.

A prompt is right where all of its instructions are followed. `loose` also accepts an answer without
its first or last line or its asterisks: what a model says around what was asked for.
"""

from collections.abc import Mapping

from main.evaluation.benchmarks.benchmark import Benchmark, Marks, Row, missing
from main.evaluation.benchmarks.instructions import INSTRUCTIONS, argument_problems, follows
from main.options import nearest


def problems(row: Row) -> list[str]:
    found = missing(row, "prompt")
    names, arguments = row.get("instruction_id_list"), row.get("kwargs")
    if not (isinstance(names, list) and isinstance(arguments, list) and names):
        return [*found, "'instruction_id_list' and 'kwargs' must be lists, with an entry each."]
    if len(names) != len(arguments):
        return [*found, f"{len(names)} instructions have {len(arguments)} entries in 'kwargs'."]
    for name, given in zip(names, arguments, strict=True):
        if name not in INSTRUCTIONS:
            found.append(f"there is no instruction {name!r}.{nearest(str(name), INSTRUCTIONS)}")
        else:
            found += argument_problems(name, _given(given))
    return found


def question(row: Row) -> str:
    return str(row["prompt"])


def mark(row: Row, answer: str) -> Marks:
    asked = [
        (name, _given(given))
        for name, given in zip(row["instruction_id_list"], row["kwargs"], strict=True)
    ]
    found: Marks = {}
    for kind, texts in (("strict", [answer]), ("loose", variants(answer))):
        followed = [
            any(text.strip() and follows(name, text, given) for text in texts)
            for name, given in asked
        ]
        found[f"prompt/{kind}"] = (int(all(followed)), 1)
        found[f"instruction/{kind}"] = (sum(followed), len(followed))
    return found


def variants(answer: str) -> list[str]:
    """The answer; without its first line, its last, both; and each of these without asterisks."""
    lines = answer.split("\n")
    cut = [lines, lines[1:], lines[:-1], lines[1:-1]]
    texts = ["\n".join(part).strip() for part in cut]
    return [answer, *texts[1:], *(text.replace("*", "") for text in [answer, *texts[1:]])]


def _given(arguments: object) -> dict:
    """Those that say something: in tables every entry has every name, and numbers a point."""
    given = arguments if isinstance(arguments, Mapping) else {}
    whole = {n: int(v) if isinstance(v, float) and v.is_integer() else v for n, v in given.items()}
    return {name: value for name, value in whole.items() if value is not None}


BENCHMARK = Benchmark(
    (),
    problems,
    question,
    mark,
    lambda row: "",
    "25 instructions|sentences by their ends|words by letters and digits",
)
