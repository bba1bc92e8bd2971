"""The older name of main.trainer.dpo."""

from main.trainer.dpo import Trainer as Trainer
