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
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Literal

Rewarder = Callable[..., list[float | None]]
Language = Literal["zh", "ja", "ko", "en", "ru", "ar"]

FORMAT = r"\s*<reasoning>.+?</reasoning>\s*<answer>.+?</answer>\s*"
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:[eE][-+]?\d+)?%?(?!\.?\d)"
)
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
    """The text of a completion: itself, or the contents of its messages.

    >>> text_of([{"role": "assistant", "content": "Hello"}])
    'Hello'
    """
    if isinstance(completion, str):
        return completion
    return "".join(_content(message["content"]) for message in completion)


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
    """1 if the whole completion is <reasoning>...</reasoning><answer>...</answer>, else 0."""
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
        None if wanted is None else float(_plain(text_of(c)) in map(_plain, _listed(wanted)))
        for c, wanted in zip(completions, answer, strict=True)
    ]


def fields_reward(separator: str = "|") -> Rewarder:
    """Share of the answer's fields that are right and in their places; a field too many counts too.

    The best of a list of answers counts. None for a row without an answer.

    >>> fields_reward()(["a | b", "a | c | d", "b | a"], answer=["a | b"] * 3)
    [1.0, 0.3333333333333333, 0.0]
    """

    def fields(text: str) -> list[str]:
        return [_plain(field) for field in text.split(separator)]

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

    "1,234.50", "1234.5" and full-width digits are the same number, 50% is 0.5. None for an answer
    without a number.

    >>> reward_number(["3 + 4 is 7.0.", "seven"], answer=["#### 7", "7"])
    [1.0, 0.0]
    """
    return [
        None
        if (wanted := last_number(str(gold))) is None
        else float(last_number(text_of(c)) == wanted)
        for c, gold in zip(completions, answer, strict=True)
    ]


def last_number(text: str) -> Decimal | None:
    """The last number that stands in a text.

    >>> last_number("from -1,200.5 to 3e2, that is 25%")
    Decimal('0.25')
    """
    found = [match for match in _NUMBER.findall(unicodedata.normalize("NFKC", text)) if match]
    if not found:
        return None
    digits = found[-1].replace(",", "")
    try:
        value = Decimal(digits.rstrip("%"))
    except InvalidOperation:
        return None
    return value / 100 if digits.endswith("%") else value


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
    from main.utils.encoder import SentenceEncoder

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


def _plain(value: Any) -> str:
    return " ".join(unicodedata.normalize("NFKC", str(value)).split())


def _is_json(text: str, required: Sequence[str]) -> bool:
    fenced = _FENCE.fullmatch(text)
    try:
        value = json.loads(fenced.group(1) if fenced else text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return not required or (isinstance(value, dict) and all(key in value for key in required))


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
