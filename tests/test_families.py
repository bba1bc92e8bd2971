"""The table of families: what a line of it does in loading, tokenizers, adapters, end tokens."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, MistralConfig

from main.dialogue.ends import stop_token_ids
from main.errors import ConfigError, ModelError
from main.models import LoraOptions, add_adapter, load_adapter, load_model, load_tokenizer
from main.models import families as table
from main.models.families import Family, Original, family, register
from main.predictor.hf import Predictor
from main.predictor.vllm_engine import Engine

IDS = torch.arange(1, 13).reshape(2, 6)


@pytest.fixture
def own_table(monkeypatch):
    monkeypatch.setattr(table, "_FAMILIES", list(table._FAMILIES))


def _to_llama(name: str) -> str:
    return name.replace("blocks", "model.layers") if name.startswith("blocks") else name


def _to_blocks(name: str) -> str:
    return name.replace("model.layers", "blocks") if "model.layers" in name else name


class Blocks:
    """A made-up form: a Llama whose file says 'blocks' and whose configuration is 'blocks.json'."""

    @staticmethod
    def is_model(folder: Path) -> bool:
        return (folder / "blocks.json").is_file()

    @staticmethod
    def config(folder: Path) -> LlamaConfig:
        return LlamaConfig(**json.loads((folder / "blocks.json").read_text()))

    @staticmethod
    def adopt(given, folder: Path):
        return given

    @staticmethod
    def weights(folder: Path, config) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        return {_to_llama(k): v for k, v in load_file(folder / "model.safetensors").items()}

    @staticmethod
    def model_class():
        return LlamaForCausalLM

    @staticmethod
    def complete(model, folder: Path) -> None:
        model.name_or_path = str(folder)

    @staticmethod
    def tokenizer(folder: Path):
        return AutoTokenizer.from_pretrained(str(folder / "words"))

    @staticmethod
    def is_adapter(tensors) -> bool:
        return any(".blocks." in name for name in tensors)

    @staticmethod
    def adapter(config, tensors, model_config):
        config.auto_mapping = None
        return config, {k.replace(".blocks.", ".model.layers."): v for k, v in tensors.items()}


BLOCKS = Original(
    is_model=Blocks.is_model,
    is_tokenizer=Blocks.is_model,
    config=Blocks.config,
    adopt=Blocks.adopt,
    weights=Blocks.weights,
    model_class=Blocks.model_class,
    complete=Blocks.complete,
    tokenizer=Blocks.tokenizer,
    is_adapter=Blocks.is_adapter,
    adapter=Blocks.adapter,
    convert="python -m blocks '{folder}'",
)


def write_blocks(tiny_model_path: Path, folder: Path) -> Path:
    from safetensors.torch import save_file

    model = LlamaForCausalLM.from_pretrained(tiny_model_path)
    folder.mkdir()
    settings = json.loads((Path(tiny_model_path) / "config.json").read_text())
    (folder / "blocks.json").write_text(json.dumps(settings))
    # an original folder may bring a config.json that transformers cannot read
    (folder / "config.json").write_text('{"model_type": "blocks-of-nobody"}')
    tensors = {_to_blocks(k): v.clone() for k, v in model.state_dict().items()}
    tensors.pop("lm_head.weight")
    save_file(tensors, folder / "model.safetensors")
    AutoTokenizer.from_pretrained(tiny_model_path).save_pretrained(folder / "words")
    return folder


def test_a_family_registered_from_outside_loads_and_answers_like_the_model_it_holds(
    own_table, tiny_model_path, tmp_path
):
    folder = write_blocks(tiny_model_path, tmp_path / "original")
    with pytest.raises(ModelError):
        load_model(folder)  # not known yet
    register(Family("Blocks", ("llama",), end_tokens=("<repo_name>",), original=BLOCKS))
    ours, plain = load_model(folder), load_model(tiny_model_path)
    assert torch.equal(ours(IDS).logits, plain(IDS).logits)
    assert (
        load_tokenizer(folder)("a b")["input_ids"]
        == load_tokenizer(tiny_model_path)("a b")["input_ids"]
    )
    assert family(ours.config) == "Blocks"
    query = "What is the capital of France?"
    assert Predictor(folder)(query, max_new_tokens=4) == Predictor(tiny_model_path)(
        query, max_new_tokens=4
    )


def test_a_registered_family_translates_adapters_of_its_own_code(
    own_table, tiny_model_path, tmp_path
):
    from safetensors.torch import load_file, save_file

    from main.models import save_adapter

    model = add_adapter(load_model(tiny_model_path), LoraOptions(lora_r=2))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    save_adapter(model, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file(
        {k.replace(".model.layers.", ".blocks."): v for k, v in load_file(file).items()}, file
    )
    with pytest.raises(ModelError, match="have no place"):
        load_adapter(load_model(tiny_model_path), tmp_path / "adapter")
    register(Family("Blocks", ("llama",), original=BLOCKS))
    again = load_adapter(load_model(tiny_model_path), tmp_path / "adapter")
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits)


def test_end_tokens_of_a_family_end_answers_and_those_that_a_tokenizer_lacks_are_passed_over(
    own_table, tiny_model_path
):
    model, tokenizer = load_model(tiny_model_path), load_tokenizer(tiny_model_path)
    before = set(stop_token_ids(model, tokenizer))
    more = tokenizer.convert_tokens_to_ids("<repo_name>")
    assert more not in before
    register(Family("Mine", ("llama",), end_tokens=("<repo_name>", "<of another vocabulary>")))
    assert set(stop_token_ids(model, tokenizer)) == before | {more}
    # a server's generation configuration does not name the family: its model's does
    plain = model.generation_config
    assert set(stop_token_ids(plain, tokenizer, model.config)) == before | {more}


def test_a_later_line_comes_first_and_a_family_without_a_line_is_named_after_its_type(own_table):
    assert family(MistralConfig()) == "Mistral"
    register(Family("Mist", ("mistral",)))
    assert family(MistralConfig()) == "Mist"
    register(Family("Mister", ("mistral",)))
    assert family(MistralConfig()) == "Mister"


@pytest.mark.parametrize(("name", "types"), [("a/b", ("x",)), ("", ("x",)), ("Mine", ())])
def test_a_line_that_names_no_folder_or_no_model_is_refused(own_table, name, types):
    with pytest.raises(ConfigError, match="at least one model type"):
        register(Family(name, types))


def test_vllm_is_told_how_a_registered_form_is_converted(own_table, tiny_model_path, tmp_path):
    pytest.importorskip("vllm")
    folder = write_blocks(tiny_model_path, tmp_path / "original")
    register(Family("Blocks", ("llama",), original=BLOCKS))
    with pytest.raises(ModelError, match=r"python -m blocks '.*original'"):
        Engine({"model": str(folder)})
