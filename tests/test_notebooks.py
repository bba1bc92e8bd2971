"""The notebooks run as they are shipped, and what they show is what they print."""

import nbformat
import pytest
from conftest import ROOT, script

# A cell of each notebook that says whether it worked, and what it shows.
TELLING = {
    "predictor": (1, "['The capital of France is Paris.']"),
    "first_project": (6, "True"),
}
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))


def texts(cell: nbformat.NotebookNode) -> list[str]:
    """What a code cell shows: printed text and values."""
    return [out.text if "text" in out else out.data["text/plain"] for out in cell.outputs]


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_it_prints(path, small_model_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    shipped = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    fresh = [c for c in script("run_notebook").run(path).cells if c.cell_type == "code"]
    for before, after in zip(shipped, fresh, strict=True):
        assert before.execution_count == after.execution_count
        assert [out.output_type for out in before.outputs] == [
            out.output_type for out in after.outputs
        ], after.source
    for cells in (shipped, fresh):
        number, shown = TELLING[path.stem]
        assert texts(cells[number])[-1] == shown


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_shipped_notebook_names_no_folder_of_the_machine_that_ran_it(path):
    for cell in nbformat.read(path, as_version=4).cells:
        shown = "\n".join(texts(cell)) if cell.cell_type == "code" else ""
        assert str(ROOT) not in shown + cell.source
        assert "Traceback" not in shown
