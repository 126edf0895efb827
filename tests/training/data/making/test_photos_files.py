"""Files beside portraits: masks of any form and name, names of any spelling, pictures of any depth, a dest in use."""

import json
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data.image_store import DatasetError
from training.data.making.photos import import_photos
from training.data.making.photos_landmarks import FILE
from training.data.making.reshape import Turn
from training.data.synthetic.portraits import Photographer, Portrait, write_portraits

COUNT, SIDE = 4, 48
UPRIGHT = Photographer(width=150, height=200, focal=2.6, yaw_std=0.3)
Written = tuple[Path, list[Portrait]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLATGAN_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def portraits(tmp_path_factory) -> Written:
    folder = tmp_path_factory.mktemp("portraits") / "in"
    return folder, write_portraits(folder, COUNT, 31, UPRIGHT)


@pytest.fixture
def folder(portraits, tmp_path) -> Path:
    """A copy of the photographs, with their masks, that a test may change."""
    shutil.copytree(portraits[0], tmp_path / "in")
    (tmp_path / "in" / "masks").mkdir()
    for i, portrait in enumerate(portraits[1]):
        Image.fromarray(portrait.mask).save(tmp_path / "in" / "masks" / f"{i:05d}.png")
    return tmp_path / "in"


def spell(folder: Path, names: dict[str, str], **more: str) -> None:
    """Renames pictures in landmarks.json, and adds keys to it."""
    content = json.loads((folder / FILE).read_text())
    content["pictures"] = {names.get(name, name): entry for name, entry in content["pictures"].items()}
    (folder / FILE).write_text(json.dumps({**content, **more}))


def written(dest: Path, name: str = "mask") -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted((dest / name).iterdir())]


def tag(path: Path, number: int) -> None:
    """Stores a picture as a camera that is held another way does."""
    exif = Image.Exif()
    exif[0x0112] = number
    Turn(number).undo(Image.open(path)).save(path, exif=exif, quality=95)


def test_pictures_that_are_higher_than_wide_show_the_same_heads(portraits):
    """The picture and its mask have the size that was asked for, and the landmarks lie on the head."""
    for portrait in portraits[1]:
        assert portrait.picture.shape == (200, 150, 3) and portrait.mask.shape == (200, 150)
        x, y = np.median(portrait.landmarks, axis=0).round().astype(int)
        assert portrait.mask[y, x] == 255


@pytest.mark.parametrize("form", ["cut-out", "16 bit", "half size", "one bit"])
def test_masks_of_any_form_mean_the_same(portraits, folder, tmp_path, form):
    import_photos(folder, tmp_path / "plain", SIDE)
    for i, portrait in enumerate(portraits[1]):
        mask = Image.fromarray(portrait.mask)
        if form == "cut-out":
            mask = Image.merge("RGBA", (*Image.fromarray(portrait.picture).split(), mask))
        elif form == "16 bit":
            mask = Image.fromarray(portrait.mask.astype(np.uint16) * 257)
        else:
            mask = mask.resize((75, 100)) if form == "half size" else mask.convert("1")
        mask.save(folder / "masks" / f"{i:05d}.png")
    assert import_photos(folder, tmp_path / "other", SIDE).written.count == COUNT
    for one, other in zip(written(tmp_path / "plain"), written(tmp_path / "other"), strict=True):
        # 5.2 seen for the blurred edges of half the size, in 0..255; masks of two heads differ by 50 and more
        assert np.abs(one.astype(int) - other).mean() < (0.01 if form in ("cut-out", "16 bit") else 8)


def test_coloured_masks_are_refused(portraits, folder, tmp_path):
    Image.fromarray(portraits[1][2].picture).save(folder / "masks" / "00002.png")
    with pytest.raises(DatasetError, match=r"masks/00002\.png: is a coloured picture and no mask"):
        import_photos(folder, tmp_path / "set", SIDE)


def test_masks_that_are_called_otherwise_are_told(folder, tmp_path):
    """A set without masks, and not a word, was the answer to a suffix."""
    for path in sorted((folder / "masks").iterdir()):
        path.rename(path.with_stem(f"{path.stem}_mask"))
    report = import_photos(folder, tmp_path / "set", SIDE)
    assert not (tmp_path / "set" / "mask").exists()
    assert any("0 used of 4 masks" in note and "such as 00000_mask.png" in note for note in report.notes)


def test_one_mask_for_two_pictures_is_refused(folder, tmp_path):
    Image.open(folder / "00001.jpg").save(folder / "00001.png")
    with pytest.raises(DatasetError, match=r"may be the mask of 00001\.jpg or of 00001\.png; 00001\.png\.png is legal"):
        import_photos(folder, tmp_path / "set", SIDE)


@pytest.mark.parametrize("number", [3, 6])
@pytest.mark.parametrize("exif", ["applied", "ignored"])
def test_masks_of_tagged_pictures_follow_where_it_is_clear_which_way_up_they_are(folder, tmp_path, number, exif):
    """Of a picture on its head with a mask of its size nothing tells whether the mask stands on its head too."""
    import_photos(folder, tmp_path / "plain", SIDE)
    tag(folder / "00001.jpg", number)
    spell(folder, {}, exif=exif)
    if exif == "ignored":
        content = json.loads((folder / FILE).read_text())
        x, y = np.array(content["pictures"]["00001.jpg"]["faces"][0]).T
        turned = np.stack([150 - x, 200 - y] if number == 3 else [y, 150 - x], axis=1)
        content["pictures"]["00001.jpg"]["faces"] = [turned.tolist()]
        (folder / FILE).write_text(json.dumps(content))
    report = import_photos(folder, tmp_path / "turned", SIDE)
    if number == 3:
        reason = "with an orientation tag and a mask that may be for the pixels as stored or upright"
        assert report.skipped == {reason: ["00001.jpg"]}
        tag(folder / "masks" / "00001.png", 3)  # a mask that says it
        report = import_photos(folder, tmp_path / "said", SIDE)
    assert report.written.count == COUNT
    dest = tmp_path / ("said" if number == 3 else "turned")
    for one, other in zip(written(tmp_path / "plain"), written(dest), strict=True):
        assert np.abs(one.astype(int) - other).mean() < 6


def test_landmarks_name_pictures_as_every_file_may(folder, tmp_path):
    (folder / "Bjo\u0308rn").mkdir()
    for i in (2, 3):
        (folder / f"{i:05d}.jpg").rename(folder / "Bjo\u0308rn" / f"{i:05d}.jpg")
    shutil.rmtree(folder / "masks")
    ways = [f"{folder}/00000.jpg", ".//x/../00001.jpg", "Bj\u00f6rn\\00002.jpg", "\ufeffBjo\u0308rn/00003.jpg"]
    spell(folder, {f"{i:05d}.jpg": way for i, way in enumerate(ways)})
    report = import_photos(folder, tmp_path / "set", SIDE)
    assert report.line == "4 used of 4" and report.notes == []


def test_names_that_differ_in_their_unicode_form_alone_are_refused(folder, tmp_path):
    for form in ("NFC", "NFD"):
        shutil.copy(folder / "00000.jpg", folder / unicodedata.normalize(form, "\u00e9.jpg"))
    if len(list(folder.glob("*.jpg"))) == COUNT + 1:
        pytest.skip("this file system knows one of them only")
    with pytest.raises(DatasetError, match=r"has the name of another file.*'e\\u0301\.jpg' and '\\xe9\.jpg'"):
        import_photos(folder, tmp_path / "set", SIDE)


def test_pictures_in_linked_folders_are_used(folder, tmp_path):
    shutil.rmtree(folder / "masks")
    (tmp_path / "elsewhere").mkdir()
    (folder / "00003.jpg").rename(tmp_path / "elsewhere" / "00003.jpg")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    spell(folder, {"00003.jpg": "linked/00003.jpg"})
    assert import_photos(folder, tmp_path / "set", SIDE).line == "4 used of 4"


def test_a_picture_of_16_bits_keeps_its_tones(folder, tmp_path):
    shutil.rmtree(folder / "masks")
    grey = np.asarray(Image.open(folder / "00001.jpg").convert("L"))
    (folder / "00001.jpg").unlink()
    Image.fromarray(grey).save(folder / "00001.png")
    spell(folder, {"00001.jpg": "00001.png"})
    import_photos(folder, tmp_path / "eight", SIDE)
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "00001.png")
    import_photos(folder, tmp_path / "sixteen", SIDE)
    for one, other in zip(written(tmp_path / "eight", "48"), written(tmp_path / "sixteen", "48"), strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1


@pytest.mark.parametrize("dest", ["folder", "file.zip"])
def test_a_dest_in_use_is_refused_before_any_work(folder, tmp_path, dest):
    """The work may take hours; what it asks of other programs is not even called."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").write_text("")
    (tmp_path / "file.zip").write_text("")
    command = f"touch {tmp_path}/called {{in}} {{out}}"
    with pytest.raises(DatasetError, match="exists already; choose another --dest"):
        import_photos(folder, tmp_path / dest, SIDE, landmarks_command=command)
    assert not (tmp_path / "called").exists() and not any("partial" in name for name in os.listdir(tmp_path))


def test_a_dest_that_cannot_be_written_is_refused_before_any_work(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write anywhere
    with pytest.raises(DatasetError, match=rf"set: cannot be written: {tmp_path} is closed to this user"):
        import_photos(
            folder, tmp_path / "new" / "set", SIDE, landmarks_command=f"touch {tmp_path}/called {{in}} {{out}}"
        )
    assert not (tmp_path / "called").exists()
