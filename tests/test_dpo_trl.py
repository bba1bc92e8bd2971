"""The same batch through TRL's own trainers: loss and adapter gradients, relative 1e-5."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from main.trainer.dpo import Trainer
from main.trainer.dpo.trainer import PreferenceTask
from main.trainer.loop.task import MicroBatch, Run

trl = pytest.importorskip("trl")
CPU = torch.device("cpu")
QUIET = {
    "output_dir": "trl", "report_to": [], "use_cpu": True, "bf16": False, "max_length": None,
    "gradient_checkpointing": False, "per_device_train_batch_size": 3,
}  # fmt: skip
PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}


pytestmark = pytest.mark.usefixtures("own_folder")


def make_task(model, **options) -> PreferenceTask:
    """Three pairs: chosen answers of one length, as TRL's SFT term is a mean over the batch."""
    rows = [
        {
            "conversations": [{"role": "user", "content": "Why? " * n}],
            "gold_answers": f"Answer {n}",
            "bad_answers": "No" + ", never" * n,
        }
        for n in (1, 2, 5)
    ]
    Path("train.json").write_text(json.dumps(rows), encoding="utf-8")
    trainer = Trainer(
        from_pretrained=model, data_path="train.json", max_length=256, batch_size=3, lora_r=4
    )
    task = trainer.task(**options)
    task.open(Run(task.model, CPU))
    return task


def perturb(model) -> None:
    """Policy and reference apart; in training mode, as TRL files its metrics by it."""
    model.train()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B.default" in name:
                parameter += 0.05 * torch.randn_like(parameter)


def gradients(policy) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad(set_to_none=True)
    return found


def ours(task, rows) -> tuple[float, dict, dict]:
    batch = task.collate(rows)
    output = task.loss(batch.tensors, batch.counts)
    output.loss.backward()
    metrics = {
        name: float(total.detach()) / count for name, (total, count) in output.metrics.items()
    }
    return float(output.loss.detach()), gradients(task.policy), metrics


def assert_same(task, rows, theirs) -> dict:
    loss, grads, metrics = ours(task, rows)
    theirs.backward()
    expected = gradients(task.policy)
    assert loss == pytest.approx(float(theirs.detach()), rel=1e-5)
    assert grads.keys() == expected.keys() and any("lora_A" in name for name in grads)
    scale = max(float(grad.abs().max()) for grad in expected.values())
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-4, atol=1e-5 * scale, msg=name)
    return metrics


PAIR_CASES: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["sigmoid"]),
    ({"beta": 0.5}, ["sigmoid"]),
    ({"length_normalized": True}, ["sigmoid_norm"]),
    ({"sft_weight": 0.5}, ["sigmoid", "sft"]),
    ({"loss_type": "robust", "label_smoothing": 0.2}, ["robust"]),
    ({"loss_type": "exo_pair", "label_smoothing": 1e-3}, ["exo_pair"]),
    *(
        ({"loss_type": name}, [name])
        for name in ("ipo", "hinge", "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down",
                     "discopop")
    ),
    ({"loss_type": "sigmoid_norm"}, ["sigmoid_norm"]),
    ({"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.5]},
     ["sigmoid", "bco_pair", "sft"]),
    ({"loss_type": ["ipo", "hinge"]}, ["ipo", "hinge"]),
    *(
        ({"f_divergence_type": kind, "loss_type": name}, [name])
        for kind in ("forward_kl", "js_divergence", "alpha_divergence")
        for name in ("sigmoid", "ipo", "hinge")
    ),
    ({"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 2.5}, ["sigmoid"]),
    ({"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1.0}, ["sigmoid"]),
    ({"ld_alpha": 0.3}, ["sigmoid"]),
    ({"ld_alpha": 0.0, "loss_type": ["apo_zero", "sft"]}, ["apo_zero", "sft"]),
    ({"use_weighting": True}, ["sigmoid"]),
    ({"use_weighting": True, "loss_type": ["sppo_hard", "robust"], "label_smoothing": 0.1},
     ["sppo_hard", "robust"]),
]  # fmt: skip


def test_pair_losses_equal_those_of_trls_dpo_trainer(tiny_model_path):
    task = make_task(tiny_model_path)
    peer = trl.DPOTrainer(
        model=task.policy,
        args=trl.DPOConfig(**QUIET, use_weighting=True),
        train_dataset=Dataset.from_list([PAIR]),
        processing_class=task.tokenizer,
    )
    perturb(task.policy)
    rows = [task.train_data[i] for i in range(3)]
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    examples = [dict(zip(names, (r["prompt_ids"], *r["answers"]), strict=True)) for r in rows]
    inputs = peer.data_collator(examples)
    for options, loss_types in PAIR_CASES:
        task = task.trainer.task(**options)
        task.open(Run(task.model, CPU))
        rows = [task.train_data[i] for i in range(3)]
        weights = [1.0, options.get("sft_weight", 1.0)][: len(loss_types)]
        peer.loss_types, peer.loss_weights = loss_types, options.get("loss_weights", weights)
        peer.f_divergence_type = options.get("f_divergence_type", "reverse_kl")
        peer.f_alpha_divergence_coef = options.get("f_alpha_divergence_coef", 0.5)
        peer.ld_alpha, peer.use_weighting = options.get("ld_alpha"), task.options.use_weighting
        peer.beta = options.get("beta", 0.1)
        peer.label_smoothing = options.get("label_smoothing", 0.0)
        peer._metrics["train"].clear()
        metrics = assert_same(task, rows, peer._compute_loss(task.policy, inputs, False))
        if task.options.f_divergence_type != "reverse_kl" or loss_types[0] in _OF_MEANS:
            continue  # rewards are of sums there, of what the loss compares here
        same = {"rewards/margin": "rewards/margins", "accuracy": "rewards/accuracies"}
        for name in metrics:
            if name != "loss":
                (expected,) = peer._metrics["train"][same.get(name, name)]
                assert metrics[name] == pytest.approx(expected, rel=1e-4, abs=1e-6), (options, name)


_OF_MEANS = ("ipo", "sigmoid_norm")


def concatenated(rows) -> dict[str, torch.Tensor]:
    """The batch that TRL's ORPO and CPO trainers take."""
    from main.loaders.collate import pad

    batch: dict[str, torch.Tensor] = {}
    for kind, index in (("chosen", 0), ("rejected", 1)):
        ids = [r["prompt_ids"] + r["answers"][index] for r in rows]
        labels = [[-100] * len(r["prompt_ids"]) + r["answers"][index] for r in rows]
        batch |= {f"{kind}_input_ids": pad(ids, 0), f"{kind}_labels": pad(labels, -100)}
        batch[f"{kind}_attention_mask"] = pad([[1] * len(row) for row in ids], 0)
    return batch


@pytest.mark.parametrize(
    ("kind", "options", "config"),
    [
        ("orpo", {"loss_type": "orpo", "beta": 0.2}, {"beta": 0.2}),
        (
            "cpo",
            {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.7, "sft_weight": 0.5},
            {"beta": 2.0, "simpo_gamma": 0.7, "cpo_alpha": 0.5, "loss_type": "simpo"},
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_reference_free_losses_equal_those_of_trl(tiny_model_path, kind, options, config):
    task = make_task(tiny_model_path, **options)
    module = __import__(f"trl.experimental.{kind}", fromlist=["x"])
    peer = getattr(module, f"{kind.upper()}Trainer")(
        model=task.policy,
        args=getattr(module, f"{kind.upper()}Config")(**QUIET | config),
        train_dataset=Dataset.from_list([PAIR]),
        processing_class=task.tokenizer,
    )
    perturb(task.policy)
    rows = [task.train_data[i] for i in range(3)]
    if kind == "orpo":  # TRL trains the prompt too: one token of it leaves the answer alone
        rows = [{**row, "prompt_ids": row["prompt_ids"][:1]} for row in rows]
    theirs, _ = peer.get_batch_loss_metrics(task.policy, concatenated(rows))
    assert_same(task, rows, theirs)


def test_kto_equals_trls_kto_trainer(tiny_model_path):
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.7}
    task = make_task(tiny_model_path, loss_type="kto", **weights)
    unpaired = [{"prompt": "a", "completion": "b", "label": label} for label in (True, False)]
    peer = trl.KTOTrainer(
        model=task.policy,
        args=trl.KTOConfig(**QUIET, **weights),
        train_dataset=Dataset.from_list(unpaired),
        processing_class=task.tokenizer,
    )
    for seed in range(2):  # the reference point at 0 and above it
        perturb(task.policy)
        rows = [task.train_data[i] for i in range(len(task.train_data))]
        assert len(rows) == 6
        if seed:
            with torch.no_grad():
                rows = [
                    {**r, "reference": [r["reference"][0], r["reference"][1] - 9]} for r in rows
                ]
        kl = task._kl([MicroBatch(rows)])
        examples = [
            {
                "prompt_ids": r["prompt_ids"],
                "completion_ids": r["answers"][0],
                "KL_completion_ids": r["answers"][1],
                "label": r["label"],
                "ref_logps": r["reference"][0],
                "ref_KL_logps": r["reference"][1],
            }
            for r in rows
        ]
        peer.precompute_ref_logps = True
        inputs = peer.data_collator(examples)
        theirs = peer._compute_loss(task.policy, inputs, False)
        metrics = assert_same(task, [{**r, "kl": kl} for r in rows], theirs)
        assert peer._metrics["train"]["kl"][-1] == pytest.approx(kl, rel=1e-4)
        assert metrics["rewards/chosen"] == pytest.approx(
            peer._metrics["train"]["rewards/chosen"][-1], rel=1e-4
        )
    assert kl > 1
