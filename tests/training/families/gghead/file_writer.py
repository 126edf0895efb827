"""Writes files in the format of published GGHead checkpoints, without the published code.

The networks, the blocks of the generator and the settings are objects of classes that the file names; the layers carry
the text of their classes (docs/checkpoints.md). Python's own pickler and torch's own reductions write every byte.
"""

from __future__ import annotations

import contextlib
import enum
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.training.published.file_writer import Persistent
from training.families.gghead.discriminator import Discriminator, DiscriminatorConfig
from training.families.gghead.generator import Generator, GeneratorConfig

SOURCE = "import os\nos.system('touch executed')\n"
MODEL, STYLEGAN2 = "gghead.models.gghead_model", "gghead.models.stylegan2"
PLAIN = {  # the path of a module in G, or its kind in D -> class that the file names
    "": f"{MODEL}.GGHeadModel",
    "backbone": f"{STYLEGAN2}.GGHGenerator",
    "backbone.synthesis": f"{STYLEGAN2}.GGHSynthesisNetwork",
    "block": f"{STYLEGAN2}.GGHSynthesisBlock",
    "D": "gghead.models.gaussian_discriminator.GaussianDiscriminator",
    "config": f"{MODEL}.GGHeadConfig",
    "rendering": f"{MODEL}.RenderingConfig",
    "gaussians": "gaussian_splatting.scene.gaussian_model.GaussianModel",
}
ATTRIBUTE = "gghead.config.gaussian_attribute.GaussianAttribute"
INVERSE = "gaussian_splatting.utils.general_utils.inverse_sigmoid"


def small_generator(**changes: Any) -> GeneratorConfig:
    values = {"z_dim": 16, "w_dim": 12, "plane_resolution": 16, "channel_base": 128, "channel_max": 16, "samples": 10}
    return GeneratorConfig(32, **{**values, **changes})


def small_discriminator(**changes: Any) -> DiscriminatorConfig:
    return DiscriminatorConfig(
        32, (4, 6, 8, 8), embedding_dim=8, mapping_depth=3, conv_clamp=256.0, first_resolution=16, **changes
    )


def networks(seed: int = 0) -> dict[str, nn.Module]:
    """G, D and G_ema of the small layout, all of their tensors apart."""
    torch.manual_seed(seed)
    found = {"G": Generator(small_generator()), "D": Discriminator(small_discriminator())}
    found["G_ema"] = Generator(small_generator())
    with torch.no_grad():
        for module in found.values():
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        for name in ("G", "G_ema"):
            found[name].w_avg.normal_(std=0.1)
            found[name].dataset_label_std.uniform_()
    return found


@contextlib.contextmanager
def published_names() -> Iterator[dict[str, Any]]:
    """Within it, Python's pickler finds the names of the published code, with nothing behind them."""

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("called")

    def inverse_sigmoid(x):
        raise AssertionError("called")

    things: dict[str, Any] = {"eg3d.torch_utils.persistence._reconstruct_persistent_obj": _reconstruct_persistent_obj}
    things[INVERSE] = inverse_sigmoid
    things[ATTRIBUTE] = enum.Enum("GaussianAttribute", {"POSITION": "position", "SCALE": "scale"})
    for full in PLAIN.values():
        things[full] = type(full.rpartition(".")[2], (), {})
    before = dict(sys.modules)
    for full, thing in things.items():
        module, _, name = full.rpartition(".")
        parts = module.split(".")
        for i in range(1, len(parts) + 1):
            sys.modules.setdefault(".".join(parts[:i]), types.ModuleType(".".join(parts[:i])))
        setattr(sys.modules[module], name, thing)
        thing.__module__, thing.__qualname__ = module, name
    # The pickler of `Persistent` looks where CGS-GAN's files have the function; here its own name stands there.
    sys.modules["torch_utils.persistence"] = sys.modules["eg3d.torch_utils.persistence"]
    try:
        yield things
    finally:
        for name in set(sys.modules) - set(before):
            del sys.modules[name]


def _state(module: nn.Module, parts: dict[str, Any]) -> dict[str, Any]:
    names = ("training", "_parameters", "_buffers", "_non_persistent_buffers_set", "_backward_hooks")
    state = {name: module.__dict__[name] for name in names}
    state["_parameters"], state["_buffers"] = OrderedDict(state["_parameters"]), OrderedDict(state["_buffers"])
    return state | {"_modules": OrderedDict(parts)}


def published(module: nn.Module, things: dict[str, Any], root: str, extra: dict[str, Any], path: str = "") -> Any:
    """`module` as the published code would pickle it."""
    parts = {
        name: published(part, things, root, extra, f"{path}.{name}" if path else name)
        for name, part in module.named_children()
    }
    if isinstance(module, nn.Conv2d) and type(module) is nn.Conv2d:
        return module
    state = _state(module, parts)
    if root == "D":
        kind = "D" if not path else None
    else:
        kind = path if path in PLAIN else ("block" if path.count(".") == 2 and ".b" in path else None)
    if kind is None:
        attributes = {"conv_clamp": 256.0} if path.endswith("conv0") else {}
        return Persistent("Layer", SOURCE, state | attributes)
    plain = things[PLAIN[kind]]()
    plain.__dict__.update(state)
    if not path and root == "G":
        plain.__dict__.update(_generator_extras(things, plain, extra))
    return plain


def _generator_extras(things: dict[str, Any], plain: Any, extra: dict[str, Any]) -> dict[str, Any]:
    config, gaussians = things[PLAIN["config"]](), things[PLAIN["gaussians"]]()
    rendering = things[PLAIN["rendering"]]()
    attribute = things[ATTRIBUTE]
    config.__dict__.update(n_uniform_flame_vertices=10, position_range=0.25, rendering=rendering, scale=np.float32(3))
    config.__dict__.update(uv_attributes=[attribute.POSITION, attribute.SCALE], widths={attribute.SCALE: 3}, **extra)
    gaussians.__dict__.update(
        inverse_opacity_activation=things[INVERSE], scaling_activation=torch.exp, normalise=nn.functional.normalize
    )
    plain._buffers["_gaussian_bg"] = torch.ones(3)
    plain.__dict__["_non_persistent_buffers_set"] = {"_gaussian_bg"}
    return {"_config": config, "_gaussian_model": gaussians}


def write(
    path: Path, modules: dict[str, nn.Module], protocol: int = 4, extra: dict | None = None, **records: Any
) -> Path:
    """A file in the published format; `extra` are settings of G, `records` are added or replace some."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with published_names() as things:
        content: dict[str, Any] = {"training_set_kwargs": {"path": "/data/FFHQ_png_512.zip", "size": np.int64(3)}}
        for name, module in modules.items():
            content[name] = published(module, things, "D" if name == "D" else "G", extra or {})
        path.write_bytes(pickle.dumps(content | records, protocol=protocol))
    return path
