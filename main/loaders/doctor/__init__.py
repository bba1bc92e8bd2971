"""A look at rows before training on them."""

from main.loaders.doctor.check import check
from main.loaders.doctor.checkup import Checkup
from main.loaders.doctor.findings import Finding

__all__ = ["Checkup", "Finding", "check"]
