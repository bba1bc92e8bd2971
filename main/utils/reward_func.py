"""Reward functions for GRPO and PPO, ready to use or to copy from.

Each takes `(completions, **columns)` as TRL's do, with completions as strings or lists of messages,
and returns one number a completion, or None where it does not apply. Functions named `..._reward`
make a reward function; those named `reward_...` are one.

    trainer(reward_func=[reward_len, reward_exact, length_reward(100), language_reward("zh")], ...)
"""

import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from main.errors import ConfigError, MissingExtraError
from main.evaluation.final_answer import chosen, final_answer, same_answer
from main.evaluation.named import comparable, is_exact
from main.evaluation.numbers import last_number
from main.evaluation.quantities import last_quantity
from main.utils import sandbox

Rewarder = Callable[..., list[float | None]]
Language = Literal["zh", "ja", "ko", "en", "ru", "ar"]

# Something that is not blank, without another of the tags inside.
_INSIDE = r"\s*(?!</?(?:reasoning|answer)>)\S(?:(?!</?(?:reasoning|answer)>).)*"
FORMAT = rf"\s*<reasoning>{_INSIDE}</reasoning>\s*<answer>{_INSIDE}</answer>\s*"
_CODE = re.compile(r"```[ \t]*(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", re.DOTALL)
_WORD = re.compile(r"[぀-ヿ㐀-鿿豈-﫿가-힣]|\w+")
_SCRIPTS = {
    "zh": ("CJK UNIFIED", "CJK COMPATIBILITY"),
    "ja": ("CJK UNIFIED", "HIRAGANA", "KATAKANA"),
    "ko": ("HANGUL",),
    "en": ("LATIN",),
    "ru": ("CYRILLIC",),
    "ar": ("ARABIC",),
}


def text_of(completion: Any) -> str:
    """The text of a completion: itself, or what the assistant said last in its messages.

    >>> text_of([{"role": "assistant", "content": "Hello"}])
    'Hello'
    """
    if isinstance(completion, str):
        return completion
    said = [m.get("content") for m in completion if m.get("role", "assistant") == "assistant"]
    return _content(said[-1]) if said else ""


def _content(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or [])


def reward_len(completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """-|20 - characters|: the example of TRL's documentation, best (0) at 20 characters.

    >>> reward_len(["x" * 20, "", "x" * 50])
    [0.0, -20.0, -30.0]
    """
    return length_reward(20)(completions)


def length_reward(target: int) -> Rewarder:
    """-|target - characters|."""

    def reward_length(completions: Sequence[Any], **columns: Any) -> list[float | None]:
        return [float(-abs(target - len(text_of(completion)))) for completion in completions]

    return reward_length


def reward_format(completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """1 if the whole completion is <reasoning>...</reasoning><answer>...</answer>, else 0.

    Each once, neither of them blank, no tag inside the other.
    """
    return format_reward(FORMAT)(completions)


def format_reward(pattern: str) -> Rewarder:
    """1 if the whole completion matches the regular expression (a dot is any character), else 0."""
    compiled = re.compile(pattern, re.DOTALL)

    def reward_pattern(completions: Sequence[Any], **columns: Any) -> list[float | None]:
        return [float(bool(compiled.fullmatch(text_of(c)))) for c in completions]

    return reward_pattern


def reward_exact(
    completions: Sequence[Any], answer: Sequence[Any], **columns: Any
) -> list[float | None]:
    """1 if the completion is the answer (or one of a list of answers), else 0.

    White space at the ends and its amount inside, and full-width forms, make no difference. None
    for a row without an answer.

    >>> reward_exact(["by  Monday ", "no"], answer=["by Monday", None])
    [1.0, None]
    """
    return [
        None if wanted is None else float(is_exact(text_of(c), [*map(str, _listed(wanted))]))
        for c, wanted in zip(completions, answer, strict=True)
    ]


def fields_reward(separator: str = "|") -> Rewarder:
    """Share of the answer's fields that are right and in their places; a field too many counts too.

    The best of a list of answers counts. None for a row without an answer.

    >>> fields_reward()(["a | b", "a | c | d", "b | a"], answer=["a | b"] * 3)
    [1.0, 0.3333333333333333, 0.0]
    """

    def fields(text: str) -> list[str]:
        return [comparable(field) for field in text.split(separator)]

    def share(found: list[str], wanted: list[str]) -> float:
        hits = sum(a == b for a, b in zip(found, wanted, strict=False))
        return hits / max(len(found), len(wanted))

    def reward_fields(
        completions: Sequence[Any], answer: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        return [
            max((share(fields(text_of(c)), fields(str(gold))) for gold in golds), default=None)
            for c, golds in zip(completions, map(_answers, answer), strict=True)
        ]

    return reward_fields


def _answers(wanted: Any) -> list[Any]:
    return [] if wanted is None else _listed(wanted)


def reward_number(
    completions: Sequence[Any], answer: Sequence[Any], **columns: Any
) -> list[float | None]:
    """1 if the last number of the completion equals the last number of the answer, else 0.

    That of the last \\boxed{} where there is one. "1,234.50", "1 234.5", "1.234,50" and full-width
    digits are the same number; 50%, 1/2 and \\frac{1}{2} are 0.5, 10^3 is 1000, 3 × 10^4 is 3万:
    main/evaluation/numbers.py. None for an answer without a number.

    >>> reward_number(["3 + 4 is 7.0.", "seven"], answer=["#### 7", "7"])
    [1.0, 0.0]
    """
    return [
        None
        if (wanted := last_number(str(gold))) is None
        else float(last_number(text_of(c)) == wanted)
        for c, gold in zip(completions, answer, strict=True)
    ]


def reward_quantity(
    completions: Sequence[Any], answer: Sequence[Any], **columns: Any
) -> list[float | None]:
    """1 if the last number with its unit is the answer's: "1.5 km" is "1500 m", else 0.

    A completion without a unit is compared with the answer's number as it is written. Units of
    length, mass, time, volume, area and speed: main/evaluation/quantities.py. None for an answer
    without a number.

    >>> reward_quantity(["it is 1500 m", "1.5", "1.5 kg"], answer=["1.5 km"] * 3)
    [1.0, 1.0, 0.0]
    """

    def right(text: str, gold: Any) -> float | None:
        wanted, found = last_quantity(str(gold)), last_quantity(text)
        if wanted is None or found is None:
            return None if wanted is None else 0.0
        if not found.dimension:
            return float(found.number == wanted.number)
        return float(found[:2] == wanted[:2])

    return [right(text_of(c), gold) for c, gold in zip(completions, answer, strict=True)]


def reward_math(
    completions: Sequence[Any], answer: Sequence[Any], **columns: Any
) -> list[float | None]:
    """1 if the final answer is the gold one (or one of a list), as numbers or as written, else 0.

    The final answer: the last \\boxed{}, or what follows "the answer is" or "####", or the last
    line; see main/evaluation/final_answer.py. None for a row without an answer.

    >>> reward_math([r"So \\boxed{\\frac{1}{2}}.", "The answer is x + 1"], answer=["0.5", "x+1"])
    [1.0, 1.0]
    """

    def right(text: str, golds: list[Any]) -> float | None:
        found = final_answer(text)
        wanted = [final_answer(str(gold)) for gold in golds]
        return float(any(same_answer(found, gold) for gold in wanted)) if wanted else None

    return [right(text_of(c), _answers(gold)) for c, gold in zip(completions, answer, strict=True)]


def math_verify_reward() -> Rewarder:
    """As `reward_math`, decided by the package `math-verify`: equal as expressions, not as written.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        from math_verify import parse, verify
    except ImportError as error:
        raise MissingExtraError("math-verify", "verify", "math_verify_reward()") from error

    def reward_math_verify(
        completions: Sequence[Any], answer: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        pairs = zip(completions, map(_answers, answer), strict=True)
        return [
            float(any(verify(parse(str(gold)), parse(text_of(c))) for gold in golds))
            if golds
            else None
            for c, golds in pairs
        ]

    return reward_math_verify


def reward_choice(
    completions: Sequence[Any], answer: Sequence[Any], **columns: Any
) -> list[float | None]:
    """1 if the completion chooses the answer's letter of A to E, else 0; see `choice_reward`.

    >>> reward_choice(["The answer is (B).", "A cat.", "B"], answer=["B", "A", "C"])
    [1.0, 0.0, 0.0]
    """
    return choice_reward()(completions, answer)


def choice_reward(choices: str = "ABCDE") -> Rewarder:
    """1 if the completion chooses the answer's letter of `choices`, else 0.

    How a choice is read: `chosen` in main/evaluation/final_answer.py. Two letters are no choice.
    None for an answer that names none.
    """

    def reward_letter(
        completions: Sequence[Any], answer: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        pairs = zip(completions, answer, strict=True)
        return [
            None
            if (wanted := chosen(str(gold), choices)) is None
            else float(chosen(text_of(c), choices) == wanted)
            for c, gold in pairs
        ]

    return reward_letter


def schema_reward(schema: dict[str, Any]) -> Rewarder:
    """1 for JSON, bare or in one ``` block, that is as the JSON schema says, else 0.

    Raises:
        ConfigError: no schema.
        MissingExtraError: `jsonschema` is not installed.
    """
    fits = _schema_check(schema)

    def reward_schema(completions: Sequence[Any], **columns: Any) -> list[float | None]:
        values = [_json(text_of(completion)) for completion in completions]
        return [float(bool(value) and fits(value[0])) for value in values]

    return reward_schema


def _schema_check(schema: dict[str, Any]) -> Callable[[Any], bool]:
    try:
        import jsonschema
    except ImportError as error:
        raise MissingExtraError("jsonschema", "verify", "schema_reward()") from error
    kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ConfigError(f"this is no JSON schema: {error.message}.") from error
    return kind(schema).is_valid


def code_reward(
    run_code: bool = False, seconds: int = 5, megabytes: int = 512, allow_network: bool = False
) -> Rewarder:
    """1 if the Python code of the completion passes the row's `tests`, else 0.

    The code is the last ``` block, or the whole text; `tests` is Python that runs after it, such as
    "assert add(1, 2) == 3", or a list of such. None for a row without tests. Each runs in a process
    of its own with limits; main/utils/sandbox.py says which, and what they do not protect.

    Args:
        run_code: must be True: what a model wrote is run on this machine.

    Raises:
        ConfigError: `run_code` is not True, or the limits cannot be kept on this system.
    """
    if run_code is not True:
        raise ConfigError(
            "code_reward() runs code that a model wrote, on this machine and as this user: pass "
            "run_code=True if that is what you want."
        )
    limits = sandbox.Limits(seconds, megabytes, allow_network)
    sandbox.check(limits)

    def reward_code(
        completions: Sequence[Any], tests: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        return [
            None
            if test is None
            else float(sandbox.passes(_code(text_of(c)), "\n".join(_listed(test)), limits))
            for c, test in zip(completions, tests, strict=True)
        ]

    return reward_code


def _code(text: str) -> str:
    blocks = _CODE.findall(text)
    return blocks[-1] if blocks else text


def reward_json(completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """1 if the completion is valid JSON, bare or in one ``` block, else 0."""
    return json_reward()(completions)


def json_reward(required: Sequence[str] = ()) -> Rewarder:
    """1 for valid JSON; with `required`, for an object that has these keys. NaN is not JSON."""

    def reward_json_keys(completions: Sequence[Any], **columns: Any) -> list[float | None]:
        return [float(_is_json(text_of(c), required)) for c in completions]

    return reward_json_keys


def reward_repetition(completions: Sequence[Any], **columns: Any) -> list[float | None]:
    """-(share of repeated groups of 3 words), 0 without repetition; see `repetition_reward`.

    >>> reward_repetition(["a b c d", "a b c a b c a b c", ""])
    [0.0, -0.5714285714285714, 0.0]
    """
    return repetition_reward(3)(completions)


def repetition_reward(size: int, scale: float = 1.0) -> Rewarder:
    """-scale * (1 - distinct / all) over groups of `size` words; a Chinese character is a word."""

    def reward_no_repetition(completions: Sequence[Any], **columns: Any) -> list[float | None]:
        return [0.0 - scale * _repeated(text_of(c), size) for c in completions]

    return reward_no_repetition


def language_reward(language: Language) -> Rewarder:
    """Share of the letters that belong to the language's script; 0 for a text without letters."""
    scripts = _SCRIPTS[language]

    def reward_language(completions: Sequence[Any], **columns: Any) -> list[float | None]:
        return [_share(text_of(c), scripts) for c in completions]

    reward_language.__name__ = f"reward_language_{language}"
    return reward_language


def similarity_reward(path: str | Path, device: str | None = None) -> Rewarder:
    """Cosine between completion and `answer` by the sentence encoder in `path`, from -1 to 1.

    The best of a list of answers counts. None for a row without an answer; 0 for a blank text.
    """
    from main.models.encoder import SentenceEncoder

    encoder = SentenceEncoder(path, device=device)

    def reward_similarity(
        completions: Sequence[Any], answer: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        rewards: list[float | None] = []
        for completion, wanted in zip(completions, answer, strict=True):
            if wanted is None:
                rewards.append(None)
                continue
            vectors = encoder.encode([text_of(completion), *map(str, _listed(wanted))])
            rewards.append(float((vectors[1:] @ vectors[0]).max()))
        return rewards

    return reward_similarity


def _listed(wanted: Any) -> list[Any]:
    return list(wanted) if isinstance(wanted, list | tuple) else [wanted]


def _is_json(text: str, required: Sequence[str]) -> bool:
    value = _json(text)
    return bool(value) and (
        not required or (isinstance(value[0], dict) and all(key in value[0] for key in required))
    )


def _json(text: str) -> list[Any]:
    """The value in a list, which is empty for what is no JSON."""
    fenced = _FENCE.fullmatch(text)
    try:
        return [json.loads(fenced.group(1) if fenced else text, parse_constant=_refuse)]
    except (ValueError, RecursionError):
        return []


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _repeated(text: str, size: int) -> float:
    words = _WORD.findall(text.lower())
    groups = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
    return 1 - len(set(groups)) / len(groups) if groups else 0.0


def _share(text: str, scripts: tuple[str, ...]) -> float:
    letters = [character for character in text if character.isalpha()]
    ours = sum(unicodedata.name(letter, "").startswith(scripts) for letter in letters)
    return ours / len(letters) if letters else 0.0
