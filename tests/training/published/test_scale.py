"""Published fields see the cameras of data sets as the published code sees its own: from the same place, as deep."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dnnlib import ROOT
from gaussian import Cameras
from gaussian.geometry import REFERENCE_HALF_EXTENT
from tests.training.families.eg3d import file_writer as eg3d_writer
from tests.training.families.epigraf import file_writer
from tests.training.families.epigraf import golden as epigraf
from tests.training.families.hashes import noise
from tests.training.families.pigan import file_writer as pigan_writer
from tests.training.families.pigan import golden as pigan
from training.checkpoint import load_generator
from training.config import TrainingConfig
from training.data.making.camera_angles import import_angles
from training.data.poses import PoseLaw, orbit
from training.dataset import ImageDataset
from training.families.eg3d.generator import Generator as Eg3d
from training.families.eg3d.generator import GeneratorConfig as Eg3dConfig
from training.families.epigraf import patches, poses
from training.families.epigraf.generator import Generator as Epigraf
from training.families.epigraf.presets import PRESETS, unit, whole_fov
from training.families.pigan.generator import Generator as PiGan
from training.fields.field import RadianceField
from training.fields.marching import RayDraws
from training.fields.rays import camera_rays

PIXELS = 64  # of the small published member
WHOLE = torch.tensor([[1.0, 0.0, 0.0]])  # window of a whole image
WIDE = {"cube_scale": 0.475, "camera": {"fov": 30, "ray_start": 0.75, "ray_end": 1.25, "radius": 1.0}}
NARROW = {"cube_scale": 0.2, "camera": {"fov": 12, "ray_start": 0.88, "ray_end": 1.12, "radius": 1.0}}
DEPTHS = {"narrow": (0.88, 1.12), "wide": (0.75, 1.25)}


def write_epigraf(path: Path, dataset: dict[str, Any]) -> Path:
    """A published file of the small member of the golden numbers, with the cameras of a published data set."""
    settings = copy.deepcopy(file_writer.SETTINGS)
    settings["dataset"] |= {"resolution": PIXELS, "white_back": dataset is WIDE, **dataset}
    settings["model"]["generator"] |= {"num_ray_steps": 12, "clamp_mode": "softplus", "density_shift": 0.0}
    return file_writer.write(path, {"G": epigraf.generator(), "G_ema": epigraf.generator()}, settings)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("published")
    return {
        name: write_epigraf(folder / f"{name}-{PIXELS}.pkl", dataset)
        for name, dataset in (("narrow", NARROW), ("wide", WIDE))
    }


def write_angles(folder: Path, angles: Tensor, fov: float) -> ImageDataset:
    """A set of the published kind, imported."""
    source = folder / "theirs"
    source.mkdir(parents=True)
    for i in range(len(angles)):
        Image.fromarray(np.full((PIXELS, PIXELS, 3), 90 * i, np.uint8)).save(source / f"{i:05d}.png")
    entries = {f"{i:05d}.png": [*pair, 0.0] for i, pair in enumerate(angles.tolist())}
    (source / "dataset.json").write_text(json.dumps({"labels": None, "camera_angles": entries}))
    return ImageDataset(import_angles(source, folder / "ours", fov=fov).images)


def cameras_of(dataset: ImageDataset) -> Cameras:
    return Cameras.from_labels(torch.from_numpy(dataset.labels))


@contextmanager
def asked(field: type[RadianceField]) -> Iterator[list[Tensor]]:
    """Collects the points at which fields are asked, those of the first pass first, in the field's own units."""
    seen: list[Tensor] = []
    sample = field.sample

    def noted(self: RadianceField, points: Tensor, directions: Tensor | None) -> tuple[Tensor, Tensor]:
        seen.append(points)
        return sample(self, points, directions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(field, "sample", noted)
        yield seen


def first_points(G: Any, cameras: Cameras, size: int, count: int) -> Tensor:
    """Where the first pass of a rendering looks, [B, R, S, 3]."""
    scene = G.synthesis(G.mapping(torch.zeros(len(cameras), G.z_dim)))
    with torch.no_grad(), asked(type(scene)) as points:
        G.render(scene, cameras[:, None], size)
    return points[0].view(len(cameras), size * size, count, 3)


# ---------------------------------------------------------------- EpiGRAF


def test_rays_of_an_imported_set_are_the_published_rays(files: dict[str, Path], tmp_path: Path) -> None:
    """Origins, directions and depths, by the published numbers, through a file and a data set."""
    G, dataset = load_generator(files["narrow"]), write_angles(tmp_path, epigraf.CAMERAS, 12.0)
    assert isinstance(G, Epigraf) and dataset.geometry.world_scale == 1
    assert dataset.geometry.radius == pytest.approx(G.geometry.radius) == pytest.approx(2.965, abs=1e-3)
    seen = cameras_of(dataset)
    epigraf.check(poses.to_field(seen.positions * G.config.unit), "member/rays/origins_world", epigraf.EXACT)
    points = first_points(G, patches.crop(seen, WHOLE.expand(2, 3), 4, PIXELS), 4, 12)
    epigraf.check(poses.to_field(points), "member/rays/full/points_world", epigraf.EXACT)


def test_images_of_an_imported_set_are_the_published_images(files: dict[str, Path], tmp_path: Path) -> None:
    G = load_generator(files["narrow"])
    assert isinstance(G, Epigraf)
    seen = cameras_of(write_angles(tmp_path, epigraf.CAMERAS, 12.0))
    ws = G.mapping(noise((2, 512), 1000))
    fine = torch.linspace(0, 1, 12).expand(2, PIXELS**2, 12)
    with torch.no_grad():
        scene = G.scene(G.network.tri_plane_decoder(ws, "none"), ws)
        image = G.trace(scene, seen[:, None], (PIXELS, PIXELS), torch.tensor(0.5), RayDraws(fine=fine))
    epigraf.check(image.image[:, 0], "member/render/two_pass_det/rgb", 5e-5)
    cosines = camera_rays(seen[:, None], PIXELS).cosines.view_as(image.depth[:, 0])
    epigraf.check(image.depth[:, 0] / cosines * G.config.unit, "member/render/two_pass_det/depth", 5e-5)


@pytest.mark.parametrize("name", ["narrow", "wide"])
@pytest.mark.parametrize("framing", ["published", "EG3D", "another world"])
def test_sets_of_any_world_and_lens_show_as_much_of_the_field(
    name: str, framing: str, files: dict[str, Path], tmp_path: Path
) -> None:
    """Half an image is as wide at the origin as published, and samples begin and end as far before and behind it."""
    G, fov = load_generator(files[name]), {"narrow": 12.0, "wide": 30.0}[name]
    assert isinstance(G, Epigraf)
    if framing == "published":
        seen = cameras_of(write_angles(tmp_path, torch.tensor([[0.0, math.pi / 2], [0.5, 1.4]]), fov))[:1]
    else:
        scale = 1.0 if framing == "EG3D" else 7.0
        lens = torch.tensor([[4.2647, 0, 0.5], [0, 4.2647, 0.5], [0, 0, 1]])
        labelled = poses.cameras_of(torch.tensor([[0.0, math.pi / 2], [0.5, 1.4]]), lens, 2.7 * scale)
        measured = labelled.summary()
        assert measured.world_scale == (1 if scale == 1 else pytest.approx(7.0, rel=1e-3))
        seen = measured.normalize(labelled)[:1]
    focal, pixels = float(seen.intrinsics[0, 0, 0]), PIXELS - 1  # odd: a ray goes through the middle
    away = float(seen.positions.norm()) * G.config.unit
    half = math.tan(math.radians(fov / 2)) * PIXELS / (PIXELS - 1)
    assert away / (2 * focal) == pytest.approx(half, rel=1e-3 if framing != "published" else 1e-6)
    middle = poses.to_field(first_points(G, seen, pixels, 12)[0, pixels * pixels // 2])
    near, far = DEPTHS[name]
    expected = torch.linspace(1 - near, 1 - far, 12)  # towards the camera, from the origin
    torch.testing.assert_close(middle[:, 0], expected, rtol=0, atol=2e-6)
    assert middle[:, 1:].abs().max() < 1e-6


def test_films_and_drawn_cameras_are_at_the_published_distance(files: dict[str, Path]) -> None:
    for name, fov in (("narrow", 12.0), ("wide", 30.0)):
        G = load_generator(files[name])
        focal = 0.5 / math.tan(math.radians(fov / 2)) * (PIXELS - 1) / PIXELS
        assert G.geometry.radius * G.config.unit == pytest.approx(1)
        assert G.geometry.intrinsics[0][0] == pytest.approx(focal)
        law = TrainingConfig.from_dict(G.info.config).objective.pose_law
        assert (law is None) == (name == "narrow")
        if law is not None:
            assert law.geometry.radius * G.config.unit == pytest.approx(1)
            assert law.geometry.intrinsics[0][0] == pytest.approx(focal)


def test_meshes_are_in_the_units_of_labels(files: dict[str, Path]) -> None:
    """The cube is as large as what cameras see of it, and a ray loses in the world what it loses in the field."""
    G = load_generator(files["narrow"])
    scene = G.synthesis(G.mapping(noise((1, 512), 1000)))
    seen_half = math.tan(math.radians(6)) * PIXELS / (PIXELS - 1)
    assert scene.half_width == pytest.approx(0.2 / seen_half * REFERENCE_HALF_EXTENT)
    t = torch.linspace(-1, 1, 4000) * scene.half_width
    with torch.no_grad():
        world = torch.stack([0 * t + 0.05, 0 * t - 0.03, t], dim=-1)
        lost = torch.trapezoid(scene.density(world[None])[0], t)
        sigma = scene.sample(world[None] * G.config.unit, None)[1][0]
        in_field = torch.trapezoid(torch.nn.functional.softplus(sigma), t * G.config.unit)
    torch.testing.assert_close(lost, in_field, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "epigraf-tiny"])
def test_presets_and_files_have_the_same_units(name: str) -> None:
    preset = PRESETS[name]
    fov = 12.0 if preset.objective.pose_law is None else 30.0  # type: ignore[attr-defined]
    assert preset.generator.unit == unit(whole_fov(fov, preset.generator.resolution))  # type: ignore[attr-defined]


# ---------------------------------------------------------------- pi-GAN


@pytest.mark.parametrize("variant", ["spatial", "tall"])
def test_cameras_of_the_law_are_published_cameras(variant: str, tmp_path: Path) -> None:
    """Those of a published file's law, as a data set without labels gets them, by the published formulas."""
    torch.manual_seed(0)
    small = pigan.MEMBERS[variant].changed(resolution=128, z_dim=6, width=8, layers=3, map_depth=2)
    G, fov = PiGan(small), pigan.FOV[variant]
    G = load_generator(pigan_writer.write(tmp_path, G, G))
    assert isinstance(G, PiGan)
    law = TrainingConfig.from_dict(G.info.config).objective.pose_law
    assert isinstance(law, PoseLaw) and law.fov == fov
    theta, phi = torch.tensor(pigan.POSES[variant])[:, None]
    seen = orbit(theta, phi, law.geometry.radius, torch.tensor(law.geometry.intrinsics))
    size, S = 16, G.config.samples
    points = first_points(G, seen, size, S)[0]
    origin = torch.tensor([phi.sin() * theta.cos(), phi.cos(), phi.sin() * theta.sin()])
    right = torch.linalg.cross(-origin, torch.tensor([0.0, 1.0, 0.0]))
    right = right / right.norm()
    ends = torch.linspace(-1, 1, size)
    grid = torch.stack(torch.broadcast_tensors(ends[None], -ends[:, None], torch.tensor(-1.0)), -1).view(-1, 3)
    grid = grid * torch.tensor([1.0, 1.0, 1 / math.tan(math.radians(fov / 2))])
    ways = (grid / grid.norm(dim=-1, keepdim=True)) @ torch.stack([right, torch.linalg.cross(right, -origin), origin])
    t = torch.linspace(G.config.near, G.config.far, S)
    torch.testing.assert_close(points, origin + t[:, None] * ways[:, None], rtol=0, atol=2e-6)
    assert G.geometry == law.geometry


# ---------------------------------------------------------------- EG3D


def test_labels_of_eg3d_stay_as_they_are() -> None:
    """The numbers of the published field hold for these labels, which are those that data sets hand out."""
    golden = json.loads((ROOT / "tests" / "data" / "golden_eg3d.json").read_text())
    labels = torch.tensor(golden["member"]["labels"]["all"]).view(2, 25)
    measured = Cameras.from_labels(labels).summary()
    assert measured.world_scale == 1 and measured.origin == (0, 0, 0)
    assert torch.equal(measured.normalize(Cameras.from_labels(labels)).labels, labels)


def labelled(radius: float, focal: float) -> Cameras:
    """Two cameras in label units, the first of them frontal."""
    lens = torch.tensor([[focal, 0, 0.5], [0, focal, 0.5], [0, 0, 1]])
    return poses.cameras_of(torch.tensor([[0.0, math.pi / 2], [0.5, 1.4]]), lens, radius)


@pytest.mark.parametrize(("radius", "focal"), [(2.7, 4.2647), (3.0123, 4.7572), (27.0, 4.2647), (1.2031, 1.9)])
def test_sets_of_any_world_and_lens_show_as_much_of_the_field_of_faces(
    radius: float, focal: float, tmp_path: Path
) -> None:
    """Half an image is as wide at the origin as with the published labels, and samples lie about it as there."""
    G = load_generator(eg3d_writer.write(tmp_path / "a.pkl")[0])
    seen = labelled(radius, focal)
    seen = seen.summary().normalize(seen)[:1]
    away = float(seen.positions.norm()) * G.config.unit
    assert away / (2 * focal) == pytest.approx(2.7 / (2 * 4.2647), rel=2e-3)
    middle = first_points(G, seen, 3, 6)[0, 4]
    step = (3.3 - 2.25) / 5
    torch.testing.assert_close(middle[:, 2], 2.7 - 2.25 - step * (torch.arange(6) + 0.5), rtol=0, atol=1e-5)
    assert middle[:, :2].abs().max() < 1e-6


def test_shapenet_is_seen_from_where_its_labels_say(tmp_path: Path) -> None:
    """Its data set is divided by its world's scale when it is read; the field gets the labels' own units back."""
    settings = {"avg_camera_radius": 1.7, "avg_camera_pivot": [0, 0, 0], "ray_start": 0.1, "ray_end": 2.6}
    G = load_generator(eg3d_writer.write(tmp_path / "a.pkl", **settings)[0])
    seen = labelled(1.3, 131.25 / 128)
    measured = seen.summary()
    assert measured.world_scale == pytest.approx(G.config.unit, rel=1e-5)
    points = first_points(G, measured.normalize(seen), 4, 6)
    rays = camera_rays(seen[:, None], 4)
    t = 0.1 + 0.5 * (torch.arange(6) + 0.5)
    expected = rays.origins[:, :, None] + t[:, None] * rays.directions[:, :, None]
    torch.testing.assert_close(points, expected, rtol=0, atol=1e-5)
    scene = G.synthesis(G.mapping(torch.zeros(1, G.z_dim)))
    assert scene.half_width * G.geometry.world_scale == pytest.approx(0.8)  # of meshes, which get the labels' units
    assert G.geometry.orbit(0.0).positions.norm() * G.config.unit == pytest.approx(1.7)


def test_a_mapping_is_told_labels_in_the_units_of_the_field() -> None:
    torch.manual_seed(0)
    small = {"z_dim": 16, "w_dim": 12, "plane_resolution": 16, "channel_base": 128, "channel_max": 16, "feature_dim": 4}
    G = Eg3d(Eg3dConfig(64, **small))
    other = Eg3d(dataclasses.replace(G.config, unit=2.0))
    other.load_state_dict(G.state_dict())
    seen, z = labelled(2.7, 4.2647), torch.randn(2, 16)
    half = dataclasses.replace(seen.summary(), world_scale=2.0).normalize(seen)
    assert torch.equal(G.mapping(z, seen), other.mapping(z, half)) and not torch.equal(half.labels, seen.labels)
