"""`main-peft report`: `main.utils.report` with the other commands' ways of being called."""

from dataclasses import dataclass

from main.cli.arguments import Arguments, Part, tell
from main.errors import ConfigError
from main.options import parse
from main.utils.report import report


@dataclass(kw_only=True)
class ReportOptions:
    """What is shown, and where it goes.

    runs: save_model/<task_name> folders, side by side.
    output: the HTML file.
    """

    runs: list[str] | None = None
    output: str = "report.html"


def arguments() -> Arguments:
    return Arguments(
        "main-peft report",
        "Show what runs left: curves, settings, data, samples, scores, warnings.",
        [Part(ReportOptions)],
        positional="runs",
    )


def run(words: list[str]) -> None:
    given = parse(ReportOptions, arguments().parse(words).parts[0], "report")
    if not given.runs:
        raise ConfigError("report needs a run: main-peft report save_model/<task_name>.")
    tell(str(report(given.runs, given.output)))
