"""Images as they come: where they lie, how they are stored, and what is refused."""

import base64
import io
import random
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from vision_checkpoints import picture, saved

from main.errors import DataError, MissingExtraError, MissingFileError
from main.vision import Visual, locate_visuals, part_problem, template_message, visuals_in
from main.vision.image import check_pixels, clip_of, image_size, open_frames, open_image
from main.vision.media import dump, load
from main.vision.sizes import fit_pixels

pytestmark = pytest.mark.usefixtures("own_folder")


def pixels(image: Image.Image) -> numpy.ndarray:
    assert image.mode == "RGB"
    return numpy.asarray(image)


def data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def animation(path: str, count: int = 6, milliseconds: int = 250) -> str:
    frames = [picture(seed=i) for i in range(count)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=milliseconds)
    return path


def test_every_way_to_name_an_image_gives_the_same_pixels(tmp_path):
    saved(tmp_path / "有 空格", "a.png")
    url = (tmp_path / "有 空格" / "a.png").as_uri()
    assert "%20" in url
    for source in (
        "有 空格/a.png",
        "./有 空格/a.png",
        str(tmp_path / "有 空格" / "a.png"),
        url,
        url.replace("file://", "file://localhost"),
        data_url(picture()),
        picture(),
    ):
        assert (pixels(open_image(source)) == pixels(picture())).all()
        assert image_size(source) == (56, 84)


def test_parts_of_the_guide_and_of_other_libraries_are_understood():
    parts: list[dict[str, Any]] = [
        {"type": "image", "image": Path("a.jpg"), "min_pixels": 50176, "max_pixels": 50176},
        {"type": "image_url", "image_url": {"url": "file:///b.jpg"}},
        {"type": "text", "text": "?"},
        {"type": "video", "video": ["f1.png", "f2.png"], "fps": 1},
        {"type": "image", "image": "c.jpg", "resized_height": 280, "resized_width": 420},
    ]
    assert [part_problem(part) for part in parts] == [""] * 5
    assert visuals_in([{"role": "user", "content": parts}]) == [
        Visual("image", "a.jpg", min_pixels=50176, max_pixels=50176),
        Visual("image", "file:///b.jpg"),
        Visual("video", ("f1.png", "f2.png"), fps=1),
        Visual("image", "c.jpg", resized_height=280, resized_width=420),
    ]
    assert template_message({"role": "user", "content": parts})["content"] == [
        {"type": "image"},
        {"type": "image"},
        {"type": "text", "text": "?"},
        {"type": "video"},
        {"type": "image"},
    ]


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        ({"type": "image"}, "'image' must be a path"),
        ({"type": "image", "image": 3}, "found int"),
        ({"type": "image", "image": "a", "max_pixel": 9}, "Did you mean 'max_pixels'"),
        ({"type": "image", "image": "a", "max_pixels": 0}, "max_pixels=0 must be a whole number"),
        ({"type": "image", "image": "a", "min_pixels": 9, "max_pixels": 4}, "is more than"),
        ({"type": "image", "image": "a", "resized_height": 28}, "give both"),
        (
            {"type": "image", "image": "a", "resized_height": 28, "resized_width": 28,
             "max_pixels": 4},
            "exclude each other",
        ),
        ({"type": "image", "image": "a", "fps": 2}, "unknown key 'fps'"),
        ({"type": "video", "video": []}, "empty list of frames"),
        ({"type": "video", "video": ["a", 3]}, "'frame' must be"),
        ({"type": "text", "txt": "a"}, "Did you mean 'text'?"),
        ({"type": "text", "text": 3}, "'text' must be a string"),
    ],
)  # fmt: skip
def test_a_part_that_cannot_work_is_refused(part, problem):
    assert problem in part_problem(part)


def test_a_photo_is_turned_as_its_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to show it
    picture().save("turned.png", exif=exif)
    assert image_size("turned.png") == (84, 56)
    upright = open_image("turned.png")
    assert upright.size == (56, 84)
    assert (pixels(upright) == pixels(picture().rotate(-90, expand=True))).all()


def test_transparent_pixels_become_white():
    image = picture().convert("RGBA")
    image.putpixel((0, 0), (10, 20, 30, 0))
    image.save("rgba.png")
    assert open_image("rgba.png").getpixel((0, 0)) == (255, 255, 255)
    assert open_image("rgba.png").getpixel((5, 5)) == picture().getpixel((5, 5))
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.putpixel((0, 0), 0)
    palette.save("palette.png", transparency=0)
    assert open_image("palette.png").getpixel((0, 0)) == (255, 255, 255)
    assert open_image("palette.png").getpixel((1, 1)) == (255, 0, 0)


def test_other_colour_modes_become_rgb():
    picture().convert("CMYK").save("cmyk.jpg")
    assert open_image("cmyk.jpg").size == (84, 56)
    Image.new("L", (3, 3), 7).save("grey.png")
    assert open_image("grey.png").getpixel((1, 1)) == (7, 7, 7)
    Image.new("1", (3, 3), 1).save("bits.png")
    assert open_image("bits.png").getpixel((1, 1)) == (255, 255, 255)
    deep = numpy.full((3, 3), 40_000, dtype=numpy.uint16)
    Image.fromarray(deep).save("deep.png")
    assert open_image("deep.png").getpixel((1, 1)) == (156, 156, 156)  # 40000 / 256


def test_an_animation_is_an_image_by_its_first_frame_and_a_video_by_its_frames():
    animation("a.gif", count=6, milliseconds=250)  # 1.5 seconds
    first = numpy.abs(pixels(open_image("a.gif")).astype(int) - pixels(picture())).max()
    assert first < 40  # a palette of 256 colours
    clip = clip_of(Visual("video", "a.gif", fps=4.0))
    assert clip == (6, 56, 84, 4.0)
    frames = open_frames(Visual("video", "a.gif", fps=4.0))
    for seed, frame in enumerate(frames):
        assert numpy.abs(pixels(frame).astype(int) - pixels(picture(seed=seed))).max() < 40
    sparse = Visual("video", "a.gif", fps=0.1)
    assert clip_of(sparse).frames == len(open_frames(sparse)) == 4  # the fewest
    assert clip_of(sparse).fps == pytest.approx(4 / 1.5)


def test_frames_of_a_list_are_all_taken():
    video = Visual("video", (picture(), picture(seed=1), picture(seed=2)), fps=1.0)
    assert clip_of(video) == (3, 56, 84, 1.0)
    assert len(open_frames(video)) == 3
    with pytest.raises(DataError, match=r"of one size; found \[\(28, 28\), \(84, 56\)\]"):
        open_frames(Visual("video", (picture(), picture(28, 28))))


@pytest.mark.parametrize(
    ("source", "kind", "problem"),
    [
        ("gone.jpg", MissingFileError, r"'gone.jpg' does not exist \(looked for .*/gone.jpg\)"),
        ("https://host/a.png", DataError, "nothing is fetched from the network"),
        ("text.png", DataError, "'text.png' is none of the image formats that are read here"),
        ("cut.png", DataError, "'cut.png' cannot be read as an image"),
        ("data:image/png;base64,@@@", DataError, "not valid base64"),
        ("data:image/png", DataError, "no comma"),
    ],
)
def test_what_is_no_image_is_named(source, kind, problem):
    Path("text.png").write_text("hello")
    picture().save("whole.png")
    Path("cut.png").write_bytes(Path("whole.png").read_bytes()[:150])
    with pytest.raises(kind, match=problem):
        open_image(source)


def test_a_video_file_says_how_to_make_frames_of_it():
    Path("a.mp4").write_bytes(b"x")
    with pytest.raises(DataError, match=r"needs a decoder.*ffmpeg -i"):
        clip_of(Visual("video", "a.mp4"))


def test_without_pillow_the_error_names_the_extra(monkeypatch):
    picture().save("a.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"needs the package 'pillow'.*\[vl\]"):
        open_image("a.png")


def test_relative_paths_begin_at_the_working_directory_then_at_the_data_file(tmp_path):
    saved(tmp_path / "data" / "images", "a.png")
    image = {"type": "image", "image": "images/a.png"}
    message = {"role": "user", "content": [image]}
    assert locate_visuals([message], tmp_path / "data") == []
    found = str(tmp_path / "data" / "images" / "a.png")
    assert image["image"] == found
    saved(tmp_path / "images", "b.png")
    frames = {"type": "video", "video": ["images/b.png", "images/gone.png"]}
    problems = locate_visuals([{"role": "user", "content": [frames]}], tmp_path / "data")
    assert len(problems) == 1 and "'images/gone.png' does not exist" in problems[0]
    assert str(tmp_path / "data") in problems[0]


def test_the_cached_form_has_paths_and_sizes_and_no_pixels():
    visuals = [Visual("image", "/a.png", max_pixels=784), Visual("video", ("/f.png",), fps=3.0)]
    text = dump(visuals)
    assert load(text) == visuals
    assert len(text) < 150
    assert dump([]) == "" and load("") == []


def test_sizes_are_those_of_the_published_processor():
    rng = random.Random(0)
    for _ in range(3000):
        height, width = rng.randint(1, 3000), rng.randint(1, 3000)
        if max(height, width) > 200 * min(height, width):
            continue
        factor = rng.choice([28, 32])
        low, high = sorted(rng.randint(1, 2000) * factor**2 for _ in range(2))
        expected = smart_resize(height, width, factor, low, high)
        assert fit_pixels(height, width, factor, low, high) == expected


def test_an_image_that_is_too_thin_is_refused():
    with pytest.raises(DataError, match="300 x 1 pixels is too long and thin"):
        fit_pixels(1, 300, 28, 784, 7840)


def test_only_named_formats_are_read_and_no_other_program_is_started(tmp_path, monkeypatch):
    """PostScript under the name of a picture would start Ghostscript."""
    import subprocess

    path = tmp_path / "x.png"
    path.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    )
    Image.open(path)  # pillow itself takes it
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("a program was started"))
    for read in (image_size, open_image):
        with pytest.raises(DataError, match=r"x\.png' is none of the image formats"):
            read(str(path))


def test_a_picture_cut_in_half_is_found_though_its_header_is_sound(tmp_path):
    path = tmp_path / "x.jpg"
    Image.effect_noise((200, 200), 80).convert("RGB").save(path)
    data = path.read_bytes()
    check_pixels(Visual("image", str(path)))
    path.write_bytes(data[: len(data) // 2])
    assert image_size(str(path)) == (200, 200)
    with pytest.raises(DataError, match="cannot be read as an image"):
        check_pixels(Visual("image", str(path)))


def test_pixels_and_frames_are_bounded(tmp_path):
    path = tmp_path / "x.png"
    Image.new("1", (20_000, 6_000)).save(path)
    with pytest.raises(DataError, match="20000 x 6000 pixels; 100,000,000 are the most"):
        image_size(str(path))
    path = tmp_path / "x.gif"
    frames = [Image.new("L", (4, 4), shade) for shade in (0, 80, 160)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=1000)
    assert clip_of(Visual("video", str(path), fps=2.0)).frames == 6
    with pytest.raises(DataError, match="would be 3000 frames, and 1024 are the most"):
        clip_of(Visual("video", str(path), fps=1000.0))
