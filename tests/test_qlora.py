"""QLoRA and its 8-bit sibling on a CPU: trained, resumed, merged."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from main.trainer.lora import Trainer
from main.utils.merge_model import merge_model

pytest.importorskip("bitsandbytes", reason="the qlora extra is optional")
pytestmark = [
    pytest.mark.usefixtures("own_folder"),
    pytest.mark.parametrize("bits", ["4bit", "8bit"]),
]


def make_trainer(model: Path, bits: str, task: str = "demo") -> Trainer:
    for name, count in (("train", 12), ("dev", 4)):
        with Path(f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for i in range(count):
                turns = [("user", f"What follows {i}?"), ("assistant", f"{i + 1} follows {i}.")]
                row = {"conversations": [{"role": r, "content": c} for r, c in turns]}
                file.write(json.dumps(row) + "\n")
    return Trainer(
        from_pretrained=model,
        data_path={"train": "train.jsonl", "dev": "dev.jsonl"},
        max_length=128,
        batch_size=4,
        lora_r=4,
        quantization=bits,
        device="cpu",
        task_name=task,
    )


def adapter(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


def frozen(trainer: Trainer) -> dict[str, torch.Tensor]:
    """As bytes: packed weights are no numbers, and may look like NaN."""
    weights = {n: p for n, p in trainer.model.named_parameters() if not p.requires_grad}
    return {n: p.detach().clone().view(torch.uint8) for n, p in weights.items()}


def test_the_loss_falls_the_adapter_moves_and_the_quantised_base_stays(tiny_model_path, bits):
    trainer = make_trainer(tiny_model_path, bits)
    base, start = frozen(trainer), adapter(trainer)
    first, *_, last = list(trainer(num_epochs=4, lr=1e-2, save_strategy="no", report_to="none"))
    assert last.train["loss"] < first.train["loss"] - 0.2
    assert last.eval["loss"] < first.eval["loss"]
    assert all(not torch.equal(weight, start[name]) for name, weight in adapter(trainer).items())
    assert all(torch.equal(weight, base[name]) for name, weight in frozen(trainer).items())


def test_a_resumed_run_ends_bit_equal_to_one_that_was_not_interrupted(tiny_model_path, bits):
    options = {"num_epochs": 3, "lr": 1e-2, "report_to": "none"}
    whole = make_trainer(tiny_model_path, bits, "whole")
    list(whole(**options))
    for _ in make_trainer(tiny_model_path, bits, "cut")(**options):
        break
    resumed = make_trainer(tiny_model_path, bits, "cut")
    results = list(resumed(**options, resume_from_checkpoint="auto"))
    assert [result.epoch for result in results] == [2, 3]
    expected = adapter(whole)
    assert all(torch.equal(weight, expected[name]) for name, weight in adapter(resumed).items())


def test_the_merged_folder_is_the_model_that_was_trained(tiny_model_path, bits, tmp_path):
    trainer = make_trainer(tiny_model_path, bits)
    *_, result = trainer(num_epochs=2, lr=1e-2, report_to="none")
    merge_model(tiny_model_path, result.checkpoint, tmp_path / "merged", quantization=bits)
    ids = torch.arange(1, 33).reshape(2, 16)
    trainer.policy.train()  # 8-bit matrix products round activations in eval mode
    with torch.no_grad():
        expected = trainer.policy(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits
    torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-5)
