"""DPO end to end: records, the reference, resume, two processes, clear errors."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from launchers import kill_at
from safetensors.torch import load_file, save_file

from main.errors import ConfigError, DataError, TrainingError
from main.trainer.dpo import Trainer
from main.trainer.dpo.losses import PAIR_LOSSES
from main.trainer.dpo.options import PreferenceOptions
from main.trainer.dpo.trainer import PreferenceTask
from main.trainer.loop.task import Run
from main.trainer.loop.throughput import MEASURED
from main.trainer.lora import Trainer as SFTTrainer
from main.trainer.policy.logprobs import TokenLogprobs

ROOT = Path(__file__).resolve().parent.parent
LONG = "It is a long story about a ship, a storm and a very small island in the north. " * 3
RECORDS = {
    "loss", "rewards/chosen", "rewards/rejected", "rewards/margin", "accuracy", "logps/chosen",
    "logps/rejected",
}  # fmt: skip


def row(number: int) -> dict:
    """Prompts and answers of very unequal length."""
    question = f"{LONG if number % 3 == 0 else ''}Question {number}?"
    good = f"Answer {number}" + " and so on" * (number % 4)
    bad = f"No {number}" + ", never" * ((number + 2) % 5)
    return {
        "conversations": [{"role": "user", "content": question}],
        "gold_answers": good,
        "bad_answers": bad,
    }


def write(path: str, rows: list) -> Path:
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    Path(path).write_text(text, encoding="utf-8")
    return Path(path)


@pytest.fixture(autouse=True)
def rows_of_its_own(own_folder):
    write("train.jsonl", [row(n) for n in range(13)])
    write("dev.jsonl", [row(n) for n in range(20, 27)])


DATA = {"train": "train.jsonl", "dev": "dev.jsonl"}


def make_trainer(model, **changes) -> Trainer:
    arguments = {
        "from_pretrained": str(model),
        "data_path": DATA,
        "max_length": 256,
        "batch_size": 4,
        "lora_r": 4,
        "task_name": "demo",
    }
    return Trainer(**(arguments | changes))


def run(trainer, **options):
    quiet = {"num_epochs": 1, "lr": 1e-3, "report_to": "none", "save_strategy": "no"}
    return list(trainer(**(quiet | options)))


def adapter(trainer) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


@pytest.fixture
def sft_adapter(tiny_model_path) -> Path | None:
    """An adapter that really differs from the base model."""
    turns = [[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a b c"}]] * 4
    write("sft.jsonl", [{"conversations": t} for t in turns])
    trainer = SFTTrainer(
        from_pretrained=tiny_model_path, data_path="sft.jsonl", lora_r=4, task_name="sft"
    )
    return list(trainer(num_epochs=3, lr=5e-2, report_to="none"))[-1].checkpoint


# -- records


def test_the_first_step_has_a_loss_of_ln_2_and_all_records(tiny_model_path):
    trainer = make_trainer(tiny_model_path, batch_size=16)
    (result,) = run(trainer, lr=0.0)
    for metrics in (result.train, result.eval):
        assert metrics["loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert metrics["rewards/margin"] == pytest.approx(0, abs=1e-5)
        assert metrics["logps/chosen"] < 0
    assert set(result.eval) == RECORDS
    assert set(result.train) == RECORDS | {"lr", "grad_norm", *MEASURED}


def test_the_starting_policy_of_a_resumed_adapter_is_the_reference(tiny_model_path, sft_adapter):
    trainer = make_trainer(tiny_model_path, resume_path=sft_adapter)
    with trainer.policy.disable_adapter(), torch.no_grad():
        base = trainer.policy(input_ids=torch.tensor([[5, 6, 7]])).logits
    with torch.no_grad():
        start = trainer.policy(input_ids=torch.tensor([[5, 6, 7]])).logits
    assert not torch.allclose(base, start, atol=1e-2)
    (result,) = run(trainer, lr=0.0)
    assert result.train["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert result.train["rewards/chosen"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("init", [False, "pissa"])
def test_an_adapter_that_changes_the_base_at_once_starts_at_ln_2_too(tiny_model_path, init):
    (result,) = run(make_trainer(tiny_model_path, init_lora_weights=init), lr=0.0)
    assert result.train["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_training_learns_the_preference_and_moves_only_the_adapter(tiny_model_path):
    trainer = make_trainer(tiny_model_path)
    base = {n: p.clone() for n, p in trainer.model.named_parameters() if not p.requires_grad}
    before = adapter(trainer)
    results = run(trainer, num_epochs=8, lr=2e-2, beta=1.0)
    first, last = results[0].train, results[-1].train
    assert last["loss"] < 0.3 < first["loss"]
    assert last["accuracy"] > 0.9 and last["rewards/margin"] > 1
    assert last["rewards/margin"] == pytest.approx(
        last["rewards/chosen"] - last["rewards/rejected"], abs=1e-5
    )
    for name, parameter in trainer.model.named_parameters():
        same = torch.equal(parameter, base[name] if name in base else before[name])
        assert same is (name in base), name


def test_a_tie_is_no_hit(tiny_model_path):
    """Without a step the margin is exactly 0 when policy and reference run the same rows."""
    trainer = make_trainer(tiny_model_path)
    sums = torch.tensor([-3.0, -4.0, -5.0, -6.0])
    task = trainer.task(report_to="none")
    tensors = {"lengths": [1, 1, 1, 1], "reference": torch.tensor([[-3.0, -4.0], [-6.0, -6.0]])}
    _, metrics = task._paired(TokenLogprobs(sums, None, sums), tensors)
    assert [float(v) for v in metrics["accuracy"]] == [1, 2]
    assert float(metrics["rewards/margin"][0]) == pytest.approx(0.1)


# -- how a step is cut


def step_gradient(trainer, **options):
    """Adapter gradient of one optimizer step, by its direction under plain SGD-like clipping."""
    captured: dict[str, torch.Tensor] = {}
    trainer_step = torch.optim.AdamW.step

    def capture(self, *args, **kwargs):
        if not captured:
            captured.update({n: p.grad.clone() for n, p in trainer.model.named_parameters()
                             if p.grad is not None})  # fmt: skip
        return trainer_step(self, *args, **kwargs)

    torch.optim.AdamW.step = capture  # type: ignore[method-assign]
    try:
        results = run(trainer, max_grad_norm=0.0, **options)
    finally:
        torch.optim.AdamW.step = trainer_step  # type: ignore[method-assign]
    return captured, results[0]


@pytest.mark.parametrize("loss_type", ["sigmoid", "orpo", "kto"])
def test_the_cut_of_a_step_changes_neither_loss_nor_gradient(
    tiny_model_path, sft_adapter, loss_type
):
    write("train.jsonl", [row(n) for n in range(8 if loss_type != "kto" else 4)])
    found = []
    for size, accumulation in ((8, 1), (4, 2), (1, 8)):
        trainer = make_trainer(tiny_model_path, resume_path=sft_adapter, batch_size=size)
        perturb(trainer)
        options = {"gradient_accumulation_steps": accumulation, "loss_type": loss_type}
        found.append(step_gradient(trainer, **options))
    (gradient, result), *others = found
    assert gradient and result.step == 1
    for other, same in others:
        for name in ("loss", "rewards/chosen", "logps/rejected"):
            assert same.train[name] == pytest.approx(result.train[name], rel=1e-5, abs=1e-6), name
        assert same.eval == pytest.approx(result.eval, rel=1e-3, abs=1e-4)
        for name, value in gradient.items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-6, msg=name)


def perturb(trainer):
    """Policy and reference apart, so that no loss is at its symmetric point."""
    torch.manual_seed(1)
    with torch.no_grad():
        for _, parameter in trainer.model.named_parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)


def test_shared_and_repeated_prompts_train_alike(tiny_model_path):
    adapters = []
    for share in (True, False):
        trainer = make_trainer(tiny_model_path)
        results = run(trainer, num_epochs=2, share_prompt=share)
        assert trainer.task(share_prompt=share).share_prompt is share
        adapters.append((adapter(trainer), results[-1].train["loss"]))
    (shared, loss), (apart, other) = adapters
    assert loss == pytest.approx(other, rel=1e-4)
    for name, value in shared.items():
        torch.testing.assert_close(value, apart[name], rtol=1e-2, atol=1e-4, msg=name)


def test_a_model_without_such_masks_falls_back_by_itself(tiny_model_path):
    trainer = make_trainer(tiny_model_path, attn_implementation="eager")
    (result,) = run(trainer, lr=0.0)
    assert trainer.task().share_prompt is False
    assert result.train["loss"] == pytest.approx(math.log(2), abs=1e-6)


# -- options


BASE: dict[str, Any] = {"beta": 0.3}
SPECIAL = ("sigmoid", "exo_pair", "robust", "sft")
CHANGES: list[dict[str, Any]] = [
    *({"loss_type": name} for name in PAIR_LOSSES if name not in SPECIAL),
    {"loss_type": "kto"},
    {"loss_type": ["sigmoid", "hinge"]},
    *({"f_divergence_type": f"{kind}_divergence"} for kind in ("js", "alpha")),
    {"f_divergence_type": "forward_kl"},
    {"ld_alpha": 0.5},
    {"use_weighting": True},
    {"loss_type": "exo_pair", "label_smoothing": 0.1},
    {"loss_type": "robust", "label_smoothing": 0.1},
    {"beta": 0.1},
    {"label_smoothing": 0.1},
    {"length_normalized": True},
    {"sft_weight": 0.5},
]
PAIRED_CHANGES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"loss_type": "kto"}, {"desirable_weight": 2.0}),
    ({"loss_type": "kto"}, {"undesirable_weight": 2.0}),
    ({"loss_type": "ipo"}, {"length_normalized": False}),
    ({"loss_type": "simpo"}, {"simpo_gamma": 2.0}),
    ({"loss_type": "discopop"}, {"discopop_tau": 1.0}),
    ({"loss_type": "orpo"}, {"sft_weight": 0.0}),
    ({}, {"loss_type": "sft"}),
    ({"loss_type": ["sigmoid", "hinge"]}, {"loss_weights": [1.0, 0.3]}),
    ({"f_divergence_type": "alpha_divergence"}, {"f_alpha_divergence_coef": 2.0}),
]


def test_every_option_changes_the_loss(tiny_model_path, sft_adapter):
    trainer = make_trainer(tiny_model_path, resume_path=sft_adapter, data_path="train.jsonl")
    perturb(trainer)
    options = [(BASE, BASE | change) for change in CHANGES]
    options += [(first, first | change) for first, change in PAIRED_CHANGES]

    def loss(given):
        task = trainer.task(**given)
        task.open(Run(task.model, torch.device("cpu")))
        rows = [task.train_data[i] for i in range(5)]
        batch = task.collate([{**r, "kl": 0.1} for r in rows])
        with torch.no_grad():
            return float(task.loss(batch.tensors, batch.counts).loss)

    for first, second in options:
        assert abs(loss(first) - loss(second)) > 1e-4, second


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0}, "beta=0 must be above 0"),
        ({"loss_type": "dpo"}, "must be one of 'sigmoid'"),
        ({"label_smoothing": 0.5}, "below 0.5"),
        (
            {"loss_type": "hinge", "label_smoothing": 0.1},
            "label_smoothing=0.1 changes nothing with loss",
        ),
        ({"loss_type": "exo_pair"}, "needs label_smoothing above 0"),
        ({"simpo_gamma": 1.0}, "simpo_gamma=1.0 changes nothing with loss_type='sig"),
        (
            {"loss_type": "kto", "sft_weight": 1.0},
            "sft_weight=1.0 changes nothing with loss_type='k",
        ),
        (
            {"loss_type": "bco_pair", "length_normalized": True},
            "length_normalized=True changes nothing",
        ),
        ({"desirable_weight": 2.0}, "desirable_weight=2.0 changes nothing"),
        ({"sft_weight": -1.0}, "sft_weight=-1.0 must be 0 or more"),
        ({"loss_type": "discopop", "discopop_tau": 0.0}, "discopop_tau=0.0 must be above 0"),
        ({"loss_type": ["sigmoid", "dpo"]}, r"loss_type has \['dpo'\]: every entry must be one of"),
        ({"loss_type": []}, "must name different losses"),
        ({"loss_type": ["kto", "sigmoid"]}, "'kto' stands alone"),
        ({"loss_type": ["ipo", "sft"], "loss_weights": [1.0]}, "has 1 entries for 2 losses"),
        ({"loss_type": ["ipo", "sft"], "loss_weights": [1.0, "a"]}, "must be numbers of 0 or more"),
        ({"loss_weights": [1.0]}, "changes nothing with one loss_type"),
        ({"loss_type": "sft", "beta": 0.2}, "beta=0.2 changes nothing with loss_type='sft'"),
        (
            {"loss_type": "bco_pair", "f_divergence_type": "forward_kl"},
            "changes nothing with loss_",
        ),
        ({"f_alpha_divergence_coef": 2.0}, "changes nothing with f_divergence_type='reverse_kl'"),
        ({"ld_alpha": 1.5}, "ld_alpha=1.5 must be from 0 to 1"),
        (
            {"loss_type": "kto", "ld_alpha": 0.5},
            "ld_alpha=0.5 changes nothing with loss_type='kto'",
        ),
        ({"betta": 0.1}, r"no argument 'betta'. Did you mean 'beta'\?"),
    ],
)
def test_a_bad_option_is_refused_by_name(options, message):
    from main.options import parse

    with pytest.raises(ConfigError, match=message):
        parse(PreferenceOptions, options, "Trainer()")


# -- rows


def test_several_answers_make_a_pair_each_in_both_loaders(tiny_model_path):
    several = row(0) | {"gold_answers": ["a", "b b"], "bad_answers": ["c", "d", "e e"]}
    write("train.jsonl", [several, row(1)])
    losses = []
    for loader in ("LLM_DPO", "LLM_RLHF"):
        trainer = make_trainer(tiny_model_path, loader_name=loader)
        perturb(trainer)
        losses.append(run(trainer, lr=0.0, loss_type="simpo")[0].train)
        assert len(trainer.task().train_data) == 7
        list(trainer(loss_type="kto", report_to="none", num_epochs=1, save_strategy="no"))
        assert (
            len(trainer.task(loss_type="kto").train_data) == 7
        )  # 2 + 3 answers of one prompt, 2 of the other
    for name in RECORDS:
        assert losses[0][name] == pytest.approx(losses[1][name], rel=1e-5, abs=1e-6)


def test_kto_trains_on_unpaired_rows(tiny_model_path):
    rows = [
        {"prompt": f"Is {n} even?", "completion": "yes" if n % 3 else "no", "label": n % 3 > 0}
        for n in range(12)
    ]
    write("train.jsonl", rows)
    write("dev.jsonl", rows[:5])
    trainer = make_trainer(tiny_model_path, loader_name="LLM_KTO")
    results = run(trainer, num_epochs=6, lr=2e-2, loss_type="kto", beta=1.0)
    assert results[0].train["kl"] >= 0 and set(results[-1].eval) == RECORDS | {"kl"}
    assert results[-1].train["loss"] < results[0].train["loss"] <= 0.51
    assert results[-1].train["rewards/chosen"] > results[-1].train["rewards/rejected"]


def test_ktos_mismatched_answers_belong_to_other_prompts(tiny_model_path):
    trainer = make_trainer(tiny_model_path)
    data = trainer.task(loss_type="kto").train_data
    records = [data[i] for i in range(len(data))]
    answers: dict[tuple[int, ...], list[Any]] = {tuple(r["prompt_ids"]): [] for r in records}
    for record in records:
        answers[tuple(record["prompt_ids"])].append(record["answers"][0])
    for record in records:
        assert record["answers"][1] not in answers[tuple(record["prompt_ids"])]
    mismatched = sorted(record["answers"][1] for record in records)
    assert mismatched == sorted(record["answers"][0] for record in records)


def test_kto_needs_two_prompts(tiny_model_path):
    write("train.jsonl", [row(1)] * 3)
    with pytest.raises(DataError, match="2 prompts or more"):
        make_trainer(tiny_model_path, data_path="train.jsonl")(loss_type="kto")


def test_pairs_are_asked_for_where_the_loss_compares_pairs(tiny_model_path):
    write("train.jsonl", [{"prompt": f"q {n}", "completion": "a", "label": True} for n in (1, 2)])
    trainer = make_trainer(tiny_model_path, data_path="train.jsonl", loader_name="LLM_KTO")
    with pytest.raises(ConfigError, match="loss_type='sigmoid' compares pairs"):
        trainer()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bad_answers": "Answer 1 and so on"}, "is both gold and bad"),
        ({"bad_answers": ""}, "'bad_answers' is empty"),
        ({"gold_answers": None}, "'gold_answers' must be a string or a list"),
        ({"conversations": []}, "'conversations' is empty"),
    ],
)
def test_a_bad_row_is_named(tiny_model_path, change, message):
    write("train.jsonl", [row(0), row(1) | change])
    with pytest.raises(DataError, match=f"train.jsonl line 2: .*{message}"):
        make_trainer(tiny_model_path)


def test_pairs_that_the_limit_made_equal_are_left_out(tiny_model_path, caplog):
    same = row(1) | {"gold_answers": "word " * 40 + "x", "bad_answers": "word " * 40 + "y"}
    write("train.jsonl", [same, row(1)])
    trainer = make_trainer(tiny_model_path, data_path="train.jsonl", max_length=64)
    trainer()
    assert len(trainer.task().train_data) == 1 and "1 pairs are left out" in caplog.text
    write("train.jsonl", [same])
    with pytest.raises(DataError, match="none of the 1 pairs has answers that differ"):
        make_trainer(tiny_model_path, data_path="train.jsonl", max_length=64)()


# -- the reference, kept


def kept() -> list[Path]:
    return sorted(Path("cache").rglob("reference_*.safetensors"))


def test_the_reference_is_computed_once_and_taken_again(tiny_model_path, monkeypatch):
    first = run(make_trainer(tiny_model_path))
    assert len(kept()) == 2  # train and dev
    asked = []
    original = PreferenceTask._both
    monkeypatch.setattr(
        PreferenceTask,
        "_both",
        lambda self, rows: asked.append(len(rows)) or original(self, rows),
    )
    again = run(make_trainer(tiny_model_path, output_dir="again"))
    assert asked == [1] * 6  # three rows of each file are computed anew
    assert again[0].train["loss"] == first[0].train["loss"]
    assert len(kept()) == 2


def test_another_model_row_or_adapter_has_another_reference(tiny_model_path, sft_adapter):
    seen = [set(kept())]

    def added(**changes):
        run(make_trainer(tiny_model_path, data_path="train.jsonl", **changes), lr=0.0)
        seen.append(set(kept()))
        return len(seen[-1] - seen[-2])

    assert added() == 1
    assert added(seed=3, lora_r=8) == 0  # both start as the base model
    assert added(resume_path=sft_adapter) == 1
    assert added(dtype="bfloat16") == 1
    write("train.jsonl", [row(n) for n in range(5)])
    assert added() == 1


def test_a_base_that_was_changed_in_its_folder_has_another_reference(tiny_model_path):
    folder = Path(shutil.copytree(tiny_model_path, "base"))
    run(make_trainer(folder), lr=0.0)
    before = kept()
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.1.mlp.down_proj.weight"))
    weights[name] += 0.1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (result,) = run(make_trainer(folder, output_dir="again"), lr=0.0)
    assert result.train["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert result.eval["rewards/margin"] == pytest.approx(0, abs=1e-5)
    assert len(kept()) == len(before) + 2  # train and dev


def test_no_reference_is_computed_for_losses_without_one(tiny_model_path):
    run(make_trainer(tiny_model_path), loss_type="simpo")
    assert kept() == []


def test_values_of_another_model_are_refused(tiny_model_path):
    run(make_trainer(tiny_model_path, data_path="train.jsonl"))
    (path,) = kept()
    save_file({"logprobs": load_file(path)["logprobs"] - 1}, path)
    with pytest.raises(TrainingError, match=r"source row 1, and the reference gives .*Delete"):
        run(make_trainer(tiny_model_path, data_path="train.jsonl"))


def test_a_damaged_file_is_made_anew(tiny_model_path):
    run(make_trainer(tiny_model_path, data_path="train.jsonl"))
    (path,) = kept()
    good = path.read_bytes()
    path.write_bytes(good[:20])
    run(make_trainer(tiny_model_path, data_path="train.jsonl"))
    assert path.read_bytes() == good


def test_the_base_weights_are_in_memory_once(tiny_model_path, sft_adapter):
    trainer = make_trainer(tiny_model_path, resume_path=sft_adapter)
    run(trainer)
    count = sum(p.numel() for p in trainer.model.parameters())
    adapters = sum(p.numel() for n, p in trainer.model.named_parameters() if "lora_" in n)
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_model_path).num_parameters()
    assert count - adapters == base


# -- resume and ranks

SCRIPT = """
import json, sys
from main.trainer.llm_dpo import Trainer
arguments, options = json.loads(sys.argv[1])
for result in Trainer(**arguments)(**options):
    line = json.dumps([result.train, result.eval, result.step])
    print(f"RESULT {line}\\n", end="", flush=True)  # one write: two processes share the output
"""


def environment() -> dict[str, str]:
    cache = str(Path("cache").absolute())
    return os.environ | {"PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": cache}


@pytest.mark.long
@pytest.mark.parametrize("loss_type", ["sigmoid", "kto"])
def test_a_killed_run_resumes_bit_equal(tiny_model_path, sft_adapter, loss_type):
    options = {
        "num_epochs": 3, "lr": 1e-2, "save_strategy": "steps", "save_steps": 1,
        "gradient_accumulation_steps": 2, "report_to": "none", "loss_type": loss_type,
    }  # fmt: skip
    changes = {"resume_path": str(sft_adapter), "batch_size": 2}
    arguments = {"from_pretrained": str(tiny_model_path), "data_path": DATA, "max_length": 256,
                 "task_name": "demo", **changes}  # fmt: skip
    whole = make_trainer(tiny_model_path, output_dir="whole", **changes)
    run(whole, **options)
    Path("script.py").write_text(SCRIPT, encoding="utf-8")
    command = [sys.executable, "script.py", json.dumps([arguments, options])]
    kill_at("save_model/demo/Llama_5", command)
    resumed = make_trainer(tiny_model_path, **changes)
    run(resumed, resume_from_checkpoint="auto", **options)
    for name, value in adapter(whole).items():
        assert torch.equal(value, adapter(resumed)[name]), name


@pytest.mark.distributed
@pytest.mark.parametrize("loss_type", ["sigmoid", pytest.param("kto", marks=pytest.mark.long)])
def test_two_processes_train_and_evaluate_as_one_does(tiny_model_path, loss_type):
    """Two processes of 4 x 1 are one of 8 x 1; 13 pairs and 7 evaluated ones divide by neither."""
    options = {"num_epochs": 2, "lr": 1e-3, "report_to": "none", "loss_type": loss_type}
    options["save_strategy"] = "no"
    one = make_trainer(tiny_model_path, batch_size=8, output_dir="one")
    expected = run(one, **options)
    arguments = {"from_pretrained": str(tiny_model_path), "data_path": DATA, "max_length": 256,
                 "task_name": "demo", "batch_size": 4, "batch_size_eval": 3,
                 "lora_r": 4}  # fmt: skip
    for path in kept():
        path.unlink()
    Path("script.py").write_text(SCRIPT, encoding="utf-8")
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*start, "script.py", json.dumps([arguments, options])]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert len(lines) == 4
    for line in lines:
        train, evaluation, step = json.loads(line.removeprefix("RESULT "))
        (same,) = [result for result in expected if result.step == step]
        for name in RECORDS:
            assert train[name] == pytest.approx(same.train[name], rel=1e-3, abs=1e-5), name
            assert evaluation[name] == pytest.approx(same.eval[name], rel=1e-3, abs=1e-5), name
    assert len(kept()) == 2


# -- the guide


def test_the_guides_snippet_runs_as_written(tiny_model_path, sft_adapter):
    from transformers import AutoConfig, AutoTokenizer

    from main.trainer.llm_dpo import Trainer as Second

    Path("data").mkdir()
    write("data/present.json", [])
    registry = {"taobao_1000_dpo": {"train": "train.jsonl", "dev": "dev.jsonl"}}
    Path("data/present.json").write_text(json.dumps(registry), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path, trust_remote_code=True)
    config = AutoConfig.from_pretrained(tiny_model_path, trust_remote_code=True)
    trainer = Second(
        tokenizer=tokenizer,
        config=config,
        resume_path=str(sft_adapter),
        from_pretrained=str(tiny_model_path),
        loader_name="LLM_DPO",
        data_path="taobao_1000_dpo",
        max_length=3600,
        batch_size=2,
        batch_size_eval=2,
        task_name="taobao_1000_dpo_new_2",
    )
    for i in trainer(num_epochs=2, lr=1e-5, beta=0.1):
        a = i
    assert a.epoch == 2 and a.checkpoint == Path("save_model/taobao_1000_dpo_new_2/Llama_14")
    assert Path("data_record/taobao_1000_dpo_new_2/eval.csv").is_file()
    assert Second is Trainer


def test_the_import_loads_no_heavy_package():
    absent = ["vllm", "deepspeed", "trl", "chromadb", "sentence_transformers"]
    code = f"import sys, main.trainer.dpo; print([m for m in {absent!r} if m in sys.modules])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
