"""Supervised fine-tuning (SFT) of a LoRA adapter.

    loss = -(1 / W) sum over the trained tokens of the optimizer step of w log p(token | before it)

with w the weight of the row times that of the turn (1 where nothing is said), and W their sum.

Deviations from the usual SFT loop:
1. W counts the trained tokens of the whole step, over micro-batches and processes: the same loss
   and gradient however the step is cut.
2. Only the positions whose next token is trained reach the output layer.
3. Rows of similar length share a step, see main/loaders/order.py.

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
from main.trainer.arguments import LoopOptions
from main.trainer.base import BaseTask, BaseTrainer
from main.trainer.loop.task import Batch, LossOutput, Row
from main.trainer.supervised import SupervisedSetup
from main.types import EpochResult


class Trainer(BaseTrainer):
    """LoRA, DoRA, rsLoRA, PiSSA and QLoRA fine-tuning on chat or context/target rows.

    The constructor takes the arguments of `SupervisedSetup`, the call those of
    `main.trainer.arguments.LoopOptions`; `help(Trainer.__init__)` and `help(Trainer.__call__)` list
    them.

    Raises:
        ConfigError, DataError, ModelError, MissingFileError: in the constructor and at the call,
            before anything is trained.
    """

    setup_class = SupervisedSetup
    loaders = ("LLM_Chat", "ChatGLM_Chat", "LLM_Pure", "ChatGLM_LoRA")
    takes_images = True

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)

    def __call__(self, **arguments: Any) -> Iterator[EpochResult]:
        """Train; yields an EpochResult per epoch with `loss`, the mean over trained tokens."""
        return self._run(arguments)

    def configured(self, options: LoopOptions) -> "SupervisedTask":
        return SupervisedTask(self, options)


class SupervisedTask(BaseTask):
    """Maximum likelihood of the trained tokens."""

    def collate(self, rows: list[Row]) -> Batch:
        tensors = collate_sft(rows, self.pad_id)
        mask, weights = tensors["loss_mask"], tensors["weights"]
        return Batch(
            tensors={
                "input_ids": tensors["input_ids"],
                "loss_mask": mask,
                "weights": weights,
                **collate_images(rows, tensors["input_ids"], self.trainer.vision),
                "lengths": [[len(row["input_ids"])] for row in rows],
            },
            counts={"tokens": float(mask.sum() if weights is None else weights.sum())},
            tokens=int(tensors["attention_mask"].sum()),
        )

    def loss(self, tensors: dict[str, Any], totals: Mapping[str, float]) -> LossOutput:
        inputs = {name: value for name, value in tensors.items() if name != "weights"}
        logprobs, weights = self.model(**inputs).logprobs, tensors["weights"]
        if weights is None:
            negative, weight = -logprobs.sum(), float(len(logprobs))
        else:
            of_tokens = weights[tensors["loss_mask"]]
            negative, weight = -(of_tokens * logprobs).sum(), of_tokens.sum()
        return LossOutput(negative / totals["tokens"], {"loss": (negative, weight)})

    def evaluated_names(self) -> list[str]:
        return ["loss"]
