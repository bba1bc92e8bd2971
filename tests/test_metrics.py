"""The guide's metrics: its table digit by digit, corpora, degenerate texts, messages."""

import subprocess
import sys

import pytest
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from nltk.translate.meteor_score import meteor_score
from rouge_score.rouge_scorer import RougeScorer
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from main.errors import ConfigError, DataError
from main.evaluation.meteor import NoSynonyms
from main.evaluation.metrics import evaluate_all_metrics, evaluate_generation, score_table

REFERENCES = ["I love this cat.", "I really love this cat."]
GENERATED = "hahaha I love this cat."

# The table of the usage guide. By hand: the prefix ids P Q and "ha ##ha ##ha I love this cat ." are
# 10 ids, of which 7 stand in a reference (BLEU-1 0.7); 5 of 9 pairs, 3 of 8 triples and 2 of 7
# quadruples do, e.g. BLEU-2 = sqrt(7/10 * 5/9). ROUGE-1 without the full stop: 4 of 5 words,
# recall 1, F = 8/9. TER: "hahaha " are 7 insertions, the generated text has 23 characters.
TABLE = {
    "BLEU-1": 0.7,
    "BLEU-2": 0.6236095644623235,
    "BLEU-3": 0.5297521706139517,
    "BLEU-4": 0.4518010018049224,
    "ROUGE-1": 0.888888888888889,
    "ROUGE-2": 0.8571428571428571,
    "ROUGE-3": 0.8,
    "ROUGE-4": 0.6666666666666666,
    "ROUGE-L": 0.888888888888889,
    "METEOR": 0.9579668787425148,
    "TER": 0.30434782608695654,
}
PRINTED = """\
+--------+--------+--------+--------+--------+---------+---------+---------+---------+---------+--------+--------+
| Metric | BLEU-1 | BLEU-2 | BLEU-3 | BLEU-4 | ROUGE-1 | ROUGE-2 | ROUGE-3 | ROUGE-4 | ROUGE-L | METEOR |  TER   |
+--------+--------+--------+--------+--------+---------+---------+---------+---------+---------+--------+--------+
| Scores |  0.7   | 0.6236 | 0.5298 | 0.4518 |  0.8889 |  0.8571 |   0.8   |  0.6667 |  0.8889 | 0.958  | 0.3043 |
+--------+--------+--------+--------+--------+---------+---------+---------+---------+---------+--------+--------+
"""  # noqa: E501 - the guide's own table


@pytest.fixture(scope="module")
def tokenizer():
    """Prepends two ids to every text, as ChatGLM does, and cuts "hahaha" in three pieces."""
    pieces = ["[gMASK]", "sop", "[UNK]", "I", "love", "really", "this", "cat", ".", "ha", "##ha"]
    backend = Tokenizer(WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing(
        single="[gMASK] sop $A", special_tokens=[("[gMASK]", 0), ("sop", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


def test_guides_example_gives_every_digit_of_the_guides_table(tokenizer):
    assert len(tokenizer.encode(GENERATED)) == 10
    assert len(tokenizer.encode(REFERENCES[0])) == 7
    scores = evaluate_all_metrics(tokenizer, REFERENCES, GENERATED, intensive=False)
    assert scores == TABLE
    assert list(scores) == list(TABLE)


def test_evaluate_generation_prints_and_returns_the_guides_table(tokenizer, capsys):
    scores = evaluate_generation(tokenizer, [REFERENCES], [GENERATED], intensive=False)
    assert scores == TABLE
    assert capsys.readouterr().out == PRINTED


def test_show_false_prints_nothing(tokenizer, capsys):
    evaluate_generation(tokenizer, [REFERENCES], [GENERATED], show=False)
    assert capsys.readouterr().out == ""


def test_intensive_leaves_all_but_rouge_unchanged(tokenizer):
    plain = evaluate_all_metrics(tokenizer, REFERENCES, GENERATED)
    segmented = evaluate_all_metrics(tokenizer, REFERENCES, GENERATED, intensive=True)
    rest = [name for name in TABLE if not name.startswith("ROUGE")]
    assert {n: plain[n] for n in rest} == {n: segmented[n] for n in rest}
    # English words are the same to jieba.
    assert plain["ROUGE-2"] == segmented["ROUGE-2"]


def test_tokenizers_library_object_scores_like_its_transformers_wrapper(tokenizer):
    assert evaluate_all_metrics(tokenizer.backend_tokenizer, REFERENCES, GENERATED) == TABLE


def test_reference_string_is_one_reference_not_its_characters(tokenizer):
    one = evaluate_all_metrics(tokenizer, "I love this cat.", GENERATED)
    assert one == evaluate_all_metrics(tokenizer, ["I love this cat."], GENERATED)
    rows = evaluate_generation(tokenizer, ["I love this cat."], [GENERATED], show=False)
    assert rows == one


def test_scores_equal_the_libraries_called_directly(tokenizer):
    references, generated = ["this cat I really love", "I love cat"], "really I love this"
    scores = evaluate_all_metrics(tokenizer, references, generated)
    goals, ids = [tokenizer.encode(r) for r in references], tokenizer.encode(generated)
    smooth = SmoothingFunction().method1
    for order, weights in enumerate([(1,), (0.5,) * 2, (0.33,) * 3, (0.25,) * 4], start=1):
        expected = sentence_bleu(goals, ids, weights, smoothing_function=smooth)
        assert scores[f"BLEU-{order}"] == pytest.approx(expected, rel=1e-12)
    kinds = ["rouge1", "rouge2", "rouge3", "rouge4", "rougeL"]
    rouge = RougeScorer(kinds, use_stemmer=True).score(references[0], generated)
    for kind in kinds:
        assert scores[f"ROUGE-{kind[5:]}"] == rouge[kind].fmeasure
    characters = [list(r) for r in references]
    expected = meteor_score(characters, list(generated), wordnet=NoSynonyms())
    assert scores["METEOR"] == expected


def test_rouge_and_ter_take_the_first_reference_bleu_and_meteor_the_best(tokenizer):
    good, bad = "I love this cat.", "really"
    first = evaluate_all_metrics(tokenizer, [good, bad], good)
    last = evaluate_all_metrics(tokenizer, [bad, good], good)
    assert (first["ROUGE-1"], first["TER"]) == (1.0, 0.0)
    assert last["ROUGE-1"] == 0.0
    assert last["TER"] > 0.5
    assert first["BLEU-4"] == last["BLEU-4"] == 1.0
    assert first["METEOR"] == last["METEOR"] > 0.99


def test_means_go_over_the_whole_corpus_and_count_empty_outputs(tokenizer):
    references = [REFERENCES, "I love this cat.", ["this cat"]]
    generated = [GENERATED, "", "this cat."]
    rows = [
        evaluate_all_metrics(tokenizer, *row) for row in zip(references, generated, strict=True)
    ]
    means = evaluate_generation(tokenizer, references, generated, show=False)
    assert rows[0] != rows[2]
    for name in TABLE:
        assert means[name] == pytest.approx(sum(row[name] for row in rows) / 3, rel=1e-12)


@pytest.mark.parametrize("standard", [False, True])
def test_a_failed_row_counts_as_an_empty_answer_and_is_told(tokenizer, standard, caplog):
    rows, texts = ["I love this cat."] * 10, ["I love this cat.", *[None] * 9]
    empty = ["I love this cat.", *[""] * 9]
    scores = evaluate_generation(tokenizer, rows, texts, standard=standard, show=False)
    assert scores == evaluate_generation(tokenizer, rows, empty, standard=standard, show=False)
    assert scores["ROUGE-1"] == pytest.approx(0.1)
    assert "9 of 10 rows have no generated text (None)" in caplog.text


@pytest.mark.parametrize("generated", ["", "  \n"])
def test_empty_text_against_text_scores_zero_and_ter_one(tokenizer, generated):
    scores = evaluate_all_metrics(tokenizer, "I love this cat.", generated)
    assert scores.pop("TER") == 1.0
    assert set(scores.values()) == {0.0}


def test_empty_text_against_empty_reference_scores_one_and_ter_zero(tokenizer):
    scores = evaluate_all_metrics(tokenizer, "", "")
    assert scores.pop("TER") == 0.0
    assert set(scores.values()) == {1.0}


def test_text_against_empty_reference_scores_zero_and_ter_one(tokenizer):
    scores = evaluate_all_metrics(tokenizer, [""], "this cat")
    assert scores.pop("TER") == 1.0
    assert set(scores.values()) == {0.0}


def test_text_shorter_than_n_has_small_but_finite_bleu(tokenizer):
    # Two prefix ids and one word: no quadruple exists, smoothing counts 0.1 of one.
    scores = evaluate_all_metrics(tokenizer, "cat", "cat")
    assert scores["BLEU-1"] == scores["BLEU-3"] == 1.0
    assert scores["BLEU-4"] == pytest.approx(0.1**0.25, rel=1e-12)


def test_chinese_rouge_counts_jieba_words_with_intensive(tokenizer):
    # 我 / 爱 / 北京 against 我 / 爱 / 上海: 2 of 3 words, 1 of 2 pairs.
    scores = evaluate_all_metrics(tokenizer, "我爱北京。", "我爱上海。", intensive=True)
    assert scores["ROUGE-1"] == pytest.approx(2 / 3, rel=1e-12)
    assert scores["ROUGE-2"] == pytest.approx(1 / 2, rel=1e-12)
    assert scores["TER"] == 2 / 5


def test_chinese_rouge_counts_characters_without_intensive(tokenizer):
    # 我 爱 北 京 against 我 爱 上 海: 2 of 4 characters, 1 of 3 pairs.
    scores = evaluate_all_metrics(tokenizer, "我爱北京。", "我爱上海。")
    assert scores["ROUGE-1"] == pytest.approx(1 / 2, rel=1e-12)
    assert scores["ROUGE-2"] == pytest.approx(1 / 3, rel=1e-12)


def test_counts_that_differ_are_an_error_with_both_counts(tokenizer):
    with pytest.raises(DataError, match="2 references and 1 generated texts"):
        evaluate_generation(tokenizer, REFERENCES, [GENERATED])


def test_bare_string_for_a_corpus_is_refused(tokenizer):
    with pytest.raises(DataError, match=r"generated is one str, .* use evaluate_all_metrics"):
        evaluate_generation(tokenizer, [REFERENCES], GENERATED)
    with pytest.raises(DataError, match="references is one str"):
        evaluate_generation(tokenizer, "I love this cat.", [GENERATED])


def test_wrong_types_are_refused_with_their_place(tokenizer):
    with pytest.raises(DataError, match=r"generated\[1\] is 3, and must be a str, not int"):
        evaluate_generation(tokenizer, ["a", "b"], ["a", 3])  # type: ignore[list-item]
    with pytest.raises(DataError, match=r"references\[0\] is None, and must be a str"):
        evaluate_generation(tokenizer, [None], ["a"])  # type: ignore[list-item]
    with pytest.raises(DataError, match=r"references\[0\]\[1\] is 3, and must be a str, not int"):
        evaluate_generation(tokenizer, [["a", 3]], ["a"])  # type: ignore[list-item]
    with pytest.raises(DataError, match=r"references\[0\] is an empty list"):
        evaluate_all_metrics(tokenizer, [], "a")
    with pytest.raises(DataError, match="nothing to evaluate"):
        evaluate_generation(tokenizer, [], [])


def test_tokenizer_without_encode_is_refused():
    with pytest.raises(ConfigError, match=r"tokenizer=None must have a method encode"):
        evaluate_all_metrics(None, "a", "a")


def test_table_rounds_to_four_digits():
    assert "| Scores | 0.3333 |" in score_table({"TER": 1 / 3})


def test_importing_metrics_loads_no_torch_and_jieba_stays_quiet():
    code = (
        "import sys, main.evaluation.metrics, main.evaluation.words as w\n"
        "assert 'torch' not in sys.modules and 'jieba' not in sys.modules\n"
        "assert w.segment('我爱北京') == ['我', '爱', '北京']"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")


def test_half_a_surrogate_pair_is_named(tokenizer):
    for references, generated in ((["a", "\ud83d"], "a"), (["a"], "a\ud83d")):
        with pytest.raises(DataError, match=r"has .\\ud83d. in it: half a surrogate pair"):
            evaluate_all_metrics(tokenizer, references, generated)
