"""GLM-4's tiktoken vocabulary as a tokenizer of the `tokenizers` library.

Every line of the file is a byte string in base64 and its rank, which is its id. Text is cut by
PATTERN; in each part the neighbours whose joined bytes have the lowest rank are joined first.
"""

import base64
import binascii
from pathlib import Path
from typing import TYPE_CHECKING

from main.chatglm.vocabulary import MARK, vocabulary_file
from main.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Contractions, words with one sign before them, up to three digits, signs, line ends, blanks.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SEAM = "\ufdd1"  # written by the chat template where two texts meet that are encoded apart


def rank_backend(folder: Path) -> "Tokenizer":
    """The vocabulary of the folder's tokenizer.model, without the control tokens after it.

    Raises:
        MissingFileError: no tokenizer.model.
        ModelError: a line that is not base64 and a rank.
    """
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    ranks = read_ranks(vocabulary_file(folder))
    letters = byte_letters()
    vocabulary = {_spell(token, letters): rank for token, rank in ranks.items()}
    merges = [(_spell(a, letters), _spell(b, letters)) for a, b in _merges(ranks)]
    # ignore_merges: a part that is itself a token is taken whole, as in tiktoken
    backend = Tokenizer(BPE(vocabulary, merges, ignore_merges=True))
    backend.normalizer = normalizers.Replace(MARK, "")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(SEAM, "removed"),
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def read_ranks(file: Path) -> dict[bytes, int]:
    """Token -> rank.

    Raises:
        ModelError: a line that is not base64 and a rank, or ranks with gaps.
    """
    try:
        lines = [line.split() for line in file.read_bytes().splitlines() if line]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
    except (ValueError, binascii.Error) as error:
        raise ModelError(f"{file} is no tiktoken vocabulary, or a damaged one: {error}") from error
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ModelError(f"{file} is damaged: its ranks do not run from 0 to {len(ranks) - 1}.")
    return ranks


def byte_letters() -> dict[int, str]:
    """The letter that stands for each byte: itself where it is visible, else one beyond U+0100."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return {byte: chr(byte if byte in visible else next(others)) for byte in range(256)}


def _spell(token: bytes, letters: dict[int, str]) -> str:
    return "".join(letters[byte] for byte in token)


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every pair of tokens that makes a token, the lowest rank first."""
    found = []
    for token, rank in ranks.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ranks and right in ranks:
                found.append((rank, ranks[left], ranks[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]
