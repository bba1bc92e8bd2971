"""Answers to evaluation rows in training: what is asked, scores, records, refusals."""

import csv
import json
from pathlib import Path
from typing import Any

import four_trainers
import pytest
import torch
from launchers import launch
from run_results import results, same_numbers
from safetensors.torch import load_file
from vision_checkpoints import question, saved, write_rows

from main.errors import ConfigError, DataError, RewardError
from main.evaluation.metrics import evaluate_generation
from main.evaluation.named import named_scores
from main.options import parse
from main.predictor.hf import Predictor
from main.trainer.arguments import LoopOptions
from main.trainer.generated.asked import Reader, choose
from main.trainer.loop import best
from main.trainer.loop.state import RunState
from main.trainer.lora import Trainer
from main.utils.reward_func import reward_number

pytestmark = pytest.mark.usefixtures("own_folder")

ASK: dict[str, Any] = {"eval_generate": 4, "eval_max_new_tokens": 6, "eval_metrics": ["chrf"]}
ONCE: dict[str, Any] = {"num_epochs": 1, "report_to": "none", "lr": 1e-2}


def written(method: str, kind: str = "generated") -> list[dict[str, str]]:
    path = Path("data_record") / method / f"{kind}.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def run(model: Path, method: str, setup: dict | None = None, **options: Any) -> list:
    trainer = four_trainers.make_trainer(method, model, **(setup or {}))
    return list(four_trainers.run(trainer, method, **options))


def short(generated, references, answer):
    assert all(isinstance(text, str) for text in generated) and len(references) == len(answer)
    return [float(len(text) < len(gold[0])) for text, gold in zip(generated, references)]  # noqa: B905


@pytest.mark.parametrize("method", four_trainers.METHODS)
def test_answers_are_the_predictor_s_before_and_after_and_training_is_the_same_without_them(
    method, tiny_model_path
):
    four_trainers.write_data(Path())
    setup = {} if method == "grpo" else {"lora_dropout": 0.3}
    (plain,) = run(tiny_model_path, method, setup | {"output_dir": "plain"}, num_epochs=1)
    asked = ASK | {"eval_metrics": ["exact", "chrf", "ter", "rouge-l", short], "num_epochs": 1}
    (result,) = run(tiny_model_path, method, setup, **asked)
    with_answers, without = (
        load_file(Path(r.checkpoint) / "adapter_model.safetensors") for r in (result, plain)
    )
    assert all(torch.equal(tensor, without[name]) for name, tensor in with_answers.items())
    drawn = {name for name in result.eval if name.startswith("generated/")}
    assert {n: v for n, v in result.eval.items() if n not in drawn} == plain.eval

    lines = written(method)
    assert len(lines) == 4 and {line["step"] for line in lines} == {str(result.step)}
    rows = [four_trainers.rows(method, 7)[int(line["row"]) - 1] for line in lines]
    prompts = [row.get("prompt") or row["conversations"][:1] for row in rows]
    for name, peft in (("before", None), ("after", result.checkpoint)):
        answers = Predictor(tiny_model_path, peft)(prompts, max_new_tokens=6)
        assert [line[name] for line in lines] == answers, name
    golds = [
        row.get("gold_answers") or [row.get("answer") or row["conversations"][1]["content"]]
        for row in rows
    ]
    assert [line["reference"] for line in lines] == [" | ".join(gold) for gold in golds]
    scores = evaluate_generation(None, golds, answers, standard=True, n_bootstrap=0, show=False)
    assert result.eval["generated/chrf"] == scores["chrF"]
    assert result.eval["generated/ter"] == scores["TER"] > 0
    assert result.eval["generated/rouge-l"] == scores["ROUGE-L"]
    shorter = [len(a) < len(gold[0]) for a, gold in zip(answers, golds, strict=True)]
    assert result.eval["generated/short"] == sum(shorter) / 4
    first, last = written(method, "eval")
    before = named_scores(["ter"], golds, [line["before"] for line in lines])["ter"].value
    assert first["step"] == "0" and float(first["generated/ter"]) == before > 0
    assert float(last["generated/ter"]) == result.eval["generated/ter"]


@pytest.mark.distributed
def test_two_processes_find_what_one_does(tiny_model_path):
    four_trainers.write_data(Path())
    options = ASK | {"eval_generate": 5, "eval_metrics": ["chrf", "ter", "exact"], "num_epochs": 1}
    setup = {"output_dir": "two", "batch_size": 2, "model": str(tiny_model_path)}
    runs = [{"method": m, "options": options} | setup for m in ("lora", "grpo")]
    done = launch(Path(four_trainers.__file__), *map(json.dumps, runs))
    assert done.returncode == 0, done.stderr[-3000:]
    for method in ("lora", "grpo"):
        (one,) = run(tiny_model_path, method, **options)
        found = [evaluation for name, _, evaluation, _ in results(done.stdout) if name == method]
        assert len(found) == 2
        for evaluation in found:
            same_numbers(evaluation, one.eval, method)
        one_s = [(line["before"], line["after"]) for line in written(method)]
        two_s = Path("two/data_record") / method / "generated.csv"
        with two_s.open(encoding="utf-8", newline="") as file:
            assert [(line["before"], line["after"]) for line in csv.DictReader(file)] == one_s


def test_a_dialogue_is_asked_with_its_history_and_plain_text_without_a_template(tiny_model_path):
    turns = [("Hello.", "Hi."), ("Two and two?", "Four."), ("And one more?", "Five it is.")]
    roles = [[("user", u), ("assistant", a)] for u, a in turns]
    dialogue = [{"role": role, "content": text} for pair in roles for role, text in pair]
    chat = write_rows(Path("chat.jsonl"), [dialogue, dialogue[:4]])
    pure = Path("pure.jsonl")
    pure.write_text(json.dumps({"context": "Two and two: ", "target": "four"}), encoding="utf-8")
    for loader, path, prompts in (
        ("LLM_Chat", chat, [dialogue[:5], dialogue[:3]]),
        ("LLM_Pure", pure, ["Two and two: "]),
    ):
        setup = {"from_pretrained": tiny_model_path, "loader_name": loader, "task_name": loader}
        trainer = Trainer(data_path={"train": path, "dev": path}, **setup)
        (result,) = list(trainer(**ONCE, eval_generate=9, eval_max_new_tokens=8))
        told = {"build_message": False} if loader == "LLM_Pure" else {}
        answers = Predictor(tiny_model_path, result.checkpoint)(prompts, max_new_tokens=8, **told)
        assert [line["after"] for line in written(loader)] == answers
        asked = written(loader)[0]["prompt"]
        assert asked.endswith("Two and two: ") if told else "Four.<|im_end|>" in asked


def test_pictures_are_shown(vision_models):
    path = saved(Path("images"), "one.png", width=84, height=56, seed=0)
    rows = [[question("What is it?", path), {"role": "assistant", "content": "A box."}]]
    data = write_rows(Path("rows.jsonl"), rows)
    trainer = Trainer(
        from_pretrained=vision_models.path("qwen2_5_vl"),
        tokenizer=vision_models.template("qwen2_5_vl").tokenizer,
        data_path={"train": data, "dev": data},
        max_length=512,
    )
    (result,) = list(trainer(**ONCE, eval_generate=1, eval_max_new_tokens=6))
    (line,) = written("default")
    assert line["prompt"].count("<|image_pad|>") == 1
    predictor = Predictor(vision_models.path("qwen2_5_vl"), result.checkpoint)
    assert [line["after"]] == predictor([rows[0][:1]], max_new_tokens=6)


def test_in_bf16_and_after_a_resume_what_was_answered_before_training_is_known(
    tiny_model_path, caplog
):
    four_trainers.write_data(Path())
    options = ASK | {"bf16": True, "save_strategy": "epoch"}
    run(tiny_model_path, "lora", num_epochs=1, **options)
    first = {line["row"]: line["before"] for line in written("lora")}
    run(tiny_model_path, "lora", num_epochs=2, resume_from_checkpoint="auto", **options)
    lines = written("lora")
    assert [line["epoch"] for line in lines] == ["1"] * 4 + ["2"] * 4
    assert all(line["before"] == first[line["row"]] for line in lines)
    assert not caplog.messages or "nobody knows" not in caplog.text
    run(tiny_model_path, "lora", num_epochs=3, resume_from_checkpoint="auto",
        **options | {"eval_generate": 6})  # fmt: skip
    assert "of 2 of 6 rows nobody knows the answer before training" in caplog.text
    assert sum(line["before"] == "" for line in written("lora") if line["epoch"] == "3") >= 2


def test_memory_that_does_not_suffice_halves_the_answers_too(tiny_model_path, caplog):
    four_trainers.write_data(Path())
    (whole,) = run(tiny_model_path, "lora", num_epochs=1, **ASK)
    trainer = four_trainers.make_trainer("lora", tiny_model_path, batch_size_eval=4)

    def too_many(module, arguments):
        if not torch.is_grad_enabled() and len(arguments[0]) > 2:
            raise torch.OutOfMemoryError("of the test")

    trainer.policy.get_input_embeddings().register_forward_pre_hook(too_many)
    (halved,) = four_trainers.run(trainer, "lora", num_epochs=1, **ASK)
    assert halved.eval == pytest.approx(whole.eval)
    assert halved.eval["generated/chrf"] == whole.eval["generated/chrf"]


# -- which rows


def encoded(numbers: list[int], **changes: Any) -> Any:
    """One record each: three tokens of prompt, two of an answer, the second its end."""

    mask = [False] * 3 + [True] * 2
    row = {"input_ids": [5, 6, 7, 8, 2], "loss_mask": mask, "images": ""} | changes
    return [{**row, "row": number} for number in numbers]


READER = Reader(lambda ids: " ".join(map(str, ids)), frozenset({2}), 64)


def test_rows_are_spread_by_the_seed_and_more_of_them_include_the_fewer():
    data = encoded(list(range(1, 101)))
    few, more = (choose(data, count, 7, READER) for count in (5, 20))
    assert {a.row for a in few} < {a.row for a in more} and len(more) == 20
    assert [a.row for a in few] == sorted(a.row for a in few) != [1, 2, 3, 4, 5]
    assert [a.row for a in choose(data, 5, 8, READER)] != [a.row for a in few]
    assert [a.row for a in choose(data, 500, 7, READER)] == list(range(1, 101))


def test_records_of_one_row_are_asked_once_by_the_one_that_goes_furthest():
    data = encoded([1, 2, 2, 3])
    data[1] |= {"input_ids": [5, 9, 9, 9, 9, 8, 2], "loss_mask": [False] * 5 + [True] * 2}
    asked = choose(data, 9, 0, READER)
    assert [(a.place, a.row, a.prompt_ids) for a in asked] == [
        (0, 1, [5, 6, 7]),
        (1, 2, [5, 9, 9, 9, 9]),
        (3, 3, [5, 6, 7]),
    ]


def test_a_row_whose_answer_was_cut_is_passed_over_and_that_is_told(caplog):
    caplog.set_level("INFO")
    data = encoded([1, 2, 3])
    data[1] |= {"input_ids": [5, 6, 7, 8, 9]}
    short_reader = READER._replace(limit=5)
    assert [a.row for a in choose(data, 9, 0, short_reader)] == [1, 3]
    assert "passes over 1 evaluation rows" in caplog.text
    with pytest.raises(DataError, match="each has no answer, or one that max_length cut"):
        choose(encoded([1], input_ids=[5, 6, 7, 8, 9]), 9, 0, short_reader)


def test_pairs_of_one_row_share_their_good_answers_and_bad_single_answers_are_no_reference():
    pair = {"prompt_ids": [5], "rejected_ids": [9, 2], "length": 4}
    pairs: Any = [pair | {"row": 1, "chosen_ids": ids} for ids in ([7, 2], [7, 2], [8, 2])]
    (asked,) = choose(pairs, 9, 0, READER)
    assert asked.references == ["7 2", "8 2"] and asked.columns == {"answer": ["7 2", "8 2"]}
    single = {"prompt_ids": [5], "answer_ids": [7, 2], "length": 3}
    rows: Any = [single | {"row": n, "label": n == 2} for n in (1, 2)]
    (asked,) = choose(rows, 9, 0, READER)
    assert (asked.row, asked.references) == (2, ["7 2"])


# -- scores


def test_named_scores_are_those_of_the_field_and_exact_is_a_share():
    golds, texts = [["by Monday", "Monday"], ["no"]], [" by  Monday ", "yes"]
    scores = named_scores(["ter", "exact", "rouge-l"], golds, texts)
    field = evaluate_generation(None, golds, texts, standard=True, show=False, n_bootstrap=0)
    assert list(scores) == ["ter", "exact", "rouge-l"]
    assert scores["exact"] == (0.5, [1.0, 0.0]) and scores["rouge-l"] == (0.5, [1.0, 0.0])
    assert scores["ter"] == (field["TER"], [])


@pytest.mark.parametrize(
    ("metric", "given", "better"),
    [
        ("generated/exact", {}, True),
        ("eval_generated/ter", {}, False),
        ("generated/my_function", {}, True),
        ("generated/exact", {"greater_is_better": False}, False),
        ("loss", {}, False),
    ],
)
def test_which_way_a_score_is_better_is_known_unless_the_caller_says(metric, given, better):
    options = parse(LoopOptions, {"metric_for_best_model": metric, **given}, "call")
    assert options.best_is_greatest == better
    state = RunState(evaluation={options.best_metric: 0.4}, best=0.5)
    best.compare(state, options, None)
    assert (state.best == 0.5) == better


def test_the_best_checkpoint_is_told_by_a_score_of_answers(tiny_model_path, caplog):
    four_trainers.write_data(Path())
    values = iter([0.0, 3.0, 1.0])

    def falls(completions, **columns):
        return [next(values)] + [None] * (len(completions) - 1)

    options = ASK | {"eval_metrics": falls, "metric_for_best_model": "generated/falls"}
    one, _ = run(tiny_model_path, "lora", load_best_model_at_end=True, **options)
    assert one.eval["generated/falls"] == 3.0
    assert f"{one.checkpoint.name}, generated/falls=3" in caplog.text


def test_a_reward_function_is_a_metric_and_what_it_logs_is_recorded(tiny_model_path):
    four_trainers.write_data(Path())

    def noted(completions, trainer_state, log_metric, log_extra):
        assert completions[0][0]["role"] == "assistant" and trainer_state.max_steps
        log_metric("seen", len(completions))
        log_extra("place", range(len(completions)))
        return [1.0] * len(completions)

    metrics = {"eval_metrics": [noted, reward_number]}
    (result,) = run(tiny_model_path, "grpo", num_epochs=1, **ASK | metrics)
    assert result.eval["generated/noted"] == 1.0 and result.eval["generated/logged/seen"] == 4
    assert [line["logged/place"] for line in written("grpo")] == ["0", "1", "2", "3"]


# -- what is refused


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"eval_metrics": ["rouge-L"]}, "eval_metrics: there is no score 'rouge-L'.*'rouge-l'"),
        ({"eval_metrics": ["exact", "exact"]}, "eval_metrics names 'exact' twice"),
        ({"eval_metrics": []}, "eval_metrics is empty"),
        ({"eval_metrics": [3]}, "holds 3, which is neither the name of a score nor a function"),
        ({"eval_generate": -1}, "eval_generate=-1 must be 0 or more"),
        ({"eval_generate": 0}, "eval_metrics=.* changes nothing with eval_generate=0"),
        ({"eval_strategy": "no"}, "eval_generate=4 changes nothing with eval_strategy='no'"),
    ],
)
def test_what_cannot_be_scored_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        parse(LoopOptions, ASK | given, "call")


def test_the_best_is_told_by_a_score_that_there_is(tiny_model_path):
    four_trainers.write_data(Path())
    trainer = four_trainers.make_trainer("lora", tiny_model_path)
    for name in ("chfr", "ter"):
        options = ASK | {"metric_for_best_model": f"generated/{name}"}
        with pytest.raises(ConfigError, match=f"'generated/{name}' is not evaluated; there are"):
            four_trainers.run(trainer, "lora", **options)
    trainer = four_trainers.make_trainer("lora", tiny_model_path, eval_mode="test")
    with pytest.raises(ConfigError, match="eval_generate=4 changes nothing with a data set"):
        four_trainers.run(trainer, "lora", **ASK)


def test_rows_without_a_reference_are_refused_by_number_unless_functions_judge_alone(
    tiny_model_path,
):
    four_trainers.write_data(Path())
    dev = four_trainers.rows("grpo", 5)
    del dev[1]["answer"]
    dev[3]["answer"] = {"is": "blue"}
    text = "\n".join(map(json.dumps, dev))
    Path("grpo_dev.jsonl").write_text(text, encoding="utf-8")
    trainer = four_trainers.make_trainer("grpo", tiny_model_path)
    with pytest.raises(ConfigError, match=r"evaluation rows \[2, 4\] \(2 of 5\) have no 'answer'"):
        four_trainers.run(trainer, "grpo", **ASK | {"eval_generate": 9})
    judged = ASK | {"eval_generate": 9, "eval_metrics": four_trainers.letters}
    assert four_trainers.run(trainer, "grpo", **judged)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda n: [1.0], "metric function 'judge' returned 1 rewards for 4 completions"),
        (lambda n: ["a"] * n, "metric function 'judge' returned 'a' for row"),
        (lambda n: 1 / 0, "metric function 'judge' raised ZeroDivisionError"),
    ],
)
def test_a_function_that_fails_is_named_before_anything_is_trained(
    returned, message, tiny_model_path
):
    def judge(generated, **columns):
        return returned(len(generated))

    four_trainers.write_data(Path())
    trainer = four_trainers.make_trainer("lora", tiny_model_path)
    with pytest.raises(RewardError, match=message):
        next(four_trainers.run(trainer, "lora", **ASK | {"eval_metrics": judge}))
    assert not list(Path("save_model").glob("lora/Llama_*"))


def test_a_function_or_a_column_with_a_taken_name_is_refused(tiny_model_path):
    def exact(generated):
        return [0.0] * len(generated)

    four_trainers.write_data(Path())
    trainer = four_trainers.make_trainer("lora", tiny_model_path)
    with pytest.raises(ConfigError, match="function 'exact', and there is a score of that name"):
        four_trainers.run(trainer, "lora", **ASK | {"eval_metrics": ["exact", exact]})
    dev = [row | {"references": 1} for row in four_trainers.rows("grpo", 5)]
    Path("grpo_dev.jsonl").write_text("\n".join(map(json.dumps, dev)), encoding="utf-8")
    trainer = four_trainers.make_trainer("grpo", tiny_model_path)
    with pytest.raises(ConfigError, match=r"columns \['references'\], names under which functions"):
        four_trainers.run(trainer, "grpo", **ASK | {"eval_metrics": short})
