"""What of a growing answer may be shown."""

import pytest

from main.models import load_tokenizer
from main.predictor.text import Answer

CHINESE = "龘靐齉爩，你好😀。"


def shown(tokenizer, ids, stop=()):
    """The chunks of an answer that grows token by token, and the answer."""
    answer, chunks = Answer(tokenizer, stop), []
    for end in range(1, len(ids) + 1):
        chunks.append(answer.update(ids[:end], finished=end == len(ids)))
    return chunks, answer


def test_no_half_character_is_shown_and_nothing_is_lost(small_model_path):
    tokenizer = load_tokenizer(small_model_path)
    ids = tokenizer(CHINESE)["input_ids"]
    assert len(ids) > 2 * len(CHINESE)  # rare characters are several byte pieces
    chunks, answer = shown(tokenizer, ids)
    assert "".join(chunks) == answer.text == CHINESE
    assert not any("\ufffd" in chunk for chunk in chunks)


def test_an_answer_cut_inside_a_character_ends_before_it(small_model_path):
    tokenizer = load_tokenizer(small_model_path)
    ids = tokenizer("好龘")["input_ids"]
    chunks, answer = shown(tokenizer, ids[:-1])
    assert "".join(chunks) == answer.text == "好"


def test_nothing_of_a_stop_text_is_shown(small_model_path):
    tokenizer = load_tokenizer(small_model_path)
    ids = tokenizer("one two three END four")["input_ids"]
    chunks, answer = shown(tokenizer, ids, ["three END", "zzz"])
    assert answer.stopped
    assert "".join(chunks) == answer.text == "one two "


def test_what_only_began_like_a_stop_text_is_shown_in_the_end(small_model_path):
    tokenizer = load_tokenizer(small_model_path)
    chunks, answer = shown(tokenizer, tokenizer("one two three")["input_ids"], ["three END"])
    assert not answer.stopped
    assert "".join(chunks) == answer.text == "one two three"
    assert chunks[-1] == " three"


def test_the_earliest_of_several_stop_texts_counts(small_model_path):
    tokenizer = load_tokenizer(small_model_path)
    ids = tokenizer("abc def ghi")["input_ids"]
    assert shown(tokenizer, ids, ["ghi", "def"])[1].text == "abc "


@pytest.mark.parametrize("finished", [True, False])
def test_an_answer_without_tokens_is_empty(small_model_path, finished):
    assert Answer(load_tokenizer(small_model_path), []).update([], finished) == ""


def test_the_blanks_before_an_answer_are_not_shown_and_those_within_are(small_model_path):
    tokenizer = load_tokenizer(small_model_path)
    for given, expected in [("\n one\n two", "one\n two"), ("\n", ""), ("\n\n x", "\n\n x")]:
        answer, chunks = Answer(tokenizer, [], lead="\n "), []
        ids = tokenizer(given)["input_ids"]
        for end in range(1, len(ids) + 1):
            chunks.append(answer.update(ids[:end], finished=end == len(ids)))
        assert "".join(chunks) == answer.text == expected
