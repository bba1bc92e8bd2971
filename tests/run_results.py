"""What runs in other processes reported and saved, against what a run in this one did."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from main.trainer.loop.throughput import MEASURED

NOT_COMPARED = {*MEASURED, "sampling_mismatch"}  # of the process, not of the rows


def results(output: str) -> list:
    lines = [line for line in output.splitlines() if line.startswith("RESULT")]
    return [json.loads(line.removeprefix("RESULT ")) for line in lines]


def same_numbers(found: dict, expected: dict, where: object) -> None:
    assert set(found) == set(expected), where
    for name in set(found) - NOT_COMPARED:
        assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), (where, name)


def same_adapter(one: str, two: str) -> None:
    first, second = (load_file(Path(f) / "adapter_model.safetensors") for f in (one, two))
    assert set(first) == set(second)
    assert any(bool(tensor.any()) for name, tensor in first.items() if "lora_B" in name)
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-3, atol=2e-5, msg=name)
