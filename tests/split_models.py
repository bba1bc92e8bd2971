"""Small models laid over the processes of a launcher against the whole model; under torchrun:

    split_models.py '{"family": "llama", "tensor": 2, "full": false, ...}' ...

The first process prints a line for each: the differences of loss, adapter gradients and logits
while weights are at hand, the share of the frozen weights that lies here, and whether the adapters
are alike on all processes.
"""

import copy
import json
import sys
import tempfile
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from gradients import gradient
from transformers import AutoModelForCausalLM, GlmConfig, LlamaConfig, Qwen3Config

from main.models import LoraOptions, add_adapter, load_model
from main.system.processes import gather_objects, join
from main.trainer.placement.layout import Layout
from main.trainer.placement.sharded import Sharded
from main.trainer.placement.tensor_parallel import local_part
from main.trainer.policy.logprobs import LogprobModel, scoring

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
CONFIGS = {"llama": LlamaConfig, "qwen3": Qwen3Config, "glm": GlmConfig}


def small(family: str, tied: bool, quantization: Any, adapter: dict[str, Any]) -> LogprobModel:
    """The same on every process, with an adapter that is not zero."""
    torch.manual_seed(0)
    config = CONFIGS[family](**SIZES, tie_word_embeddings=tied)
    base = AutoModelForCausalLM.from_config(config)
    if quantization:
        folder = gather_objects(tempfile.mkdtemp())[0]
        base.save_pretrained(folder)  # by the first process
        gather_objects("saved")
        base = load_model(folder, quantization=quantization, device="cpu")
    model = add_adapter(base, LoraOptions(**adapter))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return LogprobModel(model).train()


def loss_of(model: Any, size: int, seed: int) -> torch.Tensor:
    """A mean over rows of `size` copies, of which this is one's part."""
    torch.manual_seed(seed)
    ids = torch.randint(0, 60, (4, 12))
    mask = torch.rand(4, 12) < 0.6
    mask[:, 0] = False
    return -model(ids, mask).logprobs.sum() * size / 100


def difference_at_hand(placement: Any, whole: Any, passes: int) -> float:
    """Of the policy's logits, where copies make unequal numbers of passes, as in drawing."""
    ids = torch.arange(1, 13)[None]
    with placement.at_hand(), scoring(placement.model):
        for _ in range(passes):
            found = placement.model.model(input_ids=ids).logits
    with scoring(whole):
        return float((whole.model(input_ids=ids).logits - found).abs().max())


def compare(
    family: str = "llama",
    tied: bool = False,
    checkpointing: bool = False,
    quantization: str | None = None,
    adapter: dict[str, Any] | None = None,
    **layout: Any,
) -> dict[str, Any]:
    plan = Layout(**layout)
    whole = small(family, tied, quantization, {"lora_r": 4} | (adapter or {}))
    model = copy.deepcopy(whole)
    if checkpointing:
        model.causal_lm().gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    placement = Sharded(Accelerator(cpu=True), model, optimizer, plan)
    world, copies = dist.get_world_size(), dist.get_world_size() // plan.tensor
    expected = torch.stack([loss_of(whole, 1, seed) for seed in range(copies)]).sum()
    expected.backward()
    rank = dist.get_rank() // plan.tensor
    drawn = difference_at_hand(placement, whole, passes=1 + 2 * rank)
    loss = loss_of(placement.model, copies, rank)
    placement.backward(loss, last=True)
    placement.meet()
    trained = {name: p for name, p in whole.named_parameters() if p.requires_grad}
    norm = float(torch.stack([gradient(p).norm() for p in trained.values()]).norm())
    mine = placement.clip(float("inf"))
    mean = sum(gather_objects(loss.item())) / world
    for parameter in placement.by_name().values():  # as if they were weights
        parameter.data.copy_(gradient(parameter))
    with placement.whole():
        gradients = {name: p.detach().clone() for name, p in placement.by_name().items()}
    right = {name: gradient(p) for name, p in trained.items()}
    assert set(right) == set(gradients)
    frozen = [p for p in placement.model.parameters() if not p.requires_grad]
    return {
        "drawn": max(gather_objects(drawn)),
        "loss": abs(mean - expected.item()),
        "gradient": max(float((right[n] - gradients[n]).abs().max()) for n in right),
        "largest": max(float(g.abs().max()) for g in right.values()),
        "norm": abs(norm - mine),
        "here": sum(local_part(p).numel() for p in frozen) / sum(p.numel() for p in frozen),
        "alike": all(
            torch.equal(g, other[n])
            for other in gather_objects(gradients)
            for n, g in gradients.items()
        ),
    }


def main() -> None:
    join()
    for argument in sys.argv[1:]:
        found = compare(**json.loads(argument))
        if dist.get_rank() == 0:
            print(f"FOUND {json.dumps(found)}", flush=True)


if __name__ == "__main__":
    main()
