"""What CONTRIBUTING.md says how to add is added from outside, by the very blocks of that page.

Each is one new file, written beside a script that uses it as a user's would. With `-s` the number
of its lines is printed.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = pytest.mark.usefixtures("own_folder")


PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^## (.+?)\n.*?^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))


def added(name: str, section: str, use: str, *arguments: object) -> list[str]:
    """What `use` prints as lines "SEEN ..." where the section's block is the module `name`."""
    code = BLOCKS[section]
    Path(f"{name}.py").write_text(code, encoding="utf-8")
    Path("use.py").write_text(use, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "use.py", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in code.splitlines() if line.strip()]
    print(f"{name}: {len(lines)} lines in one new file")
    return [line[5:] for line in done.stdout.splitlines() if line.startswith("SEEN ")]


USE_LOADER = """
import json, sys
import alpaca
from main.evaluation.inferences import inference_with_data_path
from main.trainer.grpo import Trainer as GRPO
from main.trainer.lora import Trainer

rows = [{"instruction": "Say", "input": str(n), "output": f"It is {n}."} for n in range(4)]
open("rows.json", "w").write(json.dumps(rows))
trainer = Trainer(from_pretrained=sys.argv[1], data_path="rows.json", loader_name="Alpaca")
row = trainer.train_data[0]
trained = [i for i, kept in zip(row["input_ids"], row["loss_mask"]) if kept]
print("SEEN", trainer.tokenizer.decode(trained))
(result,) = trainer(num_epochs=1, report_to="none", save_strategy="no")
print("SEEN", 5 < result.train["loss"] < 20)
inference_with_data_path("rows.json", lambda item: item["query"], "out.jsonl")
print("SEEN", *json.loads(open("out.jsonl").readline()).values())
try:
    GRPO(from_pretrained=sys.argv[1], data_path="rows.json", loader_name="Alpaca")
except ValueError as error:
    print("SEEN", error)
"""


@pytest.mark.slow
def test_a_loader(tiny_model_path):
    trained, fell, line, refused = added("alpaca", "A loader", USE_LOADER, tiny_model_path)
    assert trained == "It is 0.<|im_end|>"
    assert fell == "True"
    assert line.startswith("0 Say")
    assert "loader_name='Alpaca' does not fit this trainer" in refused


USE_REWARD = """
import json, sys
from sentences import ends_as_a_sentence
from main.trainer.grpo import Trainer

rows = [{"prompt": [{"role": "user", "content": f"Say {n}"}]} for n in range(2)]
open("rows.json", "w").write(json.dumps(rows))
trainer = Trainer(from_pretrained=sys.argv[1], data_path="rows.json")
options = dict(num_generations=2, per_device_train_batch_size=4, max_completion_length=4,
               num_epochs=1, report_to="none", save_strategy="no")
(result,) = trainer(reward_func=ends_as_a_sentence, **options)
print("SEEN", 0 <= result.train["rewards/ends_as_a_sentence/mean"] <= 1)
"""


@pytest.mark.slow
def test_a_reward(tiny_model_path):
    assert added("sentences", "A reward", USE_REWARD, tiny_model_path) == ["True"]


USE_PREFERENCE_LOSS = """
import json, sys
import squared
from main.trainer.dpo import Trainer

asked = [{"role": "user", "content": "Say it"}]
rows = [{"conversations": asked, "gold_answers": "a", "bad_answers": "b"}] * 2
open("rows.json", "w").write(json.dumps(rows))
trainer = Trainer(from_pretrained=sys.argv[1], data_path="rows.json", batch_size=2)
(result,) = trainer(loss_type="squared", num_epochs=1, report_to="none", save_strategy="no")
print("SEEN", result.train["loss"])
try:
    trainer(loss_type="squared", discopop_tau=0.1)
except ValueError as error:
    print("SEEN", error)
try:
    trainer(loss_type="sqared")
except ValueError as error:
    print("SEEN", error)
"""


@pytest.mark.slow
def test_a_preference_loss(tiny_model_path):
    loss, useless, unknown = added(
        "squared", "A preference loss", USE_PREFERENCE_LOSS, tiny_model_path
    )
    assert float(loss) == pytest.approx(1.0)  # policy and reference agree: a margin of 0
    assert useless == "discopop_tau=0.1 changes nothing with loss_type='squared': leave it out."
    assert unknown.startswith("loss_type='sqared' must be one of 'sigmoid'")
    assert "'squared'" in unknown


USE_POLICY_LOSS = """
import json, sys
import unclipped
from main.trainer.grpo import Trainer

open("rows.json", "w").write(json.dumps([{"prompt": "Say"}, {"prompt": "Tell"}]))
trainer = Trainer(from_pretrained=sys.argv[1], data_path="rows.json")
options = dict(num_generations=2, per_device_train_batch_size=4, max_completion_length=4,
               num_epochs=1, report_to="none", save_strategy="no", num_iterations=3, lr=1e-2,
               reward_func=lambda completion_ids, **_: [float(sum(i)) for i in completion_ids])
(result,) = trainer(loss_type="unclipped", **options)
print("SEEN", result.train["clip_fraction"], result.train["grad_norm"] > 0)
try:
    trainer(loss_type="unclipped", epsilon=0.3, **options)
except ValueError as error:
    print("SEEN", error)
"""


@pytest.mark.slow
def test_a_policy_loss(tiny_model_path):
    trained, useless = added("unclipped", "A policy loss", USE_POLICY_LOSS, tiny_model_path)
    assert trained == "0.0 True"
    assert useless == "epsilon=0.3 changes nothing with loss_type='unclipped': leave it out."


USE_FAMILY = """
import json, sys
from main.dialogue.ends import stop_token_ids
from main.trainer.lora import Trainer

turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
open("rows.json", "w").write(json.dumps([{"conversations": turns}] * 2))
trainer = Trainer(from_pretrained=sys.argv[1], data_path="rows.json")
end = trainer.tokenizer.convert_tokens_to_ids("<|endoftext|>")
print("SEEN", end in stop_token_ids(trainer.causal_lm, trainer.tokenizer))
import parrot
print("SEEN", end in stop_token_ids(trainer.causal_lm, trainer.tokenizer))
(result,) = trainer(num_epochs=1, report_to="none")
print("SEEN", result.checkpoint)
"""


@pytest.mark.slow
def test_a_model_family(tiny_model_path):
    before, stops, checkpoint = added("parrot", "A model family", USE_FAMILY, tiny_model_path)
    assert before == "False" and stops == "True" and checkpoint == "save_model/default/Parrot_1"


USE_TRAINER = """
import json, sys
from cautious import Trainer

turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b c"}]
open("rows.json", "w").write(json.dumps([{"conversations": turns}] * 8))
data = {"train": "rows.json", "dev": "rows.json"}
trainer = Trainer(from_pretrained=sys.argv[1], data_path=data, batch_size=4, task_name="new")
first, last = trainer(num_epochs=2, lr=1e-2, report_to="none")
print("SEEN", last.train["loss"] < first.train["loss"], 0 < last.eval["sure"] < 1)
resumed = trainer(num_epochs=3, lr=1e-2, report_to="none", resume_from_checkpoint="auto")
print("SEEN", [result.step for result in resumed], last.checkpoint)
try:
    trainer(nun_epochs=2)
except ValueError as error:
    print("SEEN", error)
"""


@pytest.mark.slow
def test_a_trainer(tiny_model_path):
    learnt, resumed, unknown = added("cautious", "A trainer", USE_TRAINER, tiny_model_path)
    assert learnt == "True True"
    assert resumed == "[6] save_model/new/Llama_4"
    assert unknown.endswith("has no argument 'nun_epochs'. Did you mean 'num_epochs'?")


def test_every_addition_of_the_page_is_tried_here():
    tests = Path(__file__).read_text(encoding="utf-8")
    assert len(BLOCKS) == 6
    assert [section for section in BLOCKS if f'"{section}"' not in tests] == []
    files = re.findall(r"`((?:main|tests|docs)/[\w/]+(?:\.\w+|/))`", PAGE)
    assert len(files) > 12
    assert [file for file in files if not (ROOT / file).exists()] == []
