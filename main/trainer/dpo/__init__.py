"""Preference losses: DPO and its variants."""

from typing import TYPE_CHECKING

from main.system.later import later

if TYPE_CHECKING:
    from main.trainer.dpo.trainer import Trainer as Trainer

__getattr__ = later(__name__, Trainer="main.trainer.dpo.trainer")
