"""The scores of one row as the user's guide defines them, all from 0 to 1.

- BLEU-n: nltk's sentence BLEU, smoothing method 1 (Chen and Cherry 2014), on the tokenizer's ids
  with the special ids that it adds; all references.
- ROUGE-n, ROUGE-L: rouge_score with the Porter stemmer, F value; the first reference. Words are
  those of words.py, on ASCII text rouge_score's own.
- METEOR: nltk's, on characters; the best reference. See meteor.py for what it matches.
- TER: edits and block shifts on characters that turn the first reference into the generated text,
  divided by the length of the generated text. Unbounded above: 0 is best.
"""

from collections.abc import Sequence
from typing import Any

from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

from main.errors import ConfigError
from main.evaluation.many import shift_edits
from main.evaluation.meteor import meteor
from main.evaluation.rouge import Rouge
from main.evaluation.words import CharactersAndWords, SegmentedWords

BLEU_WEIGHTS = {
    "BLEU-1": (1.0,),
    "BLEU-2": (0.5, 0.5),
    "BLEU-3": (0.33, 0.33, 0.33),
    "BLEU-4": (0.25, 0.25, 0.25, 0.25),
}
ROUGE_ORDERS = (1, 2, 3, 4)
ROUGE_NAMES = (*(f"ROUGE-{n}" for n in ROUGE_ORDERS), "ROUGE-L")


class GuideScorer:
    """Scores rows.

    Args:
        tokenizer: anything with `encode(text)`, such as a tokenizer of transformers.
        intensive: take ROUGE over words found by jieba, for text without spaces between words.

    Raises:
        ConfigError: a tokenizer without `encode`.
    """

    def __init__(self, tokenizer: Any, intensive: bool = False):
        if not callable(getattr(tokenizer, "encode", None)):
            raise ConfigError(
                f"tokenizer={tokenizer!r} must have a method encode(text): BLEU is taken on its "
                "ids. Pass AutoTokenizer.from_pretrained(<model folder>)."
            )
        self.tokenizer = tokenizer
        words = SegmentedWords() if intensive else CharactersAndWords()
        self.rouge = Rouge(ROUGE_ORDERS, words)

    def score(self, references: Sequence[str], generated: str) -> dict[str, float]:
        """All scores of one row, in the guide's order.

        A text of nothing but blanks counts as empty. An empty one scores 0 (TER 1) against text
        and 1 (TER 0) against an empty reference.
        """
        return self.scores([references], [generated])[0]

    def scores(self, rows: Sequence[Sequence[str]], texts: Sequence[str]) -> list[dict[str, float]]:
        """Those of each row."""
        scored = [number for number, text in enumerate(texts) if not _empty(text)]
        edits = shift_edits([(rows[number][0], texts[number]) for number in scored])
        found = [_score_nothing(references) for references in rows]
        for number, count in zip(scored, edits, strict=True):  # other processors are ahead
            found[number] = self._score(rows[number], texts[number], count)
        return found

    def _score(self, references: Sequence[str], generated: str, edits: int) -> dict[str, float]:
        return {
            **self._bleu(references, generated),
            **self.rouge.score(references[0], generated),
            "METEOR": meteor([list(text) for text in references], list(generated)),
            "TER": edits / len(generated),
        }

    def _bleu(self, references: Sequence[str], generated: str) -> dict[str, float]:
        if all(map(_empty, references)):
            return dict.fromkeys(BLEU_WEIGHTS, 0.0)
        scores = sentence_bleu(
            [self._ids(text) for text in references],
            self._ids(generated),
            list(BLEU_WEIGHTS.values()),
            smoothing_function=SmoothingFunction().method1,
        )
        return {name: float(score) for name, score in zip(BLEU_WEIGHTS, scores, strict=True)}

    def _ids(self, text: str) -> list[int]:
        encoded = self.tokenizer.encode(text)
        # The tokenizers library wraps the ids, transformers does not.
        return list(getattr(encoded, "ids", encoded))


def _score_nothing(references: Sequence[str]) -> dict[str, float]:
    any_reference = float(any(map(_empty, references)))
    first_reference = float(_empty(references[0]))
    return {
        **dict.fromkeys(BLEU_WEIGHTS, any_reference),
        **dict.fromkeys(ROUGE_NAMES, first_reference),
        "METEOR": any_reference,
        "TER": 1.0 - first_reference,
    }


def _empty(text: str) -> bool:
    return not text.strip()
