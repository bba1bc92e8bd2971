"""What only a GPU can show, in one command: first whether it is right there, then how fast it is.

    python benchmarks/gpu.py [--only checks sft dpo grpo predict] [--out benchmarks/results]

Nothing is downloaded: random weights in the shapes of real models, a vocabulary learnt from the
shipped tickets, rows with the lengths of real chat data (quantiles of 700 Alpaca dialogues). Each
part runs in a process of its own, so that a failure or a peak of memory is its own; whatever fails
is written down with its error and the rest goes on. The checks are in float32 on small shapes,
against the CPU; the measurements in bfloat16, beside TRL on the same model and rows where `trl` is
installed. `--toy` runs all of it on a CPU in small shapes, which is how it is tested.

tflops counts 4 FLOPs a weight and real token (2 forward, 2 for the gradients of activations; frozen
weights need none), all weights included, as published figures do; share is of the card's own
product rate of two 8192 x 8192 matrices in the same run.
"""

import argparse
import contextlib
import gc
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "transformers", "peft", "accelerate", "trl", "bitsandbytes", "triton")
LLAMA = {"rms_norm_eps": 1e-5, "rope_theta": 500_000.0}
SHAPES: dict[str, dict[str, Any]] = {
    "toy": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 4096,
            "tie_word_embeddings": True},
    "qwen2.5-0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
                     "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151_936,
                     "tie_word_embeddings": True},
    "llama-3.2-1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
                     "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
                     "vocab_size": 128_256, "tie_word_embeddings": True, **LLAMA},
    "llama-3-8b": {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
                   "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256,
                   "tie_word_embeddings": False, **LLAMA},
}  # fmt: skip
# Lengths of real dialogues as parts of the longest, at these quantiles of the rows.
QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
LENGTHS = (0.04, 0.07, 0.09, 0.22, 0.46, 0.63, 0.70, 0.87, 1.0)
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QUIET = {"save_strategy": "no", "eval_strategy": "no", "report_to": "none", "warmup_ratio": 0.0}
Figures = dict[str, Any]


# -- what is trained: a vocabulary, a model of random weights, rows


def make_tokenizer(folder: Path) -> Any:
    """A byte-level vocabulary learnt from the shipped tickets, with a ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train([str(ROOT / "data" / f"ticket_{way}_train.jsonl") for way in ("en", "zh")], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_model(shape: str, folder: Path, dtype: str) -> int:
    """Save a Llama of random weights below `folder`; returns the number of its weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(folder)
    config = LlamaConfig(
        **SHAPES[shape],
        max_position_embeddings=16_384,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=dtype,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device_name() if dtype == "bfloat16" else "cpu"):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(folder)
    number = sum(p.numel() for p in model.parameters())
    del model
    free()
    return number


def write_rows(folder: Path, count: int, longest: int) -> None:
    """sft.jsonl, dpo.jsonl, rlhf.jsonl, grpo.jsonl: dialogues of random words, like-lengthed."""
    words = (ROOT / "data" / "ticket_en_train.jsonl").read_text(encoding="utf-8").split()[:4000]
    rng = random.Random(0)

    def text(tokens: float) -> str:
        return " ".join(rng.choices(words, k=max(1, int(tokens / 2.6))))  # 2.6 tokens a word here

    with contextlib.ExitStack() as stack:
        names = ("sft", "dpo", "rlhf", "grpo")
        files = {n: stack.enter_context((folder / f"{n}.jsonl").open("w")) for n in names}
        for number in range(count):
            length = longest * _length(number / max(1, count - 1))
            user = {"role": "user", "content": text(length * 0.4)}
            good, bad = text(length * 0.6), text(length * 0.5)
            pair = {"conversations": [user], "gold_answers": good, "bad_answers": bad}
            rows = {
                "sft": {"conversations": [user, {"role": "assistant", "content": good}]},
                "dpo": pair,
                "rlhf": pair,
                "grpo": {"prompt": [user], "answer": good},
            }
            for name, row in rows.items():
                files[name].write(json.dumps(row) + "\n")


def _length(quantile: float) -> float:
    import numpy

    return float(numpy.interp(quantile, QUANTILES, LENGTHS))


METHODS: dict[str, dict[str, Any]] = {
    "lora": {"data": "sft", "setup": {}, "call": {}},
    "dpo": {"data": "dpo", "setup": {}, "call": {}},
    "ppo": {
        "data": "rlhf",
        "setup": {"ratio_for_rlhf": 1.0},
        "call": {"ppo_epochs": 2, "max_completion_length": 8},
    },
    "grpo": {
        "data": "grpo",
        "setup": {},
        "call": {"num_generations": 4, "max_completion_length": 8, "beta": 0.1},
    },
}


def letters(prompts: list, completions: list, **columns: Any) -> list[float]:
    """Rewards that differ between completions, without a model."""
    return [(sum(map(ord, c[-1]["content"])) % 17) / 8 - 1 for c in completions]


def make_trainer(method: str, folder: Path, **setup: Any) -> Any:
    import importlib

    kind = importlib.import_module(f"main.trainer.{method}")
    settings = METHODS[method]["setup"] | {"max_length": 256, "batch_size": 4, "lora_r": 8} | setup
    rows = str(folder / f"{METHODS[method]['data']}.jsonl")
    data = {"train": rows, "dev": rows} if setup.pop("evaluate", False) else {"train": rows}
    return kind.Trainer(
        from_pretrained=folder, data_path=data, output_dir=folder / "out", **settings
    )


def train(trainer: Any, method: str, **call: Any) -> list[Any]:
    # A large epsilon keeps the steps in proportion to the gradients: adapters can be compared.
    settings = {"num_epochs": 1, "lr": 1e-2, "adam_epsilon": 1e-3, **QUIET}
    if method in ("ppo", "grpo"):
        settings["reward_func"] = letters
    return list(trainer(**(settings | METHODS[method]["call"] | call)))


def adapter(trainer: Any) -> dict[str, Any]:
    named = trainer.policy.named_parameters()
    return {name: p.detach().float().cpu().clone() for name, p in named if p.requires_grad}


def distance(first: dict[str, Any], second: dict[str, Any]) -> float:
    """The largest difference of two adapters over the largest change that training made."""
    largest = max(float(t.abs().max()) for name, t in first.items() if "lora_B" in name)
    return max(float((first[n] - second[n]).abs().max()) for n in first) / largest


# -- checks


def check_cpu(folder: Path, method: str) -> Figures:
    """One epoch in float32 here and on the CPU: losses and what the adapters became."""
    make_model("toy", folder, "float32")
    write_rows(folder, 8, 96)
    runs = {}
    for device in ("cpu", device_name()):
        trainer = make_trainer(method, folder, device=device, dtype="float32")
        losses = [result.train["loss"] for result in train(trainer, method)]
        where = {str(parameter.device) for parameter in trainer.policy.parameters()}
        assert where == {device}, where
        runs[device] = (losses, adapter(trainer))
    (ours, mine), (theirs, yours) = runs["cpu"], runs[device_name()]
    found = {
        "loss_cpu": ours[0],
        "loss_gpu": theirs[0],
        "loss_gap": max(abs(a - b) for a, b in zip(ours, theirs, strict=True)),
        "adapter_gap": distance(mine, yours),
    }
    return found | verdict(found["loss_gap"] < 1e-4 and found["adapter_gap"] < 1e-3)


def check_resume(folder: Path, method: str) -> Figures:
    """Three epochs at once, and one, then two of a new trainer: the same bits?"""
    make_model("toy", folder, "float32")
    write_rows(folder, 8, 96)
    keep = {"save_strategy": "epoch", "num_epochs": 3, "lr_scheduler_type": "constant"}
    whole = make_trainer(method, folder, task_name="whole")
    train(whole, method, **keep)
    again = make_trainer(method, folder, task_name="again")
    train(again, method, **keep)
    cut = make_trainer(method, folder, task_name="cut")
    run = cut(**_call(method, keep))
    next(run)
    run.close()
    rest = make_trainer(method, folder, task_name="cut")
    train(rest, method, **keep, resume_from_checkpoint="auto")
    resumed, repeated = (distance(adapter(whole), adapter(t)) for t in (rest, again))
    found = {"resumed_gap": resumed, "repeated_gap": repeated}
    return found | verdict(resumed == 0)


def _call(method: str, changes: Figures) -> Figures:
    settings = {"num_epochs": 1, "lr": 1e-2, "adam_epsilon": 1e-3, **QUIET}
    rewards = {"reward_func": letters} if method in ("ppo", "grpo") else {}
    return settings | rewards | METHODS[method]["call"] | changes


def check_precision(folder: Path, method: str) -> Figures:
    """bfloat16 and 4-bit bases beside float32: one epoch's loss."""
    make_model("toy", folder, "float32")
    write_rows(folder, 16, 96)
    kinds: dict[str, Figures] = {"float32": {"dtype": "float32"}, "bf16": {"dtype": "bfloat16"}}
    if installed("bitsandbytes"):
        kinds |= {"4bit": {"quantization": "4bit"}, "8bit": {"quantization": "8bit"}}
    losses = {}
    for name, setup in kinds.items():
        trainer = make_trainer(method, folder, **setup)
        (result,) = train(trainer, method, lr=1e-3, bf16=name == "bf16")
        losses[name] = result.train["loss"]
    base = losses["float32"]
    return losses | verdict(all(abs(loss - base) < 0.02 * base for loss in losses.values()))


def check_fused(folder: Path, method: str) -> Figures:
    """Our LoRA layers against peft's own on the same batch: loss and gradients."""
    from peft.tuners.lora import Linear

    make_model("toy", folder, "float32")
    write_rows(folder, 8, 96)
    trainer = make_trainer(method, folder, dtype="float32")
    task = trainer.task()
    batch = task.collate([trainer.train_data[i] for i in range(4)])
    tensors = {
        name: value.to(device_name()) if hasattr(value, "to") else value
        for name, value in batch.tensors.items()
    }
    found = []
    for own in (True, False):
        for module in trainer.policy.modules():
            if not own and type(module).__name__ == "FusedLinear":
                module.__class__ = Linear
        trainer.policy.zero_grad()
        loss = task.loss(tensors, batch.counts).loss
        loss.backward()
        grads = {n: p.grad.clone() for n, p in trainer.policy.named_parameters() if p.requires_grad}
        found.append((loss.item(), grads))
    (ours, mine), (theirs, yours) = found
    gap = max(float((mine[n] - yours[n]).abs().max()) for n in mine)
    gap /= max(float(g.abs().max()) for g in yours.values())
    return {"loss_gap": abs(ours - theirs), "gradient_gap": gap} | verdict(gap < 1e-5)


def check_predictor(folder: Path, method: str) -> Figures:
    """Greedy answers alone and in a batch are the same texts, in float32."""
    from main.predictor.hf import Predictor

    make_model("toy", folder, "float32")
    predictor = Predictor(model_from_pretrained=folder, dtype="float32")
    queries = [f"{'Where is order ' * (1 + 7 * (i % 3))}{i}?" for i in range(9)]
    batch = predictor(queries, max_new_tokens=24)
    single = [predictor(query, max_new_tokens=24)[0] for query in queries]
    differing = sum(a != b for a, b in zip(batch, single, strict=True))
    return {"answers": len(batch), "differing": differing} | verdict(differing == 0)


def check_compiled(folder: Path, method: str) -> Figures:
    """Layers compiled and as they are: one epoch's loss and the adapters, in bfloat16."""
    make_model("toy", folder, "float32")
    write_rows(folder, 16, 96)
    plain, compiled = (make_trainer(method, folder, dtype="bfloat16") for _ in range(2))
    settings = {"bf16": True, "torch_compile": device_name() != "cpu"}
    losses = [train(plain, method, bf16=True), train(compiled, method, **settings)]
    gap = abs(losses[0][0].train["loss"] - losses[1][0].train["loss"])
    apart = distance(adapter(plain), adapter(compiled))
    return {"loss_gap": gap, "adapter_gap": apart} | verdict(gap < 1e-2 and apart < 0.1)


def check_padding(folder: Path, method: str) -> Figures:
    """Rows without padding and padded, in half precision: the log-probabilities of a batch."""
    import torch

    make_model("toy", folder, "float32")
    write_rows(folder, 8, 96)
    found: Figures = {}
    for dtype in ("float32", "bfloat16"):
        trainer = make_trainer(method, folder, dtype=dtype)
        batch = trainer.task().collate([trainer.train_data[i] for i in range(8)])
        tensors = {
            name: value.to(device_name()) if hasattr(value, "to") else value
            for name, value in batch.tensors.items()
        }
        rows = []
        for lengths in (tensors.pop("lengths"), None):
            with torch.no_grad():
                rows.append(trainer.model(**tensors, lengths=lengths).logprobs)
        found[dtype] = float((rows[0] - rows[1]).abs().max())
        found["ragged"] = trainer.model.ragged
    holds = found["ragged"] and found["float32"] < 1e-4 and found["bfloat16"] < 0.1
    return found | verdict(holds)


def check_two_trainers(folder: Path, method: str) -> Figures:
    """A trainer on the GPU and then one on the CPU, in one process."""
    make_model("toy", folder, "float32")
    write_rows(folder, 8, 96)
    losses = [
        train(make_trainer(method, folder, device=device), method)[0].train["loss"]
        for device in (device_name(), "cpu", device_name())
    ]
    return {"losses": losses} | verdict(
        losses[0] == losses[2] and abs(losses[0] - losses[1]) < 1e-4
    )


def check_out_of_memory(folder: Path, method: str) -> Figures:
    """A micro-batch that the card cannot hold is halved; the loss is the one of enough memory."""
    import torch

    make_model("toy", folder, "float32")
    write_rows(folder, 32, 1024)
    settings = {"max_length": 1024, "batch_size": 32, "dtype": "float32"}
    enough = train(make_trainer(method, folder, **settings), method)[0].train["loss"]
    trainer = make_trainer(method, folder, **settings)
    peak, total = (
        torch.cuda.max_memory_allocated(),
        torch.cuda.get_device_properties(0).total_memory,
    )
    free()
    torch.cuda.set_per_process_memory_fraction(0.6 * peak / total)
    halved = train(trainer, method)[0].train["loss"]
    return {"enough": enough, "halved": halved} | verdict(abs(enough - halved) < 1e-4)


def check_launch(folder: Path, method: str) -> Figures:
    """One process under accelerate (DDP's launcher, bf16) trains as one without it."""
    make_model("toy", folder, "float32")
    write_rows(folder, 8, 96)
    start = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1",
             "--num_machines", "1", "--dynamo_backend", "no",
             "--mixed_precision", "no"]  # fmt: skip
    here = [str(Path(__file__).resolve()), "--run", "plain_loss", "--folder", str(folder)]
    losses = [
        json.loads(run_checked([*how, *here]).stdout.splitlines()[-1])["loss"]
        for how in ([sys.executable], start)
    ]
    return {"losses": losses} | verdict(losses[0] == losses[1])


def plain_loss(folder: Path) -> Figures:
    return {"loss": train(make_trainer("lora", folder), "lora")[0].train["loss"]}


# -- measurements


def device_rate() -> float:
    """TFLOP/s of a product of two matrices of random numbers, the median of 20."""
    import torch

    size = 8192 if torch.cuda.is_available() else 256
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    a, b = (torch.randn(size, size, device=device_name(), dtype=dtype) for _ in range(2))
    seconds = [timed(lambda: a @ b) for _ in range(23)][3:]
    return 2 * size**3 / sorted(seconds)[len(seconds) // 2] / 1e12


def measure_sft(folder: Path, shape: str, longest: int, batch: int, count: int) -> Figures:
    """Tokens a second of SFT, ours and TRL's, each after a warm-up on the same rows."""
    weights = make_model(shape, folder, base_dtype())
    write_rows(folder, count, longest)
    found: Figures = {"weights": weights, "max_length": longest, "batch": batch}
    limit = device_rate()
    found["device_tflops"] = round(limit)
    ours = make_trainer("lora", folder, max_length=longest, batch_size=batch)
    tokens = sum(ours.train_data.lengths)
    found["tokens"] = tokens
    settings = {"lr": 1e-5, "bf16": True}
    sides: dict[str, Callable[[], Any]] = {"ours": lambda: train(ours, "lora", **settings)}
    if device_name() != "cpu":
        settings_compiled = settings | {"torch_compile": True}
        sides["ours_compiled"] = lambda: train(ours, "lora", **settings_compiled)
    if installed("trl"):
        for kind in ("padded", "padding_free", "packed"):
            sides[f"trl_{kind}"] = lambda kind=kind: trl_sft(ours, kind, longest, batch)
    for name, side in sides.items():
        try:
            if name.startswith("ours"):
                found[f"{name}_first_pass"] = round(timed(side), 1)  # kernels are chosen, compiled
            found[name] = rate_of(side, tokens, weights, limit)
        except Exception as error:
            found[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
            free()
    return found


def rate_of(side: Callable[[], Any], tokens: int, weights: int, limit: float) -> Figures:
    reset_peak()
    seconds = timed(side)
    tflops = 4 * weights * tokens / seconds / 1e12
    return {
        "tokens_per_second": round(tokens / seconds),
        "tflops": round(tflops, 1),
        "share": round(tflops / limit, 3),
        "peak_gib": peak_gib(),
    }


def trl_sft(ours: Any, kind: str, longest: int, batch: int) -> None:
    """TRL at the largest of these batch sizes that the card holds."""
    import torch

    for size in (batch, batch // 2, batch // 4, batch // 8, 1):
        try:
            return trl_once(ours, kind, longest, max(1, size))
        except torch.OutOfMemoryError:
            for parameter in ours.policy.parameters():
                parameter.grad = None
            reset_peak()
    raise MemoryError("a batch of one row")


def trl_once(ours: Any, kind: str, longest: int, batch: int) -> None:
    """TRL's SFTTrainer on our policy (peft's own layers) and encoded rows."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    as_peft_made_it(ours)
    rows = [ours.train_data[i] for i in range(len(ours.train_data))]
    labelled = [
        {
            "input_ids": row["input_ids"],
            "labels": [
                i if m else -100 for i, m in zip(row["input_ids"], row["loss_mask"], strict=True)
            ],
        }
        for row in rows
    ]
    if kind == "packed":
        labelled = pack(labelled, longest)
        batch = max(1, batch // 4)
    settings = SFTConfig(
        **TRL_PLAIN,
        output_dir=str(Path(ours.setup.output_dir) / "trl"),
        per_device_train_batch_size=batch,
        padding_free=kind != "padded",
        max_length=None,
        learning_rate=1e-5,
        bf16=device_name() != "cpu",
        use_cpu=device_name() == "cpu",
    )
    SFTTrainer(
        ours.policy,
        args=settings,
        train_dataset=Dataset.from_list(labelled),
        processing_class=ours.tokenizer,
    ).train()


TRL_PLAIN: dict[str, Any] = {
    "num_train_epochs": 1,
    "lr_scheduler_type": "constant",
    "logging_steps": 1000,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


def pack(rows: list[Figures], longest: int) -> list[Figures]:
    """First fit of rows, the longest first, into rows of at most `longest` tokens."""
    bins: list[Figures] = []
    for row in sorted(rows, key=lambda row: -len(row["input_ids"])):
        place = next(
            (b for b in bins if len(b["input_ids"]) + len(row["input_ids"]) <= longest), None
        )
        if place is None:
            bins.append({"input_ids": [], "labels": [], "position_ids": []})
            place = bins[-1]
        place["position_ids"] = place["position_ids"] + list(range(len(row["input_ids"])))
        place["input_ids"] = place["input_ids"] + row["input_ids"]
        place["labels"] = place["labels"] + [-100, *row["labels"][1:]]
    return bins


def as_peft_made_it(trainer: Any) -> None:
    from peft.tuners.lora import Linear

    for module in trainer.policy.modules():
        if type(module).__name__ == "FusedLinear":
            module.__class__ = Linear
    trainer.policy.to(device_name())


def measure_dpo(folder: Path, shape: str, longest: int, batch: int, count: int) -> Figures:
    """Pairs and tokens a second of DPO, the reference's log-probs included once."""
    weights = make_model(shape, folder, base_dtype())
    write_rows(folder, count, longest)
    trainer = make_trainer("dpo", folder, max_length=longest, batch_size=batch)
    train(trainer, "dpo", lr=1e-6, bf16=True)
    reset_peak()
    seconds = timed(lambda: train(trainer, "dpo", lr=1e-6, bf16=True))
    return {
        "weights": weights,
        "pairs_per_second": round(count / seconds, 2),
        "peak_gib": peak_gib(),
    }


def measure_grpo(folder: Path, shape: str, longest: int, batch: int, count: int) -> Figures:
    """Seconds a step of GRPO that draws with the policy itself: 8 completions a prompt."""
    make_model(shape, folder, base_dtype())
    write_rows(folder, count, longest)
    trainer = make_trainer("grpo", folder, max_length=longest)
    settings = {
        "num_generations": 8,
        "per_device_train_batch_size": batch,
        "max_completion_length": 256 if device_name() != "cpu" else 8,
        "beta": 0.0,
        "lr": 1e-6,
        "bf16": True,
    }
    train(trainer, "grpo", **settings)
    reset_peak()
    results: list[Any] = []
    seconds = timed(lambda: results.extend(train(trainer, "grpo", **settings)))
    return {
        "seconds_per_step": round(seconds / results[-1].step, 2),
        "completion_length": results[-1].train["completion_length"],
        "peak_gib": peak_gib(),
    }


def measure_predict(folder: Path, shape: str, longest: int, batch: int, count: int) -> Figures:
    """Generated tokens a second: our predictor and transformers' `generate` at its best batch."""
    import torch
    from transformers import AutoModelForCausalLM

    from main.predictor.hf import Predictor

    make_model(shape, folder, base_dtype())
    write_rows(folder, count, longest)
    lines = (folder / "sft.jsonl").read_text(encoding="utf-8").splitlines()
    queries = [json.loads(line)["conversations"][0]["content"] for line in lines]
    new = 128 if device_name() != "cpu" else 8
    predictor = Predictor(model_from_pretrained=folder, dtype=base_dtype())
    predictor(queries[:4], max_new_tokens=4)  # kernels are chosen
    answered: list[Any] = []

    def ours(predictor: Any = predictor) -> None:
        answered.extend(predictor.predict_with_logprobs(queries, max_new_tokens=new))

    reset_peak()
    seconds = timed(ours)
    del ours
    tokens = sum(len(answer.token_ids) for answer in answered)
    found: Figures = {
        "ours": {"tokens_per_second": round(tokens / seconds), "peak_gib": peak_gib()}
    }
    tokenizer = predictor.tokenizer
    del predictor
    free()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=base_dtype()).to(device_name())
    tokenizer.padding_side = "left"

    def plain(size: int) -> int:
        made = 0
        for start in range(0, len(queries), size):
            dialogues = [[{"role": "user", "content": q}] for q in queries[start : start + size]]
            inputs = tokenizer.apply_chat_template(
                dialogues, add_generation_prompt=True, padding=True, return_dict=True,
                return_tensors="pt",
            ).to(model.device)  # fmt: skip
            with torch.no_grad():
                output = model.generate(**inputs, max_new_tokens=new, do_sample=False)
            made += int((output[:, inputs["input_ids"].shape[1] :] != tokenizer.pad_token_id).sum())
        return made

    for size in (32, 64) if device_name() != "cpu" else (4,):
        reset_peak()
        made: list[int] = []
        seconds = timed(lambda size=size, made=made: made.append(plain(size)))
        found[f"generate_{size}"] = {
            "tokens_per_second": round(made[0] / seconds),
            "peak_gib": peak_gib(),
        }
    return found


# -- small things


def device_name() -> str:
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"


def base_dtype() -> str:
    return "float32" if device_name() == "cpu" else "bfloat16"


def synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(run: Callable[[], Any]) -> float:
    synchronize()
    began = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - began


def free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def reset_peak() -> None:
    import torch

    free()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float:
    import torch

    return round(torch.cuda.max_memory_allocated() / 2**30, 2) if torch.cuda.is_available() else 0.0


def installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def verdict(holds: bool) -> Figures:
    return {"holds": bool(holds)}


# -- the parts, each in a process of its own

CHECKS: dict[str, Callable[[Path, str], Figures]] = {
    "equals the CPU": check_cpu,
    "resumes bit for bit": check_resume,
    "bf16 and 4-bit bases": check_precision,
    "fused layers equal peft's": check_fused,
    "rows without padding": check_padding,
    "compiled layers": check_compiled,
    "a batch answers as single requests": check_predictor,
    "GPU, CPU, GPU in one process": check_two_trainers,
    "out of memory halves": check_out_of_memory,
    "under a launcher": check_launch,
}
ALL_METHODS = ("equals the CPU", "resumes bit for bit")
GPU_ONLY = ("out of memory halves",)
# (what, shape, longest row, rows of a micro-batch, rows)
MEASURED: dict[str, list[tuple[Callable[..., Figures], str, int, int, int]]] = {
    "dpo": [(measure_dpo, "llama-3.2-1b", 1024, 8, 96)],
    "grpo": [(measure_grpo, "llama-3.2-1b", 512, 64, 16)],
    "predict": [(measure_predict, "llama-3.2-1b", 512, 64, 128)],
    "sft": [
        (measure_sft, "llama-3-8b", 2048, 16, 64),
        (measure_sft, "llama-3.2-1b", 2048, 48, 288),
        (measure_sft, "llama-3-8b", 8192, 3, 18),
        (measure_sft, "llama-3.2-1b", 8192, 12, 72),
        (measure_sft, "llama-3.2-1b", 512, 192, 1152),
        (measure_sft, "qwen2.5-0.5b", 512, 128, 1024),
    ],
}


def parts(only: list[str], toy: bool) -> Iterator[tuple[str, Figures]]:
    """Name and description of every part, checks first."""
    if "checks" in only:
        for name in CHECKS:
            if toy and name in GPU_ONLY:
                continue
            for method in METHODS if name in ALL_METHODS else ("lora",):
                yield f"check: {name}, {method}", {"check": name, "method": method}
    for kind, runs in MEASURED.items():
        if kind in only:
            for number, (_, shape, longest, batch, count) in enumerate(runs[:1] if toy else runs):
                where = ("toy", 64, 8, 8) if toy else (shape, longest, batch, count)
                what = {"kind": kind, "number": number, "where": where}
                yield f"{kind}: {where[0]}, length {where[1]}", what


def run_part(what: Figures) -> Figures:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        os.environ["HF_DATASETS_CACHE"] = name
        if "check" in what:
            return CHECKS[what["check"]](Path(name), what["method"])
        measure = MEASURED[what["kind"]][what["number"]][0]
        return measure(Path(name), *what["where"])


def run_checked(command: list[str], seconds: float = 240) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-1500:])
    return done


def table(found: dict[str, Figures]) -> str:
    """The figures as Markdown."""
    lines = ["| part | figures |", "|---|---|"]
    for name, figures in found.items():
        cells = ", ".join(
            f"{key} {value}" for key, value in figures.items() if key not in ("seconds", "commit")
        )
        lines.append(f"| {name} | {cells.replace('|', '/')} |")
    return "\n".join(lines) + "\n"


def commit() -> str:
    """The commit that is measured; what git does not know has none."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def machine() -> Figures:
    import torch

    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {
        "device": card,
        "versions": {name: version(name) for name in PACKAGES if installed(name)},
        "cuda": torch.version.cuda,
        "command": " ".join(["python", "benchmarks/gpu.py", *sys.argv[1:]]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", default=["checks", *MEASURED])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        sys.path.insert(0, str(ROOT))
        what = {"plain_loss": lambda: plain_loss(options.folder)}.get(
            options.run, lambda: run_part(json.loads(options.run))
        )
        print(json.dumps(what()))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Figures] = {}
    checks, measured = partition(parts(options.only, options.toy))
    with ThreadPoolExecutor(
        max(1, min(8, (os.cpu_count() or 1) // 2))
    ) as pool:  # small shapes: side by side
        for name, figures in zip(checks, pool.map(attempt, checks.values()), strict=True):
            found[name] = figures
            write(found, options.out)
    for name, what in measured.items():
        found[name] = attempt(what)
        write(found, options.out)


def partition(
    named: Iterator[tuple[str, Figures]],
) -> tuple[dict[str, Figures], dict[str, Figures]]:
    every = dict(named)
    checks = {name: what for name, what in every.items() if "check" in what}
    return checks, {name: what for name, what in every.items() if name not in checks}


def attempt(what: Figures) -> Figures:
    """The figures of a part, or its error."""
    began = time.perf_counter()
    try:
        done = run_checked(
            [sys.executable, str(Path(__file__).resolve()), "--run", json.dumps(what)]
        )
        figures = json.loads(done.stdout.splitlines()[-1])
    except Exception as error:
        figures = {"error": f"{type(error).__name__}: {error}"}
    return figures | {"seconds": round(time.perf_counter() - began, 1), "commit": commit()}


def write(found: dict[str, Figures], folder: Path) -> None:
    """Print the newest part, and keep all so far as JSON and Markdown."""
    name = next(reversed(found))
    print(name, found[name], flush=True)
    head = machine()
    (folder / "gpu.json").write_text(json.dumps(head | {"parts": found}, indent=2) + "\n", "utf-8")
    (folder / "gpu.md").write_text(
        f"{head['device']}, {head['versions']}\n\n{table(found)}", "utf-8"
    )


if __name__ == "__main__":
    main()
