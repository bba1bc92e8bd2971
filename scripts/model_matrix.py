"""Write docs/models.md: what becomes of each causal family of transformers.

python scripts/model_matrix.py          # print the table and write the page: some ten minutes
"""

import logging
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "models.md"
sys.path.insert(0, str(ROOT / "tests"))

from model_matrix import NO, Family, family, names  # noqa: E402

HEAD = """# Families of models

Every causal language model of transformers {version}, made small and random, with an adapter of
random weights on `target_modules='all-linear'`. The reference of each cell is the model's own
logits, one row at a time and without a cache. `=` is equal: log-probabilities and gradients as
the trainers take them, of rows of unequal length, padded and without padding; greedy answers of a
batch and of single requests, token by token; the logits of the merged model. A family is not told
by its name: what it does is measured on a small copy of its configuration before it is used, and
the way that is right for it is taken. `padded`: its layers look across the borders of rows, so
that rows are padded. `beside its base`: merging would change what it says, so the adapter stays
beside the base.

`python scripts/model_matrix.py` writes this page; `make test-long` holds all of it against the
code, `make test` some.
"""


def page(found: list[Family]) -> str:
    """The Markdown of docs/models.md."""
    import transformers

    taken = [row for row in found if not row.refusal]
    refused = [row for row in found if row.refusal and not row.refusal.startswith(NO)]
    untried = [row for row in found if row.refusal.startswith(NO)]
    lines = [HEAD.format(version=transformers.__version__)]
    lines.append(
        f"{len(found)} families: {len(taken)} taken, {len(refused)} refused, {len(untried)} not "
        "tried here.\n"
    )
    lines.append("| family | log-probs | gradients | no padding | answers | merged | notes |")
    lines.append("|---|---|---|---|---|---|---|")
    lines += [f"| {' | '.join(row[:7])} |" for row in taken]
    for title, rows in (("Refused", refused), ("Not tried", untried)):
        lines += ["", f"{title}:", "", *(f"- {row.name}: {row.refusal}" for row in rows)]
    return "\n".join(lines) + "\n"


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    found = []
    for name in names():
        found.append(family(name))
        print(" | ".join(found[-1]), flush=True)
    PAGE.write_text(page(found), encoding="utf-8")
    print(f"{PAGE} written.")


if __name__ == "__main__":
    main()
