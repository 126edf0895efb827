"""Every layout gives the same set; zips and folders that are not what they seem are refused by name."""

import io
import json
import multiprocessing
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.data import sets
from training import dataset as dataset_module
from training.data.image_store import ZipStore, digest
from training.data.label_file import LabelError
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


# ---- hostile zips and folders


def _zip(tmp_path: Path, heads: Path, spoil) -> Path:
    """A zip of the set into which `spoil` has written one more member."""
    path = sets.to_ffhqc_zip(heads, tmp_path / "set")
    with zipfile.ZipFile(path, "a") as archive:
        spoil(archive)
    return path


def _link(archive) -> None:
    info = zipfile.ZipInfo(f"{SIZE}/00099.png")
    info.external_attr = 0o120777 << 16
    archive.writestr(info, "/etc/passwd")


def _twice(archive) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(f"{SIZE}/00001.png", sets.png())


HOSTILE = {
    "absolute": (lambda a: a.writestr("/etc/x.png", b""), "absolute path"),
    "dots": (lambda a: a.writestr(f"{SIZE}/../../x.png", b""), r"leads out of the zip by '\.\.'"),
    "drive": (lambda a: a.writestr("C:\\x.png", b""), "absolute path"),
    "bomb": (lambda a: a.writestr(f"{SIZE}/00099.png", bytes(30 << 20), zipfile.ZIP_DEFLATED), "times its size"),
    "10000 to 1": (lambda a: a.writestr("x.json", bytes(30 << 20), zipfile.ZIP_BZIP2), "compression method 12"),
    "twice": (_twice, "in the zip twice"),
    "link": (_link, "is a link"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_members_are_refused_by_name(heads, tmp_path, case):
    spoil, message = HOSTILE[case]
    path = _zip(tmp_path, heads, spoil)
    with pytest.raises(DatasetError, match=message) as refused:
        ImageDataset(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)
    assert any(str(refused.value) in problem for problem in validate_set(path))


def test_zip_names_that_are_not_utf8_are_refused(heads, tmp_path):
    path = _zip(tmp_path, heads, lambda a: a.writestr(f"{SIZE}/cafX.png", sets.png()))
    path.write_bytes(path.read_bytes().replace(b"cafX", b"caf\xe9"))
    with pytest.raises(DatasetError, match="must be UTF-8: pack the zip again"):
        ImageDataset(path)


def test_a_member_that_lies_about_its_size_is_not_unpacked(heads, tmp_path):
    """The directory says 1000 bytes, the stream holds 30 MiB."""
    path = _zip(tmp_path, heads, lambda a: a.writestr("x.png", bytes(30 << 20), zipfile.ZIP_DEFLATED))
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\1\2")
    data[entry + 24 : entry + 28] = struct.pack("<I", 1000)
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"x\.png: cannot be read from the zip: size or checksum"):
        ZipStore(path).read("x.png")


def test_truncated_and_foreign_zips_are_named(heads, tmp_path):
    path = sets.to_ffhqc_zip(heads, tmp_path / "set")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match=r"set\.zip: is not a whole zip"):
        ImageDataset(path)
    path.write_bytes(b"")
    assert "set.zip" in validate_set(path)[0]


def test_a_damaged_member_is_named(heads, tmp_path):
    path = sets.to_ffhqc_zip(heads, tmp_path / "set")
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(f"{SIZE}/00004.png")
    data = bytearray(path.read_bytes())
    data[info.header_offset + 30 + len(info.filename) + info.compress_size // 2] ^= 0x55
    path.write_bytes(data)
    (problem,) = validate_set(path)
    assert f"set.zip/{SIZE}/00004.png: cannot be read from the zip" in problem


def test_links_out_of_the_set_are_refused_and_links_inside_are_not(heads, tmp_path):
    root = sets.to_root(heads, tmp_path / "root")
    (root / str(SIZE) / "00003.png").unlink()
    os.symlink("00002.png", root / str(SIZE) / "00003.png")
    assert len(ImageDataset(root / str(SIZE))) == NUM
    (root / str(SIZE) / "00004.png").unlink()
    os.symlink(heads / "00004.png", root / str(SIZE) / "00004.png")
    with pytest.raises(DatasetError, match=r"00004\.png: is a link out of the set"):
        ImageDataset(root / str(SIZE))
    os.symlink(".", root / str(SIZE) / "again")
    assert any("again: is a link" in problem for problem in validate_set(root / str(SIZE)))
    os.symlink(root, tmp_path / "by-link")  # the place that the user names may be a link
    (root / str(SIZE) / "again").unlink()
    (root / str(SIZE) / "00004.png").unlink()
    assert len(ImageDataset(tmp_path / "by-link" / str(SIZE))) == NUM - 1


def test_file_names_that_are_not_utf8_are_shown_in_ascii(heads, tmp_path):
    root = sets.to_root(heads, tmp_path / "root")
    with open(os.fsencode(root / str(SIZE)) + b"/caf\xe9.png", "wb") as file:
        file.write(sets.png())
    (problem,) = validate_set(root / str(SIZE))
    assert r"caf\udce9.png: the file name must be UTF-8" in problem and problem.isascii()


def _truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _spoil_middle(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]


def _deep(data: bytes) -> bytes:
    """A 16-bit RGB PNG, which Pillow would hand out as an 8-bit one."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", SIZE, SIZE, 16, 2, 0, 0, 0)
    rows = zlib.compress(bytes((1 + 6 * SIZE) * SIZE))
    return data[:8] + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def _huge(data: bytes) -> bytes:
    """A head that promises 60000 x 60000 pixels."""
    return data[:16] + struct.pack(">II", 60000, 60000) + data[24:]


def _cmyk(data: bytes) -> bytes:
    out = io.BytesIO()
    Image.new("CMYK", (SIZE, SIZE)).save(out, "JPEG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_truncate, "cannot be read"),
        (_spoil_middle, "cannot be read"),
        (_deep, "16 bits per channel"),
        (_huge, "cannot be read|60000x60000"),
        (_cmyk, "mode CMYK"),
        (lambda data: b"", "cannot be read"),
        (lambda data: b"GIF89a" + data, "is no PNG, JPEG, WEBP file"),
    ],
)
def test_damaged_images_are_named(heads, tmp_path, spoil, message):
    root = sets.to_root(heads, tmp_path / "root")
    path = root / str(SIZE) / "00005.png"
    path.write_bytes(spoil(path.read_bytes()))
    (problem,) = validate_set(root / str(SIZE))
    assert problem.startswith(f"{path}: ") and "\n" not in problem
    with pytest.raises(DatasetError, match=message):
        ImageDataset(root / str(SIZE)).load(range(NUM))


NUMBERS = "[" + ",".join(["1e308"] * 25) + "]"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 10_000_000, "nested too deeply|not JSON"),
        ('{"labels": NaN}', 'no list "labels"'),
        ('{"labels": null}', 'no list "labels"'),
        ("\x00\xff", "not JSON"),
        ("", "not JSON"),
        ('{"labels": [["00000.png", ' + NUMBERS + "]]}", r"00000\.png: label\[0\]: must lie within 1e\+06"),
        ('{"labels": [["00000.png", [' + "9" * 400 + ",1" * 24 + "]]]}", r"00000\.png: label: holds something"),
        ('{"labels": [["00000.png", [' + "true," * 24 + "true]]]}", r"00000\.png: label: holds something"),
        ('{"labels": [["00000.png", [' + '"1",' * 24 + '"1"]]]}', r"00000\.png: label: holds something"),
        ('{"labels": [["00000.png", {"a": 1}]]}', r"00000\.png: label: must be 25 numbers"),
    ],
)
def test_hostile_label_files_are_refused(heads, tmp_path, content, message):
    root = sets.to_root(heads, tmp_path / "root")
    (root / "dataset.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(LabelError, match=message) as refused:
        ImageDataset(root / str(SIZE))
    assert len(str(refused.value)) < 400 and "\n" not in str(refused.value)


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


def test_two_images_of_one_name_are_refused(heads, tmp_path):
    root = sets.to_root(heads, tmp_path / "root")
    shutil.copy(root / str(SIZE) / "00003.png", root / str(SIZE) / "00003.jpg")
    with pytest.raises(DatasetError, match=r"00003\.png: has the name of .*00003\.jpg"):
        ImageDataset(root / str(SIZE))


def test_labels_without_a_file_are_asked_for(heads, tmp_path):
    shutil.copytree(heads, tmp_path / "bare" / "16")
    with pytest.raises(LabelError, match=r"bare/dataset\.json: not found"):
        ImageDataset(tmp_path / "bare" / "16")
    with pytest.raises(LabelError, match=r"dataset\.json: not found"):
        ImageDataset(sets.pack(heads, tmp_path / "images.zip"))


# ---- index lists


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
    with pytest.raises(DatasetError, match=rf"'mine': not found; put it at {root}/mine\.json or as custom_dist/mine"):
        ImageDataset(root / str(SIZE), "mine")
    (tmp_path / "custom_dist").mkdir()
    (tmp_path / "custom_dist" / "mine.json").write_text("[7]")
    assert len(ImageDataset(root / str(SIZE), "mine")) == 1
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
