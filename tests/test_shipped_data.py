"""The shipped ticket data: reproducible, without overlap, well formed, answerable from its text."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, script

DATA = ROOT / "data"
PRESENT: dict[str, dict[str, str]] = json.loads((DATA / "present.json").read_text("utf-8"))
SPLITS = ("train", "dev", "test")
LINE = {
    "en": re.compile(
        r"(replace|refund|return|cancel|repair|track|invoice|readdress) \| ([a-z]+ [a-z]+)"
        r" \| order ([1-9]\d{3}) \| (by [A-Z][a-z]+day|urgent|no date)"
    ),
    "zh": re.compile(
        r"(换货|退款|退货|取消|维修|查询|发票|改址) \| ([\u4e00-\u9fff]{4})"
        r" \| 订单([1-9]\d{3}) \| (周[一二三四五六日]前|加急|不限)"
    ),
}


def read(name: str, split: str) -> list[dict[str, Any]]:
    """The rows of one split, whichever of the two file shapes it has."""
    text = (DATA / PRESENT[name][split]).read_text("utf-8")
    if text.startswith("["):
        return json.loads(text)
    return [json.loads(line) for line in text.splitlines()]


def language(name: str) -> str:
    return name.split("_")[1]


def prompt_and_answer(row: dict[str, Any]) -> tuple[str, str]:
    """What the model is shown, as one text, and what it should say."""
    if "context" in row:
        return row["context"], row["target"]
    if "prompt" in row:
        return json.dumps(row["prompt"], ensure_ascii=False), row["answer"]
    conversation = row["conversations"]
    if "gold_answers" in row:
        gold = row["gold_answers"]
        answer = gold if isinstance(gold, str) else gold[0]
    else:
        *conversation, last = conversation
        answer = last["content"]
    return json.dumps(conversation, ensure_ascii=False), answer


def prompts(name: str, split: str) -> set[str]:
    return {prompt_and_answer(row)[0] for row in read(name, split)}


def items(lang: str, split: str) -> set[str]:
    """Every item that any answer of this split names, over all row formats of the language."""
    found = set()
    for name in (name for name in PRESENT if language(name) == lang):
        for row in read(name, split):
            line = LINE[lang].fullmatch(prompt_and_answer(row)[1])
            assert line, row
            found.add(line[2])
    return found


def test_the_registry_names_every_format_in_both_languages():
    suffixes = ["", "_pure", "_dpo", "_rlhf", "_grpo"]
    assert set(PRESENT) == {f"ticket_{lang}{s}" for lang in ("en", "zh") for s in suffixes}
    assert all(tuple(paths) == SPLITS for paths in PRESENT.values())


def test_the_files_are_what_the_script_writes():
    assert script("make_data").stale(DATA) == []


def test_the_check_command_names_a_file_that_differs(tmp_path: Path):
    run = [sys.executable, str(ROOT / "scripts/make_data.py"), "--data", str(tmp_path)]
    subprocess.run(run, check=True)
    assert subprocess.run([*run, "--check"]).returncode == 0
    with (tmp_path / "ticket_en_dev.jsonl").open("a") as file:
        file.write("\n")
    (tmp_path / "ticket_zh_test.jsonl").unlink()
    checked = subprocess.run([*run, "--check"], capture_output=True, text=True)
    assert checked.returncode == 1
    assert checked.stderr.strip().endswith("ticket_en_dev.jsonl, ticket_zh_test.jsonl")


def test_all_files_together_stay_below_two_megabytes():
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < 2_000_000


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_no_prompt_of_one_split_is_in_another_in_any_format(lang: str):
    of = {
        split: set().union(*(prompts(name, split) for name in PRESENT if language(name) == lang))
        for split in SPLITS
    }
    assert not of["train"] & of["dev"]
    assert not of["train"] & of["test"]
    assert not of["dev"] & of["test"]


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_dev_and_test_ask_about_items_that_train_never_names(lang: str):
    train, dev, test = (items(lang, split) for split in SPLITS)
    assert len(dev) >= 20 and len(test) >= 20
    assert not train & dev and not train & test and not dev & test


@pytest.mark.parametrize("name", PRESENT)
def test_no_prompt_stands_twice_in_a_split(name: str):
    for split in SPLITS:
        rows = read(name, split)
        assert len({prompt_and_answer(row)[0] for row in rows}) == len(rows)


@pytest.mark.parametrize("name", PRESENT)
def test_every_answer_is_a_ticket_line_whose_item_and_order_stand_in_the_prompt(name: str):
    for split in SPLITS:
        for row in read(name, split):
            prompt, answer = prompt_and_answer(row)
            found = LINE[language(name)].fullmatch(answer)
            assert found, answer
            assert found[2] in prompt and found[3] in prompt


@pytest.mark.parametrize("name", [name for name in PRESENT if not name.endswith("_pure")])
def test_conversations_alternate_and_prompts_end_with_the_user(name: str):
    for row in read(name, "train"):
        roles = [message["role"] for message in row.get("conversations") or row["prompt"]]
        pairs = ["user", "assistant"] * len(roles)
        assert roles == pairs[: len(roles)]
        assert roles[-1] == (
            "user" if "conversations" not in row or "gold_answers" in row else "assistant"
        )


@pytest.mark.parametrize("name", ["ticket_en", "ticket_zh"])
def test_some_dialogues_go_on_and_their_later_line_differs_from_the_first(name: str):
    longer = [row["conversations"] for row in read(name, "train") if len(row["conversations"]) > 2]
    assert 0.15 < len(longer) / len(read(name, "train")) < 0.45
    changed = [turns for turns in longer if turns[1]["content"] != turns[3]["content"]]
    # A correction may name the weekday that was already asked for (1 in 7 of its kind).
    assert len(changed) > 0.9 * len(longer)


@pytest.mark.parametrize(("suffix", "kind"), [("dpo", str), ("rlhf", list)])
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_preference_answers_are_strings_for_dpo_and_lists_for_rlhf(suffix, kind, lang: str):
    for row in read(f"ticket_{lang}_{suffix}", "train"):
        gold, bad = row["gold_answers"], row["bad_answers"]
        assert type(gold) is kind and type(bad) is kind
        good, wrong = ([gold], [bad]) if kind is str else (gold, bad)
        assert len(set(wrong)) == len(wrong) and not set(good) & set(wrong)


def test_bad_answers_are_wrong_in_several_ways():
    bad = [row["bad_answers"] for row in read("ticket_en_dpo", "train")]
    gold = [row["gold_answers"] for row in read("ticket_en_dpo", "train")]
    # One line differs in one field, lacks the last one, or is no ticket at all.
    fields = [(b.split(" | "), g.split(" | ")) for b, g in zip(bad, gold, strict=True)]
    wrong = {i: sum(len(b) == 4 and b[i] != g[i] for b, g in fields) for i in range(4)}
    assert wrong[1] == 0 and min(wrong[0], wrong[2], wrong[3]) > 30
    assert sum(len(b) == 3 for b, _ in fields) > 30 and sum(len(b) == 1 for b, _ in fields) > 30


def test_a_dialogue_can_be_followed_by_hand():
    make = script("make_data")
    phrases = json.loads((DATA / "phrases" / "en.json").read_text("utf-8"))
    writer = make.Writer(phrases, [("red", "mug")], "seed")
    ticket = make.Ticket("replace", "red", "mug", "1234", "no date")
    assert writer.line(ticket) == "replace | red mug | order 1234 | no date"
    for _ in range(200):
        text, new = writer.correction(ticket)
        # Exactly one field moves, and an order or a day that moves is named in the message.
        moved = [name for name in ticket._fields if getattr(new, name) != getattr(ticket, name)]
        assert len(moved) == 1 and moved[0] in {"action", "order", "deadline"}
        assert moved[0] != "order" or new.order in text
        assert moved[0] != "deadline" or new.deadline.removeprefix("by ") in text
