"""The guide's name for `main.predictor.hf`."""

from main.predictor.hf import Predictor as Predictor
