"""`vllm serve` as our adapters need it: their names, template, variables, ends; what is refused."""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from chat_templates import load_tokenizer as family_tokenizer
from vllm_models import make_adapter, save_tiny

from main.dialogue.calls import FORMATS, format_of
from main.dialogue.renderer import renderer_of
from main.errors import ConfigError, MissingFileError, ModelError
from main.models import load_tokenizer
from main.models.training_record import TrainingRecord, write_record
from main.predictor.hf import Predictor as Local
from main.predictor.openai import Predictor
from main.utils.serve import serving
from main.utils.serve_command import command, named, plan_of

# Another than the base's, with a variable and an end token of its own.
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} ({{ style }})\n{{ m['content'] }}"
    "<|endoftext|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUERIES = ["Hi", "What is the capital of France?", "写一个关于猫的句子。"]


@pytest.fixture(scope="module")
def base(tmp_path_factory, small_model_path):
    folder = tmp_path_factory.mktemp("serve") / "base"
    return save_tiny(folder, tokenizer=load_tokenizer(small_model_path))


@pytest.fixture(scope="module")
def adapters(base):
    """Folders: of dialogues with a template of its own, and of plain text."""
    own = make_adapter(base, base.parent / "own", 3)
    tokenizer = load_tokenizer(base)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(own)
    write_record(own, TrainingRecord(method="lora.Trainer", template_kwargs={"style": "terse"}))
    plain = make_adapter(base, base.parent / "plain", 4, lora_r=20)
    write_record(plain, TrainingRecord(method="lora.Trainer", loader="LLM_Pure", plain_text=True))
    return {"own": own, "plain": plain}


def option(line: list[str], name: str) -> str:
    return line[line.index(name) + 1]


def test_the_command_has_names_rank_template_variables_and_ends(base, adapters, tmp_path):
    plan = plan_of(str(base), adapters, False)
    line = command(plan, tmp_path, "127.0.0.1", 8000, "auto", ["--max-num-seqs", "8"])
    assert line[:5] == [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(base)]
    assert option(line, "--served-model-name") == "base"
    assert option(line, "--max-lora-rank") == "32"
    assert option(line, "--dtype") == "float32"
    first = line.index("--lora-modules") + 1
    assert [json.loads(one) for one in line[first : first + 2]] == [
        {"name": name, "path": str(path)} for name, path in adapters.items()
    ]
    assert (tmp_path / "chat_template.jinja").read_text() == TEMPLATE
    assert json.loads(option(line, "--default-chat-template-kwargs")) == {"style": "terse"}
    ends = json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"]
    tokenizer = load_tokenizer(base)
    assert tokenizer.convert_tokens_to_ids("<|endoftext|>") in ends
    assert option(line, "--generation-config") == str(tmp_path)
    assert line[-2:] == ["--max-num-seqs", "8"]
    assert "--tool-call-parser" not in line  # this template writes no calls


def test_the_parser_of_tool_calls_is_that_of_the_template(tmp_path):
    base = save_tiny(tmp_path / "q", tokenizer=family_tokenizer("qwen", "qwen3"))
    line = command(plan_of(str(base), {}, False), tmp_path, "127.0.0.1", 1, "float32")
    assert option(line, "--tool-call-parser") == "hermes"
    assert "--enable-auto-tool-choice" in line


def test_names_of_adapters():
    assert named(None) == {}
    assert named("save/t/Llama_9") == {"Llama_9": "save/t/Llama_9"}
    assert named(["a=x/y", "b"]) == {"a": "x/y", "b": "b"}
    assert named({"c": "d"}) == {"c": "d"}
    with pytest.raises(ConfigError, match="two adapters are called 'Llama_9'"):
        named(["a/Llama_9", "b/Llama_9"])


def test_what_vllm_cannot_load_is_refused_by_name(base, adapters, tmp_path):
    dora = make_adapter(base, tmp_path / "dora", 1, use_dora=True)
    with pytest.raises(ModelError, match=r"dora' is DoRA, .* Merge it"):
        plan_of(str(base), {"dora": dora}, False)
    other = save_tiny(tmp_path / "other", vocabulary=61)
    load_tokenizer(base).save_pretrained(other)
    with pytest.raises(ModelError):
        plan_of(str(other), {"own": make_adapter(base, tmp_path / "head", 1,
                                                 target_modules=["lm_head"])}, False)  # fmt: skip
    with pytest.raises(MissingFileError, match="nowhere"):
        plan_of(str(base), {"x": tmp_path / "nowhere"}, False)
    more = make_adapter(base, tmp_path / "more", 1)
    tokenizer = load_tokenizer(base)
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(more)
    with pytest.raises(ModelError, match="other tokens than its base"):
        plan_of(str(base), {"more": more}, False)


def test_adapters_that_need_different_servers_are_refused(base, adapters, tmp_path):
    bare = make_adapter(base, tmp_path / "bare", 1)
    with pytest.raises(ConfigError, match="'own' and 'bare' were trained with different chat temp"):
        plan_of(str(base), {**adapters, "bare": bare}, False)
    second = make_adapter(base, tmp_path / "second", 1)
    load_tokenizer(adapters["own"]).save_pretrained(second)
    write_record(second, TrainingRecord(template_kwargs={"style": "long"}))
    with pytest.raises(ConfigError, match="different variables of the chat template"):
        plan_of(str(base), {**adapters, "second": second}, False)
    with pytest.raises(ConfigError, match="both called 'base'"):
        plan_of(str(base), {"base": adapters["own"]}, False)


def test_an_open_address_needs_a_key_and_a_port_must_be_free(base, monkeypatch):
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    for host in ("0.0.0.0", "::", "192.168.1.7"):
        with pytest.raises(ConfigError, match="can be reached by others: give api_key"):
            serving(base, host=host).__enter__()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port={port}: Address already in use"):
            serving(base, port=port).__enter__()
    with pytest.raises(ConfigError, match="'--api-key' is decided by serve"):
        serving(base, port=0, arguments=["--api-key=x"]).__enter__()
    with pytest.raises(ConfigError, match=r"no argument 'prt'. Did you mean 'port'"):
        serving(base, prt=1).__enter__()


def gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=60)
    return not alive


@pytest.fixture(scope="module")
def running(base, adapters, tmp_path_factory) -> Iterator[tuple[Any, str, str]]:
    """(the command's process, the address that it says, what it wrote)."""
    log = tmp_path_factory.mktemp("log") / "out"
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "from main.utils.serve import main; main()"
    line = [sys.executable, "-c", code, str(base), "--port", "0", "--peft_path"]
    line += [f"{name}={path}" for name, path in adapters.items()]
    line += ["--", "--enforce-eager", "--kv-cache-memory-bytes", str(2**28)]
    with log.open("w") as output:
        process = psutil.Popen(
            line, stdout=output, stderr=output, env={**os.environ, "VLLM_API_KEY": "sk-very-secret"}
        )
    try:
        while "In a shell:" not in log.read_text():
            assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.5)
        text = log.read_text()
        yield process, text.split("vLLM answers at ")[1].split(";")[0], text
    finally:
        process.kill() if process.poll() is None else None


@pytest.mark.vllm
def test_the_served_adapter_answers_as_the_other_predictors_and_ctrl_c_ends_all(
    running, base, adapters
):
    process, url, text = running
    children = process.children(recursive=True)
    assert "sk-very-secret" not in text + " ".join(" ".join(p.cmdline()) for p in children)
    assert '-H "Authorization: Bearer $OPENAI_API_KEY"' in text
    with pytest.raises(ConfigError, match="wants an api_key"):
        Predictor("own", url, "")
    for name, path in adapters.items():
        local = Local(base, path, dtype="float32")
        with Predictor(name, url, "sk-very-secret") as pred:
            asked = {"max_new_tokens": 12}
            theirs = local.predict_with_logprobs(QUERIES, **asked)
            mine = pred.predict_with_logprobs(QUERIES, **asked)
            assert pred.prompt_ids(QUERIES) == local.prompt_ids(QUERIES)
            assert [m.token_ids for m in mine] == [t.token_ids for t in theirs]
            assert [m.text for m in mine] == [t.text for t in theirs]
            for one, other in zip(mine, theirs, strict=True):
                assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)
            assert list(pred.predict_stream(QUERIES, **asked))[-1][1] == [m.text for m in mine]
            assert local.voice.answerer is not None
            assert pred.served.answerer.digest == local.voice.answerer.digest
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) == 0
    assert len(children) >= 2 and gone(children)


@pytest.mark.vllm
@pytest.mark.parametrize("form", [form for form in FORMATS if form.vllm], ids=lambda f: f.name)
def test_vllms_parser_reads_what_the_template_writes(form):
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.tool_parsers import ToolParserManager

    vocabulary, template = {
        "hermes": ("qwen", "qwen3"),
        "qwen3_xml": ("qwen", "qwen3_5_nothink"),
        "glm45": ("qwen", "glm4moe"),
        "lfm2": ("qwen", "lfm2_2_5"),
        "gemma4": ("qwen", "gemma4"),
        "muse_glimmer": ("qwen", "muse_glimmer"),
        "llama3_json": ("llama3", "llama3_1"),
    }[form.vllm]
    tokenizer = family_tokenizer(vocabulary, template)
    if form.vllm == "lfm2":  # its marks are tokens of its own vocabulary
        tokenizer.add_tokens(["<|tool_call_start|>", "<|tool_call_end|>"])
    parameters = {"city": {"type": "string"}, "days": {"type": "integer"}}
    schema = {"type": "object", "properties": parameters}
    function = {"name": "weather", "description": "of a city", "parameters": schema}
    tools = [{"type": "function", "function": function}]
    arguments = {"city": "Paris 5", "days": 3}
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    question = {"role": "user", "content": "Which?"}
    renderer = renderer_of(tokenizer)
    assert format_of(renderer) is form
    answer = {"role": "assistant", "content": "", "tool_calls": [call]}
    turns: list[dict[str, Any]] = [question, answer]
    text = renderer.render(turns, tools=tools).partition("Which?")[2]
    if form.vllm == "llama3_json":  # it reads an answer that is a call from its first character
        text = text.rpartition("<|end_header_id|>")[2].removesuffix("<|eot_id|>").strip()
    body = {"model": "m", "messages": [question], "tools": tools}
    request = ChatCompletionRequest.model_validate(body)
    reader: Any = ToolParserManager.get_tool_parser(form.vllm)
    (read,) = reader(tokenizer, request.tools).extract_tool_calls(text, request=request).tool_calls
    assert (read.function.name, json.loads(read.function.arguments)) == ("weather", arguments)
