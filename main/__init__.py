"""Parameter-efficient fine-tuning of large language models: trainers, predictors, metrics."""

__version__ = "0.1.0"
