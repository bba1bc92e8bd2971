"""A two-layer random model and a supervised task on rows made in memory, for testing the loop."""

import hashlib
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM

from main.options import parse
from main.trainer.arguments import LoopOptions
from main.trainer.loop.home import Home
from main.trainer.loop.run import Loop
from main.trainer.loop.task import Batch, LossOutput, Row, Task
from main.trainer.policy.logprobs import LogprobModel

VOCABULARY = 61


class ListRows(list[Row]):
    @property
    def lengths(self) -> list[int]:
        return [len(row["input_ids"]) for row in self]

    @property
    def digest(self) -> str:
        return hashlib.sha256(repr(list(self)).encode()).hexdigest()


def make_rows(count: int, seed: int = 0) -> ListRows:
    """Rows of 4 to 24 tokens, of which at least one, at most all but the first, is trained."""
    rng = random.Random(seed)
    rows = ListRows()
    for number in range(1, count + 1):
        length = rng.randint(4, 24)
        prompt = rng.randint(1, length - 1)
        ids = [rng.randrange(VOCABULARY) for _ in range(length)]
        mask = [i >= prompt for i in range(length)]
        rows.append({"input_ids": ids, "loss_mask": mask, "row": number})
    return rows


def tiny_model(dropout: float = 0.0) -> torch.nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    lora = LoraConfig(r=4, lora_alpha=16, lora_dropout=dropout, target_modules="all-linear")
    return get_peft_model(LlamaForCausalLM(config), lora)


class TinyTask(Task):
    """Supervised training as main.trainer.lora does it, without files and tokenizers."""

    def __init__(
        self, rows: ListRows, eval_rows: ListRows | None = None, batch_size: int = 4, dropout=0.0
    ):
        self.model = LogprobModel(tiny_model(dropout))
        self.train_data, self.eval_data = rows, eval_rows
        self.batch_size = self.batch_size_eval = batch_size
        self.seen: list[list[int]] = []  # source rows of every computed micro-batch, in order

    def collate(self, rows: list[Row]) -> Batch:
        ids = pad_sequence([torch.tensor(row["input_ids"]) for row in rows], batch_first=True)
        mask = pad_sequence([torch.tensor(row["loss_mask"]) for row in rows], batch_first=True)
        tokens = sum(len(row["input_ids"]) for row in rows)
        self.seen.append([row["row"] for row in rows])
        return Batch({"input_ids": ids, "loss_mask": mask}, {"tokens": int(mask.sum())}, tokens)

    def loss(self, tensors: dict[str, Any], totals: Mapping[str, float]) -> LossOutput:
        logprobs = self.model(**tensors).logprobs
        negative = -logprobs.sum()
        return LossOutput(negative / totals["tokens"], {"loss": (negative, len(logprobs))})

    def save(self, directory: Path) -> None:
        self.model.model.save_pretrained(str(directory))  # type: ignore[operator, union-attr]

    def adapter(self) -> dict[str, torch.Tensor]:
        named = self.model.named_parameters()
        return {name: p.detach().clone() for name, p in named if p.requires_grad}

    def start(self, output_dir: Path, seed: int = 7, **options: Any) -> Any:
        """The generator of one run, quiet by default."""
        options = dict[str, Any](report_to="none", lr=1e-2, save_strategy="no") | options
        home = Home(Path(output_dir), "tiny", "Llama", seed)
        return Loop(self, parse(LoopOptions, options, "start()"), home).run()


def same(one: TinyTask, other: TinyTask) -> bool:
    """Whether both have the same adapter, bit for bit."""
    pairs = zip(one.adapter().values(), other.adapter().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)
