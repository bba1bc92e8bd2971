"""What is found out once and holds for later processes: small notes below the cache's folder."""

import json
import logging
from pathlib import Path
from typing import Any

from main.errors import MainError
from main.system.disk import appearing
from main.system.folders import cache_folder

log = logging.getLogger(__name__)


def kept(kind: str, key: str) -> Any:
    """What an earlier process kept under this key; None where there is no such note."""
    try:
        return json.loads(_note(kind, key).read_text(encoding="utf-8"))["answer"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, MainError):
        return None


def keep(kind: str, key: str, answer: Any) -> None:
    """A disk that refuses it costs the next process a second, and this one nothing.

    Args:
        kind: names the folder. key: a digest of all that the answer depends on.
        answer: a JSON value, and not None.
    """
    try:
        _note(kind, key).parent.mkdir(exist_ok=True)
        with appearing(_note(kind, key)) as temporary:
            temporary.write_text(json.dumps({"answer": answer}), encoding="utf-8")
    except (OSError, MainError) as error:
        log.debug("what was found out is not kept: %s", error)


def _note(kind: str, key: str) -> Path:
    return cache_folder() / kind / f"{key[:32]}.json"
