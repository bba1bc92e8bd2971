"""GRPO and PPO with tools and environments, and `Predictor.run`, on a policy that calls a tool."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tool_policy import (
    LEARNT,
    dialogue,
    encoded_row,
    order_status,
    question,
    save_tool_policy,
    tool_tokenizer,
    write_orders,
)
from vllm_models import ENGINE

from main.dialogue.episodes import Drawn, Episode
from main.errors import ConfigError, DataError, RewardError
from main.predictor.hf import Predictor
from main.trainer import grpo, ppo
from main.trainer.loop.task import Run
from main.trainer.online.batch import collate
from main.trainer.online.records import samples_table
from main.trainer.online.sample import Prompt, Sample
from main.trainer.policy.logprobs import scoring
from main.trainer.ppo.experience import credit, token_rewards

pytestmark = pytest.mark.usefixtures("own_folder")
RUN: dict[str, Any] = {
    "num_generations": 4,
    "max_completion_length": 200,
    "num_epochs": 1,
    "report_to": "none",
    "save_strategy": "no",
    "eval_strategy": "no",
    "logging_steps": 1,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tool_policy(tmp_path_factory.mktemp("tools") / "policy")


@pytest.fixture(scope="module")
def predictor(model) -> Predictor:
    return Predictor(model)


def right(completions, answer, **columns) -> list[float]:
    said = [messages[-1].get("content") or "" for messages in completions]
    return [float(status in text) for text, status in zip(said, answer, strict=True)]


def even(completion_ids, **columns) -> list[float]:
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


def make_trainer(model: Path, kind: Any = grpo, **changes: Any) -> Any:
    answers = {} if kind is grpo else {"gold_answers": "a", "bad_answers": "b"}
    rows = write_orders(Path("orders.jsonl"), **answers)
    arguments = {"from_pretrained": model, "data_path": {"train": rows}, "batch_size": 8}
    return kind.Trainer(**arguments | {"lora_r": 4, "task_name": "tools"} | changes)


def opened(trainer: Any, **options: Any) -> Any:
    task = trainer.task(**RUN | {"reward_func": right} | options)
    task.open(Run(task.model, torch.device("cpu")))
    return task


def prompts(task: Any, count: int = 4) -> list[Prompt]:
    return [Prompt(task.train_data[i], n) for i in range(2) for n in range(count)]


# -- one sequence of ids


def test_sft_grpo_and_run_give_one_sequence_of_ids_for_one_episode(model, predictor):
    row = encoded_row(tool_tokenizer()).input_ids
    (found,) = predictor.run([question(LEARNT)], tools=[order_status])
    assert row[: len(found.token_ids)] == found.token_ids
    assert tool_tokenizer().decode(row[len(found.token_ids) :]) == "\n"  # behind the end token
    assert found.messages == dialogue(LEARNT) and found.text == "It is lost."
    task = opened(make_trainer(model), tools=[order_status])
    (sample,) = task.draw([Prompt(task.train_data[0])], [0], greedy=True)
    assert sample.prompt.ids + sample.ids == found.token_ids
    assert [False] * len(sample.prompt.ids) + sample.drawn.tolist() == found.drawn
    trained = encoded_row(tool_tokenizer()).loss_mask[: len(found.drawn)]
    assert found.drawn == trained


def test_a_batch_runs_as_each_request_alone_and_seeds_repeat_it(predictor):
    asked = [question("17"), question("23")]
    options = {"tools": [order_status], "temperature": 1.0, "seed": 3, "max_new_tokens": 90}
    both = predictor.run(asked, **options)
    assert both == [*predictor.run([asked[0]], **options), *predictor.run([asked[1]], **options)]
    twice = predictor.run("x", num_return_sequences=2, **options)
    assert len(twice) == 2 and twice[0].token_ids != twice[1].token_ids


def test_run_tells_what_cut_a_dialogue_and_refuses_what_cannot_work(predictor):
    short = predictor.run([question(LEARNT)], tools=[order_status], max_new_tokens=5)[0]
    assert short.finish_reason == "length" and sum(short.drawn) == 5
    run = predictor.run
    with pytest.raises(ConfigError, match="max_tool_calling_iterations=0 must be a number >= 1"):
        run("x", tools=[order_status], max_tool_calling_iterations=0)
    with pytest.raises(ConfigError, match=r"tools=\(\) must be a list"):
        run("x")
    with pytest.raises(ConfigError, match=r"\['stop'\] shape the text of one answer"):
        run("x", tools=[order_status], stop="a")
    with pytest.raises(ConfigError, match="tools"):
        run("x", tools=[order_status], build_message=False)


# -- what is learnt from


def test_sampling_log_probs_are_those_of_the_whole_episode_and_nothing_added_counts(model):
    task = opened(make_trainer(model), tools=[order_status])
    samples = task.draw(prompts(task), list(range(8)))
    assert any(not sample.drawn.all() for sample in samples)
    batch = collate(samples, task.pad_id, task.shares_prompts)
    with scoring(task.model):
        logprobs = batch.by_completion(task.model(**batch.inputs()).logprobs)
    assert float((logprobs - batch.sampling_logprobs)[batch.mask].abs().max()) < 1e-4
    added = batch.present & ~batch.mask
    assert added.any() and batch.sampling_logprobs[added].isnan().all()
    task.reward(samples)
    length, number = task.described(samples)["completion_length"]
    assert length == int(batch.mask.sum()) and number == 8


def test_the_gradient_does_not_know_what_was_added(model):
    """Losses at added tokens would show: their log-probs, their advantages, their entropy."""
    task = opened(make_trainer(model), tools=[order_status], beta=0.1, entropy_coef=0.01)
    samples = task.draw(prompts(task), list(range(8)))
    for n, sample in enumerate(samples):
        sample.advantages = torch.full((len(sample.ids),), 1.0 - n % 2)
    task._score(samples)
    batch = task.collate(samples)
    expected = task.loss(batch.tensors, batch.counts).loss
    added = batch.tensors.present & ~batch.tensors.mask
    assert added.any()
    for name in ("advantages", "ref_logprobs", "sampling_logprobs"):
        getattr(batch.tensors, name)[added] = 1e6
    assert batch.counts["tokens"] == sum(int(sample.drawn.sum()) for sample in samples)
    assert torch.equal(task.loss(batch.tensors, batch.counts).loss, expected)


def episode(*segments: tuple[list[int], float | None]) -> Sample:
    """Drawn segments have a reward, added ones None."""
    played = Episode([], [9, 9])  # type: ignore[arg-type]
    for ids, reward in segments:
        if reward is None:
            played.add([], ids)
        else:
            played.take(Drawn(ids, [-1.0] * len(ids), True), {"role": "assistant"})
            played.credit(reward)
    row = {"row": 1, "prompt_ids": [9, 9], "prompt": '"q"', "columns": "{}"}
    return Sample.of(Prompt(row), played, "")


def test_advantages_step_over_what_was_added():
    """Two turns [a b] + [x y z] + [c], rewards 1 and 2 and a score of 10 at the end.

    V = 1 2 | . . . | 4; discount 1, lambda 1: A = sum of the rewards to come - V
    a: 1 + 2 + 10 - 1 = 12, b: 13 - 2 = 11, c: 12 - 4 = 8.
    """
    sample = episode(([1, 2], 1.0), ([5, 6, 7], None), ([3], 2.0))
    sample.old_values = torch.tensor([1.0, 2.0, 99.0, -99.0, 99.0, 4.0])
    sample.old_logprobs = sample.ref_logprobs = torch.full((6,), -1.0)
    steps = [sample.step_rewards]
    rewards, mask = token_rewards([sample], torch.tensor([13.0]), "last", 0.0, "k1", steps)
    assert rewards.tolist() == [[0.0, 1.0, 12.0]]
    credit([sample], rewards, mask, torch.zeros(1), 1.0, 1.0)
    assert sample.advantages.tolist() == [12, 11, 0, 0, 0, 8]
    assert sample.returns.tolist() == [13, 13, 0, 0, 0, 12]
    credit([sample], rewards, mask, torch.zeros(1), 0.5, 0.0)  # one step: r + V' / 2 - V
    assert sample.advantages.tolist() == [0.0, 1 + 2 - 2, 0, 0, 0, 12 - 4]


class Greets:
    """Rewards each turn by its letters, and is done after two."""

    def reset(self, row):
        self.turns = 0

    def step(self, text):
        self.turns += 1
        reward = sum(letter.isalpha() for letter in text) / 100
        return [{"role": "user", "content": "And?"}], reward, self.turns == 2


@pytest.mark.parametrize("kind", [grpo, ppo])
def test_rewards_of_an_environment_are_credited_to_their_turns_and_summed(model, kind):
    task = opened(make_trainer(model, kind), environment_factory=Greets, reward_func=None)
    samples = task.draw(prompts(task), list(range(8)))
    logged = task.reward(samples)
    assert logged == {} and task.part_names == ["environment"]
    for sample in samples:
        assert sample.episode.turns <= 2
        assert sample.reward == sample.parts["environment"] == float(sample.step_rewards.sum())
        ends = sample.step_rewards.nonzero()[:, 0].tolist()
        assert all(bool(sample.drawn[end]) for end in ends)
    assert {s.episode.turns for s in samples} == {1, 2} or all(s.ended for s in samples)
    assert any(sample.ended for sample in samples)
    table = samples_table(samples, task.part_names)
    assert "[user] And?" in table


@pytest.mark.parametrize("kind", [grpo, ppo])
def test_a_run_with_tools_trains_and_records_turns_and_calls(model, kind):
    trainer = make_trainer(model, kind)
    before = [p.clone() for p in trainer.model.parameters() if p.requires_grad]
    options = RUN | {"reward_func": even, "tools": [order_status], "lr": 1e-2, "warmup_ratio": 0.0}
    (result,) = trainer(**options, max_tool_calling_iterations=2)
    assert result.train["turns"] == pytest.approx(1 + result.train["tools/calls"], abs=0.26)
    assert result.train["tools/calls"] > 0 and result.train["tools/failures"] >= 0
    after = [p for p in trainer.model.parameters() if p.requires_grad]
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    with Path("data_record/tools/train.csv").open() as file:
        assert {"turns", "tools/calls", "tools/failures", "tools/seconds"} <= set(
            next(csv.reader(file))
        )


@pytest.mark.long
@pytest.mark.vllm
def test_an_engine_of_vllm_plays_the_same_episodes(model):
    own = opened(make_trainer(model), tools=[order_status])
    theirs = opened(make_trainer(model), tools=[order_status], use_vllm=True, vllm_mode="colocate")
    try:
        asked = [Prompt(own.train_data[i]) for i in range(2)]
        greedy = [task.draw(asked, [0, 0], greedy=True) for task in (own, theirs)]
        for one, other in zip(*greedy, strict=True):
            assert one.ids == other.ids and torch.equal(one.drawn, other.drawn)
            assert one.messages == other.messages
        assert any(not sample.drawn.all() for sample in greedy[1])
    finally:
        theirs.close()


@pytest.mark.long
@pytest.mark.vllm
def test_vllm_runs_tools_as_transformers_do(model, predictor):
    from main.predictor.vllm import Predictor as VLLMPredictor

    asked = [question("17"), question("23")]
    with VLLMPredictor(model, **ENGINE) as other:
        assert other.run(asked, tools=[order_status]) == predictor.run(asked, tools=[order_status])


# -- what cannot work


def test_arguments_that_cannot_work_are_refused(model):
    trainer = make_trainer(model)

    def refused(problem: str, **options: Any) -> None:
        with pytest.raises(ConfigError, match=problem):
            trainer.task(**RUN | {"reward_func": right} | options)

    refused("max_tool_calling_iterations=0 must be 1 or more", tools=[order_status],
            max_tool_calling_iterations=0)  # fmt: skip
    refused("tool_timeout=0 must be", tools=[order_status], tool_timeout=0)
    refused("two tools called", tools=[order_status, order_status])
    refused("give one of them", tools=[order_status], environment_factory=Greets)
    refused("tool_timeout.*neither tools nor environment_factory", tool_timeout=1.0)
    refused("GRPO needs 'reward_func'", reward_func=None)
    refused("must be a function or class", environment_factory=3)


def test_rows_with_tools_of_their_own_are_refused_beside_functions(model):
    path = Path("own.jsonl")
    rows = [{"prompt": question("23"), "tools": [{"name": "f"}]}, {"prompt": question("17")}]
    path.write_text("\n".join(map(json.dumps, rows)))
    trainer = make_trainer(model, data_path={"train": path})
    with pytest.raises(DataError, match=r"line 1.*tools of its own beside the functions"):
        trainer.task(**RUN | {"reward_func": right}, tools=[order_status])


def test_a_prompt_of_plain_text_shows_no_tools(model):
    path = Path("text.jsonl")
    path.write_text(json.dumps({"prompt": "Say"}))
    trainer = make_trainer(model, data_path={"train": path})
    with pytest.raises(DataError, match="plain text uses no chat template, which shows tools"):
        trainer.task(**RUN | {"reward_func": right}, tools=[order_status])


def test_an_environment_that_fails_ends_the_run_by_its_row(model):
    class Fails(Greets):
        def step(self, text):
            raise OSError("gone")

    run = make_trainer(model)(**RUN, environment_factory=Fails)
    with pytest.raises(RewardError, match=r"environment Fails, row \d.*raised OSError: gone"):
        next(run)


# -- a run that is killed inside an episode

SCRIPT = """
import os, sys
from pathlib import Path
from test_tools import RUN, make_trainer, right
from tool_policy import ORDERS

calls = 0

def order_status(number: str) -> str:
    \"\"\"Look up.

    Args:
        number: of the order
    \"\"\"
    global calls
    calls += 1
    if calls == int(sys.argv[2]):
        os.kill(os.getpid(), 9)
    return ORDERS[number]

options = RUN | {"save_strategy": "steps", "save_steps": 1, "num_epochs": 3, "lr": 1e-2}
run = make_trainer(Path(sys.argv[1]))(
    **options, reward_func=right, tools=[order_status], resume_from_checkpoint="auto"
)
for result in run:
    print("STEP", result.step, calls, flush=True)
"""


def in_a_process(model: Path, folder: Path, kill_at: int) -> subprocess.CompletedProcess:
    folder.mkdir(exist_ok=True)
    (folder / "run.py").write_text(SCRIPT)
    here = Path(__file__).parent
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(here.parent), str(here)])}
    command = [sys.executable, "run.py", str(model), str(kill_at)]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    newest = max((folder / "save_model/tools").glob("Llama_*"), key=lambda p: int(p.name[6:]))
    return load_file(newest / "adapter_model.safetensors")


@pytest.mark.long
def test_a_run_killed_inside_an_episode_goes_on_to_the_same_bits(model, tmp_path):
    whole = in_a_process(model, tmp_path / "whole", 0)
    assert whole.returncode == 0, whole.stderr
    lines = [line.split() for line in whole.stdout.splitlines() if line.startswith("STEP")]
    steps = [(int(step), int(calls)) for _, step, calls in lines]
    inside = (steps[1][1] + steps[2][1] + 1) // 2  # in the third draw
    assert steps[1][1] < inside <= steps[2][1]
    killed = in_a_process(model, tmp_path / "killed", inside)
    assert killed.returncode == -signal.SIGKILL
    again = in_a_process(model, tmp_path / "killed", 0)
    assert again.returncode == 0, again.stderr
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
