"""What the tests of tensor parallelism and of FSDP share: runs, and their comparison with one."""

import json
import subprocess
from pathlib import Path
from typing import Any

import four_trainers
import torch
from launchers import ROOT, launch
from run_results import results, same_adapter, same_numbers
from safetensors.torch import load_file

# Answers to evaluation rows, drawn as completions are: by a model that lies in parts.
ANSWERS: dict[str, Any] = {"eval_generate": 5, "eval_metrics": ["chrf"], "eval_max_new_tokens": 4}
SCRIPT, PARTS = ROOT / "tests" / "four_trainers.py", ROOT / "tests" / "split_models.py"


def one_process(model: Path, methods: list[str], **setup: Any) -> dict[str, list[Any]]:
    """The results of each method with 8 rows a step, below one/."""
    expected = {}
    for method in methods:
        trainer = four_trainers.make_trainer(method, model, batch_size=8, output_dir="one", **setup)
        expected[method] = list(four_trainers.run(trainer, method, **ANSWERS))
    return expected


def of(top: str, result: Any) -> Path:
    """The checkpoint of another run that stands where `result`'s of one process does."""
    return Path(str(result.checkpoint).replace("one/", f"{top}/", 1))


def runs(model: Path, copies: int, expected: dict[str, list[Any]], **setup: Any) -> list[str]:
    """Arguments of four_trainers.py: the same steps by `copies` of the model, below two/; then the
    first method once more from its first checkpoint, below again/."""
    two: dict[str, Any] = {"model": str(model), "batch_size": 4 // copies, "batch_size_eval": 3,
           "output_dir": "two",
           "options": {"gradient_accumulation_steps": 2} | ANSWERS} | setup  # fmt: skip
    first = next(iter(expected))
    options = two["options"] | {"resume_from_checkpoint": str(of("two", expected[first][0]))}
    again = {"method": first} | two | {"output_dir": "again", "options": options}
    return [json.dumps(run) for run in ([{"method": m} | two for m in expected] + [again])]


def check(done: subprocess.CompletedProcess[str], expected: dict[str, list[Any]]) -> None:
    """Every process reports what one process found; the adapters agree; a resumed run is equal."""
    assert done.returncode == 0, done.stderr[-3000:]
    found = results(done.stdout)
    assert {method for method, *_ in found} == set(expected)
    for method, train, evaluation, step in found:
        (same,) = [result for result in expected[method] if result.step == step]
        same_numbers(train, same.train, (method, step))
        same_numbers(evaluation, same.eval, (method, step))
    for of_one in expected.values():
        same_adapter(str(of_one[-1].checkpoint), str(of("two", of_one[-1])))
    last = next(iter(expected.values()))[-1]
    whole, resumed = (
        load_file(of(top, last) / "adapter_model.safetensors") for top in ("two", "again")
    )
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def parts(processes: int, *layouts: dict[str, Any]) -> list[dict[str, Any]]:
    """What tests/split_models.py finds for each."""
    done = launch(PARTS, *map(json.dumps, layouts), by="torchrun", processes=processes)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert len(lines) == len(layouts)
    return [json.loads(line.removeprefix("FOUND ")) for line in lines]


def check_parts(found: dict[str, Any], here: float, where: object) -> None:
    """here: the most of the frozen weights that may lie in one process."""
    assert found["loss"] < 1e-6 and found["drawn"] < 1e-5, where
    assert found["gradient"] < 1e-5 * max(1.0, found["largest"]), where
    assert found["largest"] > 1e-2 and found["norm"] < 1e-5, where
    assert found["here"] <= here and found["alike"], where
