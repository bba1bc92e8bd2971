"""How long an import takes, and what it loads: `import main` has to be under 0.3 s, without torch.

    python benchmarks/import_time.py [--runs 9]

Each run is a new interpreter; its own start is not counted. Results go to
benchmarks/results/import_time.json.
"""

import argparse
import os
import statistics
import subprocess
import sys

from kept import ROOT, keep

MODULES = ("main", "main.evaluation.metrics", "main.predictor.hf", "main.trainer.lora")
HEAVY = ("torch", "transformers", "vllm", "deepspeed", "trl", "chromadb", "sentence_transformers")
LIMIT = 0.3  # seconds, for `import main`

CODE = """
import sys, time
wall, cpu = time.perf_counter(), time.process_time()
import {module}
print(time.perf_counter() - wall, time.process_time() - cpu)
print(*(name for name in {heavy!r} if name in sys.modules))
"""


def imported(module: str) -> tuple[float, float, list[str]]:
    """Seconds of wall and CPU time of one import, and the heavy packages that it loaded."""
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(module=module, heavy=HEAVY)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, loaded = done.stdout.split("\n")[:2]
    wall, cpu = map(float, seconds.split())
    return wall, cpu, loaded.split()


def measured(module: str, runs: int) -> dict[str, object]:
    """Medians over several interpreters; the first one, which fills caches, is left out."""
    results = [imported(module) for _ in range(runs + 1)][1:]
    return {
        "wall": statistics.median(wall for wall, _, _ in results),
        "cpu": statistics.median(cpu for _, cpu, _ in results),
        "loads": results[0][2],
    }


def main() -> None:
    """Measure, print and write the result; fails where `import main` is too slow or too heavy."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    imports = {module: measured(module, options.runs) for module in MODULES}
    result = {
        "runs": options.runs,
        "imports": imports,
    }
    keep(__file__, result, HEAVY)
    ours = imports["main"]
    if ours["cpu"] > LIMIT or ours["loads"]:
        raise SystemExit(f"import main: {ours['cpu']:.3f} s of CPU time, loads {ours['loads']}")


if __name__ == "__main__":
    main()
