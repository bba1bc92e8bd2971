"""Text -> words, for languages with and without spaces between them."""

import functools
import logging
import re
import warnings
from collections.abc import Iterable
from typing import Any

from nltk.stem.porter import PorterStemmer
from rouge_score.tokenizers import Tokenizer

# Han ideographs with their extensions, and kana: scripts written without spaces.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_UNSPACED_CHARACTER = re.compile(f"[{_UNSPACED}]")
_CHARACTER_OR_WORD = re.compile(rf"[{_UNSPACED}]|(?:(?![{_UNSPACED}])[^\W_])+")
_WORD_OR_MARK = re.compile(r"\w+|[^\w\s]")
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
    """Words and punctuation marks of Chinese (or mixed) text, by jieba; blanks are dropped."""
    return [word for word in _jieba().cut(text) if not word.isspace()]


def split(text: str) -> list[str]:
    """Words and punctuation marks of text that has spaces between its words."""
    return _WORD_OR_MARK.findall(text)


class SegmentedWords(Tokenizer):
    """For rouge_score: the words that jieba finds; punctuation dropped, case and stem folded."""

    def tokenize(self, text: str) -> list[str]:
        words = segment(text.lower())
        return [_stem(word) for word in words if any(map(str.isalnum, word))]


class CharactersAndWords(Tokenizer):
    """For rouge_score: every Han or kana character by itself, other words whole.

    On ASCII text these are the tokens that rouge_score's own tokenizer gives with its stemmer.
    """

    def tokenize(self, text: str) -> list[str]:
        return [_stem(word) for word in _CHARACTER_OR_WORD.findall(text.lower())]


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
