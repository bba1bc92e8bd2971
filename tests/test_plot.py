"""Curves come from the records of a run, and what cannot be drawn is said."""

from pathlib import Path

import pytest

from main.errors import ConfigError, DataError, MissingFileError
from main.utils.curves import read_points
from main.utils.plot import plot


def record(folder: Path, train: str, evaluation: str = "") -> Path:
    run = folder / "data_record" / "demo"
    run.mkdir(parents=True)
    (run / "train.csv").write_text(train)
    if evaluation:
        (run / "eval.csv").write_text(evaluation)
    return folder / "save_model" / "demo"


TRAIN = "step,epoch,loss,lr,reward/mean\n1,0.5,2.5,0.1,\n2,1.0,nan,0.2,0.25\n3,1.5,1.5,0.3,0.5\n"


def test_points_are_read_without_gaps_and_values_that_are_not_finite(tmp_path):
    run = record(tmp_path, TRAIN)
    path = tmp_path / "data_record/demo/train.csv"
    assert read_points(path, ["loss"]) == ([1, 3], [2.5, 1.5])
    assert read_points(path, ["absent", "reward/mean"]) == ([2, 3], [0.25, 0.5])
    assert run.name == "demo"


def test_several_runs_make_one_picture_with_a_panel_for_each_quantity(tmp_path):
    pytest.importorskip("matplotlib", reason="the plot extra is optional")
    from matplotlib.image import imread

    first = record(tmp_path / "a", TRAIN, "step,epoch,loss\n3,1,1.8\n")
    second = record(tmp_path / "b", "step,epoch,loss,lr\n1,1,3.0,0.1\n")
    found = plot([first, second], tmp_path / "out" / "both.png")
    picture = imread(found)
    assert picture.shape[1] > 1000  # three panels in a row
    assert picture[..., :3].std() > 0.05  # something is drawn


def test_a_run_without_records_and_records_without_curves_are_refused(tmp_path):
    with pytest.raises(MissingFileError, match="has no records"):
        plot([tmp_path / "save_model" / "none"], tmp_path / "x.png")
    with pytest.raises(DataError, match="nothing was logged yet"):
        plot([record(tmp_path, "step,epoch\n")], tmp_path / "x.png")
    with pytest.raises(ConfigError, match=r"ending in \.png"):
        plot([tmp_path], tmp_path / "x.jpg")
