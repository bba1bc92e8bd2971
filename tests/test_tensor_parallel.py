"""`tensor_model_parallel_size` of the DeepSpeed file does what it says, or is refused."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import four_trainers
import parallel_runs
import pytest
import torch
from launchers import ROOT, launch
from peft import PeftModel
from safetensors.torch import load_file
from split_models import CONFIGS, SIZES
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, MixtralConfig

from main.errors import ConfigError
from main.models import LoraOptions, add_adapter
from main.trainer.arguments import LoopOptions, SetupOptions
from main.trainer.loop import launch as launching
from main.trainer.online import base as generating
from main.trainer.placement import ds_config, layout, tensor_parallel

SHIPPED = json.loads((ROOT / "ds_config.json").read_text(encoding="utf-8"))


def family(name: str, **changes: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(CONFIGS[name](**(SIZES | changes)))


def test_the_plan_of_each_family_is_taken():
    assert not tensor_parallel.problems(family("llama"), 2)
    assert not tensor_parallel.problems(family("qwen3"), 2)
    assert not tensor_parallel.problems(family("glm"), 2)


def test_a_size_that_does_not_divide_the_heads_is_refused():
    (problem,) = tensor_parallel.problems(family("llama"), 4)
    assert problem.startswith("tensor_model_parallel_size=4 does not divide")
    assert "num_key_value_heads=2. Use a size" in problem
    assert "num_attention_heads=4, num_key_value_heads=2, intermediate_size=48" in problem


def test_a_model_without_a_plan_or_with_experts_is_refused():
    with torch.device("meta"):
        bare = GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=32, n_layer=1, n_head=4))
        experts = AutoModelForCausalLM.from_config(MixtralConfig(**SIZES))
    (problem,) = tensor_parallel.problems(bare, 2)
    assert "no plan to split a GPT2LMHeadModel" in problem and "ZeRO stage 3" in problem
    (problem,) = tensor_parallel.problems(experts, 2)
    assert "which adapters cannot follow" in problem


@pytest.mark.parametrize("change", [{"use_dora": True}, {"modules_to_save": ["q_proj"]}])
def test_an_adapter_that_needs_whole_matrices_is_refused(change):
    options = LoraOptions(**({"lora_r": 2, "target_modules": ["q_proj", "o_proj"]} | change))
    if "modules_to_save" in change:
        options.target_modules = ["o_proj"]
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"](**SIZES))
    causal_lm = add_adapter(model, options).get_base_model()
    (problem,) = tensor_parallel.problems(causal_lm, 2)
    assert "'model.layers.0.self_attn.q_proj' is trained whole" in problem and "DoRA" in problem


def asked(monkeypatch: pytest.MonkeyPatch, folder: Path, processes: int, **changes: Any) -> None:
    """The environment of a launch by accelerate with a DeepSpeed file."""
    (folder / "ds.json").write_text(json.dumps(SHIPPED | changes))
    for name, value in {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(folder / "ds.json"),
        "RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
        "WORLD_SIZE": str(processes),
    }.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("processes", "size", "message"),
    [
        (2, "two", "'two' must be a whole number from 1"),
        (2, 0, "0 must be a whole number from 1"),
        (3, 2, "does not divide this run's number of processes, 3. Launch a multiple of 2"),
    ],
)
def test_a_size_that_cannot_be_laid_over_the_processes_is_refused(
    processes, size, message, tmp_path, monkeypatch
):
    asked(monkeypatch, tmp_path, processes, tensor_model_parallel_size=size)
    (problem,) = ds_config.check()
    assert message in problem


def test_what_splitting_excludes_is_refused_in_the_constructor():
    setup = SetupOptions(from_pretrained="m", data_path="d", quantization="4bit")
    (problem,) = layout.problems(setup, layout.Layout(tensor=2))
    assert "quantization='4bit' does not go with tensor parallelism" in problem
    assert not layout.problems(setup, layout.Layout(full=True))
    assert not layout.problems(setup, layout.Layout())


def test_fp16_is_refused_whether_file_or_trainer_asks_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "_current", layout.Layout(tensor=2))
    monkeypatch.setattr(launching, "this_copy", lambda: SimpleNamespace(size=1))
    task: Any = SimpleNamespace(batch_size=4)
    for enabled, given in ((True, False), ("auto", True)):
        asked(monkeypatch, tmp_path, 2, tensor_model_parallel_size=2, fp16={"enabled": enabled})
        with pytest.raises(ConfigError, match=r"fp16 does not go with tensor parallelism.*bf16"):
            launching._agree_on_layout(LoopOptions(fp16=given), task)


def test_vllm_is_refused_where_the_policy_lies_in_parts(tiny_model_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    four_trainers.write_data(tmp_path)
    trainer = four_trainers.make_trainer("grpo", tiny_model_path)
    monkeypatch.setattr(generating, "is_shared_out", lambda model: model is trainer.model)
    with pytest.raises(ConfigError, match=r"use_vllm=True needs a whole copy.*use_vllm=False"):
        next(four_trainers.run(trainer, "grpo", use_vllm=True))


@pytest.mark.distributed
def test_loss_and_gradients_of_split_models_are_those_of_whole_ones():
    """Untied and tied vocabularies, norms of heads (Qwen3), fused and biased layers (GLM)."""
    cases: list[tuple[dict[str, Any], float]] = [
        ({"tensor": 2}, 0.56),
        ({"tensor": 2, "tied": True, "checkpointing": True}, 0.51),
        ({"tensor": 2, "family": "qwen3"}, 0.56),
        ({"tensor": 2, "family": "glm"}, 0.8),
        ({"tensor": 2, "adapter": {"modules_to_save": ["lm_head"]}}, 0.61),
    ]
    for (case, here), found in zip(
        cases, parallel_runs.parts(2, *(c for c, _ in cases)), strict=True
    ):
        parallel_runs.check_parts(found, here, case)
    cases = [({"tensor": 2, "full": True, "tied": tied}, 0.28) for tied in (True, False)]
    cases.append(({"tensor": 2}, 0.56))
    for (case, here), found in zip(
        cases, parallel_runs.parts(4, *(c for c, _ in cases)), strict=True
    ):
        parallel_runs.check_parts(found, here, case)


@pytest.mark.long
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("processes", "stage", "methods"),
    [(2, 3, ["lora", "dpo", "ppo", "grpo"]), (4, 3, ["dpo"])],
)
def test_a_split_model_trains_as_one_process_does_and_resumes_exactly(
    tiny_model_path, tmp_path, monkeypatch, processes, stage, methods
):
    monkeypatch.chdir(tmp_path)
    four_trainers.write_data(tmp_path)
    expected = parallel_runs.one_process(tiny_model_path, methods)
    zero = SHIPPED["zero_optimization"] | {"stage": stage}
    config = SHIPPED | {"zero_optimization": zero, "tensor_model_parallel_size": 2}
    Path("ds_config.json").write_text(json.dumps(config))
    copies = processes // 2
    runs = parallel_runs.runs(tiny_model_path, copies, expected)
    with monkeypatch.context() as launched:
        launched.setenv("ACCELERATE_USE_DEEPSPEED", "true")
        launched.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", "./ds_config.json")
        done = launch(parallel_runs.SCRIPT, *runs, by="torchrun", processes=processes)
    parallel_runs.check(done, expected)
    assert done.stderr.count("neighbouring processes, ") == 1  # said once, by one process
    shared = "FSDP2 shares the frozen weights out over the copies" in done.stderr
    assert shared == (stage == 3 and copies > 1)
    _draws_alike_in_a_copy(parallel_runs.of("two", expected[methods[0]][-1]), processes)
    if processes == 2:
        last = expected["lora"][-1]
        _opens_in_peft(tiny_model_path, parallel_runs.of("two", last))
        _goes_on_whole(tiny_model_path, expected["lora"])


def _draws_alike_in_a_copy(checkpoint: Path, processes: int) -> None:
    """Dropout of the same rows is the same; another copy has other rows."""
    states = [
        torch.load(checkpoint / "trainer_state" / f"rng_{rank}.pt")["torch"]
        for rank in range(processes)
    ]
    for one, two in zip(states[::2], states[1::2], strict=True):
        assert torch.equal(one, two)
    assert len({state.numpy().tobytes() for state in states}) == processes // 2


def _opens_in_peft(base: Path, adapter: Path) -> None:
    """Every tensor of the file has its place, and changes what the model says."""
    model = AutoModelForCausalLM.from_pretrained(base)
    ids = torch.arange(12)[None]
    before = model(ids).logits
    after = PeftModel.from_pretrained(model, adapter)(ids).logits
    assert (after - before).abs().max() > 1e-3


def _goes_on_whole(base: Path, expected: list[Any]) -> None:
    """One process takes the split run's first checkpoint, optimizer and all, to the same end."""
    trainer = four_trainers.make_trainer("lora", base, batch_size=8, output_dir="whole")
    first = parallel_runs.of("two", expected[0])
    (last,) = four_trainers.run(trainer, "lora", resume_from_checkpoint=first)
    then, now = (
        load_file(Path(result.checkpoint) / "adapter_model.safetensors")
        for result in (expected[-1], last)
    )
    for name, tensor in then.items():
        torch.testing.assert_close(now[name], tensor, rtol=1e-4, atol=2e-6, msg=name)
