"""GRPO end to end on a tiny model: the guide's call, records, resume, processes, errors."""

import csv
import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
from tiny_grpo import RUN, adapter, distance, early_tokens, make_trainer, run, trained

from main.errors import ConfigError, MainError, RewardError
from main.trainer.loop.task import MicroBatch
from main.trainer.loop.task import Run as TaskRun
from main.trainer.online.sample import Prompt

pytestmark = pytest.mark.usefixtures("own_folder")


def table(name: str) -> list[dict[str, str]]:
    with Path(f"data_record/demo/{name}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_step_records_rewards_lengths_and_how_far_sampler_and_trainer_are_apart(tiny_model_path):
    def constant(completions, **kwargs):
        return [2.0] * len(completions)

    trainer = make_trainer(tiny_model_path)
    result = next(
        run(trainer, reward_func=[early_tokens, constant], beta=0.1, eval_strategy="epoch",
            save_strategy="epoch")
    )  # fmt: skip
    train, evaluation = result.train, result.eval
    assert train["rewards/constant/mean"] == 2.0
    assert train["reward/mean"] == pytest.approx(train["rewards/early_tokens/mean"] + 2.0)
    assert train["reward/std"] > 0 and train["frac_reward_zero_std"] == 0
    assert 1 <= train["completion_length"] <= 6 and 0 <= train["ended"] <= 1
    assert train["clip_fraction"] == 0  # one update a draw
    assert 0 < train["entropy"] < 11 and train["kl"] >= 0
    assert train["sampling_mismatch"] < 1e-4
    assert {"reward/mean", "rewards/constant/mean", "completion_length", "ended"} <= set(evaluation)
    assert result.step == 2
    text = Path("data_record/demo/samples_1.md").read_text(encoding="utf-8").splitlines()
    assert text[0] == "| prompt | completion | early_tokens | constant | reward | advantage |"
    assert len(text) == 2 + 8 and all(len(re.findall(r"(?<!\\)\|", line)) == 7 for line in text)
    assert (result.checkpoint / "adapter_model.safetensors").is_file()
    assert [row["step"] for row in table("eval")] == ["2"]


def test_reward_functions_know_the_step_and_what_they_log_is_recorded(tiny_model_path):
    steps: list[tuple[int, int]] = []

    def noting(completion_ids, trainer_state, log_metric, log_extra):
        steps.append((trainer_state.global_step, trainer_state.max_steps))
        log_metric("tokens", sum(map(len, completion_ids)))
        log_extra("first|token", [ids[0] for ids in completion_ids])
        return early_tokens(completion_ids)

    (result,) = run(make_trainer(tiny_model_path), reward_func=noting, eval_strategy="epoch")
    assert steps == [(0, 2), (1, 2), (2, 2)]  # two draws, one batch to evaluate
    assert result.train["logged/tokens"] == pytest.approx(8 * result.train["completion_length"])
    assert result.eval["logged/tokens"] > 0
    lines = Path("data_record/demo/samples_1.md").read_text(encoding="utf-8").splitlines()
    assert lines[0].endswith(r"| advantage | first\|token |")
    assert all(re.search(r"\| \d+ \|$", line) for line in lines[2:])


def test_the_reward_rises_on_a_tiny_model_and_only_the_adapter_moves(tiny_model_path):
    trainer = make_trainer(tiny_model_path, rows=8)
    base = {n: p.clone() for n, p in trainer.model.named_parameters() if not p.requires_grad}
    before = adapter(trainer)
    # Half of the tokens lie on one side of the embedding; the policy can turn towards them.
    liked = trainer.causal_lm.get_input_embeddings().weight[:, 0] > 0

    def one_side(completion_ids, **kwargs):
        return [float(liked[ids].float().mean()) for ids in completion_ids]

    sizes = {"num_generations": 8, "per_device_train_batch_size": 32}
    results = list(
        run(trainer, reward_func=one_side, num_epochs=6, temperature=0.05, lr=2e-2, **sizes)
    )
    rewards = [result.train["reward/mean"] for result in results]
    assert rewards[-1] > rewards[0] + 0.2, rewards
    after = adapter(trainer)
    assert all(not torch.equal(before[name], after[name]) for name in before)
    for name, parameter in trainer.model.named_parameters():
        if name in base:
            assert torch.equal(parameter, base[name])


def test_completions_of_a_prompt_differ_and_a_seed_repeats_the_run(tiny_model_path):
    seen: list[list[list[int]]] = []

    def watch(completion_ids, **kwargs):
        seen.append([list(ids) for ids in completion_ids])
        return early_tokens(completion_ids)

    first = trained(tiny_model_path, reward_func=watch)
    assert all(len({tuple(ids) for ids in draw}) == len(draw) for draw in seen)
    again = trained(tiny_model_path, reward_func=watch)
    assert seen[:2] == seen[2:] and distance(first, again) == 0
    assert distance(first, trained(tiny_model_path, seed=1)) > 0


@pytest.mark.parametrize(
    ("changes", "against"),
    [
        *(({"loss_type": name}, {}) for name in ("grpo", "dr_grpo", "gspo", "cispo", "sapo")),
        *(({"loss_type": name}, {}) for name in ("luspo", "vespo")),
        ({"loss_type": "bnpo", "per_device_train_batch_size": 4,
          "gradient_accumulation_steps": 2}, {"per_device_train_batch_size": 4,
          "gradient_accumulation_steps": 2}),
        ({"epsilon": 0.01}, {}),
        ({"epsilon_high": 0.01}, {}),
        ({"loss_type": "cispo", "epsilon_high": 0.9}, {"loss_type": "cispo"}),
        ({"loss_type": "sapo", "sapo_temperature_pos": 3.0}, {"loss_type": "sapo"}),
        ({"loss_type": "sapo", "sapo_temperature_neg": 3.0}, {"loss_type": "sapo"}),
        ({"advantage": "rloo"}, {}),
        ({"advantage": "reinforce++"}, {}),
        ({"scale_rewards": "batch"}, {}),
        ({"scale_rewards": False}, {}),
        ({"beta": 0.5}, {}),
        ({"beta": 0.5, "kl_estimator": "k2"}, {"beta": 0.5}),
        ({"beta": 0.5, "unbiased_kl": False}, {"beta": 0.5}),
        ({"importance_sampling_cap": 0.5}, {}),
        ({"importance_sampling_cap": None, "repetition_penalty": 1.5},
         {"repetition_penalty": 1.5}),
        ({"mask_truncated_completions": True}, {}),
        ({"overlong_cache": 3}, {}),
        ({"temperature": 0.5}, {}),
        ({"top_p": 0.5}, {}),
        ({"top_k": 5}, {}),
        ({"min_p": 0.9}, {}),
        ({"repetition_penalty": 1.5}, {}),
        ({"max_completion_length": 3}, {}),
        ({"num_generations": 2}, {}),
        ({"num_iterations": 3}, {}),
        ({"reward_weights": [3.0], "scale_rewards": "none"}, {"scale_rewards": "none"}),
        ({"multi_objective_aggregation": "normalize_then_sum"}, {}),
        ({"beta": 0.5, "sync_ref_model": True, "ref_model_sync_steps": 1}, {"beta": 0.5}),
        ({"beta": 0.5, "sync_ref_model": True, "ref_model_sync_steps": 1,
          "ref_model_mixup_alpha": 0.1},
         {"beta": 0.5, "sync_ref_model": True, "ref_model_sync_steps": 1}),
        ({"steps_per_generation": 2}, {}),
        ({"delta": 1.21}, {}),
        ({"importance_sampling_level": "sequence"}, {}),
        ({"off_policy_mask_threshold": 0.0}, {}),
        ({"top_entropy_quantile": 0.2}, {}),
        ({"entropy_coef": 0.5}, {}),
        ({"importance_sampling_floor": 1.5}, {}),
        ({"importance_sampling_mode": "token_mask", "importance_sampling_cap": 0.9},
         {"importance_sampling_cap": 0.9}),
        ({"importance_sampling_mode": "sequence_truncate", "repetition_penalty": 1.5},
         {"repetition_penalty": 1.5}),
    ],
    ids=str,
)  # fmt: skip
def test_every_option_changes_what_is_learnt(tiny_model_path, changes, against):
    changed, plain = learnt(tiny_model_path, changes), learnt(tiny_model_path, against)
    assert distance(changed, plain) > 1e-6


LEARNT: dict[str, dict[str, torch.Tensor]] = {}


def learnt(model: Path, changes: dict) -> dict[str, torch.Tensor]:
    """The adapter after two draws of two updates each; kept, as many tests compare with it."""
    if str(changes) not in LEARNT:
        base = {"num_iterations": 2, "lr": 3e-2, "reward_func": ending_reward}
        LEARNT[str(changes)] = trained(model, **(base | changes))
    return LEARNT[str(changes)]


def ending_reward(completion_ids, **kwargs):
    return [float(sum(ids) % 7) for ids in completion_ids]


def test_sharing_the_prompt_changes_nothing(tiny_model_path):
    shared = trained(tiny_model_path, beta=0.1, num_iterations=2)
    apart = trained(tiny_model_path, beta=0.1, num_iterations=2, share_prompts=False)
    assert distance(shared, apart) < 1e-4


def test_equal_rewards_teach_nothing_and_are_not_nan(tiny_model_path):
    trainer = make_trainer(tiny_model_path)
    before = adapter(trainer)
    (result,) = run(trainer, reward_func=lambda completions, **_: [0.1] * len(completions))
    assert result.train["frac_reward_zero_std"] == 1 and result.train["loss"] == 0
    assert distance(before, adapter(trainer)) == 0


def test_completions_that_are_all_cut_off_and_masked_teach_nothing(tiny_model_path, caplog):
    trainer = make_trainer(tiny_model_path)
    trainer.causal_lm.generation_config.eos_token_id = None
    before = adapter(trainer)
    (result,) = run(trainer, mask_truncated_completions=True)
    assert result.train["ended"] == 0 and result.train["completion_length"] == 6
    assert result.train["loss"] == 0 and "cut every completion" in caplog.text
    assert result.train["reward/std"] > 0 and distance(before, adapter(trainer)) == 0


def test_groups_with_equal_rewards_are_drawn_again_within_bounds(tiny_model_path):
    draws: list[int] = []

    def equal_at_first(completion_ids, **kwargs):
        draws.append(len(completion_ids))
        if len(draws) == 1:  # the first group equal, the second not
            return [0.0] * 4 + [1.0, 2.0, 3.0, 4.0]
        return [1.0, 2.0, 3.0, 4.0] if len(draws) == 2 else [0.0] * len(completion_ids)

    trainer = make_trainer(tiny_model_path)
    (result,) = run(trainer, reward_func=equal_at_first, dynamic_sampling=2)
    # Draw 1: the group of 4 again, once. Draw 2: both groups equal whatever happens, twice again.
    assert draws == [8, 4, 8, 8, 8]
    assert result.train["frac_reward_zero_std"] == 0.5 and result.train["frac_redrawn"] == 0.75


def test_a_draw_may_be_made_into_several_steps_by_the_policy_that_drew_it(tiny_model_path):
    """16 completions: two draws of 8 in one step each, or one of 16 in two steps of 8."""
    sizes: list[int] = []

    def watching(completion_ids, **kwargs):
        sizes.append(len(completion_ids))
        return early_tokens(completion_ids)

    def train(rows=4, **changes):
        sizes.clear()
        (result,) = run(make_trainer(tiny_model_path, rows), reward_func=watching, **changes)
        return result

    assert train().step == 2 and sizes == [8, 8]
    result = train(steps_per_generation=2)
    assert result.step == 2 and sizes == [16]
    # In the first step the ratio is 1, in the second the policy has moved away from who drew.
    assert train(steps_per_generation=2, num_iterations=2).step == 4 and sizes == [16]
    assert train(rows=3, steps_per_generation=2).step == 2 and sizes == [12]
    assert train(rows=1, num_generations=2, steps_per_generation=4).step == 4


def test_the_steps_of_a_draw_are_its_completions_each_once(tiny_model_path):
    trainer = make_trainer(tiny_model_path, 4)
    task = trainer.task(**RUN | {"steps_per_generation": 4, "per_device_train_batch_size": 4,
                                 "num_iterations": 2})  # fmt: skip
    task.open(TaskRun(task.model, torch.device("cpu")))
    rows = [trainer.train_data[i] for i in range(4)]
    drawn = [
        MicroBatch([Prompt(row, n) for n in range(4)], True, part) for part, row in enumerate(rows)
    ]
    updates = list(task.updates(drawn, 0))
    task.close()
    assert len(updates) == 8 and [bool(u.metrics) for u in updates] == [True] + [False] * 7
    seen = [[s.row["row"] for micro in u.micro_batches for s in micro.items] for u in updates]
    assert seen == 2 * [[row["row"]] * 4 for row in rows]
    samples = [s for u in updates for micro in u.micro_batches for s in micro.items]
    assert all(len(s.old_logprobs) == len(s.ids) for s in samples)


def test_evaluation_draws_as_many_as_asked_for_and_the_same_each_time(tiny_model_path):
    seen: list[list] = []

    def watching(completion_ids, answer, **kwargs):
        if len(answer) == 6:  # three rows of dev.jsonl
            seen.append(list(zip(answer, map(tuple, completion_ids), strict=True)))
        return early_tokens(completion_ids)

    changes = {"eval_strategy": "steps", "eval_steps": 1, "lr": 0.0, "num_generations_eval": 2}
    list(run(make_trainer(tiny_model_path), reward_func=watching, **changes))
    first, second = seen
    assert first == second
    answers, drawn = zip(*first, strict=True)
    assert answers[0] == answers[1] != answers[2] == answers[3]
    assert len(set(drawn)) > 3  # the two of a prompt differ


def test_the_overlong_penalty_is_part_of_the_reward_and_recorded(tiny_model_path):
    trainer = make_trainer(tiny_model_path)
    zero = lambda completions, **_: [0.0] * len(completions)  # noqa: E731
    (result,) = run(trainer, reward_func=zero, overlong_cache=5, max_completion_length=6)
    train = result.train
    assert train["reward/mean"] == pytest.approx(train["rewards/overlong/mean"])
    assert train["reward/mean"] < 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_generations": 1}, "num_generations=1 must be >= 2"),
        ({"num_generations": 3}, r"num_generations=3 does not divide the 8 completions"),
        ({"temperature": 0.0}, "temperature=0.0 must be > 0"),
        ({"reward_func": []}, "reward_func is empty"),
        ({"reward_weights": [1.0, 2.0]}, "2 entries for 1 reward functions"),
        ({"epsilon": -0.1}, "epsilon=-0.1 must be above 0"),
        ({"overlong_cache": 6}, "overlong_cache=6 must be less than max_completion_length=6"),
        ({"advantage": "reinforce++", "scale_rewards": "group"}, "does not go with"),
        ({"loss_type": "gpro"}, "loss_type='gpro' must be one of"),
        ({"max_completion_length": 1020}, "exceeds the model's context of 1024"),
        ({"kl_estimator": "k2"}, "kl_estimator='k2' changes nothing with beta=0"),
        ({"loss_type": "cispo", "epsilon": 0.1}, "epsilon=0.1 changes nothing with loss_type='ci"),
        ({"sapo_temperature_neg": 2.0}, "changes nothing with loss_type='dapo'"),
        (
            {"multi_objective_aggregation": "normalize_then_sum", "scale_rewards": "batch"},
            "scale_rewards='batch' changes nothing with multi_objective_aggregation='normalize",
        ),
        ({"delta": 1.2}, r"delta=1.2 must be above 1 \+ epsilon_high = 1.2"),
        (
            {"steps_per_generation": 3, "gradient_accumulation_steps": 2},
            "steps_per_generation=3 must be a multiple of gradient_accumulation_steps=2",
        ),
        ({"sync_ref_model": True}, "sync_ref_model=True changes nothing with beta=0"),
        ({"beta": 0.1, "ref_model_sync_steps": 5}, "changes nothing with sync_ref_model=False"),
        ({"top_entropy_quantile": 0.0}, "top_entropy_quantile=0.0 must be in"),
        (
            {"importance_sampling_cap": None, "importance_sampling_mode": "token_mask"},
            "mode='token_mask' changes nothing with importance_sampling_cap=None",
        ),
        ({"importance_sampling_floor": 3.0}, "importance_sampling_floor=3.0 must not exceed"),
        (
            {"loss_type": "gspo", "importance_sampling_level": "token"},
            "importance_sampling_level='token' changes nothing with loss_type='gspo'",
        ),
        ({"loss_type": "cispo", "delta": 2.0}, "delta=2.0 changes nothing with loss_type='cispo'"),
        ({"num_generations_eval": 0}, "num_generations_eval=0 must be 1 or more"),
        ({"kl_estimator": "k1"}, "kl_estimator='k1' must be one of 'k2', 'k3'"),
        ({"num_generation": 4}, "Did you mean 'num_generations'"),
    ],
)
def test_what_cannot_work_is_refused_at_the_call(tiny_model_path, changes, said):
    with pytest.raises(ConfigError, match=said):
        run(make_trainer(tiny_model_path), **changes)


def test_dropout_is_refused_and_that_of_a_resumed_adapter_switched_off(tiny_model_path):
    with pytest.raises(ConfigError, match=r"lora_dropout=0\.1 must be 0"):
        make_trainer(tiny_model_path, lora_dropout=0.1)
    from main.trainer.lora import Trainer as SFT

    Path("sft.jsonl").write_text(
        json.dumps({"conversations": [{"role": "user", "content": "a"},
                                      {"role": "assistant", "content": "b"}]}), "utf-8"
    )  # fmt: skip
    sft = SFT(from_pretrained=tiny_model_path, data_path="sft.jsonl", lora_dropout=0.5, lora_r=4)
    (result,) = sft(num_epochs=1, report_to="none")
    trainer = make_trainer(tiny_model_path, resume_path=result.checkpoint)
    (result,) = run(trainer, beta=0.1, lr=0.0)
    # With dropout the policy would differ from its own start and from what it sampled with.
    assert result.train["kl"] == 0 and result.train["sampling_mismatch"] < 1e-4


def test_a_reward_function_that_raises_ends_the_run_with_its_name_and_rows(tiny_model_path):
    def picky(completions, answer, **kwargs):
        return [1.0 if wanted != "green" else 1 / 0 for wanted in answer]

    with pytest.raises(
        RewardError, match=r"'picky' raised ZeroDivisionError.*with rows \[\d, \d\]"
    ):
        list(run(make_trainer(tiny_model_path), reward_func=picky))


@pytest.mark.parametrize("mode", ["server", "colocate"])
def test_vllm_that_is_not_there_is_a_clear_error_and_the_trainer_can_go_on(tiny_model_path, mode):
    if mode == "colocate" and importlib.util.find_spec("vllm"):
        pytest.skip("vllm is installed: main/trainer/rollout/colocated.py has its own tests")
    trainer = make_trainer(tiny_model_path)
    options = {"use_vllm": True, "vllm_server_base_url": "http://127.0.0.1:9"}
    with pytest.raises(MainError, match=r"vllm|vLLM"):
        list(run(trainer, vllm_mode=mode, **options))
    assert len(list(run(trainer))) == 1
