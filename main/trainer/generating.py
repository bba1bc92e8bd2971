"""What trainers share whose policy draws completions while it trains: GRPO and PPO."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from main.errors import ConfigError
from main.models import context_length
from main.trainer.base import BaseTrainer
from main.trainer.engine import is_shared_out
from main.trainer.reward_notes import TrainerState
from main.trainer.rollout import Completion, Sampler
from main.trainer.samplers import make_sampler
from main.trainer.task import Row
from main.utils.processes import together


class GeneratingTrainer(BaseTrainer):
    """A sampler lives from `open` to `close`; an error in it ends all processes."""

    options: Any
    sampler: Sampler | None = None

    def open(self, device: torch.device) -> None:
        if self.options.use_vllm and is_shared_out(self.model):
            raise ConfigError(
                "use_vllm=True needs a whole copy of the policy in each process, and the launcher "
                "shares it out (ZeRO stage 3, FSDP or tensor parallelism). Draw with "
                "use_vllm=False, or launch with a whole copy each (DDP, or stage 2)."
            )
        base = self.setup.from_pretrained
        longest = self.setup.max_length + self.options.max_completion_length
        context = context_length(self.causal_lm.config) or longest
        self.sampler = together(
            lambda: make_sampler(
                self.options,
                self.policy,
                self.stop_ids,
                self.pad_id,
                base,
                min(longest, context),
            )
        )

    def close(self) -> None:
        if self.sampler is not None:
            self.sampler.close()
        self.sampler = None

    def progress(self) -> TrainerState:
        """Where the run is, for reward functions."""
        return TrainerState(self.global_step, self.max_steps)

    def draw(
        self, rows: Sequence[Row], seeds: Sequence[int], greedy: bool = False
    ) -> list[Completion]:
        """A completion for each row's prompt. All processes must call it."""
        assert self.sampler is not None, "a run is open"
        sample, prompts = self.sampler.sample, [list(row["prompt_ids"]) for row in rows]
        with self.at_hand():
            return together(lambda: sample(prompts, seeds, greedy))


def set_dropout(model: nn.Module, adapter: float = 0.0) -> None:
    """The adapter's as asked for, the base's off in any mode: the ratio would measure it too.

    A resumed adapter that was trained with some keeps it in its config.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            module.p = adapter if "lora_dropout" in name else 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010
