"""dataset_tool.py as a user calls it."""

import dataclasses
import json

import pytest
from click.testing import CliRunner

from dataset_tool import main
from training.data.synthetic.synthesize import KINDS
from training.dataset import ImageDataset


def call(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_synthesize_then_again(tmp_path):
    wanted = ("synthesize", f"--dest={tmp_path}/heads", "--num=20", "--resolution=16", "--seed=4", "--cx=0.45")
    code, output = call(*wanted)
    assert code == 0 and "images/s" in output and f"{tmp_path}/heads/16" in output
    dataset = ImageDataset(tmp_path / "heads" / "16")
    assert len(dataset) == 20 and dataset.labels[0, 18] == pytest.approx(0.45)
    stamp = (tmp_path / "heads" / "dataset.json").stat().st_mtime_ns
    code, output = call(*wanted)
    assert code == 0 and "up to date" in output
    assert (tmp_path / "heads" / "dataset.json").stat().st_mtime_ns == stamp
    assert [path.name for path in tmp_path.iterdir()] == ["heads"]  # nothing left beside it


def test_cars_have_cameras_of_their_own(tmp_path):
    code, output = call("synthesize", "--kind=cars", f"--dest={tmp_path}/cars", "--num=12", "--resolution=16")
    assert code == 0, output
    dataset = ImageDataset(tmp_path / "cars" / "16")
    cameras = dataset.labels.reshape(12, 25)
    assert dataset.has_masks and cameras[:, 16] == pytest.approx(1.866)
    assert (cameras[:, 7] > 0.1).all() and (cameras[:, 11] < 0).any()  # from above, some from behind
    assert call("validate", f"{tmp_path}/cars/16")[0] == 0


@pytest.mark.parametrize("change", ["--num=21", "--seed=5", "--yaw-std=0.3", "--resolution=8"])
def test_another_set_is_not_overwritten(tmp_path, change):
    wanted = ["synthesize", f"--dest={tmp_path}/heads", "--num=2", "--resolution=16", "--seed=4"]
    assert call(*wanted)[0] == 0
    code, output = call(*wanted, change)
    assert code != 0 and "holds another data set" in output
    assert len(json.loads((tmp_path / "heads" / "dataset.json").read_text())["labels"]) == 2


def test_a_foreign_folder_is_not_touched(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    code, output = call("synthesize", f"--dest={tmp_path}", "--num=2", "--resolution=8")
    assert code != 0 and "not empty" in output
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_set_that_lost_a_file_is_not_up_to_date(tmp_path):
    wanted = ("synthesize", f"--dest={tmp_path}/heads", "--num=3", "--resolution=8")
    assert call(*wanted)[0] == 0
    (tmp_path / "heads" / "mask" / "00001.png").unlink()
    code, output = call(*wanted)
    assert code != 0 and "00001.png" in output


def test_an_empty_folder_is_filled_and_a_failure_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "heads").mkdir()
    monkeypatch.setitem(KINDS, "heads", dataclasses.replace(KINDS["heads"], write=lambda *_: 1 / 0))
    result = CliRunner().invoke(main, ["synthesize", f"--dest={tmp_path}/heads", "--num=2", "--resolution=8"])
    assert isinstance(result.exception, ZeroDivisionError)
    assert [path.name for path in tmp_path.iterdir()] == ["heads"] and not any((tmp_path / "heads").iterdir())
    monkeypatch.undo()
    assert call("synthesize", f"--dest={tmp_path}/heads", "--num=2", "--resolution=8")[0] == 0


@pytest.mark.parametrize("option", ["--num=0", "--resolution=2", "--seed=-1", "--radius=0.2", "--focal=-1"])
def test_impossible_options_are_refused(tmp_path, option):
    code, output = call("synthesize", f"--dest={tmp_path}/heads", "--num=2", "--resolution=8", option)
    assert code != 0 and option.split("=")[0].strip("-") in output
    assert not (tmp_path / "heads").exists()


def test_validate(tmp_path):
    call("synthesize", f"--dest={tmp_path}/heads", "--num=4", "--resolution=8")
    clean = f"no problems in {tmp_path}/heads/8: 4 images of 8 px, with masks\n"
    assert call("validate", tmp_path / "heads" / "8") == (0, clean)
    (tmp_path / "heads" / "8" / "00001.png").write_bytes(b"no image")
    (tmp_path / "heads" / "mask" / "00003.png").unlink()
    code, output = call("validate", tmp_path / "heads" / "8")
    assert code != 0 and "00001.png" in output and "00003.png" in output and "2 problems" in output


@pytest.mark.parametrize("point", ["1,2", "1,2,x", "nan,0,0"])
def test_a_point_is_three_finite_numbers(tmp_path, point):
    call("synthesize", f"--dest={tmp_path}/heads", "--num=2", "--resolution=8")
    code, output = call("show-cameras", tmp_path / "heads" / "8", f"--out={tmp_path}/c.png", f"--point={point}")
    assert code != 0 and f"'{point}': three numbers x,y,z are legal" in output
    assert not (tmp_path / "c.png").exists()
