"""A policy of bytes that calls a tool and answers with its result, made in seconds.

A Llama of two layers and 64 dimensions over the 256 bytes and Qwen's control tokens, with the chat
template of Qwen 2.5, which learnt one dialogue by heart.
"""

import json
from pathlib import Path
from typing import Any

import torch
from byte_policy import byte_tokenizer
from chat_templates import trl_template
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from main.dialogue.accounts import Dialogue
from main.dialogue.template import ChatTemplate
from main.dialogue.tools import tool_schemas

ORDERS = {"23": "lost", "17": "sent"}
LEARNT = "23"


def order_status(number: str) -> str:
    """Look up.

    Args:
        number: of the order
    """
    return ORDERS[number]


def question(number: str) -> list[dict[str, Any]]:
    return [{"role": "system", "content": "."}, {"role": "user", "content": f"{number}?"}]


def dialogue(number: str) -> list[dict[str, Any]]:
    """The whole of it, as an SFT row has it."""
    function = {"name": "order_status", "arguments": {"number": number}}
    call = {"id": "call00001", "type": "function", "function": function}
    result = {"role": "tool", "name": "order_status", "tool_call_id": "call00001"}
    return [
        *question(number),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {**result, "content": ORDERS[number]},
        {"role": "assistant", "content": f"It is {ORDERS[number]}."},
    ]


def tool_tokenizer(template: str = "qwen2_5") -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = trl_template(template)
    tokenizer.model_max_length = 2048
    return tokenizer


def encoded_row(tokenizer: Any) -> Any:
    """What SFT trains of the dialogue that is learnt."""
    return ChatTemplate(tokenizer).encode(Dialogue(dialogue(LEARNT), tool_schemas([order_status])))


def save_tool_policy(folder: Path, steps: int = 60) -> Path:
    tokenizer = tool_tokenizer()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,  # vLLM's CPU kernels take heads of 32
            num_key_value_heads=2,
            max_position_embeddings=2048,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    learn(model, encoded_row(tokenizer), steps)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def learn(model: Any, row: Any, steps: int) -> float:
    """By heart; the loss of the last step."""
    ids = torch.tensor([row.input_ids])
    labels = ids.where(torch.tensor([row.loss_mask]), -100)[:, 1:]
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return float(loss.detach())


def write_orders(path: Path, **fields: Any) -> Path:
    """GRPO's rows, or with `fields` of answers those of PPO."""
    name = "conversations" if fields else "prompt"
    rows = [{name: question(number), "answer": status, **fields}
            for number, status in ORDERS.items()]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path
