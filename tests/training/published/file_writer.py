"""Writes files in the format of published checkpoints, without the published code.

A published file is a pickle of live modules whose classes travel as source text (docs/checkpoints.md). Here a module of
ours lends its names, and stand-ins under the published names do the pickling: Python's own pickler and torch's own
reductions write every byte.
"""

from __future__ import annotations

import contextlib
import copy
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.training.gan import awaken
from training.families.cgs.generator import Generator, GeneratorConfig
from training.networks.discriminator import Discriminator, DiscriminatorConfig

SOURCE = """import os
os.system('touch executed')

class PointGenerator:
    def coarse(self, x):
        return level(x, xyz_scale=0.2, scale=torch.tensor({scale}, device=x.device), rotation=self.rotation_init)
"""


def small_generator(**changes: Any) -> GeneratorConfig:
    """The published layout at 32 px, with few points and narrow layers."""
    values = {"resolution": 32, "z_dim": 32, "w_dim": 32, "num_points": 80, "ratios": (1, 4), "widths": (32, 16)}
    return GeneratorConfig(**{**values, "first_blocks": 2, "num_heads": 8, **changes})


def small_discriminator() -> DiscriminatorConfig:
    return DiscriminatorConfig(32, (8, 12, 16, 16), embedding_dim=16, mapping_depth=3, conv_clamp=256.0)


class Persistent:
    """Stands for an object of a class whose source text is pickled with it."""

    def __init__(self, class_name: str, source: str, state: dict[str, Any], record: type = dict, version: int = 6):
        self.meta = record(type="class", version=version, module_src=source, class_name=class_name, state=state)

    def __reduce__(self):
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


@contextlib.contextmanager
def published_names() -> Iterator[types.SimpleNamespace]:
    """Within it, Python's pickler finds the names of the published code, with nothing behind them."""

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("called")

    EasyDict = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})
    Renderer = type("Renderer", (), {"__module__": "training.gaussian3d_splatting.renderer"})
    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    things = {
        "torch_utils.persistence": _reconstruct_persistent_obj,
        "dnnlib.util": EasyDict,
        "training.gaussian3d_splatting": None,
        "training.gaussian3d_splatting.renderer": Renderer,
    }
    for name, thing in things.items():
        sys.modules[name] = types.ModuleType(name)
        if thing is not None:
            setattr(sys.modules[name], thing.__name__, thing)
    try:
        yield types.SimpleNamespace(EasyDict=EasyDict, Renderer=Renderer)
    finally:
        for name in things:
            del sys.modules[name]


def published(module: nn.Module, source: str, attributes: dict[str, dict], record: type, path: str = "") -> Any:
    """`module` as the published code would pickle it: containers and nn.Linear as they are, the rest with source."""
    parts = {
        name: published(part, source, attributes, record, f"{path}.{name}" if path else name)
        for name, part in module.named_children()
    }
    if isinstance(module, nn.ModuleList | nn.ModuleDict | nn.Sequential | nn.Linear):
        plain = copy.copy(module)
        plain.__dict__ = {**module.__dict__, "_modules": OrderedDict(parts)}
        return plain
    names = ("training", "_parameters", "_buffers", "_non_persistent_buffers_set", "_backward_hooks")
    state = {name: module.__dict__[name] for name in names}
    state["_parameters"] = OrderedDict(state["_parameters"])
    state["_buffers"] = OrderedDict(state["_buffers"])
    state["_modules"] = OrderedDict(parts)
    state["_init_args"], state["_init_kwargs"] = (), record(size=3)
    state |= attributes.get(path, {})
    name = {"": "Network", "point_gen": "PointGenerator"}.get(path, "Layer")
    return Persistent(name, source, state, record)


def published_adam(module: nn.Module) -> torch.optim.Adam:
    """Adam with the published groups after a step in which what is never evaluated had no gradient."""
    named = dict(module.named_parameters())
    groups = [{"params": [p for name, p in named.items() if name != "_xyz"]}]
    if "_xyz" in named:
        groups.append({"params": [named["_xyz"]], "name": "xyz"})
    optimizer = torch.optim.Adam(groups, lr=0.0, betas=(0.0, 0.99))  # the module keeps its weights
    generator = torch.Generator().manual_seed(3)
    for i, (name, p) in enumerate(named.items()):
        if "b8_pose" not in name and not name.startswith("point_gen.anchors.xyz.1"):
            p.grad = torch.randn(p.shape, generator=generator) * (i + 1)
    optimizer.step()
    for p in named.values():
        p.grad = None
    return optimizer


def networks(seed: int = 0, coarse_log_scale: float = -5.0) -> dict[str, nn.Module]:
    """G, D and G_ema of the small published layout, all of their tensors apart."""
    torch.manual_seed(seed)
    config = small_generator(coarse_log_scale=coarse_log_scale)
    found = {"G": Generator(config), "D": Discriminator(small_discriminator()), "G_ema": Generator(config)}
    with torch.no_grad():
        for name in ("G", "G_ema"):
            found[name].dataset_label_std.uniform_()
            found[name].mapping_network.w_avg.normal_(std=0.1)
            awaken(found[name], std=0.5)
    return found


def write(
    path: Path,
    modules: dict[str, nn.Module],
    scale: str = "-5.",
    num_ws: int = 1,
    optimizers: bool = True,
    easy: bool = True,  # records as EasyDict, as some writers have them
    protocol: int = 4,
    root: dict[str, Any] | None = None,  # attributes of the networks themselves
    **records: Any,
) -> Path:
    """A file in the published format; `records` are added to it or replace some of its own."""
    source = SOURCE.format(scale=scale)
    with published_names() as names:
        record = names.EasyDict if easy else dict
        attributes = {
            "": {"renderer": names.Renderer(), "custom_options": record(res_end=8), "num_ws": num_ws} | (root or {}),
            "mapping_network": {"num_ws": num_ws},
            "b4.mbstd": {"group_size": 4},
        }
        content: dict[str, Any] = {"training_set_kwargs": record(class_name="training.X", path="/data/FFHQC/32")}
        content |= {name: published(m, source, attributes, record) for name, m in modules.items()}
        if optimizers:
            g_opt, d_opt = (published_adam(modules[name]).state_dict() for name in ("G", "D"))
            phases = (("Gboth", "G", g_opt, 1), ("Dmain", "D", d_opt, 1), ("Dreg", "D", d_opt, 16))
            for phase, name, opt, every in phases:
                content |= {f"{phase}_module": content[name], f"{phase}_opt": opt, f"{phase}_interval": every}
        path.write_bytes(pickle.dumps(content | records, protocol=protocol))
    return path
