"""Draw `data/images/shapes.png`, the picture of the vision-language examples.

python scripts/make_picture.py             # write it
python scripts/make_picture.py --check     # exit 1 if the file there shows something else
"""

import argparse
import sys
from pathlib import Path

from PIL import Image, ImageDraw

PICTURE = Path(__file__).resolve().parent.parent / "data" / "images" / "shapes.png"
SIZE = (252, 168)  # multiples of 28, the cell of Qwen2.5-VL


def draw() -> Image.Image:
    """A red square, a green triangle and a blue circle on a light ground."""
    image = Image.new("RGB", SIZE, (245, 245, 235))
    pen = ImageDraw.Draw(image)
    pen.rectangle([20, 54, 79, 113], fill=(200, 40, 40))
    pen.polygon([(126, 48), (92, 116), (160, 116)], fill=(40, 150, 60))
    pen.ellipse([172, 52, 233, 113], fill=(40, 70, 190))
    pen.line([10, 140, 242, 140], fill=(60, 60, 60), width=3)
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        PICTURE.parent.mkdir(parents=True, exist_ok=True)
        draw().save(PICTURE, optimize=True)
    elif Image.open(PICTURE).convert("RGB").tobytes() != draw().tobytes():
        sys.exit(f"{PICTURE} is not what this script draws.")


if __name__ == "__main__":
    main()
