"""ChatGLM2's and 3's SentencePiece model as a tokenizer of the `tokenizers` library.

SentencePiece joins the two neighbours whose joined piece scores best until none is left, and
spells what no piece covers in bytes; blanks are the letter "▁", one of them before every text.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from main.chatglm.vocabulary import MARK, read_pieces
from main.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.normalizers import Normalizer

BLANK = "▁"
# Bytes that are characters by themselves; a run of bytes that is cut short would take them along.
WHOLE_BYTES = {"<0x0A>": "\n", "<0x09>": "\t", "<0x0D>": "\r"}
Merge = tuple[str, str]


def piece_backend(folder: Path) -> "Tokenizer":
    """The vocabulary of the folder's tokenizer.model, without the control tokens after it.

    Raises:
        MissingFileError, ModelError: see `read_pieces`; or pieces of a type that is not built.
    """
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import BPE

    proto = read_pieces(folder)
    vocabulary = _vocabulary(proto, folder)
    backend = Tokenizer(
        BPE(vocabulary, _merges(proto, vocabulary), byte_fallback=True, fuse_unk=True)
    )
    backend.normalizer = _normalizer(proto.normalizer_spec)
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace(BLANK, " "),
            decoders.Replace(MARK, ""),
            *(decoders.Replace(name, text) for name, text in WHOLE_BYTES.items()),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", left=1),
        ]
    )
    return backend


def _vocabulary(proto: Any, folder: Path) -> dict[str, int]:
    """Piece -> id; control pieces (<unk>, <s>, </s>) under names that no text contains."""
    piece_type = proto.SentencePiece
    control = (piece_type.UNKNOWN, piece_type.CONTROL)
    known = (*control, piece_type.NORMAL, piece_type.BYTE)
    odd = [piece.piece for piece in proto.pieces if piece.type not in known]
    if odd:
        raise ModelError(
            f"'{folder}': tokenizer.model has {len(odd)} user-defined or unused pieces, e.g. "
            f"{odd[0]!r}, which no released ChatGLM is known to have and which are not built."
        )
    names = [(MARK if piece.type in control else "") + piece.piece for piece in proto.pieces]
    return {name: i for i, name in enumerate(names)}


def _merges(proto: Any, vocabulary: dict[str, int]) -> list[Merge]:
    """Every pair of pieces that makes a piece, the best score first."""
    normal = {p.piece: p.score for p in proto.pieces if p.type == proto.SentencePiece.NORMAL}
    found = []
    for piece, score in normal.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in normal and right in normal:
                found.append((-score, vocabulary[left], vocabulary[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _normalizer(spec: Any) -> "Normalizer":
    from tokenizers import Regex, normalizers

    steps: list[Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(BLANK))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", BLANK)])
