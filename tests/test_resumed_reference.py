"""The reference of a resumed run is the first run's, whatever the trainer is started from."""

from pathlib import Path

import four_trainers
import pytest
import torch

from main.trainer.loop.throughput import MEASURED

pytestmark = pytest.mark.usefixtures("own_folder")
WITH_REFERENCE = ("dpo", "grpo", "ppo")


def adapter(trainer) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


def two_epochs(method: str, model: Path, start: Path | None, folder: str, **options):
    trainer = four_trainers.make_trainer(
        method, model, resume_path=start, output_dir=folder, batch_size=8, max_length=64
    )
    options = {"eval_strategy": "no", "save_strategy": "epoch", "num_epochs": 2, **options}
    return trainer, four_trainers.run(trainer, method, **options)


@pytest.fixture
def other_start(own_folder, tiny_model_path) -> Path:
    """An adapter that is far from the base."""
    four_trainers.write_data(own_folder, 4, 2)
    trainer = four_trainers.make_trainer("lora", tiny_model_path, output_dir="sft", batch_size=4)
    result = list(four_trainers.run(trainer, "lora", num_epochs=3, lr=5e-2))[-1]
    return Path(result.checkpoint)


@pytest.mark.parametrize("first_from_adapter", [True, pytest.param(False, marks=pytest.mark.long)])
@pytest.mark.parametrize("method", WITH_REFERENCE)
def test_a_run_goes_on_bit_equal_with_another_resume_path_or_none(
    tiny_model_path, other_start, method, first_from_adapter
):
    first, then = (other_start, None) if first_from_adapter else (None, other_start)
    whole, generator = two_epochs(method, tiny_model_path, first, "whole")
    expected = list(generator)[-1]
    _, generator = two_epochs(method, tiny_model_path, first, "part")
    next(generator)
    generator.close()
    resumed, generator = two_epochs(
        method, tiny_model_path, then, "part", resume_from_checkpoint="auto"
    )
    (found,) = generator
    same = set(expected.train) - set(MEASURED)
    assert {n: found.train[n] for n in same} == {n: expected.train[n] for n in same}
    for name, value in adapter(whole).items():
        assert torch.equal(value, adapter(resumed)[name]), name
