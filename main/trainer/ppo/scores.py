"""Scores in units of their own spread: PPO learns alike from r, r + 20 and 100 r.

A critic that has to climb to 20 first, or whose loss is 10,000 times as large, learns something
else than the difference between completions. So a score is measured from the running mean of all
scores so far, in running standard deviations; the divergence, in nats, is taken off after that.
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from main.trainer.online.statistics import Moments

NO_SPREAD = 1e-9  # of a score's size: smaller differences are rounding


@dataclass
class RunningScores:
    """Mean and sum of squared deviations of all scores so far (Chan et al. 1979, equation 2.1)."""

    number: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, draw: Moments) -> None:
        """Take in the scores of a draw."""
        if not draw.number:
            return
        number, apart = self.number + draw.number, draw.mean - self.mean
        self.squares += draw.variance * draw.number
        self.squares += apart**2 * self.number * draw.number / number
        self.mean += apart * draw.number / number
        self.number = number

    @property
    def spread(self) -> float:
        return (self.squares / self.number) ** 0.5 if self.number else 0.0

    def normalised(self, score: float) -> float:
        """0 where all scores so far are alike; the score itself before the first one."""
        if not self.number:
            return score
        spread = self.spread
        return (score - self.mean) / spread if spread > NO_SPREAD * abs(self.mean) else 0.0

    def scaled(self, reward: Tensor) -> Tensor:
        """Parts of a score in the units of `normalised`, which takes the mean off the whole."""
        if not self.number:
            return reward
        spread = self.spread
        return reward / spread if spread > NO_SPREAD * abs(self.mean) else torch.zeros_like(reward)

    def state(self) -> dict[str, float]:
        return asdict(self)


def has_spread(draw: Moments) -> bool:
    """Whether one completion of the draw was better than another."""
    return draw.variance**0.5 > NO_SPREAD * abs(draw.mean)
