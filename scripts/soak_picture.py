"""Draw `docs/soak.png`: memory, threads, files and child processes over the rounds of a soak.

python tests/soak.py MODEL FOLDER           # writes FOLDER/soak.csv
python scripts/soak_picture.py FOLDER/soak.csv
"""

import csv
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "soak.png"
SHOWN = {
    "memory": "memory, MiB",
    "threads": "threads",
    "files": "open files",
    "children": "children",
}


def draw(rows: list[dict[str, str]]) -> None:
    """A panel for each number; that of memory begins at 0 too, so that growth is seen as it is."""
    rounds = [int(row["round"]) for row in rows]
    figure, panels = plt.subplots(1, len(SHOWN), figsize=(11, 2.6), layout="constrained")
    for panel, (name, title) in zip(panels, SHOWN.items(), strict=True):
        values = [float(row[name]) for row in rows]
        panel.plot(rounds, values, color="#2a5fa5")
        panel.set(title=title, xlabel="round", ylim=(0, max(values) * 1.2 or 1))
        panel.grid(alpha=0.3)
    figure.savefig(PICTURE, dpi=90, metadata={"Software": None})


def main() -> None:
    with open(sys.argv[1], encoding="utf-8", newline="") as file:
        draw(list(csv.DictReader(file)))


if __name__ == "__main__":
    main()
