"""The posed data set: reading, label checks, and the functions that real and generated images share."""

import itertools
import json
import os
import shutil
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from gaussian import Cameras
from training import dataset as dataset_module
from training.data.label_check import check_labels
from training.data.label_file import LabelError
from training.data.layout import Layout
from training.data.synthetic.synthesize import CameraSpread, render_heads, sample_cameras, synthesize_heads
from training.data.validation import validate_set
from training.dataset import DatasetError, ImageDataset, iterate
from training.images import composite, mirror, mirror_labels, quantize

NUM, SIZE = 12, 16


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLATGAN_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    return synthesize_heads(tmp_path_factory.mktemp("data") / "heads", NUM, SIZE, seed=3).images


@pytest.fixture
def copy(heads, tmp_path):
    """A set of one's own to spoil; the path of its images."""
    shutil.copytree(heads.parent, tmp_path / "copy")
    return tmp_path / "copy" / str(SIZE)


def rewrite_labels(images, change) -> None:
    """Passes the list of [name, numbers] of a set through `change` and stores what it returns."""
    path = images.parent / "dataset.json"
    path.write_text(json.dumps({"labels": change(json.loads(path.read_text())["labels"])}))


# ---- reading


def test_a_set_comes_back_as_it_was_made(heads):
    dataset = ImageDataset(heads)
    cameras = sample_cameras(3, range(NUM))
    pictures = render_heads(3, range(NUM), cameras, SIZE)
    batch = dataset.load([4, 0, 4])
    assert (len(dataset), dataset.resolution, dataset.has_masks, dataset.name) == (NUM, SIZE, True, "heads-16")
    assert torch.equal(batch.images, pictures.images[[4, 0, 4]])
    assert torch.equal(batch.masks, pictures.masks[[4, 0, 4]])
    assert torch.equal(batch.labels, cameras.labels[[4, 0, 4]])
    assert dataset.labels.dtype == np.float32 and np.array_equal(dataset.labels, dataset.raw_labels)
    assert dataset.geometry.radius == pytest.approx(2.7, abs=1e-5) and dataset.geometry.world_scale == 1.0


def test_relative_paths_and_trailing_slashes(heads, monkeypatch):
    monkeypatch.chdir(heads.parent)
    for path in (f"{SIZE}", f"./{SIZE}/", str(heads) + os.sep, heads):
        assert len(ImageDataset(path)) == NUM
    monkeypatch.chdir(heads)
    assert ImageDataset(".").name == "heads-16"


def test_the_memory_and_the_disk_give_the_same(heads, monkeypatch):
    kept = ImageDataset(heads)
    monkeypatch.setattr(dataset_module, "memory_limit", lambda: 0)
    read = ImageDataset(heads)
    for _ in range(2):
        assert torch.equal(kept.load(range(NUM)).images, read.load(range(NUM)).images)
        assert torch.equal(kept.load(range(NUM)).masks, read.load(range(NUM)).masks)


def test_a_kept_set_is_decoded_once(heads, monkeypatch):
    dataset, decoded = ImageDataset(heads), []
    decode = Layout.decode
    monkeypatch.setattr(Layout, "decode", lambda self, i, size: decoded.append(i) or decode(self, i, size))
    for _ in range(3):
        dataset.load([1, 1, 2])
    assert sorted(decoded) == [1, 2]


def test_changing_a_batch_leaves_the_set_alone(heads):
    dataset = ImageDataset(heads)
    before = dataset.load([0]).images.clone()
    dataset.load([0]).images.zero_()
    dataset.load([0]).labels.zero_()
    assert torch.equal(dataset.load([0]).images, before) and dataset.load([0]).labels.any()


def test_an_index_list_keeps_order_and_duplicates(copy, tmp_path):
    (copy / "00005.png").unlink()
    (tmp_path / "list.json").write_text("[7, 2, 5, 7, 90]")
    dataset = ImageDataset(copy, tmp_path / "list.json")
    whole = ImageDataset(copy)
    assert len(dataset) == 3 and len(whole) == NUM - 1
    assert torch.equal(dataset.load(range(3)).images, whole.load([6, 2, 6]).images)  # 7 comes sixth without 5
    assert np.array_equal(dataset.labels, whole.labels[[6, 2, 6]])
    assert dataset.geometry == whole.geometry and dataset.content_key() != whole.content_key()


@pytest.mark.parametrize("content", ["{", '{"a": 1}', '["1"]', "[true]", "[500]"])
def test_an_index_list_that_says_nothing_is_refused(heads, tmp_path, content):
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(DatasetError, match=r"list\.json"):
        ImageDataset(heads, tmp_path / "list.json")


def test_jpegs_without_masks_under_png_labels(copy):
    shutil.rmtree(copy.parent / "mask")
    for path in sorted(copy.iterdir()):
        Image.open(path).save(path.with_suffix(".jpg"), quality=95)
        path.unlink()
    batch = (dataset := ImageDataset(copy)).load([0, 1])
    assert not dataset.has_masks and batch.masks is None and batch.images.shape == (2, 3, SIZE, SIZE)


def test_alpha_serves_where_there_is_no_mask_folder(copy, heads):
    expected = ImageDataset(heads).load(range(NUM))
    for i, path in enumerate(sorted(copy.iterdir())):
        image = Image.open(path)
        image.putalpha(Image.open(copy.parent / "mask" / path.name))
        image.save(path)
        assert i < NUM
    shutil.rmtree(copy.parent / "mask")
    batch = (dataset := ImageDataset(copy)).load(range(NUM))
    assert dataset.has_masks
    assert torch.equal(batch.images, expected.images) and torch.equal(batch.masks, expected.masks)


def test_a_smaller_mask_is_resized(copy):
    Image.new("L", (4, 4), 255).save(copy.parent / "mask" / "00000.png")
    assert (ImageDataset(copy).load([0]).masks == 255).all()


def spoil_size(images):
    Image.new("RGB", (8, 8)).save(images / "00003.png")


def spoil_depth(images):
    Image.fromarray(np.zeros((SIZE, SIZE), np.uint16)).save(images / "00003.png")


def spoil_content(images):
    (images / "00003.png").write_bytes(b"not an image")


@pytest.mark.parametrize(
    ("spoil", "message"), [(spoil_size, "8x8"), (spoil_depth, "8 bits"), (spoil_content, "cannot be read")]
)
def test_unusable_images_are_named(copy, spoil, message):
    spoil(copy)
    with pytest.raises(DatasetError, match=rf"00003\.png.*{message}"):
        ImageDataset(copy).load(range(NUM))
    (problem,) = validate_set(copy)
    assert "00003.png" in problem and message in problem


def test_validate_lists_every_problem(copy):
    spoil_size(copy)
    (copy.parent / "mask" / "00007.png").unlink()
    rewrite_labels(
        copy, lambda labels: [[name, label[:16] if i == 9 else label] for i, (name, label) in enumerate(labels)]
    )
    problems = "\n".join(validate_set(copy))
    assert problems.count("\n") == 2
    assert all(name in problems for name in ("00003.png", "00007.png", "00009.png"))


def test_a_missing_mask_is_named(copy):
    (copy.parent / "mask" / "00007.png").unlink()
    with pytest.raises(DatasetError, match=r"mask/00007\.png"):
        ImageDataset(copy)


def test_folders_without_images_are_refused(heads, tmp_path):
    for path in (tmp_path / "nowhere", heads / "00000.png", heads.parent / "mask" / "00000.png"):
        with pytest.raises(DatasetError):
            ImageDataset(path)


# ---- labels


def with_row(i, change):
    """A defect of label i alone: `change` gets cam2world [4, 4] and intrinsics [3, 3] as arrays to write into."""

    def defect(labels):
        values = np.array(labels[i][1])
        change(values[:16].reshape(4, 4), values[16:].reshape(3, 3))
        labels[i][1] = values.tolist()
        return labels

    return defect


def with_all(change):
    def defect(labels):
        for i in range(len(labels)):
            labels = with_row(i, change)(labels)
        return labels

    return defect


def assign(target, value):
    target[...] = value


def to_pixels(pose, k):
    k[:2] *= 512


def to_opengl(pose, k):
    pose[:, 1:3] *= -1


def to_world2cam(pose, k):
    pose[...] = np.linalg.inv(pose)


DEFECTS = {
    "missing": (lambda labels: labels[:5] + labels[6:], r"00005\.png: has no label"),
    "16 long": (
        lambda ls: [[n, x[:16]] if n == "00005.png" else [n, x] for n, x in ls],
        r"00005\.png: label: .*16 numb",
    ),
    "nested": (lambda ls: [[n, [x] * 25] if n == "00005.png" else [n, x] for n, x in ls], r"00005\.png: label: .*flat"),
    "text": (
        lambda ls: [[n, ["x"] * 25] if n == "00005.png" else [n, x] for n, x in ls],
        r"00005\.png: label: .*not a n",
    ),
    "twice": (lambda labels: labels + labels[5:6], r"00005\.png: has two labels"),
    "no pair": (lambda labels: [*labels[:5], "x"], r"labels\[5\] is not"),
    "no list": (lambda labels: None, r'has no list "labels"'),
    "NaN": (with_row(5, lambda pose, k: assign(pose[1, 3:], np.nan)), r"00005\.png: label\[7\]: must be finite"),
    "transposed": (with_row(5, lambda pose, k: assign(pose, pose.T.copy())), r"00005\.png: pose .*transposed"),
    "last row": (with_row(5, lambda pose, k: assign(pose[3, 3:], 2)), r"00005\.png: pose .*last row must be 0 0 0 1"),
    "scaled": (
        with_row(5, lambda pose, k: assign(pose[:3, :3], 1.1 * pose[:3, :3])),
        r"00005\.png: rotation .*orthonor",
    ),
    "mirrored": (with_row(5, lambda pose, k: assign(pose[:3, 0], -pose[:3, 0])), r"00005\.png: rotation .*determinant"),
    "pixels": (with_row(5, to_pixels), r"00005\.png: intrinsics .*like pixels"),
    "all pixels": (with_all(to_pixels), r"00000\.png: intrinsics .*like pixels.*11 more"),
    "negative focal": (with_row(5, lambda pose, k: assign(k[0, :1], -4.0)), r"00005\.png: intrinsics .*at least 0\.1"),
    "skew": (with_row(5, lambda pose, k: assign(k[0, 1:2], 0.1)), r"00005\.png: intrinsics .*no skew"),
    "w2c, one": (with_row(5, to_world2cam), r"00005\.png: pose .*looks away.*world-to-camera\?"),
    "w2c, all": (with_all(to_world2cam), r"all 12 labels: pose .*is world-to-camera"),
    "OpenGL, one": (with_row(5, to_opengl), r"00005\.png: pose .*looks away.*OpenGL"),
    "OpenGL, all": (with_all(to_opengl), r"00000\.png: pose .*looks away.*OpenGL"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_label_defects_are_refused_by_name(copy, defect):
    change, message = DEFECTS[defect]
    # A camera well to the side: world-to-camera and camera-to-world differ little from the front.
    side = int(ImageDataset(copy).labels[:, 3].argmax())

    def swap_side_to_5(labels):
        labels[5][1], labels[side][1] = labels[side][1], labels[5][1]
        return change(labels)

    rewrite_labels(copy, swap_side_to_5)
    with pytest.raises(LabelError, match=message) as refused:
        ImageDataset(copy)
    assert str(copy.parent / "dataset.json") in str(refused.value) and "\n" not in str(refused.value)
    assert validate_set(copy)


def test_a_missing_or_broken_label_file_is_named(copy):
    (copy.parent / "dataset.json").write_text("{")
    with pytest.raises(LabelError, match=r"dataset\.json: is not JSON"):
        ImageDataset(copy)
    (copy.parent / "dataset.json").unlink()
    with pytest.raises(LabelError, match=r"dataset\.json: not found"):
        ImageDataset(copy)


@pytest.mark.parametrize("yaw_std", [0.03, 0.1, 0.55, 1.5])
@pytest.mark.parametrize("jitter", [0.0, 0.1])
def test_right_labels_pass_and_inverted_ones_do_not(yaw_std, jitter):
    """Cameras that miss the origin by `jitter` radians, as estimated poses do, over narrow and wide orbits."""
    cameras = sample_cameras(0, range(60), CameraSpread(yaw_std=yaw_std, pitch_std=0.05))
    shift = torch.eye(4).repeat(60, 1, 1)
    shift[:, :2, 3] = jitter * (torch.rand(60, 2, generator=torch.Generator().manual_seed(0)) - 0.5)
    cameras = Cameras(shift @ cameras.cam2world, cameras.intrinsics)
    names = [f"{i:05d}.png" for i in range(60)]
    assert check_labels("labels", names, cameras.labels.tolist()) == []
    inverted = Cameras(cameras.world2cam, cameras.intrinsics)
    if jitter < 0.5 * yaw_std:
        assert check_labels("labels", names, inverted.labels.tolist()) != []


def test_labels_in_other_units_are_brought_to_the_models(copy):
    def metres(pose, k):
        pose[:3, 3] = 10 * pose[:3, 3] + np.array([5.0, 6.0, 7.0])

    plain = ImageDataset(copy)
    rewrite_labels(copy, with_all(metres))
    scaled = ImageDataset(copy)
    assert scaled.geometry.world_scale == pytest.approx(10.0, rel=1e-3)
    assert scaled.geometry.radius * scaled.geometry.world_scale == pytest.approx(27.0, rel=1e-4)
    ratio = scaled.geometry.world_scale / 10
    expected = plain.labels.copy()
    expected[:, [3, 7, 11]] /= ratio
    assert np.allclose(scaled.labels, expected, atol=1e-4)
    assert np.allclose(scaled.raw_labels[:, 3], 10 * plain.labels[:, 3] + 5, atol=1e-4)
    assert np.allclose(scaled.geometry.origin, (5, 6, 7), atol=1e-3)


# ---- content keys


def test_the_content_key_follows_the_content(copy, tmp_path):
    key = ImageDataset(copy).content_key()
    shutil.copytree(copy.parent, tmp_path / "elsewhere")
    assert ImageDataset(tmp_path / "elsewhere" / str(SIZE)).content_key() == key

    path = copy / "00002.png"
    old = path.read_bytes()
    path.write_bytes(old[:-1] + bytes([old[-1] ^ 1]))  # same size, changed in place
    changed = ImageDataset(copy).content_key()
    assert changed != key
    path.write_bytes(old)
    assert ImageDataset(copy).content_key() == key
    shutil.copy(copy.parent / "mask" / "00001.png", copy.parent / "mask" / "00000.png")
    assert ImageDataset(copy).content_key() != key


def test_labels_are_part_of_the_content_key(copy):
    key = ImageDataset(copy).content_key()
    rewrite_labels(copy, with_row(0, lambda pose, k: assign(k[0, 2:], 0.51)))
    assert ImageDataset(copy).content_key() != key


def test_settled_files_are_hashed_once(copy, monkeypatch):
    from training.data import file_hashes

    for path in copy.parent.rglob("*.png"):
        os.utime(path, (1e9, 1e9))
    key = ImageDataset(copy).content_key()
    hashed = []
    sha256 = file_hashes._sha256
    monkeypatch.setattr(file_hashes, "_sha256", lambda path: hashed.append(path.name) or sha256(path))
    assert ImageDataset(copy).content_key() == key and hashed == []
    os.utime(copy / "00004.png", (1e9 + 1, 1e9 + 1))
    assert ImageDataset(copy).content_key() == key and hashed == ["00004.png"]


def test_a_memory_that_cannot_be_used_only_warns(copy, tmp_path):
    for path in copy.parent.rglob("*.png"):
        os.utime(path, (1e9, 1e9))
    key = ImageDataset(copy).content_key()
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="not remembered"):
        assert ImageDataset(copy).content_key() == key


# ---- iterate


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_iterate_keeps_the_order(heads, workers):
    dataset = ImageDataset(heads)
    order = [[(5 * i + j) % NUM for j in range(4)] for i in range(9)]
    batches = list(iterate(dataset, order, workers))
    assert len(batches) == 9
    for indices, batch in zip(order, batches, strict=True):
        assert torch.equal(batch.images, dataset.load(indices).images)
        assert torch.equal(batch.labels, dataset.load(indices).labels)


def test_iterate_reads_ahead_but_not_for_ever(heads):
    drawn = itertools.count()
    endless = iterate(ImageDataset(heads), ([next(drawn) % NUM] for _ in itertools.count()), workers=2)
    for _ in range(5):
        next(endless)
    assert 5 < next(drawn) < 15
    before = threading.active_count()
    endless.close()
    assert threading.active_count() < before


def test_iterate_passes_errors_on(copy):
    spoil_content(copy)
    with pytest.raises(DatasetError, match=r"00003\.png"):
        list(iterate(ImageDataset(copy), [[0], [3]], workers=1))


# ---- composite, mirror, quantize


def test_composite():
    images = torch.tensor([[0, 128, 255]] * 2, dtype=torch.uint8).reshape(2, 3, 1, 1).expand(2, 3, 2, 2)
    masks = torch.tensor([[255, 0], [51, 102]], dtype=torch.uint8).expand(2, 1, 2, 2)
    background = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.5, 0.25]])
    over = composite(images, masks, background)
    assert over.dtype == torch.float32
    assert torch.allclose(over[0, :, 0, 0], torch.tensor([-1, 128 / 127.5 - 1, 1]), atol=1e-6)
    assert torch.equal(over[:, :, 0, 1], 2 * background - 1)
    expected = 0.2 * torch.tensor([0, 128 / 255, 1.0]) + 0.8 * background[1]
    assert torch.allclose((over[1, :, 1, 0] + 1) / 2, expected, atol=1e-6)
    assert torch.equal(composite(images, None, background), images / 127.5 - 1)


def test_mirror_flips_what_is_asked_for_and_nothing_in_place():
    cameras = sample_cameras(0, range(4), CameraSpread(cx=0.4, roll_std=0.3))
    pictures = render_heads(0, range(4), cameras, SIZE)
    given = pictures.images.clone(), pictures.masks.clone(), cameras.labels
    kept = tuple(t.clone() for t in given)
    flip = torch.tensor([True, False, True, False])
    once = *mirror(*given[:2], flip), mirror_labels(given[2], flip)
    assert all(torch.equal(a, b) for a, b in zip(given, kept, strict=True))
    for before, after in zip(given[:2], once[:2], strict=True):
        assert torch.equal(after[flip], before[flip].flip(-1)) and torch.equal(after[~flip], before[~flip])
    assert torch.equal(once[2][~flip], given[2][~flip])
    assert torch.allclose(once[2][flip, 18], torch.full((2,), 0.6))
    assert torch.equal(mirror(*once[:2], flip)[0], given[0])
    assert torch.allclose(mirror_labels(once[2], flip), given[2], atol=1e-7)
    assert mirror(given[0], None, flip)[1] is None


def test_a_mirrored_label_sees_the_mirrored_point():
    """A point at x lands where its mirror image does, counted from the other edge."""
    cameras = sample_cameras(0, range(8), CameraSpread(cx=0.4, roll_std=0.3))
    point = torch.tensor([[0.1, 0.05, 0.12]])
    labels = mirror_labels(cameras.labels, torch.ones(8, dtype=torch.bool))
    seen, _ = cameras.project(point.expand(8, 1, 3))
    other, _ = Cameras.from_labels(labels).project((point * torch.tensor([-1.0, 1.0, 1.0])).expand(8, 1, 3))
    assert torch.allclose(other[..., 0], 1 - seen[..., 0], atol=1e-5)
    assert torch.allclose(other[..., 1], seen[..., 1], atol=1e-5)


def test_quantize_undoes_the_scaling_and_clamps():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    white = torch.ones(1, 3)
    assert torch.equal(quantize(composite(levels, torch.full_like(levels[:, :1], 255), white)), levels)
    assert quantize(torch.tensor([-3.0, -1.0, 0.0039, 1.0, 4.0])).tolist() == [0, 0, 128, 255, 255]
