"""IFEval's 25 verifiable instructions (arXiv 2311.07911, table 3), each a check of an answer.

Where the paper's own code splits sentences by a model that has to be downloaded, this counts by a
rule: one ends with . ! ? before a blank, a quotation mark or the end, or with 。！？.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from nltk.tokenize import NLTKWordTokenizer

from main.errors import MissingExtraError

Arguments = Mapping[str, Any]
LEAST, LESS = "at least", "less than"
_ENDS = re.compile(r"(?:[.!?]+[\"'”’)]*(?=\s|$)|[。！？]+)")
_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


class Instruction(NamedTuple):
    """A check, and the arguments that it needs with their types."""

    check: Callable[..., bool]
    needs: Mapping[str, type]


def follows(name: str, answer: str, given: Arguments) -> bool:
    """Whether an answer that is not blank follows the instruction.

    Raises:
        MissingExtraError: it is about a language, and langdetect is not installed.
    """
    check, needs = INSTRUCTIONS[name]
    return check(answer, *(given[argument] for argument in needs))


def argument_problems(name: str, given: Arguments) -> list[str]:
    """One sentence for every argument that is missing, unknown, or of another type."""
    needs = INSTRUCTIONS[name].needs
    found = [f"{name} has no argument {other!r}." for other in given if other not in needs]
    for argument, kind in needs.items():
        value = given.get(argument)
        if not isinstance(value, kind) or isinstance(value, bool):
            found.append(f"{name} needs {argument!r}, a {kind.__name__}; found {value!r}.")
        elif argument.endswith("relation") and value not in (LEAST, LESS):
            found.append(f"{name}: {argument}={value!r} must be {LEAST!r} or {LESS!r}.")
    return found


def _compared(count: int, bound: int, relation: str) -> bool:
    return count >= bound if relation == LEAST else count < bound


# -- keywords


def _existence(answer: str, keywords: list) -> bool:
    return all(re.search(re.escape(word), answer, re.IGNORECASE) for word in keywords)


def _frequency(answer: str, keyword: str, frequency: int, relation: str) -> bool:
    found = re.findall(re.escape(keyword), answer, re.IGNORECASE)
    return _compared(len(found), frequency, relation)


def _forbidden(answer: str, forbidden_words: list) -> bool:
    words = [rf"\b{re.escape(word)}\b" for word in forbidden_words]
    return not any(re.search(word, answer, re.IGNORECASE) for word in words)


def _letter_frequency(answer: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _compared(answer.lower().count(letter.lower()), let_frequency, let_relation)


# -- language and case


def _language(answer: str) -> str:
    """Its ISO code; '' where there is nothing to tell it by."""
    try:
        from langdetect import DetectorFactory, LangDetectException, detect
    except ImportError as error:
        raise MissingExtraError("langdetect", "verify", "an instruction about language") from error
    DetectorFactory.seed = 0  # it draws; the same answer is the same language each time
    try:
        return str(detect(answer))
    except LangDetectException:
        return ""


def _response_language(answer: str, language: str) -> bool:
    return _language(answer) in (language, "")


def _capital(answer: str) -> bool:
    return answer.isupper() and _language(answer) in ("en", "")


def _lowercase(answer: str) -> bool:
    return answer.islower() and _language(answer) in ("en", "")


def _capital_words(answer: str, capital_frequency: int, capital_relation: str) -> bool:
    words = NLTKWordTokenizer().tokenize(answer)
    return _compared(sum(map(str.isupper, words)), capital_frequency, capital_relation)


# -- lengths


def _words(answer: str, num_words: int, relation: str) -> bool:
    return _compared(len(re.findall(r"\w+", answer)), num_words, relation)


def sentences(text: str) -> int:
    """How many there are; what follows the last end is one, too.

    >>> sentences('It is 3.5. "Really?" she asked! Yes')
    4
    """
    parts = _ENDS.split(text)
    return sum(bool(re.search(r"\w", part)) for part in parts)


def _sentences(answer: str, num_sentences: int, relation: str) -> bool:
    return _compared(sentences(answer), num_sentences, relation)


def _paragraphs(answer: str, num_paragraphs: int) -> bool:
    """Divided by ***; an empty one between two dividers is none."""
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", answer)]
    inner = parts[1:-1]
    return all(inner) and sum(map(bool, parts)) == num_paragraphs


def _nth_paragraph(answer: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Divided by an empty line; the word ends at its first mark."""
    parts = answer.split("\n\n")
    count = sum(bool(part.strip()) for part in parts)
    if count != num_paragraphs or not 1 <= nth_paragraph <= count:
        return False
    words = parts[nth_paragraph - 1].split()
    word = re.split(r"[.,?!'\"]", words[0].lstrip("'\""))[0] if words else ""
    return word.lower() == first_word.lower()


# -- content and format


def _placeholders(answer: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", answer)) >= num_placeholders


def _postscript(answer: str, postscript_marker: str) -> bool:
    spaced = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}
    pattern = spaced.get(postscript_marker) or re.escape(postscript_marker.lower())
    return re.search(pattern, answer.lower()) is not None


def _bullets(answer: str, num_bullets: int) -> bool:
    stars = re.findall(r"^\s*\*[^*\n].*$", answer, re.MULTILINE)
    dashes = re.findall(r"^\s*-.*$", answer, re.MULTILINE)
    return len(stars) + len(dashes) == num_bullets


def _constrained(answer: str) -> bool:
    return any(one in answer for one in _ANSWERS)


def _highlights(answer: str, num_highlights: int) -> bool:
    single = re.findall(r"\*([^\n*]*)\*", answer)
    double = re.findall(r"\*\*([^\n*]*)\*\*", answer)
    return sum(bool(part.strip()) for part in single + double) >= num_highlights


def _sections(answer: str, section_spliter: str, num_sections: int) -> bool:
    pattern = rf"\s?{re.escape(section_spliter)}\s?\d+\s?"
    return len(re.split(pattern, answer)) - 1 >= num_sections


def _json(answer: str) -> bool:
    fenced = re.fullmatch(r"```(?:json)?(.*)```", answer.strip(), re.DOTALL | re.IGNORECASE)
    try:
        json.loads(fenced.group(1) if fenced else answer)
    except ValueError:
        return False
    return True


def _title(answer: str) -> bool:
    titles = re.findall(r"<<[^\n]+>>", answer)
    return any(title.lstrip("<").rstrip(">").strip() for title in titles)


def _two_responses(answer: str) -> bool:
    parts = [part.strip() for part in answer.split("******")]
    inner, given = parts[1:-1], [part for part in parts if part]
    return all(inner) and len(given) == 2 and given[0] != given[1]


def _repeat(answer: str, prompt_to_repeat: str) -> bool:
    return answer.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _end(answer: str, end_phrase: str) -> bool:
    return answer.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _quotation(answer: str) -> bool:
    text = answer.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


INSTRUCTIONS: Mapping[str, Instruction] = {
    "keywords:existence": Instruction(_existence, {"keywords": list}),
    "keywords:frequency": Instruction(
        _frequency, {"keyword": str, "frequency": int, "relation": str}
    ),
    "keywords:forbidden_words": Instruction(_forbidden, {"forbidden_words": list}),
    "keywords:letter_frequency": Instruction(
        _letter_frequency, {"letter": str, "let_frequency": int, "let_relation": str}
    ),
    "language:response_language": Instruction(_response_language, {"language": str}),
    "length_constraints:number_sentences": Instruction(
        _sentences, {"num_sentences": int, "relation": str}
    ),
    "length_constraints:number_paragraphs": Instruction(_paragraphs, {"num_paragraphs": int}),
    "length_constraints:number_words": Instruction(_words, {"num_words": int, "relation": str}),
    "length_constraints:nth_paragraph_first_word": Instruction(
        _nth_paragraph, {"num_paragraphs": int, "nth_paragraph": int, "first_word": str}
    ),
    "detectable_content:number_placeholders": Instruction(_placeholders, {"num_placeholders": int}),
    "detectable_content:postscript": Instruction(_postscript, {"postscript_marker": str}),
    "detectable_format:number_bullet_lists": Instruction(_bullets, {"num_bullets": int}),
    "detectable_format:constrained_response": Instruction(_constrained, {}),
    "detectable_format:number_highlighted_sections": Instruction(
        _highlights, {"num_highlights": int}
    ),
    "detectable_format:multiple_sections": Instruction(
        _sections, {"section_spliter": str, "num_sections": int}
    ),
    "detectable_format:json_format": Instruction(_json, {}),
    "detectable_format:title": Instruction(_title, {}),
    "combination:two_responses": Instruction(_two_responses, {}),
    "combination:repeat_prompt": Instruction(_repeat, {"prompt_to_repeat": str}),
    "startend:end_checker": Instruction(_end, {"end_phrase": str}),
    "startend:quotation": Instruction(_quotation, {}),
    "change_case:capital_word_frequency": Instruction(
        _capital_words, {"capital_frequency": int, "capital_relation": str}
    ),
    "change_case:english_capital": Instruction(_capital, {}),
    "change_case:english_lowercase": Instruction(_lowercase, {}),
    "punctuation:no_comma": Instruction(lambda answer: "," not in answer, {}),
}
