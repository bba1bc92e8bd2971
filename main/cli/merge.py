"""`main-peft merge`: `main.utils.merge_model` with the other commands' ways of being called."""

from main.cli.answers import base_of
from main.cli.arguments import Arguments, Part, tell
from main.errors import ConfigError
from main.utils.merge_model import MergeOptions, merge_model, told_report


def arguments() -> Arguments:
    aliases = {"model": "base", "resume_path": "peft_path", "save_path": "output"}
    return Arguments(
        "main-peft merge",
        "Merge one adapter or several into their base, and compare before and after.",
        [Part(MergeOptions, aliases)],
        positional="base",
    )


def run(words: list[str]) -> None:
    given = arguments().parse(words)
    [options] = given.parts
    adapters = options.get("peft_path") or []
    first = adapters if isinstance(adapters, str) else next(iter(adapters), None)
    if "base" not in options and first is not None:
        options["base"] = base_of(first)
    missing = [name for name in ("base", "peft_path", "output") if not options.get(name)]
    if missing:
        raise ConfigError(f"merge needs {' and '.join(missing)}.")
    tell(told_report(merge_model(**options)))
