"""Networks with the published architecture and known weights must give the numbers the published classes gave."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnnlib import ROOT
from gaussian import Cameras, Gaussians
from tests.training.families.hashes import noise
from training import losses
from training.families.gsgan.config import PUBLISHED_CONVENTIONS, Conventions, GeneratorConfig, published_constants
from training.families.gsgan.discriminator import Discriminator, DiscriminatorConfig
from training.families.gsgan.generator import Generator, seen_by
from training.families.gsgan.objective import info_nce
from training.families.gsgan.published import from_published
from training.networks.base import Conditioning

GOLDEN: dict[str, Any] = json.loads((ROOT / "tests" / "data" / "golden_gsgan.json").read_text())["256"]
EXACT, HALF = 5e-5, 2e-3  # worst seen 5.8e-6 and 8.5e-4
FIELDS = {"xyz": "means", "scale": "log_scales", "rotation": "quats", "color": "sh", "opacity": "opacity_logits"}


def fill(module: nn.Module) -> None:
    """Overwrite every parameter by its noise, scaled so that all branches matter."""
    keys = sorted(module.state_dict())
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            scale = 0.1 if key.endswith("bias") else 1.0
            scale *= 0.1 if ".ls_" in key or key.endswith((".ls.weight", ".ls")) else 1.0
            scale *= 0.3 if key.startswith("_xyz") else 1.0
            scale *= 100.0 if re.fullmatch(r"mapping_network\.fc\d\.weight", key) else 1.0
            scale *= 0.1 if "layerscale" in key else 1.0
            parameter.copy_(noise(parameter.shape, keys.index(key)) * scale)
            if ".affine.bias" in key or ".gamma.bias" in key:
                parameter += 1
        if isinstance(module, Generator):
            points = noise((2000, 3), 777)
            module._xyz_bg.copy_(torch.cat([points[:, :2], -points[:, 2:].abs()], dim=1))


def check(value: Tensor, golden: dict[str, Any], tolerance: float = EXACT) -> None:
    """Compare samples, extremes and moments."""
    value = value.detach().double().flatten()
    assert value.numel() == golden["numel"]
    moments = torch.stack([value.mean(), value.abs().mean(), value.std(correction=0), value.min(), value.max()])
    expected = [golden[name] for name in ("mean", "mean_abs", "std_pop", "min", "max")]
    actual = torch.cat([value[golden["flat_index"]], moments])
    torch.testing.assert_close(actual, torch.tensor(golden["values"] + expected).double(), rtol=0, atol=tolerance)


def check_splats(kind: str, splats: Gaussians, golden: dict[str, Any], tolerance: float = EXACT) -> None:
    for name, field in FIELDS.items():
        check(getattr(splats, field), golden[f"{kind}.{name}"], tolerance)


@pytest.fixture(scope="module")
def G() -> Generator:
    with torch.device("meta"):
        found = Generator(GeneratorConfig.published(256))
    found = found.to_empty(device="cpu").requires_grad_(False)
    fill(found)
    found.w_avg.zero_()
    found.get_buffer("dataset_label_std").zero_()
    for name, value in published_constants(found.config).items():
        found.get_buffer(name).copy_(value)
    return found


@pytest.fixture(scope="module")
def ws(G: Generator) -> Tensor:
    return G.mapping(noise((2, 512), 1000), Cameras.from_labels(noise((2, 25), 1001)))


def test_mapping(G: Generator, ws: Tensor) -> None:
    check(ws, GOLDEN["ws"])
    G.w_avg.copy_(0.1 * noise((512,), 1010))
    z, cameras = noise((2, 512), 1000), Cameras.from_labels(noise((2, 25), 1001))
    pulled = G.mapping(z, cameras, psi=0.7, cutoff=14)
    check(pulled[:, [0, 13, 14, 16]], GOLDEN["ws_psi0.7_cutoff14"])
    assert torch.equal(G.mapping(z, cameras, psi=0.7)[:, 16], pulled[:, 0])
    G.w_avg.zero_()


@pytest.mark.parametrize(
    ("rounded", "kind", "tolerance"), [(False, "fp32_everywhere", EXACT), (True, "fp16_as_published", HALF)]
)
def test_splats(
    G: Generator, ws: Tensor, rounded: bool, kind: str, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    conventions = Conventions(half_rounding=rounded)
    monkeypatch.setattr(G.point_gen, "config", dataclasses.replace(G.config, conventions=conventions))
    scene = G.synthesis(ws)
    directions = F.normalize(noise((2, 3), 1004), dim=-1)[:, None]
    seen = dataclasses.replace(scene.as_gaussians(), sh=scene.viewed_sh(directions)[:, 0, :, None])
    assert scene.num_splats == 97_296
    front = sum(G.config.level_sizes)
    check_splats("gaussians", seen.select(slice(0, front)), GOLDEN[kind], tolerance)
    check_splats("anchors", scene.anchors, GOLDEN[kind], tolerance)
    check_splats("background", seen.select(slice(front, None)), GOLDEN)
    if not rounded:
        coarse = scene.anchors.means[:, :256]
        assert losses.knn_distance(coarse, 64).mean().item() == pytest.approx(GOLDEN["L_knn64"]["values"][0], abs=1e-7)
        assert losses.center_distance(coarse).mean().item() == pytest.approx(GOLDEN["L_center"]["values"][0], abs=1e-7)


def test_the_same_tensors_as_a_published_file_has_them_make_the_same_network(G: Generator) -> None:
    config, state = from_published(G.state_dict())
    assert config == GeneratorConfig.published(256, PUBLISHED_CONVENTIONS)
    assert state.keys() == G.state_dict().keys() and len(state) == 417
    assert sum(p.numel() for p in G.parameters()) == 40_756_536


def test_discriminator_and_its_losses() -> None:
    with torch.device("meta"):
        D = Discriminator(DiscriminatorConfig.published(256))
    D = D.to_empty(device="cpu").requires_grad_(False)
    fill(D)
    assert len(D.state_dict()) == 81 and sum(p.numel() for p in D.parameters()) == 38_119_681
    images, labels = noise((8, 3, 256, 256), 1002).clamp(-1, 1), noise((8, 25), 1003)
    output = D.outputs(images, Conditioning(labels))
    torch.testing.assert_close(output.logits[:, 0], torch.tensor(GOLDEN["D_logits"]), rtol=0, atol=1e-5)  # seen 6e-7
    check(output.extras["pose"], GOLDEN["D_feat"])
    check(output.extras["camera"], GOLDEN["D_cam"])
    contrast = info_nce(output.extras["pose"], output.extras["camera"], torch.arange(8))
    assert contrast.mean().item() == pytest.approx(GOLDEN["contrastive_loss"], abs=5e-6)
    penalty = losses.gradient_penalty(lambda x: D.outputs(x, Conditioning(labels)).logits, images)
    check(penalty, GOLDEN["r1_penalty"], 1e-8)  # of 3e-5; seen 2.4e-9


def test_the_published_cameras() -> None:
    golden = GOLDEN["camera"]
    labels = torch.tensor(golden["labels"], dtype=torch.float64)
    seen = seen_by(Cameras.from_labels(labels), PUBLISHED_CONVENTIONS)
    torch.testing.assert_close(seen.world2cam, torch.tensor(golden["world2cam"]).double(), rtol=0, atol=1e-6)
    points = torch.tensor([[0, 0, 0], [0.1, 0.2, 0.05], [-0.2, -0.1, 0.1]], dtype=torch.float64)
    xy, _ = seen.project(points.expand(2, 3, 3))
    torch.testing.assert_close(xy * 256 - 0.5, torch.tensor(golden["pixels_256"]).double(), rtol=0, atol=5e-5)
    unchanged = seen_by(Cameras.from_labels(labels), Conventions())
    assert torch.equal(unchanged.labels, labels)
