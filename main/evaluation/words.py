"""Text -> words, for languages with and without spaces between them."""

import functools
import logging
import unicodedata
import warnings
from collections.abc import Iterable
from typing import Any

import regex
from nltk.stem.porter import PorterStemmer
from rouge_score.tokenizers import Tokenizer

_LETTER = r"[\p{L}\p{N}]"
# Ideographs and syllabaries of Chinese and Japanese: written without spaces, each with a meaning.
_UNSPACED = rf"(?={_LETTER})[\p{{scx=Han}}\p{{scx=Hira}}\p{{scx=Kana}}\p{{scx=Bopo}}]"
_SPACED = rf"(?!{_UNSPACED})"
# A vowel sign, an accent or a tone belongs to the letter before it.
_CHARACTER = rf"{_UNSPACED}\p{{M}}*"
_WORD = rf"{_SPACED}{_LETTER}(?:{_SPACED}[\p{{L}}\p{{N}}\p{{M}}])*"
_UNSPACED_CHARACTER = regex.compile(_UNSPACED)
_SPACED_WORD = regex.compile(_WORD)
_CHARACTER_OR_WORD = regex.compile(f"{_CHARACTER}|{_WORD}")
_WORD_OR_MARK = regex.compile(r"[\p{L}\p{N}\p{M}_]+|[^\p{L}\p{N}\p{M}_\s]")
_stemmer = PorterStemmer()


def is_chinese(texts: Iterable[str]) -> bool:
    """Whether at least a tenth of all non-blank characters are written without spaces."""
    unspaced = blank = total = 0
    for text in texts:
        total += len(text)
        blank += sum(character.isspace() for character in text)
        unspaced += len(_UNSPACED_CHARACTER.findall(text))
    return unspaced > 0 and 10 * unspaced >= total - blank


def segment(text: str) -> list[str]:
    """Words and punctuation marks of Chinese (or mixed) text, by jieba; blanks are dropped.

    Words of other alphabets, which jieba would cut into letters, stay whole.
    """
    words: list[str] = []
    end = 0
    for found in _SPACED_WORD.finditer(text):
        if not found[0].isascii():
            words += [*_jieba().cut(text[end : found.start()]), found[0]]
            end = found.end()
    words += _jieba().cut(text[end:])
    return [word for word in words if not word.isspace()]


def split(text: str) -> list[str]:
    """Words and punctuation marks of text that has spaces between its words."""
    return _WORD_OR_MARK.findall(text)


class SegmentedWords(Tokenizer):
    """For rouge_score: the words that jieba finds; punctuation dropped, case and stem folded."""

    def tokenize(self, text: str) -> list[str]:
        words = segment(text.lower())
        return [_stem(word) for word in words if any(map(str.isalnum, word))]


class CharactersAndWords(Tokenizer):
    """For rouge_score: every ideograph and kana by itself, other runs of letters, marks and digits.

    On ASCII text these are the tokens that rouge_score's own tokenizer gives with its stemmer. A
    letter with an accent is the same in one code point and in two.
    """

    def tokenize(self, text: str) -> list[str]:
        folded = unicodedata.normalize("NFC", text.lower())
        return [_stem(word) for word in _CHARACTER_OR_WORD.findall(folded)]


@functools.lru_cache(maxsize=1 << 16)
def _stem(word: str) -> str:
    """The Porter stem of a word of over three letters, the rule of rouge_score."""
    return _stemmer.stem(word) if len(word) > 3 else word


@functools.cache
def _jieba() -> Any:
    """A segmenter with jieba's own dictionary, loaded (about a second) at the first use."""
    with warnings.catch_warnings():
        # jieba imports pkg_resources where setuptools still has it, and that warns.
        warnings.simplefilter("ignore")
        import jieba

    logger = logging.getLogger("jieba")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        segmenter = jieba.Tokenizer()
        segmenter.initialize()
    finally:
        logger.setLevel(level)
    return segmenter
