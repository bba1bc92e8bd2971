"""What main.trainer.lora accepts beside what every trainer does."""

from dataclasses import dataclass

from main.dialogue.template import TrainTurns
from main.loaders import get_loader
from main.trainer.arguments import SetupOptions


@dataclass(kw_only=True)
class SupervisedSetup(SetupOptions):
    """Arguments of the constructor beside `SetupOptions`.

    train_turns: of every dialogue, 'all' turns of the assistant's are trained, or the 'last' one;
        a row's and a turn's own weight count besides.
    """

    train_turns: TrainTurns = "all"

    def without_effect(self) -> dict[str, str]:
        found = super().without_effect()
        if get_loader(self.loader_name).template == "plain":
            found["train_turns"] = f"loader_name={self.loader_name!r}, whose rows have no turns"
        return found
