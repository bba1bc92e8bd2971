"""Chat templates are programs: none may take time, memory or text without bound."""

import os
import sys

import pytest
from transformers import AutoTokenizer

from main.dialogue import tried
from main.dialogue.renderer import Renderer, renderer_of
from main.dialogue.template import ChatTemplate
from main.errors import ConfigError, DataError, ModelError

GOOD = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
QUESTION = [{"role": "user", "content": "Hello?"}]
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
TWICE = "{% for i in range(60) %}{% set ns.text = ns.text ~ ns.text %}{% endfor %}"
ATTACKS = {
    "one string times a number": ("{{ 'a' * 10 ** 11 }}", "takes more memory"),
    "a string that doubles": ("{% set ns = namespace(text='aa') %}" + TWICE, "takes more memory"),
    "a field of a format": ("{{ '%3000000000d' % 1 }}", "takes more memory"),
    "blanks around a word": ("{{ 'a' | center(3000000000) }}", "takes more memory"),
    "words of nobody": (
        "{% for i in range(99999) %}blah {% endfor %}",
        "writes 499,995 characters",
    ),
    "loops in loops": (LOOP, "takes more than 3 s"),
    "only where a word is said": (
        "{% if 'sesame' in messages[-1].content %}{{ 'a' * 10 ** 11 }}{% endif %}" + GOOD,
        "takes more memory",
    ),
    "only where there are tools": (
        "{% if tools %}{{ 'a' * 10 ** 11 }}{% endif %}" + GOOD,
        "takes more memory",
    ),
    "only where a variable is set": (
        "{% if not thinking %}" + GOOD + "{% else %}{{ 'a' * 10 ** 11 }}{% endif %}",
        "takes more memory",
    ),
}


@pytest.fixture(autouse=True)
def own_notes(own_folder):
    """What is tried here is tried here."""
    tried.forget()
    yield own_folder
    tried.forget()


@pytest.fixture(scope="module")
def tokenizer(qwen_tokenizer_path):
    return AutoTokenizer.from_pretrained(qwen_tokenizer_path)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_template_without_bounds_is_refused_before_it_writes_anything(tokenizer, name):
    tokenizer.chat_template, problem = ATTACKS[name]
    with pytest.raises(ModelError, match=f"The chat template {problem}.* is not used. Give the"):
        ChatTemplate(tokenizer)


def test_no_way_of_giving_a_template_leads_around_the_trial(tokenizer):
    bad, problem = ATTACKS["one string times a number"]
    tokenizer.chat_template = {"default": GOOD, "tool_use": bad}
    with pytest.raises(ModelError, match=problem):
        renderer_of(tokenizer)
    tokenizer.chat_template = GOOD
    renderer = Renderer(tokenizer)
    tokenizer.chat_template = bad
    with pytest.raises(ModelError, match=problem):
        renderer.render(QUESTION)
    tokenizer.chat_template = GOOD + "{{ chat_template }}{{ tokenize }}"
    with pytest.raises(ConfigError, match="reads no variable 'chat_template'"):
        ChatTemplate(tokenizer, chat_template=bad)


def test_what_a_template_that_has_passed_writes_is_bounded_too(tokenizer):
    late = "{% if messages | length == 7 %}{% for i in range(99999) %}blah {% endfor %}{% endif %}"
    tokenizer.chat_template = late + GOOD
    renderer = Renderer(tokenizer)
    assert renderer.render(QUESTION * 6).count("<|user|>") == 6
    with pytest.raises(DataError, match=r"it writes 500,\d+ characters of a dialogue of \d+"):
        renderer.render(QUESTION * 7)
    long = [{"role": "user", "content": "word " * 100_000}]
    assert len(renderer.render(long)) > 500_000


def test_a_template_is_tried_once_and_later_processes_know_it(tokenizer, monkeypatch, own_notes):
    asked = []
    try_it = tried._try
    monkeypatch.setattr(tried, "_try", lambda source: asked.append(source) or try_it(source))
    tokenizer.chat_template = GOOD
    for _ in range(3):
        tried.forget()  # as another process
        assert Renderer(tokenizer).render(QUESTION) == "<|user|>Hello?<|end|>"
    assert asked == [GOOD] and len(list(own_notes.rglob("templates/*.json"))) == 1
    tokenizer.chat_template = ATTACKS["blanks around a word"][0]
    for count in (2, 3):  # what was refused is asked again: the machine may have been the cause
        with pytest.raises(ModelError):
            Renderer(tokenizer)
        assert len(asked) == count


@pytest.mark.parametrize("executable", ["", "/nowhere/python", "/bin/false"])
def test_where_no_process_can_be_started_templates_work_and_that_is_said(
    tokenizer, monkeypatch, caplog, own_notes, executable
):
    monkeypatch.setattr(sys, "executable", executable)
    tried._warn.cache_clear()
    tokenizer.chat_template = GOOD
    assert Renderer(tokenizer).render(QUESTION) == "<|user|>Hello?<|end|>"
    tokenizer.chat_template = GOOD + "\n"
    Renderer(tokenizer)
    (said,) = [r.message for r in caplog.records if "used untried" in r.message]
    assert "one that loops for ever would not be stopped" in said
    assert not list(own_notes.rglob("templates/*.json"))


def test_memory_is_watched_where_the_system_keeps_no_limit(tokenizer, monkeypatch):
    assert 20 < tried._megabytes(os.getpid()) < 1e6
    monkeypatch.setattr(tried, "_megabytes", lambda pid: tried.MEGABYTES + 1)
    tokenizer.chat_template = LOOP
    with pytest.raises(ModelError, match="takes more memory than it may"):
        Renderer(tokenizer)


@pytest.mark.parametrize("template", ["{% if %}", "{{ " + "(" * 5000 + ")" * 5000 + " }}"])
def test_what_is_no_template_is_an_error_of_ours(tokenizer, template):
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match="cannot be read as jinja2"):
        ChatTemplate(tokenizer)
