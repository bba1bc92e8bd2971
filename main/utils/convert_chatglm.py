"""An original ChatGLM2, ChatGLM3 or glm-4-9b-chat folder as one of transformers' own Glm.

The predictors of transformers, the trainers and merging read the original folder as it is. vLLM,
`vllm serve`, `trl vllm-serve` and plain transformers need the folder that this writes: the same
weights, bit for bit, under Glm's names, with the tokenizer, its chat template and the end tokens.

    python -m main.utils.convert_chatglm FOLDER --output DIR
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from main.chatglm import is_chatglm
from main.errors import ConfigError
from main.models import load_config, load_model, load_tokenizer
from main.system.folders import write_directory


def convert_chatglm(source: str | os.PathLike[str], output: str | os.PathLike[str]) -> Path:
    """Write the folder `output`; returns it.

    Raises:
        ConfigError: `source` is no original folder, or `output` exists already.
        MissingFileError, ModelError, DiskError: see `main.models` and `main.system.folders`.
    """
    folder, final = Path(source).expanduser(), Path(output).expanduser()
    if not is_chatglm(folder):
        raise ConfigError(f"'{source}' is no original ChatGLM folder: there is nothing to convert.")
    if final.exists():
        raise ConfigError(f"output='{output}' exists already. Choose another.")
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, dtype=load_config(folder).dtype or "float32", device="cpu")

    def write(directory: Path) -> None:
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)

    write_directory(final, write)
    return final


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m main.utils.convert_chatglm", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("source", help="the original folder")
    parser.add_argument("--output", required=True, help="folder to write")
    given = parser.parse_args(arguments)
    print(f"written: {convert_chatglm(given.source, given.output)}")


if __name__ == "__main__":
    main()
