"""What a run will need: trials of few layers, drawn out to all of them."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from main.errors import ConfigError, TrainingError
from main.utils.plan import FEW, MORE, Plan, PlanOptions, extended, plan, specification
from main.utils.trial import Trial, depth, shallow

pytestmark = pytest.mark.usefixtures("own_folder")
LAYERS = 12


@pytest.fixture
def deep(small_model_path) -> Path:
    """Twelve layers of some weight, and few words."""
    tokenizer = AutoTokenizer.from_pretrained(small_model_path)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=512, num_attention_heads=4,
        num_key_value_heads=2, num_hidden_layers=LAYERS, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained("deep")
    tokenizer.save_pretrained("deep")
    return Path("deep")


def test_every_further_layer_adds_what_the_second_two_did():
    few = Trial(process=1, base=2, adapter=0.1, passes=3, start=5, step=0.1)
    more = Trial(process=1, base=3, adapter=0.2, passes=5, start=5, step=0.2)
    found = extended([few, more], FEW + 4 * (MORE - FEW))
    assert found == Trial(1, 6, 0.5, 11, 5, 0.5)


def test_a_plan_reads_as_a_table():
    said = str(Plan(30, {"base weights": 0.5, "passes": 1.25}, 2.0, 0.5, 120.0))
    assert said.splitlines()[3].split() == ["peak", "1.75"]
    assert "an epoch" in said and max(map(len, said.splitlines())) < 80


def test_a_shallow_model_keeps_its_kinds_of_layers_in_step(deep):
    assert depth("deep") == LAYERS and shallow("deep", 2).num_hidden_layers == 2


@pytest.mark.slow
def test_weights_and_adapters_are_those_of_the_whole_model(deep):
    found = plan(deep, "lora", max_length=64, batch_size=2, lora_r=4, rows=10)
    whole = LlamaForCausalLM.from_pretrained(deep)
    base = sum(tensor.nbytes for tensor in [*whole.parameters(), *whole.buffers()])
    assert found.memory["base weights"] * 2**30 == pytest.approx(base, rel=1e-3)
    layer = (256 + 256) * 2 + (256 + 128) * 2 + (256 + 512) * 3  # q, o; k, v; gate, up, down
    adapter = 4 * layer * LAYERS * 4 * 4  # weights, gradients and two moments in float32
    assert found.memory["adapter, gradients, optimizer"] * 2**30 == pytest.approx(adapter, rel=1e-3)
    assert found.step > 0 and found.epoch == pytest.approx(5 * found.step)
    assert 0.2 < found.peak < 3


@pytest.mark.slow
def test_a_method_that_draws_is_tried_too(deep):
    found = plan(
        deep, "grpo", max_length=32, batch_size=4, num_generations=2, max_completion_length=4
    )
    assert found.step > 0 and found.epoch is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_sise": 3}, r"no argument 'batch_sise'. Did you mean 'batch_size'"),
        ({"length": 4}, "length=4 must be 8 or more"),
        ({"length": 16, "answer": 16}, "answer=16 must be less than the 16 tokens"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_what_the_trainer_would_refuse_is_refused_before_a_trial(deep, arguments, message):
    with pytest.raises(ConfigError, match=message):
        plan(deep, **arguments)


def test_a_trial_that_fails_says_why(deep):
    (deep / "model.safetensors").write_bytes(b"spoilt")
    with pytest.raises(TrainingError, match="2 layers failed: ModelError: model 'deep'"):
        plan(deep, max_length=64)


@pytest.mark.parametrize(
    ("method", "arguments", "steps"),
    [
        ("lora", {"batch_size": 4, "gradient_accumulation_steps": 2}, 3),  # ceil(20 / 8)
        ("grpo", {"per_device_train_batch_size": 32, "num_generations": 8}, 5),  # 4 prompts a step
        ("grpo", {"batch_size": 8, "num_generations": 8, "num_iterations": 2}, 40),
        ("ppo", {"batch_size": 4, "ppo_epochs": 3}, 15),
    ],
)
def test_an_epoch_has_the_steps_that_the_method_makes_of_its_rows(method, arguments, steps):
    _, pace = specification(PlanOptions("model", method), arguments)
    assert pace.steps_of(20) == steps
