"""GRPO runs that are interrupted, shared between processes, or cut into other micro-batches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launchers import free_port, kill_at
from peft import PeftModel
from tiny_grpo import adapter, distance, early_tokens, make_trainer, run
from transformers import AutoModelForCausalLM

from main.trainer.loop.task import Row
from main.trainer.loop.throughput import MEASURED

pytestmark = pytest.mark.usefixtures("own_folder")
ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from tiny_grpo import make_trainer, run
setup, options = json.loads(sys.argv[1])
for result in run(make_trainer(Path(setup.pop("model")), **setup), **options):
    sys.stdout.write("RESULT " + json.dumps([result.train, result.eval, result.step]) + "\\n")
"""


def command(model: Path, setup: dict, options: dict) -> list[str]:
    Path("script.py").write_text(SCRIPT, encoding="utf-8")
    arguments = json.dumps([{"model": str(model), **setup}, options])
    return ["script.py", arguments, str(ROOT / "tests")]


ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.long
def test_a_killed_run_resumes_bit_equal(tiny_model_path):
    """kill -9 in the middle of a run in another process, then resume in this one."""
    options = {
        "num_epochs": 3,
        "num_iterations": 2,
        "beta": 0.1,
        "save_strategy": "steps",
        "save_steps": 2,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 4,
    }
    whole = make_trainer(tiny_model_path, rows=6, output_dir="whole")
    results = list(run(whole, **options))
    arguments = command(tiny_model_path, {"rows": 6}, options)
    kill_at("save_model/demo/Llama_8", [sys.executable, *arguments], ENVIRONMENT)
    resumed = make_trainer(tiny_model_path, rows=6)
    again = list(run(resumed, resume_from_checkpoint="auto", **options))
    assert distance(adapter(whole), adapter(resumed)) == 0
    assert again[-1].train["reward/mean"] == results[-1].train["reward/mean"]
    for epoch in (2, 3):
        texts = [Path(f"{top}data_record/demo/samples_{epoch}.md") for top in ("", "whole/")]
        assert texts[0].read_text("utf-8") == texts[1].read_text("utf-8")


def test_a_reference_that_follows_the_policy_is_resumed_as_it_was(tiny_model_path):
    options = {"beta": 0.5, "sync_ref_model": True, "ref_model_sync_steps": 1, "num_epochs": 2,
               "save_strategy": "epoch"}  # fmt: skip
    whole = make_trainer(tiny_model_path, output_dir="whole")
    list(run(whole, **options))
    for _ in run(make_trainer(tiny_model_path), **options):
        break
    resumed = make_trainer(tiny_model_path)
    list(run(resumed, resume_from_checkpoint="auto", **options))
    assert distance(adapter(whole), adapter(resumed)) == 0


def two_processes(arguments: list[str]) -> list[str]:
    """What two ranks print, started as a launcher starts them."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
              "LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**ENVIRONMENT, **shared, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=400) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [p.returncode for p in processes] == [0, 0], [error[-2000:] for _, error in outputs]
    return [text for text, _ in outputs]


@pytest.mark.distributed
def test_two_processes_draw_and_learn_what_one_does(tiny_model_path):
    """Groups of 4 on micro-batches of 3: the groups are split between the processes."""
    options = {"num_epochs": 2, "lr": 1e-3, "eval_strategy": "epoch", "save_strategy": "epoch",
               "per_device_train_batch_size": 12, "beta": 0.1, "num_iterations": 2,
               "dynamic_sampling": 1}  # fmt: skip
    one = make_trainer(tiny_model_path, rows=7, output_dir="one")
    expected = list(run(one, **options))
    options |= {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}
    setup = {"rows": 7, "output_dir": "two", "batch_size_eval": 2}
    texts = two_processes(command(tiny_model_path, setup, options))
    lines = [line for text in texts for line in text.splitlines() if line.startswith("RESULT")]
    assert len(lines) == 4
    for line in lines:
        train, evaluation, step = json.loads(line.removeprefix("RESULT "))
        same = expected[0] if step == expected[0].step else expected[1]
        for found, wanted in ((train, same.train), (evaluation, same.eval)):
            assert set(found) == set(wanted)
            for name in set(found) - {*MEASURED, "sampling_mismatch"}:
                assert found[name] == pytest.approx(wanted[name], rel=1e-3, abs=1e-5), name
    folder = f"two/save_model/demo/Llama_{expected[-1].step}"
    two = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_path), folder)
    ours = dict(one.policy.named_parameters())
    for name, parameter in two.named_parameters():
        if "lora_" in name:
            torch.testing.assert_close(parameter, ours[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    "changes",
    [
        *({"loss_type": name} for name in ("dapo", "grpo", "dr_grpo", "gspo")),
        {"entropy_coef": 0.3, "top_entropy_quantile": 0.4, "off_policy_mask_threshold": 0.01},
    ],
    ids=str,
)
def test_the_cut_into_micro_batches_changes_no_gradient(tiny_model_path, changes):
    adapters = []
    for size, accumulation in ((8, 1), (3, 4)):
        trainer = make_trainer(tiny_model_path, rows=3 if size == 3 else 2)
        # 2 rows of 4 completions: all in one micro-batch, or in pieces that split the groups
        data = [trainer.train_data[i] for i in range(2)]
        trainer.train_data = InMemory(data)
        options = {"num_epochs": 1, "per_device_train_batch_size": size, **changes}
        list(run(trainer, gradient_accumulation_steps=accumulation, beta=0.1, **options))
        adapters.append(adapter(trainer))
    assert distance(*adapters) < 1e-4


class InMemory(list[Row]):
    @property
    def lengths(self) -> list[int]:
        return [row["length"] for row in self]


def test_the_guides_snippet_runs_as_written_but_for_vllm(tiny_model_path):
    import transformers

    trainer = make_trainer(
        tiny_model_path, rows=4, task_name="resume_1000_grpo_new_5",
        tokenizer=transformers.AutoTokenizer.from_pretrained(tiny_model_path),
        config=transformers.AutoConfig.from_pretrained(tiny_model_path),
    )  # fmt: skip
    for i in trainer(reward_func=[early_tokens], lr=5e-6, weight_decay=0.1, warmup_ratio=0.2,
                     logging_steps=20, gradient_accumulation_steps=2, max_completion_length=5,
                     per_device_train_batch_size=8, num_generations=4, num_train_epochs=1,
                     fp16=True, use_vllm=False, save_strategy="epoch", eval_strategy="epoch",
                     logging_strategy="epoch", report_to=["tensorboard"]):  # fmt: skip
        assert i.checkpoint and i.checkpoint.is_dir() and "reward/mean" in i.eval
