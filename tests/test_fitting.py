"""Rows and tokenizers that do not fit a model are found when the trainer is made."""

import json
import logging
from typing import Any

import pytest
from chat_templates import load_tokenizer, turns

from main.errors import ConfigError, GenerationError
from main.models import context_length, load_config
from main.predictor.hf import Predictor
from main.trainer.dpo import Trainer as DPO
from main.trainer.grpo import Trainer as GRPO
from main.trainer.lora import Trainer as LoRA

pytestmark = pytest.mark.usefixtures("own_folder")

NEW = "<brand_new>"
ROWS: list[tuple[Any, str, dict[str, Any]]] = [
    (LoRA, "LLM_Chat", {"conversations": turns("q", f"an {NEW} answer")}),
    (LoRA, "LLM_Pure", {"context": "q", "target": f"an {NEW} answer"}),
    (
        DPO,
        "LLM_DPO",
        {"conversations": turns("q"), "gold_answers": "a", "bad_answers": ["b", NEW + "c"]},
    ),
    (GRPO, "LLM_GRPO", {"prompt": turns(f"what is {NEW}?"), "answer": "a"}),
]


def write(tmp_path, rows: list[dict[str, Any]]):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    return path


def enlarged():
    """A tokenizer with one token more than the model has rows."""
    tokenizer = load_tokenizer("smollm2")
    import copy

    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens([NEW])
    return tokenizer


@pytest.mark.parametrize(("trainer", "loader", "row"), ROWS)
def test_a_token_beyond_the_embedding_is_named_with_its_row(
    trainer, loader, row, tiny_model_path, tmp_path
) -> None:
    plain = json.loads(json.dumps(row).replace(NEW, "known"))
    given = {
        "from_pretrained": tiny_model_path,
        "tokenizer": enlarged(),
        "loader_name": loader,
    }
    with pytest.raises(ConfigError, match=rf"row 2 of 'train' has the token '{NEW}' with id 49152"):
        trainer(data_path=write(tmp_path, [plain, row]), **given)
    assert trainer(data_path=write(tmp_path, [plain]), **given).tokenizer


def test_a_pad_token_beyond_the_embedding_is_refused(tiny_model_path, tmp_path) -> None:
    tokenizer = enlarged()
    tokenizer.pad_token = NEW
    data = write(tmp_path, [ROWS[0][2] | {"conversations": turns("q", "a")}])
    with pytest.raises(ConfigError, match=f"pad token '{NEW}' has the id 49152.*49152 rows"):
        LoRA(from_pretrained=tiny_model_path, tokenizer=tokenizer, data_path=data)


def test_rows_are_shortened_to_the_context_which_is_told(tiny_model_path, tmp_path, caplog) -> None:
    context = context_length(load_config(tiny_model_path))
    assert context
    data = write(tmp_path, [{"conversations": turns("q", "word " * (2 * context))}])
    with caplog.at_level(logging.WARNING, logger="main"):
        trainer = LoRA(from_pretrained=tiny_model_path, data_path=data, max_length=3 * context)
    assert len(trainer.train_data[0]["input_ids"]) == context
    assert f"more than the model's context of {context} tokens" in caplog.text
    assert "had the end of an answer cut off" in caplog.text


def test_a_prompt_with_a_token_beyond_the_embedding_is_a_clear_error(tiny_model_path) -> None:
    predictor = Predictor(tiny_model_path, device="cpu")
    predictor.voice = predictor.voice._replace(tokenizer=enlarged())
    with pytest.raises(GenerationError, match=f"request 0 has the token '{NEW}' with id 49152"):
        predictor(f"What is {NEW}?")


@pytest.mark.parametrize("more", [{"target_modules": ["q_proj", "embed_tokens"]},
                                  {"modules_to_save": ["embed_tokens"]}])  # fmt: skip
def test_an_adapted_embedding_has_rows_too(more, tiny_model_path, tmp_path) -> None:
    data = write(tmp_path, [{"conversations": turns("q", "a")}])
    trainer = LoRA(from_pretrained=tiny_model_path, data_path=data, **more)
    trainer.save(tmp_path / "adapter")
    given = {"peft_path": tmp_path / "adapter", "dtype": "bfloat16", "device": "cpu"}
    assert len(Predictor(tiny_model_path, **given)("Hello", max_new_tokens=2)) == 1
