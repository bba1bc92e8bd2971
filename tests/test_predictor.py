"""The predictor on tiny random models (mechanics) and on the real small one (texts)."""

import gc
import inspect
import json
import threading
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from main.errors import ConfigError, GenerationError, MissingFileError
from main.models import LoraOptions, add_adapter, load_model, load_tokenizer, save_adapter
from main.predictor import cache
from main.predictor.decoding import Decoding, batches, like_lengths
from main.predictor.hf import Predictor
from main.predictor.llm import Predictor as GuidePredictor

QUERIES = [
    "Hi",
    "What is the capital of France?",
    "写一个关于猫的句子。",
    "List three colours, and then say in one short sentence which one you like best and why. " * 3,
    "Tell me a long story about a cat and a dog who travel to the sea. " * 8,
]


@pytest.fixture(scope="module")
def predictor(small_model_path):
    return Predictor(small_model_path, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory, small_model_path):
    """Two random layers and a context of 64, with the real tokenizer."""
    path = tmp_path_factory.mktemp("tiny")
    tokenizer = load_tokenizer(small_model_path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def tiny(tiny_path):
    return Predictor(tiny_path, device="cpu")


def generated(predictor, query, max_new_tokens):
    """The answer of plain `generate`, one prompt at a time."""
    ids = predictor.tokenizer.apply_chat_template(
        [{"role": "user", "content": query}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = predictor.model.generate(**ids, do_sample=False, max_new_tokens=max_new_tokens)
    answer = output[0, ids["input_ids"].shape[1] :]
    return predictor.tokenizer.decode(answer, skip_special_tokens=True)


@pytest.mark.slow
def test_greedy_text_is_that_of_generate_alone_and_in_a_batch_of_mixed_lengths(predictor):
    expected = [generated(predictor, query, 16).rstrip("\ufffd") for query in QUERIES]
    assert [predictor(query, max_new_tokens=16)[0] for query in QUERIES] == expected
    assert predictor(QUERIES, max_new_tokens=16) == expected


@pytest.mark.slow
def test_the_real_model_answers_remembers_and_stops_by_itself(predictor):
    assert predictor("What is the capital of France?", history=[])[0].endswith("Paris.")
    history = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    batch = predictor(["What is the capital of France?"] * 2, [history, []], max_new_tokens=24)
    assert all("Paris" in text for text in batch)


def test_the_guides_name_is_the_same_class():
    assert GuidePredictor is Predictor


def test_a_batch_of_random_lengths_equals_its_rows_alone(tiny):
    queries = ["a " * n for n in (1, 30, 3, 29, 2, 11)]
    alone = [tiny(query, max_new_tokens=12)[0] for query in queries]
    assert tiny(queries, max_new_tokens=12) == alone
    assert len(set(alone)) > 3  # the rows do differ


def test_rows_that_finish_early_change_nothing_for_the_others(tiny):
    queries = ["a " * n for n in (1, 30, 3, 11)]
    free = tiny(queries, max_new_tokens=12)
    stop = free[1][3:6]
    cut = tiny(queries, max_new_tokens=12, stop=stop)
    assert cut == [text.split(stop)[0] for text in free]
    assert any(short != long for short, long in zip(cut, free, strict=True))


def test_a_sliding_window_model_batches_like_its_rows(tmp_path, small_model_path):
    tokenizer = load_tokenizer(small_model_path)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = MistralConfig(
        vocab_size=len(tokenizer),
        **sizes,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=8,
    )
    MistralForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    predictor = Predictor(tmp_path, device="cpu")
    queries = ["a " * n for n in (1, 30, 3)]
    alone = [predictor(query, max_new_tokens=10)[0] for query in queries]
    assert predictor(queries, max_new_tokens=10) == alone
    assert alone == [generated(predictor, query, 10).rstrip("\ufffd") for query in queries]


def test_an_empty_batch_gives_an_empty_list(tiny):
    assert tiny([]) == []
    assert list(tiny.predict_stream([])) == []


def test_the_models_own_sampling_values_are_not_applied(tiny, tiny_path):
    expected = tiny("Hi", max_new_tokens=8)
    path = tiny_path / "generation_config.json"
    stored = path.read_text()
    sampling = {"do_sample": True, "temperature": 5.0, "top_k": 3, "repetition_penalty": 9.0}
    path.write_text(json.dumps(json.loads(stored) | sampling))
    try:
        other = Predictor(tiny_path, device="cpu")
        before = other.model.generation_config.to_dict()
        assert other("Hi", max_new_tokens=8) == expected
        assert other.model.generation_config.to_dict() == before
    finally:
        path.write_text(stored)


def test_every_end_token_of_the_generation_config_stops(tiny, tiny_path):
    ids = tiny.tokenizer(tiny("Hi", max_new_tokens=8)[0])["input_ids"]
    row = Decoding(0, [5], limit=8)
    for token in ids[:3]:
        row.add(token, {ids[2]})
    assert row.finished
    assert row.completion_ids == ids[:2]


def test_temperature_zero_is_greedy_also_with_do_sample(tiny):
    greedy = tiny("Hi", max_new_tokens=8)
    assert tiny("Hi", max_new_tokens=8, temperature=0) == greedy
    assert tiny("Hi", max_new_tokens=8, temperature=0, do_sample=True) == greedy
    assert tiny("Hi", max_new_tokens=8, temperature=2.0, seed=1) != greedy


def test_a_seed_repeats_an_answer_alone_and_in_a_batch(tiny):
    options = {"max_new_tokens": 8, "temperature": 1.0, "seed": 7}
    alone = tiny("Hi", **options)
    assert tiny(["a b c d e f", "Hi", "x"], **options)[1:2] == alone
    assert tiny("Hi", **(options | {"seed": 8})) != alone


def test_several_answers_to_one_request_differ_and_stand_together(tiny):
    options = {"max_new_tokens": 8, "temperature": 1.0, "seed": 7}
    texts = tiny(["Hi", "Ho"], num_return_sequences=3, **options)
    assert len(texts) == 6
    assert len(set(texts[:3])) == 3
    assert texts[3] == tiny("Ho", **options)[0]


def test_without_a_seed_sampling_follows_torchs_global_state(tiny):
    torch.manual_seed(3)
    first = tiny("Hi", max_new_tokens=8, temperature=1.0)
    second = tiny("Hi", max_new_tokens=8, temperature=1.0)
    torch.manual_seed(3)
    assert tiny("Hi", max_new_tokens=8, temperature=1.0) == first != second


def test_repetition_penalty_is_that_of_generate_and_ignores_padding(tiny):
    queries = ["Hi", "a b c d e f g h i j"]
    texts = tiny(queries, max_new_tokens=8, repetition_penalty=1.5)
    assert texts == [tiny(q, max_new_tokens=8, repetition_penalty=1.5)[0] for q in queries]
    ids = tiny.tokenizer(
        tiny.tokenizer.apply_chat_template(
            [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
        ),
        add_special_tokens=False,
        return_tensors="pt",
    )
    output = tiny.model.generate(**ids, do_sample=False, max_new_tokens=8, repetition_penalty=1.5)[
        0, ids["input_ids"].shape[1] :
    ]
    assert texts[0] == tiny.tokenizer.decode(output, skip_special_tokens=True).rstrip("\ufffd")


def test_a_prompt_longer_than_the_context_is_refused_with_the_numbers(tiny):
    with pytest.raises(GenerationError, match=r"prompt of request 1 has \d+ tokens.*model is 64"):
        tiny(["Hi", "word " * 80])


def test_an_answer_ends_where_the_context_ends(tiny):
    rows, _ = tiny._prepare("Hi", None, 500, {})
    assert rows[0].limit == 64 - len(rows[0].prompt_ids)
    assert tiny("Hi", max_new_tokens=500) == tiny("Hi", max_new_tokens=rows[0].limit)


def test_an_empty_raw_prompt_is_refused(tiny):
    with pytest.raises(GenerationError, match="request 0 is empty"):
        tiny("", build_message=False)


def test_a_raw_prompt_is_continued_as_it_stands(tiny):
    ids = tiny.tokenizer("Once upon", return_tensors="pt")
    output = tiny.model.generate(**ids, do_sample=False, max_new_tokens=6)[0, -6:]
    assert tiny("Once upon", max_new_tokens=6, build_message=False) == [
        tiny.tokenizer.decode(output, skip_special_tokens=True).rstrip("\ufffd")
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_token": 8}, r"'max_new_token' is neither.*Did you mean 'max_new_tokens'"),
        ({"enable_thinking": True}, r"'enable_thinking' is neither an argument of a call nor"),
        ({"top_p": 2.0, "temperature": 1.0}, r"top_p=2\.0 must be between"),
    ],
)
def test_a_call_refuses_what_it_does_not_know_before_anything_runs(tiny, options, message):
    with pytest.raises(ConfigError, match=message):
        tiny("Hi", **options)
    with pytest.raises(ConfigError, match=message):
        tiny.predict_stream("Hi", **options)  # no next() needed


def test_the_constructor_refuses_unknown_keywords_and_missing_paths(tiny_path, tmp_path):
    with pytest.raises(ConfigError, match=r"has no argument 'pef_path'\. Did you mean 'peft_path'"):
        Predictor(tiny_path, pef_path="x")
    with pytest.raises(ConfigError, match="'resume_path' and 'peft_path' are the same argument"):
        Predictor(tiny_path, "a", resume_path="b")
    with pytest.raises(ConfigError, match="batch_size=0 must be >= 1"):
        Predictor(tiny_path, batch_size=0)
    with pytest.raises(MissingFileError, match="adapter folder"):
        Predictor(tiny_path, tmp_path / "gone")


def test_joined_chunks_are_the_texts_and_those_of_a_whole_call(tiny):
    queries = ["Hi", "a b c d e f g h", "你好"]
    for options in ({}, {"stop": ["e", "你"]}, {"temperature": 1.0, "seed": 3}):
        joined = [""] * len(queries)
        for chunks, texts in tiny.predict_stream(queries, max_new_tokens=16, **options):
            assert not any(text.endswith("\ufffd") for text in texts)
            joined = [old + new for old, new in zip(joined, chunks, strict=True)]
            assert joined == texts
        assert joined == tiny(queries, max_new_tokens=16, **options)


def test_a_single_query_streams_lists_of_one(tiny):
    items = list(tiny.predict_stream("Hi", history=[], max_new_tokens=6))
    assert all(len(chunks) == len(texts) == 1 for chunks, texts in items)
    assert items[-1][1] == tiny("Hi", max_new_tokens=6)


def test_a_stream_whose_answer_is_empty_still_has_one_item(tiny):
    text = tiny("Hi", max_new_tokens=4)[0]
    assert list(tiny.predict_stream("Hi", max_new_tokens=4, stop=text[0])) == [([""], [""])]


def test_an_error_in_generation_reaches_the_caller_of_the_stream(tiny, monkeypatch):
    stream = tiny.predict_stream("Hi", max_new_tokens=40)
    next(stream)

    def broken(*args, **kwargs):
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(tiny.model, "forward", broken)
    with pytest.raises(RuntimeError, match="the device is gone"):
        list(stream)


def test_closing_a_stream_stops_generation_and_leaves_nothing_behind(tiny, monkeypatch):
    steps = []
    forward = tiny.model.forward
    monkeypatch.setattr(tiny.model, "forward", lambda *a, **k: steps.append(1) or forward(*a, **k))
    threads = threading.active_count()
    stream = tiny.predict_stream("Hi", max_new_tokens=40)
    next(stream)
    stream.close()
    done = len(steps)
    gc.collect()
    assert done < 10
    assert len(steps) == done
    assert threading.active_count() == threads
    assert torch.is_grad_enabled()


def test_gradients_stay_enabled_for_the_caller_between_two_items(tiny):
    for _ in tiny.predict_stream("Hi", max_new_tokens=3):
        assert torch.is_grad_enabled()


def out_of_memory_above(model, monkeypatch, most_rows, at_step=0):
    """Make `model` fail like a full GPU for batches of more rows, from a step on."""
    forward, calls, sizes = model.forward, [], []

    def limited(*args, input_ids, **kwargs):
        calls.append(1)
        if len(input_ids) > most_rows and len(calls) > at_step:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(input_ids))
        return forward(*args, input_ids=input_ids, **kwargs)

    # the real signature, which decides whether logits_to_keep is passed
    signature = inspect.signature(forward)
    limited.__signature__ = signature  # type: ignore[attr-defined]
    monkeypatch.setattr(model, "forward", limited)
    return sizes


@pytest.mark.parametrize("at_step", [0, 4])
def test_when_memory_runs_out_the_batch_is_halved_and_goes_on(tiny, monkeypatch, at_step):
    queries = ["Hi there"] * 2 + ["Ho there"] * 3
    expected = tiny(queries, max_new_tokens=10)
    sizes = out_of_memory_above(tiny.model, monkeypatch, 2, at_step)
    assert tiny(queries, max_new_tokens=10) == expected
    assert max(sizes[at_step:]) == 2
    streamed = list(tiny.predict_stream(queries, max_new_tokens=10))
    assert streamed[-1][1] == expected


def test_a_single_request_beyond_the_memory_is_a_clear_error(tiny, monkeypatch):
    out_of_memory_above(tiny.model, monkeypatch, 0)
    with pytest.raises(GenerationError, match=r"out of memory for one request alone: \d+ prompt"):
        tiny(["Hi", "Ho"], max_new_tokens=4)


def test_batches_hold_like_lengths_and_keep_to_both_limits():
    rows = [Decoding(i, [0] * n, limit=10) for i, n in enumerate([5, 90, 30, 80, 40, 20])]
    lengths = [[len(row.prompt_ids) for row in batch] for batch in batches(rows, 3, 200)]
    # 2 x (90 + 10) = 200; 3 x (40 + 10) = 150; the row limit of 3 leaves the last alone
    assert lengths == [[90, 80], [40, 30, 20], [5]]
    assert [len(batch) for batch in batches(rows, 9, 1)] == [1] * 6


def test_prefill_groups_waste_little_on_padding():
    assert like_lengths([100, 95, 60, 55, 10]) == [(0, 2), (2, 4), (4, 5)]
    assert like_lengths([7, 7, 7]) == [(0, 3)]


@pytest.mark.parametrize("limits", [{"batch_size": 1}, {"batch_size": 2}, {"max_batch_tokens": 60}])
def test_the_cut_into_batches_changes_neither_texts_nor_order(tiny, tiny_path, limits):
    queries = ["a " * n for n in (1, 20, 3, 19, 2)]
    other = Predictor(tiny_path, device="cpu", **limits)
    assert other(queries, max_new_tokens=8) == tiny(queries, max_new_tokens=8)


def test_a_system_prompt_is_what_a_system_message_would_be(tiny, tiny_path):
    dialogue = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    other = Predictor(tiny_path, device="cpu", system_prompt="Be brief.")
    assert other("Hi", max_new_tokens=8) == tiny([dialogue], max_new_tokens=8)
    assert other("Hi", max_new_tokens=8) != tiny("Hi", max_new_tokens=8)


@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_is_applied_and_merging_it_leaves_the_text(tiny, tiny_path, tmp_path, dora):
    torch.manual_seed(1)
    options = LoraOptions(lora_r=4, init_lora_weights=False, use_dora=dora)
    adapted = add_adapter(load_model(tiny_path, device="cpu"), options)
    save_adapter(adapted, tmp_path)
    for name in ("peft_path", "resume_path"):
        predictor = Predictor(tiny_path, device="cpu", **{name: tmp_path})
        merged = predictor("Hi", max_new_tokens=12)
        assert merged != tiny("Hi", max_new_tokens=12)
        predictor.model = adapted.eval()
        assert predictor("Hi", max_new_tokens=12) == merged


def test_below_float32_an_adapter_is_not_merged(tiny_path, tmp_path):
    save_adapter(add_adapter(load_model(tiny_path, device="cpu"), LoraOptions()), tmp_path)
    predictor = Predictor(tiny_path, tmp_path, device="cpu", dtype="bfloat16")
    assert hasattr(predictor.model, "peft_config")
    assert len(predictor("Hi", max_new_tokens=3)) == 1


def test_logprobs_on_request_are_those_of_the_model_for_each_token(tiny):
    for options in ({}, {"temperature": 0.7, "seed": 3}):
        (answer,) = tiny.predict_with_logprobs("Hi", max_new_tokens=6, **options)
        assert [answer.text] == tiny("Hi", max_new_tokens=6, **options)
        rows, _ = tiny._prepare("Hi", None, 6, {})
        ids = torch.tensor([rows[0].prompt_ids + answer.token_ids])
        logits = tiny.model(ids).logits[0, len(rows[0].prompt_ids) - 1 : -1]
        scores = (logits / options.get("temperature", 1)).log_softmax(-1)
        expected = scores.gather(-1, torch.tensor(answer.token_ids)[:, None])[:, 0].tolist()
        assert answer.logprobs == pytest.approx(expected, abs=1e-4)
        assert answer.finish_reason == "length"


@pytest.mark.slow
def test_a_scored_answer_ends_with_its_end_token_and_says_that_it_stopped(predictor):
    (answer,) = predictor.predict_with_logprobs("What is the capital of France?")
    assert answer.finish_reason == "stop"
    assert answer.token_ids[-1] in predictor.stop_ids
    assert len(answer.logprobs) == len(answer.token_ids)
    assert "Paris" in answer.text


def test_the_head_is_given_states_of_their_own(tiny):
    """Of a view into all states of the prompts torch would copy the head for every row."""
    head, found = tiny.model.get_output_embeddings(), []
    hook = head.register_forward_hook(lambda _, states, out: found.append(states[0]))
    try:
        tiny(["One prompt", "another"], max_new_tokens=3)
    finally:
        hook.remove()
    assert any(states.shape[0] == 2 for states in found)
    assert all(states.is_contiguous() for states in found)
    assert not head._forward_pre_hooks


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_an_error_and_no_empty_answer(tiny_model_path, broken):
    predictor = Predictor(tiny_model_path)
    predictor.model.model.layers[1].mlp.down_proj.weight.data[0, 0] = broken
    with pytest.raises(GenerationError, match=r"logits are not finite .* token 0 of request 0"):
        predictor("Hello", max_new_tokens=3)


def test_the_cache_grows_with_the_answers_and_not_to_their_limit(tiny, monkeypatch):
    options = {"max_new_tokens": 40, "build_message": False}
    expected, sizes = tiny("Hi there", **options), []
    monkeypatch.setattr("main.predictor.cache.BLOCK", 4)
    update = cache.GrowingLayer.update

    def noted(self, *arguments, **others):
        found = update(self, *arguments, **others)
        sizes.append((self.storage[0].shape[-2], self.get_seq_length()))
        return found

    monkeypatch.setattr(cache.GrowingLayer, "update", noted)
    assert tiny("Hi there", **options) == expected  # grown many times, and the same
    assert len({room for room, _ in sizes}) > 3
    first, prompt = sizes[0]
    assert first == prompt + 4
    assert max(room for room, _ in sizes) <= prompt + 40
