"""Tests index lists: where they are looked up, and what they may hold."""

import json
import os
import shutil

import pytest
import torch

from tests.training.data import sets
from training.data.synthetic.synthesize import synthesize_heads
from training.dataset import DatasetError, ImageDataset

NUM, SIZE = 12, 16


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLATGAN_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    return synthesize_heads(tmp_path_factory.mktemp("data") / "heads", NUM, SIZE, seed=3).images


@pytest.fixture
def root(heads, tmp_path):
    return sets.to_root(heads, tmp_path / "root")


def test_the_default_list_is_the_published_one_where_it_lies_beside_the_data(root):
    plain = ImageDataset(root / str(SIZE))
    assert plain.index_list == "all" and plain.index_description == "all 12 labelled images" and len(plain) == NUM
    (root / "smile_pose_rebalancing.json").write_text("[3, 3, 5]")
    chosen = ImageDataset(root / str(SIZE))
    assert len(chosen) == 3 and chosen.index_list == "smile_pose_rebalancing"
    assert f"{root}/smile_pose_rebalancing.json): 3 items, 2 images" in chosen.index_description
    assert len(ImageDataset(root / str(SIZE), "all")) == NUM
    zipped = ImageDataset(sets.pack(root, root.parent / "set.zip"))
    assert len(zipped) == 3 and "set.zip/smile_pose_rebalancing.json" in zipped.index_description


def test_ffhq_default_without_a_file_is_everything(root):
    dataset = ImageDataset(root / str(SIZE), "ffhq_default")
    assert len(dataset) == NUM and "ffhq_default.json is not there" in dataset.index_description
    (root / "ffhq_default.json").write_text("[0, 1]")
    assert len(ImageDataset(root / str(SIZE), "ffhq_default")) == 2


def test_lists_are_looked_up_beside_the_data_then_in_the_project(root, tmp_path, monkeypatch):
    monkeypatch.setattr("training.data.index_lists.CUSTOM_LISTS", tmp_path / "custom_dist")
    monkeypatch.chdir(root)
    asked = rf"--index-list=mine: not found; put it at {root}/mine\.json or as custom_dist/mine"
    with pytest.raises(DatasetError, match=asked):
        ImageDataset(root / str(SIZE), "mine")
    (tmp_path / "custom_dist").mkdir()
    (tmp_path / "custom_dist" / "mine.json").write_text("[7]")
    assert len(ImageDataset(root / str(SIZE), "mine")) == 1
    (root / "custom_dist").mkdir()  # of the working folder: where the code is installed, there is no other
    (root / "custom_dist" / "mine.json").write_text("[7, 8, 9]")
    assert len(ImageDataset(root / str(SIZE), "mine")) == 3
    (root / "mine.json").write_text("[7, 8]")
    assert len(ImageDataset(root / str(SIZE), "mine")) == 2
    assert len(ImageDataset(root / str(SIZE), str(tmp_path / "custom_dist" / "mine.json"))) == 1
    with pytest.raises(DatasetError, match="no such index list"):
        ImageDataset(root / str(SIZE), str(tmp_path / "nothing.json"))


def test_lists_may_hold_names_and_nested_names_have_numbers(heads, root, tmp_path):
    (root / "mine.json").write_text(json.dumps(["00007.png", "00002", "00007.png"]))
    by_name = ImageDataset(root / str(SIZE), "mine")
    folder = sets.to_eg3d(heads, tmp_path / "eg3d")
    (folder / "mine.json").write_text("[7, 2, 7]")
    by_number = ImageDataset(folder, "mine")
    assert torch.equal(by_name.load(range(3)).images, by_number.load(range(3)).images)
    os.rename(folder / "00000" / "img00000001.png", folder / "00000" / "other00000002.png")
    labels = (folder / "dataset.json").read_text().replace("img00000001", "other00000002")
    (folder / "dataset.json").write_text(labels)
    shutil.move(folder / "mask" / "00000" / "img00000001.png", folder / "mask" / "00000" / "other00000002.png")
    with pytest.raises(DatasetError, match="have the same number"):
        ImageDataset(folder, "mine")
