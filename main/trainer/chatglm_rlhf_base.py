"""The older name of main.trainer.ppo."""

from main.trainer.ppo import Trainer as Trainer
