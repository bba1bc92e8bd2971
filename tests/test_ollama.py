"""GGUF by llama.cpp's converter, and the Modelfile that says the chat template again."""

from pathlib import Path
from typing import Any

import pytest
import trl

from main.errors import MissingFileError, ModelError
from main.models import LoraOptions, add_adapter, load_model, load_tokenizer, save_adapter
from main.utils.merge_model import merge_model
from main.utils.ollama import find_converter, ollama_template, template_pieces, write

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
DIALOGUE: list[Any] = [
    {"role": "user", "content": "你好"},
    {"role": "assistant", "content": "Hello.\nYes?"},
    {"role": "user", "content": "Bye"},
]


@pytest.fixture
def adapter(tiny_model_path, tmp_path) -> Path:
    save_adapter(add_adapter(load_model(tiny_model_path), LoraOptions(lora_r=2)), tmp_path / "a")
    return tmp_path / "a"


def templated(path: Path, name: str):
    tokenizer = load_tokenizer(path)
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    return tokenizer


def test_the_modelfile_of_smollm2_is_written_out(tiny_model_path, adapter, tmp_path):
    merge_model(tiny_model_path, adapter, tmp_path / "merged", format="ollama")
    assert (tmp_path / "merged" / "Modelfile").read_text() == (
        'FROM .\nTEMPLATE """{{ range .Messages }}{{ if eq .Role "system" }}<|im_start|>system\n'
        '{{ .Content }}<|im_end|>\n<|im_start|>user\n{{ else if eq .Role "user" }}{{ .Content }}'
        '<|im_end|>\n<|im_start|>assistant\n{{ else if eq .Role "assistant" }}{{ .Content }}'
        '<|im_end|>\n<|im_start|>user\n{{ end }}{{ end }}"""\n'
        'SYSTEM """You are a helpful AI assistant named SmolLM, trained by Hugging Face"""\n'
        'PARAMETER stop "<|im_end|>"\nPARAMETER temperature 0\nPARAMETER num_ctx 1024\n'
    )


def test_a_template_without_a_default_system_opens_with_the_users_turn(qwen_tokenizer_path):
    pieces = template_pieces(templated(qwen_tokenizer_path, "qwen3"))
    assert pieces.default_system == ""
    assert pieces.user == ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")
    assert ollama_template(pieces).startswith(
        '{{ range .Messages }}{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}'
    )


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "llama3"])
def test_the_pieces_write_what_the_tokenizers_template_writes(
    qwen_tokenizer_path, llama3_tokenizer_path, name
):
    path = llama3_tokenizer_path if name == "llama3" else qwen_tokenizer_path
    tokenizer = templated(path, name)
    expected = tokenizer.apply_chat_template(DIALOGUE, tokenize=False, add_generation_prompt=True)
    # Ollama adds the BOS itself, as the Llama 3 tokenizer does
    bos = "<|begin_of_text|>" if name == "llama3" else ""
    assert expected == bos + write(template_pieces(tokenizer), DIALOGUE)


def test_a_template_that_looks_at_other_turns_is_refused_before_anything_is_loaded(
    tiny_model_path, adapter, tmp_path
):
    tokenizer = load_tokenizer(tiny_model_path)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ loop.index }}>{{ m.content }}{% endfor %}<a>"
    )
    tokenizer.save_pretrained(adapter)
    with pytest.raises(ModelError, match="more than fixed text around the turns"):
        merge_model(tiny_model_path, adapter, tmp_path / "merged", format="ollama")
    assert not (tmp_path / "merged").exists()


def test_gguf_without_a_converter_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingFileError, match=r"needs convert_hf_to_gguf\.py of llama\.cpp"):
        merge_model("base", "adapter", tmp_path / "out", format="gguf")
    with pytest.raises(MissingFileError, match=r"converter 'gone\.py' does not exist"):
        find_converter("gone.py")


def converter(folder: Path, body: str) -> Path:
    """A stand-in with the command line of llama.cpp's converter."""
    path = folder / "convert_hf_to_gguf.py"
    path.write_text(
        "import argparse, pathlib\nparser = argparse.ArgumentParser()\n"
        "parser.add_argument('model', type=pathlib.Path)\n"
        "parser.add_argument('--outfile', type=pathlib.Path)\n"
        "parser.add_argument('--outtype', choices=['f32', 'f16', 'bf16'])\n"
        f"given = parser.parse_args()\n{body}\n"
    )
    return path


def test_the_converter_is_run_on_the_merged_folder(tiny_model_path, adapter, tmp_path):
    script = converter(
        tmp_path,
        "assert (given.model / 'model.safetensors').is_file()\n"
        "given.outfile.write_text('GGUF ' + given.outtype)",
    )
    merge_model(
        tiny_model_path, adapter, tmp_path / "out", format="ollama", converter=script,
        dtype="float16",
    )  # fmt: skip
    assert (tmp_path / "out" / "model.gguf").read_text() == "GGUF f16"
    assert (tmp_path / "out" / "Modelfile").read_text().startswith("FROM ./model.gguf\n")


def test_a_converter_that_fails_leaves_nothing_and_its_last_words(
    tiny_model_path, adapter, tmp_path
):
    script = converter(tmp_path, "raise NotImplementedError('no such architecture')")
    with pytest.raises(ModelError, match=r"failed \(exit 1\): .*no such architecture"):
        merge_model(tiny_model_path, adapter, tmp_path / "out", format="gguf", converter=script)
    assert not (tmp_path / "out").exists()
