"""Memory that does not suffice, anywhere: smaller pieces, the same results, and nothing stays."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import four_trainers
import pytest
import torch
from launchers import ROOT, environment, launch
from tiny_task import TinyTask, make_rows, same

from main.errors import GenerationError, ModelError, TrainingError
from main.models.encoder import SentenceEncoder
from main.system.memory import Room, is_out_of_memory
from main.trainer.loop.run import Loop
from main.trainer.rewards.model import RewardModel

METHODS = list(four_trainers.METHODS)
SETUP: dict[str, dict[str, Any]] = {"grpo": {"share_prompts": False}}
OPTIONS: dict[str, dict[str, Any]] = {"ppo": {"bootstrap_truncated": True}}
LONG = pytest.mark.long

LAUNCHED = """
import os, sys
sys.path.insert(0, sys.argv[1])
import four_trainers, test_memory
for method in sys.argv[3].split(","):
    for folder in ("roomy", "small"):
        trainer = test_memory.make_trainer(method, sys.argv[2], folder, batch_size=2)
        if folder == "small" and os.environ["RANK"] == "1":
            test_memory.limit(trainer, rows=1)
        test_memory.run(trainer, method, gradient_accumulation_steps=2)
        sys.stdout.write(f"RAN {method}\\n")
        sys.stdout.flush()
"""

LIMITED = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import four_trainers
user, answer = ({"role": role, "content": text} for role, text in
                (("user", "word " * 900), ("assistant", "yes")))
four_trainers.rows = lambda method, count: [{"conversations": [user, answer]}] * count
four_trainers.write_data(Path(), 128, 2)
trainer = four_trainers.make_trainer("lora", sys.argv[2], batch_size=128, max_length=1024)
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (600 << 20),) * 2)
(result,) = four_trainers.run(trainer, "lora", max_steps=1, num_epochs=1, eval_strategy="no",
                              save_strategy="no")
print("LOSS", result.train["loss"])
"""


@pytest.fixture(autouse=True)
def data(own_folder):
    four_trainers.write_data(own_folder, 4, 4)


def make_trainer(method: str, model: str | Path, folder: str, **changes: Any) -> Any:
    changes = SETUP.get(method, {}) | {"lora_dropout": 0.0, "output_dir": folder} | changes
    return four_trainers.make_trainer(method, model, **changes)


def run(trainer: Any, method: str, **changes: Any) -> list[Any]:
    return list(four_trainers.run(trainer, method, **(OPTIONS.get(method, {}) | changes)))


def limit(trainer: Any, rows: int) -> list[Any]:
    """Passes of more rows ask for memory that no machine has; what was seen of both kinds."""

    def ask(module, arguments, inputs):
        if len(inputs["input_ids"]) > rows:
            torch.empty(1 << 50)

    watched = trainer.model, trainer.causal_lm  # scores tokens; draws completions
    return [module.register_forward_pre_hook(ask, with_kwargs=True) for module in watched]


def adapter(trainer: Any) -> dict[str, torch.Tensor]:
    named = trainer.model.named_parameters()
    return {name: p.detach().clone() for name, p in named if p.requires_grad}


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("full"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("shapes do not fit"), False),
        (OSError(28, "No space left on device"), False),
        (TrainingError("out of memory at micro-batches of 1 rows"), False),
        (GenerationError("out of memory for one request alone"), False),
    ],
)  # fmt: skip
def test_every_way_in_which_an_allocation_fails_is_known(error, said):
    assert is_out_of_memory(error) == said


def test_what_was_computed_stays_and_the_rest_goes_on_in_halves():
    room, done = Room(4, "rows"), []

    def work(piece):
        if len(piece) > 2 and piece[0] >= 4:
            torch.empty(1 << 50)
        done.append(len(piece))
        return sum(piece)

    assert list(room.over(range(11), work)) == [6, 9, 13, 17, 10]
    assert (done, room.rows) == ([4, 2, 2, 2, 1], 2)
    with pytest.raises(TrainingError, match=r"out of memory at rows of 1 rows: buy memory"):
        list(Room(2, "rows", "buy memory").over([1, 2], lambda piece: torch.empty(1 << 50)))
    with pytest.raises(ZeroDivisionError):
        list(Room(2, "rows").over([1], lambda piece: 1 // 0))


@pytest.mark.parametrize("method", METHODS)
def test_training_drawing_references_critic_and_evaluation_give_the_same_in_pieces(
    method, tiny_model_path, monkeypatch, caplog
):
    monkeypatch.setattr("main.trainer.policy.reference_cache._read", lambda path, count: None)
    trainers, found = [], []
    for rows in (100, 1):
        trainer = make_trainer(method, tiny_model_path, f"{rows}")
        limit(trainer, rows)
        found.append(run(trainer, method, num_epochs=1))
        trainers.append(trainer)
    close(*map(adapter, trainers))
    assert [result.step for result in found[0]] == [result.step for result in found[1]]
    for name, value in found[0][-1].eval.items():
        assert found[1][-1].eval[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert "micro-batches of at most 1 rows" in caplog.text
    assert ("passes without a gradient of at most 1 rows" in caplog.text) == (method != "lora")
    assert ("evaluation batches of at most 1 rows" in caplog.text) == (method in ("lora", "dpo"))


@pytest.mark.parametrize(
    "method", [m if m in ("lora", "grpo") else pytest.param(m, marks=LONG) for m in METHODS]
)
def test_a_run_that_memory_ended_leaves_the_trainer_as_it_was(method, tiny_model_path):
    fresh, tried = (make_trainer(method, tiny_model_path, name) for name in ("fresh", "tried"))
    before = adapter(tried)
    hooks = limit(tried, rows=0)
    with pytest.raises((TrainingError, GenerationError), match="out of memory"):
        run(tried, method)
    for hook in hooks:
        hook.remove()
    assert all(torch.equal(value, adapter(tried)[name]) for name, value in before.items())
    assert all(p.grad is None for p in tried.model.parameters())
    results = [run(trainer, method, num_epochs=1) for trainer in (fresh, tried)]
    assert all(torch.equal(v, adapter(tried)[name]) for name, v in adapter(fresh).items())
    assert [r.eval for r in results[0]] == [r.eval for r in results[1]]


def test_encoder_and_reward_model_go_on_in_pieces(encoder_path, caplog):
    texts = ["one", "two words", "and three words", "", "一句话"]
    encoder = SentenceEncoder(encoder_path, batch_size=8, cache_size=0)
    expected = encoder.encode(texts)
    hook = encoder.model.register_forward_pre_hook(above(1), with_kwargs=True)
    torch.testing.assert_close(encoder.encode(texts), expected, rtol=1e-4, atol=1e-5)
    assert encoder.batch_size == 8 and "texts of the sentence encoder of at most 1" in caplog.text
    hook.remove()
    encoder.model.register_forward_pre_hook(above(0), with_kwargs=True)
    with pytest.raises(
        ModelError, match="out of memory at texts of the sentence encoder of 1 rows"
    ):
        encoder.encode(texts)


def test_a_reward_model_goes_on_in_pieces(tiny_model_path, tmp_path):
    judge = reward_model(tiny_model_path, tmp_path / "judge")
    prompts, completions = ["a", "b c", "d"], ["e", "f", "g h i"]
    expected = judge(prompts, completions)
    judge.model.register_forward_pre_hook(above(1), with_kwargs=True)
    assert judge(prompts, completions) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    judge.model.register_forward_pre_hook(above(0), with_kwargs=True)
    with pytest.raises(ModelError, match="out of memory at dialogues of the reward model of 1"):
        judge(prompts, completions)


def above(rows: int) -> Any:
    def ask(module, arguments, inputs):
        if len(inputs["input_ids"]) > rows:
            torch.empty(1 << 50)

    return ask


def reward_model(base: Path, folder: Path) -> RewardModel:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(base, num_labels=1)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return RewardModel(folder)


class Once(TinyTask):
    """The second micro-batch of the run asks for too much, once."""

    calls = 0

    def loss(self, tensors, totals):
        self.calls += 1
        if self.calls == 2:
            torch.empty(1 << 50)
        return super().loss(tensors, totals)


def test_of_a_step_that_is_made_again_no_gradient_counts_twice(tmp_path):
    tasks = TinyTask(make_rows(8)), Once(make_rows(8))
    options: dict[str, Any] = {"num_epochs": 1, "gradient_accumulation_steps": 2}
    whole, again = (list(t.start(tmp_path / str(i), **options)) for i, t in enumerate(tasks))
    assert [len(rows) for rows in tasks[1].seen] == [4, 4, 2, 2, 2, 2]
    for name in ("loss", "grad_norm"):
        assert again[0].train[name] == pytest.approx(whole[0].train[name], rel=1e-4), name


# -- several processes


@pytest.mark.distributed
def test_one_of_two_processes_is_short_of_memory_and_all_go_on_alike(tiny_model_path):
    Path("script.py").write_text(LAUNCHED, encoding="utf-8")
    arguments = str(ROOT / "tests"), str(tiny_model_path), ",".join(METHODS)
    done = launch("script.py", *arguments, by="torchrun", timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("RAN") == 4 * len(METHODS)  # by two processes, with and without
    assert "micro-batches of at most 1 rows" in done.stderr
    for method in METHODS:
        checkpoints = sorted(Path(f"roomy/save_model/{method}").glob("Llama_*"))
        assert checkpoints
        for path in checkpoints:
            pair = [tensors(Path(top) / path.relative_to("roomy")) for top in ("small", "roomy")]
            close(*pair)


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(checkpoint / "adapter_model.safetensors")


ENDED = """
import os, sys
sys.path.insert(0, sys.argv[1])
import four_trainers, test_memory
trainer = four_trainers.make_trainer("lora", sys.argv[2], batch_size=2)
if os.environ["RANK"] == "1":
    test_memory.limit(trainer, rows=int(sys.argv[3]))
list(four_trainers.run(trainer, "lora"))
"""


@pytest.mark.distributed
@pytest.mark.long
@pytest.mark.parametrize(
    ("by", "rows", "said"),
    [("torchrun", 0, "TrainingError: out of memory at micro-batches of 1 rows: use a smaller"),
     ("fsdp", 1, "of 2 rows, which the processes make together and not in smaller pieces")],
)  # fmt: skip
def test_where_nothing_helps_all_processes_end_with_what_to_do(by, rows, said, tiny_model_path):
    Path("script.py").write_text(ENDED, encoding="utf-8")
    began = time.monotonic()
    arguments = str(ROOT / "tests"), str(tiny_model_path), str(rows)
    done = launch("script.py", *arguments, by=by, timeout=600)
    assert done.returncode != 0 and said in done.stderr, done.stderr[-3000:]
    assert time.monotonic() - began < 400  # gloo alone would wait for half an hour


# -- the longest batch is tried first


class Known(TinyTask):
    most = 10**6  # tokens of a micro-batch, padding included

    def loss(self, tensors, totals):
        if tensors["input_ids"].numel() > self.most:
            torch.empty(1 << 50)
        return super().loss(tensors, totals)


def test_the_longest_row_is_tried_before_the_first_step_and_changes_nothing(tmp_path, monkeypatch):
    rows = make_rows(12, 3)
    longest = max(rows.lengths)

    def trained(name: str) -> TinyTask:
        task = TinyTask(rows, dropout=0.5)
        list(task.start(tmp_path / name, seed=9, num_epochs=2, group_by_length=False))
        return task

    tried = trained("tried")
    widths = [max(rows.lengths[number - 1] for number in seen) for seen in tried.seen]
    assert widths[0] == longest > widths[1] and len(widths) == 2 * 3 + 1
    monkeypatch.setattr(Loop, "_rehearse", lambda self, plan: None)
    untried = trained("untried")
    assert untried.seen == tried.seen[1:] and same(untried, tried)


def test_an_order_that_begins_with_the_longest_row_needs_no_trial_and_a_resume_makes_one(tmp_path):
    rows = make_rows(12, 3)
    options: dict[str, Any] = {
        "num_epochs": 2, "save_strategy": "epoch", "resume_from_checkpoint": "auto"
    }  # fmt: skip
    whole, broken = TinyTask(rows, dropout=0.5), TinyTask(rows, dropout=0.5)
    list(whole.start(tmp_path / "whole", **options))
    assert len(whole.seen) == 6
    next(run := broken.start(tmp_path / "broken", **options))
    run.close()
    again = TinyTask(rows, dropout=0.5)
    list(again.start(tmp_path / "broken", **options))
    assert same(again, whole) and len(again.seen) in (3, 4)


def test_a_trial_that_memory_does_not_suffice_for_halves_the_steps_before_one_is_made(
    tmp_path, caplog
):
    rows, results = make_rows(12, 3), []
    for most in (10**6, 50):
        task = Known(rows)
        task.most = most
        results.append(list(task.start(tmp_path / f"{most}", seed=9, group_by_length=False)))
        assert [len(rows) for rows in task.seen[:3]] == ([4, 4, 4] if most > 50 else [4, 2, 2])
    assert "out of memory: micro-batches of at most 2 rows" in caplog.text
    assert results[1][-1].train["loss"] == pytest.approx(results[0][-1].train["loss"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS is Linux's")
def test_a_process_whose_memory_is_limited_trains_in_smaller_pieces(tiny_model_path):
    script = [sys.executable, "-c", LIMITED, str(ROOT / "tests"), str(tiny_model_path)]
    done = subprocess.run(script, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "out of memory: micro-batches of at most" in done.stderr and "LOSS" in done.stdout
