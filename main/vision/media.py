"""The visual parts of a message: {"type": "image", "image": ...} and {"type": "video", ...}.

What may stand as an image: a path, a file:// URL, a data URL, a PIL image. As a video: a list of
those (its frames), or the path of an animated image.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlparse

from main.errors import DataError, MissingFileError
from main.options import nearest

VISUAL_TYPES = ("image", "image_url", "video")
SIZE_KEYS = ("min_pixels", "max_pixels", "resized_height", "resized_width")
DEFAULT_FPS = 2.0


@dataclass(frozen=True)
class Visual:
    """One image or video, and the size that its message asks for.

    source: of an image a path, URL or PIL image; of a video a tuple of such frames, or a path.
    min_pixels, max_pixels: bounds of height x width, the aspect ratio kept; of each frame.
    resized_height, resized_width: the size itself, up to the model's own grid.
    fps: frames a second of a list of frames; how densely an animated file is sampled.
    """

    kind: Literal["image", "video"]
    source: Any
    min_pixels: int | None = None
    max_pixels: int | None = None
    resized_height: int | None = None
    resized_width: int | None = None
    fps: float = DEFAULT_FPS

    @property
    def name(self) -> str:
        """What to call it in a message."""
        source = self.source
        if isinstance(source, tuple):
            return f"video of {len(source)} frames"
        if not isinstance(source, str):
            return f"{type(source).__name__} in memory"
        return f"{self.kind} '{source if len(source) <= 120 else source[:40] + '...'}'"


def is_visual(part: Any) -> bool:
    """Whether a part of a content list is an image or a video."""
    return isinstance(part, Mapping) and part.get("type") in VISUAL_TYPES


def visuals_in(messages: Iterable[Mapping[str, Any]]) -> list[Visual]:
    """All images and videos of a dialogue, in order; parts as `part_problem` finds good."""
    return [_visual(part) for part in _visual_parts(messages)]


def template_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message as chat templates of vision models read it: parts without sources and sizes."""
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return {**message, "content": [_bare(part) for part in parts or []]}


def part_problem(part: Mapping[str, Any]) -> str:
    """What is wrong with a text, image or video part, as a sentence; '' when nothing is."""
    kind = part["type"]
    if kind != "text" and kind not in VISUAL_TYPES:
        return ""
    sizes = SIZE_KEYS if kind != "text" else ()
    known = ("type", kind, *sizes, *(["fps"] if kind == "video" else []))
    unknown = [key for key in part if key not in known and part[key] not in (None, [], {})]
    if unknown:
        return f"has the unknown key '{unknown[0]}'; allowed: {', '.join(known)}." + nearest(
            unknown[0], known
        )
    if kind == "text":
        found = part.get("text")
        return "" if isinstance(found, str) else f"'text' must be a string; found {found!r}."
    return _source_problem(part.get(kind), kind) or _size_problem(part)


def locate_visuals(messages: Iterable[Mapping[str, Any]], folder: Path) -> list[str]:
    """Make every path of an image or video absolute, in place; a sentence for each not found.

    A relative path is taken from the working directory, then from `folder`.
    """
    problems = []
    for part in _visual_parts(messages):
        kind = part["type"]
        if part.get(kind) is None:  # the row gives it
            continue
        [part[kind]], missing = locate_sources([part[kind]], folder)
        problems += [f"{kind}: {problem}" for problem in missing]
    return problems


def locate_sources(sources: Iterable[Any], folder: Path) -> tuple[list[Any], list[str]]:
    """(the sources of images with every path absolute, a sentence for each not found)."""
    found, problems = [], []
    for source in sources:
        try:
            found.append(_located(source, folder))
        except (DataError, MissingFileError) as error:
            found.append(source)
            problems.append(str(error))
    return found, problems


def find_file(source: str, folder: Path | None = None) -> Path:
    """The file that a path or file:// URL names.

    Raises:
        MissingFileError: no such file.
        DataError: a URL of another kind.
    """
    if "://" in source:
        url = urlparse(source)
        if url.scheme != "file" or url.netloc not in ("", "localhost"):
            raise DataError(
                f"'{source[:80]}' is not a local file: nothing is fetched from the network. "
                "Download it and give its path."
            )
        source = unquote(url.path)
    file = Path(source).expanduser()
    places = [file, *([folder / file] if folder and not file.is_absolute() else [])]
    for place in places:
        if place.is_file():
            return place.absolute()
    looked = " and ".join(f"{place.absolute()}" for place in places)
    raise MissingFileError(f"'{source}' does not exist (looked for {looked}).")


def dump(visuals: Sequence[Visual]) -> str:
    """Visuals as JSON for the cache of encoded rows, without pixels; '' of none."""
    return json.dumps([_short(visual) for visual in visuals]) if visuals else ""


def load(text: str) -> list[Visual]:
    """What `dump` wrote."""
    items = json.loads(text) if text else []
    return [Visual(**{**item, "source": _frozen(item["source"])}) for item in items]


def _visual_parts(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    contents = [message.get("content") for message in messages]
    return [part for c in contents if isinstance(c, list) for part in c if is_visual(part)]


def _visual(part: Mapping[str, Any]) -> Visual:
    kind = part["type"]
    sizes = {key: part[key] for key in (*SIZE_KEYS, "fps") if part.get(key) is not None}
    return Visual("video" if kind == "video" else "image", _source(part[kind]), **sizes)


def _source(value: Any) -> Any:
    """{"url": ...} or {"path": ...} -> what it is, a path -> its text, frames -> a tuple."""
    if isinstance(value, Mapping):
        value = value.get("url") or value.get("path")
    if isinstance(value, list | tuple):
        return tuple(_source(frame) for frame in value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _frozen(source: Any) -> Any:
    return tuple(source) if isinstance(source, list) else source


def _short(visual: Visual) -> dict[str, Any]:
    """The fields that differ from their defaults."""
    return {
        field.name: getattr(visual, field.name)
        for field in dataclasses.fields(visual)
        if field.default is dataclasses.MISSING or getattr(visual, field.name) != field.default
    }


def _bare(part: Mapping[str, Any]) -> dict[str, Any]:
    if not is_visual(part):
        return dict(part)
    return {"type": "video" if part["type"] == "video" else "image"}


def _source_problem(value: Any, kind: str) -> str:
    source = _source(value)
    if kind == "video" and isinstance(source, tuple):
        if not source:
            return "'video' is an empty list of frames."
        return next((p for frame in source if (p := _source_problem(frame, "frame"))), "")
    if (isinstance(source, str) and source) or _is_pil(source):
        return ""
    allowed = "a path, a file:// or data: URL or a PIL image"
    frames = ", or a list of such frames" if kind == "video" else ""
    return f"'{kind}' must be {allowed}{frames}; found {type(value).__name__}."


def _is_pil(value: Any) -> bool:
    return any(base.__module__ == "PIL.Image" for base in type(value).__mro__)


def _size_problem(part: Mapping[str, Any]) -> str:
    for key in (*SIZE_KEYS, "fps"):
        value = part.get(key)
        kinds = int | float if key == "fps" else int
        if value is not None and (
            not isinstance(value, kinds) or isinstance(value, bool) or value <= 0
        ):
            return f"{key}={value!r} must be a {'number' if key == 'fps' else 'whole number'} > 0."
    given = {key for key in SIZE_KEYS if part.get(key) is not None}
    if len(given & {"resized_height", "resized_width"}) == 1:
        return "resized_height and resized_width go together: give both."
    if {"resized_height", "min_pixels"} <= given or {"resized_height", "max_pixels"} <= given:
        return "resized_height/resized_width and min_pixels/max_pixels exclude each other."
    if {"min_pixels", "max_pixels"} <= given and part["min_pixels"] > part["max_pixels"]:
        return f"min_pixels={part['min_pixels']} is more than max_pixels={part['max_pixels']}."
    return ""


def _located(value: Any, folder: Path) -> Any:
    source = _source(value)
    if isinstance(source, tuple):
        return [_located(frame, folder) for frame in source]
    if not isinstance(source, str) or source.startswith("data:"):
        return source
    return str(find_file(source, folder))
