"""`main-peft predict`: one answer a text, or one line of JSON a row of a file."""

import sys
from dataclasses import dataclass
from typing import Any

from main.cli.answers import ALIASES, AnswererOptions, make_predictor
from main.cli.arguments import Arguments, Part, tell
from main.errors import ConfigError
from main.options import parse
from main.predictor.sampling import GenerationOptions

OF_FILES = ("save_path", "rows_at_once", "overwrite", "retry_failed", "split_thoughts")


@dataclass(kw_only=True)
class PredictOptions:
    """What is answered.

    query: texts to answer, one answer each; without any, and without data, the lines of standard
        input are.
    data: a file of rows to answer, of any format of the library, into save_path.
    save_path: JSON Lines, one line a row; an interrupted file goes on where it stopped.
    rows_at_once: of the file in one call of the model.
    overwrite: start the file anew.
    retry_failed: ask those rows again that failed.
    split_thoughts: write <think>...</think> into a field `thoughts`.
    """

    query: list[str] | None = None
    data: str | None = None
    save_path: str | None = None
    rows_at_once: int = 16
    overwrite: bool = False
    retry_failed: bool = False
    split_thoughts: bool = False

    def problems(self) -> list[str]:
        """One sentence for every value that cannot work."""
        found = []
        if self.data is not None and self.query:
            found.append("give texts or data, not both.")
        if self.data is not None and self.save_path is None:
            found.append("data needs save_path, the file for the answers.")
        if self.data is None:
            found += [f"{n} belongs to data, which is not given." for n in self._of_files()]
        return found

    def _of_files(self) -> list[str]:
        default = PredictOptions()
        return [name for name in OF_FILES if getattr(self, name) != getattr(default, name)]


def arguments() -> Arguments:
    return Arguments(
        "main-peft predict",
        "Answer texts, or every row of a file.",
        [
            Part(PredictOptions),
            Part(AnswererOptions, ALIASES),
            Part(GenerationOptions),
        ],
        positional="query",
    )


def run(words: list[str]) -> None:
    given = arguments().parse(words)
    what, who, how = given.parts
    options = parse(PredictOptions, what, "predict")
    parse(GenerationOptions, how, "predict")
    if options.data is None:
        texts = options.query or _lines()
        answers = make_predictor(who)(texts, **how)
        for answer in answers:
            tell(answer)
        return
    answer_file(options, who, how)


def answer_file(options: PredictOptions, who: dict[str, Any], how: dict[str, Any]) -> None:
    """Batch inference from `data` to `save_path`."""
    from main.evaluation.inferences import inference_with_data_path
    from main.evaluation.items import read_items

    assert options.data is not None and options.save_path is not None
    read_items(options.data)  # bad rows are told before a model takes its time to load
    predictor = make_predictor(who)
    inference_with_data_path(
        options.data,
        lambda item: predictor(**item, **how),
        options.save_path,
        options.rows_at_once,
        overwrite=options.overwrite,
        retry_failed=options.retry_failed,
        split_thoughts=options.split_thoughts,
    )


def _lines() -> list[str]:
    """Of standard input, those that are not blank."""
    if sys.stdin.isatty():
        raise ConfigError("give a text to answer, lines on standard input, or --data FILE.")
    lines = [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not lines:
        raise ConfigError("standard input is empty: there is nothing to answer.")
    return lines
