"""COLMAP models as they come: several, without lines of points, of newer versions, with distortion, turned pictures."""

import json
import math
import struct

import numpy as np
import pytest
from PIL import Image

from dnnlib import ROOT
from tests.training.data import dots
from training.data.image_store import DatasetError
from training.data.making.colmap import read_largest, read_model
from training.data.making.importers import import_colmap
from training.data.making.reshape import MIRRORING, TRANSPOSING, Distortion, Turn

WRITTEN = ROOT / "tests" / "data" / "colmap-4.2"  # by pycolmap 4.2.1: two rigs of two cameras each, three frames
TURNED = 6  # the EXIF orientation of a telephone that is held upright


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Eleven pictures of dots; models are written beside them."""
    folder = tmp_path_factory.mktemp("project")
    dots.write_pictures(folder, dots.arc(11))
    return folder


def beside(project, tmp_path):
    """Returns a project folder of its own with the pictures of `project`."""
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "images").symlink_to(project / "images")
    return tmp_path / "p"


@pytest.mark.parametrize("kind", ["text", "binary"])
def test_poses_of_rigs_are_those_of_colmap(kind):
    """Files of rigs and frames lie beside the model, as from 3.12 on."""
    views = read_model(WRITTEN / kind)
    poses = json.loads((WRITTEN / "poses.json").read_text())
    assert sorted(poses) == [view.name for view in views] and len(views) == 12
    for view in views:
        assert np.abs(view.cam2world[:3] - poses[view.name]).max() < 1e-12
        assert view.camera.distortion == Distortion(0.02, -0.01, 0.001, 0.0)
        assert view.camera.intrinsics[1, 1] == pytest.approx(81 / 48)


@pytest.mark.parametrize("points", ["", "\n", "1.5 2.5 -1 3.5 4.5 7\n", "10 20 -1 30 40 -1 50 60 5 70 80 9\n"])
@pytest.mark.parametrize("marks", ["", "\ufeff"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_no_picture_of_a_text_model_is_lost(tmp_path, points, marks, ends):
    """Whatever stands for the lines of points, and whatever a foreign editor has made of the lines."""
    folder = dots.write_model(tmp_path, dots.arc(11), points=points)
    for name in ("cameras.txt", "images.txt"):
        text = marks + (folder / name).read_text().replace("\n", ends)
        (folder / name).write_bytes(text.encode())
    views = read_model(folder)
    assert [view.name for view in views] == [f"img_{i:03d}.png" for i in range(11)]
    for view, pose in zip(views, dots.arc(11), strict=True):
        assert np.abs(view.cam2world - pose).max() < 1e-12


def test_half_a_binary_model_beside_a_text_one_is_told(tmp_path):
    """Of a folder with both kinds the one that is whole is read, the binary one first, as COLMAP does."""
    folder = dots.write_model(tmp_path, dots.arc(3))
    (folder / "images.bin").write_bytes(struct.pack("<Q", 0))
    _, views, notes = read_largest(tmp_path)
    assert len(views) == 3 and notes == [
        f"{folder}: cameras.txt and images.txt are read, and not images.bin beside them"
    ]
    for path in (WRITTEN / "binary").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    _, views, notes = read_largest(tmp_path)
    assert len(views) == 12
    assert notes == [f"{folder}: cameras.bin and images.bin are read, and not cameras.txt and images.txt beside them"]


def test_a_line_that_is_neither_picture_nor_points_is_named(tmp_path):
    folder = dots.write_model(tmp_path, dots.arc(3), points="1.5 2.5\n")
    with pytest.raises(DatasetError, match=r"images\.txt: .*the line 2, '1\.5 2\.5', is not number"):
        read_model(folder)


def test_a_head_that_states_more_pictures_is_told(tmp_path):
    dots.write_model(tmp_path, dots.arc(3), head="# Number of images: 5, mean observations per image: 20\n")
    _, views, notes = read_largest(tmp_path)
    assert len(views) == 3 and "says that it has 5 pictures and has 3" in notes[0]


def test_text_models_without_lines_of_points_are_imported_whole(project, tmp_path):
    """The case from the field."""
    dots.write_model(beside(project, tmp_path), dots.arc(11), points="")
    report = import_colmap(tmp_path / "p", tmp_path / "set")
    assert report.count == 11 and report.notes == [] and dots.miss(report.images) < 0.3


@pytest.mark.parametrize("first", [0, 1])
def test_the_largest_model_is_taken_and_the_others_are_named(project, tmp_path, first):
    """The case from the field, and its mirror image."""
    folder = beside(project, tmp_path)
    dots.write_model(folder, dots.arc(11)[:3], model=f"sparse/{first}")
    dots.write_model(folder, dots.arc(11), model=f"sparse/{1 - first}")
    report = import_colmap(folder, tmp_path / "set")
    assert report.count == 11 and dots.miss(report.images) < 0.3
    assert f"holds 2 models: {'0 with 3' if first == 0 else '0 with 11'} pictures" in report.notes[0]
    report = import_colmap(folder / "sparse" / str(first), tmp_path / "other")
    assert report.count == 3 and "3 used of 11 pictures; of the others 8 are not registered" in report.notes[0]


def test_a_model_that_cannot_be_read_is_named_beside_the_one_taken(project, tmp_path):
    folder = beside(project, tmp_path)
    dots.write_model(folder, dots.arc(11)[:3], model="sparse/0")
    dots.write_model(folder, dots.arc(11), model="sparse/1")
    (folder / "sparse" / "1" / "images.txt").write_text("hello\n")
    report = import_colmap(folder, tmp_path / "set")
    assert report.count == 3 and "1, which cannot be read" in report.notes[0]


def test_pictures_in_folders_without_a_camera_and_of_other_formats_are_counted(tmp_path):
    names = [f"{'left' if i % 2 else 'right'}/img {i:03d}.png" for i in range(11)]
    dots.write_pictures(tmp_path, dots.arc(11), names=names)
    dots.write_model(tmp_path, dots.arc(9), names=names[:9])
    (tmp_path / "images" / "left" / "IMG_7.HEIC").write_bytes(b"x")
    report = import_colmap(tmp_path, tmp_path / "set")
    assert report.count == 9
    (note,) = report.notes
    assert "9 used of 12 pictures" in note and "2 are not registered in the model (such as left/img 009.png)" in note
    assert "1 of a format that is not read (left/IMG_7.HEIC)" in note


@pytest.mark.parametrize("source", [".", "sparse/0"])
@pytest.mark.parametrize("named", [False, True])
def test_masks_of_no_picture_are_counted_wherever_the_model_is_named(tmp_path, source, named):
    dots.write_pictures(tmp_path, dots.arc(4))
    dots.write_model(tmp_path, dots.arc(4))
    (tmp_path / "masks").mkdir()
    Image.new("L", (256, 256), 255).save(tmp_path / "masks" / "other.png")
    images = tmp_path / "images" if named else None
    (note,) = import_colmap(tmp_path / source, tmp_path / "set", images).notes
    assert "0 used of 1 masks; the others are of no picture used: other.png" in note
    assert not (tmp_path / "set" / "mask").exists()


def test_a_mask_that_may_be_of_two_pictures_is_refused(tmp_path):
    names = ["a.png", "a.jpg"]
    dots.write_pictures(tmp_path, dots.arc(2), names=names)
    dots.write_model(tmp_path, dots.arc(2), names=names)
    (tmp_path / "masks").mkdir()
    Image.new("L", (256, 256), 255).save(tmp_path / "masks" / "a.png")
    with pytest.raises(
        DatasetError, match=r"masks/a\.png: may be the mask of a\.jpg or of a\.png; a\.png\.png is legal"
    ):
        import_colmap(tmp_path, tmp_path / "set")
    for name in names:
        Image.new("L", (256, 256), 255).save(tmp_path / "masks" / f"{name}.png")
    (tmp_path / "masks" / "a.png").unlink()
    assert import_colmap(tmp_path, tmp_path / "set").count == 2


@pytest.mark.parametrize("twice", ["img_000.png", "./img_000.png"])
def test_a_picture_with_two_poses_is_refused(project, tmp_path, twice):
    folder = beside(project, tmp_path)
    dots.write_model(folder, dots.arc(2), names=["img_000.png", twice])
    with pytest.raises(DatasetError, match="two poses"):
        import_colmap(folder, tmp_path / "set")


def binary_camera(folder, number: int, values: list[float]) -> None:
    (folder / "cameras.txt").unlink()
    (folder / "cameras.bin").write_bytes(struct.pack(f"<QiiQQ{len(values)}d", 1, 1, number, 256, 256, *values))


@pytest.mark.parametrize("number", [11, 12, 17, 99, -1])
def test_a_model_number_that_is_not_known_is_named(project, tmp_path, number):
    """The case from the field."""
    folder = beside(project, tmp_path)
    binary_camera(dots.write_model(folder, dots.arc(11)), number, [200.0, 200.0, 128.0, 128.0] + [0.0] * 12)
    with pytest.raises(DatasetError) as refused:
        import_colmap(folder, tmp_path / "set")
    words = (f"camera 1: has the model number {number}, which is not known", "PINHOLE and SIMPLE_PINHOLE are legal")
    assert all(word in str(refused.value) for word in (*words, "image_undistorter"))


@pytest.mark.parametrize(
    ("camera", "message"),
    [
        ("RAD_TAN_THIN_PRISM_FISHEYE 256 256 200 200 128 128", "RAD_TAN_THIN_PRISM_FISHEYE, which is not known"),
        ("OPENCV_FISHEYE 256 256 200 200 128 128 0 0 0 0", "OPENCV_FISHEYE .*not undone.*image_undistorter"),
        ("FOV 256 256 200 200 128 128 0.1", "FOV .*not undone"),
        ("PINHOLE 256 256 200 128 128", "has 3 parameters; PINHOLE has 4"),
        ("PINHOLE 256 256 200 200 128 128 0", "has 5 parameters; PINHOLE has 4"),
        ("OPENCV 256 256 200 200 128 128 0 0 nan 0", "all numbers finite"),
        ("PINHOLE 256 0 200 200 128 128", "pictures of 256x0 pixels"),
        ("PINHOLE 256 256 200 200 0.5 0.5", "the principal point 0.5, 0.5 must be in pixels"),
    ],
)
def test_cameras_that_cannot_be_used_are_named(project, tmp_path, camera, message):
    folder = beside(project, tmp_path)
    dots.write_model(folder, dots.arc(2), camera)
    with pytest.raises(DatasetError, match=rf"cameras\.txt: camera 1: .*{message}"):
        import_colmap(folder, tmp_path / "set")


def test_a_camera_that_no_picture_has_is_not_looked_at(project, tmp_path):
    folder = beside(project, tmp_path)
    model = dots.write_model(folder, dots.arc(11))
    with open(model / "cameras.txt", "a") as file:
        file.write("2 OPENCV_FISHEYE 256 256 200 200 128 128 0 0 0 0\n")
    assert import_colmap(folder, tmp_path / "set").count == 11


# ---- distortion


LENSES = {
    "SIMPLE_RADIAL 256 256 200 128 128 -0.2": Distortion(k1=-0.2),
    "RADIAL 256 256 200 128 128 0.25 -0.1": Distortion(k1=0.25, k2=-0.1),
    "OPENCV 256 256 200 200 128 128 -0.3 0.08 0.01 -0.012": Distortion(-0.3, 0.08, 0.01, -0.012),
}


@pytest.mark.parametrize("camera", LENSES)
def test_distorting_lenses_are_undistorted_with_their_masks_and_it_is_said(tmp_path, camera):
    lens = LENSES[camera]
    dots.write_pictures(tmp_path, dots.arc(11), bend=lens.distort)
    dots.write_model(tmp_path, dots.arc(11), camera)
    (tmp_path / "masks").mkdir()
    for path in sorted((tmp_path / "images").iterdir()):
        away = np.abs(np.asarray(Image.open(path)).astype(int) - dots.GREY).max(-1)
        Image.fromarray(((away > 8) * 255).astype(np.uint8)).save(tmp_path / "masks" / f"{path.name}.png")
    report = import_colmap(tmp_path, tmp_path / "set", resolution=256)
    assert dots.miss(report.images) < 0.3  # 0.07 seen; 0.9 and more where distortion is not undone
    assert any("11 of 11 pictures were undistorted and resampled" in note for note in report.notes)
    image = np.asarray(Image.open(report.images / "00003.png")).astype(int)
    mask = np.asarray(Image.open(report.images.parent / "mask" / "00003.png"))
    seen = np.abs(image - dots.GREY).max(-1)
    assert (mask[seen > 120] > 120).mean() > 0.99 and (mask[seen < 3] < 30).mean() > 0.98  # edges are soft
    with pytest.raises(DatasetError, match="--distortion=refuse"):
        import_colmap(tmp_path, tmp_path / "other", distortion="refuse")


def test_cameras_of_several_kinds_in_one_model(tmp_path):
    """Pictures of two sizes and lenses; the second one's distortion alone is undone."""
    poses, lens = dots.arc(10), Distortion(k1=-0.2)
    names = [f"img_{i:03d}.png" for i in range(10)]
    dots.write_pictures(tmp_path, poses[:5], names=names[:5])
    dots.write_pictures(tmp_path, poses[5:], dots.matrix(260, 320, 240), (320, 240), names[5:], bend=lens.distort)
    model = dots.write_model(tmp_path, poses)
    with open(model / "cameras.txt", "a") as file:
        file.write("7 SIMPLE_RADIAL 320 240 260 160 120 -0.2\n")
    lines = (model / "images.txt").read_text().split("\n")
    for row in range(10, 20, 2):
        lines[row] = lines[row].replace(" 1 img", " 7 img")
    (model / "images.txt").write_text("\n".join(lines))
    report = import_colmap(tmp_path, tmp_path / "set", resolution=200, crop="centre")
    assert report.count == 10 and dots.miss(report.images) < 0.3
    assert any("5 of 10 pictures were undistorted" in note for note in report.notes)


# ---- orientation


def tagged(tag: int):
    def saver(image, path, index):
        exif = Image.Exif()
        exif[0x0112] = tag
        image.save(path, exif=exif, **({"quality": 95} if path.suffix == ".jpg" else {}))

    return saver


@pytest.mark.parametrize(("tag", "roll"), [(6, math.pi / 2), (8, -math.pi / 2), (3, math.pi)])
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_turned_pictures_are_turned_upright_with_their_cameras(tmp_path, tag, roll, ending):
    """The case from the field: cameras are for the pixels as stored, rolled by a quarter turn or half a turn."""
    poses, names = dots.arc(11, roll), [f"img_{i:03d}.{ending}" for i in range(11)]
    dots.write_pictures(tmp_path, poses, dots.matrix(260, 320, 240), (320, 240), names, tagged(tag))
    dots.write_model(tmp_path, poses, "PINHOLE 320 240 260 260 160 120", names)
    report = import_colmap(tmp_path, tmp_path / "set", crop="centre")
    yaw, pitch, up = dots.angles(report.images)
    assert up[1] > 0.99 and abs(yaw).max() == pytest.approx(0.5, abs=0.03) and abs(pitch).max() < 0.2
    assert dots.miss(report.images) < 0.3  # 0.14 seen
    assert any(f"carry the EXIF orientation {tag}" in note for note in report.notes)


def test_cameras_for_upright_pictures_are_left_and_the_pixels_are_turned(tmp_path):
    """Width and height say so: the camera's are those of the turned picture."""
    poses, names = dots.arc(11), [f"img_{i:03d}.png" for i in range(11)]

    def lying(image, path, index):
        tagged(TURNED)(Turn(TURNED).undo(image), path, index)

    dots.write_pictures(tmp_path, poses, dots.matrix(260, 240, 320), (240, 320), names, lying)
    dots.write_model(tmp_path, poses, "PINHOLE 240 320 260 260 120 160", names)
    report = import_colmap(tmp_path, tmp_path / "set", crop="centre")
    assert dots.miss(report.images) < 0.3 and dots.angles(report.images)[2][1] > 0.99
    assert any("their cameras are for upright pictures" in note for note in report.notes)


@pytest.mark.parametrize("upright", [False, True])
def test_masks_follow_whichever_way_their_program_has_written_them(tmp_path, upright):
    poses, names = dots.arc(5, math.pi / 2), [f"img_{i:03d}.jpg" for i in range(5)]
    dots.write_pictures(tmp_path, poses, dots.matrix(260, 320, 240), (320, 240), names, tagged(TURNED))
    dots.write_model(tmp_path, poses, "PINHOLE 320 240 260 260 160 120", names)
    (tmp_path / "masks").mkdir()
    for name in names:
        away = np.abs(np.asarray(Image.open(tmp_path / "images" / name)).astype(int) - dots.GREY).max(-1)
        mask = Image.fromarray(((away > 40) * 255).astype(np.uint8))
        (Turn(TURNED).apply(mask) if upright else mask).save(tmp_path / "masks" / f"{name}.png")
    report = import_colmap(tmp_path, tmp_path / "set", crop="centre")
    image = np.asarray(Image.open(report.images / "00001.png")).astype(int)
    mask = np.asarray(Image.open(report.images.parent / "mask" / "00001.png"))
    away = np.abs(image - dots.GREY).max(-1)
    assert (mask[away > 60] == 255).mean() > 0.95 and (mask[away < 5] == 0).mean() > 0.99


@pytest.mark.parametrize("tag", [TURNED, 2, 3])
def test_masks_that_may_be_meant_either_way_are_refused(tmp_path, tag):
    dots.write_pictures(tmp_path, dots.arc(3), saver=tagged(tag))
    dots.write_model(tmp_path, dots.arc(3))
    (tmp_path / "masks").mkdir()
    for i in range(3):
        Image.new("L", (256, 256), 255).save(tmp_path / "masks" / f"img_{i:03d}.png")
    with pytest.raises(DatasetError, match="as stored or upright; take the tag out"):
        import_colmap(tmp_path, tmp_path / "set")


@pytest.mark.parametrize("tag", MIRRORING)
def test_mirroring_orientations_are_named_and_not_heeded(tmp_path, tag):
    dots.write_pictures(tmp_path, dots.arc(4), saver=tagged(tag))
    dots.write_model(tmp_path, dots.arc(4))
    report = import_colmap(tmp_path, tmp_path / "set")
    assert dots.miss(report.images) < 0.3
    assert any(f"orientation {tag}, which mirrors them" in note for note in report.notes)


@pytest.mark.parametrize("tag", range(2, 9))
def test_turns_are_those_of_pillow_and_can_be_undone(tag):
    from PIL import ImageOps

    picture = Image.fromarray(np.arange(60, dtype=np.uint8).reshape(6, 10))
    exif = picture.getexif()
    exif[0x0112] = tag
    turned = Turn(tag).apply(picture)
    assert np.array_equal(turned, ImageOps.exif_transpose(picture)) and turned.size == Turn(tag).size((10, 6))
    assert np.array_equal(Turn(tag).undo(turned), picture) and (turned.size == (6, 10)) == (tag in TRANSPOSING)


# ---- sizes and names


def test_scaled_copies_are_told_and_cropped_ones_refused(tmp_path):
    poses = dots.arc(6)
    dots.write_pictures(tmp_path, poses, dots.matrix(100, 128, 128), (128, 128))
    dots.write_model(tmp_path, poses)
    report = import_colmap(tmp_path, tmp_path / "set")
    assert dots.miss(report.images) < 0.3
    assert any("6 of 6 pictures are scaled copies" in note for note in report.notes)
    Image.new("RGB", (128, 100)).save(tmp_path / "images" / "img_003.png")
    with pytest.raises(DatasetError, match=r"img_003\.png: is 128x100 pixels, its camera is for 256x256"):
        import_colmap(tmp_path, tmp_path / "other", crop="centre")


def test_alpha_is_that_of_most_pictures_whichever_is_first(tmp_path):
    poses = dots.arc(5)
    for odd in (0, 3):
        folder = tmp_path / str(odd)

        def saver(image, path, index, odd=odd):
            (image if index == odd else image.convert("RGBA")).save(path)

        dots.write_pictures(folder, poses, saver=saver)
        dots.write_model(folder, poses)
        with pytest.raises(DatasetError, match=rf"img_00{odd}\.png: has no alpha channel, unlike other pictures"):
            import_colmap(folder, tmp_path / "set")
