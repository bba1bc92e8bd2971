"""The policy as one model: each adapted weight with its adapter in it, and nothing else."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaForCausalLM
from vllm_models import save_tiny, scatter

from main.errors import ModelError
from main.models import LoraOptions, add_adapter, load_model
from main.models.merging import is_a_change_of_weights, merged_weights
from main.trainer.rollout.merged import merged_size, save_merged


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("rslora", [False, True])
def test_merged_weights_are_those_of_peft_and_the_policy_stays_as_it_was(base, rslora):
    lora = LoraConfig(r=4, lora_alpha=16, use_rslora=rslora, target_modules=["q_proj", "up_proj"])
    policy = get_peft_model(LlamaForCausalLM.from_pretrained(base), lora)
    scatter(policy, 1)
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    ours = dict(merged_weights(policy))
    assert all(torch.equal(before[name], t) for name, t in policy.state_dict().items())
    merged = policy.merge_and_unload().state_dict()
    assert len(ours) == 4  # two kinds of layers in two blocks
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, merged[name], rtol=1e-6, atol=1e-7)


def test_the_checkpoint_holds_the_adapted_weights_alone(base, tmp_path):
    policy = add_adapter(LlamaForCausalLM.from_pretrained(base), LoraOptions(lora_r=4))
    scatter(policy, 1)
    save_merged(policy, tmp_path / "1")
    saved = load_file(tmp_path / "1" / "model.safetensors")
    assert len(saved) == 14  # seven layers in each of two blocks
    assert merged_size(policy) == sum(t.numel() * t.element_size() for t in saved.values())
    for name, tensor in merged_weights(policy):
        assert torch.equal(saved[name], tensor)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_only_plain_weights_of_their_own_is_a_change_of_weights(base):
    def llama():
        return LlamaForCausalLM.from_pretrained(base)

    def tied():
        model = llama()
        model.lm_head.weight = model.model.embed_tokens.weight
        model.config.tie_word_embeddings = True
        return model

    head = LoraOptions(target_modules=["q_proj", "lm_head"])
    assert is_a_change_of_weights(add_adapter(llama(), head))
    assert is_a_change_of_weights(add_adapter(tied(), LoraOptions()))
    assert not is_a_change_of_weights(add_adapter(tied(), head))
    biased = LoraConfig(r=2, lora_bias=True, target_modules=["q_proj"])
    with pytest.raises(ModelError, match="no change of its base's weights alone"):
        next(merged_weights(get_peft_model(llama(), biased)))
    packed = load_model(base, quantization="4bit", device="cpu")
    assert not is_a_change_of_weights(add_adapter(packed, LoraOptions()))
