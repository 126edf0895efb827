"""EG3D's field: published numbers, published files as far as the field goes, and a training step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dnnlib import ROOT
from gaussian import Cameras, Geometry
from tests.training.families.eg3d.file_writer import write
from tests.training.families.epigraf.golden import samples
from tests.training.families.hashes import noise, uniform
from training.families.eg3d import published as layout
from training.families.eg3d.generator import Generator, GeneratorConfig
from training.families.eg3d.marching import composite_intervals, interval_weights, place_fine
from training.fields.marching import RayDraws
from training.fields.rays import camera_rays
from training.published.records import read_published

GOLDEN = json.loads((ROOT / "tests" / "data" / "golden_eg3d.json").read_text())
CLOSE = 5e-5
Z = noise((2, 512), 1000)


def entry(path: str) -> Any:
    found: Any = GOLDEN
    for name in path.split("/"):
        found = found[name]
    return found


def check(values: Tensor, path: str, tolerance: float = CLOSE) -> None:
    golden = entry(path)
    assert list(values.shape) == golden["shape"], path
    if "all" in golden:
        actual, expected = values.detach().double().flatten(), golden["all"]
    else:
        actual, expected = samples(values), golden["v"] + [golden[k] for k in ("mean", "std", "min", "max")]
    torch.testing.assert_close(
        actual, torch.tensor(expected).double(), rtol=0, atol=tolerance, msg=lambda m: f"{path}: {m}"
    )


def labels() -> Tensor:
    return torch.tensor(entry("member/labels/all")).view(2, 25)


@pytest.fixture(scope="module")
def G() -> Generator:
    """The small member."""
    made = Generator(GeneratorConfig(128, channel_base=1024, channel_max=16, samples=12, fine_samples=12))
    with torch.no_grad():
        for k, (key, tensor) in enumerate(sorted(made.state_dict(keep_vars=True).items())):
            if not isinstance(tensor, nn.Parameter) and not key.endswith(("noise_const", "w_avg")):
                continue
            value = noise(tensor.shape, k)
            if key.endswith(("bias", "noise_strength")):
                value = value * 0.1
            if "mapping.fc" in key:
                value = value * 100
            if key.endswith("w_avg"):
                value = value * 0.3
            if key.endswith(".affine.bias"):
                value = value + 1
            if key == "decoder.net.2.weight":
                value[1:] *= 3
                value[0] = (value[0] - value[0].mean()) * 20
            if key == "decoder.net.2.bias":
                value[0] += 8
            tensor.copy_(value)
    return made.eval()


@torch.no_grad()
def test_published_field(G: Generator) -> None:
    seen = Cameras.from_labels(labels())
    ws = G.mapping(Z, seen)
    check(ws, "member/ws")
    check(G.mapping(Z, seen, 0.7), "member/ws_psi07")
    image = G.backbone.synthesis(ws, "none")
    check(image, "member/planes", 1e-4)
    points = torch.tensor(entry("member/field/points/all")).view(2, 12, 3)
    features, sigma = G.scene(image).sample(points, None)
    check(features, "member/field/rgb32")
    check(sigma, "member/field/sigma", 5e-4)  # of up to 25, with a gain of 20


@torch.no_grad()
def test_published_rays_and_sums() -> None:
    seen = Cameras.from_labels(labels())
    rays = camera_rays(seen[:, None], 4)
    check(rays.origins[:, 0], "member/rays/origins", 1e-6)
    check(rays.directions, "member/rays/directions_4x4", 1e-6)
    skewed = seen.intrinsics.clone()
    skewed[:, 0, 2], skewed[:, 1, 2], skewed[:, 1, 1], skewed[:, 0, 1] = 0.53, 0.46, 4.0, 0.02
    check(
        camera_rays(Cameras(seen.cam2world, skewed)[:, None], 4).directions,
        "member/rays/directions_4x4_cx053_cy046_fy4_skew002", 1e-6,
    )  # fmt: skip
    t = (2.25 + 1.05 * uniform((2, 3, 8, 1), 1013))[..., 0].sort(dim=-1).values
    colors, sigma = noise((2, 3, 8, 5), 1012), 8 * noise((2, 3, 8, 1), 1014)[..., 0]
    sums = composite_intervals(colors, sigma, t)
    check(2 * sums.features - 1, "member/marcher/plain/rgb5", 1e-5)
    check(2 * (sums.features + (1 - sums.alpha)[..., None]) - 1, "member/marcher/white/rgb5", 1e-5)
    check(sums.weights[..., None], "member/marcher/plain/weights", 1e-6)
    depth = (sums.distance / sums.alpha).clamp(t.min(), t.max())
    check(depth[..., None], "member/marcher/plain/depth", 1e-5)
    weights, through = interval_weights(sigma, t)
    torch.testing.assert_close(through, 1 - weights.sum(-1))
    u = uniform((6, 8), 1015).view(2, 3, 8)
    check(place_fine(t, weights, u), "member/importance/fine_depths_u1015", 1e-5)


@torch.no_grad()
def test_published_images(G: Generator) -> None:
    seen = Cameras.from_labels(labels())
    scene = G.scene(G.backbone.synthesis(G.mapping(Z, seen), "none"))
    random = RayDraws(uniform((2, 256, 12, 1), 1010)[..., 0], uniform((512, 12), 1011).view(2, 256, 12))
    even = RayDraws(torch.full((2, 256, 12), 0.5), torch.linspace(0, 1, 12).expand(2, 256, 12))
    for name, draws in (("random", random), ("half_jitter_linspace", even)):
        features, alpha, depth = G.trace(scene, seen[:, None], (16, 16), draws)
        check((2 * features - 1)[:, 0], f"member/render/{name}/features", 1e-4)
        cosines = camera_rays(seen[:, None], 16).cosines.view_as(depth[:, 0])
        check(depth[:, 0] / cosines / alpha[:, 0], f"member/render/{name}/depth", 1e-4)
        if name == "random":
            check((2 * features - 1)[0, 0, :3, 2::4, 2::4], f"member/render/{name}/rgb_4x4_cam0", 1e-4)
            check(alpha.flatten(2).transpose(1, 2).reshape(2, 256, 1), f"member/render/{name}/weight_total", 1e-5)
    image = G.render(scene, seen[:, None], 8, torch.tensor([0.2, 0.4, 0.6]))
    black = G.render(scene, seen[:, None], 8, torch.zeros(3))
    shown = (1 - black.alpha) * torch.tensor([0.2, 0.4, 0.6])[:, None, None]
    torch.testing.assert_close(image.rgb - black.rgb, shown, rtol=0, atol=1e-6)


def test_published_sizes() -> None:
    golden = entry("parameter_counts/ffhq512_8XDC")
    with torch.device("meta"):
        G = Generator(GeneratorConfig())
    counts = {"backbone": G.backbone, "mapping": G.backbone.mapping, "decoder": G.decoder}
    for name, part in counts.items():
        assert sum(p.numel() for p in part.parameters()) == golden[name]
    assert G.num_ws == golden["num_ws"]
    shapes = {name: tuple(value.shape) for name, value in G.state_dict().items()}
    assert layout.generator_config(shapes, 128, {}) == GeneratorConfig()


# ---------------------------------------------------------------- files


def test_the_field_of_a_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path, G = write(tmp_path / "network-snapshot-001000.pkl")
    record = read_published(path)
    assert record["config"]["family"] == "eg3d" and record["config"]["generator"] == G.config.to_dict()
    state = G.state_dict()
    assert record["G_ema"].keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in record["G_ema"].items())
    dropped = record["progress"]["imported"]["dropped"]
    assert "G_ema.superresolution.block0.conv0.weight" in dropped and not any("backbone" in name for name in dropped)
    assert record["config"]["background"] == "black" and not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ray_start": "auto"}, "ray_start='auto' is no number"),
        ({"clamp_mode": "relu"}, "clamp_mode is not softplus"),
        ({"box_warp": -1}, "box_warp=-1.0 must be finite and greater than 0"),
        ({"depth_resolution": True}, "depth_resolution='True' is no number"),
        ({"avg_camera_radius": 2.0}, r"avg_camera_radius is 2.0; known are 2.7 \(FFHQ, AFHQ\) and 1.7 \(ShapeNet\)"),
        ({"avg_camera_radius": None}, "avg_camera_radius is None"),
    ],
)
def test_other_settings_are_refused(settings: dict, message: str, tmp_path: Path) -> None:
    path, _ = write(tmp_path / "a.pkl", **settings)
    with pytest.raises(ValueError, match=rf"a\.pkl: G_ema: .*{message}"):
        read_published(path)


def test_cameras_of_the_file_are_read(tmp_path: Path) -> None:
    """The pivot, and the world of ShapeNet; a network goes back to where it came from."""
    for settings, pivot, radius, scale in (
        ({}, (0, 0, 0.2), 2.7, 1.0),
        ({"avg_camera_radius": 2.7, "avg_camera_pivot": [0, 0, -0.06]}, (0, 0, -0.06), 2.7, 1.0),
        ({"avg_camera_radius": 1.7, "avg_camera_pivot": [0, 0, 0]}, (0, 0, 0), 1.7, layout.THINGS_UNIT),
    ):
        record = read_published(write(tmp_path / "a.pkl", **settings)[0])
        geometry, config = Geometry.from_dict(record["geometry"]), GeneratorConfig(**record["config"]["generator"])
        assert geometry.pivot == pivot and geometry.radius * geometry.world_scale == pytest.approx(radius)
        assert geometry.world_scale == config.unit == pytest.approx(scale)
        content = layout.PUBLISHED.to_published(config, None, {"G_ema": record["G_ema"]})
        assert content["rendering_kwargs"]["avg_camera_radius"] == radius
    for pivot in ([0, 1], [0, 0, 10**9], ["0", 0, 0], [0, 0, float("nan")], None):
        with pytest.raises(ValueError, match=r"avg_camera_pivot is .*, and not three numbers below 1.7"):
            read_published(write(tmp_path / "a.pkl", avg_camera_pivot=pivot)[0])
    with pytest.raises(ValueError, match="no room for unit"):
        layout.PUBLISHED.to_published(GeneratorConfig(64, unit=0.5), None, {})


def test_names_are_strict() -> None:
    tensors = Generator(GeneratorConfig(8, plane_resolution=8, channel_base=32, channel_max=8)).state_dict()
    with pytest.raises(ValueError, match=r"unknown: backbone\.extra"):
        layout.generator_from_published({**tensors, "backbone.extra": torch.zeros(2)}, 8, {})
    with pytest.raises(ValueError, match=r"missing: decoder\.net\.2\.bias"):
        layout.generator_from_published({n: t for n, t in tensors.items() if n != "decoder.net.2.bias"}, 8, {})
    name = "backbone.synthesis.b8.resample_filter"
    with pytest.raises(ValueError, match=f"wrong constant: {name}"):
        layout.generator_from_published({**tensors, name: tensors[name] + 1e-3}, 8, {})
