"""standard=True: parity with sacreBLEU, rouge_score and nltk; intervals; signatures."""

import random

import jieba
import nltk
import numpy as np
import pytest
import sacrebleu
from nltk.translate.meteor_score import meteor_score
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF, TER

from main.errors import ConfigError
from main.evaluation.meteor import NoSynonyms
from main.evaluation.metrics import evaluate_all_metrics, evaluate_generation
from main.evaluation.standard import resamples
from main.evaluation.words import CharactersAndWords, is_chinese

ROWS = [
    ["the cat is sitting on the mat", "a cat sits on a mat"],
    "there are many dogs running in the park today",
    ["it rained all day", "rain fell the whole day", "the whole day it was raining"],
    "she bought three books yesterday",
]
TEXTS = [
    "the cat sat on the mat",
    "many dogs are running in the park",
    "it was raining the whole day",
    "",
]
CHINESE = ["今天天气很好，我们去公园。", "请把合同在三天之内签好。", "猫坐在垫子上。"]
ANSWERS = ["今天天气真好，我们去公园吧。", "请三天之内签好合同。", "猫坐在椅子上。"]
NAMES = ["BLEU", "chrF", "TER", "ROUGE-1", "ROUGE-2", "ROUGE-L", "METEOR"]


def scored(rows, texts, **options):
    return evaluate_generation(None, rows, texts, standard=True, show=False, **options)


def streams(rows):
    rows = [[row] if isinstance(row, str) else row for row in rows]
    most = max(map(len, rows))
    return [[row[i] if i < len(row) else None for row in rows] for i in range(most)]


def test_english_corpus_equals_sacrebleu_with_unequal_numbers_of_references():
    scores = scored(ROWS, TEXTS)
    for metric, name in ((BLEU(), "BLEU"), (CHRF(), "chrF"), (TER(), "TER")):
        expected = metric.corpus_score(TEXTS, streams(ROWS)).score
        assert scores[name] == pytest.approx(expected, rel=1e-9), name
        assert 1 < expected < 100
    assert list(scores) == [*NAMES, "confidence", "signature"]


def test_chinese_corpus_equals_sacrebleu_with_its_chinese_tokenizers():
    scores = scored(CHINESE, ANSWERS)
    references = [CHINESE]
    bleu = sacrebleu.corpus_bleu(ANSWERS, references, tokenize="zh").score
    ter = sacrebleu.corpus_ter(ANSWERS, references, normalized=True, asian_support=True).score
    assert scores["BLEU"] == pytest.approx(bleu, rel=1e-9)
    assert scores["TER"] == pytest.approx(ter, rel=1e-9)
    assert scores["chrF"] == pytest.approx(sacrebleu.corpus_chrf(ANSWERS, references).score)
    # Without the zh tokenizer a sentence is one word, and nothing matches.
    assert bleu > 20 > scored(CHINESE, ANSWERS, bleu_tokenizer="13a")["BLEU"]


def test_english_rouge_equals_rouge_score_with_the_best_reference():
    scores = scored(ROWS, TEXTS)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    rows = [[row] if isinstance(row, str) else row for row in ROWS]
    for name, kind in (("ROUGE-1", "rouge1"), ("ROUGE-2", "rouge2"), ("ROUGE-L", "rougeL")):
        each = [
            max(scorer.score(reference, text)[kind].fmeasure for reference in row)
            for row, text in zip(rows, TEXTS, strict=True)
        ]
        assert scores[name] == pytest.approx(np.mean(each), rel=1e-12)


def test_chinese_rouge_counts_characters():
    # 猫坐在垫子上 against 猫坐在椅子上: 5 of 6 characters, 3 of 5 pairs, common subsequence 5.
    scores = evaluate_all_metrics(None, "猫坐在垫子上。", "猫坐在椅子上。", standard=True)
    assert scores["ROUGE-1"] == scores["ROUGE-L"] == pytest.approx(5 / 6, rel=1e-12)
    assert scores["ROUGE-2"] == pytest.approx(3 / 5, rel=1e-12)


def test_rouge_tokens_equal_rouge_score_on_ascii_and_keep_other_scripts():
    from rouge_score import tokenizers

    text = "Running dogs_and CATS, it's 3.5% (really) -- easily!"
    tokens = CharactersAndWords().tokenize(text)
    assert tokens == tokenizers.DefaultTokenizer(use_stemmer=True).tokenize(text)
    assert CharactersAndWords().tokenize("用GPT4写 Café") == ["用", "gpt4", "写", "café"]


def test_meteor_equals_nltk_on_words():
    english = scored(ROWS[1:2], TEXTS[1:2])["METEOR"]
    goals = [str(ROWS[1]).split()]
    assert english == meteor_score(goals, TEXTS[1].split(), wordnet=NoSynonyms())
    chinese = scored(CHINESE[:1], ANSWERS[:1])["METEOR"]
    goals = [jieba.lcut(CHINESE[0])]
    assert chinese == meteor_score(goals, jieba.lcut(ANSWERS[0]), wordnet=NoSynonyms())


def test_one_row_is_scored_like_a_sentence():
    scores = evaluate_all_metrics(None, ROWS[0], TEXTS[0], standard=True)
    assert scores["BLEU"] == pytest.approx(sacrebleu.sentence_bleu(TEXTS[0], ROWS[0]).score)
    assert "eff:yes" in scores["signature"]["BLEU"]
    assert scores["confidence"] == {}


def test_resamples_are_those_of_sacrebleu():
    rng = np.random.default_rng(12345)
    at_once = rng.choice(7, size=(5, 7), replace=True)
    assert np.array_equal(np.array(list(resamples(7, 5, 12345))), at_once)


def test_interval_is_as_wide_as_sacrebleus():
    rng = random.Random(0)
    words = ["the", "a", "cat", "dog", "sat", "ran", "on", "in", "mat", "park", "today", "fast"]
    rows = [" ".join(rng.choices(words, k=8)) for _ in range(30)]
    texts = [" ".join(w if rng.random() < 0.7 else "x" for w in row.split()) for row in rows]
    low, high = scored(rows, texts, n_bootstrap=200)["confidence"]["BLEU"]
    theirs = BLEU().corpus_score(texts, [rows], n_bootstrap=200)
    assert (high - low) / 2 == pytest.approx(theirs._ci, rel=1e-4)


def test_intervals_hold_the_score_and_repeat_exactly():
    scores = scored(ROWS, TEXTS, n_bootstrap=300)
    assert list(scores["confidence"]) == NAMES
    for name, (low, high) in scores["confidence"].items():
        assert low <= scores[name] <= high
    assert scored(ROWS, TEXTS, n_bootstrap=300) == scores
    assert scored(ROWS, TEXTS, n_bootstrap=300, seed=1)["confidence"] != scores["confidence"]


def test_bootstrap_can_be_left_out():
    scores = scored(ROWS, TEXTS, n_bootstrap=0)
    assert scores["confidence"] == {}
    assert "bs:" not in str(scores["signature"])


def test_signatures_say_how_each_number_was_made():
    made = scored(ROWS, TEXTS)["signature"]
    assert list(made) == NAMES
    assert made["BLEU"] == (
        "nrefs:var|bs:1000|seed:12345|case:mixed|eff:no|tok:13a|smooth:exp|"
        f"version:{sacrebleu.__version__}"
    )
    assert f"nltk:{nltk.__version__}" in made["METEOR"]
    assert "wordnet:none" in made["METEOR"]
    assert "rouge_score:" in made["ROUGE-L"]
    assert made["ROUGE-L"].endswith("|bs:1000|seed:12345")
    chinese = scored(CHINESE, ANSWERS)["signature"]
    assert "tok:zh" in chinese["BLEU"]
    assert "asian:yes" in chinese["TER"]
    assert "jieba" in chinese["METEOR"]


def test_empty_output_counts_as_zero():
    scores = scored([ROWS[3]], [""])
    assert [scores[name] for name in NAMES] == [0, 0, 100, 0, 0, 0, 0]


def test_intensive_forces_the_chinese_tokenizers():
    assert "tok:zh" in scored(ROWS, TEXTS, intensive=True)["signature"]["BLEU"]


def test_few_chinese_characters_leave_text_english():
    assert not is_chinese(["a long English sentence with one 猫 in it"])
    assert is_chinese(["用 PyTorch 训练模型"])
    assert not is_chinese(["", "  "])


def test_table_shows_intervals_and_signatures(capsys):
    evaluate_generation(None, ROWS, TEXTS, standard=True, n_bootstrap=50)
    out = capsys.readouterr().out
    assert "| 95% low  |" in out
    assert "\nchrF|nrefs:var|bs:50" in out


def test_unknown_tokenizer_is_refused_with_the_choices():
    with pytest.raises(ConfigError, match="bleu_tokenizer='chinese' must be one of auto, none, zh"):
        scored(ROWS, TEXTS, bleu_tokenizer="chinese")
