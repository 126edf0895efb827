"""Lenses of transforms.json: a frame's own beats the file's, pictures beat stated sizes, and no key is overlooked."""

import json
import math

import numpy as np
import pytest

from tests.training.data import dots
from training.data.image_store import DatasetError
from training.data.making.importers import import_transforms
from training.data.making.lens import read_lens
from training.data.making.reshape import Distortion, Undistort

FILE = {"fl_x": 200, "fl_y": 200, "cx": 128, "cy": 128, "w": 256, "h": 256}
WIDE = 320.0  # pixels, focal length of the frames with a lens of their own
ANGLE = 2 * math.atan(128 / WIDE)
OWN = {
    "fl_x": {"fl_x": WIDE},
    "fl_x and fl_y": {"fl_x": WIDE, "fl_y": WIDE},
    "fl_y": {"fl_y": WIDE},
    "camera_angle_x": {"camera_angle_x": ANGLE},
    "camera_angle_y": {"camera_angle_y": ANGLE},
    "x_fov": {"x_fov": math.degrees(ANGLE)},
    "y_fov": {"y_fov": math.degrees(ANGLE)},
    "K": {"K": [[WIDE, 0, 128], [0, WIDE, 128], [0, 0, 1]]},
    "nine numbers of K": {"K": [WIDE, 0, 128, 0, WIDE, 128, 0, 0, 1]},
}
FILES = {
    "fl_x": FILE,
    "camera_angle_x": {"camera_angle_x": 2 * math.atan(128 / 200)},
    "x_fov": {"x_fov": math.degrees(2 * math.atan(128 / 200))},
    "K": {"K": [[200, 0, 128], [0, 200, 128], [0, 0, 1]], "w": 256, "h": 256},
}


def own_lens(own: dict, shared: dict = FILE, real: tuple[int, int] = (256, 256)):
    return read_lens("t.json: frames[0]", own, shared, real, real)


@pytest.mark.parametrize("own", OWN)
@pytest.mark.parametrize("shared", FILES)
def test_a_frames_own_lens_beats_the_files_in_every_key(own, shared):
    lens = own_lens(OWN[own], FILES[shared])
    assert lens.intrinsics == pytest.approx(np.array([[1.25, 0, 0.5], [0, 1.25, 0.5], [0, 0, 1]]))
    lens = own_lens({}, FILES[shared])
    assert lens.intrinsics[0, 0] == pytest.approx(200 / 256) and lens.remarks == ()


def test_pictures_of_two_lenses_agree_with_their_labels(tmp_path):
    """The case from the field: the file names the first lens in pixels, frames 5 to 9 theirs as an angle."""
    dots.write_frames(
        tmp_path / "a", dots.arc(10), FILE, lambda i: {"camera_angle_x": ANGLE} if i >= 5 else {},
        lambda i: (200.0 if i < 5 else WIDE, (256, 256)),
    )  # fmt: skip
    report = import_transforms(tmp_path / "a", tmp_path / "set")
    _, labels = dots.labels_of(report.images)
    assert labels[:5, 16] == pytest.approx(0.78125) and labels[5:, 16] == pytest.approx(1.25)
    assert dots.miss(report.images) < 0.3  # 0.06 seen; 5.0 with the file's lens for all


def test_the_size_of_a_picture_decides_where_the_files_disagrees(tmp_path):
    """Frames 5 to 9 have another size and a lens of their own in its pixels; w and h are the file's."""
    size = (320, 240)
    own = {"fl_x": 260, "fl_y": 260, "cx": 160, "cy": 120}
    dots.write_frames(
        tmp_path / "a", dots.arc(10), FILE, lambda i: own if i >= 5 else {},
        lambda i: (200.0, (256, 256)) if i < 5 else (260.0, size),
    )  # fmt: skip
    report = import_transforms(tmp_path / "a", tmp_path / "set", 128, "centre")
    assert dots.miss(report.images) < 0.3
    assert any("each of 5 frames" in note and "says 256x256, its picture has 320x240" in note for note in report.notes)


@pytest.mark.parametrize(
    ("own", "shared", "real", "fx", "remark"),
    [
        ({}, FILE, (128, 128), 200 / 256, "scaled copy"),  # cx says that 256 px are meant
        ({}, {**FILE, "cx": 64, "cy": 64}, (128, 128), 200 / 128, "the picture's size is taken"),
        ({"w": 512, "h": 512}, FILE, (512, 512), 200 / 512, None),
        ({"w": 512}, {**FILE, "h": 512}, (512, 512), 200 / 512, None),
        ({"fl_x": 400, "w": 512, "h": 512, "cx": 256, "cy": 256}, FILE, (512, 512), 400 / 512, None),
        ({"fl_x": 400}, FILE, (512, 512), 400 / 512, "the picture's size is taken"),
        ({"fl_x": 400, "cx": 128, "cy": 128}, FILE, (128, 128), 400 / 256, "scaled copy"),
        ({"w": 64, "h": 32}, {"camera_angle_x": 0.8}, (32, 32), 0.5 / math.tan(0.4), "the picture's size is taken"),
        ({"fl_x": 200, "camera_angle_x": ANGLE}, {}, (256, 256), 200 / 256, "by camera_angle_x: the first is taken"),
    ],
)  # fmt: skip
def test_which_size_is_meant(own, shared, real, fx, remark):
    lens = own_lens(own, shared, real)
    assert lens.intrinsics[0, 0] == pytest.approx(fx)
    assert (remark is None and not lens.remarks) or any(remark in line for line in lens.remarks)


def test_a_principal_point_of_the_file_keeps_its_place_in_another_size():
    lens = own_lens({"fl_x": 400, "w": 512, "h": 512}, {**FILE, "cx": 140})
    assert lens.intrinsics[0, 2] == pytest.approx(140 / 256) and lens.intrinsics[1, 2] == pytest.approx(0.5)


def test_a_size_that_nothing_explains_is_refused():
    with pytest.raises(DatasetError, match="its picture is 32x32 pixels, its camera is for 64x32"):
        own_lens({"fl_x": 30, "w": 64, "h": 32}, {}, (32, 32))


@pytest.mark.parametrize("place", ["file", "frame"])
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"is_fisheye": True, "k1": 0, "k2": 0}, "is_fisheye"),
        ({"is_fisheye": 1}, "is_fisheye"),
        ({"camera_model": "OPENCV_FISHEYE"}, "OPENCV_FISHEYE"),
        ({"camera_model": "EQUIRECTANGULAR"}, "EQUIRECTANGULAR"),
        ({"ftheta_p0": 0.3}, "ftheta_p0"),
        ({"latlong": True}, "latlong"),
        ({"equirectangular": True}, "equirectangular"),
        ({"rolling_shutter": [0, 0, 0.01]}, "rolling_shutter"),
        ({"k4": 0.1}, "k4"),
        ({"distortion_params": [0.0, 0.0, 0.0, 0.2, 0.0, 0.0]}, "k4"),
        ({"K": [[0.8, 0, 0.5], [0, 0.8, 0.5], [0, 0, 1]]}, "divided by the picture's size"),
        ({"K": [[200, 3, 128], [0, 200, 128], [0, 0, 1]]}, "no skew"),
        ({"camera_angle_x": 40}, "radians"),
        ({"w": 0}, "at least 1"),
    ],
)
def test_keys_that_change_the_meaning_are_refused_by_name(place, keys, message):
    own, shared = (keys, FILE) if place == "frame" else ({}, {**FILE, **keys})
    if place == "file" and "K" in keys:
        shared = keys
    if place == "file" and "camera_angle_x" in keys:
        shared = {"w": 256, "h": 256, **keys}
    with pytest.raises(DatasetError, match=message) as refused:
        own_lens(own, shared)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("keys", [{"is_fisheye": False}, {"rolling_shutter": [0, 0, 0, 0]}, {"camera_model": "opencv"}])
def test_keys_that_change_nothing_pass(keys):
    assert own_lens(keys).intrinsics[0, 0] == pytest.approx(200 / 256)


def test_a_fisheye_leaves_nothing_behind(tmp_path):
    dots.write_frames(tmp_path / "a", dots.arc(3), {**FILE, "is_fisheye": True, "k1": 0})
    with pytest.raises(DatasetError, match="is_fisheye"):
        import_transforms(tmp_path / "a", tmp_path / "set")
    assert not (tmp_path / "set").exists()


# ---- distortion


# Pixels that pycolmap 4.2.1 gives for points (x, y, 1) on 256x240 pixels: an independent implementation.
SEEN = json.loads("""
{"SIMPLE_RADIAL": {"params": [200, 128, 120, -0.15], "points": [[-0.5, -0.4, 1.0], [-0.5, 0.3, 1.0], [0.1, -0.4,
1.0], [0.1, 0.3, 1.0], [0.45, -0.4, 1.0], [0.45, 0.3, 1.0]], "seen": [[34.15, 44.92], [33.1, 176.94], [147.49,
42.04], [147.7, 179.1], [213.10625, 44.35], [214.05125, 177.3675]]}, "RADIAL": {"params": [200, 128, 120, 0.1,
-0.05], "points": [[-0.5, -0.4, 1.0], [-0.5, 0.3, 1.0], [0.1, -0.4, 1.0], [0.1, 0.3, 1.0], [0.45, -0.4, 1.0], [0.45,
0.3, 1.0]], "seen": [[24.7405, 37.3924], [25.178, 181.6932], [148.3111, 38.7556], [148.19, 180.57], [220.671171875,
37.625625], [220.247496875, 181.49833125]]}, "OPENCV": {"params": [200, 210, 128, 120, 0.12, -0.06, 0.004, -0.003],
"points": [[-0.5, -0.4, 1.0], [-0.5, 0.3, 1.0], [0.1, -0.4, 1.0], [0.1, 0.3, 1.0], [0.45, -0.4, 1.0], [0.45, 0.3,
1.0]], "seen": [[23.8626, 33.075624], [23.8696, 185.759232], [148.19532, 34.894056], [148.204, 183.9156],
[220.45690625, 33.8083875], [220.49449625, 185.114697375]]}, "FULL_OPENCV": {"params": [200, 210, 128, 120, 0.12,
-0.06, 0.004, -0.003, 0.02, 0.05, -0.01, 0.003], "points": [[-0.5, -0.4, 1.0], [-0.5, 0.3, 1.0], [0.1, -0.4, 1.0],
[0.1, 0.3, 1.0], [0.45, -0.4, 1.0], [0.45, 0.3, 1.0]], "seen": [[25.667413711465, 34.59166751763], [25.416544427969,
184.78465701038], [148.031050822496, 35.583986545515], [148.105704060989, 183.605967792115], [218.987373344347,
35.179951545276], [219.273106383856, 184.259724468699]]}}
""")


@pytest.mark.parametrize("model", SEEN)
def test_distortion_is_that_of_colmap(model):
    from pathlib import Path

    from training.data.making.colmap import _camera

    camera = _camera(Path("cameras.txt"), 1, model, 256, 240, SEEN[model]["params"])
    points = np.array(SEEN[model]["points"])
    x, y = camera.distortion.distort(points[:, 0], points[:, 1])
    k = camera.intrinsics
    found = np.stack([(x * k[0, 0] + k[0, 2]) * 256, (y * k[1, 1] + k[1, 2]) * 240], axis=1)
    assert np.abs(found - SEEN[model]["seen"]).max() < 1e-9


@pytest.mark.parametrize(("k1", "grows"), [(-0.3, True), (0.3, False)])
def test_an_undistorted_picture_shows_nothing_from_outside(k1, grows):
    step = Undistort(Distortion(k1=k1), (0.8, 0.8, 0.5, 0.5))
    assert (step.part > 1) == grows
    border = step._is_filled
    assert border(step.part) and not border(step.part * 1.01)


def test_transforms_with_distortion_are_undistorted_and_it_is_said(tmp_path):
    lens = Distortion(k1=-0.25, k2=0.05, p1=0.01, p2=-0.008)
    keys = {**FILE, "k1": lens.k1, "k2": lens.k2, "p1": lens.p1, "p2": lens.p2}
    dots.write_frames(tmp_path / "a", dots.arc(10), keys, bend=lens.distort)
    report = import_transforms(tmp_path / "a", tmp_path / "set", 256)
    assert dots.miss(report.images) < 0.3  # 0.06 seen; 1.6 if the distortion is not looked at
    assert any("10 of 10 pictures were undistorted and resampled" in note for note in report.notes)
    with pytest.raises(DatasetError, match="lens has distortion, and --distortion=refuse"):
        import_transforms(tmp_path / "a", tmp_path / "other", 256, distortion="refuse")
    assert not (tmp_path / "other").exists()


def test_a_lens_that_folds_the_picture_is_refused(tmp_path):
    dots.write_frames(tmp_path / "a", dots.arc(3), {**FILE, "k1": -40.0})
    with pytest.raises(DatasetError, match=r"frame_00000\.png: the lens distortion .* leaves nothing"):
        import_transforms(tmp_path / "a", tmp_path / "set")


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"from_mitsuba": True}, "from_mitsuba is set: its matrices have other axes"),
        ({"from_na": 1}, "from_na is set"),
        ({"transform_matrix_start": [[1.0]], "transform_matrix_end": [[2.0]]}, "its camera moves"),
        ({"distortion": {"k1": 0.1}}, "distortion is set, and says in no way that is known"),
        ({"radial_distortion": [0.1, 0.0]}, "radial_distortion is set"),
        ({"cx": 0.5, "cy": 0.5}, "the principal point 0.5, 0.5 must be in pixels of a picture of 256x256"),
        ({"cx": 0, "cy": 0}, "the principal point 0, 0 must be in pixels"),
        ({"x_fov": 180}, r"x_fov must lie between 0 and 180 \(degrees\), got 180"),
        ({"x_fov": -3.0}, "x_fov must lie between"),
    ],
)
@pytest.mark.parametrize("level", ["frame", "file"])
def test_keys_that_change_the_meaning_are_refused(keys, word, level):
    own, shared = ({"fl_x": 200}, {}) if "x_fov" not in keys else ({}, {})
    (own if level == "frame" else shared).update(keys)
    with pytest.raises(DatasetError, match=rf"^t\.json: frames\[0\]: {word}"):
        own_lens(own, shared)


def test_keys_that_say_that_nothing_is_distorted_are_no_reason():
    for keys in (
        {"distortion": {"k1": 0.0}},
        {"is_undistorted": True},
        {"distortion": None},
        {"distortion_model": "none"},
    ):
        assert own_lens({"fl_x": WIDE, **keys}).distortion == Distortion()


def test_an_angle_in_degrees_that_disagrees_is_told():
    assert own_lens({"fl_x": WIDE, "x_fov": math.degrees(ANGLE)}).remarks == ()
    (remark,) = own_lens({"fl_x": WIDE, "x_fov": 30.0}).remarks
    assert "320 pixels, and of 477.7" in remark and "by x_fov: the first is taken" in remark


@pytest.mark.parametrize("switch", [{"white_transparent": True}, {"black_transparent": True}, {"mask_color": 0}])
def test_colours_that_stand_for_transparency_are_told(tmp_path, switch):
    dots.write_frames(tmp_path / "t", dots.arc(3), {"fl_x": 200, **switch})
    (note,) = import_transforms(tmp_path / "t", tmp_path / "set").notes
    assert f"{next(iter(switch))} is set" in note and "here all pixels stay" in note


def test_cameras_with_other_axes_are_told_by_the_name_of_theirs(tmp_path):
    """The file's axes are OpenGL's, also in the message: its numbers as they stand are what a user can change."""
    dots.write_frames(
        tmp_path / "t", dots.arc(6), {"fl_x": 200}, lambda i: {"transform_matrix": dots.arc(6)[i].tolist()}
    )
    with pytest.raises(
        DatasetError, match=r"OpenCV axes\? camera-to-world with OpenGL axes \(x right, y up, z backward\)"
    ):
        import_transforms(tmp_path / "t", tmp_path / "set")


@pytest.mark.parametrize("focal", [0.8, 5.0])
def test_focal_lengths_that_were_divided_by_the_width_are_refused(tmp_path, focal):
    dots.write_frames(tmp_path / "t", dots.arc(6), {"fl_x": focal})
    with pytest.raises(DatasetError, match=r"fx and fy must be at least 0\.1 image widths"):
        import_transforms(tmp_path / "t", tmp_path / "set")
