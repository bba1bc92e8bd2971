"""Supervised fine-tuning (SFT) of a LoRA adapter.

    loss = -(1 / N) sum over the N trained tokens of the optimizer step of log p(token | before it)

Deviations from the usual SFT loop:
1. N counts the trained tokens of the whole step, over micro-batches and processes: the same loss
   and gradient however the step is cut.
2. Only the positions whose next token is trained reach the output layer.
3. Rows of similar length share a step, see main/loaders/sampler.py.

Rows of a vision-language model may carry images; their pixels are made when a batch is. The vision
tower stays frozen unless `target_modules` names its layers. Under ZeRO-3 every process has to enter
the same layers: give it rows that all have images, or none.

    from main.trainer.lora import Trainer

    trainer = Trainer(from_pretrained="models/SmolLM2-135M-Instruct", data_path="ticket_en")
    for result in trainer(num_epochs=3, lr=5e-4):
        print(result)
"""

from collections.abc import Iterator, Mapping
from typing import Any

from main.loaders.collate import collate_images, collate_sft
from main.trainer.base import BaseTrainer
from main.trainer.task import Batch, LossOutput, Row
from main.types import EpochResult


class Trainer(BaseTrainer):
    """LoRA, DoRA, rsLoRA, PiSSA and QLoRA fine-tuning on chat or context/target rows.

    The constructor takes the arguments of `main.trainer.arguments.SetupOptions`, the call those of
    `LoopOptions`; `help(Trainer.__init__)` and `help(Trainer.__call__)` list them.

    Raises:
        ConfigError, DataError, ModelError, MissingFileError: in the constructor and at the call,
            before anything is trained.
    """

    loaders = ("LLM_Chat", "ChatGLM_Chat", "LLM_Pure", "ChatGLM_LoRA")
    takes_images = True

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)

    def __call__(self, **arguments: Any) -> Iterator[EpochResult]:
        """Train; yields an EpochResult per epoch with `loss`, the mean over trained tokens."""
        return self._run(arguments)

    def collate(self, rows: list[Row]) -> Batch:
        tensors = collate_sft(rows, self.pad_id)
        return Batch(
            tensors={
                **{name: tensors[name] for name in ("input_ids", "loss_mask")},
                **collate_images(rows, tensors["input_ids"], self.vision),
            },
            counts={"tokens": int(tensors["loss_mask"].sum())},
            tokens=int(tensors["attention_mask"].sum()),
        )

    def loss(self, tensors: dict[str, Any], totals: Mapping[str, float]) -> LossOutput:
        logprobs = self.model(**tensors).logprobs
        negative = -logprobs.sum()
        return LossOutput(negative / totals["tokens"], {"loss": (negative, len(logprobs))})
