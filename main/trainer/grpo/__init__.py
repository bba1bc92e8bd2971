"""Group-relative policy optimisation: GRPO and its variants."""

from typing import TYPE_CHECKING

from main.system.later import later

if TYPE_CHECKING:
    from main.trainer.grpo.trainer import Trainer as Trainer

__getattr__ = later(__name__, Trainer="main.trainer.grpo.trainer")
