"""Asks a model a benchmark's questions from local files, and says how sure the score is.

    from main.evaluation.benchmarks import evaluate_benchmark

    result = evaluate_benchmark("gsm8k", "test.jsonl", predictor, "outputs/gsm8k.jsonl")
    print(result)                                 # accuracy 0.41 (0.38 to 0.44), 1319 rows

Nothing is downloaded. Questions are asked without examples before them, as one user turn, so that
scores compare with each other and only roughly with published ones that were made in another way.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from main.errors import ConfigError
from main.evaluation.asking import Batcher
from main.evaluation.benchmarks import choices, gsm8k, ifeval
from main.evaluation.benchmarks.benchmark import Benchmark, Marks
from main.evaluation.benchmarks.reading import read_benchmark
from main.evaluation.inferences import inference_with_data
from main.evaluation.intervals import Interval, of_clusters, of_groups, wilson
from main.evaluation.lines import split_thoughts
from main.options import nearest

BENCHMARKS: Mapping[str, Benchmark] = {
    "gsm8k": gsm8k.BENCHMARK,
    "mmlu": choices.MMLU,
    "ceval": choices.CEVAL,
    "ifeval": ifeval.BENCHMARK,
}


class BenchmarkResult(NamedTuple):
    """What a model reached.

    name: of the benchmark.
    scores: name -> share with its 95% interval; 'accuracy/groups' is the mean over subjects.
    groups: subject -> accuracy; {} where the benchmark has none.
    rows, failed: questions asked, and those without an answer, which count as wrong.
    path: of the answers.
    signature: how the numbers are made.
    """

    name: str
    scores: dict[str, Interval]
    groups: dict[str, Interval]
    rows: int
    failed: int
    path: Path
    signature: str

    def __str__(self) -> str:
        shown = [
            f"{name} {score.value:.4f} ({score.low:.4f} to {score.high:.4f})"
            for name, score in self.scores.items()
        ]
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{self.name}: {'; '.join(shown)}; {self.rows} rows{failed}; {self.signature}"


def evaluate_benchmark(
    name: str,
    path: str | Path,
    answerer: Any,
    save_path: str | Path,
    batch_size: int = 16,
    *,
    limit: int | None = None,
    max_new_tokens: int = 512,
    overwrite: bool = False,
    progress: bool | None = None,
) -> BenchmarkResult:
    """The scores of a model on a benchmark; an interrupted call goes on when it is made again.

    Args:
        name: a key of `BENCHMARKS`: 'gsm8k', 'mmlu', 'ceval' or 'ifeval'.
        path: the published file, or a folder of such files.
        answerer: a predictor, asked greedily; or a function as inference_with_data takes.
        save_path: JSON Lines file of the answers.
        batch_size: questions in one call.
        limit: this many rows, evenly spread over the files; None = all.
        max_new_tokens: of an answer of a predictor.
        overwrite, progress: as in inference_with_data.

    Raises:
        ConfigError: an unknown benchmark or an argument that cannot work.
        MissingFileError, DataError: see `read_benchmark`; IFEval's instructions are known by name.
        MissingExtraError: IFEval asks about a language, and langdetect is not installed.
        GenerationError, DiskError: as inference_with_data.
    """
    if name not in BENCHMARKS:
        known = list(BENCHMARKS)
        hint = nearest(str(name).lower(), known)
        raise ConfigError(f"there is no benchmark {name!r}; there are {known}.{hint}")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit} must be 1 or more, or None.")
    benchmark = BENCHMARKS[name]
    rows = _spread(read_benchmark(benchmark, path), limit)
    asked = [{"query": benchmark.question(row)} for row in rows]
    summary = inference_with_data(
        asked,
        _batcher(answerer, max_new_tokens),
        save_path,
        batch_size,
        overwrite=overwrite,
        progress=progress,
    )
    answers = _answers(summary.path)
    marks = [benchmark.mark(row, answer) for row, answer in zip(rows, answers, strict=True)]
    subjects = [benchmark.group(row) for row in rows]
    scores, groups = _scores(marks), _groups(marks, subjects)
    if len(groups) > 1:
        hits = [round(group.value * group.n) for group in groups.values()]
        scores["accuracy/groups"] = of_groups(hits, [group.n for group in groups.values()])
    signature = f"{name}|{benchmark.scored}|95%"
    return BenchmarkResult(
        name, scores, groups, summary.rows, summary.failed, summary.path, signature
    )


def _batcher(answerer: Any, max_new_tokens: int) -> Batcher:
    if not hasattr(answerer, "predict_stream"):
        return answerer

    def ask(item: dict[str, list[Any]]) -> list[str]:
        return answerer(**item, max_new_tokens=max_new_tokens, temperature=0)

    return ask


def _spread(rows: list[dict[str, Any]], limit: int | None) -> list[dict[str, Any]]:
    if limit is None or limit >= len(rows):
        return rows
    return [rows[i * len(rows) // limit] for i in range(limit)]


def _answers(path: Path) -> list[str]:
    """Without what a model thought before them; '' for a row that failed."""
    with path.open(encoding="utf-8") as file:
        found = [json.loads(line)["response"] for line in file]
    return [split_thoughts(text or "").response or "" for text in found]


def _scores(marks: Sequence[Marks]) -> dict[str, Interval]:
    """Rows with one question each are independent; several instructions of a prompt are not."""
    found = {}
    for name in marks[0]:
        hits, counts = zip(*(mark[name] for mark in marks), strict=True)
        alone = all(count == 1 for count in counts)
        found[name] = wilson(sum(hits), len(hits)) if alone else of_clusters(hits, counts)
    return found


def _groups(marks: Sequence[Marks], subjects: Sequence[str]) -> dict[str, Interval]:
    found: dict[str, list[int]] = {}
    for mark, subject in zip(marks, subjects, strict=True):
        if subject:
            found.setdefault(subject, []).append(mark["accuracy"][0])
    return {subject: wilson(sum(hits), len(hits)) for subject, hits in sorted(found.items())}
