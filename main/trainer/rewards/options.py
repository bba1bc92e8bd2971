"""What trainers accept about rewards, whatever gives them."""

from dataclasses import dataclass
from typing import NamedTuple

from main.options import Options, below, not_positive


class Patience(NamedTuple):
    """With a function that fails.

    timeout: seconds for a batch; None is no limit.
    retries: how often it is called again, with the whole batch.
    """

    timeout: float | None = None
    retries: int = 0


@dataclass(kw_only=True)
class RewardOptions(Options):
    """How rewards are added up, and what happens where a function fails.

    reward_weights: one factor for each reward; 1 by default.
    reward_timeout: seconds that a function may take for a batch; None is no limit. A function that
        is not `async` then runs in a thread of its own, and one given up may still go on there.
    reward_retries: how often a function that raised or took too long is called again, each time
        with the whole batch. Then the run stops, with a checkpoint unless save_strategy='no'.
    """

    reward_weights: list | None = None
    reward_timeout: float | None = None
    reward_retries: int = 0

    def problems(self) -> list[str]:
        return below(self, {"reward_retries": 0}) + not_positive(self, ["reward_timeout"])

    @property
    def patience(self) -> Patience:
        return Patience(self.reward_timeout, self.reward_retries)
