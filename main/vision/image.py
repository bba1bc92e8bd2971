"""Files and URLs -> upright RGB images, and frames of short animations."""

import base64
import binascii
import io
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote_to_bytes

from main.errors import DataError, MissingExtraError
from main.vision.media import Visual, find_file

if TYPE_CHECKING:
    from PIL import Image

# What may be read: formats that pillow decodes by itself, none that starts another program.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MOST_PIXELS = 100_000_000  # of an image or a frame
MOST_FRAMES = 1024  # of a video, as sampled
MOST_STORED = 20_000  # frames of an animated file
ORIENTATION = 0x0112  # EXIF tag; 5 to 8 stand on their side
VIDEO_FILES = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".mpg", ".mpeg", ".m4v", ".flv", ".wmv")
FEWEST_FRAMES = 4  # of an animation, if it has so many


class Clip(NamedTuple):
    """The frames of a video, all of one size.

    frames: how many, T. height, width: of the first. fps: frames a second, as sampled.
    """

    frames: int
    height: int
    width: int
    fps: float


def open_image(source: Any) -> "Image.Image":
    """The image, turned as its EXIF data say, in RGB; transparency becomes white.

    An animated file gives its first frame.

    Raises:
        MissingFileError: no such file.
        DataError: a file that is no image, or is damaged.
        MissingExtraError: pillow is not installed.
    """
    with _reading(source):
        return _upright(_open(source))


def image_size(source: Any) -> tuple[int, int]:
    """(height, width) of the upright image; reads the header of a file, not its pixels."""
    with _reading(source):
        image = _open(source)
        width, height = image.size
        turned = image.getexif().get(ORIENTATION, 1) >= 5
    return (width, height) if turned else (height, width)


def check_pixels(visual: Visual) -> None:
    """Decode all of an image or video once.

    Raises:
        DataError: what is cut off or damaged behind a sound header.
    """
    if visual.kind == "video":
        open_frames(visual)
    else:
        open_image(visual.source)


def clip_of(video: Visual) -> Clip:
    """How many frames a video has, and how large they are.

    Raises:
        DataError: more frames than `MOST_FRAMES`.
    """
    clip = _clip_of(video)
    if clip.frames > MOST_FRAMES:
        raise DataError(
            f"{video.name} would be {clip.frames} frames, and {MOST_FRAMES} are the most: give a "
            "lower fps, or fewer frames."
        )
    return clip


def _clip_of(video: Visual) -> Clip:
    if isinstance(video.source, tuple):
        height, width = image_size(video.source[0])
        return Clip(len(video.source), height, width, video.fps)
    durations = _durations(video.source)
    seconds = sum(durations)
    count = max(round(seconds * video.fps), min(FEWEST_FRAMES, len(durations)))
    height, width = image_size(video.source)
    return Clip(count, height, width, count / seconds)


def open_frames(video: Visual) -> list["Image.Image"]:
    """The frames that `clip_of` counts, upright and in RGB.

    Raises:
        DataError: a video file, or frames of different sizes; and see `open_image`.
    """
    clip_of(video)  # not too many
    if isinstance(video.source, tuple):
        frames = [open_image(frame) for frame in video.source]
    else:
        frames = _sampled(video)
    sizes = {frame.size for frame in frames}
    if len(sizes) > 1:
        raise DataError(f"the frames of a video must be of one size; found {sorted(sizes)}.")
    return frames


def _sampled(video: Visual) -> list["Image.Image"]:
    """Frames of an animation at even distances in time."""
    durations, clip = _durations(video.source), clip_of(video)
    ends = [sum(durations[: i + 1]) for i in range(len(durations))]
    frames = []
    with _reading(video.source):
        image = _open(video.source)
        for k in range(clip.frames):
            image.seek(next(i for i, end in enumerate(ends) if k / clip.fps < end - 1e-9))
            frames.append(_upright(image.copy()))
    return frames


def _durations(source: Any) -> list[float]:
    """Seconds that each frame of an animated image is shown; 0.1 where the file does not say."""
    if isinstance(source, str) and source.lower().endswith(VIDEO_FILES):
        raise DataError(
            f"'{source}' is a video file, which needs a decoder: take frames out of it first "
            "(ffmpeg -i FILE -vf fps=2 frame_%03d.png) and give them as a list in 'video'."
        )
    with _reading(source):
        image = _open(source)
        found = []
        stored = getattr(image, "n_frames", 1)
        if stored > MOST_STORED:
            raise DataError(f"'{source}' has {stored} frames; {MOST_STORED} are the most.")
        for i in range(stored):
            image.seek(i)
            found.append((image.info.get("duration") or 100) / 1000)
    return found


def _open(source: Any) -> "Image.Image":
    """The image as it is stored, pixels not yet read."""
    image_module = pillow()
    if not isinstance(source, str):
        return source
    file = io.BytesIO(_data_of(source)) if source.startswith("data:") else find_file(source)
    with warnings.catch_warnings():  # the bound below is ours
        warnings.simplefilter("ignore", image_module.DecompressionBombWarning)
        try:
            image = image_module.open(file, formats=FORMATS)
        except image_module.UnidentifiedImageError as error:
            raise DataError(
                f"'{source[:80]}' is none of the image formats that are read here "
                f"({', '.join(FORMATS)}), whatever its name says."
            ) from error
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise DataError(
            f"'{source[:80]}' has {width} x {height} pixels; {MOST_PIXELS:,} are the most."
        )
    return image


def _data_of(url: str) -> bytes:
    """The bytes of data:[type][;base64],... (RFC 2397)."""
    head, comma, body = url.partition(",")
    if not comma:
        raise DataError(f"'{url[:40]}' is no data URL: it has no comma before its data.")
    if not head.endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise DataError(f"the data URL '{url[:40]}...' is not valid base64: {error}.") from error


def _upright(image: "Image.Image") -> "Image.Image":
    from PIL import ImageOps

    return _rgb(ImageOps.exif_transpose(image))


def _rgb(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16"):  # converting would cut off everything above 255
        import numpy

        image = Image.fromarray((numpy.asarray(image) >> 8).astype(numpy.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def pillow() -> Any:
    """The module PIL.Image.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pillow", "vl", "an image in a message") from error
    return Image


class _reading:
    """Turn what pillow raises into a DataError that names the image."""

    def __init__(self, source: Any):
        self.source = source

    def __enter__(self) -> None:
        pillow()

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        from PIL import Image

        if isinstance(error, DataError | FileNotFoundError):
            return
        bomb = Image.DecompressionBombError
        if isinstance(error, OSError | SyntaxError | ValueError | EOFError | bomb):
            name = self.source[:80] if isinstance(self.source, str) else "the image"
            raise DataError(f"'{name}' cannot be read as an image: {error}") from error
