"""Networks with the published architecture and known weights must give the numbers the published classes gave."""

import json

import pytest
import torch
from torch import Tensor, nn

from dnnlib import ROOT
from tests.training.families.hashes import noise
from training.families.cgs.generator import Generator, GeneratorConfig, published_constants
from training.families.cgs.published import from_published
from training.losses import center_distance, knn_distance
from training.networks.discriminator import Discriminator, DiscriminatorConfig

GOLDEN = json.loads((ROOT / "tests" / "data" / "golden_cgs.json").read_text())
TOLERANCE = 5e-5  # absolute; worst seen 7.4e-6 (log scales and opacities, whose values reach 12)
Z_ID, IMAGE_ID, LABEL_ID = 1000, 1002, 1003


def fill(module: nn.Module) -> None:
    """Overwrite every parameter by its noise, scaled so that all branches matter."""
    keys = sorted(module.state_dict())
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            scale = 0.1 if key.endswith("bias") else 1.0
            scale *= 0.1 if ".ls_" in key else 1.0
            scale *= 0.3 if key == "_xyz" else 1.0
            is_mapping_weight = key.startswith(("mapping.fc", "mapping_network.fc")) and key.endswith("weight")
            scale *= 100.0 if is_mapping_weight else 1.0
            parameter.copy_(noise(parameter.shape, keys.index(key)) * scale)
            if ".gamma.bias" in key:
                parameter += 1


def check(value: Tensor, golden: dict) -> None:
    """Compare samples, extremes and moments."""
    value = value.detach().double().flatten()
    assert value.numel() == golden["numel"]
    moments = torch.stack([value.mean(), value.abs().mean(), value.std(correction=0), value.min(), value.max()])
    expected = [golden[name] for name in ("mean", "mean_abs", "std_pop", "min", "max")]
    actual = torch.cat([value[golden["flat_index"]], moments])
    torch.testing.assert_close(actual, torch.tensor(golden["values"] + expected).double(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("resolution", [256, 512])
@torch.no_grad()
def test_generator(resolution: int) -> None:
    golden = GOLDEN[str(resolution)]
    with torch.device("meta"):
        G = Generator(GeneratorConfig.published(resolution))
    G = G.to_empty(device="cpu")
    G.mapping_network.w_avg.zero_()
    fill(G)
    features = []
    hook = G.point_gen.transformer.register_forward_hook(lambda _module, _inputs, output: features.extend(output))
    ws = G.mapping(noise((2, 512), Z_ID))
    scene = G.synthesis(ws)
    hook.remove()

    check(ws, golden["ws"])
    check(G.point_gen.conv_in(torch.tanh(G._xyz)).expand(2, -1, -1), golden["posenc"])
    assert len(features) == len(golden["level_features"])
    for value, expected in zip(features, golden["level_features"], strict=True):
        check(value, expected)
    for kind, splats in (("gaussians", scene), ("anchors", scene.anchors)):
        check(splats.means, golden[f"{kind}.xyz"])
        check(splats.log_scales, golden[f"{kind}.scale"])
        check(splats.quats, golden[f"{kind}.rotation"])
        check(splats.sh, golden[f"{kind}.color"])
        check(splats.opacity_logits, golden[f"{kind}.opacity"])

    level0 = scene.anchors.means[:, :512]
    assert knn_distance(level0, 64).mean().item() == pytest.approx(golden["loss_knn_mean"], abs=1e-6)
    assert center_distance(level0).mean().item() == pytest.approx(golden["loss_center"], abs=1e-6)

    if resolution == 256:  # the same tensors, as a published file has them, make the same network
        G.dataset_label_std.zero_()
        for name, value in published_constants(G.config).items():
            getattr(G.point_gen, name).copy_(value)
        config, state = from_published(G.state_dict(), "scale=torch.tensor(-5., device=d)")
        assert config == G.config and state.keys() == G.state_dict().keys()


@pytest.mark.parametrize("resolution", [256, 512])
@torch.no_grad()
def test_discriminator(resolution: int) -> None:
    golden = GOLDEN[str(resolution)]["D_logits"]
    with torch.device("meta"):
        D = Discriminator(DiscriminatorConfig.published(resolution))
    D = D.to_empty(device="cpu")
    fill(D)
    images = noise((len(golden), 3, resolution, resolution), IMAGE_ID).clamp(-1, 1)
    logits = D(images, noise((len(golden), 25), LABEL_ID))
    torch.testing.assert_close(logits[:, 0], torch.tensor(golden), rtol=0, atol=1e-5)  # worst seen 1.1e-6
