"""Dialogues as OpenAI's protocol has them: ids of calls, pictures as data URLs, thoughts."""

import base64
import io
import itertools
import json
import mimetypes
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from main.dialogue.normal import AROUND, normal
from main.errors import ConfigError, DataError
from main.vision.image import ORIENTATION, open_image, pillow
from main.vision.media import SIZE_KEYS, Visual, find_file, is_visual, visuals_in

RESULTS = ("tool", "observation", "function")
AS_STORED = ("image/jpeg", "image/png", "image/webp")  # what every server decodes


def wire_messages(messages: Iterable[Mapping[str, Any]], thoughts: bool) -> list[dict[str, Any]]:
    """The messages to send; those given are not changed.

    Args:
        messages: as `main.predictor.request.build_dialogues` makes them.
        thoughts: the server takes them under a key of their own (`reasoning`); else they stand in
            the content, as the model wrote them.

    Raises:
        ConfigError: what the protocol has no place for.
        DataError, MissingFileError: a picture that cannot be read.
    """
    return [_wire(message, thoughts) for message in _linked(normal(messages))]


def _linked(messages: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every call with an id, and every result with its call's: by order where it names none."""
    numbers = itertools.count(1)
    waiting: list[str] = []
    for message in messages:
        calls = message.get("tool_calls") or []
        if message["role"] in RESULTS:
            said = message.get("tool_call_id")
            if waiting and said not in waiting:
                said = waiting[0]
            waiting = [name for name in waiting if name != said]
            yield {**message, "tool_call_id": said or f"call_{next(numbers)}"}
            continue
        calls = [{**call, "id": call.get("id") or f"call_{next(numbers)}"} for call in calls]
        waiting = [call["id"] for call in calls]
        yield {**message, "tool_calls": calls} if calls else message


def _wire(message: Mapping[str, Any], thoughts: bool) -> dict[str, Any]:
    if message.get("metadata"):
        raise ConfigError(
            f"'metadata' {message['metadata']!r} of a message is of ChatGLM's format, and OpenAI's "
            "protocol has no place for it: leave it out, or use main.predictor.hf."
        )
    role = "tool" if message["role"] in RESULTS else message["role"]
    sent: dict[str, Any] = {"role": role, "content": _content(message, thoughts)}
    if thoughts and message.get("reasoning_content"):
        sent["reasoning"] = message["reasoning_content"]
    if message.get("tool_calls"):
        sent["tool_calls"] = [_call(call) for call in message["tool_calls"]]
    if role == "tool":
        sent["tool_call_id"] = message["tool_call_id"]
    if message.get("name") is not None:
        sent["name"] = message["name"]
    return sent


def _content(message: Mapping[str, Any], thoughts: bool) -> Any:
    content = message.get("content")
    if isinstance(content, list):
        if not any(is_visual(part) for part in content):
            content = "".join(str(part.get("text", "")) for part in content)
        else:
            return [_part(part) for part in content]
    if message.get("reasoning_content") and not thoughts:
        before, after = message.get("around", AROUND)
        return f"{before}{message['reasoning_content']}{after}{content or ''}"
    return None if message.get("tool_calls") and not content else content or ""


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return {
        "id": call["id"],
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    if not is_visual(part):
        return dict(part)
    (visual,) = visuals_in([{"content": [part]}])
    if visual.kind == "video":
        raise ConfigError(
            f"OpenAI's protocol takes images, not videos ({visual.name}): give the frames as "
            "images, or use main.predictor.hf."
        )
    sized = [name for name in SIZE_KEYS if getattr(visual, name) is not None]
    if sized:
        raise ConfigError(
            f"{', '.join(sized)} of {visual.name}: a server sizes images by its own settings. "
            "Resize the image itself and leave it out, or use main.predictor.hf."
        )
    return {"type": "image_url", "image_url": {"url": data_url(visual)}}


def data_url(visual: Visual) -> str:
    """The image as data:image/...;base64,...: its file, or a PNG of what is seen in it.

    The file itself where servers see the same in it: an upright RGB image of a usual format.
    """
    upright = open_image(visual.source)  # decodes all of it, so that a damaged one is refused here
    kind, content = _stored(visual.source)
    if kind not in AS_STORED or not _plain(content):
        buffer = io.BytesIO()
        upright.save(buffer, format="PNG")
        kind, content = "image/png", buffer.getvalue()
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _stored(source: Any) -> tuple[str, bytes]:
    """(type, content) of a file; ('', b'') of anything else."""
    if not isinstance(source, str) or source.startswith("data:"):
        return "", b""
    file = find_file(source)
    try:
        return mimetypes.guess_type(file.name)[0] or "", file.read_bytes()
    except OSError as error:
        raise DataError(f"'{source[:80]}' cannot be read: {error}") from error


def _plain(content: bytes) -> bool:
    image = pillow().open(io.BytesIO(content))
    upright = image.getexif().get(ORIENTATION, 1) == 1
    of_its_kind = image.format in ("JPEG", "PNG", "WEBP")
    single = getattr(image, "n_frames", 1) == 1
    return (
        upright
        and of_its_kind
        and single
        and image.mode == "RGB"
        and not image.info.get("transparency")
    )
