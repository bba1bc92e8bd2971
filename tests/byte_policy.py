"""A policy of bytes that learns in seconds, to try every change to reinforcement learning on.

A random Llama of two layers and 64 dimensions over the 256 bytes and three special tokens; 32
prompts, a completion of 16 tokens each. The reward is the share of tokens whose id is a multiple of
4: by chance 0.25.
"""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<s>", "</s>")
TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m['role'] + '\n' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
RUN: dict[str, Any] = {
    "lr": 1e-3,
    "lr_scheduler_type": "constant",
    "warmup_ratio": 0.0,
    "max_completion_length": 16,
    "report_to": "none",
    "save_strategy": "no",
    "eval_strategy": "no",
    "logging_strategy": "no",
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: number for number, symbol in enumerate([*alphabet, *SPECIAL])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    pad, bos, eos = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        chat_template=TEMPLATE,
        model_max_length=128,
    )


def save_byte_policy(folder: Path, seed: int = 0) -> Path:
    """Matrices of standard deviation 0.1, output layer 0.15, embeddings 0.02."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=128,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            embedding = "embed_tokens" in name
            torch.nn.init.normal_(parameter, std=0.02 if embedding else 0.1)
    torch.nn.init.normal_(model.lm_head.weight, std=0.15)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def multiples_of_four(completion_ids: list, **columns: Any) -> list[float]:
    return [sum(token % 4 == 0 for token in ids) / len(ids) for ids in completion_ids]


def write_prompts(path: Path, fields: dict[str, Any], count: int = 32) -> Path:
    """`fields`: what a row has beside its prompt, e.g. the answers of PPO."""
    name = "conversations" if fields else "prompt"
    rows = [{name: [{"role": "user", "content": f"{n:02d}"}], **fields} for n in range(count)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def train_grpo(model: Path, reward: Any, draws: int, seed: int = 7, **options: Any) -> list[dict]:
    """The records of each draw of 4 groups of 8, with default arguments but for `RUN`."""
    from main.trainer.grpo import Trainer

    trainer = Trainer(
        from_pretrained=model,
        data_path={"train": write_prompts(Path("bytes.jsonl"), {}, 4)},
        batch_size=32,
        lora_r=8,
        max_length=64,
        seed=seed,
        task_name="bytes",
    )
    run = trainer(**RUN | {"reward_func": reward, "num_epochs": draws} | options)
    return [result.train for result in run]


def train_ppo(model: Path, reward: Any, draws: int, seed: int = 7, **options: Any) -> list[dict]:
    """The records of each draw, with default arguments but for `RUN` and no divergence."""
    from main.trainer.ppo import Trainer

    answers = {"gold_answers": "a", "bad_answers": "b"}
    trainer = Trainer(
        from_pretrained=model,
        data_path={"train": write_prompts(Path("bytes.jsonl"), answers)},
        batch_size=32,
        lora_r=8,
        max_length=64,
        seed=seed,
        task_name="bytes",
    )
    # alpha = beta = 0.5 halve the rate
    given = {"reward_func": reward, "num_epochs": draws, "kl_coef": 0.0, "lr": 2 * RUN["lr"]}
    run = trainer(**RUN | given | options)
    return [result.train for result in run]
