"""Golden numbers of GGHead: what the published classes gave for known weights and inputs, and how those were made."""

from __future__ import annotations

import json
import math

import torch
from torch import Tensor, nn

from dnnlib import ROOT
from gaussian import Cameras
from tests.training.families.hashes import noise
from training.families.gghead.template import Template, head_surface, make, rasterize, sphere_surface

GOLDEN = json.loads((ROOT / "tests" / "data" / "golden_gghead.json").read_text())
DECODED, NETWORK = 1e-5, 1e-4  # tolerances: absolute, and of the largest value behind a network


def check(value: Tensor, name: str, tolerance: float = DECODED, relative: bool = False) -> None:
    """Compares samples, extremes and moments; relative: the tolerance is one of the entry's largest value."""
    golden = GOLDEN[name]
    assert list(value.shape) == golden["shape"], name
    value = value.detach().double().flatten()
    moments = torch.stack([value.mean(), value.abs().mean(), value.std(correction=0), value.min(), value.max()])
    index = golden.get("flat_index", range(value.numel()))
    actual = torch.cat([value[list(index)], moments])
    expected = golden["values"] + [golden[key] for key in ("mean", "mean_abs", "std_pop", "min", "max")]
    largest = max(abs(golden["min"]), abs(golden["max"]))
    bound = tolerance * largest if relative else tolerance
    torch.testing.assert_close(
        actual, torch.tensor(expected).double(), rtol=0, atol=bound, msg=lambda m: f"{name}: {m}"
    )


def fill(module: nn.Module) -> nn.Module:
    """Sets every parameter and every noise plane by its noise, scaled so that all branches matter."""
    keys = sorted(module.state_dict())
    named = dict(module.named_parameters())
    named |= {name: value for name, value in module.named_buffers() if name.endswith("noise_const")}
    with torch.no_grad():
        for key, tensor in named.items():
            value = noise(tensor.shape, keys.index(key))
            if key.endswith("bias"):
                value = value * 0.1
            if key.endswith("noise_strength"):
                value = value * 0.1
            if "mapping.fc" in key and key.endswith(".weight"):
                value = value * 100
            if key.endswith("torgb.weight") or key.startswith("_zero_conv_position.weight"):
                value = value * 0.3
            if key.endswith("affine.bias"):
                value = value + 1
            tensor.copy_(value)
    return module


def cams() -> Tensor:
    """Two labels [2, 25] of cameras around the origin."""
    h = torch.tensor([math.pi / 2 + 0.3, math.pi / 2 - 0.25], dtype=torch.float64)
    v = torch.tensor([math.pi / 2 - 0.15, math.pi / 2 + 0.1], dtype=torch.float64)
    v = (1 - 2 * v / math.pi).acos()
    position = 2.7 * torch.stack([v.sin() * (math.pi - h).cos(), v.cos(), v.sin() * (math.pi - h).sin()], dim=-1)
    intrinsics = torch.tensor([[4.2647, 0, 0.5], [0, 4.2647, 0.5], [0, 0, 1]], dtype=torch.float64)
    return Cameras.look_at(position, (0.0, 0.0, 0.0), intrinsics=intrinsics).labels.float()


def mesh(kind: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A warped grid of 20 x 16 vertices on the head, its corners cut off, or on the sphere."""
    j, i = torch.meshgrid(torch.arange(16), torch.arange(20), indexing="ij")
    inner = ((i > 0) & (i < 19) & (j > 0) & (j < 15)).double()
    i, j = i.double(), j.double()
    u = (i + inner * 0.3 * (1.7 * i + 0.9 * j).sin()) / 19
    v = (j + inner * 0.3 * (1.3 * i - 0.7 * j).cos()) / 15
    surface = head_surface if kind == "head" else sphere_surface
    triangles = []
    for y in range(15):
        for x in range(19):
            if kind == "head" and ((x + 0.5) / 19 - 0.5) ** 2 + ((y + 0.5) / 15 - 0.5) ** 2 > 0.22:
                continue
            p = y * 20 + x
            triangles += [(p, p + 1, p + 21), (p, p + 21, p + 20)]
    rows = torch.tensor(triangles)
    return surface(u, v).flatten(0, 1), torch.stack([u, v], -1).flatten(0, 1), rows, rows


def template(kind: str, size: int) -> Template:
    """The templates of the recipe: "texels", "head" and "sphere"."""
    return make("head", size) if kind == "texels" else rasterize(*mesh(kind), size)
