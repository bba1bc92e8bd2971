"""The older name of main.trainer.lora."""

from main.trainer.lora import Trainer as Trainer
