"""Imports sets whose labels are angles, and tests what is refused."""

from __future__ import annotations

import itertools
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import dataset_tool
from gaussian import Cameras
from gaussian.geometry import REFERENCE_HALF_EXTENT
from training.data.image_store import DatasetError
from training.data.making.camera_angles import camera_of, import_angles
from training.data.validation import validate_set
from training.dataset import ImageDataset
from training.families.epigraf import poses
from training.families.epigraf.presets import PRESETS

ANGLES = [[0.3, 1.4, 0.0], [-0.5, 1.75, 0.2], [0.0, math.pi / 2, 0.0]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLATGAN_CACHE_DIR", str(tmp_path / "cache"))


def make(folder: Path, entries: Any, count: int = 3, size: int = 16) -> Path:
    (folder / "0").mkdir(parents=True)
    for i in range(count):
        Image.fromarray(np.full((size, size, 3), 40 * i, np.uint8)).save(folder / "0" / f"img{i}.png")
    (folder / "dataset.json").write_text(json.dumps({"labels": None, "camera_angles": entries}))
    return folder


def named(prefix: str = "0/img", ending: str = ".jpg") -> dict[str, list[float]]:
    return {f"{prefix}{i}{ending}": angles for i, angles in enumerate(ANGLES)}


def test_cameras_are_those_of_the_angles(tmp_path: Path) -> None:
    """In all their layouts: names with and without the set's name, any ending, a dict or a list, a folder or a zip."""
    sets = [
        make(tmp_path / "a", named()),
        make(tmp_path / "b", list(named("b/0/img", ".png").items())),
    ]
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as file:
        for path in sets[0].rglob("*.*"):
            file.write(path, path.relative_to(sets[0]).as_posix())
    labels = []
    for source in (*sets, tmp_path / "c.zip"):
        report = import_angles(source, tmp_path / f"{source.stem}-out")
        assert report.count == 3 and "1 cameras have a roll, which is not read" in report.notes[0]
        assert validate_set(report.images) == []
        labels.append(ImageDataset(report.images).raw_labels)
    assert all(np.array_equal(labels[0], other) for other in labels)
    cameras = Cameras.from_labels(torch.from_numpy(labels[0]))
    torch.testing.assert_close(poses.angles_of(cameras.positions), torch.tensor(ANGLES)[:, :2], rtol=0, atol=1e-5)
    focal = 0.5 / math.tan(math.radians(6)) * 15 / 16
    assert float(cameras.intrinsics[0, 0, 0]) == pytest.approx(focal)
    dataset = ImageDataset(tmp_path / "a-out" / "16")
    assert dataset.geometry.world_scale == 1 and dataset.geometry.radius == pytest.approx(
        2 * focal * REFERENCE_HALF_EXTENT
    )
    torch.testing.assert_close(cameras.cam2world[2, :3, :3], torch.diag(torch.tensor([1.0, -1, -1])), rtol=0, atol=1e-6)


def test_presets_see_the_cube_with_imported_cameras() -> None:
    """Cameras are 1 away in units of the field, and the frustum lies in the cube."""
    for name, fov in (("epigraf-ffhq512", 12.0), ("epigraf-cats256", 12.0), ("epigraf-food256", 30.0)):
        G = PRESETS[name].generator
        camera = camera_of(0.2, 1.4, 0.5 / math.tan(math.radians(fov / 2)) * (G.resolution - 1) / G.resolution)
        assert float(camera.positions.norm()) * G.unit == pytest.approx(1.0)
        G.check_cameras(camera.reshape(1))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (None, 'has no "camera_angles"'),
        ({"0/img0.png": [4.0, 1.0, 0.0]}, "camera_angles of 0/img0.png: yaw=4: -pi to pi are legal"),
        ({"0/img0.png": [0.5, 3.2, 0.0]}, "pitch=3.2: 0 \\(from above\\) to pi are legal"),
        ({"0/img0.png": [0.5, 1.0]}, "three numbers are legal"),
        ({"0/img0.png": [0.5, True, 0.0]}, "three numbers are legal"),
        ({"0/img0.png": [0.0, 1.0, 0.0]}, "every yaw is 0: they say nothing"),
        ({"0/img0.png": [0.5, 1.0, 0.0], "0/img0.jpg": [0.4, 1.0, 0.0]}, "there twice"),
        ({"other.png": [0.5, 1.0, 0.0]}, "none of its 1 camera_angles, such as other, names a picture"),
        ([["0/img0.png"]], "camera_angles\\[0\\] is not"),
    ],
)
def test_unusable_angles_are_refused(entries: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=message):
        import_angles(make(tmp_path / "a", entries), tmp_path / "out")
    assert not (tmp_path / "out").exists()


SPELLINGS = ("img{}.png", "./img{}.jpg", ".\\img{}", "0\\img{}.png", "a/img{}.png")


@pytest.mark.parametrize(
    ("place", "name"),
    [
        *itertools.product((".", "0", "a.zip"), SPELLINGS),
        *itertools.product((".", "0"), ("{root}/0/img{}.png",)),  # nothing in a zip has an absolute name
    ],
)
def test_names_are_found_as_the_reader_of_labels_finds_them(name: str, place: str, tmp_path: Path) -> None:
    """With or without the pictures' folder; also if the source is that folder, and beside masks and classes."""
    root = tmp_path / "a"
    names = [name.replace("{root}", str(root)).replace("{}", str(i)) for i in range(3)]
    make(root, dict(zip(names, ANGLES, strict=True)))
    (root / "mask").mkdir()
    for i in range(3):
        Image.new("L", (16, 16), 255).save(root / "mask" / f"img{i}.png")
    content = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps(content | {"labels": [[n, i] for i, n in enumerate(names)]}))
    source = root / place
    if place == "a.zip":
        source = tmp_path / place
        with zipfile.ZipFile(source, "w") as file:
            for path in root.rglob("*.*"):
                file.write(path, path.relative_to(root).as_posix())
    report = import_angles(source, tmp_path / "out")
    assert report.count == 3 and [n for n in report.notes if "roll" not in n] == []
    dataset = ImageDataset(report.images)
    angles = poses.angles_of(Cameras.from_labels(torch.from_numpy(dataset.raw_labels)).positions)
    torch.testing.assert_close(angles, torch.tensor(ANGLES)[:, :2], rtol=0, atol=1e-5)
    assert dataset.classes.tolist() == [0, 1, 2]
    content = json.loads((report.images.parent / "dataset.json").read_text())
    assert content["sources"] == [f"0/img{i}.png" for i in range(3)]


def test_a_set_without_angles_is_refused(tmp_path: Path) -> None:
    (make(tmp_path / "a", named()) / "dataset.json").unlink()
    with pytest.raises(DatasetError, match=r"a/dataset\.json: not found; it must hold the camera_angles"):
        import_angles(tmp_path / "a", tmp_path / "out")


def test_what_is_not_used_is_counted(tmp_path: Path) -> None:
    entries = named() | {"missing.png": [0.1, 1.0, 0.0]}
    del entries["0/img1.jpg"]
    report = import_angles(make(tmp_path / "a", entries), tmp_path / "out")
    assert report.count == 2 and any("1 pictures have no camera_angles: 0/img1" in note for note in report.notes)
    assert any("1 camera_angles name no picture: missing" in note for note in report.notes)


def test_the_command(tmp_path: Path) -> None:
    source = make(tmp_path / "a", named())

    def run(*arguments: str, code: int = 0) -> str:
        given = ["import", str(source), f"--dest={tmp_path / 'out'}", *arguments]
        result = CliRunner().invoke(dataset_tool.main, given)
        assert result.exit_code == code, result.output
        return result.output

    assert "--fov goes with --from=epigraf" in run("--from=eg3d", "--fov=30", code=2)
    assert "--up does not go with --from=epigraf" in run("--from=epigraf", "--up=z", code=2)
    assert "3 images of 8 px" in run("--from=epigraf", "--fov=30", "--resolution=8")
    found = ImageDataset(tmp_path / "out" / "8").raw_labels[0, 16]
    assert found == pytest.approx(0.5 / math.tan(math.radians(15)) * 15 / 16)
