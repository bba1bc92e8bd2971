"""What failures of a server mean: whether another attempt may help, and which error it is."""

import email.utils
import math
import random
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from main.errors import ConfigError, EngineDiedError, GenerationError, MainError, ModelError
from main.predictor.secret import Key

LONGEST_PAUSE = 60.0  # seconds, of those that nobody asked for
BUSY = (429, 502, 503)  # the server, not the request: what comes next would fail as well


class Limits(NamedTuple):
    """timeout: seconds for an answer, of a stream for the next piece of it.
    max_retries: how often a request is sent again. backoff: seconds before the first time; doubled
    with each. max_concurrency: requests on their way at once.
    """

    timeout: float
    max_retries: int
    backoff: float
    max_concurrency: int


class OutOfTime(Exception):
    """A server took longer than it may."""


class Place(NamedTuple):
    """Where requests go: an address, and the key that no message may show."""

    base_url: str
    key: Key
    limits: Limits


def pause_before(problem: Exception, number: int, limits: Limits) -> float | None:
    """Seconds to wait before attempt `number` + 1; None = another one would not help."""
    import openai

    if isinstance(problem, openai.APIStatusError):
        if problem.status_code not in (408, 409, 429) and problem.status_code < 500:
            return None
        asked = retry_after(problem.response.headers)
        if asked is not None:
            return asked if asked <= limits.timeout else None
    elif not isinstance(problem, OutOfTime | openai.APIConnectionError):
        return None
    # not all at the same moment again
    return min(limits.backoff * 2**number, LONGEST_PAUSE) * random.uniform(0.75, 1.25)


def told(problem: Exception, path: str, attempts: int, place: Place) -> MainError:
    """What went wrong as one of our errors, without the key."""
    import openai

    times = f"{attempts} attempt{'s' * (attempts > 1)}"
    where = f"the server at {place.base_url}"
    if isinstance(problem, OutOfTime):
        return GenerationError(
            f"{where} did not answer within {place.limits.timeout:g} s ({times}). Give a larger "
            "timeout or a smaller max_new_tokens, or look at the server."
        )
    if isinstance(problem, openai.APIStatusError):
        return _of_status(problem, path, place, times)
    if isinstance(problem, openai.APIConnectionError):
        return EngineDiedError(
            f"{where} cannot be reached, or breaks off ({times}): {_cause(problem)}. See whether "
            "it runs (python -m main.utils.serve MODEL starts one), and base_url."
        )
    return GenerationError(f"{where} fails at {path}: {place.key.hidden_in(_cause(problem))}.")


def _of_status(problem: Any, path: str, place: Place, times: str) -> MainError:
    status, where = problem.status_code, f"the server at {place.base_url}"
    said = place.key.hidden_in(_said(problem))
    if status in (401, 403):
        given = "refuses the api_key" if place.key else "wants an api_key"
        return ConfigError(
            f"{where} {given} ({status}): {said} Give api_key, or set OPENAI_API_KEY in the "
            "environment."
        )
    if status == 404:
        return ModelError(
            f"{where} does not know {path}, or not the model (404): {said} base_url is the address "
            "that ends in /v1."
        )
    if status in BUSY:
        asked = retry_after(problem.response.headers)
        wait = "" if asked is None else f" It asks for a pause of {asked:.0f} s."
        return EngineDiedError(
            f"{where} turns requests away ({status}, {times}): {said}{wait} Give a smaller "
            "max_concurrency, a larger max_retries, or come back later."
        )
    verb = "refuses" if status < 500 else "fails at"
    return GenerationError(f"{where} {verb} the request ({status}, {times}): {said}")


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, of `Retry-After` (RFC 9110, section 10.2.3).

    >>> retry_after({"retry-after": "2"}), retry_after({"retry-after": "soon"})
    (2.0, None)
    """
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def reason_of(problem: Exception) -> str:
    status = getattr(problem, "status_code", None)
    return f"status {status}" if status else type(problem).__name__


def _cause(problem: BaseException) -> str:
    """The innermost reason that says something."""
    while problem.__cause__ is not None and str(problem.__cause__):
        problem = problem.__cause__
    return str(problem).rstrip(".") or type(problem).__name__


def _said(problem: Any) -> str:
    """The server's own words."""
    body = problem.body
    body = body.get("error", body) if isinstance(body, Mapping) else body
    words = body.get("message") if isinstance(body, Mapping) else body
    text = " ".join(str(words or problem.message).split())[:1000]
    return text if text.endswith((".", "!", "?")) else f"{text}."
