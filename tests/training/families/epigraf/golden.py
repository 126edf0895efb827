"""Golden numbers of EpiGRAF: what the published classes gave for known weights and inputs, and how those were made."""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import Tensor, nn

from dnnlib import ROOT
from gaussian import Cameras
from tests.training.families.hashes import noise
from training.families.epigraf import poses
from training.families.epigraf.discriminator import Discriminator, DiscriminatorConfig
from training.families.epigraf.generator import Generator, GeneratorConfig

GOLDEN = json.loads((ROOT / "tests" / "data" / "golden_epigraf.json").read_text())
EXACT, CLOSE = 1e-6, 1e-5  # absolute: of codes and rays; of values behind a network

CAMERAS = torch.tensor(GOLDEN["header"]["cameras"])[:, :2]
WINDOWS = torch.tensor(GOLDEN["header"]["windows_scale_ox_oy"])
FOCAL = 0.5 / math.tan(math.radians(6))  # of a field of view of 12 degrees, in image widths


def entry(path: str) -> Any:
    """Returns what stands at a path of names."""
    found: Any = GOLDEN
    for name in path.split("/"):
        found = found[name]
    return found


def samples(values: Tensor) -> Tensor:
    """Returns the numbers of a tensor that the file lists, and its moments."""
    flat = values.detach().double().flatten()
    n = len(flat)
    rows = [0, 1, 2, n // 3, n // 2, 2 * n // 3, n - 2, n - 1]
    return torch.cat([flat[rows], torch.stack([flat.mean(), flat.std(correction=0), flat.min(), flat.max()])])


def check(values: Tensor, path: str, tolerance: float = CLOSE) -> None:
    """Compares a tensor with an entry: all of it, or samples and moments."""
    golden = entry(path)
    assert list(values.shape) == golden["shape"], path
    if "all" in golden:
        actual, expected = values.detach().double().flatten(), golden["all"]
    else:
        actual, expected = samples(values), golden["v"] + [golden[k] for k in ("mean", "std", "min", "max")]
    torch.testing.assert_close(
        actual, torch.tensor(expected).double(), rtol=0, atol=tolerance, msg=lambda m: f"{path}: {m}"
    )


def check_norms(module: nn.Module, path: str, rename: dict[str, str]) -> None:
    """Compares the norms of gradients; rename: published beginnings of names and ours."""
    parameters, found, golden = dict(module.named_parameters()), {}, entry(path)
    for name in golden:
        own = name
        for theirs, ours in rename.items():
            own = ours + own.removeprefix(theirs) if own.startswith(theirs) else own
        gradient = parameters[own].grad
        assert gradient is not None, name
        found[name] = float(gradient.norm())
    for name, value in golden.items():
        assert abs(found[name] - value) <= 1e-4 * value, (path, name, found[name], value)


def fill(module: nn.Module, published: dict[str, str]) -> nn.Module:
    """Sets parameters and some buffers by their noise; published: our names to those of the published state dict."""
    state = module.state_dict(keep_vars=True)
    names = {published[own]: tensor for own, tensor in state.items()}
    assert len(names) == len(state)
    with torch.no_grad():
        for k, (key, tensor) in enumerate(sorted(names.items())):
            if not isinstance(tensor, nn.Parameter) and not key.endswith(("noise_const", "w_avg")):
                continue
            value = noise(tensor.shape, k)
            if key.endswith("bias"):
                value = value * 0.1
            mapping, _, _ = key.rpartition(".fc")
            if mapping in ("mapping", "head_mapping", "hyper_mod_mapping"):
                value = value * 100
            if key.endswith("noise_strength"):
                value = value * 0.1
            if key.endswith("w_avg"):
                value = value * 0.3
            if key.startswith("synthesis.") and key.endswith(".affine.bias"):
                value = value + 1
            if key == "synthesis.tri_plane_mlp.model.1.weight":
                value[3] *= 40
            if key == "synthesis.tri_plane_mlp.model.1.bias":
                value[3] += 15
            tensor.copy_(value)
    return module


def discriminator(**changes: Any) -> Discriminator:
    """The D of the small member."""
    values: dict[str, Any] = {"resolution": 64, "patch_resolution": 16, "channel_base": 512, "channel_max": 32}
    D = Discriminator(DiscriminatorConfig(**{**values, **changes}))
    fill(D, {name: name for name in D.state_dict()})
    return D.eval()


def cameras(angles: Tensor = CAMERAS, pixels: int = 64, focal: float = FOCAL) -> Cameras:
    """Cameras of the published angles whose images of so many pixels have their end points where the published do."""
    f = focal * (pixels - 1) / pixels
    return poses.cameras_of(angles, torch.tensor([[f, 0, 0.5], [0, f, 0.5], [0, 0, 1]]))


def published_names(state: dict[str, Tensor]) -> dict[str, str]:
    """Our names of the generator's tensors to the published ones."""
    return {name: name.replace("network.", "synthesis.", 1).replace("mapper.", "mapping.", 1) for name in state}


def generator(**changes: Any) -> Generator:
    """The G of the small member."""
    values: dict[str, Any] = {
        "w_dim": 64, "channel_base": 512, "channel_max": 32, "samples": 12, "plane_resolution": 32, "feature_dim": 8,
        "hidden_dim": 16, "backdrop_samples": 4, "backdrop_max": 16,
    }  # fmt: skip
    G = Generator(GeneratorConfig(64, **{**values, **changes}))
    fill(G, published_names(G.state_dict()))
    G.mapper.mean_camera_pose.copy_(torch.tensor([0.1, 1.5, 0.0]))
    return G.eval()
