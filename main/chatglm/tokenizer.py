"""The original tokenizers rebuilt as fast ones: same ids, with offsets and a chat template."""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from main.chatglm.dialogue import chat_template
from main.chatglm.kind import Kind, kind_of
from main.chatglm.pieces import piece_backend
from main.chatglm.ranks import rank_backend
from main.chatglm.vocabulary import MARK, PREFIX, control_ids
from main.errors import ModelError


class ChatGLMTokenizer(PreTrainedTokenizerFast):
    """ChatGLM2's and 3's: control tokens are found by their original names, too."""

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """'<|user|>' -> its id, which `encode` never gives for that text."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        control = self.added_tokens_encoder.get(MARK + tokens)
        return super().convert_tokens_to_ids(tokens) if control is None else control


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of an original folder, or of one that a ChatGLMTokenizer was saved in.

    `encode` puts [gMASK] and sop before a text; pads stand on the left.

    Raises:
        MissingFileError: no tokenizer.model.
        ModelError: a vocabulary that is damaged or of another kind.
    """
    if (folder / "tokenizer.json").is_file():
        return ChatGLMTokenizer.from_pretrained(str(folder))
    kind = kind_of(folder)
    controls = control_ids(folder)
    if kind == "glm4":
        backend, mark, end, pad = rank_backend(folder), "", "<|endoftext|>", "<|endoftext|>"
    else:
        backend, mark, end, pad = piece_backend(folder), MARK, "</s>", "<unk>"
    backend.add_special_tokens([_added(mark + name) for name in (pad, end, *controls)])
    _check_ids(backend, {mark + name: number for name, number in controls.items()}, folder)
    backend.post_processor = _frame(backend, kind, mark, mark + end)
    tokenizer_class = PreTrainedTokenizerFast if kind == "glm4" else ChatGLMTokenizer
    return tokenizer_class(
        tokenizer_object=backend,
        eos_token=mark + end,
        pad_token=mark + pad,
        extra_special_tokens=[mark + name for name in controls if name != end],
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        chat_template=chat_template(kind, controls),
        name_or_path=str(folder),
    )


def _added(name: str) -> AddedToken:
    return AddedToken(name, special=True, normalized=False)


def _frame(backend: Tokenizer, kind: Kind, mark: str, end: str) -> TemplateProcessing:
    """[gMASK] sop text; of a pair, both texts and the end token."""
    prefix = [mark + name for name in PREFIX[kind]]
    names = {name: backend.token_to_id(name) for name in (*prefix, end)}
    return TemplateProcessing(
        single=[*prefix, "$A"], pair=[*prefix, "$A", "$B", end], special_tokens=list(names.items())
    )


def _check_ids(backend: Tokenizer, expected: dict[str, int], folder: Path) -> None:
    for name, number in expected.items():
        if backend.token_to_id(name) != number:
            raise ModelError(
                f"'{folder}': the control token {name.removeprefix(MARK)!r} gets id "
                f"{backend.token_to_id(name)} after tokenizer.model, and {number} is declared. "
                "The two files belong to different checkpoints."
            )
