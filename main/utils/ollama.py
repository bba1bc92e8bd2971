"""A merged folder for llama.cpp and Ollama: model.gguf by llama.cpp's converter, and a Modelfile.

Ollama's `ollama create NAME -f Modelfile` reads either the safetensors folder or model.gguf; it
does not read the chat template of the tokenizer, so the Modelfile says it again in Ollama's
language. The pieces are taken from what the tokenizer's own template writes, and compared with it.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from main.dialogue.ends import stop_token_ids
from main.dialogue.renderer import renderer_of
from main.errors import MissingFileError, ModelError
from main.models import context_length, load_config
from main.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONVERTER = "convert_hf_to_gguf.py"  # as llama.cpp names it; packages install the second name
COMMAND = "convert-hf-to-gguf"
GGUF = "model.gguf"
OUTTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
MOST_CONTEXT = 8192  # tokens; Ollama reserves memory for all of them
SYSTEM, USER, ANSWER = "text-of-system", "text-of-user", "text-of-answer"


class Pieces(NamedTuple):
    """What a chat template writes around the texts of a dialogue.

    system: before and after a system text; user: before and after a user's, the opening of the
    answer included; answer_end: after an assistant's; default_system: text used when none is given.
    """

    system: tuple[str, str]
    user: tuple[str, str]
    answer_end: str
    default_system: str


def find_converter(path: str | Path | None = None, required: bool = True) -> Path | None:
    """llama.cpp's converter: the given file, else the one on PATH.

    Raises:
        MissingFileError: there is none, and it is `required` or was named.
    """
    found = path or shutil.which(CONVERTER) or shutil.which(COMMAND)
    if found is not None and Path(found).is_file():
        return Path(found)
    if path is not None:
        raise MissingFileError(f"converter '{path}' does not exist; give llama.cpp's {CONVERTER}.")
    if required:
        raise MissingFileError(
            f"format='gguf' needs {CONVERTER} of llama.cpp, which is not on PATH (the Python "
            "package 'gguf' alone cannot convert). Clone llama.cpp, install its "
            "requirements/requirements-convert_hf_to_gguf.txt, and pass converter=<its path>."
        )
    return None


def write_gguf(converter: Path, folder: Path, dtype: str) -> None:
    """Add `model.gguf` to a model folder.

    Raises:
        ModelError: the converter failed; its last words are in the message.
    """
    target = folder / GGUF
    run = [sys.executable] if converter.suffix == ".py" else []
    command = [*run, str(converter), str(folder), "--outfile", str(target)]
    done = subprocess.run(
        [*command, "--outtype", OUTTYPES[dtype]], capture_output=True, text=True, check=False
    )
    if done.returncode or not target.is_file():
        last = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise ModelError(f"{converter} failed (exit {done.returncode}): {' / '.join(last)}")


def modelfile_start(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """The lines of a Modelfile that say the chat template.

    Raises:
        ModelError: the chat template cannot be said in Ollama's language.
    """
    pieces = template_pieces(tokenizer)
    system = [f'SYSTEM """{pieces.default_system}"""'] if pieces.default_system else []
    return [f'TEMPLATE """{ollama_template(pieces)}"""', *system]


def write_modelfile(folder: Path, tokenizer: "PreTrainedTokenizerBase", start: list[str]) -> None:
    """Add Ollama's `Modelfile` to a model folder; greedy, as the predictors here are.

    start: of `modelfile_start`.
    """
    from transformers import GenerationConfig

    context = context_length(load_config(folder)) or MOST_CONTEXT
    generation = GenerationConfig.from_pretrained(str(folder))
    stops = tokenizer.convert_ids_to_tokens(stop_token_ids(generation, tokenizer))
    lines = [
        f"FROM ./{GGUF}" if (folder / GGUF).is_file() else "FROM .",
        *start,
        *[f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops],
        "PARAMETER temperature 0",
        f"PARAMETER num_ctx {min(context, MOST_CONTEXT)}",
    ]
    (folder / "Modelfile").write_text("\n".join(lines) + "\n", encoding="utf-8")


def ollama_template(pieces: Pieces) -> str:
    """The dialogue as a Go template; blanks inside the pieces count."""
    turns = {"system": pieces.system, "user": pieces.user, "assistant": ("", pieces.answer_end)}
    cases = [
        f'{{{{ {"else if" if i else "if"} eq .Role "{role}" }}}}{start}{{{{ .Content }}}}{end}'
        for i, (role, (start, end)) in enumerate(turns.items())
    ]
    return "{{ range .Messages }}" + "".join(cases) + "{{ end }}{{ end }}"


def template_pieces(tokenizer: "PreTrainedTokenizerBase") -> Pieces:
    """Take a chat template apart, and see that the pieces write the same dialogues again.

    Raises:
        ModelError: there is no template, or it writes what no fixed pieces can (dates, turns that
            depend on others).
    """
    if not tokenizer.chat_template:
        raise ModelError("the tokenizer has no chat template, so no Modelfile can be written.")
    system, user = _message("system", SYSTEM), _message("user", USER)
    answer = _message("assistant", ANSWER)
    full = _render(tokenizer, [system, user, answer, user])
    plain = _render(tokenizer, [user])
    try:
        before, rest = full.split(SYSTEM)
        after_system, between, _ = rest.split(USER)
        after_user, after_answer = between.split(ANSWER)
        start, _ = plain.split(USER)
    except ValueError as error:
        raise _inexpressible(tokenizer) from error
    pieces = _with_default_system(before, after_system, after_user, after_answer, start)
    dialogues = ([user], [system, user], [user, answer, user], [system, *[user, answer] * 2, user])
    if pieces is None or any(write(pieces, d) != _render(tokenizer, d) for d in dialogues):
        raise _inexpressible(tokenizer)
    return pieces


def _with_default_system(
    before: str, after_system: str, after_user: str, after_answer: str, start: str
) -> Pieces | None:
    """Say where a user's turn begins, and what stands before the first one without a system."""
    both = len(before) + len(after_system)
    if start.startswith(before) and start.endswith(after_system) and len(start) > both:
        default = start[len(before) : len(start) - len(after_system)]
        return Pieces((before, after_system), ("", after_user), after_answer, default)
    if after_system.endswith(start) and after_answer.endswith(start):
        end = len(start)
        system = (before, after_system[: len(after_system) - end])
        return Pieces(system, (start, after_user), after_answer[: len(after_answer) - end], "")
    return None


def write(pieces: Pieces, messages: Sequence[Message]) -> str:
    """The text that `ollama_template` writes for a dialogue."""
    if pieces.default_system and messages[0]["role"] != "system":
        messages = [_message("system", pieces.default_system), *messages]
    around: dict[str, tuple[str, str]] = {
        "system": pieces.system,
        "user": pieces.user,
        "assistant": ("", pieces.answer_end),
    }
    turns = [(around[m["role"]], str(m["content"])) for m in messages]
    return "".join(start + text + end for (start, end), text in turns)


def _render(tokenizer: Any, messages: list[Message]) -> str:
    """The prompt without the BOS that a runtime adds by itself, as the tokenizer does."""
    text = renderer_of(tokenizer).render(messages, add_generation_prompt=True)
    adds_bos = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    return text.removeprefix(tokenizer.bos_token) if adds_bos else text


def _message(role: Any, text: str) -> Message:
    return {"role": role, "content": text}


def _inexpressible(tokenizer: Any) -> ModelError:
    return ModelError(
        f"the chat template of '{tokenizer.name_or_path}' writes more than fixed text around the "
        "turns, which this Modelfile writer cannot express. Save with format='safetensors' and "
        "write TEMPLATE by hand."
    )
