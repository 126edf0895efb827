"""Names of files mean the same to every reader, however the program that wrote them spells them."""

import json
import os
import unicodedata
import zipfile

import numpy as np
import pytest
from click.testing import CliRunner

from dataset_tool import main
from tests.training.data import dots
from training.data.image_store import DatasetError
from training.data.label_file import LabelError, parse_labels
from training.data.making.importers import import_colmap, import_transforms
from training.data.names import Folder, stem_of, tidy
from training.data.validation import inspect_set, validate_set
from training.dataset import ImageDataset

NUM = 4
COMPOSED = unicodedata.normalize("NFC", "Bjo\u0308rn")
APART = unicodedata.normalize("NFD", COMPOSED)
# What a name may look like that means "00000.png", with the folder of the images to fill in.
SPELT = {
    "plain": "{}.png",
    "dot": "./{}.png",
    "dots": "sub/../{}.png",
    "backslash": ".\\{}.png",
    "doubled": ".//{}.png",
    "absolute": "{root}/{}.png",
    "byte order mark": "\ufeff{}.png",
    "other ending": "{}.JPG",
    "no ending": "{}",
    "from beside": "../64/{}.png",
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLATGAN_CACHE_DIR", str(tmp_path / "cache"))


def spelt(way: str, root, name: str) -> str:
    return SPELT[way].replace("{root}", str(root)).replace("{}", name)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.png", "a.png"), ("./a.png", "a.png"), ("x\\y\\a.png", "x/y/a.png"), ("x//./y/../a.png", "x/a.png"),
        ("/r/s/a.png", "a.png"), ("//r/s/a.png", "/r/s/a.png"), ("/other/a.png", "/other/a.png"),
        ("../s/a.png", "a.png"),
        ("../t/a.png", "../t/a.png"), ("\ufeffa.png", "a.png"), (APART, COMPOSED), ("", ""), (".", "."),
    ],
)  # fmt: skip
def test_tidy(name, found):
    assert tidy(name, ["/r/s"]) == found and tidy(tidy(name, ["/r/s"]), ["/r/s"]) in (found, tidy(found, ["/r/s"]))


@pytest.mark.parametrize(
    ("name", "found"), [("view.01.png", "view.01"), ("view.01", "view.01"), ("a/b.JPEG", "a/b"), (".png", ".png")]
)
def test_only_the_ending_of_a_picture_is_taken_off(name, found):
    assert stem_of(name) == found


def test_a_label_of_a_name_with_a_dot_is_found(tmp_path):
    """`view.01` without an ending is not `view`."""
    names = [f"view.{i:02d}" for i in range(NUM)]
    images = dots.write_set(tmp_path, dots.arc(NUM), label_names=names)
    for i, name in enumerate(names):
        (images / f"{i:05d}.png").rename(images / f"{name}.png")
    assert validate_set(images) == []


OUTSIDE = ("absolute", "from beside")  # ways that a zip has no place for


@pytest.mark.parametrize(
    ("way", "zipped"), [(way, zipped) for way in SPELT for zipped in (False, True) if not (zipped and way in OUTSIDE)]
)
def test_label_files(tmp_path, way, zipped):
    names = [spelt(way, tmp_path / "64", f"{i:05d}") for i in range(NUM)]
    images = dots.write_set(tmp_path, dots.arc(NUM), label_names=names)
    if zipped:
        path = tmp_path / "set.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in (tmp_path / "dataset.json", *images.iterdir()):
                archive.write(file, f"./{file.relative_to(tmp_path)}")
        images = path
    found = inspect_set(images)
    assert found.problems == [] and found.notes == [] and len(ImageDataset(images)) == NUM


def test_names_of_another_place_get_one_line_that_shows_both(tmp_path):
    images = dots.write_set(tmp_path, dots.arc(NUM), label_names=[f"/old/place/{i:05d}.png" for i in range(NUM)])
    (problem,) = validate_set(images)
    assert "none of its 4 labels" in problem and "/old/place/00000.png" in problem and "'64/00000.png'" in problem
    with pytest.raises(LabelError, match="none of its 4 labels"):
        ImageDataset(images)


def test_two_spellings_of_one_name_are_two_labels():
    data = json.dumps({"labels": [["a.png", []], ["./a.png", []]]}).encode()
    with pytest.raises(LabelError, match=r"\./a\.png: has two labels, also as a\.png"):
        parse_labels("dataset.json", data)


def test_pictures_and_labels_of_two_unicode_forms_are_told_apart_in_ascii(tmp_path):
    """On a screen both look alike."""
    images = dots.write_set(tmp_path, dots.arc(NUM))
    content = json.loads((tmp_path / "dataset.json").read_text())
    for i, name in ((2, COMPOSED), (3, APART)):
        (images / f"{i:05d}.png").rename(images / f"{name}.png")
        content["labels"][i][0] = f"{name}.png"
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert validate_set(images) == [
        f"{tmp_path}/dataset.json: {APART}.png: has two labels, in two Unicode forms: "
        "'Bj\\xf6rn.png' and 'Bjo\\u0308rn.png'"
    ]
    del content["labels"][3]
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    (problem,) = validate_set(images)
    assert "apart from the Unicode form" in problem and "'64/Bj\\xf6rn'" in problem and "u0308" in problem


@pytest.mark.parametrize("text", ['{"labels": [], "labels": []}', '{"labels": [], "x": {"a": 1, "b": 2, "a": 1}}'])
def test_a_key_that_is_there_twice_is_refused(text):
    """JSON takes the last one in silence; every reader of the project calls `parse_json`."""
    with pytest.raises(LabelError, match=r'^d\.json: has the key "(labels|a)" twice in one object'):
        parse_labels("d.json", text.encode())


def test_a_label_file_may_begin_with_a_byte_order_mark(tmp_path):
    images = dots.write_set(tmp_path, dots.arc(NUM))
    file = tmp_path / "dataset.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert validate_set(images) == []


@pytest.mark.parametrize(("on_disk", "in_file"), [(APART, COMPOSED), (COMPOSED, APART)])
def test_unicode_forms_mean_the_same_to_every_reader(tmp_path, on_disk, in_file):
    """A Mac writes names decomposed, other systems keep them as they were typed."""
    images = dots.write_set(tmp_path / "set", dots.arc(NUM), label_names=[f"{in_file}{i}.png" for i in range(NUM)])
    (tmp_path / "set" / "mask").mkdir()
    for i in range(NUM):
        (images / f"{i:05d}.png").rename(images / f"{on_disk}{i}.png")
        dots.Image.new("L", (64, 64), 255).save(tmp_path / "set" / "mask" / f"{in_file}{i}.png")
    assert validate_set(images) == []
    (tmp_path / "set" / "mine.json").write_text(json.dumps([f"{in_file}1.png"]))
    assert len(ImageDataset(images, "mine")) == 1
    names = [f"{on_disk}{i}.png" for i in range(NUM)]
    dots.write_pictures(tmp_path / "c", dots.arc(NUM), names=names)
    dots.write_model(tmp_path / "c", dots.arc(NUM), names=[f"{in_file}{i}.png" for i in range(NUM)])
    assert import_colmap(tmp_path / "c", tmp_path / "one").count == NUM


@pytest.mark.parametrize("way", ["plain", "dot", "dots", "backslash", "doubled", "absolute", "byte order mark"])
def test_frames_and_models(tmp_path, way):
    poses = dots.arc(NUM)
    shared = {"fl_x": 200, "cx": 128, "cy": 128, "w": 256, "h": 256}
    dots.write_frames(tmp_path / "t", poses, shared)
    content = json.loads((tmp_path / "t" / "transforms.json").read_text())
    for i, frame in enumerate(content["frames"]):
        name = spelt(way, tmp_path / "t" / "images", f"frame_{i:05d}")
        name = name.replace("sub/../", "../images/")
        mark = name[:1] if way == "byte order mark" else ""
        frame["file_path"] = name if way == "absolute" else f"{mark}images/{name.removeprefix(mark)}"
    (tmp_path / "t" / "transforms.json").write_text(json.dumps(content))
    assert import_transforms(tmp_path / "t", tmp_path / "one").count == NUM
    dots.write_pictures(tmp_path / "c", poses)
    names = [spelt(way, tmp_path / "c" / "images", f"img_{i:03d}") for i in range(NUM)]
    dots.write_model(tmp_path / "c", poses, names=[n.replace("sub/../", "../images/") for n in names])
    assert import_colmap(tmp_path / "c", tmp_path / "two").count == NUM


def test_backslashes_of_windows_are_folders_unless_a_file_is_called_so(tmp_path):
    """The case from the field, with its exception."""
    dots.write_frames(
        tmp_path / "t", dots.arc(10), {"fl_x": 200}, lambda i: {"file_path": f"images\\frame_{i:05d}.png"}
    )
    report = import_transforms(tmp_path / "t", tmp_path / "set")
    assert report.count == 10 and dots.miss(report.images) < 0.3
    dots.Image.new("RGB", (256, 256)).save(tmp_path / "t" / "images\\frame_00000.png")
    report = import_transforms(tmp_path / "t", tmp_path / "other")
    assert np.asarray(dots.Image.open(report.images / "00009.png")).max() == 0  # sorted behind the others
    content = json.loads((report.images.parent / "dataset.json").read_text())
    assert content["sources"][9] == "images\\frame_00000.png"


@pytest.mark.parametrize("way", ["plain", "dot", "backslash", "absolute", "byte order mark", "other ending"])
def test_index_lists_and_scores(tmp_path, way):
    images = dots.write_set(tmp_path, dots.arc(NUM))
    (tmp_path / "mine.json").write_text(json.dumps([spelt(way, images, "00002")] * 3))
    dataset = ImageDataset(images, "mine")
    assert len(dataset) == 3 and dataset.names([0]) == [str(images / "00002.png")]
    scores = {spelt(way, images, f"{i:05d}"): float(i == 1) for i in range(NUM)}
    (tmp_path / "s.json").write_text(json.dumps(scores))
    wanted = ["rebalance", images, f"--out={tmp_path}/l.json", f"--scores={tmp_path}/s.json", "--num=3"]
    result = CliRunner().invoke(main, [str(a) for a in wanted])
    assert result.exit_code == 0 and json.loads((tmp_path / "l.json").read_text()) == [1, 1, 1], result.output


def test_a_folder_follows_links_and_not_in_circles(tmp_path):
    place, other = tmp_path / "place", tmp_path / "other"
    for folder in (place / "in", other):
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(b"")
    (place / "linked").symlink_to(other)
    (other / "back").symlink_to(place)
    (place / "again").symlink_to(other)
    found = [path.relative_to(place).as_posix() for path in Folder(place).files()]
    assert found == ["again/a.png", "in/a.png"] and Folder(tmp_path / "gone").files() == []


@pytest.mark.skipif(os.getuid() == 0, reason="root may read any folder")
def test_a_folder_that_cannot_be_listed_is_named(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(DatasetError, match=r"closed: cannot be listed: Permission denied"):
        Folder(tmp_path).files()


def test_a_folder_finds_nothing_outside_and_nothing_ambiguous(tmp_path):
    (tmp_path / "in").mkdir()
    for name in (APART, COMPOSED):
        (tmp_path / "in" / name).write_text("x")
    folder = Folder(tmp_path / "in")
    assert folder.find(COMPOSED) == tmp_path / "in" / COMPOSED  # called exactly so
    for name in ("", ".", "..", "a\0b", "x" * 5000, "none", "/etc/none"):
        assert folder.find(name) is None
    assert [os.path.basename(p) for p in folder.files()] == sorted([APART, COMPOSED])


def test_a_picture_that_is_not_there_is_named_as_the_file_has_it(tmp_path):
    dots.write_frames(tmp_path / "t", dots.arc(2), {"fl_x": 200}, lambda i: {"file_path": "images\\gone.png"})
    with pytest.raises(DatasetError, match=r"images\\gone\.png: no such picture"):
        import_transforms(tmp_path / "t", tmp_path / "set")
