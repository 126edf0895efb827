"""Imports the same scene from COLMAP and from transforms.json, and tests what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from gaussian import Cameras
from tests.training.data.scenes_on_disk import make_scene, turned, write_colmap, write_transforms
from training.data.image_store import DatasetError
from training.data.making.importers import align, import_colmap, import_transforms
from training.data.synthetic.synthesize import CameraSpread, sample_cameras
from training.data.validation import validate_set
from training.dataset import ImageDataset

SIZE = 32


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLATGAN_CACHE_DIR", str(tmp_path / "cache"))


def labels_of(images) -> np.ndarray:
    return np.array([label for _, label in json.loads((images.parent / "dataset.json").read_text())["labels"]])


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scene")
    return folder, make_scene(folder)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("style", ["nerfstudio", "frames", "blender"])
def test_one_scene_gives_the_same_labels_from_every_program(scene, tmp_path, binary, style):
    """Each program has a world of its own. Largest difference seen: 1.3e-7; the scene's rotations are float32 ones."""
    folder, cameras = scene
    shutil.copytree(folder, tmp_path / "a")
    shutil.copytree(folder, tmp_path / "b")
    write_colmap(tmp_path / "a", turned(cameras, 1), (SIZE, SIZE), binary)
    write_transforms(tmp_path / "b", turned(cameras, 2), (SIZE, SIZE), style)
    first = import_colmap(tmp_path / "a", tmp_path / "first")
    second = import_transforms(tmp_path / "b", tmp_path / "second")
    assert np.abs(labels_of(first.images) - labels_of(second.images)).max() < 1e-5
    assert validate_set(first.images) == [] and validate_set(second.images) == []
    one, two = ImageDataset(first.images), ImageDataset(second.images)
    assert torch.equal(one.load(range(10)).images, two.load(range(10)).images)
    assert one.geometry.world_scale == 1.0 and one.geometry.radius == pytest.approx(2.7, rel=0.01)
    # Up to the direction that is called the front, the cameras are those of the scene.
    yaw, pitch = Cameras.from_labels(torch.from_numpy(one.labels)).yaw_pitch(one.geometry)
    true_yaw, true_pitch = cameras.yaw_pitch(cameras.summary())
    assert torch.allclose(yaw - yaw.mean(), (true_yaw - true_yaw.mean()).float(), atol=1e-3)
    assert torch.allclose(pitch, true_pitch.float(), atol=1e-3)


@pytest.mark.parametrize("model", ["SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL"])
def test_pinhole_models_and_lenses_without_distortion(scene, tmp_path, model):
    folder, cameras = scene
    shutil.copytree(folder, tmp_path / "a")
    write_colmap(tmp_path / "a", cameras, (SIZE, SIZE), True, model, (0.0,) if model == "SIMPLE_RADIAL" else ())
    labels = labels_of(import_colmap(tmp_path / "a", tmp_path / "set").images)
    assert np.abs(labels[:, 16:] - cameras.labels[:, 16:].numpy()).max() < 1e-6  # the cameras are float32 ones


@pytest.mark.parametrize("binary", [False, True])
def test_fisheye_lenses_are_refused_by_name(scene, tmp_path, binary):
    folder, cameras = scene
    write_colmap(tmp_path, cameras, (SIZE, SIZE), binary, "OPENCV_FISHEYE", (0.0,) * 4)
    with pytest.raises(DatasetError, match=r"cameras\..*OPENCV_FISHEYE with lens distortion.*image_undistorter"):
        import_colmap(tmp_path, tmp_path / "set", folder / "images")


@pytest.mark.parametrize("kind", ["colmap", "transforms"])
def test_wide_pictures_are_refused_or_cropped_with_their_intrinsics(tmp_path, kind):
    cameras = make_scene(tmp_path / "wide", 6, 48, 32)
    if kind == "colmap":
        write_colmap(tmp_path / "wide", cameras, (48, 32), True)
        run = import_colmap
    else:
        write_transforms(tmp_path / "wide", cameras, (48, 32), "frames")
        run = import_transforms
    with pytest.raises(DatasetError, match=r"view 0\d\.png: is 48x32 pixels, not square; --crop"):
        run(tmp_path / "wide", tmp_path / "set")
    assert not (tmp_path / "set").exists() and len(list(tmp_path.iterdir())) == 1
    images = run(tmp_path / "wide", tmp_path / "set", crop="centre").images
    labels = labels_of(images)
    assert np.allclose(labels[:, [16, 20]], CameraSpread().focal, rtol=1e-6) and np.allclose(labels[:, [18, 21]], 0.5)
    assert np.array_equal(
        np.asarray(Image.open(images / "00002.png")),
        np.asarray(Image.open(tmp_path / "wide" / "images" / "view 02.png"))[:, 8:40],
    )


def test_masks_come_along(scene, tmp_path):
    folder, cameras = scene
    shutil.copytree(folder, tmp_path / "a")
    write_colmap(tmp_path / "a", cameras, (SIZE, SIZE), False)
    (tmp_path / "a" / "masks").mkdir()
    for i in range(10):
        Image.new("L", (SIZE, SIZE), 20 * i).save(tmp_path / "a" / "masks" / f"view {i:02d}.png.png")
    dataset = ImageDataset(import_colmap(tmp_path / "a", tmp_path / "set").images)
    assert (dataset.load([7]).masks == 140).all()
    (tmp_path / "a" / "masks" / "view 03.png.png").unlink()
    with pytest.raises(DatasetError, match=r"view 03\.png: has no mask, 9 others have one"):
        import_colmap(tmp_path / "a", tmp_path / "other")


def test_the_axis_that_points_up_may_be_given(tmp_path):
    """Frontal cameras alone cannot tell up from a tilt of the head; Blender's world has z up."""
    frontal = sample_cameras(0, range(5), CameraSpread(yaw_std=1e-3, pitch_std=0.1, roll_std=0.0)).to(
        dtype=torch.float64
    )
    swap = torch.tensor([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]], dtype=torch.float64)  # y up to z up
    poses = frontal.cam2world.clone()
    poses[:, :3] = swap @ poses[:, :3]
    for up in ("z", "auto"):
        back = align(Cameras(poses, frontal.intrinsics), up)
        assert torch.allclose(back.cam2world[:, 1, 1], frontal.cam2world[:, 1, 1], atol=0.02)
    above = Cameras.look_at((0.0, 5.0, 0.0), (0.0, 0.0, 0.0), intrinsics=frontal.intrinsics[0]).reshape(1)
    with pytest.raises(DatasetError, match="right above the middle"):
        align(above, "y")


def test_cameras_all_round_have_the_first_one_in_front():
    around = Cameras.look_at(
        torch.tensor([[np.sin(a), 0.3, np.cos(a)] for a in np.arange(12) * np.pi / 6 + 0.7]),
        (0.0, 0.0, 0.0),
        intrinsics=torch.tensor([[1.2, 0, 0.5], [0, 1.2, 0.5], [0, 0, 1]], dtype=torch.float64),
    )
    found = align(turned(around, 5))
    yaw, pitch = found.yaw_pitch(found.summary())
    assert abs(yaw[0]) < 1e-9 and torch.allclose(pitch, torch.full_like(pitch, np.arctan(0.3)), atol=1e-9)


def test_keep_leaves_the_world(scene, tmp_path):
    folder, cameras = scene
    shutil.copytree(folder, tmp_path / "b")
    write_transforms(tmp_path / "b", cameras, (SIZE, SIZE), "frames")
    labels = labels_of(import_transforms(tmp_path / "b", tmp_path / "set", up="keep").images)
    assert np.abs(labels - cameras.labels.numpy()).max() < 1e-9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("frames"), 'has no list "frames"'),
        (lambda c: c["frames"][3].pop("transform_matrix"), r"frames\[3\]: transform_matrix must be 4x4"),
        (lambda c: c["frames"][3].update(transform_matrix=[[1, 2], [3]]), r"frames\[3\]: transform_matrix must be 4x4"),
        (lambda c: c["frames"][3].update(file_path="gone.png"), r"gone\.png: no such picture"),
        (lambda c: c["frames"][3].update(file_path=7), r"frames\[3\]: file_path must name a picture"),
        (lambda c: c["frames"][3].pop("fl_x") and c["frames"][3].pop("fl_y"), r"frames\[3\]: needs fl_x"),
        (lambda c: c["frames"][3].update(fl_x="long"), r"frames\[3\]: fl_x must be a finite number"),
        (lambda c: c["frames"][3].update(k4=0.1), r"frames\[3\]: has lens distortion \(k4\)"),
        (lambda c: c.update(camera_model="OPENCV_FISHEYE"), r"frames\[0\]: has lens distortion \(camera_model"),
        (
            lambda c: [c["frames"][3].update(w=64), c["frames"][3].pop("cx")],
            r"3\]: .*32x32 pixels, its camera is for 64x32",
        ),
        (lambda c: [f["transform_matrix"][0].reverse() for f in c["frames"][3:4]], r"view 03\.png: .*rotation"),
    ],
)
def test_a_broken_transforms_file_is_named(scene, tmp_path, change, message):
    folder, cameras = scene
    shutil.copytree(folder, tmp_path / "b")
    write_transforms(tmp_path / "b", cameras, (SIZE, SIZE), "frames")
    file = tmp_path / "b" / "transforms.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=message) as refused:
        import_transforms(tmp_path / "b", tmp_path / "set")
    assert "\n" not in str(refused.value) and not (tmp_path / "set").exists()


@pytest.mark.parametrize("name", ["cameras", "images"])
@pytest.mark.parametrize("binary", [False, True])
def test_a_broken_colmap_model_is_named(scene, tmp_path, name, binary):
    folder, cameras = scene
    write_colmap(tmp_path, cameras, (SIZE, SIZE), binary)
    file = tmp_path / "sparse" / "0" / f"{name}.{'bin' if binary else 'txt'}"
    data = file.read_bytes()
    for broken in (data[: len(data) // 2], b"", b"hello world\n" * 9):
        file.write_bytes(broken)
        with pytest.raises(DatasetError) as refused:
            import_colmap(tmp_path, tmp_path / "set", folder / "images")
        assert "\n" not in str(refused.value) and not (tmp_path / "set").exists()
    file.unlink()
    with pytest.raises(DatasetError, match="holds no COLMAP model"):
        import_colmap(tmp_path, tmp_path / "set", folder / "images")
