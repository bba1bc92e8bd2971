"""Files that strangers wrote: what would run code or take memory is refused by name, unread."""

import json
import os
import shutil
import sqlite3
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from conftest import ROOT
from peft import LoraConfig, get_peft_model

from main.errors import CheckpointError, ConfigError, MainError, ModelError
from main.models import load_adapter, load_config, load_model, load_tokenizer, patterns
from main.models.encoder import SentenceEncoder
from main.models.training_record import read_record
from main.trainer.loop import saving
from main.trainer.loop.state import RunState
from main.trainer.lora import Trainer
from main.trainer.rewards.model import RewardModel
from main.vision.load import load_vision
from main.vision.qwen import QwenVision

DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000
RAN = "ran"  # what an attack that succeeds leaves behind


class Runs:
    def __reduce__(self):
        return os.system, (f"touch '{Path(RAN).absolute()}'",)


class Grows:
    def __reduce__(self):
        return bytearray, (10**11,)


class Attack(NamedTuple):
    """prepare: makes a folder of its kind malicious. read: what a user does with it."""

    prepare: Callable[[Path], Any]
    read: Callable[[Path], Any]
    problem: str
    error: type[MainError] = ModelError


def edit(folder: Path, name: str, **changes: Any) -> None:
    path = folder / name
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(content | changes), encoding="utf-8")


def setting(name: str, **changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder, name, **changes)


def text(name: str, content: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(content, encoding="utf-8")


def code(name: str, **changes: Any) -> Callable[[Path], None]:
    """Code beside a file of settings that asks for it."""

    def prepare(folder: Path) -> None:
        (folder / "evil.py").write_text(f"open({str(Path(RAN).absolute())!r}, 'w').close()")
        edit(folder, name, **changes)

    return prepare


def pickled(name: str, content: type, instead_of: str = "model.safetensors") -> Callable:
    def prepare(folder: Path) -> None:
        (folder / instead_of).unlink(missing_ok=True)
        torch.save({"weight": content()}, folder / name)

    return prepare


def packed(name: str) -> Callable[[Path], None]:
    """A file of torch's that unpacks to a thousand times its size."""

    def prepare(folder: Path) -> None:
        torch.save({"weight": torch.zeros(10**6)}, folder / name)
        with zipfile.ZipFile(folder / name) as archive:
            entries = {entry: archive.read(entry) for entry in archive.namelist()}
        with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for entry, content in entries.items():
                archive.writestr(entry, content)

    return prepare


def doubling(part: str, steps: str) -> Callable[[Path], None]:
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    return setting("tokenizer.json", **{part: {"type": "Sequence", steps: [step] * 40}})


def adapter(folder: Path) -> Any:
    return load_adapter(load_model(asset_of(folder)), folder)


def asset_of(folder: Path) -> Path:
    return folder.parent / "base"


def checkpoint(folder: Path) -> Any:
    return saving.read_snapshot(folder.parent, 0, 1)


def images(folder: Path) -> Any:
    return QwenVision.image_processor.func(SimpleNamespace(path=str(folder)))  # type: ignore[attr-defined]


def template_beside(folder: Path) -> Any:
    config = SimpleNamespace(model_type="qwen2_vl")
    return load_vision(folder, config, SimpleNamespace(chat_template=None))


REMOTE = "runs Python code that it brings along"
CLASS = {"architectures": ["EvilForSequenceClassification"], "num_labels": 1}
MODEL = {
    "a class of its own": Attack(
        code("config.json", model_type="evil", auto_map={"AutoConfig": "evil.Evil"}),
        load_model,
        REMOTE,
    ),
    "an attention of the hub": Attack(
        setting("config.json", _attn_implementation="kernels-community/evil"),
        load_model,
        "asks for the attention 'kernels-community/evil', which is code of the hub",
    ),
    "layers without number": Attack(
        setting("config.json", num_hidden_layers=10**9), load_model, "and 4096 are the most"
    ),
    "a deep configuration": Attack(text("config.json", DEEP), load_config, "is not valid JSON"),
    "a long number": Attack(
        text("config.json", '{"vocab_size": ' + "9" * 10**5 + "}"), load_config, "not valid JSON"
    ),
    "a list": Attack(text("config.json", "[]"), load_config, "must hold an object; found list"),
    "pickled weights": Attack(
        pickled("pytorch_model.bin", Runs), load_model, r"names \w+\.system.* would run code"
    ),
    "bytes of nothing": Attack(
        pickled("pytorch_model.bin", Grows), load_model, r"names \w+\.bytearray, which is no tensor"
    ),
    "weights elsewhere": Attack(
        setting("model.safetensors.index.json", weight_map={"a": "../other/model.safetensors"}),
        load_model,
        "which is not one beside it",
    ),
    "a tokenizer's class": Attack(
        code(
            "tokenizer_config.json", tokenizer_class="E", auto_map={"AutoTokenizer": ["evil.E"] * 2}
        ),
        load_tokenizer,
        REMOTE,
    ),
    "a text that doubles": Attack(
        doubling("normalizer", "normalizers"), load_tokenizer, r"normalizer may make .* 1\.1e\+12"
    ),
    "an answer that doubles": Attack(
        doubling("decoder", "decoders"), load_tokenizer, r"decoder may make .* 1\.1e\+12 times"
    ),
    "a reward model's class": Attack(
        code(
            "config.json",
            model_type="siglip_vision_model",
            auto_map={"AutoModelForSequenceClassification": "evil.Evil"},
            **CLASS,
        ),
        RewardModel,
        REMOTE,
    ),
    "a reward model's pickle": Attack(
        lambda folder: [
            edit(folder, "config.json", **CLASS),
            pickled("pytorch_model.bin", Runs)(folder),
        ],
        RewardModel,
        "reward model .* would run code",
    ),
    "an encoder's class": Attack(
        code("config.json", model_type="evil", auto_map={"AutoModel": "evil.Evil"}),
        SentenceEncoder,
        "cannot be loaded|brings along",
    ),
    "an encoder's pickle": Attack(
        pickled("pytorch_model.bin", Runs), SentenceEncoder, "sentence encoder .* would run code"
    ),
    "an encoder's settings": Attack(
        text("sentence_bert_config.json", DEEP), SentenceEncoder, "is not valid JSON"
    ),
    "a picture processor's class": Attack(
        code("preprocessor_config.json", auto_map={"AutoImageProcessor": "evil.Evil"}),
        images,
        "cannot be loaded",
    ),
    "a template beside it": Attack(
        text("chat_template.json", DEEP), template_beside, "is not valid JSON"
    ),
}
ADAPTER = {
    "pickled weights": Attack(
        pickled("adapter_model.bin", Runs, "adapter_model.safetensors"), adapter, "would run code"
    ),
    "adapters of others": Attack(
        setting("adapter_config.json", peft_type="XLORA", adapters={"a": "/other"}),
        adapter,
        "is X-LoRA, which loads the adapters that it names from anywhere",
    ),
    "a module to import": Attack(
        setting("adapter_config.json", megatron_config={"a": 1}, megatron_core="antigravity"),
        adapter,
        "names modules of Megatron to import",
    ),
    "a rank without bounds": Attack(
        setting("adapter_config.json", r=10**9), adapter, "is of rank 1,000,000,000"
    ),
    "a start without end": Attack(
        setting("adapter_config.json", init_lora_weights="pissa_niter_1000000000"),
        adapter,
        "more than 1000 rounds",
    ),
    "a deep configuration": Attack(text("adapter_config.json", DEEP), adapter, "is not valid JSON"),
    "a pattern that tries for ever": Attack(
        setting("adapter_config.json", rank_pattern={"((([a-z_.0-9])*)*)*!": 4}),
        adapter,
        "takes more than 1 s to match",
    ),
    "what is no pattern": Attack(
        setting("adapter_config.json", target_modules="(q_proj"), adapter, "no regular expression"
    ),
    "no configuration": Attack(text("adapter_config.json", "[]"), adapter, "found list"),
    "a header without end": Attack(
        lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"\xff" * 7 + b"\0{}"),
        adapter,
        "are damaged",
    ),
}
CHECKPOINT = {
    **{
        f"code in {name}": Attack(
            pickled(name, Runs), checkpoint, rf"{name} cannot be read: .*code", CheckpointError
        )
        for name in ("weights.pt", "optimizer.pt", "task.pt", "rng_0.pt")
    },
    "bytes of nothing": Attack(
        pickled("task.pt", Grows), checkpoint, r"bytearray, which is no", CheckpointError
    ),
    "what unpacks": Attack(packed("optimizer.pt"), checkpoint, "is packed", CheckpointError),
    "a deep record": Attack(
        text("progress.json", DEEP), checkpoint, "cannot be read", CheckpointError
    ),
}


@pytest.fixture
def folders(own_folder, tiny_model_path):
    """Malicious is made: a model, an adapter of it, the state in a checkpoint."""
    shutil.copytree(tiny_model_path, "model")
    Path("base").symlink_to(tiny_model_path)
    yield own_folder
    assert not Path(RAN).exists()


@pytest.fixture(scope="module")
def adapter_files(tiny_model_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound") / "adapter"
    config = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(load_model(tiny_model_path), config).save_pretrained(folder)
    assert adapter_of_file(folder, tiny_model_path)
    return folder


def adapter_of_file(folder, base):
    return load_adapter(load_model(base), folder)


def attacked(attack: Attack, folder: Path) -> None:
    attack.prepare(folder)
    with pytest.raises(attack.error, match=f"(?s){attack.problem}") as caught:
        attack.read(folder)
    told: BaseException | None = caught.value
    while told is not None:  # what a traceback shows
        assert "weights_only" not in str(told)
        told = told.__cause__ or (None if told.__suppress_context__ else told.__context__)


@pytest.mark.parametrize("name", MODEL)
def test_the_folder_of_a_model_does_nothing_but_hold_it(folders, name):
    attacked(MODEL[name], folders / "model")


@pytest.mark.parametrize("name", ADAPTER)
def test_the_folder_of_an_adapter_does_nothing_but_hold_it(
    folders, adapter_files, name, monkeypatch
):
    monkeypatch.setattr(patterns, "SECONDS", 1)
    shutil.copytree(adapter_files, "adapter")
    attacked(ADAPTER[name], folders / "adapter")


@pytest.mark.parametrize("name", CHECKPOINT)
def test_the_state_of_a_checkpoint_is_tensors_and_plain_values(folders, name):
    state = folders / "Llama_1" / "trainer_state"
    state.mkdir(parents=True)
    progress = {"step": 1, "number": 1, "run_id": "a", "identity": {}, "task": {}, "processes": 1}
    edit(state, "progress.json", **progress)
    for tensors in ("weights.pt", "optimizer.pt", "task.pt", "rng_0.pt"):
        torch.save({"weight": torch.ones(2), "step": 1, "names": ["a"]}, state / tensors)
    assert checkpoint(state).weights["weight"].tolist() == [1, 1]
    attacked(CHECKPOINT[name], state)


@pytest.mark.parametrize("content", [DEEP, "[]", '{"template_kwargs": 7}', '{"plain_text": "no"}'])
def test_a_foreign_record_of_the_training_is_told_and_not_used(own_folder, caplog, content):
    Path("training.json").write_text(content, encoding="utf-8")
    record = read_record(own_folder)
    assert record is None or record.loader == ""
    assert content == "[]" or "training.json is damaged and not used" in caplog.text


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/tmp/x", "", ".", "a\0b"])
def test_names_that_become_folders_stay_below_theirs(own_folder, name):
    with pytest.raises(ValueError, match=r"task_name=.* must be a relative name without"):
        Trainer(from_pretrained="gone", data_path={"train": "gone.json"}, task_name=name)
    state = RunState().as_json() | {"best_checkpoint": f"{name}/../../etc"}
    with pytest.raises(CheckpointError, match="which is no folder beside it"):
        RunState.from_json(state, own_folder)


@pytest.mark.slow
def test_an_index_of_knowledge_takes_no_class_that_an_encoder_brings(own_folder, encoder_path):
    sys.path.insert(0, str(ROOT / "examples" / "rag"))
    from index import Index

    shutil.copytree(encoder_path, "encoder")
    modules = [{"idx": 0, "name": "0", "path": "", "type": "evil.Evil"}]
    Path("encoder/modules.json").write_text(json.dumps(modules))
    Path("encoder/evil.py").write_text(f"open({str(Path(RAN).absolute())!r}, 'w').close()")
    with pytest.raises(ModelError, match=r"'evil\.Evil', which is code of others"):
        Index("index", own_folder / "encoder")
    assert not Path(RAN).exists()


@pytest.mark.slow
@pytest.mark.parametrize("column", ["config_json_str", "schema_str"])
def test_an_index_of_somebody_else_loads_no_model_of_its_own(own_folder, encoder_path, column):
    sys.path.insert(0, str(ROOT / "examples" / "rag"))
    from index import Entry, Index

    folder = own_folder / "index"  # chromadb keeps databases open by their paths
    Index(folder, encoder_path).add([Entry("a", "Cats climb.", "Cats climb.")])
    assert Index(folder, encoder_path).find("cat", 2.0)
    settings = {"model_name": "evil", "kwargs": {"trust_remote_code": True}}
    function = {"type": "known", "name": "sentence_transformer", "config": settings}
    with sqlite3.connect("index/chroma.sqlite3") as database:
        ((text,),) = database.execute(f"SELECT {column} FROM collections")
        content = json.dumps({**json.loads(text), "embedding_function": function})
        database.execute(f"UPDATE collections SET {column} = ?", (content,))
    with pytest.raises(ConfigError, match=r"names the embedding function .*sentence_transformer"):
        Index(folder, encoder_path)
