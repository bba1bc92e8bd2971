"""Words of ROUGE in every script, and rouge_score's own on ASCII."""

import random
import string

import pytest
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from main.evaluation.metrics import evaluate_all_metrics
from main.evaluation.rouge import Rouge, rouge_l
from main.evaluation.words import CharactersAndWords, is_chinese, segment, split

TEXTS = {
    "Russian": "Быстрая лиса перепрыгнула через ленивую собаку.",
    "Arabic": "قَرَأَ الوَلَدُ كِتابًا جَديدًا في المكتبة",
    "Persian": "او می‌خواهد کتاب بخواند",
    "Hebrew": "הילד קרא ספר חדש",
    "Thai": "สวัสดีครับ ผมชื่อสมชาย",
    "Korean": "오늘은 날씨가 정말 좋습니다.",
    "Hindi": "मैं हिन्दी में लिखता हूँ।",
    "Tamil": "வணக்கம் உலகம்",
    "Greek": "Η γρήγορη αλεπού πηδάει.",
    "Japanese": "人々は「ラーメン」を食べた。",
    "Chinese": "今天天气很好。",
    "Vietnamese": "Tiếng Việt có dấu",
    "mixed": "用 GPT-4 写 Café и мир नमस्ते 안녕 42",
}


class Ids:
    """Characters as ids: BLEU and METEOR of the guide need some tokenizer."""

    def encode(self, text):
        return [ord(character) for character in text]


@pytest.mark.parametrize("intensive", [False, True])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_identical_texts_of_every_script_score_one(text, intensive):
    guide = evaluate_all_metrics(Ids(), text, text, intensive)
    field = evaluate_all_metrics(None, text, text, intensive, standard=True)
    for scores in (guide, field):
        rouge = {name: value for name, value in scores.items() if name in ("ROUGE-1", "ROUGE-L")}
        assert set(rouge.values()) == {1.0}
    assert field["METEOR"] > 0.9


def rouge_1(reference, generated, intensive=False):
    return evaluate_all_metrics(Ids(), reference, generated, intensive)["ROUGE-1"]


def test_other_words_of_a_script_do_not_match():
    # one of two words each; the vowel signs of the second word differ
    assert rouge_1("नमस्ते कि", "नमस्ते की") == pytest.approx(1 / 2)
    assert rouge_1("नमस्ते कि", "नमस्ते की", intensive=True) == pytest.approx(1 / 2)
    assert rouge_1("белая собака", "чёрная собака") == pytest.approx(1 / 2)
    assert rouge_1("안녕 하세요", "안녕 여러분", intensive=True) == pytest.approx(1 / 2)


def test_japanese_is_counted_by_characters():
    tokens = CharactersAndWords().tokenize("人々は「ラーメン」を・ｱｲｽ か\u3099")
    assert tokens == ["人", "々", "は", "ラ", "ー", "メ", "ン", "を", "ｱ", "ｲ", "ｽ", "が"]


def test_marks_belong_to_the_letter_before_them_and_stand_for_no_word():
    assert CharactersAndWords().tokenize("I ❤\ufe0f नमस्ते \u0301 葛\U000e0100") == [
        "i", "नमस्ते", "葛\U000e0100",
    ]  # fmt: skip
    assert split("नमस्ते, दुनिया!") == ["नमस्ते", ",", "दुनिया", "!"]


def test_an_accent_in_one_code_point_or_in_two_is_the_same():
    assert rouge_1("Ti\u1ebfng Vi\u1ec7t", "Tie\u0302\u0301ng Vie\u0323\u0302t") == 1.0


def test_jieba_gets_what_it_knows_and_other_words_stay_whole():
    assert segment("我爱北京Café и T恤") == ["我", "爱", "北京", "Café", "и", "T恤"]


def test_ascii_texts_have_the_tokens_and_the_digits_of_rouge_score():
    rng = random.Random(0)
    kinds = ["rouge1", "rouge2", "rougeL"]
    theirs, ours = RougeScorer(kinds, use_stemmer=True), CharactersAndWords()
    scorer = RougeScorer(kinds, tokenizer=ours)
    default = DefaultTokenizer(use_stemmer=True)
    words = ["running", "Cats", "it's", "3.5%", "a_b", "generously", "--", "X1", "ponies"]
    for _ in range(300):
        noise = "".join(rng.choices(string.printable, k=30))
        first = " ".join(rng.choices(words, k=12)) + noise
        second = " ".join(rng.choices(words, k=12)) + noise[::-1]
        assert ours.tokenize(first) == default.tokenize(first)
        assert scorer.score(first, second) == theirs.score(first, second)


def test_what_counts_as_written_without_spaces():
    assert is_chinese([TEXTS["Chinese"]]) and is_chinese([TEXTS["Japanese"]])
    assert not is_chinese([TEXTS["Korean"], TEXTS["Thai"], "・「」"])


def test_rouge_l_has_every_digit_of_rouge_score():
    rng = random.Random(1)
    theirs = RougeScorer(["rougeL", "rouge1"], tokenizer=CharactersAndWords())
    ours = Rouge([1], CharactersAndWords())
    for _ in range(300):
        first, second = (" ".join(rng.choices("abcdef", k=rng.randint(0, 40))) for _ in range(2))
        expected = theirs.score(first, second)
        assert ours.score(first, second) == {
            "ROUGE-1": expected["rouge1"].fmeasure,
            "ROUGE-L": expected["rougeL"].fmeasure,
        }


def test_rouge_l_of_long_texts_takes_no_table():
    rng = random.Random(2)
    first, second = (rng.choices("abcdef", k=20_000) for _ in range(2))
    # a table of 400 million cells; the subsequence is far longer than by chance of one letter
    assert rouge_l(first, second) > 0.5
