"""`main-peft serve`: `main.utils.serve` with the other commands' ways of being called."""

from main.cli.arguments import Arguments, Part
from main.utils.serve import ServeOptions, serve

FURTHER = "--"  # what follows goes to vllm serve


def arguments() -> Arguments:
    return Arguments(
        "main-peft serve",
        "Serve a model and adapters by name with vLLM; what follows -- goes to vllm serve. A key "
        "comes from VLLM_API_KEY in the environment.",
        [Part(ServeOptions, without={"arguments": "write them after --"})],
        positional="model",
    )


def run(words: list[str]) -> None:
    own, further = words, list[str]()
    if FURTHER in words:
        place = words.index(FURTHER)
        own, further = words[:place], words[place + 1 :]
    [options] = arguments().parse(own).parts
    serve(options.pop("model", ""), **options, arguments=further)
