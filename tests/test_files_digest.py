"""What a model or adapter is, by the content of its files."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from main.models.identity import files_digest


@pytest.fixture
def folder(tiny_model_path, tmp_path):
    copied = tmp_path / "model"
    shutil.copytree(tiny_model_path, copied)
    return copied


def test_a_copy_elsewhere_is_the_same_and_so_are_its_shards(tiny_model_path, folder):
    whole = files_digest(folder)
    assert whole == files_digest(tiny_model_path)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    for number, part in enumerate((names[1::2], names[::2])):
        save_file({name: tensors[name] for name in part}, folder / f"part-{number}.safetensors")
    assert files_digest(folder) == whole


def test_each_tensor_counts(folder):
    whole, path = files_digest(folder), folder / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in tensors.items():
        save_file({**tensors, name: tensor + 0.01}, path)
        assert files_digest(folder) != whole, name
    save_file(tensors, path)
    assert files_digest(folder) == whole


def test_the_configuration_counts_but_not_where_a_base_lay(folder):
    whole = files_digest(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_name_or_path": "elsewhere"}))
    assert files_digest(folder) == whole
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 3.0}))
    assert files_digest(folder) != whole


def test_files_of_other_forms_count_by_pieces(tmp_path):
    torch.save({"a": torch.zeros(100)}, tmp_path / "adapter_model.bin")
    first = files_digest(tmp_path)
    torch.save({"a": torch.ones(100)}, tmp_path / "adapter_model.bin")
    assert files_digest(tmp_path) != first


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 100, b"\x02" + b"\0" * 7 + b"[]"])
def test_a_damaged_file_does_not_matter(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    assert len(files_digest(tmp_path)) == 64


def test_a_name_of_the_hub_is_known_by_its_name(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert files_digest("nobody/nothing") != files_digest("nobody/else")
