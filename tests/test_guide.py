"""The user's guide: each call it shows, in tests of our own, and its own code blocks where it lies.

Paths and names of models and data are exchanged for small ones, and a loop over epochs ends after
the first. Blocks that are not run are listed with the reason.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from transformers import AutoConfig, AutoTokenizer

from main.types import EpochResult

GUIDE = ROOT.parent / "shared" / "reference" / "usage_zh.md"
FENCE = re.compile(r"^[ ]*```python\n(.*?)^[ ]*```\s*$", re.DOTALL | re.MULTILINE)

# What a block that is not run here contains, and why it is not.
NOT_RUN = {
    "AutoModel.from_pretrained": "runs the code in ChatGLM's folder; ours never does",
    "model.chat(": "a method of that code",
    "model.stream_chat(": "a method of that code",
    "trl vllm-serve": "a shell command: a server in another terminal",
    "accelerate launch": "a shell command; test_rollout_server.py runs examples/run.py",
    '"type": "image"': "needs a vision-language model; see test_predictor_vl.py",
    "main.predictor.vllm": "needs an engine; see test_predictor_vllm.py",
}

CHAT = [{"role": "user", "content": "三件事"}, {"role": "assistant", "content": "好的。"}]
QUESTION = CHAT[:1]
ROWS = {
    "chat": {"conversations": CHAT},
    "dpo": {"conversations": QUESTION, "gold_answers": "理想答案", "bad_answers": "错误答案"},
    "rlhf": {"conversations": QUESTION, "gold_answers": ["好"], "bad_answers": ["坏", "很坏"]},
    "grpo": {"prompt": QUESTION, "anwer": "理想答案"},
}
NAMES = {
    "<dataset_name>": "chat",
    "taobao_1000_dpo": "dpo",
    "Wiki_Humans_RL_100": "rlhf",
    "resume_1000_grpo2": "grpo",
}


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A working folder with data under the guide's names, in `data/` and `data/resume/`."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / "resume"
    folder.mkdir(parents=True)
    present = {}
    for name, kind in NAMES.items():
        path = tmp_path / "data" / f"{kind}.json"
        path.write_text(json.dumps([ROWS[kind]] * 4, ensure_ascii=False), encoding="utf-8")
        present[name] = {"train": str(path), "dev": str(path)}
    for registry in (tmp_path / "data" / "present.json", folder / "present.json"):
        registry.write_text(json.dumps(present), encoding="utf-8")
    return tmp_path


@pytest.fixture
def objects(tiny_model_path) -> dict:
    return {
        "tokenizer": AutoTokenizer.from_pretrained(tiny_model_path, trust_remote_code=True),
        "config": AutoConfig.from_pretrained(tiny_model_path, trust_remote_code=True),
    }


def first(run) -> EpochResult:
    """The first epoch's result; the generator is closed behind it."""
    result = next(run)
    run.close()
    assert result.epoch == 1 and result.checkpoint.is_dir() and "loss" in result.train
    return result


@pytest.mark.parametrize("given", [True, False], ids=["objects", "paths"])
def test_the_trainers_take_the_guides_arguments(
    place, tiny_model_path, encoder_path, objects, given
):
    from main.trainer.chatglm_rlhf_base import Trainer as PPO
    from main.trainer.llm_dpo import Trainer as DPO
    from main.trainer.llm_grpo import Trainer as GRPO
    from main.trainer.llm_lora import Trainer as SFT
    from main.utils.reward_func import reward_len

    objects = objects if given else {}
    sft = SFT(
        **objects,
        from_pretrained=str(tiny_model_path),
        loader_name="ChatGLM_Chat",
        data_path="<dataset_name>",
        max_new_tokens=3600,
        batch_size=1,
        task_name="sft",
    )
    resume = str(first(sft()).checkpoint)
    dpo = DPO(
        **objects,
        resume_path=resume,
        from_pretrained=str(tiny_model_path),
        loader_name="LLM_DPO",
        data_path="taobao_1000_dpo",
        max_length=3600,
        batch_size=2,
        batch_size_eval=2,
        task_name="dpo",
    )
    assert first(dpo(num_epochs=100, lr=1e-5, beta=0.1)).eval["accuracy"] >= 0
    ppo = PPO(
        **objects,
        from_pretrained=str(tiny_model_path),
        reward_from_pretrained=str(encoder_path),
        loader_name="LLM_RLHF",
        data_path="Wiki_Humans_RL_100",
        ratio_for_rlhf=-1.0,
        max_length=1024,
        batch_size=4,
        task_name="ppo",
        actor_resume_path=resume,
    )
    knobs = {"ppo_epsilon": 0.15, "lr": 5e-4, "ppo_epochs": 3, "alpha": 0.5, "beta": 0.5}
    first(ppo(num_epochs=50, weight_for_cos_and_jaccard=[0.5, 0.5], gamma=0, **knobs))
    grpo = GRPO(
        **objects,
        resume_path=resume,
        from_pretrained=str(tiny_model_path),
        data_path="resume_1000_grpo2",
        data_present_path="./data/resume/present.json",
        task_name="grpo",
    )
    result = first(
        grpo(
            reward_func=[reward_len],
            lr=5e-6,
            weight_decay=0.1,
            warmup_ratio=0.2,
            logging_steps=20,
            gradient_accumulation_steps=2,
            max_completion_length=20,
            per_device_train_batch_size=8,
            num_generations=4,
            num_train_epochs=30,
            fp16=True,
            use_vllm=False,
            save_strategy="epoch",
            eval_strategy="epoch",
            logging_strategy="epoch",
            report_to=["tensorboard"],
        )
    )
    assert "reward/mean" in result.train


def test_the_predictor_and_batch_inference_take_the_guides_arguments(place, tiny_model_path):
    from main.evaluation.inferences import inference_with_data_path
    from main.predictor.llm import Predictor

    predictor = Predictor(model_from_pretrained=str(tiny_model_path))
    answer = predictor("你好?", history=[])
    assert predictor("你好?", max_new_tokens=512) == answer and len(answer) == 1
    for item in predictor.predict_stream("你的任务是什么?", history=[]):
        assert isinstance(item[1][0], str)

    def batcher(item):
        return predictor(**item, max_new_tokens=24, temperature=0, build_message=True)

    summary = inference_with_data_path(
        data_path="data/chat.json", batcher=batcher, save_path="./outputs.txt", batch_size=4
    )
    assert summary.rows == 4


def exchanged(code: str, model: Path, encoder: Path, adapter: Path) -> str:
    """The block with paths and names exchanged, and loops over epochs ended after the first."""
    rules = [
        (r"""r?(['"])\.?/?(model|home|root)/[^'"]*text2vec[^'"]*\1""", repr(str(encoder))),
        (r"""(['"])DMetaSoul/[^'"]*\1""", repr(str(encoder))),
        (r"""r?(['"])(\./|/)?(model|home|root)/[^'"]*glm[^'"]*\1""", repr(str(model))),
        (r"""(['"])\./save_model/[^'"]*\1""", repr(str(adapter))),
        (r"""(['"])<PEFT_PATH>\1""", repr(str(adapter))),
        (r"DB_NAME = '.*'", "DB_NAME = 'guide'"),
        (r"DB_SAVE_DIR = '.*'", "DB_SAVE_DIR = './rag'"),
        (r"'YOUR_PATH'", "'data/chat.json'"),
        (r"use_vllm=True", "use_vllm=False"),
        (r"max_completion_length=500", "max_completion_length=20"),
        (r"^    a = i$", "    a = i\n    break"),
    ]
    for pattern, replacement in rules:
        literal = replacement.replace("\\", "\\\\")
        code = re.sub(pattern, literal, code, flags=re.MULTILINE)
    return code


@pytest.mark.long
@pytest.mark.skipif(not GUIDE.is_file(), reason="the user's guide does not lie beside the project")
def test_the_guides_own_blocks_run(place, tiny_model_path, encoder_path):
    from main.predictor.hf import Predictor
    from main.trainer.lora import Trainer

    trainer = Trainer(
        from_pretrained=tiny_model_path, data_path="<dataset_name>", max_length=128, task_name="t"
    )
    checkpoint = first(trainer(num_epochs=1)).checkpoint
    assert checkpoint
    adapter = checkpoint.absolute()
    pred = Predictor(tiny_model_path)
    names: dict[str, Any] = {"pred": pred, "history": []}
    blocks = FENCE.findall(GUIDE.read_text(encoding="utf-8", errors="replace"))
    run = 0
    for number, code in enumerate(blocks):
        if any(known in code for known in NOT_RUN):
            continue
        if "chromadb" in code or "collection.query" in code:
            pytest.importorskip("chromadb", reason="the rag extra is optional")
        code = exchanged(code, tiny_model_path, encoder_path, adapter)
        exec(compile(code, f"block {number} of the guide", "exec"), names)
        run += 1
    assert run >= 11
    assert names["scores"]["ROUGE-1"] == pytest.approx(0.888888888888889)
