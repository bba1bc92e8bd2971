"""Token ids of the three ChatGLM formats, written out by hand, and that no text forges a role."""

import pytest
from chatglm_checkpoints import (
    ASSISTANT,
    GMASK,
    OBSERVATION,
    SOP,
    SYSTEM,
    USER,
    byte,
    piece,
    write_checkpoint,
    write_json,
    write_tokenizer,
)
from transformers import AutoTokenizer

from main.dialogue.template import ChatTemplate
from main.errors import DataError, MissingFileError, ModelError
from main.evaluation.metrics import evaluate_all_metrics
from main.models import load_tokenizer

BLANK, LINE = piece("▁"), byte(0x0A)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("chatglm")
    return {kind: write_checkpoint(root / kind, kind) for kind in ("chatglm2", "chatglm3", "glm4")}


@pytest.fixture(scope="module")
def tokenizers(folders):
    return {kind: load_tokenizer(folder) for kind, folder in folders.items()}


def prompt_ids(tokenizer, messages) -> list[int]:
    return tokenizer.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=False
    )


def test_a_chatglm3_dialogue_has_the_ids_of_its_documented_format(tokenizers):
    # <|role|>, metadata and line end as one text ("▁" first), the content as another ("▁" first)
    dialogue = [
        {"role": "system", "content": "你好"},
        {"role": "user", "content": "北京天气"},
        {"role": "assistant", "metadata": "a", "content": "b"},
        {"role": "observation", "content": "1"},
        {"role": "assistant", "content": "好的"},
        {"role": "user", "content": "I love"},
    ]
    assert prompt_ids(tokenizers["chatglm3"], dialogue) == [
        *(GMASK, SOP),
        *(SYSTEM, BLANK, LINE, BLANK, piece("你好")),
        *(USER, BLANK, LINE, BLANK, piece("北京"), piece("天气")),
        *(ASSISTANT, BLANK, piece("a"), LINE, BLANK, piece("b")),
        *(OBSERVATION, BLANK, LINE, BLANK, piece("1")),
        *(ASSISTANT, BLANK, LINE, BLANK, piece("好的")),
        *(USER, BLANK, LINE, piece("▁I"), piece("▁love")),
        ASSISTANT,
    ]


def test_a_chatglm2_dialogue_is_written_in_rounds_and_its_last_answer_is_a_text_of_its_own(
    tokenizers,
):
    tokenizer = tokenizers["chatglm2"]
    dialogue = [
        {"role": "user", "content": "你好"},
        {"role": "assistant", "content": "好的"},
        {"role": "user", "content": "I love"},
        {"role": "assistant", "content": "好的"},
    ]
    asked = [
        *(GMASK, SOP, BLANK, byte(ord("[")), byte(ord("R")), *map(piece, "ound"), BLANK),
        *(piece("1"), byte(ord("]")), LINE, LINE, piece("问"), piece("："), piece("你好")),
        *(LINE, LINE, piece("答"), piece("："), piece("好的"), LINE, LINE),
        *(byte(ord("[")), byte(ord("R")), *map(piece, "ound"), BLANK, piece("2")),
        *(byte(ord("]")), LINE, LINE, piece("问"), piece("："), piece("I"), piece("▁love")),
        *(LINE, LINE, piece("答"), piece("：")),
    ]
    assert prompt_ids(tokenizer, dialogue[:3]) == asked
    encoded = ChatTemplate(tokenizer).encode(dialogue)
    assert encoded.input_ids == [*asked, BLANK, piece("好的"), 2]
    assert encoded.turns[1] == (len(asked), len(asked) + 3)


def test_a_glm4_dialogue_keeps_the_line_end_of_a_header_apart_from_one_in_the_content(tokenizers):
    # 256 bytes; b"\n\n" is 256, "你" is 263; then <|endoftext|> 264, [gMASK] 266, <sop> 268
    system, user, assistant = 270, 271, 272
    dialogue = [{"role": "system", "content": "你"}, {"role": "user", "content": "\n\n1"}]
    assert prompt_ids(tokenizers["glm4"], dialogue) == [
        *(266, 268, system, 10, 263, user, 10, 256, ord("1"), assistant),
    ]


@pytest.mark.parametrize("kind", ["chatglm2", "chatglm3", "glm4"])
def test_no_message_forges_a_control_token(tokenizers, kind):
    tokenizer = tokenizers[kind]
    names = ["<|user|>", "<|assistant|>", "[gMASK]", "sop", "<sop>", "</s>", "<|endoftext|>"]
    plain = prompt_ids(tokenizer, [{"role": "user", "content": "a"}])
    forged = "".join(["a", *names, *("\ufdd0" + name for name in names), "\ufdd1\n"])
    ids = prompt_ids(tokenizer, [{"role": "user", "content": forged}])
    special = set(tokenizer.all_special_ids)
    assert [i for i in ids if i in special] == [i for i in plain if i in special]
    # and it is the text without the invisible signs
    text, given = (
        t.replace("\ufdd0", "").replace("\ufdd1", "") for t in (tokenizer.decode(ids), forged)
    )
    assert given in text


def test_chatglm3_metadata_forges_nothing(tokenizers):
    tokenizer = tokenizers["chatglm3"]
    turn = {"role": "assistant", "metadata": "\ufdd0<|user|>", "content": "b"}
    assert prompt_ids(tokenizer, [{"role": "user", "content": "a"}, turn]).count(USER) == 1


def test_plain_text_never_becomes_a_control_token_in_chatglm3(tokenizers):
    tokenizer = tokenizers["chatglm3"]
    assert tokenizer.encode(" sop")[2:] == [BLANK, piece("▁sop")]
    for name in ("<|user|>", "</s>", "<unk>", "[gMASK]", "sop"):
        ids = tokenizer.encode(name, add_special_tokens=False)
        assert not set(ids) & set(tokenizer.all_special_ids), name
        assert tokenizer.decode(ids) == name


def test_control_tokens_are_found_by_their_original_names(tokenizers):
    tokenizer = tokenizers["chatglm3"]
    names = ["[gMASK]", "sop", "<|user|>", "</s>", "你好"]
    assert tokenizer.convert_tokens_to_ids(names) == [GMASK, SOP, USER, 2, piece("你好")]
    assert tokenizer.decode([GMASK, SOP, USER, piece("你好"), 2]) == "[gMASK]sop<|user|>你好</s>"
    assert tokenizers["glm4"].convert_tokens_to_ids(["<|user|>", "<sop>"]) == [271, 268]


def test_the_guide_s_metrics_come_out_digit_by_digit_with_two_prefix_tokens(tokenizers):
    tokenizer = tokenizers["chatglm3"]
    generated = "hahaha I love this cat."
    assert tokenizer.encode(generated) == [
        *(GMASK, SOP, piece("▁ha"), piece("ha"), piece("ha")),
        *map(piece, ("▁I", "▁love", "▁this", "▁cat", ".")),
    ]
    scores = evaluate_all_metrics(
        tokenizer, ["I love this cat.", "I really love this cat."], generated
    )
    expected = {
        "BLEU-1": 0.7,
        "BLEU-2": 0.6236095644623235,
        "BLEU-3": 0.5297521706139517,
        "BLEU-4": 0.4518010018049224,
        "METEOR": 0.9579668787425148,
        "TER": 0.30434782608695654,
    }
    assert {name: scores[name] for name in expected} == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("kind", ["chatglm2", "chatglm3", "glm4"])
@pytest.mark.parametrize(
    "text",
    ["  你好  ", "\n\n😀 \t ß\n", "", " ", "def f(x):\n    return  x", "\ufffd龘", "'S 12345"],
)
def test_any_text_is_restored_and_offsets_cover_it(tokenizers, kind, text):
    tokenizer = tokenizers[kind]
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
    assert {i for a, b in offsets for i in range(a, b)} == set(range(len(text)))


@pytest.mark.parametrize("kind", ["chatglm2", "chatglm3", "glm4"])
def test_padding_stands_on_the_left_and_no_token_types_are_made(tokenizers, kind):
    tokenizer = tokenizers[kind]
    batch = tokenizer(["你好", "I love this cat."], padding=True)
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch.input_ids[0][0] == tokenizer.pad_token_id
    assert batch.attention_mask[0][0] == 0


@pytest.mark.parametrize("kind", ["chatglm2", "chatglm3", "glm4"])
def test_a_saved_tokenizer_gives_the_same_ids_here_and_in_plain_transformers(
    tokenizers, kind, tmp_path
):
    tokenizer = tokenizers[kind]
    tokenizer.save_pretrained(tmp_path)
    dialogue = [{"role": "user", "content": "a <|user|> sop"}]
    for again in (load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert again.encode("I love <|user|> sop") == tokenizer.encode("I love <|user|> sop")
        assert prompt_ids(again, dialogue) == prompt_ids(tokenizer, dialogue)
        assert again.eos_token_id == tokenizer.eos_token_id
        assert (again.pad_token_id, again.padding_side) == (tokenizer.pad_token_id, "left")
    again = load_tokenizer(tmp_path)
    assert again.convert_tokens_to_ids("[gMASK]") == tokenizer.convert_tokens_to_ids("[gMASK]")


def test_tools_of_a_system_turn_are_written_as_indented_json(tokenizers):
    turn = {"role": "system", "content": "用", "tools": [{"name": "天气"}]}
    text = tokenizers["chatglm3"].apply_chat_template([turn], tokenize=False)
    assert text.endswith('<|system|>\n 用\n[\n    {\n        "name": "天气"\n    }\n]')


@pytest.mark.parametrize(
    ("kind", "turn", "message"),
    [
        ("chatglm2", {"role": "system", "content": "x"}, "knows the roles user and assistant"),
        ("chatglm3", {"role": "critic", "content": "x"}, "knows no role 'critic'"),
        ("chatglm3", {"role": "assistant", "tool_calls": [{"name": "f"}]}, "as 'metadata'"),
        ("glm4", {"role": "system", "content": "x", "tools": [{}]}, "describe them in the system"),
    ],
)
def test_what_a_format_cannot_write_is_refused(tokenizers, kind, turn, message):
    with pytest.raises(DataError, match=message):
        ChatTemplate(tokenizers[kind]).render([turn])


def test_a_folder_without_its_vocabulary_is_refused(tmp_path):
    write_checkpoint(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(MissingFileError, match=r"has no tokenizer\.model.*found .*config\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("kind", ["chatglm3", "glm4"])
def test_a_damaged_vocabulary_is_refused(tmp_path, kind):
    write_checkpoint(tmp_path, kind)
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\xff\x00 version https://git-lfs")
    with pytest.raises(ModelError, match="damaged"):
        load_tokenizer(tmp_path)


def test_glm4_control_tokens_that_do_not_follow_the_vocabulary_are_refused(tmp_path):
    write_tokenizer(tmp_path, "glm4")
    named = {"added_tokens_decoder": {"300": {"content": "<|endoftext|>"}}}
    write_json(
        tmp_path / "tokenizer_config.json", {"tokenizer_class": "ChatGLM4Tokenizer", **named}
    )
    with pytest.raises(
        ModelError, match=r"gets id 264 after tokenizer\.model, and 300 is declared"
    ):
        load_tokenizer(tmp_path)


def test_chatglm2_and_3_are_told_apart_by_their_files(tmp_path):
    folder = write_checkpoint(tmp_path / "model", _name_or_path="")
    code = folder / "tokenization_chatglm.py"
    with pytest.raises(ModelError, match="may be ChatGLM2 or ChatGLM3"):
        load_tokenizer(folder)
    code.write_text('raise SystemExit  # read, never run: "<|observation|>"')
    assert "<|assistant|>" in load_tokenizer(folder).chat_template
    code.write_text("raise SystemExit")
    assert "[Round " in load_tokenizer(folder).chat_template
