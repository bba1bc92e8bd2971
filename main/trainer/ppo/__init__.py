"""Proximal policy optimisation with a critic."""

from typing import TYPE_CHECKING

from main.system.later import later

if TYPE_CHECKING:
    from main.trainer.ppo.trainer import Trainer as Trainer

__getattr__ = later(__name__, Trainer="main.trainer.ppo.trainer")
