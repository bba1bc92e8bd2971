"""What may be wrong with a text: pure functions (text) -> whether it is."""

import codecs
import re
from collections import Counter
from collections.abc import Callable

import regex

# Bytes that are read as Windows' Western code page: what UTF-8 becomes there.
_WESTERN = re.compile(r"[\u00a0-\u00ff\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc"
                      r"\u2013\u2014\u2018-\u201e\u2020-\u2022\u2026\u2030\u2039\u203a\u20ac\u2122]"
                      r"{2,}")  # fmt: skip
_CHINESE = re.compile(r"[\u4e00-\u9fff\u3400-\u4dbf\ue000-\uf8ff€]{4,}")
_WINDOW = 6  # characters of Chinese: twelve bytes, four characters of UTF-8
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200b\u2060\ufeff\u202a-\u202e\u2066-\u2069]"
)
_ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|#\d{2,5}|#x[0-9a-fA-F]{2,5});")
_TAG = re.compile(r"</?(?:br|p|div|span|font|td|tr|li|ul)(?:\s[^<>]*)?/?>", re.IGNORECASE)
_UNICODE_ESCAPE = re.compile(r"\\u[0-9a-fA-F]{4}")
_CONTROL = re.compile(
    r"<\|[\w./-]{2,40}\|>|\[/?INST\]|<</?SYS>>|</s>|<(?:start|end)_of_turn>|<｜[^<>｜]{2,40}｜>"
)
_TURN = re.compile(
    r"(?:^|\n)\s*(?:###\s*)?(?:User|Human|Assistant|Response|Instruction|用户|助手)\s*[:：]", re.I
)
_PLACEHOLDER = re.compile(r"\{\{\s*[\w. ]{1,40}\s*\}\}|\[(?:Your|Insert|Company|Customer) [^\]]*\]")
_SECRET = re.compile(
    r"\bAKIA[0-9A-Z]{16}\b|\bsk-[A-Za-z0-9_-]{20,}|\bghp_[A-Za-z0-9]{30,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY"
)
_REFUSAL = re.compile(
    r"\bas an? (?:AI|artificial intelligence)\b|作为一(?:个|名)(?:AI|人工智能)", re.I
)
_NOTHING = {"n/a", "na", "nan", "null", "none", "undefined", "todo", "tbd", "-", "?", "...", "无"}
_LETTER = regex.compile(r"\p{L}")
_SCRIPT = {
    name: regex.compile(rf"\p{{Script={script}}}")
    for name, script in (
        ("Chinese", "Han"),
        ("Japanese", "Hiragana"),
        ("Japanese kana", "Katakana"),
        ("Korean", "Hangul"),
        ("Cyrillic", "Cyrillic"),
        ("Arabic", "Arabic"),
        ("Thai", "Thai"),
        ("Greek", "Greek"),
        ("Hebrew", "Hebrew"),
        ("Devanagari", "Devanagari"),
        ("Latin", "Latin"),
    )
}


def lost_character(text: str) -> bool:
    """U+FFFD, which stands for bytes that were not UTF-8."""
    return "\ufffd" in text


def mojibake(text: str) -> bool:
    """UTF-8 that was read as Windows-1252 or as GBK, or U+FFFD that was.

    A run of such characters is one where its bytes in that code page are UTF-8. Of Chinese only
    runs of four characters or more count: fewer may be UTF-8 by chance.
    """
    if "锟斤拷" in text or "烫烫烫" in text:
        return True
    western = any(_reads_as_utf8(run, "cp1252") for run in _WESTERN.findall(text))
    return western or any(map(_garbled_chinese, _CHINESE.findall(text)))


def _garbled_chinese(run: str) -> bool:
    """All of a run, or, where some of its bytes were lost, six characters of it."""
    windows = [run[i : i + _WINDOW] for i in range(len(run) - _WINDOW + 1)]
    return any(_reads_as_utf8(part, "gbk") for part in (run, *windows))


def _reads_as_utf8(run: str, code_page: str) -> bool:
    """Whether the bytes of a run are UTF-8, but for a last character that goes on behind it."""
    data = b"".join(_byte(character, code_page) for character in run)
    try:
        found = codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return False
    return 0 < len(found) < len(run) and found.isprintable()


def _byte(character: str, code_page: str) -> bytes:
    try:
        return character.encode(code_page)
    except UnicodeEncodeError:  # Windows' own holes are read as Latin-1
        return character.encode("latin-1", "ignore")


def invisible(text: str) -> bool:
    """Control characters, zero-width spaces, marks that turn the direction of writing."""
    return bool(_INVISIBLE.search(text))


def markup(text: str) -> bool:
    """What is left of HTML."""
    return bool(_ENTITY.search(text) or _TAG.search(text))


def escaped(text: str) -> bool:
    r"""Twice escaped: a backslash and an n in the place of line ends, \u4f60 of characters."""
    lines = text.count("\\n") >= 2 and "\n" not in text
    return lines or len(_UNICODE_ESCAPE.findall(text)) >= 2


def control_token(text: str) -> bool:
    """What looks like a control token of some template."""
    return bool(_CONTROL.search(text))


def transcript(text: str) -> bool:
    """The names of speakers within a turn, as in a written-down dialogue."""
    return bool(_TURN.search(text))


def placeholder(text: str) -> bool:
    """A form that nobody filled in."""
    return bool(_PLACEHOLDER.search(text))


def secret(text: str) -> bool:
    """What looks like a key to somebody's account."""
    return bool(_SECRET.search(text))


def nothing(answer: str) -> bool:
    """A word that stands for no answer."""
    return answer.strip().lower() in _NOTHING


def canned_refusal(answer: str) -> bool:
    return bool(_REFUSAL.search(answer))


def repetition(answer: str) -> bool:
    """One line or sentence five times or more, and the most of the text."""
    pieces = [p.strip() for p in re.split(r"[\n.!?。！？]+", answer) if len(p.strip()) > 3]
    count = max(Counter(pieces).values(), default=0)
    return count >= 5 and count * 2 > len(pieces)


def open_fence(answer: str) -> bool:
    """A block of code that is not closed."""
    return len(re.findall(r"^\s*```", answer, re.MULTILINE)) % 2 == 1


def open_thought(answer: str) -> bool:
    """A thought that is not closed, or twice opened."""
    return answer.count("<think>") > answer.count("</think>")


def language(text: str) -> str:
    """The script of most of its letters, '' of a text with fewer than 4; kana makes Japanese."""
    letters = _LETTER.findall(text[:2000])
    if len(letters) < 4:
        return ""
    joined = "".join(letters)
    counts = {name: len(pattern.findall(joined)) for name, pattern in _SCRIPT.items()}
    kana = counts.pop("Japanese kana") + counts["Japanese"]
    counts["Japanese"] = kana + counts["Chinese"] if kana * 5 > counts["Chinese"] else 0
    counts["Chinese"] = 0 if counts["Japanese"] else counts["Chinese"]
    name = max(counts, key=counts.__getitem__)
    return name if counts[name] else "other"


# code -> check; of every text of a row, or of its answers alone.
OF_TEXTS: dict[str, Callable[[str], bool]] = {
    "lost-character": lost_character,
    "mojibake": mojibake,
    "invisible": invisible,
    "markup": markup,
    "escaped": escaped,
    "control-token": control_token,
    "placeholder": placeholder,
    "secret": secret,
}
OF_ANSWERS: dict[str, Callable[[str], bool]] = {
    "no-answer": nothing,
    "transcript": transcript,
    "canned-refusal": canned_refusal,
    "repetition": repetition,
    "open-fence": open_fence,
    "open-thought": open_thought,
}
