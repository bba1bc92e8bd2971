"""Flags and files of arguments: what is read, what is refused, what a help screen shows."""

import dataclasses
import importlib
import subprocess
import sys
from typing import Literal

import pytest
from command_line import environment, run

from main.cli.arguments import Arguments, Part
from main.cli.config_file import read_config
from main.cli.entry import COMMANDS
from main.cli.texts import help_of
from main.cli.train import METHODS, arguments
from main.errors import ConfigError
from main.options import Options
from main.trainer.arguments import LoopOptions, SetupOptions

HELP = [[name, "--help"] for name in COMMANDS]
HELP += [[name, method, "--help"] for name in ("train", "plan") for method in METHODS]
NEEDED = ["--from_pretrained", "model", "--data_path", "data"]


@dataclasses.dataclass(kw_only=True)
class Some(Options):
    """Some options.

    whole, number: how many, and how much.
    texts (names): several texts.
    """

    whole: int = 1
    number: int | float | str | None = None
    share: float = 0.5
    texts: str | list[str] = "one"
    numbers: list | None = None
    table: dict = dataclasses.field(default_factory=dict)
    when: Literal["no", "steps"] = "steps"
    flag: bool = False
    other: bool | str = True


def some(*words: str) -> dict:
    return Arguments("x", "About.", [Part(Some, {"count": "whole"})]).parse(words).parts[0]


@pytest.mark.parametrize(
    ("words", "read"),
    [
        ("--whole 3", {"whole": 3}),
        ("--count=3", {"whole": 3}),
        ("--number 1e-4", {"number": 1e-4}),
        ("--number 7", {"number": 7}),
        ("--number seven", {"number": "seven"}),
        ("--number None", {"number": None}),
        ("--share 2", {"share": 2}),
        ("--share -.5", {"share": -0.5}),
        ("--texts a", {"texts": "a"}),
        ("--texts a b", {"texts": ["a", "b"]}),
        ("--texts [a,b]", {"texts": ["a", "b"]}),
        ("--texts 1", {"texts": "1"}),
        ("--numbers 1 0.5", {"numbers": [1, 0.5]}),
        ("--numbers 1", {"numbers": [1]}),
        ("--table.a false --table.b 2", {"table": {"a": False, "b": 2}}),
        ("--when no", {"when": "no"}),
        ("--flag", {"flag": True}),
        ("--flag --whole 2", {"flag": True, "whole": 2}),
        ("--flag false", {"flag": False}),
        ("--other gaussian", {"other": "gaussian"}),
        ("--other <|im_end|>", {"other": "<|im_end|>"}),
        ("--whole 2 --whole 3", {"whole": 3}),
        ("", {}),
    ],
)
def test_words_become_values_of_the_options_own_types(words, read):
    found = some(*words.split())
    assert found == read
    assert {n: type(v) for n, v in found.items()} == {n: type(v) for n, v in read.items()}


def test_a_text_without_a_flag_is_not_taken_for_another_value():
    from main.cli.predict import arguments as of_predict

    what, who, how = of_predict().parse(["--model", "m", "--dtype", "float32", "Hello"]).parts
    assert (what, who, how) == (
        {"query": ["Hello"]},
        {"model_from_pretrained": "m", "dtype": "float32"},
        {},
    )
    what, _, how = of_predict().parse(["a", "b", "--stop", "x", "y"]).parts
    assert (what["query"], how["stop"]) == (["a", "b"], ["x", "y"])


def test_everything_that_is_wrong_is_told_at_once_with_the_nearest_name():
    with pytest.raises(ConfigError) as told:
        some("--whol", "3", "--whole", "x", "--flag", "--share")
    assert str(told.value).splitlines() == [
        "3 problems:",
        "- there is no option '--whol'. Did you mean '--whole'?",
        "- --share needs a value.",
        "- whole='x' must be an integer.",
    ]
    with pytest.raises(ConfigError, match="--config is given twice"):
        some("--config", "a", "--config", "b")
    with pytest.raises(ConfigError, match="'stray' belongs to no option"):
        some("stray")


def test_flags_come_before_the_file_and_the_file_is_as_strict(tmp_path):
    file = tmp_path / "some.yaml"
    text = "count: 4\nshare: 1e-3\nwhen: no\nflag: True\ntable: {a: 1, b: 2}\n"
    file.write_text(text, encoding="utf-8")
    assert some("--config", str(file), "--whole", "5", "--table.a", "3") == {
        "whole": 5,
        "share": 1e-3,
        "when": "no",
        "flag": True,
        "table": {"a": 3, "b": 2},
    }
    for text, told in (
        ("whol: 3", r"some.yaml' has no argument 'whol' to give. Did you mean 'whole'\?"),
        ("whole: 1.5", "whole=1.5 must be an integer"),
        ("whole: 1\nwhole: 2", "'whole' stands there twice"),
        ("count: 1\nwhole: 2", "'count' and 'whole' are the same argument"),
        ("- whole", "must be names with their values"),
        ("whole: [", "is no YAML"),
        ("other: '<object of a script: Thing>'", "has no form in a file"),
    ):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=told):
            some("--config", str(file))


def test_of_the_defaults_in_a_file_those_count_that_are_other_ones_here(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("share: 0.5\ndefaults: {whole: 1, flag: true, texts: one}\n", encoding="utf-8")
    assert some("--config", str(file)) == {"share": 0.5, "flag": True}


def test_a_printed_config_is_read_back_as_what_was_given(tmp_path, capsys):
    words = ["train", "lora", *NEEDED, "--lr", "1e-3", "--report_to", "tensorboard", "wandb"]
    status, out, _ = run(capsys, *words, "--print_config")
    file = tmp_path / "x.yaml"
    file.write_text(out, encoding="utf-8")
    assert status == 0 and read_config(file).method == "lora"
    assert arguments("lora").parse(["--config", str(file)]).parts == [
        {"from_pretrained": "model", "data_path": "data"},
        {"lr": 1e-3, "report_to": ["tensorboard", "wandb"]},
    ]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_accepts_what_its_trainer_does_and_shows_all_of_it(method, capsys):
    trainer = importlib.import_module(f"main.trainer.{method}").Trainer
    known = arguments(method)
    setup, call = known.parts
    assert setup[:2] == (trainer.setup_class, trainer.setup_aliases)
    assert call[:2] == (trainer.loop_class, trainer.loop_aliases)
    names = [f.name for part in known.parts for f in dataclasses.fields(part.kind)]
    assert len(names) == len(set(names))  # a flat file has each name once
    _, out, _ = run(capsys, "train", method, "--help")
    shown = [line.split()[0] for line in out.splitlines() if line.startswith("  --")]
    assert sorted(shown[2:]) == sorted(f"--{n}" for n in names if n not in setup.without)
    assert all(option.help for option in known.options.values())


@pytest.mark.parametrize("words", [[], *HELP], ids=" ".join)
def test_a_help_screen_has_80_columns_and_no_colours(words, capsys):
    status, out, err = run(capsys, *words)
    assert (status, err) == (0, "") and "usage: main-peft" in out
    assert [line for line in out.splitlines() if len(line) > 80] == []
    assert "\x1b" not in out and "\r" not in out


def test_a_name_that_means_two_things_means_none(capsys):
    status, _, err = run(capsys, "train", "ppo", *NEEDED, "--max_new_tokens", "5")
    assert status == 2 and "there is no option '--max_new_tokens'" in err


def test_help_comes_from_the_docstrings():
    assert help_of(SetupOptions, "lora_alpha").startswith("rank, scale (alpha / r)")
    assert help_of(LoopOptions, "warmup_ratio") == "see --lr"
    assert help_of(Some, "texts") == "several texts."


@pytest.mark.slow
def test_help_loads_no_torch_and_costs_less_than_a_second():
    code = (
        "import sys, time; from main.cli.entry import main\n"
        "for words in eval(sys.argv[1]):\n"
        "    main(words)\n"
        "    print(time.process_time(), file=sys.stderr)\n"
        "assert not {'torch', 'transformers', 'pyarrow'} & set(sys.modules)\n"
    )
    words = repr([["train", "grpo", "--help"], *HELP])
    done = subprocess.run(
        [sys.executable, "-c", code, words],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stderr.splitlines()[0]) < 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trian"], "there is no command 'trian'. Did you mean 'train'?"),
        (["train", "dop"], "there is no method 'dop'. Did you mean 'dpo'?"),
        (["train", "--lr", "1"], "name a method: main-peft train METHOD"),
        (["train", "--config", "none.yaml"], "config 'none.yaml' does not exist"),
        (["train", "lora"], "train lora needs 'from_pretrained'"),
        (["train", "lora", *NEEDED, "--tokenizer", "x"], "it is an object"),
        (["train", "lora", *NEEDED, "--lr", "-1"], "lr=-1 must be 0 or more"),
        (["train", "grpo", *NEEDED, "--reward_func", "reward_lne"], "Did you mean 'reward_len'?"),
        (["predict", "Hello"], "say who answers"),
        (["predict", "--model", "m", "Hello", "--top_p", "0.5"], "top_p=0.5 changes nothing"),
        (["predict", "--model", "m", "--data", "x"], "data needs save_path"),
        (["evaluate"], "give a file of responses, or data"),
        (["evaluate", "none.jsonl", "--standard"], "'none.jsonl' does not exist"),
        (["merge", "--peft_path", "none", "--output", "x"], "does not say which base"),
        (["describe"], "describe needs 'folder'"),
        (["completion", "fish"], "one of bash, zsh, tcsh"),
    ],
)
def test_bad_input_is_one_message_and_status_2(words, told, own_folder, capsys):
    status, out, err = run(capsys, *words)
    assert (status, out) == (2, "")
    assert err.startswith("main-peft: ") and told in " ".join(err.split())
    assert "Traceback" not in err and max(map(len, err.splitlines())) <= 80


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_script_for_a_shell_is_written(shell, capsys):
    status, out, _ = run(capsys, "completion", shell)
    assert status == 0 and "train dev test" in out
    assert all(name in out for name in (*COMMANDS, *METHODS, "--lora_r", "--save_path"))
