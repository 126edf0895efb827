"""Tests that every layout gives the same set, from any process."""

import multiprocessing
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.data import sets
from training import dataset as dataset_module
from training.data.image_store import ZipStore, digest
from training.data.layout import open_layout
from training.data.synthetic.synthesize import synthesize_heads
from training.data.validation import validate_set
from training.dataset import DatasetError, ImageDataset

NUM, SIZE = 12, 16


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLATGAN_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    return synthesize_heads(tmp_path_factory.mktemp("data") / "heads", NUM, SIZE, seed=3).images


# ---- layouts


@pytest.mark.parametrize("layout", sets.LAYOUTS)
def test_every_layout_gives_the_same_set(heads, tmp_path, layout):
    path = sets.LAYOUTS[layout](heads, tmp_path / "set")
    plain, other = ImageDataset(heads), ImageDataset(path)
    expected, batch = plain.load(range(NUM)), other.load(range(NUM))
    assert torch.equal(batch.images, expected.images) and torch.equal(batch.masks, expected.masks)
    assert torch.equal(batch.labels, expected.labels) and other.geometry == plain.geometry
    assert validate_set(path) == []


def test_paths_may_be_relative_and_end_in_a_slash(heads, tmp_path, monkeypatch):
    sets.to_eg3d(heads, tmp_path / "eg3d")
    zipped = sets.to_ffhqc_zip(heads, tmp_path / "zipped")
    monkeypatch.chdir(tmp_path)
    for path in ("eg3d", "eg3d/", "./eg3d", "zipped.zip", f"zipped.zip/{SIZE}", f"zipped.zip/{SIZE}/", zipped):
        assert len(ImageDataset(path)) == NUM


def test_a_root_with_several_resolutions_asks_which(heads, tmp_path):
    root = sets.to_root(heads, tmp_path / "root")
    shutil.copytree(root / str(SIZE), root / "8")
    with pytest.raises(DatasetError, match=r"image folders 16, 8; give one of them, as .*/16"):
        ImageDataset(root)
    assert len(ImageDataset(root / str(SIZE))) == NUM


def test_pictures_beside_the_folder_of_pictures(heads, tmp_path):
    root = sets.to_root(heads, tmp_path / "root")
    shutil.copy(heads / "00000.png", root / "portrait.png")
    with pytest.raises(DatasetError, match=r"image folders 16 and other images; give one of them, as .*/16"):
        ImageDataset(root)
    (root / "dataset.json").write_text('{"labels": null}')
    layout = open_layout(root, labelled=False)
    assert not layout.problems and {"portrait", "16/00000"} <= set(layout.stems)


@pytest.mark.parametrize(("extension", "options"), [("jpg", {"quality": 95}), ("webp", {"lossless": True})])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_formats(heads, tmp_path, extension, options, mode):
    folder = sets.to_eg3d(heads, tmp_path / "set", "none")
    for path in sorted(folder.rglob("*.png")):
        Image.open(path).convert(mode).save(path.with_suffix("." + extension), **options)
        path.unlink()
    dataset = ImageDataset(folder)
    images = dataset.load([1]).images
    assert not dataset.has_masks and images.shape == (1, 3, SIZE, SIZE)
    if mode == "L":
        assert torch.equal(images[:, 0], images[:, 2])
    elif extension == "webp":
        assert torch.equal(images, ImageDataset(heads).load([1]).images)
    assert validate_set(folder) == []


@pytest.mark.parametrize("mode", ["L", "P", "LA"])
def test_grey_and_palette_pngs(heads, tmp_path, mode):
    folder = sets.to_eg3d(heads, tmp_path / "set", "none")
    for path in sorted(folder.rglob("*.png")):
        Image.open(path).convert("L").convert(mode).save(path)
    batch = ImageDataset(folder).load([0])
    expected = torch.from_numpy(np.array(Image.open(heads / "00000.png").convert("L")))
    assert torch.equal(batch.images[0, 1], expected) and (batch.masks is not None) == (mode == "LA")


# ---- content keys and processes


def test_the_key_of_a_zip_comes_from_its_checksums(heads, tmp_path, monkeypatch):
    first = sets.to_ffhqc_zip(heads, tmp_path / "a")
    dataset, read = ImageDataset(first), ZipStore.read
    monkeypatch.setattr(ZipStore, "read", lambda *_: pytest.fail("a member was read for the key"))
    key = dataset.content_key()
    monkeypatch.setattr(ZipStore, "read", read)
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(first, tmp_path / "elsewhere" / "b.zip")
    assert ImageDataset(tmp_path / "elsewhere" / "b.zip").content_key() == key
    root = sets.to_root(heads, tmp_path / "root")
    Image.new("RGB", (SIZE, SIZE)).save(root / str(SIZE) / "00003.png")
    assert ImageDataset(sets.pack(root, tmp_path / "c.zip")).content_key() != key


def _hash_of(dataset: ImageDataset) -> str:
    batch = dataset.load(list(range(NUM)) * 3)
    return digest([batch.images.numpy().tobytes().hex(), batch.masks.numpy().tobytes().hex()])


def _in_child(dataset: ImageDataset, queue) -> None:
    torch.set_num_threads(1)
    queue.put(_hash_of(dataset))


def test_eight_forked_workers_read_the_same(heads, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_module, "memory_limit", lambda: 0)
    dataset = ImageDataset(sets.to_ffhqc_zip(heads, tmp_path / "set"))
    expected = _hash_of(dataset)  # opens the handle that the children inherit
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    children = [context.Process(target=_in_child, args=(dataset, queue)) for _ in range(8)]
    for child in children:
        child.start()
    hashes = {queue.get() for _ in children}
    for child in children:
        child.join()
    assert hashes == {expected}


def test_eight_spawned_workers_read_the_same(heads, tmp_path):
    layout = open_layout(sets.to_ffhqc_zip(heads, tmp_path / "set"))
    names = layout.names * 8
    expected = [layout.store.read(name) for name in names]
    with multiprocessing.get_context("spawn").Pool(8) as pool:
        assert pool.map(layout.store.read, names, chunksize=3) == expected


def test_a_pickled_set_reads_the_same_and_carries_no_pixels(heads):
    dataset = ImageDataset(heads)
    expected = _hash_of(dataset)
    pickled = pickle.dumps(dataset)
    assert len(pickled) < NUM * SIZE * SIZE * 3 and _hash_of(pickle.loads(pickled)) == expected


def test_what_does_not_fit_in_memory_is_read_again(heads, monkeypatch):
    expected = ImageDataset(heads).load([0, 11, 3, 11, 7, 0])
    monkeypatch.setattr(dataset_module, "memory_limit", lambda: 5 * 4 * SIZE * SIZE)
    dataset = ImageDataset(heads)
    for _ in range(2):
        batch = dataset.load([0, 11, 3, 11, 7, 0])
        assert torch.equal(batch.images, expected.images) and torch.equal(batch.masks, expected.masks)


def test_a_set_that_is_deleted_meanwhile_is_named(heads, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_module, "memory_limit", lambda: 0)
    root = sets.to_root(heads, tmp_path / "root")
    dataset = ImageDataset(root / str(SIZE))
    dataset.load([0])
    shutil.rmtree(root)
    with pytest.raises(DatasetError, match=r"00001\.png: not found; was the set moved or deleted"):
        dataset.load([1])
    with pytest.raises(DatasetError, match="was the set moved or deleted"):
        dataset.content_key()
