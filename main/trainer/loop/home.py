"""The folders of a run."""

from dataclasses import dataclass
from pathlib import Path

STATE, PROGRESS = "trainer_state", "progress.json"  # of a checkpoint; see saving.py
WARNINGS = "warnings.jsonl"  # beside the CSV files


@dataclass
class Home:
    """Where a run writes, what names it, and the seed that fixes it."""

    output_dir: Path
    task_name: str
    family: str
    seed: int

    @property
    def checkpoints(self) -> Path:
        return self.output_dir / "save_model" / self.task_name

    @property
    def records(self) -> Path:
        return self.output_dir / "data_record" / self.task_name

    @property
    def logs(self) -> Path:
        """Of trackers that write files; each has a folder `task_name` below."""
        return self.output_dir / "logs" / "tensorboard_logs"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"{self.family}_{step}"
