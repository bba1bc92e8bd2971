"""Which process takes which batch."""

import os
from pathlib import Path


class Claims:
    """Batches handed out by need: whoever makes the batch's file first has it.

    Args:
        folder: a folder that all processes see, new for this run; None: one process, all is its.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder

    def take(self, number: int) -> bool:
        """Whether batch `number` is now this process's; False for all once one has stopped."""
        if self.folder is None:
            return True
        if (self.folder / "stop").exists():
            return False
        try:
            (self.folder / str(number)).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def stop(self) -> None:
        """Let nobody take any more batches."""
        if self.folder is not None:
            (self.folder / "stop").touch()

    def taken(self) -> int:
        """How many batches are taken, by any process."""
        return len(os.listdir(self.folder)) if self.folder is not None else 0
