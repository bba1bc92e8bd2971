"""Tool calls in answers, in the way of each family."""

from pathlib import Path
from typing import Any

import pytest
import trl
from chat_templates import load_tokenizer

from main.dialogue.calls import FORMATS, format_of, read_answer
from main.dialogue.renderer import Renderer
from main.errors import ModelError
from main.predictor.hf import Predictor
from main.types import ScoredAnswer

FOLDER = Path(trl.__file__).parent / "chat_templates"
NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja"))
# Templates that write no call, and those of the same beginning that do.
WITHOUT = (
    "cohere",
    "gemma",
    "idefics3",
    "lfm2",
    "llama3",
    "llava",
    "phi3",
    "qwen2_5_vl",
    "smolvlm",
)
WITH = ("gemma4", "lfm2_2_5", "lfm2_v2", "llama3_1", "llama3_2")
ARGUMENTS = {"city": 'Bad Ems, "Süd" {1}', "days": 2, "exact": True, "of": [1, {"a": "b"}]}
SCHEMA = {
    "name": "get_weather",
    "parameters": {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
}


def called(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def takes_calls(name: str) -> bool:
    return not name.startswith(WITHOUT) or name.startswith(WITH)


@pytest.mark.parametrize("name", [name for name in NAMES if takes_calls(name)])
def test_what_a_template_writes_is_read_back(name: str) -> None:
    """The assistant's turn as the template has it, between the prompt and the end of the turn."""
    renderer = Renderer(load_tokenizer("qwen", name))
    question = [{"role": "user", "content": "a"}]
    turn = {
        "role": "assistant",
        "tool_calls": [{"id": "call00001", **called("get_weather", ARGUMENTS)}],
    }
    whole = renderer.render([*question, turn])
    text = whole[len(renderer.render(question)) :]
    message = read_answer(text, format_of(renderer), [SCHEMA])
    assert message["tool_calls"] == [called("get_weather", ARGUMENTS)]


@pytest.mark.parametrize("name", ["smolvlm", "phi3", "qwen2_5_vl"])
def test_a_family_without_an_entry_is_refused_by_name(name: str) -> None:
    with pytest.raises(ModelError, match="tool call"):
        format_of(Renderer(load_tokenizer("qwen", name)))
    tokenizer = load_tokenizer("qwen")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% for c in m.get('tool_calls') or [] %}"
        "!!{{ c['function']['name'] }}!!{{ c['function']['arguments']['lynxmu'] }}"
        "{% endfor %}{% endfor %}"
    )
    with pytest.raises(ModelError, match="in a way that is not known here: 'a!!call_kudu"):
        format_of(Renderer(tokenizer))


# Answers as the models themselves give them, where their templates differ from that.
@pytest.mark.parametrize(
    ("name", "text", "content", "calls"),
    [
        (
            "Hermes",
            "<think>\nhm\n</think>\n\nLet me see.\n"
            '<tool_call>\n{"name": "f", "arguments": {"n": 1}}\n</tool_call>\n'
            '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>',
            "Let me see.",
            [called("f", {"n": 1}), called("g", {})],
        ),
        ("Hermes", '<tool_call>\n{"name": "f", "argum', '<tool_call>\n{"name": "f", "argum', []),
        (
            "Llama",
            '<|python_tag|>{"name": "f", "parameters": {"n": "1"}}',
            "",
            [called("f", {"n": "1"})],
        ),
        ("Llama", '{"name": "Ann", "age": 3}', '{"name": "Ann", "age": 3}', []),
        ("GLM-4!", 'get_weather\n{"city": "Rom"}', "", [called("get_weather", {"city": "Rom"})]),
        ("GLM-4!", "It is\n{not a call}", "It is\n{not a call}", []),
        (
            "ChatGLM3",
            "get_weather\n ```python\ntool_call(city='Rom', days=2)\n```",
            "",
            [called("get_weather", {"city": "Rom", "days": 2})],
        ),
        (
            "Mistral",
            '[TOOL_CALLS]f[ARGS]{"n": 1}[TOOL_CALLS]g[ARGS]{}',
            "",
            [called("f", {"n": 1}), called("g", {})],
        ),
        (
            "Mistral, as",
            'See: [TOOL_CALLS] [{"name": "f", "arguments": {"n": 1}}]',
            "See:",
            [called("f", {"n": 1})],
        ),
        (
            "gpt-oss",
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary "
            'to=functions.f <|constrain|>json<|message|>{"n": {"m": 1}}<|call|>',
            "Hm.<|end|>",
            [called("f", {"n": {"m": 1}})],
        ),
        (
            "DeepSeek",
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>"
            '{"n": 1}<｜tool▁call▁end｜>'
            "<｜tool▁calls▁end｜>",
            "",
            [called("f", {"n": 1})],
        ),
        ("LFM2", "<|tool_call_start|>[f(n=open('x'))]<|tool_call_end|>", None, []),
    ],
)
def test_answers_are_read_as_messages(name, text, content, calls) -> None:
    form = next(form for form in FORMATS if (form.name + "!").startswith(name))
    message = read_answer(text, form)
    assert message["content"] == (text if content is None else content)
    assert message.get("tool_calls", []) == calls
    assert message.get("reasoning_content") == ("hm" if "<think>" in text else None)


def test_the_schema_says_what_is_a_string_where_the_text_does_not() -> None:
    form = next(form for form in FORMATS if form.name.startswith("XML (Qwen"))
    text = (
        "<tool_call>\n<function=get_weather>\n<parameter=city>\n007\n</parameter>\n"
        "<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>"
    )
    city = "<parameter=city>\n12\n</parameter>"
    numbers = text.replace("<parameter=city>\n007\n</parameter>", city)
    given = read_answer(numbers, form, [SCHEMA])["tool_calls"][0]["function"]["arguments"]
    assert given == {"city": "12", "days": 2}
    unsaid = read_answer(numbers, form)["tool_calls"][0]["function"]["arguments"]
    assert unsaid == {"city": 12, "days": 2}


def test_a_predictor_gives_its_answer_as_a_message(tiny_model_path) -> None:
    predictor = Predictor(tiny_model_path, device="cpu")
    tokenizer = predictor.tokenizer
    tokenizer.chat_template = load_tokenizer("qwen", "qwen3").chat_template
    text = '<tool_call>\n{"name": "f", "arguments": {"n": 1}}\n</tool_call>'
    ids = [*tokenizer(text)["input_ids"], tokenizer.convert_tokens_to_ids("<|im_end|>")]
    for answer in (text, ScoredAnswer(text, ids, [0.0] * len(ids), "stop")):
        message = predictor.message(answer)
        assert message == {
            "role": "assistant",
            "content": "",
            "tool_calls": [called("f", {"n": 1})],
        }
    # and goes on from there
    history = [{"role": "user", "content": "q"}, message]
    (asked,) = predictor.prompt_ids({"role": "tool", "content": "2"}, history)
    assert '{"name": "f", "arguments": {"n": 1}}' in tokenizer.decode(asked)
