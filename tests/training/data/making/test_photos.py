"""A folder of portraits becomes a set: what is used, what is skipped and said, orientation, masks."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from dataset_tool import main
from dnnlib import ROOT
from training.data.image_store import DatasetError
from training.data.making.photos import Rules, import_photos
from training.data.making.photos_crop import Framing, cut, find_crops, inside, sharpness
from training.data.making.photos_landmarks import FILE, read_landmarks
from training.data.synthetic.portraits import JAW, Photographer, take, write_portraits
from training.data.validation import inspect_set
from training.dataset import ImageDataset

COUNT, SIDE = 5, 48
SMALL = Photographer(width=200, height=150, yaw_std=0.3)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLATGAN_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def portraits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("portraits") / "in"
    return folder, write_portraits(folder, COUNT, 0, SMALL)


@pytest.fixture
def folder(portraits, tmp_path) -> Path:
    """A copy of the photographs that a test may change."""
    shutil.copytree(portraits[0], tmp_path / "in")
    return tmp_path / "in"


def landmarks(folder: Path, change) -> None:
    content = json.loads((folder / FILE).read_text())
    change(content)
    (folder / FILE).write_text(json.dumps(content))


def labels(folder: Path) -> np.ndarray:
    return np.array([label for _, label in json.loads((folder / "dataset.json").read_text())["labels"]])


def tool(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_photographs_become_a_set(portraits, tmp_path):
    code, output = tool("import", portraits[0], "--from=photos", f"--dest={tmp_path}/set", f"--resolution={SIDE}")
    assert code == 0 and f"{COUNT} used of {COUNT}\n" in output
    found = inspect_set(tmp_path / "set" / str(SIDE))
    assert found.problems == []
    dataset = ImageDataset(tmp_path / "set" / str(SIDE))
    assert len(dataset) == COUNT and dataset.resolution == SIDE and not dataset.has_masks
    assert dataset.geometry.radius == pytest.approx(2.7) and dataset.geometry.world_scale == 1.0
    true = np.array([portrait.yaw for portrait in portraits[1]])
    assert np.abs(np.arctan2(dataset.labels[:, 3], dataset.labels[:, 11]) - true).max() < np.radians(8)


def test_everything_skipped_is_counted_with_its_reason(folder, tmp_path):
    def spoil(content: dict) -> None:
        pictures = content["pictures"]
        face = pictures["00000.jpg"]["faces"][0]
        pictures["00001.jpg"]["faces"] = []
        pictures["00002.jpg"]["faces"] = [face, face]
        pictures["tiny.png"] = {"size": [200, 150], "faces": [face]}
        pictures["noise.png"] = {"faces": [np.random.default_rng(0).uniform(0, 150, (68, 2)).tolist()]}
        pictures["blur.png"] = {"faces": [face]}
        pictures["cut.png"] = {"faces": [(np.array(face) - [80, 0]).tolist()]}
        pictures["broken.png"] = {"faces": [face]}
        pictures["gone.png"] = {"faces": [face]}

    landmarks(folder, spoil)
    whole = Image.open(folder / "00000.jpg")
    whole.resize((40, 30)).save(folder / "tiny.png")
    whole.save(folder / "noise.png")
    whole.resize((16, 12)).resize((200, 150), Image.Resampling.BICUBIC).save(folder / "blur.png")
    whole.save(folder / "cut.png")
    (folder / "broken.png").write_bytes((folder / "noise.png").read_bytes()[:3000])
    whole.save(folder / "old.bmp")
    whole.save(folder / "unknown.png")
    report = import_photos(folder, tmp_path / "set", SIDE)
    reasons = {
        "without a face": ["00001.jpg"],
        "with several faces": ["00002.jpg"],
        "too small (to be enlarged more than 2 times)": ["tiny.png"],
        "whose landmarks fit no face": ["noise.png"],
        "blurred, as if enlarged": ["blur.png"],
        "that cannot be read": ["broken.png"],
        "not in the landmarks": ["unknown.png"],
        "of another format than png, jpg, jpeg, webp": ["old.bmp"],
    }
    for reason, names in reasons.items():
        assert report.skipped[reason] == names
        assert f"1 {reason} ({names[0]})" in report.line
    assert any("outside the picture" in reason and names == ["cut.png"] for reason, names in report.skipped.items())
    assert report.line.startswith("3 used of 12; the others: ") and report.total == 12
    assert report.written.count + sum(map(len, report.skipped.values())) == report.total
    assert any("1 entries name no picture (gone.png)" in note for note in report.notes)
    kept = json.loads((tmp_path / "set" / "dataset.json").read_text())
    assert kept["skipped"] == report.skipped and kept["sources"] == ["00000.jpg", "00003.jpg", "00004.jpg"]


def test_heads_that_are_turned_too_far_are_skipped(portraits, tmp_path):
    report = import_photos(portraits[0], tmp_path / "set", SIDE, rules=Rules(max_yaw=12))
    turned = report.skipped["turned further than 12 degrees to a side"]
    assert report.written.count + len(turned) == COUNT and 0 < len(turned) < COUNT
    yaw = np.degrees([p.yaw for p in portraits[1]])
    assert all(abs(yaw[int(name[:5])]) > 6 for name in turned)


def test_orientation_tags_are_undone(folder, tmp_path):
    """Stored on its side with a tag, seen upright by the detector: the same crop but for the JPEG."""
    plain = import_photos(folder, tmp_path / "plain", SIDE)
    picture = Image.open(folder / "00000.jpg")
    stored = picture.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.save(folder / "00000.jpg", exif=exif, quality=95)
    assert ImageOps.exif_transpose(Image.open(folder / "00000.jpg")).size == picture.size
    with pytest.raises(DatasetError, match='carries an EXIF orientation; "exif": "applied"'):
        import_photos(folder, tmp_path / "none", SIDE)
    landmarks(folder, lambda content: content.update(exif="applied"))
    turned = import_photos(folder, tmp_path / "turned", SIDE)
    assert np.array_equal(labels(tmp_path / "plain"), labels(tmp_path / "turned"))
    first, second = (
        np.asarray(Image.open(report.written.images / "00000.png")).astype(float) for report in (plain, turned)
    )
    assert np.abs(first - second).mean() < 2.0


def test_landmarks_of_the_picture_as_stored_give_the_same_crop(folder, tmp_path):
    """A detector that ignores the tag sees the face on its side; roll is removed anyway."""
    import_photos(folder, tmp_path / "plain", SIDE)
    picture = Image.open(folder / "00000.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.transpose(Image.Transpose.ROTATE_90).save(folder / "00000.jpg", exif=exif, quality=95)

    def turn(content: dict) -> None:
        content["exif"] = "ignored"
        faces = content["pictures"]["00000.jpg"]["faces"]
        faces[0] = [[y, picture.width - x] for x, y in faces[0]]

    landmarks(folder, turn)
    import_photos(folder, tmp_path / "turned", SIDE)
    assert np.abs(labels(tmp_path / "plain") - labels(tmp_path / "turned")).max() < 1e-3


def test_landmarks_of_a_smaller_copy_are_scaled(folder, tmp_path):
    import_photos(folder, tmp_path / "plain", SIDE)

    def halve(content: dict) -> None:
        for entry in content["pictures"].values():
            entry["faces"] = (np.array(entry["faces"]) / 2).tolist()
            entry["size"] = [100, 75]

    landmarks(folder, halve)
    import_photos(folder, tmp_path / "half", SIDE)
    assert np.abs(labels(tmp_path / "plain") - labels(tmp_path / "half")).max() < 1e-6
    landmarks(folder, lambda content: content["pictures"]["00000.jpg"].update(size=[75, 100]))
    report = import_photos(folder, tmp_path / "odd", SIDE)
    assert report.skipped == {"whose landmarks are for a picture of another shape": ["00000.jpg"]}


# ---- crops


@pytest.mark.parametrize("resolution", [32, 96, 300])
def test_a_spot_lands_where_the_crop_says(resolution):
    """Of the photograph enlarged, kept or made smaller; to a tenth of a pixel or a thousandth of the crop."""
    portrait = take(3, 1, SMALL, picture=False)
    crop = find_crops(portrait.landmarks[None, JAW:], np.array([[200.0, 150.0]]), Framing(zoom=0.8))[0][0]
    y, x = np.mgrid[:150, :200] + 0.5
    for place in ([0.3, 0.4], [0.7, 0.6]):
        spot = crop.points(np.array([place]))[0]
        wide = max(1.5, crop.side / resolution)
        blob = 255 * np.exp(-((x - spot[0]) ** 2 + (y - spot[1]) ** 2) / (2 * wide**2))
        seen = np.asarray(cut(Image.fromarray(blob.round().astype(np.uint8)), crop, resolution)).astype(float)
        seen = np.where(seen > 40, seen, 0)
        rows, columns = (np.arange(resolution) + 0.5) / resolution, (np.arange(resolution) + 0.5) / resolution
        centre = np.array([(seen.sum(0) * columns).sum(), (seen.sum(1) * rows).sum()]) / seen.sum()
        assert np.abs(centre - place).max() < 0.1 / min(resolution, 100)  # 0.05


def test_sharpness_falls_with_every_enlargement(portraits):
    picture = Image.open(portraits[0] / "00000.jpg").crop((40, 20, 140, 120))
    values = [
        sharpness(
            picture.resize((100 // k,) * 2, Image.Resampling.LANCZOS).resize((100, 100), Image.Resampling.BICUBIC)
        )
        for k in (1, 2, 4)
    ]
    assert values[0] > 4 * values[1] and values[1] > 2 * values[2]


# ---- masks


def program(tmp_path: Path, line: str) -> str:
    """A mask command that runs `line` for each path, with image as a float array [H, W, 3], to give a mask."""
    script = tmp_path / "mask.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nimport numpy as np\nfrom PIL import Image\n"
        "y, x = np.mgrid[-1:1:48j, -1:1:48j]\nhead = np.hypot(x, 0.8 * y) < 0.7\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        f"    out = Path(sys.argv[2]) / path.name\n    picture = Image.open(path)\n    {line}\n"
    )
    return f"{sys.executable} {script} {{in}} {{out}}"


def test_masks_come_from_any_program(portraits, tmp_path):
    """A grey mask, or the cut-out's alpha channel."""
    grey = program(tmp_path, "Image.fromarray(np.uint8(255 * head)).save(out)")
    report = import_photos(portraits[0], tmp_path / "grey", SIDE, mask_command=grey)
    cutout = program(tmp_path, "picture.putalpha(Image.fromarray(np.uint8(255 * head))); picture.save(out)")
    import_photos(portraits[0], tmp_path / "cut", SIDE, mask_command=cutout)
    assert report.written.count == COUNT and ImageDataset(report.written.images).has_masks
    for i in range(COUNT):
        masks = [np.asarray(Image.open(tmp_path / name / "mask" / f"{i:05d}.png")) for name in ("grey", "cut")]
        assert np.array_equal(*masks) and masks[0].max() == 255
    assert inspect_set(report.written.images).problems == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Image.fromarray(np.uint8(255 * ~head)).save(out)", "masks look inverted"),
        ("Image.fromarray(np.uint8(head)).save(out)", "reach 1 of 255"),
        ("Image.fromarray(np.uint8(0 * head)).save(out)", "all 5 masks are empty"),
        ("picture.save(out)", "a coloured picture and no mask"),
        ("picture.resize((48, 20)).save(out)", "00000.png is 48x20 pixels"),
        ("path.name > '00001.png' or picture.convert('L').save(out)", "wrote no 00002.png"),
        ("sys.exit('no model')", "ended with exit code 1: no model"),
        ("pass", "wrote nothing into {out}"),
    ],
)
def test_masks_of_a_program_are_judged(portraits, tmp_path, line, message):
    with pytest.raises(DatasetError) as error:
        import_photos(portraits[0], tmp_path / "set", SIDE, mask_command=program(tmp_path, line))
    assert "--mask-command" in str(error.value) and message in str(error.value)
    assert not (tmp_path / "set").exists()


def test_a_single_wrong_mask_costs_its_picture(portraits, tmp_path):
    line = "Image.fromarray(np.uint8(255 * head * (path.name != '00003.png'))).save(out)"
    report = import_photos(portraits[0], tmp_path / "set", SIDE, mask_command=program(tmp_path, line))
    assert report.skipped == {"with an empty mask": ["00003.jpg"]}
    assert report.line == "4 used of 5; the others: 1 with an empty mask (00003.jpg)"


def test_masks_beside_the_pictures_are_cut_with_them(portraits, folder, tmp_path):
    (folder / "masks").mkdir()
    for i, portrait in enumerate(portraits[1]):
        Image.fromarray(portrait.mask).save(folder / "masks" / f"{i:05d}.png")
    report = import_photos(folder, tmp_path / "set", SIDE)
    assert report.written.count == report.total == COUNT  # masks are no pictures
    for i in range(COUNT):
        mask = np.asarray(Image.open(tmp_path / "set" / "mask" / f"{i:05d}.png"))
        assert mask[SIDE // 2, SIDE // 2] == 255 and mask[:4, :4].max() < 255
    (folder / "masks" / "00004.png").unlink()
    with pytest.raises(DatasetError, match=r"1 of 5 pictures have no mask there \(00004.jpg\)"):
        import_photos(folder, tmp_path / "other", SIDE)


def test_outside_the_photograph_is_no_subject(portraits):
    portrait = portraits[1][0]
    points = portrait.landmarks[None, JAW:] - [70, 0]
    crop = find_crops(points, np.array([[200.0, 150.0]]), Framing(zoom=0.7))[0][0]
    seen = inside(crop, (200, 150), 64)
    assert 1 - seen.mean() == pytest.approx(crop.outside((200, 150)), abs=0.02)
    assert 0.05 < seen.mean() < 0.95


# ---- landmarks.json

_json = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)
_entry = st.fixed_dictionaries({"faces": _json | st.lists(st.lists(st.tuples(st.floats(), st.floats()), min_size=68, max_size=68), max_size=2)}, optional={"size": _json})  # fmt: skip # noqa: E501


@settings(max_examples=60, deadline=None)
@given(content=_json | st.fixed_dictionaries({"order": st.sampled_from(["dlib68", "x"]) | _json, "pictures": st.dictionaries(st.sampled_from(["a.jpg", "b\\c.png", "./d"]), _entry | _json, max_size=3)}, optional={"exif": _json}))  # fmt: skip # noqa: E501
def test_any_json_is_read_or_refused_in_one_line(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / FILE
    path.write_text(json.dumps(content))
    try:
        found = read_landmarks(path)
    except DatasetError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
    else:
        assert len(found.faces) == len(content["pictures"])
        assert all(np.isfinite(faces).all() and faces.shape[1:] == (51, 2) for faces in found.faces.values())


@settings(max_examples=12, deadline=None)
@given(lost=st.sets(st.integers(0, COUNT - 1)), empty=st.sets(st.integers(0, COUNT - 1)), wild=st.sets(st.integers(0, COUNT - 1)))  # fmt: skip # noqa: E501
def test_never_fewer_pictures_than_said(portraits, tmp_path_factory, lost, empty, wild):
    tmp = tmp_path_factory.mktemp("said")
    content = json.loads((portraits[0] / FILE).read_text())
    for i in empty:
        content["pictures"][f"{i:05d}.jpg"]["faces"] = []
    for i in wild - empty:
        content["pictures"][f"{i:05d}.jpg"]["faces"] = [np.random.default_rng(i).uniform(0, 150, (68, 2)).tolist()]
    for i in lost:
        del content["pictures"][f"{i:05d}.jpg"]
    (tmp / FILE).write_text(json.dumps(content))
    try:
        report = import_photos(portraits[0], tmp / "set", 16, landmarks=tmp / FILE)
    except DatasetError as error:
        assert lost | empty | wild == set(range(COUNT)), error
        return
    said = sum(map(len, report.skipped.values()))
    assert report.written.count + said == COUNT == report.total
    assert report.written.count == len(labels(tmp / "set")) == COUNT - len(lost | empty | wild)
    assert report.line.startswith(f"{report.written.count} used of {COUNT}")


def test_a_photograph_through_mediapipe(tmp_path):
    """scikit-image's astronaut, who looks at the camera. PHOTOS_PYTHON names a Python that has both packages."""
    python = os.environ.get("PHOTOS_PYTHON", sys.executable)
    save = "import sys, mediapipe, skimage.data; from PIL import Image; "
    save += "Image.fromarray(skimage.data.astronaut()).save(sys.argv[1])"
    (tmp_path / "in").mkdir()
    done = subprocess.run([python, "-c", save, str(tmp_path / "in" / "astronaut.png")], capture_output=True)
    if done.returncode:
        pytest.skip("needs mediapipe and scikit-image")
    part = f"{python} -m training.data.making.mediapipe"
    code, output = tool(
        "import", tmp_path / "in", "--from=photos", f"--dest={tmp_path}/set", "--resolution=96",
        f"--landmarks-command=env PYTHONPATH={ROOT} {part}_landmarks {{in}} {{out}}",
        f"--mask-command=env PYTHONPATH={ROOT} {part}_masks {{in}} {{out}}",
    )  # fmt: skip
    assert code == 0 and "1 used of 1\n" in output, output
    pose = labels(tmp_path / "set")[0, :16].reshape(4, 4)
    yaw, pitch = np.degrees([np.arctan2(pose[0, 3], pose[2, 3]), np.arcsin(pose[1, 3] / 2.7)])
    assert abs(yaw) < 8 and abs(pitch) < 12  # 0.1 and 5.2
    mask = np.asarray(Image.open(tmp_path / "set" / "mask" / "00000.png"))
    assert mask[48, 48] > 250 and mask[60:, :4].mean() < 128
