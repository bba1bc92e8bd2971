"""The same batch through TRL's own trainers: loss and adapter gradients, relative 1e-5."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from main.trainer.dpo import Trainer
from main.trainer.task import MicroRows

trl = pytest.importorskip("trl")
CPU = torch.device("cpu")
QUIET = {
    "output_dir": "trl", "report_to": [], "use_cpu": True, "bf16": False, "max_length": None,
    "gradient_checkpointing": False, "per_device_train_batch_size": 3,
}  # fmt: skip
PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def make_trainer(model, **options) -> Trainer:
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
    trainer(**options)  # checked, not iterated
    trainer.open(CPU)
    return trainer


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


def ours(trainer, rows) -> tuple[float, dict, dict]:
    batch = trainer.collate(rows)
    output = trainer.loss(batch.tensors, batch.counts)
    output.loss.backward()
    metrics = {
        name: float(total.detach()) / count for name, (total, count) in output.metrics.items()
    }
    return float(output.loss.detach()), gradients(trainer.policy), metrics


def assert_same(trainer, rows, theirs) -> dict:
    loss, grads, metrics = ours(trainer, rows)
    theirs.backward()
    expected = gradients(trainer.policy)
    assert loss == pytest.approx(float(theirs.detach()), rel=1e-5)
    assert grads.keys() == expected.keys() and any("lora_A" in name for name in grads)
    scale = max(float(grad.abs().max()) for grad in expected.values())
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-4, atol=1e-5 * scale, msg=name)
    return metrics


PAIR_CASES = [
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
]  # fmt: skip


def test_pair_losses_equal_those_of_trls_dpo_trainer(tiny_model_path):
    trainer = make_trainer(tiny_model_path)
    peer = trl.DPOTrainer(
        model=trainer.policy,
        args=trl.DPOConfig(**QUIET),
        train_dataset=Dataset.from_list([PAIR]),
        processing_class=trainer.tokenizer,
    )
    perturb(trainer.policy)
    rows = [trainer.train_data[i] for i in range(3)]
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    examples = [dict(zip(names, (r["prompt_ids"], *r["answers"]), strict=True)) for r in rows]
    inputs = peer.data_collator(examples)
    for options, loss_types in PAIR_CASES:
        trainer(**options)
        peer.loss_types, peer.loss_weights = loss_types, [1.0, options.get("sft_weight", 0)]
        peer.loss_weights = peer.loss_weights[: len(loss_types)]
        peer.beta = options.get("beta", 0.1)
        peer.label_smoothing = options.get("label_smoothing", 0.0)
        peer._metrics["train"].clear()
        metrics = assert_same(trainer, rows, peer._compute_loss(trainer.policy, inputs, False))
        if options.get("length_normalized") or options.get("loss_type") == "ipo":
            continue  # rewards are of sums there, of what the loss compares here
        same = {"rewards/margin": "rewards/margins", "accuracy": "rewards/accuracies"}
        for name in metrics:
            if name != "loss":
                (expected,) = peer._metrics["train"][same.get(name, name)]
                assert metrics[name] == pytest.approx(expected, rel=1e-4, abs=1e-6), (options, name)


def concatenated(rows) -> dict[str, torch.Tensor]:
    """The batch that TRL's ORPO and CPO trainers take."""
    from main.loaders.collate import pad

    batch = {}
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
    trainer = make_trainer(tiny_model_path, **options)
    module = __import__(f"trl.experimental.{kind}", fromlist=["x"])
    peer = getattr(module, f"{kind.upper()}Trainer")(
        model=trainer.policy,
        args=getattr(module, f"{kind.upper()}Config")(**QUIET | config),
        train_dataset=Dataset.from_list([PAIR]),
        processing_class=trainer.tokenizer,
    )
    perturb(trainer.policy)
    rows = [trainer.train_data[i] for i in range(3)]
    if kind == "orpo":  # TRL trains the prompt too: one token of it leaves the answer alone
        rows = [{**row, "prompt_ids": row["prompt_ids"][:1]} for row in rows]
    theirs, _ = peer.get_batch_loss_metrics(trainer.policy, concatenated(rows))
    assert_same(trainer, rows, theirs)


def test_kto_equals_trls_kto_trainer(tiny_model_path):
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.7}
    trainer = make_trainer(tiny_model_path, loss_type="kto", **weights)
    unpaired = [{"prompt": "a", "completion": "b", "label": label} for label in (True, False)]
    peer = trl.KTOTrainer(
        model=trainer.policy,
        args=trl.KTOConfig(**QUIET, **weights),
        train_dataset=Dataset.from_list(unpaired),
        processing_class=trainer.tokenizer,
    )
    for seed in range(2):  # the reference point at 0 and above it
        perturb(trainer.policy)
        rows = [trainer.train_data[i] for i in range(len(trainer.train_data))]
        assert len(rows) == 6
        if seed:
            with torch.no_grad():
                rows = [
                    {**r, "reference": [r["reference"][0], r["reference"][1] - 9]} for r in rows
                ]
        kl = trainer._kl([MicroRows(rows)])
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
        theirs = peer._compute_loss(trainer.policy, inputs, False)
        metrics = assert_same(trainer, [{**r, "kl": kl} for r in rows], theirs)
        assert peer._metrics["train"]["kl"][-1] == pytest.approx(kl, rel=1e-4)
        assert metrics["rewards/chosen"] == pytest.approx(
            peer._metrics["train"]["rewards/chosen"][-1], rel=1e-4
        )
    assert kl > 1
