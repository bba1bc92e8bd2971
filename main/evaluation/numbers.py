"""Numbers as people and models write them: signs, thousands, fractions, powers, percents, LaTeX."""

import re
import unicodedata
from fractions import Fraction

_MINUS = dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\u2014\ufe63\uff0d", "-")
_SIGNS = str.maketrans({**_MINUS, "\u2044": "/", "\u2019": "'"})
_SUPERSCRIPTS = re.compile("[\u207a\u207b\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+")
_VULGAR = re.compile("(?<=[0-9])(?=[\u00bc-\u00be\u2150-\u215e])")  # 2½ is not 21/2
# What LaTeX writes around numbers, and what it stands for.
_LATEX = [
    (re.compile(r"\\(?:left|right|displaystyle|!)"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\([%$])"), r"\1"),
    (re.compile(r"\\(?:text|textbf|mathrm|mbox)\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\\(?:[,;: ]|quad)|~"), " "),
    (re.compile(r"\\(?:times|cdot)(?![a-z])"), "×"),
    (re.compile(r"\\[dt]frac"), r"\\frac"),
    (re.compile(r"\\frac\s*(\d)\s*(\d)"), r"\\frac{\1}{\2}"),
]
_SPACES = "[ \u00a0\u2009\u202f]"
_GROUPED = (
    rf"\d{{1,3}}(?:,\d{{3}})+|\d{{1,2}}(?:,\d{{2}})+,\d{{3}}(?![,\d])"
    rf"|\d{{1,3}}(?:{_SPACES}\d{{3}})+(?!\d)|\d{{1,3}}(?:'\d{{3}})+|\d{{1,3}}(?:_\d{{3}})+"
)
_DOTTED = r"\d{1,3}(?:\.\d{3}){2,}(?![.\d])"  # 1.234.567; of 1.234 the dot is a decimal point
# 1.234,5 and 1 234,5: after such groups the comma is a decimal one.
_COMMA = (
    rf"\d{{1,3}}(?:\.\d{{3}})+,\d+(?![.,]?\d)|\d{{1,3}}(?:{_SPACES}\d{{3}})+,\d{{1,2}}(?![.,]?\d)"
)
_PLAIN = rf"(?:{_COMMA}|{_DOTTED}|(?:(?:{_GROUPED}|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?)"
_MIXED = r"(?:(?P<whole>\d{1,3})(?: ?(?=\\frac)|[ ](?=[1-9]\d?/\d\d?(?![/\d]))))?"
_FRACTION = r"\\frac\{(?P<over>[-+]?\d+)\}\{(?P<under>\d+)\}|(?<= )(?P<top>\d\d?)/(?P<bottom>\d\d?)"
_SCALES = {
    "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "万亿": 10**12, "亿": 10**8, "千万": 10**7, "百万": 10**6, "万": 10**4,
}  # fmt: skip
_PARTS = {"%": 100, "percent": 100, "per cent": 100, "‰": 1000}
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.])(?P<hundredths>百分之)?(?P<sign>[-+]?)(?:"
    rf"{_MIXED}(?:{_FRACTION})|"
    rf"(?P<base>{_PLAIN})(?:(?:\^|\*\*)(?:\{{(?P<inner>[-+]?\d+)\}}|(?P<power>[-+]?\d+))"
    r"|/(?P<below>\d+)(?![/\d]))?)"
    r"(?: ?[×x*·] ?10(?:\^|\*\*)\{?(?P<tens>[-+]?\d+)\}?)?"
    rf"(?: ?(?P<scale>{'|'.join(_SCALES)})(?![a-z]))?"
    rf"(?: ?(?P<part>{'|'.join(_PARTS)})(?![a-z]))?(?!\.?\d)"
)
_LARGEST_POWER = 400


def last_number(text: str) -> Fraction | None:
    """The last number that stands in a text, exactly; in its last \\boxed{} if it has one.

    >>> last_number("from -1,200.5 to 3e2, that is 25%")
    Fraction(1, 4)
    >>> [last_number(text) for text in ("1 000 000", "-3/4", "10^3", "on 2024/05/06", "none")]
    [Fraction(1000000, 1), Fraction(-3, 4), Fraction(1000, 1), Fraction(6, 1), None]
    """
    found = list(_NUMBER.finditer(plain_numbers(text if (box := boxed(text)) is None else box)))
    return _value(found[-1]) if found else None


def whole_number(text: str) -> Fraction | None:
    """The number that the whole text is, a sign of a currency before it left aside."""
    match = _NUMBER.fullmatch(plain_numbers(text).strip(" $€£¥.").strip())
    return _value(match) if match else None


def number_before(text: str, unit: str) -> tuple[Fraction, str] | None:
    """The last number with what stands behind it, where that matches `unit`, or ''."""
    text = plain_numbers(text if (box := boxed(text)) is None else box)
    found = list(_NUMBER.finditer(text))
    if not found or (value := _value(found[-1])) is None:
        return None
    behind = re.match(rf" *({unit})(?![A-Za-z])", text[found[-1].end() :])
    return value, behind.group(1) if behind else ""


def boxed(text: str) -> str | None:
    """What stands in the last \\boxed{...} of a text.

    >>> boxed(r"so \\boxed{\\frac{1}{2}}.")
    '\\\\frac{1}{2}'
    """
    start = text.rfind("\\boxed{")
    depth = 0
    for end in range(start + 6, len(text)) if start >= 0 else ():
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if not depth:
            return text[start + 7 : end]
    return None


def plain_numbers(text: str) -> str:
    """The text with numbers in plain characters: ASCII digits and signs, little LaTeX."""
    text = _VULGAR.sub(" ", text)
    text = _SUPERSCRIPTS.sub(lambda found: f"^{found.group()}", text)
    text = unicodedata.normalize("NFKC", text).translate(_SIGNS)
    for pattern, plain in _LATEX:
        text = pattern.sub(plain, text)
    return text


def _value(match: re.Match[str]) -> Fraction | None:
    """None for what is too large to be a number that somebody means, or divides by 0."""
    part = match.groupdict()
    try:
        value = _mixed(part) if part["base"] is None else _simple(match)
        value *= Fraction(10) ** _bounded(int(part["tens"] or 0))
    except (ValueError, ZeroDivisionError):
        return None
    value *= _SCALES.get(part["scale"] or "", 1)
    value /= _PARTS.get(part["part"] or "", 1) * (100 if part["hundredths"] else 1)
    return -value if part["sign"] == "-" else value


def _mixed(part: dict[str, str]) -> Fraction:
    over, under = part["over"] or part["top"], part["under"] or part["bottom"]
    fraction, whole = Fraction(int(over), int(under)), int(part["whole"] or 0)
    return whole + fraction if abs(fraction) < 1 else fraction


def _simple(match: re.Match[str]) -> Fraction:
    part = match.groupdict()
    value = _plain(part["base"]) ** _bounded(int(part["inner"] or part["power"] or 1))
    below = int(part["below"] or 1)
    if part["below"] and match.string[: match.start()].endswith("/"):  # of a date
        return Fraction(below)
    return value / below


def _plain(digits: str) -> Fraction:
    if re.fullmatch(_COMMA, digits):
        digits = digits.replace(".", "").replace(",", ".")
    elif re.fullmatch(_DOTTED, digits):
        digits = digits.replace(".", "")
    digits = re.sub(rf"{_SPACES}|[,'_]", "", digits)
    mantissa, _, exponent = digits.lower().partition("e")
    return Fraction(mantissa) * Fraction(10) ** _bounded(int(exponent or 0))


def _bounded(power: int) -> int:
    if abs(power) > _LARGEST_POWER:
        raise ValueError(power)
    return power
