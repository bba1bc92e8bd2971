"""Verifiers: tables of answers that are right and of answers that are wrong."""

import sys
import time
from types import ModuleType

import pytest

from main.errors import ConfigError, MissingExtraError
from main.evaluation.final_answer import chosen, final_answer
from main.evaluation.numbers import last_number, whole_number
from main.utils import sandbox
from main.utils.reward_func import (
    choice_reward,
    code_reward,
    math_verify_reward,
    reward_choice,
    reward_math,
    reward_number,
    reward_quantity,
    schema_reward,
)

RIGHT, WRONG = 1.0, 0.0

NUMBERS = [
    ("1.000.000,5", "1000000.5", RIGHT),
    ("1.234,5 €", "1,234.5", RIGHT),
    ("1 000,5", "1000.5", RIGHT),
    ("12,34,567 rupees", "1234567", RIGHT),  # as India groups digits
    ("1_000_000", "1000000", RIGHT),
    ("1’000", "1000", RIGHT),
    ("2½ hours", "2.5", RIGHT),
    ("2½ hours", "21/2", WRONG),  # the two characters joined
    ("2 1/2 hours", "2.5", RIGHT),
    ("-2 1/2", "-2.5", RIGHT),
    (r"2\frac{1}{2}", "2.5", RIGHT),
    (r"\dfrac12", "1/2", RIGHT),
    ("3 × 10^5", "300000", RIGHT),
    (r"3 \times 10^{-2}", "0.03", RIGHT),
    ("3*10^5", "10^5", WRONG),
    ("50 percent", "0.5", RIGHT),
    ("百分之50", "50%", RIGHT),
    ("5‰", "0.005", RIGHT),
    ("3万", "30000", RIGHT),
    ("1.5亿人", "150,000,000", RIGHT),
    ("2 million", "2000000", RIGHT),
    ("2 millionaires", "2", RIGHT),
    (r"\boxed{12}, found in 3 steps", "12", RIGHT),
    (r"\boxed{11}, and not 12", "12", WRONG),
    (r"\boxed{\frac{3}{4}}", "0.75", RIGHT),
    (r"\boxed{none} of the 12", "12", WRONG),
    (r"1{,}234", "1234", RIGHT),
    (r"1\,000", "1000", RIGHT),
    (r"\$5.00", "5", RIGHT),
    (r"$x = 3\text{ cm}$", "3", RIGHT),
    ("1.5", "15", WRONG),
    ("12 or 13", "12", WRONG),
    ("1,5", "1.5", WRONG),  # a list, or a decimal comma: not guessed
]


@pytest.mark.parametrize(("text", "answer", "reward"), NUMBERS)
def test_numbers(text, answer, reward):
    assert reward_number([text], answer=[answer]) == [reward]


@pytest.mark.parametrize("text", ["1" * 20_000, "1 000" * 5_000, "1,00" * 5_000, "\\frac{" * 5_000])
def test_long_runs_of_digits_are_read_in_time_that_grows_with_them(text):
    began = time.perf_counter()
    last_number(text)
    assert time.perf_counter() - began < 3


def test_a_whole_number_is_the_whole_text():
    texts = ["$5.00", "5 km", "x = 5", "", "1/2", "5."]
    assert [whole_number(text) is not None for text in texts] == [
        True,
        False,
        False,
        False,
        True,
        True,
    ]


QUANTITIES = [
    ("1500 m", "1.5 km", RIGHT),
    ("so it takes 90 minutes.", "1.5 h", RIGHT),
    ("1.5", "1.5 km", RIGHT),
    ("1500", "1.5 km", WRONG),
    ("1.5 kg", "1.5 km", WRONG),
    ("1.5 m", "1.5 km", WRONG),
    ("10 m/s", "36 km/h", RIGHT),
    ("2 m²", "20000 cm^2", RIGHT),
    ("3公里", "3000米", RIGHT),
    ("5 apples", "5", RIGHT),
    ("5 months", "5 m", RIGHT),  # another word: no unit was given
    (r"\boxed{250\text{ g}}", "0.25 kg", RIGHT),
    ("none", "5 km", WRONG),
]


@pytest.mark.parametrize(("text", "answer", "reward"), QUANTITIES)
def test_quantities(text, answer, reward):
    assert reward_quantity([text], answer=[answer]) == [reward]
    assert reward_quantity([text], answer=["unknown"]) == [None]


MATH = [
    (r"Thus \boxed{\frac{1}{2}}.", "0.5", RIGHT),
    (r"\boxed{x^{2} + 1}", "$x^{2}+1$", RIGHT),
    (r"\boxed{x^2}", "x^3", WRONG),
    ("3 apples and 4 pears.\nThe answer is 7.", "#### 7", RIGHT),
    ("The answer is 7 or 8.", "7", WRONG),
    ("#### 1,000", "1000", RIGHT),
    (r"The final answer is: $\left(1, \frac{1}{2}\right)$", "(1,0.5)", RIGHT),
    ("(1, 2)", "(2, 1)", WRONG),
    ("[1, 2)", "[1, 2]", WRONG),
    ("(1,234)", "1234", WRONG),
    ("答案是：北京。", "北京", RIGHT),
    ("答案：12", "12", RIGHT),
    ("Paris", "paris", RIGHT),
    ("**42**", "42", RIGHT),
    ("Working: 42 + 1\n\n43", "43", RIGHT),
    ("43\n\nI am sure of this.", "43", WRONG),
    ("", "43", WRONG),
    (r"\boxed{\boxed{4}}", "4", RIGHT),
    (r"\boxed{4", "4", WRONG),
    (r"\boxed{\text{yes}}", "yes", RIGHT),
    ("The answer is 1.5 \\times 10^{3}", "1500", RIGHT),
]


@pytest.mark.parametrize(("text", "answer", "reward"), MATH)
def test_final_answers(text, answer, reward):
    assert reward_math([text], answer=[answer]) == [reward]
    assert reward_math([text], answer=[["nothing like it", answer]]) == [reward]
    assert reward_math([text], answer=[None]) == [None]


CHOICES = [
    ("B", "B", RIGHT),
    ("b", "B", WRONG),
    ("The answer is (B).", "B", RIGHT),
    ("The answer is B) Paris", "B", RIGHT),
    ("The correct answer is **B**.", "B", RIGHT),
    ("Answer: B. Not A.", "B", RIGHT),
    ("The answer is A or B", "A", WRONG),
    ("The answer is A, B", "A", WRONG),
    ("The answer is Apple", "A", WRONG),
    ("A dog barks.", "A", WRONG),
    ("B. Paris, as A and C are no capitals", "B", RIGHT),
    ("(C)", "C", RIGHT),
    ("I exclude (A), so (C)", "C", WRONG),
    ("It must be (C), clearly", "C", RIGHT),
    (r"\boxed{\text{D}}", "D", RIGHT),
    (r"\boxed{A, D}", "D", WRONG),
    ("答案是D", "D", RIGHT),
    ("故选：Ｃ", "C", RIGHT),
    ("正确答案：A、C", "A", WRONG),
    ("The answer is F", "A", WRONG),
    ("", "A", WRONG),
    ("A'", "A", WRONG),
    ("First I thought the answer is A. The answer is B.", "B", RIGHT),
]


@pytest.mark.parametrize(("text", "answer", "reward"), CHOICES)
def test_choices(text, answer, reward):
    assert reward_choice([text], answer=[answer]) == [reward]


def test_other_choices_and_answers_that_name_none():
    assert choice_reward("FG")(["The answer is G"], answer=["G"]) == [RIGHT]
    assert reward_choice(["A"], answer=["none of them"]) == [None]
    assert chosen("The answer is B", "AB") == "B" and final_answer("\n x \n") == "x"


SCHEMA = {
    "type": "object",
    "title": "a person",
    "required": ["name", "age"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "minLength": 1, "pattern": "^[A-Z]"},
        "age": {"type": "integer", "minimum": 0, "exclusiveMaximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", 1, None]}, "maxItems": 2,
                 "uniqueItems": True},
        "size": {"anyOf": [{"type": "null"}, {"type": "number"}], "not": {"const": 0}},
    },
}  # fmt: skip
JSON = [
    ('{"name": "Ann", "age": 3}', RIGHT),
    ('```json\n{"name": "Ann", "age": 3.0, "tags": ["a", 1.0], "size": null}\n```', RIGHT),
    ('{"name": "Ann"}', WRONG),
    ('{"name": "", "age": 3}', WRONG),
    ('{"name": "ann", "age": 3}', WRONG),
    ('{"name": "Ann", "age": 3.5}', WRONG),
    ('{"name": "Ann", "age": true}', WRONG),
    ('{"name": "Ann", "age": 150}', WRONG),
    ('{"name": "Ann", "age": -1}', WRONG),
    ('{"name": "Ann", "age": 3, "more": 1}', WRONG),
    ('{"name": "Ann", "age": 3, "tags": ["b"]}', WRONG),
    ('{"name": "Ann", "age": 3, "tags": [true]}', WRONG),
    ('{"name": "Ann", "age": 3, "tags": [1, 1.0]}', WRONG),
    ('{"name": "Ann", "age": 3, "tags": ["a", 1, null]}', WRONG),
    ('{"name": "Ann", "age": 3, "size": "L"}', WRONG),
    ('{"name": "Ann", "age": 3, "size": 0}', WRONG),
    ('["Ann", 3]', WRONG),
    ("Ann, 3", WRONG),
    ("", WRONG),
]  # fmt: skip


@pytest.mark.parametrize(("text", "reward"), JSON)
def test_json_by_schema(text, reward):
    assert schema_reward(SCHEMA)([text]) == [reward]


def test_empty_values_may_be_what_a_schema_asks_for():
    assert schema_reward({"type": "object"})(["{}"]) == [RIGHT]
    assert schema_reward({"oneOf": [{"type": "null"}, {"const": 1}]})(["null", "2"]) == [
        RIGHT,
        WRONG,
    ]


def test_what_is_no_schema_is_refused(monkeypatch):
    with pytest.raises(ConfigError, match="this is no JSON schema: 'text' is not valid"):
        schema_reward({"type": "text"})
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(MissingExtraError, match=r"pip install '\.\[verify\]'"):
        schema_reward({})


def test_math_verify_is_asked_where_it_is_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(MissingExtraError, match=r"pip install '\.\[verify\]'"):
        math_verify_reward()
    package = ModuleType("math_verify")
    vars(package).update(parse=str.upper, verify=lambda gold, found: gold == found)
    monkeypatch.setitem(sys.modules, "math_verify", package)
    assert math_verify_reward()(["x", "y"], answer=[["z", "X"], None]) == [RIGHT, None]


apart = pytest.mark.skipif(
    sys.platform != "linux" or not sandbox._can_be_apart(), reason="the kernel lends no namespaces"
)
CODE = [
    ("def add(a, b):\n    return a + b", RIGHT),
    ("Here:\n```python\ndef add(a, b):\n    return a - b\n```\nNo:\n```python\ndef add(a, b):\n"
     "    return a + b\n```", RIGHT),
    ("def add(a, b):\n    return a - b", WRONG),
    ("def add(a, b:", WRONG),
    ("import sys\nsys.exit(0)", WRONG),
    ("import os\nos._exit(0)", WRONG),
    ("import builtins\nbuiltins.exec = builtins.compile = print", WRONG),
    ("while True:\n    pass", WRONG),
    ("add = bytearray(10**9)", WRONG),
    ("import socket\nsocket.create_connection(('127.0.0.1', 9), 1)\nadd = int.__add__", WRONG),
    ("open('x', 'wb').write(bytes(2 * 10**7))\nadd = int.__add__", WRONG),
    ("print('x' * 10**7)\nadd = int.__add__", RIGHT),
    ("\0#\ndef add(a, b):\n    return 0", WRONG),
    ("", WRONG),
]  # fmt: skip


@apart
@pytest.mark.parametrize(("code", "reward"), CODE, ids=range(len(CODE)))
def test_code(code, reward):
    judge = code_reward(run_code=True, seconds=3, megabytes=256)
    assert judge([code], tests=["assert add(1, 2) == 3"]) == [reward]


@apart
def test_code_sees_no_environment_and_leaves_nothing_behind(monkeypatch, tmp_path):
    monkeypatch.setenv("SECRET_TOKEN", "x")
    mark = tmp_path / "mark"
    late = f"import time; time.sleep(1.5); open({str(mark)!r}, 'w')"
    code = (
        "import os, subprocess, sys\nassert 'SECRET_TOKEN' not in os.environ\n"
        f"subprocess.Popen([sys.executable, '-c', {late!r}], start_new_session=True)"
    )
    judge = code_reward(run_code=True)
    assert judge([code, code], tests=[["x = 1", "assert x"], None]) == [RIGHT, None]
    time.sleep(2)
    assert not mark.exists()


def test_code_is_not_run_unless_asked_for_nor_without_its_limits(monkeypatch):
    with pytest.raises(ConfigError, match="pass run_code=True"):
        code_reward()
    monkeypatch.setattr(sandbox, "_can_be_apart", lambda: False)
    with pytest.raises(ConfigError, match=r"could use the network.*allow_network=True"):
        code_reward(run_code=True)
    with pytest.raises(ConfigError, match="seconds=0 and megabytes=512"):
        code_reward(run_code=True, seconds=0, allow_network=True)
