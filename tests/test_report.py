"""A report shows what runs left: every curve with its values, texts as text, damage by name."""

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from main.errors import ConfigError, MissingFileError
from main.trainer.loop.records import markdown_table
from main.utils.report import report
from main.utils.report.markup import VOID, tag
from main.utils.report.run import read_run
from main.utils.report.samples import cells
from main.utils.report.scale import Scale, digits, number, path, smoothed, spread, thinned, ticks
from main.utils.report.scores import interval

EVIL = '<script>alert("1")</script> & <b>bold</b>'


class Page(HTMLParser):
    """What a browser would see; every element has its end."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    def all(self, name: str, part: str = "") -> list[dict[str, str]]:
        return [a for found, a in self.found if found == name and part in (a.get("class") or "")]

    @property
    def text(self) -> str:
        return "\n".join(self.texts)


def write_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), restval="")
        writer.writeheader()
        writer.writerows(rows)


def a_run(top: Path, task: str = "demo", steps: int = 60, lr: float = 1e-3) -> Path:
    """The files that a run of GRPO with answers to evaluation rows leaves."""
    records, saved = top / "data_record" / task, top / "save_model" / task
    checkpoint = saved / f"Llama_{steps}"
    (checkpoint / "trainer_state").mkdir(parents=True)
    records.mkdir(parents=True)
    rows = [
        {"step": s, "epoch": s / steps, "loss": 3 - s / steps, "kl": 1e-3 * s, "lr": lr, "odd": s,
         "share_of_limit": 0.25, "reward/mean": s % 5} for s in range(1, steps + 1)
    ]  # fmt: skip
    write_csv(records / "train.csv", rows)
    scores = [(0, 0.25), (steps, 0.5)]
    write_csv(records / "eval.csv", [{"step": s, "epoch": 1, "loss": 2.5, "generated/exact": v}
                                     for s, v in scores])  # fmt: skip
    answers = [{"step": steps, "epoch": 1, "row": i, "prompt": EVIL, "reference": "是",
                "before": "a", "after": EVIL, "exact": float(i % 2)} for i in range(8)]  # fmt: skip
    write_csv(records / "generated.csv", answers)
    table = markdown_table(["prompt", "completion"], [[EVIL, "one | two\\\nline 二"]])
    (records / "samples_1.md").write_text(table, encoding="utf-8")
    warning = {"step": 9, "warning": f"the run diverges {EVIL}"}
    (records / "warnings.jsonl").write_text(json.dumps(warning) + "\n", encoding="utf-8")
    setup = {"lora_r": 8, "hub_token": "hf_secret", "task_name": task}
    record = {"library": "0.1.0", "method": "grpo.Trainer", "base": "models/tiny",
              "loader": "LLM_GRPO", "data": {"train": "4c55", "dev": "77aa"}, "setup": setup,
              "call": {"lr": lr}}  # fmt: skip
    (checkpoint / "training.json").write_text(json.dumps(record))
    identity = {"rows": "60 of 2660 tokens (4abb)", "metric_for_best_model": "reward/mean"}
    progress = {"total_steps": steps, "best": 4.0, "identity": identity}
    (checkpoint / "trainer_state/progress.json").write_text(json.dumps(progress))
    (saved / "run.yaml").write_text(
        f"method: grpo\nlora_r: 8\nlr: {lr}\nnote: '{EVIL}'\ndefaults:\n  seed: 42\n"
    )
    return saved


def shown(folders, output: Path) -> tuple[str, Page]:
    text = report(folders, output).read_text(encoding="utf-8")
    return text, Page(text)


def test_a_page_has_every_curve_with_its_label_and_values_and_asks_for_nothing(tmp_path):
    text, page = shown(a_run(tmp_path), tmp_path / "out/r.html")
    curves = page.all("g", "curve")
    assert [c["data-name"] for c in curves] == ["train", "eval", *["train"] * 4, "eval", "train"]
    steps, sum_of_steps = [int(s) for s in curves[0]["data-steps"].split()], 0
    for value, by in zip(curves[0]["data-values"].split(), steps, strict=True):
        sum_of_steps += by
        assert float(value) == pytest.approx(3 - sum_of_steps / 60, rel=1e-4)
    assert sum_of_steps == 60
    figures = re.findall(r"<figcaption><b>(.*?)</b>", text)
    assert figures == ["loss", "reward", "KL to the reference", "learning rate",
                       "share of the machine&#x27;s limit", "exact", "odd"]  # fmt: skip
    assert len(page.all("text", "label")) == 8 and "train 2" in page.texts
    assert "train: 2.983 → 2, lowest 2 (step 60), highest 2.983 (step 1)" in page.texts
    assert "eval: 2.5 throughout" in page.texts and "train: 25% throughout" in page.texts
    for word in ("60 of 2660 tokens (4abb)", "4c55", "seed", "reward/mean 4", "60 of 60", "二"):
        assert word in page.text
    addresses = {a[0] for a in re.findall(r"((https?:)?//[\w.]+[^\s\"')]*)", text)}
    assert {a for a in addresses if "://" in a} == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\(|\bsrc=|<link|fetch\(", text)


def test_what_files_say_is_text_and_no_secret_is_shown(tmp_path):
    text, page = shown(a_run(tmp_path), tmp_path / "r.html")
    assert len(page.all("script")) == 1 and not [a for a in page.all("b") if "bold" in str(a)]
    assert "<script>alert" not in text and page.text.count('<script>alert("1")</script>') > 5
    assert "one | two\\\nline 二" in page.texts and "hf_secret" not in text
    assert "step 9: " in page.texts and f"the run diverges {EVIL}" in page.texts
    name = tag("p", "\x00\ud800 a", title='"')
    assert name == '<p title="&quot;">\ufffd\ufffd a</p>' and name.encode()


def test_two_runs_lie_over_one_another_and_their_differences_are_listed(tmp_path):
    folders = [a_run(tmp_path), a_run(tmp_path, "other", 40, lr=2e-3)]
    text, page = shown(folders, tmp_path / "r.html")
    loss, *_ = re.findall(r"<figure>.*?</figure>", text, re.DOTALL)
    assert loss.count('class="curve r0') == 2 and loss.count('class="curve r1') == 2
    assert re.findall(r'class="label r(\d) [^>]*>(\w+)<', loss) == [("0", "demo"), ("1", "other")]
    (differs,) = re.findall(r"What differs</h3>(.*?)</table>", text, re.DOTALL)
    cells = re.findall(r"<td[^>]*>(.*?)</td>", differs, re.DOTALL)
    assert cells == ["lr", "0.001", "0.002"]
    for name in ("train", "eval", "r0", "r1"):
        assert f"#show-{name}:not(:checked)" in text
        assert [a for a in page.all("input") if a.get("id") == f"show-{name}"]
    _, same = shown([folders[0], a_run(tmp_path / "b")], tmp_path / "r.html")
    assert "The settings of these runs are the same." in same.texts
    assert f"demo ({tmp_path / 'b'})" in same.texts


@pytest.mark.parametrize("damage", [b"", b"\0" * 64, b"\xff\xfe{", b"[1, 2", b"a,b\n1", b"&x: *y"])
def test_damaged_files_cost_what_they_held_and_nothing_else(tmp_path, damage):
    saved = a_run(tmp_path)
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) == 8
    for file in files:
        whole = file.read_bytes()
        for broken in (damage, whole[: len(whole) // 2] + damage):
            file.write_bytes(broken)
            _, page = shown(saved, tmp_path / "r.html")
            assert "demo" in page.texts, file
        file.write_bytes(whole)
    for file in files:
        file.write_bytes(damage)
    _, page = shown(saved, tmp_path / "r.html")
    assert "No values were recorded." in page.texts
    assert "training.json: no checkpoint has a readable one" in page.texts


def test_what_is_missing_is_said(tmp_path):
    saved = a_run(tmp_path)
    (tmp_path / "data_record/demo/eval.csv").unlink()
    (saved / "run.yaml").unlink()
    newer = saved / "Llama_70"
    newer.mkdir()
    (newer / "training.json").write_text("{")
    run = read_run(saved / "Llama_60")
    assert run.checkpoint == "Llama_60" and run.settings["lora_r"] == 8
    assert run.settings["hub_token"] == "***"
    assert run.missing == [
        "eval.csv: not there (nothing was evaluated)",
        "Llama_70/training.json: cannot be read: damaged",
        "run.yaml: not there (the arguments are those of training.json)",
    ]
    for empty in (tmp_path / "save_model/empty", tmp_path / "data_record/new"):
        empty.mkdir()
        _, page = shown(empty, tmp_path / "r.html")
        assert "training.json: no checkpoint" in page.texts


def test_what_cannot_be_shown_is_refused(tmp_path):
    saved = a_run(tmp_path)
    with pytest.raises(MissingFileError, match=r"'x/save_model/none' is no run: neither"):
        report("x/save_model/none", tmp_path / "r.html")
    with pytest.raises(ConfigError, match=r"ending in \.html"):
        report(saved, tmp_path / "r.pdf")
    with pytest.raises(ConfigError, match="is given twice"):
        report([saved, tmp_path / "data_record/demo"], tmp_path / "r.html")
    with pytest.raises(ConfigError, match="at least one run"):
        report([], tmp_path / "r.html")


def test_a_long_run_stays_small_and_keeps_its_extremes(tmp_path):
    saved = a_run(tmp_path, steps=10_000)
    train = tmp_path / "data_record/demo/train.csv"
    lines = train.read_text().splitlines()
    cut = lines[7000].split(",")
    lines[7000] = ",".join([*cut[:2], "99.5", *cut[3:]])
    lines[7001] = lines[7001].replace(",0.001,", ",nan,")
    train.write_text("\n".join(lines) + "\n")
    text, page = shown(saved, tmp_path / "r.html")
    assert len(text) < 300_000
    values = [float(value) for value in page.all("g", "curve")[0]["data-values"].split()]
    assert max(values) == 99.5 and values[-1] == 2.0 and len(values) <= 482
    assert any("highest 99.5 (step 7,000)" in text for text in page.texts)
    assert "nan" not in " ".join(c["data-values"] for c in page.all("g", "curve"))


def test_ticks_are_round_and_enclose_the_values():
    assert ticks(0.13, 0.88) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert ticks(-3, 17) == [-5, 0, 5, 10, 15, 20]
    assert ticks(10.78987, 10.78993) == [10.78986, 10.78988, 10.7899, 10.78992, 10.78994]
    assert [number(tick, digits(10.78987, 10.78993)) for tick in ticks(10.78987, 10.78993)][:2] == [
        "10.78986",
        "10.78988",
    ]
    assert ticks(-4, -4)[0] < -4 < ticks(-4, -4)[-1]
    for low, high in ((1e-9, 3e-9), (-7e8, 1e12), (0, 5e-324), (-1e-3, 2e5)):
        found = ticks(low, high)
        assert found[0] <= low and found[-1] >= high and len(found) <= 7


def test_pixels_paths_and_labels_are_as_worked_out_by_hand():
    y = Scale(0, 4, 200, 0)
    assert [y.at(value) for value in (0, 1, 4)] == [200, 150, 0]
    assert path([(0, y.at(1)), (2.26, y.at(4))]) == "M0 150L2.3 0"
    assert spread([10, 11, 12], 10, 0, 100) == [10, 20, 30]
    assert spread([97, 99, 98], 10, 0, 100) == [80, 100, 90]
    spike = [(x, 0.0) for x in range(1000)]
    spike[333], spike[334] = (333, 7.0), (334, -7.0)
    assert {(333, 7.0), (334, -7.0), spike[0], spike[-1]} <= set(thinned(spike, 10))
    assert len(thinned(spike, 10)) <= 22
    line = [(x, 2.0 * x) for x in range(80)]  # two points to each side
    assert smoothed(line)[2:78] == line[2:78]  # a mean around a point of a straight line is it
    assert smoothed(line)[0] == (0, 2.0) and smoothed(line)[-1] == (79, 156.0)


def test_an_interval_is_wilson_s_for_shares_and_by_resampling_otherwise():
    low, high = interval([1.0] * 8 + [0.0] * 2)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)
    low, high = interval([0.5, 0.25] * 50)
    assert 0.33 < low < 0.375 < high < 0.42


def test_cells_of_a_table_come_back_as_they_were_written():
    row = ["a|b", "back\\slash \\| bar", "two\nlines", " blank ", ""]
    assert cells(markdown_table(["x"] * 5, [row]).splitlines()[2]) == row


def test_the_command_line_writes_it(tmp_path, capsys, monkeypatch):
    from main.cli.entry import main

    saved = a_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(saved), "--output", "a.html"]) == 0
    assert capsys.readouterr().out == "a.html\n" and Path("a.html").is_file()
    assert main(["report"]) == 2 and main(["report", "nothing"]) == 2
