"""The scores of one row as the user's guide defines them, all from 0 to 1.

- BLEU-n: nltk's sentence BLEU, smoothing method 1 (Chen and Cherry 2014), on the tokenizer's ids
  with the special ids that it adds; all references.
- ROUGE-n, ROUGE-L: rouge_score with the Porter stemmer, F value; the first reference.
- METEOR: nltk's, on characters; the best reference. See meteor.py for what it matches.
- TER: edits and block shifts on characters that turn the first reference into the generated text,
  divided by the length of the generated text. Unbounded above: 0 is best.
"""

from collections.abc import Sequence
from typing import Any

from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_score.rouge_scorer import RougeScorer

from main.errors import ConfigError
from main.evaluation.edit_distance import shift_edit_distance
from main.evaluation.meteor import meteor
from main.evaluation.words import SegmentedWords

BLEU_WEIGHTS = {
    "BLEU-1": (1.0,),
    "BLEU-2": (0.5, 0.5),
    "BLEU-3": (0.33, 0.33, 0.33),
    "BLEU-4": (0.25, 0.25, 0.25, 0.25),
}
ROUGE_TYPES = {
    "ROUGE-1": "rouge1",
    "ROUGE-2": "rouge2",
    "ROUGE-3": "rouge3",
    "ROUGE-4": "rouge4",
    "ROUGE-L": "rougeL",
}


class GuideScorer:
    """Scores rows, one at a time.

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
        self.rouge = RougeScorer(
            list(ROUGE_TYPES.values()),
            use_stemmer=True,
            tokenizer=SegmentedWords() if intensive else None,
        )

    def score(self, references: Sequence[str], generated: str) -> dict[str, float]:
        """All scores of one row, in the guide's order.

        A text of nothing but blanks counts as empty. An empty one scores 0 (TER 1) against text
        and 1 (TER 0) against an empty reference.
        """
        if _empty(generated):
            return _score_nothing(references)
        bleu = self._bleu(references, generated)
        rouge = self._rouge(references[0], generated)
        return {
            **bleu,
            **rouge,
            "METEOR": meteor([list(text) for text in references], list(generated)),
            "TER": shift_edit_distance(references[0], generated).total / len(generated),
        }

    def _bleu(self, references: Sequence[str], generated: str) -> dict[str, float]:
        if all(map(_empty, references)):
            return dict.fromkeys(BLEU_WEIGHTS, 0.0)
        goals = [self._ids(text) for text in references]
        ids = self._ids(generated)
        smooth = SmoothingFunction().method1
        return {
            name: float(sentence_bleu(goals, ids, weights, smoothing_function=smooth))
            for name, weights in BLEU_WEIGHTS.items()
        }

    def _rouge(self, reference: str, generated: str) -> dict[str, float]:
        scores = self.rouge.score(reference, generated)
        return {name: float(scores[kind].fmeasure) for name, kind in ROUGE_TYPES.items()}

    def _ids(self, text: str) -> list[int]:
        encoded = self.tokenizer.encode(text)
        # The tokenizers library wraps the ids, transformers does not.
        return list(getattr(encoded, "ids", encoded))


def _score_nothing(references: Sequence[str]) -> dict[str, float]:
    any_reference = float(any(map(_empty, references)))
    first_reference = float(_empty(references[0]))
    return {
        **dict.fromkeys(BLEU_WEIGHTS, any_reference),
        **dict.fromkeys(ROUGE_TYPES, first_reference),
        "METEOR": any_reference,
        "TER": 1.0 - first_reference,
    }


def _empty(text: str) -> bool:
    return not text.strip()
