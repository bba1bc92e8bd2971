"""`check`: every seeded fault is found, clean rows give no alarm, and the report reads well."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import four_trainers
import numpy as np
import pytest
import seeded_faults
from chat_templates import ROOT, chat
from seeded_faults import FAULTS, Fault

from main.loaders import check
from main.loaders.doctor import texts
from main.loaders.doctor.kinds import KINDS
from main.loaders.doctor.near import Neighbours, normal, signature, similarity

TOKENIZER = chat("smollm2").tokenizer
CATALOGUE = (ROOT / "docs/check.md").read_text("utf-8")


def examined(data: dict[str, list[Any]], folder: Path, **options: Any) -> Any:
    paths = {}
    for split, rows in data.items():
        paths[split] = folder / f"{split}.jsonl"
        paths[split].write_text(seeded_faults.text_of(rows), "utf-8")
    return check(paths, tokenizer=TOKENIZER, max_length=256, **options)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_seeded_fault_is_found_where_it_is(fault: Fault, tmp_path: Path) -> None:
    found = examined(seeded_faults.seeded(fault), tmp_path).findings
    mine = [f for f in found if f.code == fault.code and fault.says in f.meaning]
    assert mine, [f"{f.code}: {f.meaning}" for f in found]
    if fault.row:
        assert f"train.jsonl line {fault.row}" in mine[0].places
    alarms = {f.code for f in found if f.level != "note"}
    assert alarms <= {fault.code, "control-token"}  # and nothing else is blamed


def test_there_are_forty_of_them_and_the_documentation_lists_each() -> None:
    names = [fault.name for fault in FAULTS]
    assert len(set(names)) == 40
    listed = re.findall(r"^\d+\. (.*): `([\w-]+)`$", CATALOGUE, re.MULTILINE)
    assert listed == [(fault.name, fault.code) for fault in FAULTS]
    assert all(f"| `{code}` | {kind.level} |" in CATALOGUE for code, kind in KINDS.items())


@pytest.mark.parametrize("make", ["chats", "pairs", "labelled", "prompts"])
def test_the_rows_without_a_fault_give_no_alarm(make: str, tmp_path: Path) -> None:
    found = examined(getattr(seeded_faults, make)(), tmp_path)
    assert found.codes() <= ({"near-duplicate"} if make in ("pairs", "prompts") else set())


REGISTRY = json.loads((ROOT / "data/present.json").read_text())


@pytest.mark.parametrize("name", REGISTRY)
def test_the_shipped_tickets_give_no_alarm(name: str) -> None:
    found = check(name, data_present_path=ROOT / "data/present.json")
    assert found.alarms == []
    assert found.codes() <= {"near-duplicate", "near-leak"}
    assert set(found.splits) == {"train", "dev", "test"}


@pytest.mark.parametrize("method", four_trainers.METHODS)
def test_the_rows_of_other_tests_give_no_alarm(method: str, tmp_path: Path) -> None:
    assert examined({"train": four_trainers.rows(method, 20)}, tmp_path).alarms == []


def test_counts_and_lengths_are_those_of_the_rows(tmp_path: Path) -> None:
    data = seeded_faults.chats()
    found = examined(data, tmp_path)
    template = chat("smollm2")
    lengths = sorted(len(template.encode(r["conversations"]).input_ids) for r in data["train"])
    train = found.splits["train"]
    assert (train.rows, train.usable, train.languages) == (24, 24, {"Latin": 24})
    assert (train.lengths.shortest, train.lengths.longest) == (lengths[0], lengths[-1])
    assert train.lengths.median == (lengths[11] + lengths[12]) // 2
    labels = examined(seeded_faults.labelled(), tmp_path).splits["train"].labels
    assert labels == {"true": 12, "false": 12}


def test_without_a_tokenizer_lengths_are_characters() -> None:
    found = check([{"context": "abc", "target": "de"}])
    assert found.loader == "LLM_Pure" and found.max_length is None
    lengths = found.splits["train"].lengths
    assert lengths is not None and (lengths.unit, lengths.longest) == ("characters", 5)


def test_what_the_length_costs_is_counted_over_all_splits(tmp_path: Path) -> None:
    data = seeded_faults.chats()
    for rows in data.values():
        rows[0]["conversations"][1]["content"] = " ".join(seeded_faults.THINGS * 30)
    found = examined(data, tmp_path)
    assert [(f.count, f.places) for f in found.findings if f.code == "cut"] == [
        (2, ["train.jsonl line 1", "dev.jsonl line 1"])
    ]


def test_many_bad_rows_are_counted_and_the_first_are_told(tmp_path: Path) -> None:
    data = {"train": [*seeded_faults.chats()["train"], *[{"conversations": []}] * 50]}
    found = examined(data, tmp_path)
    refused = [f for f in found.findings if f.code == "refused"]
    assert sum(f.count for f in refused) == 50
    assert found.splits["train"].usable == 24
    assert "Training would refuse these rows." in str(found)


def test_the_report_fits_80_columns_and_is_json_and_sound_html(tmp_path: Path) -> None:
    data = seeded_faults.seeded(FAULTS[18])
    data["train"][7]["conversations"][0]["content"] = "<script>alert(1)</script> &lt; a"
    data["train"][8] = {"conversations": [{"role": "<b>", "content": "x"}]}
    found = examined(data, tmp_path)
    text = str(found)
    assert max(map(len, text.splitlines())) <= 80
    assert "\033[" not in text and "\033[33m" in found.to_text(colour=True)
    assert text.endswith("Training would refuse these rows.")
    assert json.loads(found.to_json())["findings"][0]["level"] == "error"
    page = found._repr_html_()
    assert "<b>'" not in page and "&lt;b&gt;" in page
    open_tags: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            open_tags.extend([tag] if tag != "br" else [])

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Reader().feed(page)
    assert not open_tags


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("Le café préféré de l’été, à 20 °C – «bien»", False),
        ("Ça coûte 3 € – ¡olé! ½ ÄÖÜ ß", False),
        ("Ã©tÃ©", True),
        ("itâ€™s", True),
        ("联通的手机信号在这里非常好", False),
        ("浣犲ソ锛屼笘鐣", True),
        ("日本語のテキストです。東京都庁前", False),
        ("锟斤拷", True),
    ],
)
def test_mojibake_is_told_from_real_text(text: str, is_one: bool) -> None:
    assert texts.mojibake(text) == is_one


def test_no_text_of_the_shipped_data_is_mojibake() -> None:
    for path in (ROOT / "data").glob("ticket_zh*"):
        assert not texts.mojibake(path.read_text("utf-8"))


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("What is this?", "Latin"),
        ("这是什么？ OK", "Chinese"),
        ("これは何ですか", "Japanese"),
        ("Что это?", "Cyrillic"),
        ("이것은 무엇입니까", "Korean"),
        ("1 + 1", ""),
    ],
)
def test_a_language_is_the_script_of_most_letters(text: str, script: str) -> None:
    assert texts.language(text) == script


def test_the_share_of_equal_minima_estimates_the_jaccard_similarity() -> None:
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz "))
    for kept in (0.95, 0.8, 0.5):
        errors = []
        for _ in range(30):
            a = "".join(rng.choice(letters, 400))
            b = a[: int(400 * kept)] + "".join(rng.choice(letters, 400 - int(400 * kept)))
            pieces = [{t[i : i + 5] for i in range(len(t) - 4)} for t in (a, b)]
            jaccard = len(pieces[0] & pieces[1]) / len(pieces[0] | pieces[1])
            errors.append(similarity(signature(a), signature(b)) - jaccard)
        # An estimate has a deviation of at most 0.5 / sqrt(64) = 0.0625, the mean of 30 of 0.011.
        assert abs(np.mean(errors)) < 0.035 and np.std(errors) < 0.09


def test_neighbours_are_found_among_others() -> None:
    near, rng = Neighbours(), np.random.default_rng(1)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    words = ["".join(rng.choice(letters, 6)) for _ in range(500)]
    stored = [" ".join(rng.choice(words, 60)) for _ in range(200)]
    assert [near.find(text) for text in stored] == [None] * 200
    for number in (0, 57, 199):
        assert near.find(stored[number] + " and an end") == number
    assert normal("  ＡＢＣ\n d ") == "abc d"
