"""Scores of generated text against references: the guide's, or with `standard=True` the field's."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prettytable import PrettyTable

from main.errors import DataError
from main.evaluation.guide import GuideScorer
from main.evaluation.standard import standard_scores
from main.loaders.strict_json import half_character
from main.options import below, parse, shown

logger = logging.getLogger("main.evaluation")

# One reference, or several.
Reference = str | Sequence[str]


@dataclass
class ScoreOptions:
    """How texts are scored: intensive, standard, bleu_tokenizer, n_bootstrap, seed and show, each
    as `evaluate_generation` has it.
    """

    intensive: bool = False
    standard: bool = False
    bleu_tokenizer: str = "auto"
    n_bootstrap: int = 1000
    seed: int = 12345
    show: bool = True

    def problems(self) -> list[str]:
        """One sentence for every value that cannot work."""
        return below(self, {"n_bootstrap": 0, "seed": 0})


def evaluate_all_metrics(
    tokenizer: Any,
    references: Reference,
    generated: str | None,
    intensive: bool = False,
    standard: bool = False,
    *,
    bleu_tokenizer: str = "auto",
) -> dict[str, Any]:
    """The scores of one generated text.

    Args:
        tokenizer: BLEU is taken on its ids, the special ones included (not used by `standard`).
        references: one text, or a list of texts.
        generated: the text to score; an empty one, and None, scores 0 (TER 1).
        intensive: for languages without spaces between words: ROUGE over words found by jieba.
        standard: sacreBLEU's and rouge_score's definitions instead of the guide's, see standard.py.
        bleu_tokenizer: with `standard`, the tokenizer of sacreBLEU's BLEU.

    Returns:
        BLEU-1..4, ROUGE-1..4, ROUGE-L, METEOR and TER from 0 to 1, defined in guide.py; with
        `standard` the keys of standard.standard_scores.

    Raises:
        DataError: a reference or a generated text that is not a str, or no reference.
        ConfigError: a tokenizer without `encode`, or another argument that cannot work.
    """
    given: dict[str, Any] = {
        "intensive": intensive,
        "standard": standard,
        "bleu_tokenizer": bleu_tokenizer,
    }
    parse(ScoreOptions, given, "evaluate_all_metrics()")
    rows, texts = _checked([references], [generated])
    if standard:
        return standard_scores(
            rows, texts, chinese=intensive or None, bleu_tokenizer=bleu_tokenizer
        )
    return GuideScorer(tokenizer, intensive).score(rows[0], texts[0])


def evaluate_generation(
    tokenizer: Any,
    references: Sequence[Reference],
    generated: Sequence[str | None],
    intensive: bool = False,
    standard: bool = False,
    *,
    bleu_tokenizer: str = "auto",
    n_bootstrap: int = 1000,
    seed: int = 12345,
    show: bool = True,
) -> dict[str, Any]:
    """The scores of a corpus: means over all rows, printed as a table and returned.

    Args:
        tokenizer, intensive, standard, bleu_tokenizer: as in evaluate_all_metrics.
        references: for each row one text or a list of texts.
        generated: the text of each row; empty ones count, and so does None, what batch inference
            writes for a row that failed.
        n_bootstrap: with `standard`, resamples behind the 95% intervals; 0 for none.
        seed: of those resamples.
        show: print the table.

    Returns:
        As evaluate_all_metrics; with `standard` also `confidence`, name -> (low, high).

    Raises:
        DataError: as many references as texts are needed, at least one, each a str.
        ConfigError: a tokenizer without `encode`, or another argument that cannot work.
    """
    given: dict[str, Any] = {
        "intensive": intensive,
        "standard": standard,
        "bleu_tokenizer": bleu_tokenizer,
    }
    given |= {"n_bootstrap": n_bootstrap, "seed": seed, "show": show}
    parse(ScoreOptions, given, "evaluate_generation()")
    rows, texts = _checked(references, generated)
    if standard:
        scores = standard_scores(
            rows,
            texts,
            chinese=intensive or None,
            bleu_tokenizer=bleu_tokenizer,
            n_bootstrap=n_bootstrap,
            seed=seed,
        )
    else:
        scores = _means(GuideScorer(tokenizer, intensive), rows, texts)
    if show:
        print(score_table(scores))
    return scores


def score_table(scores: dict[str, Any]) -> str:
    """Scores as the guide prints them, four digits each; with their intervals and signatures."""
    names = [name for name, value in scores.items() if isinstance(value, float)]
    table = PrettyTable(["Metric", *names])
    table.add_row(["Scores", *(round(scores[name], 4) for name in names)])
    confidence = scores.get("confidence") or {}
    for bound, label in enumerate(("95% low", "95% high") if confidence else ()):
        table.add_row([label, *(round(confidence[name][bound], 4) for name in names)])
    lines = [str(table)]
    lines += [f"{name}|{made}" for name, made in scores.get("signature", {}).items()]
    return "\n".join(lines)


def _means(scorer: GuideScorer, rows: list[list[str]], texts: list[str]) -> dict[str, float]:
    scores = scorer.scores(rows, texts)
    return {name: sum(score[name] for score in scores) / len(scores) for name in scores[0]}


def _checked(references: Any, generated: Any) -> tuple[list[list[str]], list[str]]:
    references = _listed("references", references)
    generated = _listed("generated", generated)
    if len(references) != len(generated):
        raise DataError(
            f"{len(references)} references and {len(generated)} generated texts: every generated "
            "text needs its own entry in references (a list where it has several)."
        )
    if not generated:
        raise DataError("references and generated are empty: there is nothing to evaluate.")
    rows = [_checked_references(index, entry) for index, entry in enumerate(references)]
    failed = sum(text is None for text in generated)
    if failed:
        logger.warning(
            "%d of %d rows have no generated text (None): they are scored as empty answers.",
            failed,
            len(generated),
        )
    texts = ["" if text is None else text for text in generated]
    return rows, [_checked_text(f"generated[{i}]", text) for i, text in enumerate(texts)]


def _listed(name: str, value: Any) -> list[Any]:
    try:
        if not isinstance(value, str | bytes | dict):
            return list(value)
    except TypeError:
        pass
    raise DataError(
        f"{name} is one {type(value).__name__}, and must be a list with one entry a row. "
        "For a single text use evaluate_all_metrics."
    )


def _checked_references(index: int, entry: Any) -> list[str]:
    if isinstance(entry, list | tuple):
        if not entry:
            raise DataError(f"references[{index}] is an empty list; give at least one reference.")
        return [_checked_text(f"references[{index}][{i}]", text) for i, text in enumerate(entry)]
    return [_checked_text(f"references[{index}]", entry)]


def _checked_text(name: str, text: Any) -> str:
    if not isinstance(text, str):
        raise DataError(f"{name} is {shown(text)}, and must be a str, not {type(text).__name__}.")
    if half := half_character(text):
        raise DataError(f"{name} has {half} in it: half a surrogate pair, which is no character.")
    return text
