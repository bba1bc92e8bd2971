"""SFT end to end: the loss against plain transformers, resume, two processes, clear errors."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gradients import gradient
from launchers import kill_at, launch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from main.errors import ConfigError, DataError, MissingFileError, ModelError
from main.predictor.hf import Predictor
from main.trainer.lora import Trainer

ROOT = Path(__file__).resolve().parent.parent

ROWS = [
    [("user", "What is two and two?"), ("assistant", "Four.")],
    [
        ("system", "Answer in one word."),
        ("user", "The colour of the sky?"),
        ("assistant", "Blue"),
        ("user", "And of grass?"),
        ("assistant", "Green"),
    ],
    [("user", "请用一句话介绍北京。"), ("assistant", "北京是中国的首都，历史悠久。")],
    [("user", "Say 🙂"), ("assistant", "🙂🙂\n\n```py\nprint('hi')\n```")],
    [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e"),
     ("assistant", "a longer last answer of several words")],
]  # fmt: skip


def write_rows(path: Path, count: int) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            turns = [{"role": r, "content": c} for r, c in ROWS[number % len(ROWS)]]
            turns[-1] = {**turns[-1], "content": f"{turns[-1]['content']} {number}"}
            file.write(json.dumps({"conversations": turns}, ensure_ascii=False) + "\n")
    return path


pytestmark = pytest.mark.usefixtures("own_folder")


def make_trainer(model: Path, **changes) -> Trainer:
    data = {"train": write_rows(Path("train.jsonl"), 11), "dev": write_rows(Path("dev.jsonl"), 7)}
    arguments = {
        "from_pretrained": model,
        "data_path": data,
        "max_length": 256,
        "batch_size": 4,
        "lora_r": 4,
        "task_name": "demo",
    }
    return Trainer(**(arguments | changes))


def adapter(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


def reference_loss(model, tokenizer, dialogues) -> torch.Tensor:
    """Plain transformers, one row at a time; labels found in the ids by SmolLM2's own markers."""
    header = tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    total, count = torch.zeros(()), 0
    for messages in dialogues:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        labels, inside, position = [-100] * len(ids), False, 0
        while position < len(ids):
            if inside:
                labels[position] = ids[position]
                inside = ids[position] != end
            elif ids[position : position + len(header)] == header:
                position += len(header) - 1
                inside = True
            position += 1
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].float()
        target = torch.tensor(labels[1:])
        total = total + torch.nn.functional.cross_entropy(logits, target, reduction="sum")
        count += int((target != -100).sum())
    return total / count


def dialogues_of(path: str) -> list:
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["conversations"] for line in lines]


def test_loss_and_gradients_equal_plain_transformers_one_row_at_a_time(tiny_model_path):
    trainer = make_trainer(tiny_model_path)
    tokenizer = trainer.tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id  # the end of turn must still be trained
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    task = trainer.task()
    batch = task.collate([trainer.train_data[i] for i in range(11)])
    task.loss(batch.tensors, batch.counts).loss.backward()
    ours = {n: gradient(p).clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.model.zero_grad(set_to_none=True)
    loss = reference_loss(trainer.policy, tokenizer, dialogues_of("train.jsonl"))
    loss.backward()
    found = task.loss(batch.tensors, batch.counts).loss.item()
    assert found == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-7, msg=name)


def test_every_epoch_yields_a_result_and_a_checkpoint_that_peft_and_predictor_open(tiny_model_path):
    trainer = make_trainer(tiny_model_path)
    results = list(trainer(num_epochs=2, lr=1e-2))
    assert [r.epoch for r in results] == [1, 2] and results[-1].step == 6
    assert results[-1].train["loss"] < results[0].train["loss"]
    folder = results[-1].checkpoint
    assert folder == Path("save_model/demo/Llama_6")
    assert AutoTokenizer.from_pretrained(folder).chat_template == trainer.tokenizer.chat_template

    ids = torch.tensor([trainer.train_data[0]["input_ids"]])
    trainer.model.eval()
    base = AutoModelForCausalLM.from_pretrained(tiny_model_path)
    reopened = PeftModel.from_pretrained(base, str(folder)).eval()
    with torch.no_grad():
        expected, found = trainer.policy(input_ids=ids).logits, reopened(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert Predictor(tiny_model_path, peft_path=folder)("Hello", max_new_tokens=4)


def test_a_model_trained_on_a_few_rows_repeats_their_answers_and_stops_by_itself(tiny_model_path):
    dialogues = [[{"role": r, "content": c} for r, c in ROWS[number]] for number in range(4)]
    lines = [json.dumps({"conversations": turns}, ensure_ascii=False) for turns in dialogues]
    Path("four.jsonl").write_text("\n".join(lines), encoding="utf-8")
    trainer = make_trainer(
        tiny_model_path, data_path="four.jsonl", lora_r=8, modules_to_save=["lm_head"]
    )
    list(trainer(num_epochs=80, lr=1e-2, lr_scheduler_type="constant", save_strategy="no"))
    trainer.save(Path("adapter"))
    predictor = Predictor(tiny_model_path, peft_path="adapter")
    answers = predictor([turns[:-1] for turns in dialogues], max_new_tokens=60)
    assert answers == [turns[-1]["content"] for turns in dialogues]


def test_a_run_in_bf16_learns_what_one_in_float32_learns(tiny_model_path):
    losses = []
    for bf16 in (False, True):
        trainer = make_trainer(tiny_model_path)
        assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
        results = list(trainer(num_epochs=2, lr=1e-2, bf16=bf16, save_strategy="no"))
        losses.append(results[-1].train["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[1] != losses[0]


def test_training_leaves_the_models_settings_as_they_were(tiny_model_path):
    trainer = make_trainer(tiny_model_path)
    before = trainer.causal_lm.config.to_dict(), trainer.causal_lm.generation_config.to_dict()
    list(trainer(num_epochs=1, save_strategy="no"))
    after = trainer.causal_lm.config.to_dict(), trainer.causal_lm.generation_config.to_dict()
    assert after == before and before[0]["use_cache"] is True


def test_an_adapter_of_another_base_and_a_folder_without_weights_are_refused(tiny_model_path):
    folder = list(make_trainer(tiny_model_path)(num_epochs=1))[-1].checkpoint
    other = Path("other")
    shutil.copytree(tiny_model_path, other)
    config = json.loads((other / "config.json").read_text("utf-8"))
    config["intermediate_size"] = 96
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).save_pretrained(other)
    with pytest.raises(ModelError, match=r"does not fit LlamaForCausalLM 'other'.*another shape"):
        make_trainer(other, resume_path=folder)
    with pytest.raises(ModelError, match=r"does not fit LlamaForCausalLM 'other'.*another shape"):
        Predictor(other, peft_path=folder)
    (other / "model.safetensors").unlink()
    with pytest.raises(MissingFileError, match=r"folder 'other' holds no model: looked for"):
        make_trainer(other)


def test_resume_path_starts_from_the_adapters_weights_alone_and_trains_them(tiny_model_path):
    first = make_trainer(tiny_model_path)
    folder = list(first(num_epochs=1, lr=1e-2))[-1].checkpoint
    second = make_trainer(tiny_model_path, resume_path=folder, task_name="second")
    assert list(second.policy.peft_config) == ["default"]
    before = adapter(second)
    for name, value in adapter(first).items():
        assert torch.equal(value, before[name]), name
    list(second(num_epochs=1, lr=1e-2))
    assert all(not torch.equal(value, before[name]) for name, value in adapter(second).items())


@pytest.mark.long
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_killed_run_resumes_bit_equal(tiny_model_path, accumulation):
    """kill -9 in the middle of a run in another process, then resume in this one."""
    options = {
        "num_epochs": 3,
        "lr": 1e-2,
        "save_strategy": "steps",
        "save_steps": 1,
        "gradient_accumulation_steps": accumulation,
    }
    whole = make_trainer(tiny_model_path, lora_dropout=0.2, output_dir="whole", batch_size=2)
    list(whole(**options))
    arguments = {
        "from_pretrained": str(tiny_model_path),
        "data_path": {"train": "train.jsonl", "dev": "dev.jsonl"},
        "max_length": 256,
        "batch_size": 2,
        "lora_r": 4,
        "lora_dropout": 0.2,
        "task_name": "demo",
    }
    code = (
        f"from main.trainer.lora import Trainer\n"
        f"for _ in Trainer(**{arguments!r})(**{options!r}): pass\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    kill_at("save_model/demo/Llama_4", [sys.executable, "-c", code], environment)
    resumed = make_trainer(tiny_model_path, lora_dropout=0.2, batch_size=2)
    list(resumed(resume_from_checkpoint="auto", **options))
    for name, value in adapter(whole).items():
        assert torch.equal(value, adapter(resumed)[name]), name


TWO_PROCESSES = """
import json, sys
from main.trainer.lora import Trainer
arguments, options = json.loads(sys.argv[1])
for result in Trainer(**arguments)(**options):
    sys.stdout.write("RESULT " + json.dumps([result.train, result.eval, result.step]) + "\\n")
"""


@pytest.mark.distributed
def test_two_processes_train_and_evaluate_as_one_does(tiny_model_path):
    options = {"num_epochs": 2, "lr": 1e-3, "logging_steps": 1}
    one = make_trainer(tiny_model_path, batch_size=4, output_dir="one")
    expected = list(one(**options))
    arguments = {
        "from_pretrained": str(tiny_model_path),
        "data_path": {"train": "train.jsonl", "dev": "dev.jsonl"},
        "max_length": 256,
        "batch_size": 2,
        "batch_size_eval": 3,
        "lora_r": 4,
        "task_name": "demo",
        "output_dir": "two",
    }
    Path("script.py").write_text(TWO_PROCESSES, encoding="utf-8")
    done = launch("script.py", json.dumps([arguments, options]))
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert len(lines) == 4, done.stdout  # both processes see the same results
    for line in lines:
        found = json.loads(line.removeprefix("RESULT "))
        same = expected[0] if found[2] == expected[0].step else expected[1]
        assert found[0]["loss"] == pytest.approx(same.train["loss"], rel=1e-4)
        assert found[1]["loss"] == pytest.approx(same.eval["loss"], rel=1e-4)
    assert len(list(Path("two/logs/tensorboard_logs/demo").glob("events.*"))) == 1
    two = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_model_path), "two/save_model/demo/Llama_6"
    )
    ours = dict(one.policy.named_parameters())
    for name, parameter in two.named_parameters():
        if "lora_" in name:
            torch.testing.assert_close(parameter, ours[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("options", "marker"),
    [({"use_dora": True}, "magnitude"), ({"use_rslora": True}, "lora_A"), ({"init_lora_weights":
      "pissa"}, "lora_A"), ({"modules_to_save": ["lm_head"]}, "modules_to_save")],
    ids=["dora", "rslora", "pissa", "modules_to_save"],
)  # fmt: skip
def test_every_kind_of_adapter_trains_and_reloads_on_the_original_base(
    tiny_model_path, options, marker
):
    trainer = make_trainer(tiny_model_path, **options)
    assert any(marker in name for name in adapter(trainer))
    folder = list(trainer(num_epochs=1, lr=1e-3))[-1].checkpoint
    ids = torch.tensor([trainer.train_data[0]["input_ids"]])
    reopened = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_model_path), str(folder)
    ).eval()
    trainer.model.eval()
    with torch.no_grad():
        expected, found = trainer.policy(input_ids=ids).logits, reopened(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_gradient_checkpointing_changes_no_gradient(tiny_model_path):
    losses = []
    for switch in (False, True):
        trainer = make_trainer(tiny_model_path, gradient_checkpointing=switch)
        results = list(trainer(num_epochs=2, lr=1e-2, save_strategy="no"))
        losses.append([r.train["loss"] for r in results])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0][1] < losses[0][0]


def test_the_users_own_tokenizer_and_config_objects_are_taken(tiny_model_path):
    from transformers import AutoConfig

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    config = AutoConfig.from_pretrained(tiny_model_path)
    trainer = make_trainer(
        tiny_model_path, tokenizer=tokenizer, config=config, max_length=64, loader_name="LLM_Chat"
    )
    assert trainer.tokenizer is tokenizer
    assert next(iter(trainer(num_epochs=1))).epoch == 1


def test_context_and_target_rows_are_trained_too(tiny_model_path):
    rows = [{"context": f"{n} plus 1 is ", "target": str(n + 1)} for n in range(6)]
    Path("pure.json").write_text(json.dumps(rows), encoding="utf-8")
    trainer = make_trainer(tiny_model_path, data_path="pure.json", loader_name="ChatGLM_LoRA")
    assert trainer.eval_data is None
    assert next(iter(trainer(num_epochs=1))).eval == {}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"batchsize": 4}, ConfigError, r"no argument 'batchsize'. Did you mean 'batch_size'\?"),
        ({"batch_size": 0}, ConfigError, "batch_size=0 must be 1 or more"),
        ({"batch_size": "4"}, ConfigError, "batch_size='4' must be an integer, not str"),
        ({"loader_name": "LLM_Chta"}, ConfigError, "Did you mean 'LLM_Chat'"),
        ({"loader_name": "LLM_DPO"}, ConfigError, "does not fit this trainer"),
        ({"task_name": "../up"}, ConfigError, "relative name without"),
        ({"from_pretrained": "nowhere/at/all"}, MissingFileError, "nowhere/at/all"),
        ({"from_pretrained": "."}, MissingFileError, "folder '.' holds no tokenizer"),
        ({"resume_path": "no_adapter"}, MissingFileError, "no_adapter"),
        ({"data_path": "no_such_file.json"}, MissingFileError, "no_such_file.json"),
        ({"data_path": {"dev": "dev.jsonl"}}, DataError, "no 'train' split"),
        ({"target_modules": ["q_projj"]}, (ConfigError, ModelError), "q_proj"),
        ({"max_length": 64, "max_new_tokens": 64}, ConfigError, "the same argument"),
    ],
)
def test_a_bad_constructor_argument_is_refused_by_name(tiny_model_path, change, error, message):
    with pytest.raises(error, match=message):
        make_trainer(tiny_model_path, **change)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 3}, r"no argument 'epochs'. Did you mean 'num_epochs'"),
        ({"lr": -1}, "lr=-1 must be 0 or more"),
        ({"bf16": True, "fp16": True}, "exclude each other"),
        ({"lr_scheduler_type": "cosin"}, "must be one of"),
        ({"save_strategy": "sometimes"}, "must be one of 'no', 'steps', 'epoch'"),
    ],
)
def test_a_bad_call_argument_is_refused_at_the_call(tiny_model_path, options, message):
    trainer = make_trainer(tiny_model_path)
    with pytest.raises(ConfigError, match=message):
        trainer(**options)


def test_several_mistakes_are_reported_at_once(tiny_model_path):
    with pytest.raises(ConfigError, match="2 problems") as info:
        make_trainer(tiny_model_path, batch_size=0, max_length=0)
    assert "batch_size=0" in str(info.value) and "max_length=0" in str(info.value)


def test_the_second_name_is_the_same_trainer():
    from main.trainer.llm_lora import Trainer as Second

    assert Second is Trainer


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("main", ["torch", "transformers", "numpy"]),
        ("main.errors", ["torch"]),
        ("main.evaluation.metrics", ["torch"]),
        ("main.trainer.lora", ["vllm", "deepspeed", "trl", "chromadb", "sentence_transformers"]),
    ],
)
def test_an_import_loads_only_what_it_needs(module, absent):
    code = f"import sys, {module}; print([m for m in {absent!r} if m in sys.modules])"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_an_import_changes_neither_environment_nor_root_logger():
    code = (
        "import logging, os; before = dict(os.environ), list(logging.root.handlers);"
        "import main.trainer.lora, main.predictor.hf, main.evaluation.inferences;"
        "after = dict(os.environ), list(logging.root.handlers);"
        "ours = {k for k in after[0] if after[0][k] != before[0].get(k)};"
        "import torch; assert not torch.distributed.is_initialized();"
        "assert before[1] == after[1]; print(sorted(ours))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
