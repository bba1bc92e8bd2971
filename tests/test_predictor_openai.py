"""A server behind the predictors' calls: the same answers, nothing dropped, no key shown."""

import copy
import json
import logging
import sys
import threading
from typing import Any

import pytest
from openai_server import Fault, speaking

from main.errors import (
    ConfigError,
    EngineDiedError,
    GenerationError,
    MissingExtraError,
    ModelError,
)
from main.evaluation.inferences import inference_with_data
from main.models import LoraOptions, add_adapter, load_model, save_adapter
from main.models.training_record import TrainingRecord, write_record
from main.predictor.hf import Predictor as Local
from main.predictor.openai import Predictor

KEY = "sk-very-secret-4711"
HISTORY = [
    {"role": "user", "content": "My name is Ada."},
    {"role": "assistant", "content": "Hello Ada."},
]


@pytest.fixture(scope="module")
def local(tiny_model_path):
    return Local(tiny_model_path)


@pytest.fixture(scope="module")
def server(local):
    with speaking(local) as served:
        yield served


@pytest.fixture(scope="module")
def pred(server):
    with Predictor("tiny", server.url, "", backoff=0.01, timeout=60.0) as predictor:
        yield predictor


@pytest.fixture
def parrot():
    """A server of a kind that is not known, which answers 'ok' at once."""
    with speaking(None, owner="somebody") as served:
        yield served


def asking(served, **options: Any):
    options = {"api_key": "", "backoff": 0.01, "timeout": 20.0, **options}
    return Predictor("tiny", served.url, **options)


def batcher_of(predictor):
    def batcher(item):
        return predictor(**item)

    return batcher


REQUESTS: list[dict[str, Any]] = [
    {"query": "Hello", "max_new_tokens": 6},
    {"query": ["One", {"role": "user", "content": "Two"}], "max_new_tokens": 5},
    {
        "query": "What is it?",
        "history": HISTORY,
        "max_new_tokens": 5,
        "temperature": 0.9,
        "seed": 3,
    },
    {
        "query": ["a", "b"],
        "temperature": 1.1,
        "top_p": 0.9,
        "top_k": 40,
        "seed": 1,
        "num_return_sequences": 2,
    },
    {"query": "c", "do_sample": True, "seed": 5, "min_p": 0.0001, "repetition_penalty": 1.3},
    {"query": "d", "do_sample": True, "seed": 5, "max_new_tokens": 24, "stop": ["e", "t"]},
    {"query": "d", "do_sample": True, "seed": 5, "max_new_tokens": 24, "stop_token_ids": [198]},
    {"query": "e", "do_sample": True, "seed": 6, "skip_special_tokens": False},
    {"query": "The capital", "build_message": False, "do_sample": True, "seed": 7},
    {"query": "f", "assistant_prefix": "Sure:", "do_sample": True, "seed": 8},
]


@pytest.mark.parametrize("request_", REQUESTS, ids=range(len(REQUESTS)))
def test_answers_streams_and_log_probabilities_are_those_of_the_other_predictors(
    request_, pred, local
):
    request = {"max_new_tokens": 8, **request_}
    before = copy.deepcopy(request)
    texts = local(**request)
    assert pred(**request) == texts
    assert [text for _, text in pred.predict_stream(**request)][-1] == texts
    items = list(pred.predict_stream(**request))
    assert ["".join(chunks) for chunks in zip(*[c for c, _ in items], strict=True)] == texts
    mine, theirs = pred.predict_with_logprobs(**request), local.predict_with_logprobs(**request)
    alike = ("text", "token_ids", "finish_reason")
    for one, other in zip(mine, theirs, strict=True):
        assert [getattr(one, n) for n in alike] == [getattr(other, n) for n in alike]
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    assert request == before


def test_sampling_is_written_out_so_that_a_servers_own_values_do_not_apply(pred, server):
    pred("Hello", max_new_tokens=1)
    assert server.bodies[-1] == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 1,
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    }


@pytest.mark.parametrize(
    "name, options",
    [
        ("top_k", {"top_k": 5, "do_sample": True}),
        ("min_p", {"min_p": 0.1, "do_sample": True}),
        ("repetition_penalty", {"repetition_penalty": 1.1}),
        ("stop_token_ids", {"stop_token_ids": [3]}),
        ("skip_special_tokens", {"skip_special_tokens": False}),
        ("assistant_prefix", {"assistant_prefix": "Sure"}),
        ("regex", {"regex": "a+"}),
        ("choice", {"choice": ["a", "b"]}),
        ("no_repeat_ngram_size", {"no_repeat_ngram_size": 2}),
        ("enable_thinking", {"enable_thinking": False}),
        ("colour", {"chat_template_kwargs": {"colour": 1}}),
        ("<|im_end|>", {"stop": "<|im_end|>"}),
        ("allow_special_tokens", {"allow_special_tokens": False}),
        ("temperature", {"extra_body": {"temperature": 1}}),
        ("max_token", {"max_token": 3}),
    ],
)
def test_what_a_server_has_no_field_for_is_refused_by_name(name, options, parrot):
    with asking(parrot) as pred:
        with pytest.raises(ConfigError, match=name.replace("|", r"\|")):
            pred("Hello", **options)
        assert pred("Hello", extra_body={"tool_choice": "auto"}) == ["ok"]
    assert [body.get("tool_choice") for body in parrot.bodies] == ["auto"]


def test_an_unknown_name_is_refused_with_the_nearest_one(pred):
    with pytest.raises(
        ConfigError, match=r"no argument 'max_token'. Did you mean 'max_new_tokens'"
    ):
        pred("Hello", max_token=3)
    with pytest.raises(ConfigError, match=r"no argument 'max_retry'. Did you mean 'max_retries'"):
        Predictor("tiny", max_retry=3)


def test_schemas_go_to_every_server_in_its_own_way(parrot):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    with asking(parrot) as pred:
        pred("Hello", json_schema=json.dumps(schema))
    sent = parrot.bodies[-1]["response_format"]
    assert sent == {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


@pytest.mark.parametrize("limit", [3, 32])
def test_so_many_requests_are_on_their_way_at_once(limit, parrot):
    parrot.pause = 0.05
    with asking(parrot, max_concurrency=limit) as pred:
        assert pred(["x"] * 12) == ["ok"] * 12
    assert parrot.most_at_once == 3 if limit == 3 else parrot.most_at_once > 3


def test_the_order_of_answers_is_that_of_the_requests(pred, server, local):
    queries = [f"question {i}" for i in range(4)]
    server.faults.extend([Fault("slow", seconds=0.3)])  # the first to arrive is answered last
    settings = {"do_sample": True, "seed": 2, "max_new_tokens": 4}
    assert pred(queries, **settings) == local(queries, **settings)


def test_several_threads_may_ask(parrot):
    found = []
    with asking(parrot) as pred:
        threads = [threading.Thread(target=lambda: found.append(pred("x"))) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [["ok"]] * 6


PASSING = [Fault(status=429), Fault(status=500), Fault(status=503), Fault("hang up")]


@pytest.mark.parametrize(
    "fault, stream",
    [*((f, False) for f in [*PASSING, Fault("cut")]), *((f, True) for f in PASSING)],
    ids=lambda value: f"{value.how} {value.status}" if isinstance(value, Fault) else str(value),
)
def test_what_may_pass_is_asked_again(fault, stream, parrot):
    parrot.faults.extend([fault, fault])
    with asking(parrot) as pred:
        answer = list(pred.predict_stream("x"))[-1][1] if stream else pred("x")
    assert (answer, len(parrot.requests)) == (["ok"], 3)


@pytest.mark.parametrize(
    "fault, error, match",
    [
        (
            Fault(status=400),
            GenerationError,
            r"refuses the request \(400, 1 attempt\): out of order",
        ),
        (Fault(status=401), ConfigError, r"wants an api_key \(401\).*OPENAI_API_KEY"),
        (Fault(status=404), ModelError, r"\(404\): out of order. base_url is the address"),
        (Fault(status=422), GenerationError, "422, 1 attempt"),
    ],
    ids=lambda value: getattr(value, "status", ""),
)
def test_what_cannot_pass_is_not_asked_again(fault, error, match, parrot):
    parrot.faults.append(fault)
    with asking(parrot) as pred, pytest.raises(error, match=match):
        pred("x")
    assert len(parrot.requests) == 1


@pytest.mark.parametrize(
    "fault, error, match",
    [
        (Fault(status=500), GenerationError, r"fails at the request \(500, 3 attempts\)"),
        (Fault(status=429), EngineDiedError, r"turns requests away \(429, 3 attempts\)"),
        (Fault("hang up"), EngineDiedError, r"cannot be reached, or breaks off \(3 attempts\)"),
    ],
    ids=["500", "429", "hang up"],
)
def test_attempts_come_to_an_end(fault, error, match, parrot):
    parrot.faults.extend([fault] * 9)
    with asking(parrot, max_retries=2) as pred, pytest.raises(error, match=match):
        pred("x")
    assert len(parrot.requests) == 3


def test_a_server_that_asks_for_a_pause_gets_it(parrot):
    import time

    parrot.faults.append(Fault(status=429, headers={"Retry-After": "1"}))
    with asking(parrot) as pred:
        begin = time.monotonic()
        assert pred("x") == ["ok"]
        assert time.monotonic() - begin >= 1
        parrot.faults.append(Fault(status=429, headers={"Retry-After": "86400"}))
        with pytest.raises(EngineDiedError, match="asks for a pause of 86400 s"):
            pred("x")
    assert len(parrot.requests) == 3


def test_a_slow_answer_and_a_stream_that_stops_are_cut_off(parrot):
    with asking(parrot, timeout=0.3, max_retries=0) as pred:
        parrot.faults.append(Fault("slow", seconds=2))
        with pytest.raises(GenerationError, match=r"did not answer within 0.3 s \(1 attempt\)"):
            pred("x")
        stream = pred.predict_stream("x")
        parrot.pause = 0.2
        assert next(stream)[0] == ["o"]
        parrot.pause = 2.0
        with pytest.raises(GenerationError, match="did not answer within"):
            list(stream)


def test_nobody_there(parrot):
    with pytest.raises(
        EngineDiedError, match=r"127.0.0.1:9/v1 cannot be reached.*main.utils.serve"
    ):
        Predictor("tiny", "http://127.0.0.1:9/v1", "")


def test_a_model_that_is_not_there_is_named_with_those_that_are(server):
    with pytest.raises(ModelError, match=r"no model 'tny'; it has 'tiny'. Did you mean 'tiny'"):
        Predictor("tny", server.url, "")


def test_the_first_request_that_fails_ends_the_others(parrot):
    parrot.faults.append(Fault(status=400))
    parrot.pause = 0.05
    with asking(parrot, max_concurrency=2) as pred, pytest.raises(GenerationError):
        pred(["x"] * 20)
    assert len(parrot.requests) < 10


def test_closing_a_stream_closes_the_connections(parrot):
    parrot.pause = 0.05
    with asking(parrot) as pred:
        stream = pred.predict_stream(["x"] * 3)
        next(stream)
        stream.close()
        assert parrot.hung_up.wait(5)
        parrot.pause = 0.0
        assert pred("x") == ["ok"]


@pytest.mark.parametrize("how", ["cut", "end early"])
def test_a_stream_that_breaks_is_an_error_and_no_shorter_answer(how, parrot):
    parrot.faults.append(Fault(how))
    with asking(parrot) as pred, pytest.raises(GenerationError, match=r"breaks off|broke off"):
        list(pred.predict_stream("x"))


@pytest.mark.parametrize("status", [404, 500])
def test_a_server_without_a_list_of_models_is_asked_all_the_same(status, parrot):
    parrot.list_status = status
    with asking(parrot) as pred:
        assert pred("x") == ["ok"]


def test_a_closed_predictor_says_so(parrot):
    pred = asking(parrot)
    pred.close()
    pred.close()
    with pytest.raises(EngineDiedError, match="closed"):
        pred("x")


def test_the_key_is_sent_and_shown_nowhere(tmp_path, caplog, monkeypatch, capfd):
    caplog.set_level(logging.DEBUG)
    with speaking(None, key=KEY) as served:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        with asking(served, api_key=None) as pred:
            save = tmp_path / "answers.jsonl"
            inference_with_data([{"query": "x"}], batcher_of(pred), save)
            assert json.loads(save.read_text())["response"] == "ok"
            shown = f"{pred!r} {pred.options!r} {vars(pred)} {pred._link.place}"
            served.key = "another"  # and the server repeats what it was given
            with pytest.raises(ConfigError, match=r"refuses the api_key \(401\)") as caught:
                pred("x")
        with pytest.raises(ConfigError, match="refuses the api_key"):
            asking(served, api_key=KEY)
        monkeypatch.delenv("OPENAI_API_KEY")
        with pytest.raises(ConfigError, match=r"wants an api_key \(401\)"):
            asking(served, api_key=None)
        with pytest.raises(ConfigError, match="api_key must be a string or None, not bytes"):
            asking(served, api_key=KEY.encode())
        with pytest.raises(ConfigError, match="give the key as api_key") as in_address:
            Predictor("tiny", f"http://me:{KEY}@127.0.0.1/v1")
    written = [p.read_text() for p in tmp_path.rglob("*") if p.is_file()]
    errors = [f"{e.value!r} {e.getrepr(showlocals=False)}" for e in (caught, in_address)]
    assert served.requests[0][1]["authorization"] == f"Bearer {KEY}"
    for text in [*written, *errors, shown, caplog.text, *capfd.readouterr()]:
        assert KEY not in text


def test_without_a_key_none_is_sent(parrot, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with asking(parrot, api_key="") as pred:
        pred("x")
    assert "authorization" not in parrot.requests[0][1]


def test_batch_inference_goes_on_where_it_stopped_and_not_with_another_model(parrot, tmp_path):
    rows: list[dict[str, Any]] = [{"query": f"q{i}"} for i in range(6)]
    save = tmp_path / "answers.jsonl"
    parrot.cards.append({"id": "other", "owned_by": "somebody"})
    with asking(parrot, max_retries=0) as pred:
        parrot.faults.extend([Fault("slow")] * 4 + [Fault("hang up")] * 9)
        with pytest.raises(GenerationError, match="the run stopped at row 4"):
            inference_with_data(rows, batcher_of(pred), save, 2)
        parrot.faults.clear()
        with Predictor("other", parrot.url, "") as other, pytest.raises(ConfigError, match="'tiny"):
            inference_with_data(rows, batcher_of(other), save, 2)
        asked = len(parrot.requests)
        assert inference_with_data(rows, batcher_of(pred), save, 2).failed == 0
    assert len(parrot.requests) == asked + 2
    assert [json.loads(line)["query"] for line in save.open()] == [row["query"] for row in rows]


@pytest.fixture(scope="module")
def adapter_path(tiny_model_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter") / "plain"
    model = add_adapter(load_model(tiny_model_path), LoraOptions(init_lora_weights=False))
    save_adapter(model, folder)
    record = TrainingRecord(method="lora.Trainer", loader="LLM_Pure", plain_text=True)
    write_record(folder, record)
    return folder


def test_of_a_server_here_the_files_say_who_answers_and_how_it_was_trained(
    tiny_model_path, adapter_path, server
):
    plain = Local(tiny_model_path, adapter_path)
    with speaking(plain) as served:
        base = {"id": "tiny", "owned_by": "vllm", "root": str(tiny_model_path)}
        adapter = {**base, "id": "plain", "root": str(adapter_path), "parent": "tiny"}
        served.cards = [{**base, "max_model_len": 64}, adapter]
        with Predictor("plain", served.url, "") as pred:
            settings = {"do_sample": True, "seed": 1}
            assert pred("Once upon", **settings, max_new_tokens=6) == plain(
                "Once upon", **settings, max_new_tokens=6
            )
            assert served.requests[-1][0] == "/v1/completions"
            assert plain.voice.answerer is not None
            assert pred.served.answerer.digest == plain.voice.answerer.digest
            with pytest.raises(ConfigError, match="trained on plain text"):
                pred("Once upon", history=HISTORY)
            pred("Once upon", max_new_tokens=100)
            assert served.bodies[-1]["max_tokens"] == 64
            with pytest.raises(ConfigError, match="enable_thinking"):
                pred("x", build_message=True, enable_thinking=False)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingExtraError, match=r"pip install '.\[openai\]'"):
        Predictor("tiny")


def weather(city: str):
    """The weather of a city.

    Args:
        city: its name.
    """


def test_tools_are_sent_and_calls_are_read_from_the_text(parrot):
    with speaking(None, owner="vllm") as served, asking(served) as pred:
        pred("x", tools=[weather])
        (tool,) = served.bodies[-1]["tools"]
        assert (tool["function"]["name"], served.bodies[-1]["tool_choice"]) == ("weather", "none")
        call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
        lfm2 = 'So.<|tool_call_start|>[weather(city="Paris")]<|tool_call_end|>'
        hermes = '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'
        assert pred.message(lfm2, [weather])["tool_calls"] == [call]
        assert pred.message(hermes)["tool_calls"] == [call]
        assert "tool_calls" not in pred.message(lfm2)
        assert "tool_calls" not in pred.message('{"name": "x", "parameters": {}}', [weather])
        with pytest.raises(ConfigError, match="must be a JSON schema or a Python function"):
            pred("x", tools=[3])
    with asking(parrot) as pred:
        pred("x", tools=[weather])
        assert "tool_choice" not in parrot.bodies[-1]


def test_a_predictor_that_is_forgotten_ends_its_thread(parrot):
    def threads():
        return [thread for thread in threading.enumerate() if thread.name == "openai"]

    before = len(threads())
    pred = asking(parrot)
    assert pred("x") == ["ok"] and len(threads()) == before + 1
    del pred
    assert len(threads()) == before
