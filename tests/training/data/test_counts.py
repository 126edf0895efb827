"""What a reader leaves out is counted, and worlds with another up than y are told: at every door, in one line."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from dataset_tool import main
from gaussian import Cameras
from tests.training.data import dots
from training.data.index_lists import resolve_index_list
from training.data.layout import open_layout
from training.data.making.convert import convert_set
from training.data.making.importers import import_transforms
from training.data.making.rebalance import rebalance
from training.data.validation import inspect_set
from training.data.world_axes import other_up, turn_up
from training.dataset import DatasetError, ImageDataset

NUM = 12


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLATGAN_CACHE_DIR", str(tmp_path / "cache"))


def tool(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def at_every_door(images) -> list[str]:
    """The one note that a set has, as validate and training tell it."""
    (note,) = inspect_set(images).notes
    code, output = tool("validate", images)
    assert code == 0 and output.count(f"note: {note}\n") == 1 and "no problems" in output
    assert ImageDataset(images).notes == [note]
    return [note]


def test_labels_without_pictures(tmp_path):
    """The case from the field: the copy broke off."""
    images = dots.write_set(tmp_path, dots.arc(NUM))
    for i in range(4, NUM):
        (images / f"{i:05d}.png").unlink()
    (note,) = at_every_door(images)
    assert "12 labels, 8 of them name no picture here, such as 00004.png" in note
    assert convert_set(images, tmp_path / "out").notes == [note]
    assert rebalance(str(images)).notes == [note]
    code, output = tool("show-cameras", images, f"--out={tmp_path}/c.png")
    assert code == 0 and f"note: {note}\n" in output
    assert inspect_set(tmp_path / "out" / "64").notes == []


def test_pictures_of_formats_that_are_not_read(tmp_path):
    images = dots.write_set(tmp_path, dots.arc(NUM))
    for i in (3, 4):
        Image.open(images / f"{i:05d}.png").save(images / f"{i:05d}.bmp")
        (images / f"{i:05d}.png").unlink()
    content = json.loads((tmp_path / "dataset.json").read_text())
    content["labels"] = [entry for entry in content["labels"] if entry[0] not in ("00003.png", "00004.png")]
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    (note,) = at_every_door(images)
    assert "10 used of 12 pictures" in note and "such as 00003.bmp" in note


def test_masks_that_belong_to_no_picture(tmp_path):
    images = dots.write_set(tmp_path, dots.arc(NUM))
    (tmp_path / "mask").mkdir()
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 255
    for i in range(NUM + 2):
        Image.fromarray(mask).save(tmp_path / "mask" / f"{i:05d}.png")
    (note,) = at_every_door(images)
    assert "12 used of 14 masks" in note and "00012.png" in note
    shutil.copytree(tmp_path / "mask", tmp_path / "masks")
    assert any("masks: is not read" in line for line in open_layout(images).notes)


def test_two_masks_of_one_picture_are_a_problem(tmp_path):
    images = dots.write_set(tmp_path, dots.arc(NUM))
    (tmp_path / "mask").mkdir()
    for i in range(NUM):
        Image.new("L", (64, 64), 255).save(tmp_path / "mask" / f"{i:05d}.png")
    Image.new("L", (64, 64), 0).save(tmp_path / "mask" / "00003.webp", lossless=True)
    (problem,) = inspect_set(images).problems
    assert "00003.webp: has the name of" in problem


def test_index_lists_count_what_they_miss(tmp_path):
    images = dots.write_set(tmp_path, dots.arc(NUM))
    (tmp_path / "mine.json").write_text("[1, 2, 2, 77, 78]")
    dataset = ImageDataset(images, "mine")
    assert "3 used of 5; the others name no image of the set: such as 77; 2 images" in dataset.index_description
    (tmp_path / "names.json").write_text('["00001.png", "gone.png"]')
    description = resolve_index_list(open_layout(images), "names").description
    assert "1 used of 2; the others name no image of the set: gone.png" in description
    (tmp_path / "none.json").write_text('["gone.png"]')
    with pytest.raises(DatasetError, match=r"first entry is 'gone\.png', the first image is called '64/00000\.png'"):
        ImageDataset(images, "none")


def test_scores_count_what_they_miss(tmp_path):
    images = dots.write_set(tmp_path, dots.arc(NUM))
    scores = {f"{i:05d}.png": 1.0 for i in range(2, NUM + 1)}
    (tmp_path / "s.json").write_text(json.dumps(scores))
    code, output = tool("rebalance", images, f"--out={tmp_path}/l.json", f"--scores={tmp_path}/s.json")
    assert code == 0 and "2 of 12 images have no score and count as 1: such as 64/00000.png" in output
    assert "10 used of 11 scores; the others are of no image: 00012" in output
    (tmp_path / "s.json").write_text('{"00001.png": 1, "./00001.png": 2}')
    code, output = tool("rebalance", images, f"--out={tmp_path}/l.json", f"--scores={tmp_path}/s.json")
    assert code == 1 and "has two scores" in output


def test_frames_count_the_pictures_that_they_leave(tmp_path):
    dots.write_frames(tmp_path / "t", dots.arc(6), {"fl_x": 200})
    for name in ("frame_00099.png", "frame_00098.bmp"):
        Image.new("RGB", (8, 8)).save(tmp_path / "t" / "images" / name)
    (note,) = import_transforms(tmp_path / "t", tmp_path / "set").notes
    assert "6 used of 8 pictures" in note and "1 is in no frame (frame_00099.png)" in note
    assert "1 of a format that is not read (frame_00098.bmp)" in note
    content = json.loads((tmp_path / "t" / "transforms.json").read_text())
    content["frames"].append(content["frames"][2])
    (tmp_path / "t" / "transforms.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=r"frames\[6\] and frames\[2\] both have"):
        import_transforms(tmp_path / "t", tmp_path / "other")


def test_files_of_frames_under_other_names_are_offered(tmp_path):
    dots.write_frames(tmp_path, dots.arc(2), {"fl_x": 200})
    (tmp_path / "transforms.json").rename(tmp_path / "transforms_train.json")
    with pytest.raises(DatasetError, match=r"there are transforms_train\.json: give one of them as SOURCE"):
        import_transforms(tmp_path, tmp_path / "set")
    assert import_transforms(tmp_path / "transforms_train.json", tmp_path / "set").count == 2


def test_orientation_tags_of_a_set_are_noted(tmp_path):
    def saver(image, path, index):
        exif = Image.Exif()
        exif[0x0112] = 6 if index in (2, 3) else 1
        image.save(path, exif=exif)

    images = dots.write_set(tmp_path, dots.arc(NUM), saver=saver)
    (note,) = inspect_set(images).notes
    assert "2 pictures carry an EXIF orientation" in note and "as they are stored" in note
    for command, source in (("convert", ()), ("import", ("--from=eg3d",))):
        code, output = tool(command, images, *source, f"--dest={tmp_path}/{command}")
        assert code == 0 and "note: 2 pictures carry an EXIF orientation" in output and "00002.png" in output
        assert inspect_set(tmp_path / command / "64").notes == []


def test_a_copy_is_advised_only_where_it_would_help(tmp_path):
    images = dots.write_set(tmp_path / "set", dots.arc(NUM))
    (images / "00003.png").write_bytes(b"")
    assert "--fix --dest" in tool("validate", images)[1]
    content = json.loads((tmp_path / "set" / "dataset.json").read_text())
    (tmp_path / "set" / "dataset.json").write_text(json.dumps({"labels": [["x.png", content["labels"][0][1]]]}))
    code, output = tool("validate", images)
    assert code == 1 and "names an image here" in output and "--fix" not in output
    (tmp_path / "bare").mkdir()
    code, output = tool("validate", tmp_path / "bare")
    assert code == 1 and f"not found (nor is there one in {tmp_path}/bare)" in output and "--fix" not in output


# ---- up


UPS = {"y": (0, 1, 0), "z": (0, 0, 1), "x": (1, 0, 0), "-y": (0, -1, 0), "-z": (0, 0, -1), "-x": (-1, 0, 0)}


def around(up: str, count: int = 40, spread: float = math.pi) -> list[np.ndarray]:
    """Cameras on the upper half about the axis `up`, `spread` radians to both sides."""
    axis = np.array(UPS[up], float)
    first = np.roll(axis, 1)
    second = np.cross(axis, first)
    rng, poses = np.random.default_rng(0), []
    for yaw in np.linspace(-spread, spread, count, endpoint=False):
        pitch = rng.uniform(0.1, 1.2)
        way = math.cos(pitch) * (math.cos(yaw) * first + math.sin(yaw) * second) + math.sin(pitch) * axis
        poses.append(dots.facing(2.7 * way, axis))
    return poses


@pytest.mark.parametrize("up", [u for u in UPS if u != "y"])
@pytest.mark.parametrize("asked", ["given", "auto"])
def test_sets_with_another_up_are_told_and_turned(tmp_path, up, asked):
    """The case from the field for z, and the other axes."""
    images = dots.write_set(tmp_path / "set", around(up))
    (note,) = at_every_door(images)
    assert f"the cameras' up is world {up} and not y" in note and f"--from=eg3d --up={up}" in note
    choice = up if asked == "given" else "auto"
    code, output = tool("import", images, "--from=eg3d", f"--up={choice}", f"--dest={tmp_path}/out")
    assert code == 0, output
    yaw, pitch, mean = dots.angles(tmp_path / "out" / "64")
    assert mean @ [0, 1, 0] > 0.998 and pitch.min() > 0.05 and pitch.max() < 1.25
    assert np.histogram(yaw, 8, (-math.pi, math.pi))[0].min() > 0 and dots.miss(tmp_path / "out" / "64") < 0.3
    assert inspect_set(tmp_path / "out" / "64").notes == []


def test_an_eg3d_set_keeps_its_world_unless_asked(tmp_path):
    images = dots.write_set(tmp_path / "set", around("z"))
    for arguments in ((), ("--up=keep",)):
        dest = tmp_path / f"out{len(arguments)}"
        assert tool("import", images, "--from=eg3d", f"--dest={dest}", *arguments)[0] == 0
        assert np.array_equal(dots.labels_of(dest / "64")[1], dots.labels_of(images)[1])


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0, math.pi])
@pytest.mark.parametrize("roll", [0.0, 0.2])
def test_worlds_with_y_up_are_not_disturbed(spread, roll):
    rolled = [dots.facing((x, 0.1, 2.7), roll=x / 0.2 * roll) for x in (0.2, -0.2)]
    poses = [*around("y", 30, spread), *rolled]
    cameras = Cameras(torch.from_numpy(np.array(poses)), torch.eye(3, dtype=torch.float64).expand(32, 3, 3))
    assert other_up(cameras) is None
    assert torch.allclose(turn_up(cameras, "y").cam2world, cameras.cam2world)


def test_cameras_without_a_common_up_are_not_guessed_at():
    poses = [dots.facing((0.0, 2.7, 0.01), up=(math.sin(a), 0.0, math.cos(a))) for a in np.linspace(0, 6, 40)]
    assert other_up(Cameras(torch.from_numpy(np.array(poses)), torch.eye(3).double().expand(40, 3, 3))) is None


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("import", "{set}", "--from=eg3d", "--distortion=refuse", "--dest={tmp}/o"), "--distortion goes with"),
        (("import", "{set}", "--from=eg3d", "--images={set}", "--dest={tmp}/o"), "--images goes with"),
        (("import", "{set}", "--from=transforms", "--images={set}", "--dest={tmp}/o"), "--images goes with"),
        (("validate", "{set}", "--resolution=32"), "--resolution goes with --fix"),
        (("validate", "{set}", "--dest={tmp}/o"), "--fix and --dest go together"),
    ],
)
def test_options_that_a_branch_cannot_honour_are_refused(tmp_path, arguments, word):
    images = dots.write_set(tmp_path / "set", dots.arc(3))
    code, output = tool(*(a.replace("{set}", str(images)).replace("{tmp}", str(tmp_path)) for a in arguments))
    assert code == 2 and word in output and not (tmp_path / "o").exists()
