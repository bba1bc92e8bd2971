"""`resume_path` beside options of an adapter: those that differ from the adapter's are refused."""

from pathlib import Path

import four_trainers
import pytest

from main.errors import ConfigError

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture
def start(own_folder, tiny_model_path) -> Path:
    four_trainers.write_data(own_folder, 2, 2)
    trainer = four_trainers.make_trainer(
        "lora", tiny_model_path, lora_alpha=8, lora_dropout=0.1, target_modules=["q_proj", "k_proj"]
    )
    trainer.save(Path("start"))
    return Path("start")


OTHERS = {
    "lora_r": (32, "4"),
    "lora_alpha": (16, "8"),
    "lora_dropout": (0.3, "0.1"),
    "target_modules": ("all-linear", r"\['k_proj', 'q_proj'\]"),
    "use_dora": (True, "False"),
    "use_rslora": (True, "False"),
    "init_lora_weights": ("pissa", "True"),
    "modules_to_save": (["lm_head"], r"\[\]"),
}
SAME = {
    "lora_r": 4, "lora_alpha": 8.0, "lora_dropout": 0.1, "use_dora": False,
    "target_modules": r".*\.(q|k)_proj", "init_lora_weights": True, "modules_to_save": [],
}  # fmt: skip


def test_each_option_that_differs_is_refused_by_name_and_all_at_once(tiny_model_path, start):
    base = {"resume_path": start, "lora_r": 4}
    for name, (value, there) in OTHERS.items():
        with pytest.raises(ConfigError, match=rf"{name}=.* resume_path='start' has: {there}\."):
            four_trainers.make_trainer("lora", tiny_model_path, **(base | {name: value}))
    given = {name: value for name, (value, _) in OTHERS.items()}
    with pytest.raises(ConfigError, match=f"^{len(OTHERS)} problems"):
        four_trainers.make_trainer("lora", tiny_model_path, resume_path=start, **given)


def test_the_same_in_other_words_and_what_a_method_sets_itself_are_accepted(tiny_model_path, start):
    four_trainers.make_trainer("dpo", tiny_model_path, resume_path=start, **SAME)
    trainer = four_trainers.make_trainer("ppo", tiny_model_path, resume_path=start, lora_dropout=0)
    assert trainer.starts_fresh is False
