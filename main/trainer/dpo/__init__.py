"""Preference losses: DPO and its variants."""

from main.trainer.dpo.trainer import Trainer as Trainer
