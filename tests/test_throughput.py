"""What a run records of the machine: FLOPs against torch's own count, the limit, memory."""

import csv
import io
import sys
from pathlib import Path

import four_trainers
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from main.models.work import matrices_of
from main.trainer.loop.records import Means, Progress
from main.trainer.loop.task import Run
from main.trainer.loop.throughput import MEASURED, limit_of, peak_memory

pytestmark = pytest.mark.usefixtures("own_folder")
CPU = torch.device("cpu")


@pytest.mark.parametrize("method", ["lora", "dpo"])
@pytest.mark.parametrize("backward", [False, True])
def test_the_flops_of_a_pass_are_those_of_its_products(tiny_model_path, method, backward):
    four_trainers.write_data(Path())
    trainer = four_trainers.make_trainer(method, tiny_model_path)
    task = trainer.task(report_to="none")
    task.open(Run(task.model, CPU))
    batch = task.collate([task.train_data[i] for i in range(5)])
    trainer.model.work.flops = 0.0
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        loss = task.loss(batch.tensors, batch.counts).loss
        if backward:
            loss.backward()
    counted = counter.get_flop_counts()["Global"].items()
    products = sum(flops for name, flops in counted if "mm" in str(name))
    # torch does not see what is added in place: LoRA's second matrix.
    assert products == pytest.approx(trainer.model.work.flops, rel=0.02)


def test_of_a_mixture_a_token_meets_the_chosen_experts():
    config = Qwen3MoeConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=64, moe_intermediate_size=16, num_experts=8,
        num_experts_per_tok=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).requires_grad_(False)
    attention = 32 * 32 + 2 * 16 * 32 + 32 * 32  # q; k and v; o
    experts = 2 * (2 * 16 * 32 + 32 * 16)  # gate, up and down of two
    found = matrices_of(model)
    assert found.frozen == 2 * (attention + experts + 8 * 32)  # a router each
    assert (found.head, found.trained, found.head_trained) == (64 * 32, 0, False)


@pytest.mark.parametrize("method", ["lora", "grpo", "ppo", "dpo"])
def test_every_record_says_how_fast_and_how_near_to_the_limit(tiny_model_path, method):
    four_trainers.write_data(Path())
    trainer = four_trainers.make_trainer(method, tiny_model_path)
    results = list(four_trainers.run(trainer, method, num_epochs=1))
    with Path(f"data_record/{trainer.setup.task_name}/train.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row in [results[-1].train, *rows]:
        tokens, tflops, share, peak = (float(row[name]) for name in MEASURED)
        assert tokens > 0 and tflops > 0 and 0 < share < 1.5 and 0.05 < peak < 100
    limit = limit_of(trainer.model.work.matrices.largest, torch.float32, CPU)
    assert tflops == pytest.approx(share * limit / 1e12, rel=1e-6)


def test_the_limit_is_measured_without_a_random_number_and_in_a_moment():
    before = torch.random.get_rng_state()
    limit = limit_of((96, 64), torch.float32, CPU)
    assert 1e8 < limit < 1e15 and limit == limit_of((96, 64), torch.float32, CPU)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_peak_of_memory_grows_with_what_is_held():
    before = peak_memory(CPU)
    held = torch.ones(int((before + 0.25) * 2**30) // 4)
    assert peak_memory(CPU) >= before + 0.2 and held.sum() > 0


def test_the_bar_says_the_share_of_the_limit(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    bar = Progress(10, 0, True)
    bar.show(
        1, 1, Means({"loss": (4.0, 2), "tokens_per_second": (30, 1), "share_of_limit": (1, 2)})
    )
    bar.close()
    assert "loss 2  tok/s 30  of limit 50%" in screen.getvalue()
