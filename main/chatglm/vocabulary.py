"""The control tokens of an original checkpoint: their names, their ids, and how text is kept off.

ChatGLM2 and 3 never read a control token in text: "sop" in "philosophy" and even "</s>" stay
letters. So their control tokens get names that no text contains, with MARK in front, which only the
post-processor and the chat template write. GLM-4 does read control tokens in text, and its chat
template keeps those of a message apart: MARK inside a name makes letters of it.
"""

from pathlib import Path
from typing import Any

from main.chatglm.kind import kind_of
from main.errors import MissingFileError, ModelError
from main.system.settings import read_settings

MARK = "\ufdd0"  # a code point that Unicode keeps free of characters; shown as nothing
PREFIX = {
    "chatglm2": ("[gMASK]", "sop"),
    "chatglm3": ("[gMASK]", "sop"),
    "glm4": ("[gMASK]", "<sop>"),
}
MASKS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
AFTER_PIECES = {"chatglm2": MASKS, "chatglm3": (*MASKS, *ROLES)}


def control_ids(folder: Path) -> dict[str, int]:
    """Original name -> id of every control token beyond the vocabulary file, in order of ids.

    Raises:
        MissingFileError: no tokenizer.model.
        ModelError: a tokenizer.model that cannot be read, or a GLM-4 that does not name its tokens.
    """
    kind = kind_of(folder)
    if kind != "glm4":
        size = len(read_pieces(folder).pieces)
        return {name: size + i for i, name in enumerate(AFTER_PIECES[kind])}
    named = read_settings(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
    if not named:
        raise ModelError(
            f"'{folder}': tokenizer_config.json has no 'added_tokens_decoder', which holds the "
            "ids of GLM-4's control tokens. Take that file from the original checkpoint."
        )
    return {named[key]["content"]: int(key) for key in sorted(named, key=int)}


def vocabulary_file(folder: Path) -> Path:
    """The folder's tokenizer.model.

    Raises:
        MissingFileError: there is none.
    """
    file = folder / "tokenizer.model"
    if not file.is_file():
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:10])
        raise MissingFileError(
            f"'{folder}' has no tokenizer.model, the vocabulary of a ChatGLM; found {found}. Copy "
            "it from the original checkpoint."
        )
    return file


def read_pieces(folder: Path) -> Any:
    """ChatGLM2's and 3's vocabulary: a SentencePiece ModelProto.

    Raises:
        MissingFileError: no tokenizer.model.
        ModelError: it is damaged, or not of the kind that these models have.
    """
    from google.protobuf.message import DecodeError
    from transformers.convert_slow_tokenizer import import_protobuf

    file = vocabulary_file(folder)
    proto = import_protobuf().ModelProto()
    try:
        proto.ParseFromString(file.read_bytes())
    except DecodeError as error:
        raise ModelError(f"{file} is no SentencePiece model, or a damaged one: {error}") from error
    if proto.trainer_spec.model_type != proto.trainer_spec.BPE or not proto.pieces:
        raise ModelError(f"{file} is no SentencePiece model of type BPE, as ChatGLM's are.")
    return proto
