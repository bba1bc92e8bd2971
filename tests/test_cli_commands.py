"""`main-peft predict`, `chat`, `evaluate`, `merge` and `describe` on a tiny model."""

import io
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from command_line import run

from main.cli.chat import Chat
from main.errors import GenerationError
from main.models import LoraOptions, add_adapter, load_model, save_adapter
from main.models.training_record import TrainingRecord, write_record
from main.predictor.hf import Predictor

ROWS = [
    {"conversations": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "a"}]}
    for n in range(3)
]


@pytest.fixture
def adapter(own_folder, tiny_model_path):
    """The folder `adapter`, trained on `tiny` as its training.json says."""
    (own_folder / "tiny").symlink_to(tiny_model_path)
    folder = own_folder / "adapter"
    save_adapter(add_adapter(load_model("tiny"), LoraOptions(lora_r=4)), folder)
    setup = {"from_pretrained": "tiny", "lora_r": 4, "data_path": "tickets", "seed": 42}
    made_by = TrainingRecord("0.1.0", "lora.Trainer", "tiny", loader="LLM_Chat", setup=setup)
    write_record(folder, made_by)
    return folder


def test_texts_lines_and_files_are_answered_as_the_predictor_does(
    adapter, own_folder, capsys, monkeypatch
):
    expected = Predictor("tiny", "adapter")(["Hello", "What?"], max_new_tokens=4, min_p=0.0,
                                            temperature=1, seed=1)  # fmt: skip
    words = ["predict", "--peft_path", "adapter", "--max_new_tokens", "4", "--min_p", "0"]
    words += ["--temperature", "1", "--seed", "1"]
    assert run(capsys, *words, "--query", "Hello", "What?")[:2] == (0, "\n".join([*expected, ""]))
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n\nWhat?\n"))
    assert run(capsys, *words)[1] == "\n".join([*expected, ""])
    lines = "\n".join(json.dumps(row) for row in ROWS)
    (own_folder / "rows.jsonl").write_text(lines, encoding="utf-8")
    words += ["--data", "rows.jsonl", "--save_path", "out.jsonl"]
    status, out, _ = run(capsys, *words)
    assert status == 0 and "3 rows, 0 failed, 3 answered now" in out
    assert "0 answered now" in run(capsys, *words)[1]
    written = [json.loads(line) for line in (own_folder / "out.jsonl").open(encoding="utf-8")]
    assert [row["answer"] for row in written] == ["a"] * 3
    status, out, _ = run(capsys, "evaluate", "out.jsonl", "--tokenizer", "tiny")
    assert status == 0 and out.startswith("3 rows\n") and "| TER " in out


def test_answers_are_scored_with_their_intervals_and_failed_rows_count(own_folder, capsys):
    rows = [{"response": "the red cat", "answer": "the red cat"}, {"response": None, "answer": "x"}]
    text = "\n".join(json.dumps(row) for row in rows)
    (own_folder / "out.jsonl").write_text(text, encoding="utf-8")
    status, out, _ = run(capsys, "evaluate", "out.jsonl", "--standard", "--n_bootstrap", "50")
    assert status == 0 and out.startswith("2 rows, 1 failed (scored as empty)")
    assert "95% low" in out
    assert re.search(r"ROUGE-L \| +0\.5000 \| +0\.0000 \| +1\.0000 \|", out)
    (own_folder / "out.jsonl").write_text('{"response": "a"}\n[]\n', encoding="utf-8")
    status, _, err = run(capsys, "evaluate", "out.jsonl", "--standard")
    told = "2 lines cannot be scored: line 1 has no gold 'answer'; line 2 has no 'response'."
    assert status == 2 and told in " ".join(err.split())
    words = ["evaluate", "out.jsonl", "--standard", "--peft_path", "x"]
    assert "peft_path: changes nothing" in run(capsys, *words)[2]


def test_a_chat_streams_forgets_takes_a_system_prompt_and_ends(adapter, capsys, monkeypatch):
    lines = "Hello\n/reset\n/sytem x\n/system Be brief.\nHello\n\n/exit\nnever\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    words = ["chat", "--peft_path", "adapter", "--max_new_tokens", "4"]
    status, out, _ = run(capsys, *words, "--temperature", "1", "--seed", "1")
    pred, how = Predictor("tiny", "adapter"), {"max_new_tokens": 4, "temperature": 1, "seed": 1}
    first = pred("Hello", **how)[0]
    system = [{"role": "system", "content": "Be brief."}]
    last = pred("Hello", history=system, **how)[0]
    told = "(forgotten)\n(there is no /sytem. Did you mean '/system'? /help lists what there is.)\n"
    assert (status, out) == (0, f"{first}\n{told}(begun anew)\n{last}\n")
    assert first and last and "\x1b" not in out and "\r" not in out


class Interrupted:
    """Answers as a predictor whose user presses Ctrl-C after two pieces, and then cannot."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def predict_stream(self, query: str, history: Any, **how: Any) -> Iterator[Any]:
        self.asked.append((query, list(history)))
        yield ["one "], ["one "]
        yield ["two"], ["one two"]
        raise KeyboardInterrupt if len(self.asked) == 1 else GenerationError("too long")


def test_ctrl_c_stops_an_answer_only_and_the_dialogue_goes_on_from_what_was_shown(capsys):
    predictor = Interrupted()
    chat = Chat(predictor, {})
    chat.talk(iter(["a", "b", "/exit"]))
    shown = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "one two"}]
    assert predictor.asked == [("a", []), ("b", shown)] and chat.history == shown
    assert capsys.readouterr().out == "one two (stopped)\none two(no answer: too long)\n"


def test_merge_takes_the_base_that_the_adapter_names(adapter, own_folder, capsys):
    status, out, _ = run(capsys, "merge", "--peft_path", "adapter", "--output", "merged")
    assert status == 0 and out.startswith("merged into merged (float32)")
    status, out, _ = run(capsys, "describe", "merged")
    assert status == 0 and "training (training.json):" in out
    assert run(capsys, "merge", "--peft_path", "adapter", "--output", "merged")[0] == 2


def test_describe_says_what_a_model_is(adapter, capsys):
    status, out, _ = run(capsys, "describe", "tiny")
    assert status == 0
    for fact in (
        "family Llama (LlamaForCausalLM, model_type llama)",
        "layers 2, hidden 64, vocabulary 49152, context 1024",
        "3.22M parameters, stored as F32, 12.9 MB on disk",
        "system turn: written",
        "tools: not written",
        "LoRA of rank 16 on down_proj, gate_proj,",
        "32,768 of 3,252,544 parameters are trained",
    ):
        assert fact in out
    assert max(map(len, out.splitlines())) <= 80


def test_describe_says_how_an_adapter_was_trained(adapter, own_folder, capsys):
    status, out, _ = run(capsys, "describe", "adapter")
    assert status == 0
    for fact in (
        "LORA of rank 4, alpha 32, dropout 0.0",
        "8.192K parameters",
        "by lora.Trainer of main-peft 0.1.0, from the base tiny",
        "on LLM_Chat rows, through the template",
        "with lora_r=4, data_path='tickets'",
        "base tiny:",
    ):
        assert fact in out
    (own_folder / "tiny").unlink()
    status, out, _ = run(capsys, "describe", "adapter")
    assert status == 0 and "base: cannot be opened" in out
    assert run(capsys, "describe", "nothing")[0] == 2


def test_rows_are_looked_at_and_shown_and_the_status_says_what_was_found(
    own_folder, tiny_model_path, capsys
):
    (own_folder / "tiny").symlink_to(tiny_model_path)
    good = [
        {"conversations": [{"role": "user", "content": ask}, {"role": "assistant", "content": say}]}
        for ask, say in (("Name a fruit.", "An apple."), ("And a tree?", "The old oak."))
    ]
    for name, rows in (("good", good), ("twice", [*good, good[0]])):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (own_folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    status, out, _ = run(capsys, "check", "good.jsonl", "--model", "tiny", "--rows", "1")
    assert status == 0 and "An apple." in out and "Nothing found." in out
    assert max(map(len, out.splitlines())) <= 80
    status, out, _ = run(capsys, "check", "twice.jsonl")
    assert status == 1 and "duplicate: 1 row" in out and "(twice.jsonl line 3)" in out
    status, out, _ = run(capsys, "check", "twice.jsonl", "--output", "found.json")
    assert status == 1 and out == "found.json\n"
    assert json.loads((own_folder / "found.json").read_text("utf-8"))["findings"]
    status, _, told = run(capsys, "check", "good.jsonl", "--rows", "2", "--output", "x.txt")
    assert status == 2 and "rows=2 needs from_pretrained" in told and "must end with" in told


def test_what_cannot_be_served_is_told_before_a_server_starts(own_folder, capsys):
    status, _, told = run(
        capsys, "serve", "nowhere", "--port", "99999", "--", "--max-model-len", "9"
    )
    assert status == 2 and "port=99999 must be between" in told
    status, _, told = run(capsys, "serve", "nowhere", "--arguments", "x")
    assert status == 2 and "write them after --" in " ".join(told.split())
