"""The vLLM predictor gives the HF predictor's answers, streams them, and leaves nothing behind."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
import torch
from conftest import ROOT
from vllm_models import ENGINE, adapters_of, make_adapter, save_tiny

from main.errors import ConfigError, GenerationError, MissingExtraError, ModelError
from main.models import load_tokenizer
from main.predictor.hf import Predictor as HFPredictor
from main.predictor.sampling import GenerationOptions
from main.predictor.vllm import CallOptions, Predictor
from main.predictor.vllm_adapters import room_for
from main.predictor.vllm_engine import Request, own_device
from main.predictor.vllm_params import sampling_params, take

QUERIES = ["Hi", "What is the capital of France?", "写一个关于猫的句子。", "List three colours."]
TIE = 2e-3  # difference of two logits that rounding may turn round


@pytest.fixture(scope="module")
def hf(small_model_path):
    return HFPredictor(small_model_path, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def pred(small_model_path):
    """The one engine of these tests; adapters up to rank 8 may be named in a call."""
    options: dict[str, Any] = {**ENGINE, "kv_cache_memory_bytes": 2**30, "max_model_len": 2048}
    with Predictor(
        small_model_path, dtype="float32", enable_lora=True, max_lora_rank=8, **options
    ) as predictor:
        yield predictor


def real_prompts(count: int) -> list[str]:
    """Rows of the shipped data in both languages, and their general questions."""
    queries = []
    for name in ("ticket_en_dev", "ticket_zh_dev"):
        lines = (ROOT / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        queries += [json.loads(line)["conversations"][0]["content"] for line in lines[: count // 2]]
    return queries


# -- without an engine


def test_without_vllm_the_error_names_the_extra(monkeypatch, small_model_path):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingExtraError, match=r"'vllm'.*pip install '\.\[vllm\]'"):
        Predictor(small_model_path)


@pytest.mark.vllm
def test_an_engine_option_that_vllm_does_not_know_is_refused_by_name(small_model_path):
    with pytest.raises(ConfigError, match=r"'max_model_length' is neither.*mean 'max_model_len'"):
        Predictor(small_model_path, max_model_length=512)
    with pytest.raises(ConfigError, match=r"'tokenizer' is neither"):
        Predictor(small_model_path, tokenizer="x")
    with pytest.raises(ConfigError, match=r"vLLM refuses these options: .*max_num_seqs"):
        Predictor(small_model_path, max_num_seqs=-3)


def test_kinds_of_structure_exclude_each_other():
    assert CallOptions(regex="a", choice=["b"]).problems() == [
        "regex and choice exclude each other: give one of them."
    ]
    assert "leaves no answer" in CallOptions(choice=[]).problems()[0]
    assert "not int" in CallOptions(json_schema=3).problems()[0]


def test_an_adapter_needs_an_engine_with_room_for_it(tmp_path, tiny_model_path):
    adapter = make_adapter(tiny_model_path, tmp_path, 1, lora_r=12)
    assert [room_for(rank) for rank in (1, 8, 9, 12, 33)] == [8, 8, 16, 16, 64]
    without = adapters_of({})
    with pytest.raises(ConfigError, match="started without adapters"):
        without.voice(adapter)
    small = adapters_of({"enable_lora": True, "max_lora_rank": 8})
    with pytest.raises(ConfigError, match=r"rank 12.*room for 8.*max_lora_rank=16"):
        small.voice(adapter)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"use_dora": True}, "is DoRA"), ({"modules_to_save": ["lm_head"]}, "brings whole modules")],
)
def test_an_adapter_that_vllm_does_not_compute_is_refused(
    tmp_path, tiny_model_path, options, message
):
    adapter = make_adapter(tiny_model_path, tmp_path, 1, **options)
    with pytest.raises(ModelError, match=rf"{message}.*Merge it"):
        adapters_of({"enable_lora": True}).voice(adapter)


def test_an_engine_runs_on_the_device_of_its_rank():
    assert own_device({}) == {}
    assert own_device({"LOCAL_RANK": "1"}) == {"CUDA_VISIBLE_DEVICES": "1"}
    assert own_device({"LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "4,6"}) == {
        "CUDA_VISIBLE_DEVICES": "6"
    }
    assert own_device({"LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "4"}) == {}


# -- answers


@pytest.mark.vllm
def test_only_the_end_tokens_that_are_given_end_an_answer(pred, hf):
    """Not, too, the one that vLLM finds in the model's files."""
    (row,), _ = hf._prepare("Hi", None, 32, {})
    params = sampling_params(row, GenerationOptions(), (), logprobs=False)
    (output,) = pred.engine.run([Request(row.prompt_ids, params)])
    take(row, output, ())
    assert len(row.completion_ids) == 32
    assert set(row.completion_ids) & hf.stop_ids


@pytest.mark.vllm
@pytest.mark.slow
def test_greedy_text_equals_that_of_transformers_on_fifty_real_prompts(pred, hf):
    """Where they part, the two best tokens have to be a tie for transformers too."""
    queries = real_prompts(50)
    ours = pred.predict_with_logprobs(queries, max_new_tokens=16)
    theirs = hf.predict_with_logprobs(queries, max_new_tokens=16)
    assert len(queries) == 50
    parted = [i for i in range(50) if ours[i].token_ids != theirs[i].token_ids]
    for i in parted:
        rows, _ = hf._prepare(queries[i], None, 16, {})
        pairs = zip(ours[i].token_ids, theirs[i].token_ids, strict=False)
        at = next(t for t, (a, b) in enumerate(pairs) if a != b)
        ids = torch.tensor([rows[0].prompt_ids + theirs[i].token_ids[:at]])
        with torch.no_grad():
            best = hf.model(ids).logits[0, -1].topk(2)
        print(f"prompt {i} parts at token {at}: {best.values.tolist()}")
        assert set(best.indices.tolist()) == {ours[i].token_ids[at], theirs[i].token_ids[at]}
        assert float(best.values[0] - best.values[1]) < TIE
    assert len(parted) <= 2
    for i in set(range(50)) - set(parted):
        assert ours[i].text == theirs[i].text
        assert ours[i].finish_reason == theirs[i].finish_reason
        assert ours[i].logprobs == pytest.approx(theirs[i].logprobs, abs=5e-3)


@pytest.mark.vllm
def test_the_models_own_sampling_values_are_not_applied(pred, hf):
    greedy = hf("Hi", max_new_tokens=12)
    assert pred("Hi", max_new_tokens=12) == greedy
    assert pred("Hi", max_new_tokens=12, temperature=0, do_sample=True) == greedy
    penalty = {"max_new_tokens": 12, "repetition_penalty": 1.3}
    assert pred(QUERIES[3], **penalty) == hf(QUERIES[3], **penalty)


@pytest.mark.vllm
def test_history_raw_prompts_stop_texts_and_limits_are_those_of_the_hf_predictor(pred, hf):
    history = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    calls = [
        {"query": "What is the capital of France?", "history": history, "max_new_tokens": 12},
        {"query": "Once upon a time", "build_message": False, "max_new_tokens": 8},
        {"query": "Hi", "stop": "assist", "max_new_tokens": 12},
    ]
    for call in calls:
        assert pred(**call) == hf(**call)
    assert pred.context == 2048
    with pytest.raises(GenerationError, match=r"has \d+ tokens, and the context of this model is"):
        pred("word " * 3000)


@pytest.mark.vllm
def test_a_seed_repeats_an_answer_alone_and_in_a_batch(pred):
    options = {"max_new_tokens": 10, "temperature": 1.0, "seed": 7}
    alone = pred("Hi", **options)
    assert pred(["Tell me a story", "Hi", "x"], **options)[1:2] == alone
    assert pred("Hi", **(options | {"seed": 8})) != alone
    texts = pred(["Hi", "Ho"], num_return_sequences=2, **options)
    assert len(set(texts)) == 4
    assert texts[0] == alone[0]


@pytest.mark.vllm
def test_calls_from_several_threads_get_their_own_answers(pred):
    alone = [pred(query, max_new_tokens=8)[0] for query in QUERIES]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda query: pred(query, max_new_tokens=8)[0], QUERIES))
    assert together == alone


@pytest.mark.vllm
def test_structured_answers_keep_to_their_structure(pred):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    text = pred("Count to two, as JSON.", json_schema=schema, max_new_tokens=40)[0]
    assert isinstance(json.loads(text)["n"], int)
    text = pred("A phone number, please.", regex=r"[0-9]{3}-[0-9]{4}", max_new_tokens=20)[0]
    assert re.fullmatch(r"[0-9]{3}-[0-9]{4}", text)
    assert pred("Is a cat a plant?", choice=["perhaps", "never"])[0] in ("perhaps", "never")
    with pytest.raises(GenerationError, match="regex"):
        pred("Hi", regex="(")
    assert pred("Hi", max_new_tokens=2)  # the engine lives on


# -- streams


@pytest.mark.vllm
def test_a_stream_grows_token_by_token_to_the_text_of_a_call(pred):
    for options in ({}, {"stop": "assist"}, {"temperature": 1.0, "seed": 3}):
        joined, items = [""] * len(QUERIES), 0
        for chunks, texts in pred.predict_stream(QUERIES, max_new_tokens=12, **options):
            joined = [old + new for old, new in zip(joined, chunks, strict=True)]
            assert joined == texts
            items += 1
        assert joined == pred(QUERIES, max_new_tokens=12, **options)
        assert items >= 8


@pytest.mark.vllm
def test_an_error_in_a_stream_reaches_its_caller(pred):
    with pytest.raises(ConfigError, match="max_new_token"):
        pred.predict_stream("Hi", max_new_token=3)
    with pytest.raises(GenerationError, match="regex"):
        list(pred.predict_stream("Hi", regex="("))


@pytest.mark.vllm
@pytest.mark.slow
def test_a_hundred_streams_closed_half_way_leave_nothing_running(pred):
    expected = pred("Hi", max_new_tokens=8)
    threads, tasks = threading.active_count(), len(_tasks(pred))
    for _ in range(100):
        stream = pred.predict_stream(["Tell me a long story.", "Count."], max_new_tokens=400)
        next(stream)
        stream.close()
        assert pred.engine.unfinished() == 0
    assert threading.active_count() <= threads
    assert len(_tasks(pred)) <= tasks
    assert pred("Hi", max_new_tokens=8) == expected


def _tasks(pred):
    return asyncio.all_tasks(pred.engine._background._loop)


# -- adapters


@pytest.mark.vllm
def test_adapters_are_switched_with_the_call_and_give_the_text_of_transformers(
    pred, small_model_path, tmp_path
):
    base = pred(QUERIES[1], max_new_tokens=8)
    folders = [make_adapter(small_model_path, tmp_path / str(seed), seed) for seed in (1, 2)]
    answers = [pred(QUERIES[1], max_new_tokens=8, peft_path=folder) for folder in folders]
    assert answers[0] != answers[1] != base != answers[0]
    adapted = HFPredictor(small_model_path, folders[0], dtype="float32", device="cpu")
    assert answers[0] == adapted(QUERIES[1], max_new_tokens=8)
    assert pred(QUERIES[1], max_new_tokens=8, peft_path=folders[0]) == answers[0]
    assert pred(QUERIES[1], max_new_tokens=8, peft_path=None) == base
    make_adapter(small_model_path, folders[0], 2)  # other weights in the same place
    assert pred(QUERIES[1], max_new_tokens=8, peft_path=folders[0]) == answers[1]


@pytest.mark.vllm
def test_an_adapters_own_chat_template_writes_its_prompts(pred, small_model_path, tmp_path):
    folder = make_adapter(small_model_path, tmp_path, 1)
    tokenizer = load_tokenizer(small_model_path)
    tokenizer.chat_template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    tokenizer.save_pretrained(folder)
    raw = pred("[Hi]", max_new_tokens=8, peft_path=folder, build_message=False)
    assert pred("Hi", max_new_tokens=8, peft_path=folder) == raw


@pytest.mark.vllm
def test_an_adapter_of_another_base_is_refused_and_the_engine_lives_on(pred, tmp_path):
    other = save_tiny(tmp_path / "other", tokenizer=pred.tokenizer)
    adapter = make_adapter(other, tmp_path / "adapter", 1)
    with pytest.raises(ModelError, match=r"does not fit LlamaForCausalLM.*tensors are missing"):
        pred("Hi", max_new_tokens=2, peft_path=adapter)
    shutil.copy(adapter / "adapter_config.json", tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="are damaged"):
        pred("Hi", max_new_tokens=2, peft_path=tmp_path)
    assert len(pred("Hi", max_new_tokens=2)) == 1


# -- the end


@pytest.mark.vllm
@pytest.mark.slow
def test_a_plain_script_needs_no_main_guard_and_leaves_no_process(tmp_path, small_model_path):
    model = save_tiny(tmp_path / "model", tokenizer=load_tokenizer(small_model_path))
    script = tmp_path / "script.py"
    script.write_text(
        "import psutil\n"
        "from main.predictor.vllm import Predictor\n"
        f"pred = Predictor({str(model)!r}, **{ENGINE!r})\n"
        "print(len(pred('Hi', max_new_tokens=3)))\n"
        "print(*[p.pid for p in psutil.Process().children(recursive=True)])\n",
        encoding="utf-8",
    )
    # as in one of two processes of `accelerate launch`: the engine must not look for the other
    launched = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    launched |= {"MASTER_PORT": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "PYTHONPATH": str(ROOT), **launched},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers, pids = done.stdout.strip().splitlines()[-2:]
    assert answers == "1"
    assert len(pids.split()) >= 2
    left = [psutil.Process(int(pid)) for pid in pids.split() if psutil.pid_exists(int(pid))]
    _, left = psutil.wait_procs(left, timeout=30)  # Python's tracker sees its parent's end and goes
    assert not left
    for noise in ("Traceback", "ERROR", "Exception ignored", "never awaited"):
        assert noise not in done.stdout + done.stderr


@pytest.mark.vllm
def test_closing_ends_every_process_and_a_later_call_says_so(pred):
    """The last test of this file: it ends the shared engine."""
    processes = pred.engine._parts["processes"]
    assert processes
    pred.close()
    pred.close()
    assert not any(process.is_running() for process in processes)
    with pytest.raises(GenerationError, match="the vLLM engine is closed"):
        pred("Hi")
    with pytest.raises(GenerationError, match="the vLLM engine is closed"):
        next(pred.predict_stream("Hi"))
