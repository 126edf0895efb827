"""Classes of images: numbers or vectors, beside the labels or in their place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from training.data.classes import MOST, read_classes
from training.data.image_store import DatasetError
from training.data.making.camera_angles import import_angles
from training.data.making.convert import convert_set
from training.data.poses import PoseLaw
from training.dataset import ImageDataset

NAMES = ["a.png", "b.png", "c.png"]
LAW = PoseLaw("spherical", (1.5707963, 3.1415927), (1.5707963, 1.5707963), 30.0)


def write_set(folder: Path, count: int = 4, **content: Any) -> Path:
    """Writes pictures of 8 px, each of a grey of its own, and a dataset.json of `content`."""
    folder.mkdir()
    for i in range(count):
        Image.new("RGB", (8, 8), (40 * i,) * 3).save(folder / f"{i:05d}.png")
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def numbered(values: list[Any]) -> dict[str, Any]:
    return {f"{i:05d}.png": value for i, value in enumerate(values)}


def test_numbers_and_vectors() -> None:
    found = read_classes("d", NAMES, [2, 0, 2])
    assert found.count == 3 and found.of_images.tolist() == [2, 0, 2] and not found.problems
    vectors = read_classes("d", NAMES, [[0, 1, 0, 0], [1, 0, 0, 0], [0.0, 1.0, 0, 0]])
    assert vectors.count == 4 and vectors.of_images.tolist() == [1, 0, 1]
    assert read_classes("d", NAMES, [2, 0, 2], count=10).count == 10
    assert read_classes("d", NAMES, [None] * 3).count == 0 and not read_classes("d", NAMES, [None] * 3).problems


def test_what_others_keep_under_the_same_key_closes_no_set(tmp_path: Path) -> None:
    found = ImageDataset(write_set(tmp_path / "named", labels=numbered([5] * 4), classes=["cat", "dog"]), pose_law=LAW)
    assert found.num_classes == 0 and len(found) == 4
    assert found.class_problem is not None and 'classes[0] is not ["name.png", 3]' in found.class_problem


@pytest.mark.parametrize(
    ("values", "count", "message"),
    [
        ([0, None, 1], None, "d: b.png: every image needs a class, and this one has none; .*1 of 3 images: b.png"),
        ([0, -1, 1], None, "b.png: every image needs a class, and this one -1 is none; legal are"),
        ([0, True, 1], None, "this one True is none"),
        ([0, 1.5, 1], None, "this one 1.5 is none"),
        ([0, MOST, 1], None, f"this one {MOST} is none"),
        ([[0, 1], [1, 1], [1, 0]], None, r"this one \[1, 1\] is none"),
        ([[0, 1], [0, 1, 0], [1, 0]], None, "vectors of 2 and vectors of 3; one form for all is legal"),
        ([1, [0, 1], 1], None, "numbers and vectors of 2"),
        ([2, 0, 1], 2, "num_classes=2: 3, as classes go, to 10000 are legal"),
        ([2, 0, 1], "many", "num_classes='many'"),
    ],
)  # fmt: skip
def test_what_is_no_class(values: list[Any], count: Any, message: str) -> None:
    found = read_classes("d", NAMES, values, count)
    assert found.count == 0 and len(found.problems) == 1
    with pytest.raises(ValueError, match=message):
        raise ValueError(found.problems[0])


def test_labels_that_are_classes(tmp_path: Path) -> None:
    """Under a law of cameras, as EpiGRAF writes such sets: a list or an object of numbers."""
    lists = write_set(tmp_path / "list", labels=[[name, k] for name, k in numbered([3, 0, 1, 3]).items()])
    objects = write_set(tmp_path / "object", labels=numbered([3, 0, 1, 3]))
    for folder in (lists, objects):
        dataset = ImageDataset(folder, pose_law=LAW)
        assert dataset.num_classes == 4 and dataset.classes.tolist() == [3, 0, 1, 3]
        assert dataset.classes.dtype == np.int64 and dataset.head(2).classes.tolist() == [3, 0]
    plain = ImageDataset(write_set(tmp_path / "plain", labels=None), pose_law=LAW)
    assert plain.num_classes == 0 and plain.class_problem is None and plain.classes.tolist() == [0] * 4


def test_classes_beside_labels_of_cameras(tmp_path: Path) -> None:
    labels = numbered(LAW.labels(0, "data", range(4)).tolist())
    folder = write_set(tmp_path / "set", labels=labels, classes={**numbered([1, 0, 1, 1]), "9.png": 7}, num_classes=5)
    dataset = ImageDataset(folder)
    assert dataset.num_classes == 5 and dataset.classes.tolist() == [1, 0, 1, 1]
    assert any("5 classes, 1 of them name no picture here, 9.png" in note for note in dataset.notes)
    without = ImageDataset(write_set(tmp_path / "without", labels=labels))
    assert without.num_classes == 0 and without.content_key() != dataset.content_key()


def test_a_class_that_is_missing_is_told(tmp_path: Path) -> None:
    dataset = ImageDataset(write_set(tmp_path / "set", labels=numbered([0, 1, 1])), pose_law=LAW)
    assert dataset.num_classes == 0 and "00003.png: every image needs a class" in (dataset.class_problem or "")


ANGLES = [[0.5, 1.2, 0], [-0.5, 1.4, 0], [0.2, 1.7, 0], [-0.1, 1.5, 0]]


def test_import_and_convert_keep_them(tmp_path: Path) -> None:
    theirs = write_set(
        tmp_path / "theirs", labels=numbered([2, 0, 2, 1]), camera_angles=numbered(ANGLES), num_classes=4
    )
    ours = import_angles(theirs, tmp_path / "ours").images
    convert_set(ours, tmp_path / "again.zip", resolution=4)
    for path in (ours, tmp_path / "again.zip"):
        dataset = ImageDataset(path)
        assert dataset.num_classes == 4 and dataset.classes.tolist() == [2, 0, 2, 1]
    other = write_set(tmp_path / "other", labels=numbered([[0.5, 2.0]] * 4), camera_angles=numbered(ANGLES))
    assert any(
        "4 labels are no classes, and are not read" in note for note in import_angles(other, tmp_path / "o").notes
    )
    torn = write_set(tmp_path / "torn", labels=numbered([2, 0, 2]), camera_angles=numbered(ANGLES))
    with pytest.raises(DatasetError, match="00003: every image needs a class, and this one has none"):
        import_angles(torn, tmp_path / "t")
