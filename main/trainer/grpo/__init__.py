"""Group-relative policy optimisation: GRPO and its variants."""

from main.trainer.grpo.trainer import Trainer as Trainer
