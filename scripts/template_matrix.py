"""Write docs/templates.md: what becomes of each shape of row with each chat template of TRL's.

python scripts/template_matrix.py          # print the tables and write the page
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "templates.md"
sys.path.insert(0, str(ROOT / "tests"))

from template_matrix import SHAPES, Cell, lacks, matrix, template_names  # noqa: E402

HEAD = """# Templates and shapes of rows

Every chat template that TRL {version} ships, times shapes of rows. A number says that every string
of the row is trained, or asked, as the template writes it, that each answer stands behind the very
prompt that a predictor would make of the dialogue up to there, and how many encoded texts that
took: more than one where the template writes an earlier turn in another way once others follow. A
letter is a refusal, explained below the table. Each refusal was checked against the template's own
rendering: a string is not in it, the template itself refuses the dialogue, its prompt is no
beginning of what it writes, or nothing ends the call before the tool's result.

`python scripts/template_matrix.py` writes this page; `make test-long` holds all of it against the
code, `make test` a part.
"""


def page() -> str:
    """The Markdown of docs/templates.md."""
    import trl

    reasons: dict[str, str] = {}
    rows, untrainable, count, refused = [], [], 0, 0
    for name, cells in matrix(template_names()):
        if "" in cells:
            untrainable.append(f"- `{name}`: {cells[''].reason}")
            continue
        marks = []
        for shape, cell in cells.items():
            count += 1
            refused += cell.kind != "="
            marks.append(
                str(cell.rows) if cell.kind == "=" else _letter(name, shape, cell, reasons)
            )
        rows.append(f"| {name} | {' | '.join(marks)} |")
    shapes = list(SHAPES)
    lines = [
        HEAD.format(version=trl.__version__),
        f"{count} cells, {count - refused} accepted, {refused} refused.\n",
        f"| template | {' | '.join(shapes)} |",
        f"|---|{'---|' * len(shapes)}",
        *rows,
        "",
        *(f"- **{letter}**: {reason}" for reason, letter in reasons.items()),
        *untrainable,
    ]
    return "\n".join(lines) + "\n"


def _letter(name: str, shape: str, cell: Cell, reasons: dict[str, str]) -> str:
    proof = lacks(name, SHAPES[shape], cell.reason)
    if cell.kind != "no" or not proof:
        raise SystemExit(f"{name}, {shape}: {cell.reason or cell.kind}, and no proof of it")
    reason = cell.reason.split(": '")[0].split(", so the")[0]
    reason = re.sub(r"^turn \d+:? ", "", reason)
    return reasons.setdefault(reason.rstrip("."), chr(ord("a") + len(reasons)))


if __name__ == "__main__":
    text = page()
    print(text)
    PAGE.write_text(text, "utf-8")
