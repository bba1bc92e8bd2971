"""Secrets of options, of addresses and of the environment are in no record."""

import json
from pathlib import Path

import pytest

from main.models.training_record import arguments_of, plain
from main.system.masking import masked, names_secret
from main.trainer.grpo.options import GRPOOptions
from main.trainer.lora import Trainer
from main.trainer.rollout.server import Server

SECRETS = {
    "HF_TOKEN": "hf_" + "Qx7" * 10,
    "WANDB_API_KEY": "0123456789abcdef" * 2,
    "JUDGE_PASSWORD": "correct horse",
}
ADDRESS = "http://me:open-sesame@judge.example:8000/v1?api_key=k123&page=2"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ADDRESS, "http://***@judge.example:8000/v1?api_key=***&page=2"),
        (f"a {SECRETS['JUDGE_PASSWORD']} b", "a *** b"),
        ("sk-" + "a1" * 20, "***"),
        ("ghp_" + "b" * 36 + ".", "***."),
        ("user@host and 5 @ 6 and http://host/a@b", "user@host and 5 @ 6 and http://host/a@b"),
        ("<|im_end|> hf_model sk-learn", "<|im_end|> hf_model sk-learn"),
    ],
)
def test_secrets_in_a_text_are_masked_and_nothing_else_is(text, expected):
    assert masked(text) == expected


def test_options_are_known_by_name():
    secret = ["hf_token", "api_key", "openai_apikey", "password", "client_secret", "token"]
    secret += ["Authorization", "access_token", "key"]
    other = ["eos_token", "max_new_tokens", "tokenizer", "pad_token_id", "keys", "keep_tokens"]
    assert all(map(names_secret, secret)) and not any(map(names_secret, other))


def test_arguments_are_recorded_without_their_secrets():
    options = GRPOOptions(reward_func=len, vllm_mode="server", vllm_server_base_url=ADDRESS)
    assert arguments_of(options)["vllm_server_base_url"].startswith("http://***@judge.example")
    headers = {"Authorization": "Basic bWU6", "x": [SECRETS["HF_TOKEN"]], "eos_token": "</s>"}
    assert plain(headers) == {"Authorization": "***", "x": ["***"], "eos_token": "</s>"}
    assert "sesame" not in f"the vLLM server at {Server(ADDRESS, 1.0)} cannot be reached"


def test_no_file_of_a_run_has_a_secret_in_it(own_folder, tiny_model_path):
    turns = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}]
    Path("train.json").write_text(json.dumps([{"conversations": turns}] * 4), encoding="utf-8")
    data = {"train": "train.json", "dev": "train.json"}
    there = f"runs {SECRETS['JUDGE_PASSWORD']}"
    trainer = Trainer(from_pretrained=tiny_model_path, data_path=data, lora_r=2, output_dir=there)
    (result,) = trainer(num_epochs=1, report_to=["tensorboard"], progress=False)
    files = [path for path in Path(there).rglob("*") if path.is_file()]
    kinds = {path.name.partition(".")[0] for path in files}
    assert {"train", "eval", "training", "progress", "events"} <= kinds
    for path in files:
        content = path.read_bytes()
        assert not [name for name, value in SECRETS.items() if value.encode() in content], path
    assert result.checkpoint is not None
    record = json.loads((Path(result.checkpoint) / "training.json").read_text(encoding="utf-8"))
    assert record["setup"]["output_dir"] == "runs ***"
