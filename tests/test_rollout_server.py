"""Completions drawn by a server beside the training; a dead, slow or stale one is a clear error."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests
import small_project
from launchers import free_port
from vllm_models import policy_on, save_tiny, scatter, scored
from vllm_server import TINY, served

from main.errors import ConfigError, GenerationError
from main.models import load_tokenizer
from main.trainer.rollout import server as rollout_server
from main.trainer.rollout.sampler import HFSampler, SamplingOptions
from main.trainer.rollout.server import Server, ServerSampler

PROMPTS = [[1, 5, 9], [1, 5, 9], [2, 7], [3] * 12]
STOPS = (4, 11)


@pytest.fixture(scope="module")
def base(tmp_path_factory, small_model_path):
    folder = tmp_path_factory.mktemp("base")
    return save_tiny(folder, tokenizer=load_tokenizer(small_model_path), context=512)


@pytest.fixture(scope="module")
def url(base, tmp_path_factory):
    """`trl vllm-serve` on the tiny model, as the second terminal of the guide."""
    command = ["trl", "vllm-serve", "--model", base, *TINY, "--enforce-eager", "true"]
    command += ["--enable-lora", "--max-lora-rank", 16]
    log = tmp_path_factory.mktemp("server") / "log"
    with served(command, log, VLLM_ALLOW_RUNTIME_LORA_UPDATING="1") as address:
        yield address


@pytest.fixture(scope="module")
def shared(url, base):
    sampler = ServerSampler(policy_on(base), SamplingOptions(), STOPS, 0, url=url, timeout=120)
    yield sampler
    sampler.close()


@pytest.mark.vllm
def test_the_guides_second_terminal_trains(url, base, encoder_path, tmp_path):
    project = small_project.make(tmp_path, base, encoder_path)
    command = ["examples/run.py", "--vllm_device", "0", "--vllm_url", url]
    assert "EpochResult(epoch=1" in small_project.run(command, project)
    assert list(project.glob("save_model/grpo_vllm/Llama_*/adapter_config.json"))


@pytest.fixture
def sampler(shared):
    """The shared server, with the adapter and the options that every test starts from."""
    scatter(shared.policy, seed=0)
    shared.options = SamplingOptions(max_completion_length=12)
    return shared


@pytest.mark.vllm
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampling_logprobs_equal_the_trainers_own(sampler, temperature):
    sampler.options = SamplingOptions(max_completion_length=12, temperature=temperature)
    completions = sampler.sample(PROMPTS, range(4))
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        expected = scored(sampler.policy, prompt, completion, temperature).tolist()
        assert completion.sampling_logprobs == pytest.approx(expected, abs=1e-3)
        assert len(completion.ids) == 12 or completion.ended


@pytest.mark.vllm
def test_a_completion_ends_with_the_first_end_token_or_is_cut(sampler):
    likely = sampler.sample([PROMPTS[0]], [0], greedy=True)[0].ids
    sampler.stop_ids = sorted({*STOPS, likely[3]})
    try:
        cut = sampler.sample([PROMPTS[0]], [0], greedy=True)[0]
    finally:
        sampler.stop_ids = sorted(STOPS)
    assert cut.ended
    assert cut.ids == likely[: likely.index(likely[3]) + 1]
    assert len(cut.sampling_logprobs) == len(cut.ids)


@pytest.mark.vllm
def test_a_seed_fixes_a_completion_whatever_else_is_in_the_batch(sampler):
    together = sampler.sample(PROMPTS, [7, 8, 9, 10])
    assert together[0].ids != together[1].ids  # equal prompts, other seeds
    for prompt, seed, expected in zip(PROMPTS, [7, 8, 9, 10], together, strict=True):
        assert sampler.sample([prompt], [seed])[0].ids == expected.ids


@pytest.mark.vllm
def test_greedy_completions_are_those_of_transformers(sampler):
    theirs = HFSampler(sampler.policy, sampler.options, STOPS, 0)
    expected = [c.ids for c in theirs.sample(PROMPTS, range(4), greedy=True)]
    assert [c.ids for c in sampler.sample(PROMPTS, range(4), greedy=True)] == expected


@pytest.mark.vllm
def test_a_changed_policy_is_followed_at_once_and_the_former_adapter_is_taken_back(sampler, url):
    before = sampler.sample(PROMPTS, range(4), greedy=True)
    scatter(sampler.policy, 5, std=0.6)
    after = sampler.sample(PROMPTS, range(4), greedy=True)
    assert [c.ids for c in before] != [c.ids for c in after]
    for prompt, completion in zip(PROMPTS, after, strict=True):
        expected = scored(sampler.policy, prompt, completion).tolist()
        assert completion.sampling_logprobs == pytest.approx(expected, abs=1e-3)
    served = [entry["id"] for entry in requests.get(f"{url}/v1/models", timeout=60).json()["data"]]
    assert served == [sampler.base, sampler.model]


@pytest.mark.vllm
def test_a_stale_server_is_refused(sampler, monkeypatch):
    scatter(sampler.policy, 7, std=0.6)
    with monkeypatch.context() as broken:
        broken.setattr(sampler, "_switch", lambda: None)  # the new adapter never arrives
        with pytest.raises(GenerationError, match="does not follow the policy"):
            sampler.sample(PROMPTS, range(4))
    assert len(sampler.sample(PROMPTS, range(4))) == 4


# -- servers that are no help


class Answers(BaseHTTPRequestHandler):
    """A server that never loads adapters, and whose completions fail as the test says."""

    pause, status, posts = 0.0, 500, 0

    def do_GET(self):
        found = self.path == "/v1/models"
        body = json.dumps({"data": [{"id": "m"}]}).encode() if found else b"{}"
        self._send(200 if found else 405, body)

    def do_POST(self):
        type(self).posts += 1
        time.sleep(self.pause)
        self._send(self.status, b'{"error": "out of order"}')

    def _send(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def broken_server(monkeypatch):
    monkeypatch.setattr(rollout_server, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(Answers, "posts", 0)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_dead_server_is_named_after_bounded_attempts(base, monkeypatch):
    monkeypatch.setattr(rollout_server, "FIRST_PAUSE", 0.01)
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(GenerationError, match=rf"{url} cannot be reached .*3 attempts.*resume_fr"):
        ServerSampler(policy_on(base), SamplingOptions(), STOPS, 0, url=url)


def test_a_slow_server_is_given_its_time_three_times(broken_server, monkeypatch):
    monkeypatch.setattr(Answers, "pause", 1.0)
    with pytest.raises(GenerationError, match=r"did not answer within 0\.1 s .*3 attempts"):
        Server(broken_server, timeout=0.1).post("/v1/completions", {})
    assert Answers.posts == 3


def test_an_error_of_the_server_is_tried_again_and_a_refusal_is_not(broken_server, monkeypatch):
    with pytest.raises(GenerationError, match=r"fails with status 500: .*out of order"):
        Server(broken_server, timeout=5).post("/v1/completions", {})
    assert Answers.posts == 3
    monkeypatch.setattr(Answers, "status", 400)
    with pytest.raises(GenerationError, match=r"refuses /v1/completions with status 400: .*out"):
        Server(broken_server, timeout=5).post("/v1/completions", {})
    assert Answers.posts == 4


def test_a_server_that_dies_on_the_way_ends_the_call(broken_server, base):
    sampler = ServerSampler(policy_on(base), SamplingOptions(), STOPS, 0, url=broken_server)
    with pytest.raises(GenerationError, match="/v1/load_lora_adapter, 3 attempts"):
        sampler.sample(PROMPTS, range(4))
    sampler.close()


def test_a_server_that_cannot_follow_is_refused_at_once(broken_server, base, monkeypatch):
    monkeypatch.setattr(ServerSampler, "_takes_adapters", lambda self: False)
    with pytest.raises(ConfigError, match=r"does not load adapters while it runs.*--enable-lora"):
        ServerSampler(policy_on(base), SamplingOptions(), STOPS, 0, url=broken_server)
