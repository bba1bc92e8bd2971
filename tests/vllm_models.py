"""Models that vLLM's CPU kernels can run (heads of 32), small enough to start fast."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from main.models import LoraOptions, add_adapter, load_model, save_adapter
from main.predictor.vllm_adapters import Adapters
from main.trainer.policy.logprobs import LogprobModel, scoring
from main.trainer.rollout.sampler import Completion

ENGINE: dict[str, Any] = {"enforce_eager": True, "kv_cache_memory_bytes": 2**28}


def save_tiny(
    folder: Path, vocabulary: int = 61, tokenizer: Any = None, context: int = 128
) -> Path:
    """A random Llama of two layers; a tokenizer decides the vocabulary."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) if tokenizer else vocabulary,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=context,
        bos_token_id=1,
        eos_token_id=4,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    if tokenizer:
        tokenizer.save_pretrained(folder)
    return folder


def make_adapter(model_path: Path, folder: Path, seed: int, **options) -> Path:
    """A random adapter, large enough to change every answer."""
    torch.manual_seed(seed)
    options = {"lora_r": 4, "lora_alpha": 8, "init_lora_weights": False} | options
    adapted = add_adapter(load_model(model_path, device="cpu"), LoraOptions(**options))
    save_adapter(adapted, folder)
    return folder


def policy_on(folder: Path, dropout: float = 0.5, seed: int = 0) -> Any:
    """A policy that differs from its base, with dropout that must not be active."""
    lora = LoraConfig(r=4, lora_alpha=16, lora_dropout=dropout, target_modules="all-linear")
    model = get_peft_model(LlamaForCausalLM.from_pretrained(folder), lora)
    scatter(model, seed)
    return model.train()


def scatter(model: Any, seed: int, std: float = 0.2) -> None:
    """Other random weights in the adapter's B: a large update."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=std, generator=generator)


def scored(
    policy: Any, prompt: list[int], completion: Completion, temperature: float = 1.0
) -> torch.Tensor:
    """(T,), what the trainer's own pass says of the completion's tokens."""
    ids = torch.tensor([prompt + completion.ids])
    mask = torch.arange(ids.shape[1])[None] >= len(prompt)
    with scoring(policy):
        return LogprobModel(policy)(ids, mask, temperature=temperature).logprobs


def adapters_of(engine: dict[str, Any]) -> Adapters:
    """The adapters of an engine with these arguments, which refuse one before it is asked."""
    unused: Any = None
    return Adapters(unused, unused, unused, engine, unused)
