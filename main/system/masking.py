"""Secrets of options, of addresses and of the environment: in no record that a run leaves."""

import os
import re

MASK = "***"
SHORTEST = 8  # characters of an environment's secret: shorter ones stand in many a word

# Options and keys whose value is a secret; not 'eos_token', nor 'max_new_tokens'.
_OPTION = re.compile(
    r"(api_?key|secret|passw(or)?d|credential|authorization|(hf|hub|auth|access|api|bearer)_?token)"
    r"|^(token|key)$",
    re.IGNORECASE,
)
_VARIABLE = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)S?$", re.IGNORECASE)
_USER = re.compile(r"(?<=://)[^/\s@]+(?=@)")  # http://user:password@host
_QUERY = re.compile(r"(?<=[?&])([\w-]*(?:token|key|secret|password|signature)[\w-]*=)[^&\s]+", re.I)
_SHAPE = re.compile(r"\b(hf_\w{20,}|sk-[\w-]{20,}|gh[a-z]_\w{20,}|AKIA[A-Z0-9]{16})\b")


def names_secret(name: str) -> bool:
    """Whether the value of such an option, or of such a key, is a secret.

    >>> names_secret("hf_token"), names_secret("api_key"), names_secret("eos_token")
    (True, True, False)
    """
    return bool(_OPTION.search(name))


def masked(text: str) -> str:
    """The text without user and password of addresses, access tokens, and the environment's.

    >>> masked("http://me:secret@host:8000/v1")
    'http://***@host:8000/v1'
    """
    for value in sorted(_of_environment(), key=len, reverse=True):
        text = text.replace(value, MASK)
    text = _QUERY.sub(rf"\g<1>{MASK}", _USER.sub(MASK, text))
    return _SHAPE.sub(MASK, text)


def _of_environment() -> list[str]:
    named = (value for name, value in os.environ.items() if _VARIABLE.search(name))
    return [value for value in named if len(value) >= SHORTEST]
