"""`main-peft evaluate`: scores of answers against the gold ones, in a file or made now."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from main.cli.answers import ALIASES, AnswererOptions
from main.cli.arguments import Arguments, Part, tell
from main.cli.predict import PredictOptions, answer_file
from main.errors import ConfigError, DataError, MissingFileError
from main.options import below, parse
from main.predictor.sampling import GenerationOptions


@dataclass(kw_only=True)
class EvaluateOptions:
    """What is scored, and how.

    responses: a file of `predict --data`: a `response` and an `answer` in each line.
    data: rows to answer first, into save_path, which is scored then.
    save_path: JSON Lines; an interrupted file goes on where it stopped.
    rows_at_once: of data in one call of the model.
    standard: sacreBLEU's and rouge_score's definitions with 95% intervals; by default the guide's.
    intensive: for languages without spaces between words: ROUGE over words found by jieba.
    tokenizer: folder of the one on whose ids the guide's BLEU is taken; by default the model's.
    bleu_tokenizer: with standard, the tokenizer of sacreBLEU's BLEU.
    n_bootstrap: with standard, resamples behind the intervals; 0 for none.
    """

    responses: str | None = None
    data: str | None = None
    save_path: str | None = None
    rows_at_once: int = 16
    standard: bool = False
    intensive: bool = False
    tokenizer: str | None = None
    bleu_tokenizer: str = "auto"
    n_bootstrap: int = 1000

    def problems(self) -> list[str]:
        """One sentence for every value that cannot work."""
        found = below(self, {"n_bootstrap": 0, "rows_at_once": 1})
        if (self.responses is None) == (self.data is None):
            found.append("give a file of responses, or data with a model that answers it.")
        if self.data is not None and self.save_path is None:
            found.append("data needs save_path, the file for the answers.")
        if self.data is None and self.save_path is not None:
            found.append("save_path belongs to data, which is not given.")
        if self.standard and self.tokenizer is not None:
            found.append("tokenizer changes nothing with standard=True: leave it out.")
        return found


def arguments() -> Arguments:
    return Arguments(
        "main-peft evaluate",
        "Score answers against the gold ones; --data with a model answers them first.",
        [Part(EvaluateOptions), Part(AnswererOptions, ALIASES), Part(GenerationOptions)],
        positional="responses",
    )


def run(words: list[str]) -> None:
    given = arguments().parse(words)
    what, who, how = given.parts
    options = parse(EvaluateOptions, what, "evaluate")
    parse(GenerationOptions, how, "evaluate")
    if options.data is None:
        _refuse_model(who, how, options)
    folder = None if options.standard else _tokenizer_folder(options, who)
    if options.data is not None:
        asked = PredictOptions(
            data=options.data, save_path=options.save_path, rows_at_once=options.rows_at_once
        )
        answer_file(asked, who, how)
    answers, gold = read_responses(Path(options.responses or options.save_path or ""))
    tell(_scored(options, folder, answers, gold))


def _refuse_model(who: dict[str, Any], how: dict[str, Any], options: EvaluateOptions) -> None:
    """Nobody is asked where the answers are there; a model may name the tokenizer."""
    named = {"model_from_pretrained", "peft_path"} if not options.standard else set()
    vain = [name for name in (*who, *how) if name not in named]
    if vain:
        raise ConfigError(f"{', '.join(vain)}: changes nothing, as the answers are in the file.")


def _tokenizer_folder(options: EvaluateOptions, who: dict[str, Any]) -> Any:
    from main.cli.answers import base_of

    if options.tokenizer is not None:
        return options.tokenizer
    if "model_from_pretrained" in who:
        return who["model_from_pretrained"]
    if "peft_path" in who:
        return base_of(who["peft_path"])
    raise ConfigError(
        "the guide's BLEU is taken on a tokenizer's ids: give --tokenizer FOLDER (the model's), or "
        "--standard for sacreBLEU's definitions, which need none."
    )


def read_responses(path: Path) -> tuple[list[str | None], list[Any]]:
    """Answers and gold answers of a file of responses.

    Raises:
        MissingFileError, DataError: no such file; lines without response or gold answer, all of
            them listed.
    """
    if not path.is_file():
        raise MissingFileError(f"'{path}' does not exist.")
    answers: list[str | None] = []
    gold: list[Any] = []
    problems: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        row = _row(line)
        if row is None or "response" not in row:
            problems.append(f"line {number} has no 'response'")
        elif not row.get("answer"):
            problems.append(f"line {number} has no gold 'answer'")
        else:
            answers.append(row["response"])
            gold.append(row["answer"])
    if problems:
        shown = "; ".join(problems[:20])
        raise DataError(f"{path}: {len(problems)} lines cannot be scored: {shown}.")
    return answers, gold


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _scored(options: EvaluateOptions, folder: Any, answers: list[Any], gold: list[Any]) -> str:
    from main.evaluation.metrics import evaluate_generation
    from main.models import load_tokenizer

    scores = evaluate_generation(
        None if folder is None else load_tokenizer(folder),
        gold,
        answers,
        options.intensive,
        options.standard,
        bleu_tokenizer=options.bleu_tokenizer,
        n_bootstrap=options.n_bootstrap,
        show=False,
    )
    failed = sum(answer is None for answer in answers)
    counted = f"{len(answers)} rows" + (f", {failed} failed (scored as empty)" if failed else "")
    return f"{counted}\n{table(scores)}"


def table(scores: dict[str, Any]) -> str:
    """One line a metric, with its interval where there is one; then how each number was made."""
    from prettytable import PrettyTable

    confidence = scores.get("confidence") or {}
    screen = PrettyTable(["metric", "score", *(["95% low", "95% high"] if confidence else [])])
    screen.align = "r"
    screen.align["metric"] = "l"
    for name, value in scores.items():
        if isinstance(value, float):
            numbers = [value, *confidence.get(name, ())]
            screen.add_row([name, *(f"{number:.4f}" for number in numbers)])
    lines = [str(screen), *(f"{n}|{made}" for n, made in scores.get("signature", {}).items())]
    return "\n".join(lines)
