"""What only a machine with a GPU can show; benchmarks/gpu.py checks and measures more."""

import json
import os
import subprocess
import sys
from pathlib import Path

import four_trainers
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_every_trainer_of_a_process_trains_on_its_own_device(
    tiny_model_path, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    four_trainers.write_data(tmp_path)
    for device in ("cpu", "cuda:0", "cpu"):
        trainer = four_trainers.make_trainer("lora", tiny_model_path, device=device)
        run = four_trainers.run(trainer, "lora", num_epochs=1)
        next(run)
        assert {str(p.device) for p in trainer.policy.parameters()} == {device}
        run.close()


@pytest.mark.long
def test_the_script_for_a_gpu_runs_all_of_it_in_small_shapes_on_a_cpu(tmp_path):
    script = ROOT / "benchmarks" / "gpu.py"
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), "--toy", "--out", str(tmp_path)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    parts = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))["parts"]
    assert len(parts) == 19
    assert [name for name, figures in parts.items() if "error" in figures] == []
    checks = {name: figures for name, figures in parts.items() if name.startswith("check")}
    assert [name for name, figures in checks.items() if not figures["holds"]] == []
