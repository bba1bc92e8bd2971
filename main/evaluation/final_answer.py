"""The answer that a text ends with: what it says, and which of several choices it names."""

import re
import unicodedata

from main.evaluation.numbers import boxed, plain_numbers, whole_number

_CUE = re.compile(
    r"(?:####|(?:final |correct )?answers?(?: is| are|\s*[:：])(?:\s*[:：])?"
    r"|(?:正确)?答案(?:是|为|选|\s*[:：])\s*[:：]?|故选|应选|选择?)\s*",
    re.IGNORECASE,
)
_WRAPPED = re.compile(r"^(?:\$+|\\\(|\\\[|\*\*|`)(.*?)(?:\$+|\\\)|\\\]|\*\*|`)$", re.DOTALL)
_LISTED = re.compile(r"^\\?[\[({](.*,.*)\\?[\])}]$", re.DOTALL)
_NAME = re.compile(r"\\(?:mathbf|textbf|text|mathrm)\{([^{}]*)\}")


def final_answer(text: str) -> str:
    """What the last \\boxed{} holds; else what follows the last 'answer is', 'answer:' or '####'
    on its line, at most; else the last line that is not blank.

    >>> final_answer("First 3, then 4. The answer is $7$.")
    '7'
    """
    found = boxed(text)
    if found is None:
        cues = list(_CUE.finditer(text))
        rest = text[cues[-1].end() :] if cues else text.rstrip().rpartition("\n")[2]
        found = (rest.strip().splitlines() or [""])[0]
    return _bare(found)


def same_answer(one: str, other: str) -> bool:
    """Equal as numbers where both are numbers, element by element in lists, else as written.

    Blanks, dollar signs, \\left and \\right, \\dfrac and full-width forms make no difference.

    >>> same_answer(r"(\\frac{1}{2}, 3)", "(0.5,3)"), same_answer("x^2", "x^3")
    (True, False)
    """
    one, other = plain_numbers(_bare(one)).strip(), plain_numbers(_bare(other)).strip()
    first, second = _LISTED.match(one), _LISTED.match(other)
    if first and second and whole_number(one) is None:
        parts = _parts(first.group(1)), _parts(second.group(1))
        alike = one[0] == other[0] and one[-1] == other[-1] and len(parts[0]) == len(parts[1])
        return alike and all(map(same_answer, *parts))
    numbers = whole_number(one), whole_number(other)
    if None not in numbers:
        return numbers[0] == numbers[1]
    return _written(one) == _written(other)


def chosen(text: str, choices: str) -> str | None:
    """The letter of `choices` that the text ends with choosing; None where it names none, or two.

    Read are, in this order: \\boxed{}, what follows 'the answer is' or the like, a text that begins
    with a letter as in "B." or "(B) ...", and a text with one letter in brackets.
    """
    letters = re.escape(choices)
    alone = rf"(?<![A-Za-z0-9'])[(\[]?([{letters}])(?![A-Za-z0-9'])"
    text = _NAME.sub(r"\1", unicodedata.normalize("NFKC", text)).replace("*", "").replace("$", "")
    cues = list(_CUE.finditer(text))
    if (box := boxed(text)) is not None:
        return _single(re.findall(alone, box))
    if cues:
        answer = (text[cues[-1].end() :].splitlines() or [""])[0]
        begins = re.match(rf"\W*(?:option |choice )?[(\[]?([{letters}])(?![A-Za-z0-9'])", answer)
        if begins is None:
            return None
        # "A or B" chooses neither; the words of the choice itself do not count.
        another = rf"\W*(?:or|and|和|或|,|、|/)\W*[{letters}](?![A-Za-z])"
        return None if re.match(another, answer[begins.end() :]) else begins.group(1)
    begins = re.match(rf"\s*(?:[(\[]([{letters}])[)\]]|([{letters}])(?:[.:)、]|\s*$))", text)
    if begins:
        return begins.group(1) or begins.group(2)
    return _single(re.findall(rf"[(\[]([{letters}])[)\]]", text))


def _single(found: list[str]) -> str | None:
    return found[0] if len(set(found)) == 1 else None


def _bare(text: str) -> str:
    text = text.strip().rstrip("。").strip()
    text = re.sub(r"(?<=[^.])\.$", "", text).strip()
    while (wrapped := _WRAPPED.match(text)) and wrapped.group(1):
        text = wrapped.group(1).strip().removesuffix(".")
    return text


def _parts(inside: str) -> list[str]:
    parts, depth = [""], 0
    for character in inside:
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(character, 0)
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _written(text: str) -> str:
    text = re.sub(r"\s+", " ", text).strip().casefold()
    return re.sub(r" ?([-+*/=^(){}\[\],×\\]) ?", r"\1", text)
