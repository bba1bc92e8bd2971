"""The numbers of one fixed run of every trainer stay what they were.

The goldens are this library's own, from before its files were moved into packages; PPO's, from when
it came to normalise its scores. Another CPU
sums in another order: kernels without AVX move a loss by 1e-7, or by 2e-6 of itself, at most. For
the exact bits on one machine, see fixed_runs.py.
"""

import pytest
from fixed_runs import fixed_run

GOLDEN = {
    "lora": {
        "steps": [3, 6],
        "loss": [10.7717, 10.593965],
        "grad_norm": [2.4089254, 1.5498726],
        "eval/loss": [10.580523, 10.553767],
    },
    "dpo": {
        "steps": [4, 8],
        "loss": [0.6883152, 0.64384059],
        "grad_norm": [0.53524683, 0.36113052],
        "eval/loss": [0.64025203, 0.6364162],
    },
    "ppo": {
        "steps": [6, 12],
        "loss": [0.21489391, 0.20685429],
        "grad_norm": [3.4506996, 2.4531598],
        "eval/reward/mean": [-0.5, 1.0],
    },
    "grpo": {
        "steps": [5, 10],
        "loss": [6.9132447e-05, 0.00045610428],
        "grad_norm": [1.2842627, 1.1486073],
        "eval/reward/mean": [1, 1],
    },
}


def picked(found: dict, name: str) -> list[float]:
    if name == "steps":
        return found["steps"]
    part = "eval" if name.startswith("eval/") else "train"
    return [metrics[name.removeprefix("eval/")] for metrics in found[part]]


@pytest.mark.parametrize("method", GOLDEN)
def test_a_fixed_run_gives_the_losses_it_always_gave(
    method, tiny_model_path, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    found = fixed_run(method, tiny_model_path)
    for name, golden in GOLDEN[method].items():
        assert picked(found, name) == pytest.approx(golden, rel=1e-4, abs=1e-6), name
