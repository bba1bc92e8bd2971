"""The guide's name of main.trainer.grpo."""

from main.trainer.grpo import Trainer as Trainer
