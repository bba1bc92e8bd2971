"""The field's standard scores of a corpus, with confidence intervals and signatures.

BLEU (Papineni et al. 2002), chrF (Popović 2015) and TER (Snover et al. 2006) are corpus scores of
sacreBLEU (Post 2018), 0 to 100. ROUGE (Lin 2004) and METEOR are means over the rows, 0 to 1, each
against its best reference.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
from sacrebleu.metrics import BLEU, CHRF

from main.errors import ConfigError
from main.evaluation.meteor import meteor, meteor_signature
from main.evaluation.rouge import Rouge
from main.evaluation.ter import FastTER
from main.evaluation.words import CharactersAndWords, is_chinese, segment, split

ROUGE_ORDERS = (1, 2)
NAMES = ("BLEU", "chrF", "TER", "ROUGE-1", "ROUGE-2", "ROUGE-L", "METEOR")


class Measure(NamedTuple):
    """One metric over a corpus of n rows.

    rows: statistics of each row, (n, k); they add up over rows.
    score: summed statistics (k,) and number of rows -> the corpus score.
    signature: how the number is made.
    """

    rows: np.ndarray
    score: Callable[[np.ndarray, int], float]
    signature: str

    @property
    def of_corpus(self) -> bool:
        """Made of counts of the whole corpus; otherwise a mean over the rows, whose k is 1."""
        return self.score is not _mean

    @property
    def whole(self) -> float:
        """The score of the corpus."""
        return self.score(self.rows.sum(axis=0), len(self.rows))


def standard_scores(
    references: Sequence[Sequence[str]],
    generated: Sequence[str],
    *,
    chinese: bool | None = None,
    bleu_tokenizer: str = "auto",
    n_bootstrap: int = 1000,
    seed: int = 12345,
) -> dict[str, Any]:
    """BLEU, chrF, TER (0 to 100), ROUGE-1/2/L and METEOR (0 to 1) of a corpus.

    Rows may have different numbers of references. One row alone is scored with BLEU's effective
    order, as sacreBLEU does for sentences, and has no interval.

    Args:
        references: the references of each row.
        generated: the text of each row; an empty one counts.
        chinese: segment by characters (BLEU, TER, ROUGE) and jieba (METEOR); None: as the
            references look (see words.is_chinese).
        bleu_tokenizer: a tokenizer of sacreBLEU; "auto" is zh for Chinese and 13a otherwise.
        n_bootstrap: resamples behind the intervals; 0 for none.
        seed: of the resamples. Every metric sees the same ones, and so does every system that is
            scored on as many rows.

    Returns:
        The scores; `confidence`: name -> (low, high), the middle 95% of the resamples, {} for one
        row; `signature`: name -> how the number was made.

    Raises:
        ConfigError: a tokenizer that sacreBLEU does not know, or cannot load here.
    """
    bootstrap = n_bootstrap if len(generated) > 1 else 0
    measures = measured(
        references,
        generated,
        chinese=chinese,
        bleu_tokenizer=bleu_tokenizer,
        resampled=(bootstrap, seed),
    )
    sacre = [name for name, measure in measures.items() if measure.of_corpus]
    # sacreBLEU's own signatures name the resamples already.
    drawn = f"|bs:{bootstrap}|seed:{seed}" if bootstrap else ""
    return {
        **{name: measure.whole for name, measure in measures.items()},
        "confidence": _intervals(measures, len(generated), bootstrap, seed),
        "signature": {
            name: measure.signature + ("" if name in sacre else drawn)
            for name, measure in measures.items()
        },
    }


def measured(
    references: Sequence[Sequence[str]],
    generated: Sequence[str],
    *,
    names: Collection[str] = NAMES,
    chinese: bool | None = None,
    bleu_tokenizer: str = "auto",
    resampled: tuple[int, int] = (0, 0),
) -> dict[str, Measure]:
    """The named scores; the arguments are those of standard_scores.

    Args:
        resampled: for sacreBLEU's signatures, the number of resamples and their seed.
    """
    if chinese is None:
        chinese = is_chinese(text for row in references for text in row)
    sacre = _sacre_metrics(chinese, bleu_tokenizer, one_row=len(generated) == 1)
    for metric in sacre.values() if resampled[0] else ():
        metric.n_bootstrap, metric.seed = resampled
    found = {n: _sacre(m, references, generated) for n, m in sacre.items() if n in names}
    if any(name.startswith("ROUGE") for name in names):
        found |= _rouge(references, generated)
    if "METEOR" in names:
        found["METEOR"] = _meteor(references, generated, segment if chinese else split)
    return {name: found[name] for name in NAMES if name in names}


def _sacre_metrics(chinese: bool, bleu_tokenizer: str, one_row: bool) -> dict[str, Any]:
    known = ["auto", *BLEU.TOKENIZERS]
    if bleu_tokenizer not in known:
        raise ConfigError(f"bleu_tokenizer={bleu_tokenizer!r} must be one of {', '.join(known)}.")
    if bleu_tokenizer == "auto":
        bleu_tokenizer = "zh" if chinese else "13a"
    try:
        bleu = BLEU(tokenize=bleu_tokenizer, effective_order=one_row)
    except Exception as error:  # some need a package or a file that is not here
        reason = " ".join(str(error).split())
        raise ConfigError(f"bleu_tokenizer={bleu_tokenizer!r} cannot be had: {reason}") from error
    return {
        "BLEU": bleu,
        "chrF": CHRF(),
        "TER": FastTER(normalized=True, asian_support=True) if chinese else FastTER(),
    }


def _sacre(metric: Any, references: Sequence[Sequence[str]], generated: Sequence[str]) -> Measure:
    # sacreBLEU takes one list for all first references, one for all second ones, and so on.
    most = max(map(len, references))
    streams = [[row[i] if i < len(row) else None for row in references] for i in range(most)]
    # Its own bootstrap fails for chrF on some Python versions and keeps no bounds: the statistics
    # of the rows and the score made of their sum are taken from it, the resampling is ours.
    rows = np.array(metric._extract_corpus_statistics(generated, streams), dtype=np.float64)

    def score(total: np.ndarray, count: int) -> float:
        return float(metric._compute_score_from_stats(total.tolist()).score)

    return Measure(rows, score, str(metric.get_signature()))


def _rouge(references: Sequence[Sequence[str]], generated: Sequence[str]) -> dict[str, Measure]:
    rouge = Rouge(ROUGE_ORDERS, CharactersAndWords())
    scored = [
        [rouge.score(reference, text) for reference in row]
        for row, text in zip(references, generated, strict=True)
    ]
    signature = (
        "multiref:best|value:F|tok:words+CJK characters|stemmer:porter|mean:rows|"
        f"rouge_score:{version('rouge_score')}"
    )
    return {
        name: Measure(
            np.array([[max(one[name] for one in row)] for row in scored]), _mean, signature
        )
        for name in scored[0][0]
    }


def _meteor(
    references: Sequence[Sequence[str]],
    generated: Sequence[str],
    words: Callable[[str], list[str]],
) -> Measure:
    rows = [
        [meteor([words(reference) for reference in row], words(text))]
        for row, text in zip(references, generated, strict=True)
    ]
    unit = f"words(jieba {version('jieba')})" if words is segment else "words"
    return Measure(np.array(rows), _mean, meteor_signature(unit))


def _mean(total: np.ndarray, count: int) -> float:
    return float(total[0]) / count


def _intervals(
    measures: dict[str, Measure], count: int, n_bootstrap: int, seed: int
) -> dict[str, tuple[float, float]]:
    """The middle 95% of each metric over the resamples (Koehn 2004)."""
    if not n_bootstrap:
        return {}
    values: dict[str, list[float]] = {name: [] for name in measures}
    for rows in resamples(count, n_bootstrap, seed):
        for name, measure in measures.items():
            values[name].append(measure.score(measure.rows[rows].sum(axis=0), count))
    return {name: _middle(sorted(found)) for name, found in values.items()}


def resamples(count: int, n_bootstrap: int, seed: int) -> Iterator[np.ndarray]:
    """`n_bootstrap` draws of `count` row numbers with replacement, sacreBLEU's for its seed."""
    generator = np.random.default_rng(seed)
    for _ in range(n_bootstrap):
        yield generator.choice(count, size=count, replace=True)


def _middle(ordered: list[float]) -> tuple[float, float]:
    """What is left between the lowest and the highest fortieth."""
    cut = len(ordered) // 40
    return ordered[cut], ordered[len(ordered) - cut - 1]
