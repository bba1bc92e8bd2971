"""A real small model learns from the rewards of its own completions, on the shipped data."""

import json
from pathlib import Path

import pytest

from main.trainer.grpo import Trainer
from main.utils.reward_func import reward_len

DATA = Path(__file__).resolve().parent.parent / "data" / "ticket_en_grpo_train.jsonl"


@pytest.mark.slow
def test_the_reward_of_a_real_model_rises_on_the_shipped_data(small_model_path, tmp_path):
    rows = [json.loads(line) for line in DATA.read_text("utf-8").splitlines()]
    short = [row for row in rows if len(row["prompt"]) == 1][:12]
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in short), "utf-8")
    trainer = Trainer(
        from_pretrained=small_model_path,
        data_path=path,
        max_length=256,
        output_dir=tmp_path,
    )
    results = trainer(
        reward_func=reward_len,
        num_generations=8,
        per_device_train_batch_size=24,
        max_completion_length=10,
        num_epochs=2,
        lr=1e-3,
        lr_scheduler_type="constant",
        beta=0.01,
        report_to="none",
        save_strategy="no",
    )
    first, second = (result.train for result in results)
    assert second["reward/mean"] > first["reward/mean"] + 2, (first, second)
    assert 0 < second["kl"] < 5  # moved, and not away from all language
