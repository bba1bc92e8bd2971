"""Everything in the library that writes to a disk, small: what a call gives is compared."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny_llama import save_tiny_llama
from tiny_task import TinyTask, make_rows

from main.evaluation.inferences import inference_with_data
from main.loaders import get_template, load_dataset_split
from main.models import LoraOptions, add_adapter, load_model, load_tokenizer, save_adapter
from main.trainer.loop.throughput import MEASURED
from main.trainer.policy.reference_cache import reference_logprobs
from main.utils.merge_model import merge_model

TRAINING: dict[str, Any] = {
    "num_epochs": 2, "save_strategy": "epoch", "save_total_limit": 1, "logging_steps": 1,
    "resume_from_checkpoint": "auto",
}  # fmt: skip

ROOT = Path(__file__).resolve().parent.parent
RAG = "the index of the RAG example"  # what disturbs it is told by a ConfigError of its own
Work = Callable[[Path], Any]


def make_shared(small_model: Path, shared: Path) -> None:
    """A base model, an adapter and rows, which are only read afterwards."""
    base = save_tiny_llama(small_model, shared / "base")
    torch.manual_seed(1)
    policy = add_adapter(load_model(base), LoraOptions(lora_r=2, init_lora_weights=False))
    save_adapter(policy, shared / "adapter")
    rows = [
        {
            "conversations": [
                {"role": "user", "content": f"{n}?"},
                {"role": "assistant", "content": "yes"},
            ]
        }
        for n in range(3)
    ]
    (shared / "rows.json").write_text(json.dumps(rows), encoding="utf-8")


def works_in(shared: Path) -> dict[str, Work]:
    return Works(shared).all()


class Works:
    """Each method makes something in a folder that is there, or finishes it; returns what it made.

    shared: what `make_shared` made.
    """

    def __init__(self, shared: Path):
        self.shared, self.base = shared, shared / "base"

    def all(self) -> dict[str, Work]:
        return {
            "a training run": self.train,
            "batch inference": self.infer,
            "the row cache": self.encode,
            "the reference cache": self.score,
            "merging": self.merge,
            RAG: self.index,
        }

    def train(self, folder: Path) -> Any:
        task = TinyTask(make_rows(6), make_rows(2, 1), dropout=0.2)
        list(task.start(folder, **TRAINING))
        return {name: value.tolist() for name, value in task.adapter().items()}, records(folder)

    def infer(self, folder: Path) -> Any:
        rows = [{"query": f"question {number}"} for number in range(5)]
        target = folder / "answers.jsonl"
        inference_with_data(rows, shouted, target, batch_size=2, progress=False)
        return [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]

    def encode(self, folder: Path) -> Any:
        template = get_template(load_tokenizer(self.base), "LLM_Chat")
        rows = load_dataset_split(
            self.shared / "rows.json", "LLM_Chat", template, 64, cache_dir=folder / "cache"
        )
        return [row["input_ids"] for row in rows]

    def score(self, folder: Path) -> Any:
        import datasets

        before = datasets.config.HF_DATASETS_CACHE
        datasets.config.HF_DATASETS_CACHE = folder / "cache"
        try:
            return reference_logprobs(make_rows(3), "key", lengths, 2, 1e-6).tolist()
        finally:
            datasets.config.HF_DATASETS_CACHE = before

    def merge(self, folder: Path) -> Any:
        from safetensors.torch import load_file

        if not (folder / "merged").exists():
            merge_model(self.base, self.shared / "adapter", folder / "merged", device="cpu")
        return load_file(folder / "merged" / "model.safetensors")["model.norm.weight"].tolist()

    def index(self, folder: Path) -> Any:
        sys.path.insert(0, str(ROOT / "examples" / "rag"))
        import index

        target = folder / "index"
        made = index.Index(target, ROOT / index.ENCODER)
        made.add(index.read_entries(ROOT / "examples" / "rag" / "policies.jsonl"))
        return [list(entry) for entry in made.entries()]


def shouted(batch: Any) -> list[str]:
    return [query.upper() for query in batch["query"]]


def lengths(rows: Any) -> torch.Tensor:
    return torch.tensor([[float(len(row["input_ids"]))] for row in rows])


def records(folder: Path) -> dict[str, list[list[str]]]:
    """But for what is measured of the machine."""
    found = {}
    for kind in ("train", "eval"):
        text = (folder / f"data_record/tiny/{kind}.csv").read_text(encoding="utf-8")
        lines = [line.split(",") for line in text.splitlines()]
        kept = [i for i, name in enumerate(lines[0]) if name not in MEASURED]
        found[kind] = [[line[i] for i in kept] for line in lines]
    return found
