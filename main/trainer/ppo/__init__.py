"""Proximal policy optimisation with a critic."""

from main.trainer.ppo.trainer import Trainer as Trainer
