"""`main-peft chat`: a dialogue in the terminal, or of the lines that a pipe brings."""

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

from main.cli.answers import ALIASES, AnswererOptions, make_predictor
from main.cli.arguments import Arguments, Part, tell
from main.errors import ConfigError, DataError, GenerationError
from main.options import nearest, parse
from main.predictor.sampling import GenerationOptions

HELP = """/reset          forget the dialogue
/system TEXT    begin anew with this system prompt; without TEXT, with none
/exit           leave; so does the end of the input
Ctrl-C stops an answer; at the prompt it leaves."""


def arguments() -> Arguments:
    return Arguments(
        "main-peft chat",
        "Talk with a model. /reset, /system TEXT and /exit are commands there; Ctrl-C\n"
        "stops an answer.",
        [Part(AnswererOptions, ALIASES), Part(GenerationOptions, without=_WITHOUT)],
    )


_WITHOUT = {
    "num_return_sequences": "a chat goes on from one answer",
    "build_message": "a chat is written through the chat template",
    "tools": "nobody here would run the calls",
}


def run(words: list[str]) -> None:
    given = arguments().parse(words)
    who, how = given.parts
    parse(GenerationOptions, how, "chat")
    chat = Chat(make_predictor(who), how)
    if sys.stdin.isatty():
        tell("/reset, /system TEXT, /exit; Ctrl-C stops an answer.")
    chat.talk(_said())


class Chat:
    """A dialogue with a predictor.

    history: messages so far; a turn that gave no answer is not among them.
    """

    def __init__(self, predictor: Any, how: dict[str, Any], write: Callable[[str], Any] = tell):
        self.predictor, self.how, self.write = predictor, how, write
        self.history: list[dict[str, Any]] = []

    def talk(self, said: Iterator[str]) -> None:
        """Answer each line, until /exit or the end."""
        for text in said:
            if text.startswith("/"):
                if not self._command(text):
                    return
            elif text.strip():
                self._answer(text)

    def _command(self, text: str) -> bool:
        """Whether the dialogue goes on."""
        name, _, rest = text.partition(" ")
        if name in ("/exit", "/quit"):
            return False
        if name == "/reset":
            self.history = [m for m in self.history if m["role"] == "system"]
            self.write("(forgotten)")
        elif name == "/system":
            content = rest.strip()
            self.history = [{"role": "system", "content": content}] if content else []
            self.write("(begun anew)")
        elif name == "/help":
            self.write(HELP)
        else:
            known = ["/reset", "/system", "/exit", "/help"]
            self.write(f"(there is no {name}.{nearest(name, known)} /help lists what there is.)")
        return True

    def _answer(self, text: str) -> None:
        """Show the answer as it grows; what was shown is what the dialogue goes on from."""
        answer = ""
        try:
            stream = self.predictor.predict_stream(text, history=self.history, **self.how)
            with closing(stream):
                for chunks, texts in stream:
                    print(chunks[0], end="", flush=True)
                    answer = texts[0]
        except KeyboardInterrupt:
            print(" (stopped)", end="")
        except (GenerationError, DataError, ConfigError) as error:
            print(f"(no answer: {error})", end="")
            self.write("")
            return
        self.write("")
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        self.history += turns if answer else []


def _said() -> Iterator[str]:
    """Lines as they are typed, or as a pipe brings them."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            yield line.rstrip("\n")
        return
    with suppress(ImportError):
        import readline  # noqa: F401  (arrow keys and history at the prompt)
    while True:
        try:
            line = input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        yield line
