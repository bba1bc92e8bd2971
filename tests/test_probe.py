"""Log-probabilities against the model's own logits: measured for any family, listed for none."""

import logging
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from main.errors import ModelError
from main.models import probe
from main.trainer.policy.logprobs import LogprobModel

TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
IDS = torch.arange(1, 21).reshape(2, 10)
MASK = torch.arange(10).expand(2, 10) > 3


@pytest.fixture(autouse=True)
def own_notes(monkeypatch, tmp_path):
    """What is found here is measured here."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)


class TunedConfig(LlamaConfig):
    model_type = "tuned-for-this-test"


class TunedForCausalLM(LlamaForCausalLM):
    """A family with a multiplier that no list can know."""

    config_class = TunedConfig

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 0.37 + 0.1 * output.logits.sin()
        return output


CONFIGS: dict[str, dict] = {
    "LlamaConfig": {},
    "Qwen2Config": {},
    "Qwen3Config": {},
    "Gemma2Config": {},
    "GraniteConfig": {"logits_scaling": 8.0},
    "CohereConfig": {},
    "Olmo2Config": {},
    "Phi3Config": {},
    "DeepseekV2Config": {"num_experts_per_tok": 6, "first_k_dense_replace": 1},
    "GPT2Config": {},
    "Qwen3MoeConfig": {},
    "GptOssConfig": {},
    "Glm4MoeConfig": {},
}


def big(name: str, options: dict) -> nn.Module:
    """A model of full size, without its weights."""
    config = getattr(transformers, name)(**options)
    with torch.device("meta"):
        kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        return kind._from_config(config)


@pytest.mark.parametrize("name", CONFIGS)
def test_usual_families_in_full_size_keep_the_fast_path(name):
    assert not LogprobModel(big(name, CONFIGS[name])).own_logits


def own_families() -> dict[str, Any]:
    torch.manual_seed(0)
    falcon = transformers.FalconH1Config(
        **(TINY | {"head_dim": 8}),
        mamba_d_ssm=32,
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_d_state=8,
        lm_head_multiplier=0.4,
    )
    recurrent = transformers.RecurrentGemmaConfig(
        **{**TINY, "num_hidden_layers": 3, "num_key_value_heads": 1}, lru_width=32
    )
    llama4 = transformers.Llama4TextConfig(
        **TINY, head_dim=8, num_local_experts=2, intermediate_size_mlp=48
    )
    return {
        "falcon_h1": transformers.FalconH1ForCausalLM(falcon),
        "recurrent_gemma": transformers.RecurrentGemmaForCausalLM(recurrent),
        "llama4": transformers.Llama4ForCausalLM(llama4),
        "made up": TunedForCausalLM(TunedConfig(**TINY)),
    }


@pytest.mark.parametrize("name", ["falcon_h1", "recurrent_gemma", "llama4", "made up"])
def test_a_family_with_logits_of_its_own_is_found_and_scored_by_them(name, caplog):
    model = own_families()[name].eval()
    head: Any = model.get_output_embeddings()
    head.weight.data *= 40  # so that a cap or a multiplier shows
    policy = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    for parameter in policy.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter.data, std=0.1)
    probe.forget()
    with caplog.at_level(logging.WARNING, logger="main"):
        scorer = LogprobModel(policy)
        LogprobModel(policy)
    assert caplog.text.count("computes its logits in a way of its own") == 1  # measured once
    ours = scorer(IDS, MASK, entropy=True, temperature=0.7)
    log_p = (policy(input_ids=IDS).logits[:, :-1].float() / 0.7).log_softmax(-1)
    expected = log_p.gather(-1, IDS[:, 1:, None])[..., 0][MASK[:, 1:]]
    torch.testing.assert_close(ours.logprobs, expected, rtol=1e-4, atol=1e-4)
    entropy = -(log_p.exp() * log_p).sum(-1)[MASK[:, 1:]]
    torch.testing.assert_close(ours.entropy, entropy, rtol=1e-4, atol=1e-4)
    assert ours.hidden.shape == (12, 32)
    weight = next(p for p in policy.parameters() if p.requires_grad)
    slopes = [torch.autograd.grad(f.sum(), weight)[0] for f in (ours.logprobs, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["Bert", "BertGeneration", "Electra"])
def test_a_model_that_looks_ahead_is_refused_and_as_a_decoder_taken(name):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 48, "vocab_size": 64}
    config = getattr(transformers, f"{name}Config")
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[config]
    with pytest.raises(ModelError, match=r"depends on later ones, or on padding"):
        LogprobModel(kind(config(**sizes)))
    LogprobModel(kind(config(**sizes, is_decoder=True)))


def test_measuring_draws_no_random_number_and_leaves_the_model_as_it_is():
    model = LlamaForCausalLM(LlamaConfig(**TINY)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = model.config.to_dict()
    state = torch.get_rng_state()
    probe.forget()
    LogprobModel(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert model.config.to_dict() == settings
    assert model.training


def test_a_model_that_no_copy_can_stand_for_is_measured_itself(monkeypatch):
    def fails(*_):
        raise ValueError("no copy")

    monkeypatch.setattr(probe, "_small_model", fails)
    probe.forget()
    try:
        torch.manual_seed(0)
        plain, tuned = (
            LlamaForCausalLM(LlamaConfig(**TINY)),
            TunedForCausalLM(TunedConfig(**TINY)),
        )
        assert not LogprobModel(plain).own_logits
        assert LogprobModel(tuned).own_logits
    finally:
        probe.forget()


def test_what_was_found_is_kept_for_later_processes_of_the_same_libraries(monkeypatch, tmp_path):
    model = LlamaForCausalLM(LlamaConfig(**TINY))
    measured = []
    ask = probe._ask
    monkeypatch.setattr(probe, "_ask", lambda *a: measured.append(1) or ask(*a))

    def as_another_process(config: LlamaConfig | None = None):
        probe.forget()
        return LogprobModel(model if config is None else LlamaForCausalLM(config)).own_logits

    assert [as_another_process() for _ in range(3)] == [False] * 3 and len(measured) == 1
    (note,) = tmp_path.rglob("probes/*.json")
    note.write_text('{"answer": "its own"}')
    assert as_another_process() and len(measured) == 1
    note.write_text("tr")  # damaged: measured again
    assert not as_another_process() and len(measured) == 2
    as_another_process(LlamaConfig(**TINY | {"rope_theta": 5e5}))
    monkeypatch.setattr(probe.transformers, "__version__", "another")
    as_another_process()
    assert len(measured) == 4

    made_up = TunedForCausalLM(TunedConfig(**TINY))  # code that is nobody's release
    for count in (5, 6):
        probe.forget()
        assert LogprobModel(made_up).own_logits and len(measured) == count


def test_a_disk_that_refuses_the_note_costs_nothing(monkeypatch, tmp_path):
    (tmp_path / "main").write_text("a file where the folder should be")
    probe.forget()
    assert not LogprobModel(LlamaForCausalLM(LlamaConfig(**TINY))).own_logits


def test_what_no_copy_has_answered_is_asked_again_by_the_next_process(monkeypatch, tmp_path):
    def full(*_):
        raise MemoryError("too large")

    model = LlamaForCausalLM(LlamaConfig(**TINY))
    with monkeypatch.context() as patch:
        patch.setattr(probe, "_small_model", full)
        probe.forget()
        assert not LogprobModel(model).own_logits
    assert not list(tmp_path.rglob("probes/*.json"))
    probe.forget()
    LogprobModel(model)
    assert len(list(tmp_path.rglob("probes/*.json"))) == 1
