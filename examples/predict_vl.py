"""Ask a vision-language model about pictures: two questions at once, a limit on the size, a stream.

python examples/predict_vl.py --model Qwen/Qwen2.5-VL-3B-Instruct
python examples/predict_vl.py --model MODEL --image photo.jpg --peft_path save_model/demo/Qwen_100

The model is a folder or a name on the hub: Qwen2-VL, Qwen2.5-VL, Qwen3-VL, LLaVA or LLaVA-NeXT.
"""

import argparse
from typing import Any

from main.predictor.hf import Predictor

QUESTIONS = ["Which shapes do you see?", "Which colour is the circle?"]


def ask(image: str, text: str, **sizes: int) -> dict[str, Any]:
    """A user's message with one image; sizes such as max_pixels=256 * 28 * 28 bound its cost."""
    return {
        "role": "user",
        "content": [{"type": "image", "image": image, **sizes}, {"type": "text", "text": text}],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--peft_path")
    parser.add_argument("--image", default="data/images/shapes.png")
    parser.add_argument("--max_new_tokens", type=int, default=64)
    arguments = parser.parse_args()
    pred = Predictor(arguments.model, peft_path=arguments.peft_path)
    limit = arguments.max_new_tokens

    batch = [ask(arguments.image, question) for question in QUESTIONS]
    for question, text in zip(QUESTIONS, pred(batch, max_new_tokens=limit), strict=True):
        print(f"> {question}\n{text}\n")

    print("The first once more, with a quarter of the pixels, as a stream:")
    small = ask(arguments.image, QUESTIONS[0], max_pixels=54 * 14 * 14)
    for chunks, _ in pred.predict_stream(small, max_new_tokens=limit):
        print(chunks[0], end="", flush=True)
    print()


if __name__ == "__main__":
    main()
