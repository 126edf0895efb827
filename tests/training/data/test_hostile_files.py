"""Tests that damaged and malicious zips, folders, images and labels are refused by name."""

import io
import os
import shutil
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
from PIL import Image

from tests.training.data import sets
from training.data.image_store import ZipStore
from training.data.label_file import LabelError
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


def _zip(tmp_path: Path, heads: Path, spoil) -> Path:
    """Writes a zip of the set into which `spoil` has written one more member."""
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
    """Returns a 16-bit RGB PNG, which Pillow would read as an 8-bit one."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", SIZE, SIZE, 16, 2, 0, 0, 0)
    rows = zlib.compress(bytes((1 + 6 * SIZE) * SIZE))
    return data[:8] + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def _huge(data: bytes) -> bytes:
    """Returns a PNG whose header says 60000 x 60000 pixels."""
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
        ('{"labels": [["00000.png", [' + "0.5," * 24 + "true]]]}", r"00000\.png: label: holds something"),
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
