"""`main-peft check`: what is to be said of rows before they are trained on."""

import sys
from dataclasses import dataclass
from pathlib import Path

from main.cli.arguments import Arguments, Part, tell
from main.loaders import check, preview
from main.options import Options, below, parse
from main.system.disk import told


@dataclass(kw_only=True)
class CheckOptions(Options):
    """What is looked at.

    data_path: a name in data_present_path, a file or a folder; every split is looked at.
    data_present_path: the registry of data sets.
    loader_name: a row format, or 'auto'.
    from_pretrained: a model's folder: with it lengths are tokens, and rows are encoded.
    max_length: tokens that a row may have.
    rows: so many rows are shown as the model will see them, what is trained in colour.
    output: an .html or .json file for what was found, instead of the screen.
    """

    data_path: str
    data_present_path: str | Path = "./data/present.json"
    loader_name: str = "auto"
    from_pretrained: str | Path | None = None
    max_length: int = 1024
    rows: int = 0
    output: str | Path | None = None

    def problems(self) -> list[str]:
        found = below(self, {"max_length": 1, "rows": 0})
        if self.rows and self.from_pretrained is None:
            found.append(f"rows={self.rows} needs from_pretrained, the model that sees them.")
        if self.output is not None and Path(self.output).suffix not in (".html", ".json"):
            found.append(f"output='{self.output}' must end with .html or .json.")
        return found


def arguments() -> Arguments:
    return Arguments(
        "main-peft check",
        "Look at rows before training on them: faults, lengths, repetitions, leaks. The exit "
        "status is 1 where something is found that training would suffer from.",
        [Part(CheckOptions, {"model": "from_pretrained"})],
        positional="data_path",
    )


def run(words: list[str]) -> None:
    options = parse(CheckOptions, arguments().parse(words).parts[0], "check")
    how = {
        "from_pretrained": options.from_pretrained,
        "max_length": options.max_length,
        "data_present_path": options.data_present_path,
    }
    colour = sys.stdout.isatty()
    if options.rows:
        shown = preview(options.data_path, options.loader_name, rows=options.rows, **how)  # type: ignore[arg-type]
        tell(shown.to_text(colour=colour))
    found = check(options.data_path, options.loader_name, **how)  # type: ignore[arg-type]
    if options.output is None:
        tell(found.to_text(colour=colour))
    else:
        path = Path(options.output)
        with told(path):
            text = found.to_html() if path.suffix == ".html" else found.to_json()
            path.write_text(text, encoding="utf-8")
        tell(str(path))
    if found.alarms:
        raise SystemExit(1)
