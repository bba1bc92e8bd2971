"""Query and history -> dialogues -> prompts -> token ids."""

import copy
from pathlib import Path

import chat_templates
import pytest
import trl

from main.dialogue.prompts import Prompts, answer_lead, encode, template_variables
from main.errors import ConfigError, GenerationError
from main.models import load_tokenizer
from main.predictor.request import build_dialogues, build_prompts

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
PAST = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def user(text):
    return {"role": "user", "content": text}


def with_template(path, name):
    tokenizer = load_tokenizer(path)
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    if name == "glm4moe":  # the family's control tokens, which part its texts
        own = ["[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]
        tokenizer.add_special_tokens({"extra_special_tokens": own})
    return tokenizer


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("hi", [[user("hi")]]),
        (user("hi"), [[user("hi")]]),
        (["hi", "ho"], [[user("hi")], [user("ho")]]),
        ([user("hi"), user("ho")], [[user("hi")], [user("ho")]]),
        ([[*PAST, user("c")], "d"], [[*PAST, user("c")], [user("d")]]),
        ([], []),
    ],
)
@pytest.mark.parametrize("history", [None, []])
def test_each_form_of_a_query_becomes_one_dialogue_a_request(query, expected, history):
    assert build_dialogues(query, history) == expected


def test_history_comes_before_the_query_once():
    assert build_dialogues("c", PAST) == [[*PAST, user("c")]]
    assert build_dialogues("c", [PAST]) == [[*PAST, user("c")]]  # the guide's nested form
    assert build_dialogues(["c", "d"], [PAST, []]) == [[*PAST, user("c")], [user("d")]]
    assert build_dialogues(["c", "d"], [PAST, None]) == [[*PAST, user("c")], [user("d")]]


def test_nothing_that_the_caller_gave_is_changed(small_model_path):
    query, history = [user("c"), [*PAST, user("d")]], [PAST, []]
    kept = copy.deepcopy((query, history))
    dialogues = build_dialogues(query, history, "be brief")
    dialogues[0][1]["content"] = "changed"
    build_prompts(load_tokenizer(small_model_path), query, history, system_prompt="be brief")
    assert (query, history) == kept


def test_a_system_prompt_opens_dialogues_that_have_none():
    own = [{"role": "system", "content": "mine"}, user("c")]
    system = {"role": "system", "content": "be brief"}
    assert build_dialogues(["a", own], None, "be brief") == [[system, user("a")], own]


@pytest.mark.parametrize(
    ("query", "history", "message"),
    [
        (["a", "b"], [PAST], r"history has 1 entries for 2 queries"),
        ("a", [[], []], r"history has 2 entries for 1 query"),
        (["a", "b"], PAST, r"for a batch, history is a list with one list of messages for each"),
        ("a", "earlier", r"history must be a list of messages, not str 'earlier'"),
        ("a", [["q", "r"]], r"history\[0\]\[0\] must be a message such as"),
        (3, None, r"query must be text, a message .* got int 3"),
        ([[]], None, r"query\[0\] must be text, a message"),
        ({"content": "x"}, None, r"must be a message such as.*got a mapping with \['content'\]"),
        ({"role": "user", "content": 3}, None, r"'content' must be text or a list .* not int"),
        (PAST, None, r"query\[1\] ends with .* role 'assistant'.*one dialogue as \[\[\.\.\.\]\]"),
        ([PAST], None, r"query\[0\] ends with a message of role 'assistant'.*no answer"),
    ],
)
def test_a_query_or_history_of_the_wrong_shape_is_refused(query, history, message):
    with pytest.raises(ConfigError, match=message):
        build_dialogues(query, history)


def test_without_a_template_the_prompt_is_the_query(small_model_path):
    tokenizer = load_tokenizer(small_model_path)
    assert build_prompts(tokenizer, "Once", [], build_message=False) == Prompts(["Once"], False)
    assert build_prompts(tokenizer, ["a", "b"], None, build_message=False).texts == ["a", "b"]


@pytest.mark.parametrize(
    ("query", "options", "message"),
    [
        (user("a"), {}, "takes a finished prompt"),
        ("a", {"history": PAST}, "history is written into the prompt by the chat template"),
        ("a", {"template_kwargs": {"tools": []}}, r"\['tools'\] are for the chat template"),
    ],
)
def test_without_a_template_what_only_it_could_use_is_refused(
    small_model_path, query, options, message
):
    with pytest.raises(ConfigError, match=message):
        build_prompts(load_tokenizer(small_model_path), query, build_message=False, **options)


@pytest.mark.parametrize("name", ["llama3", "qwen2_5", "qwen3", "glm4moe"])
def test_a_rendered_prompt_is_tokenised_as_the_template_says_with_one_bos(
    llama3_tokenizer_path, qwen_tokenizer_path, name
):
    path = llama3_tokenizer_path if name == "llama3" else qwen_tokenizer_path
    tokenizer = with_template(path, name)
    dialogue = [*PAST, user("你好?")]
    ids = encode(tokenizer, build_prompts(tokenizer, [dialogue]))[0]
    assert ids == tokenizer.apply_chat_template(
        dialogue, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    if tokenizer.bos_token_id is not None:
        assert ids.count(tokenizer.bos_token_id) <= 1


def test_a_raw_prompt_gets_the_bos_that_it_lacks_and_no_second_one(llama3_tokenizer_path):
    tokenizer = load_tokenizer(llama3_tokenizer_path)
    bos = tokenizer.bos_token
    plain, spelt = encode(tokenizer, Prompts(["Once", f"{bos}Once"], templated=False))
    assert spelt.count(tokenizer.bos_token_id) == 1
    assert plain == tokenizer("Once")["input_ids"]


@pytest.mark.parametrize("name", ["llama3", "qwen2_5", "qwen3", "glm4moe"])
def test_no_blanks_lead_an_answer_whose_prompt_includes_them(
    llama3_tokenizer_path, qwen_tokenizer_path, name
):
    path = llama3_tokenizer_path if name == "llama3" else qwen_tokenizer_path
    assert answer_lead(with_template(path, name)) == ""


def test_template_variables_reach_the_template(qwen_tokenizer_path):
    tokenizer = with_template(qwen_tokenizer_path, "qwen3")
    assert {"enable_thinking", "tools"} <= template_variables(tokenizer)
    thinking, plain = (
        build_prompts(tokenizer, "a", template_kwargs={"enable_thinking": on}).texts[0]
        for on in (True, False)
    )
    assert plain == thinking + "<think>\n\n</think>\n\n"


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("*.jinja")), ids=lambda path: path.stem)
def test_the_variables_of_every_known_template_can_be_listed(path):
    tokenizer = chat_templates.load_tokenizer("qwen")
    tokenizer.chat_template = path.read_text(encoding="utf-8")
    assert not template_variables(tokenizer) & {"messages", "bos_token", "add_generation_prompt"}


def test_no_template_and_a_template_that_refuses_are_clear_errors(llama3_tokenizer_path):
    tokenizer = load_tokenizer(llama3_tokenizer_path)
    tokenizer.chat_template = None
    with pytest.raises(GenerationError, match=r"has no chat template.*build_message=False"):
        build_prompts(tokenizer, "a")
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(GenerationError, match=r"refuses request 0 .*\['user'\].*must alternate"):
        build_prompts(tokenizer, "a")


def test_images_need_a_processor_and_text_parts_are_joined(small_model_path):
    tokenizer = load_tokenizer(small_model_path)
    image = {"type": "image", "image": "./example.jpg"}
    text = {"type": "text", "text": "Who is she?"}
    with pytest.raises(GenerationError, match="1 parts of type 'image', and this model takes"):
        build_prompts(tokenizer, [{"role": "user", "content": [image, text]}])
    parts = build_prompts(tokenizer, {"role": "user", "content": [text]})
    plain = build_prompts(tokenizer, "Who is she?")
    assert parts._replace(dialogues=plain.dialogues) == plain


def test_a_shape_of_dialogue_is_looked_into_once_whatever_it_says(small_model_path, monkeypatch):
    tokenizer = load_tokenizer(small_model_path)
    applied, original = [], tokenizer.apply_chat_template

    def counting(*arguments, **options):
        applied.append(arguments)
        return original(*arguments, **options)

    monkeypatch.setattr(tokenizer, "apply_chat_template", counting)
    build_prompts(tokenizer, "What is it?", PAST)
    first = len(applied)
    prompts = build_prompts(tokenizer, "And that?", PAST)
    assert len(applied) == first + 1 and "And that?" in prompts.texts[0]


@pytest.mark.parametrize("name", ["", "qwen3", "llama3_2"])
def test_a_query_of_nothing_is_a_turn_of_nothing(small_model_path, name):
    tokenizer = with_template(small_model_path, name) if name else load_tokenizer(small_model_path)
    for query in ("", " ", user([{"type": "text", "text": ""}])):
        (text,) = build_prompts(tokenizer, query).texts
        turns = [user(" " if query == " " else "")]
        assert text == tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
