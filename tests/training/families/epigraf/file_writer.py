"""Writes files in the format of published EpiGRAF snapshots, without the published code.

Networks are pickled with the text of their classes, and carry a tree of configuration objects whose classes the file
names (docs/checkpoints.md). Python's own pickler and torch's own reductions write every byte.
"""

from __future__ import annotations

import contextlib
import copy
import pickle
import sys
import types
import typing
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.training.families.epigraf.small import discriminator_config, generator_config
from training.families.epigraf.discriminator import Discriminator
from training.families.epigraf.generator import Generator
from training.families.epigraf.presets import unit, whole_fov
from training.families.epigraf.published import published_name

SOURCE = "import os\nos.system('touch executed')\n"
FUNCTION = "_reconstruct_persistent_obj"
PERSISTENCE, RECORDS, OMEGACONF = "src.torch_utils.persistence", "src.dnnlib.util", "omegaconf"
CONFIG_CLASSES = {
    "DictConfig": "omegaconf.dictconfig",
    "AnyNode": "omegaconf.nodes",
    "ContainerMetadata": "omegaconf.base",
    "Metadata": "omegaconf.base",
}
SETTINGS: dict[str, Any] = {  # of a run: what networks refer to with ${...} stands at the root
    "dataset": {
        "resolution": 16, "cube_scale": 0.475, "white_back": True, "last_back": False, "c_dim": 0,
        "camera": {"fov": 30, "ray_start": 0.75, "ray_end": 1.25, "radius": 1.0},
    },
    "training": {"gamma": 0.05, "patch": {"resolution": 8, "enabled": True}},
    "model": {
        "generator": {
            "dataset": "${dataset}", "patch": "${training.patch}", "num_ray_steps": 6, "clamp_mode": "relu",
            "density_shift": 0.5, "camera_cond": False, "camera_cond_drop_p": 0.0,
            "tri_plane": {"res": 16, "feat_dim": 4, "has_view_cond": False},
            "bg_model": {"type": None, "num_steps": 3, "start": 1},
        },
        "discriminator": {
            "patch": "${training.patch}", "camera_cond": False, "camera_cond_drop_p": 0.25,
            "num_additional_start_blocks": 1,
        },
    },
}  # fmt: skip


class Persistent:
    """Stands for an object of a class whose source text is pickled with it."""

    def __init__(self, class_name: str, state: dict[str, Any], record: type):
        self.meta = record(type="class", version=6, module_src=SOURCE, class_name=class_name, state=state)

    def __reduce__(self) -> Any:
        return getattr(sys.modules[PERSISTENCE], FUNCTION), (self.meta,)


@contextlib.contextmanager
def published_names() -> Iterator[dict[str, type]]:
    """Within it, Python's pickler finds the names of the published code, with nothing behind them."""

    def reconstruct(meta: Any) -> Any:
        raise AssertionError("called")

    reconstruct.__module__, reconstruct.__qualname__ = PERSISTENCE, FUNCTION
    classes = {"EasyDict": type("EasyDict", (dict,), {"__module__": RECORDS})}
    classes |= {name: type(name, (), {"__module__": module}) for name, module in CONFIG_CLASSES.items()}
    names = {name for part in (PERSISTENCE, RECORDS, *CONFIG_CLASSES.values()) for name in _packages(part)}
    before = {name: sys.modules.get(name) for name in names}
    for name in names:
        sys.modules[name] = types.ModuleType(name)
    setattr(sys.modules[PERSISTENCE], FUNCTION, reconstruct)
    for name, cls in classes.items():
        setattr(sys.modules[cls.__module__], name, cls)
    try:
        yield classes
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def _packages(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def tree(content: Any, classes: dict[str, type], parent: Any = None) -> Any:
    """The nodes of a configuration, as OmegaConf holds them."""
    node = classes["DictConfig" if isinstance(content, dict) else "AnyNode"]()
    node.__dict__ |= {"_metadata": classes["ContainerMetadata"](), "_parent": parent}
    node._metadata.__dict__ |= {"ref_type": typing.Any, "object_type": dict, "key_type": typing.Any, "flags": {}}
    if isinstance(content, dict):
        node._content = {name: tree(value, classes, node) for name, value in content.items()}
    else:
        node._val = content
    return node


def networks(seed: int = 0, generator: dict | None = None, discriminator: dict | None = None) -> dict[str, nn.Module]:
    """G, D and G_ema of a small member, all of their tensors apart."""
    torch.manual_seed(seed)
    settings = {
        "samples": 6,
        "density": "relu",
        "density_shift": 0.5,
        "cube_scale": 0.475,
        "ray_start": 0.75,
        "ray_end": 1.25,
        "unit": unit(whole_fov(30.0, 16)),
    }
    made = [Generator(generator_config(**{**settings, **(generator or {})})) for _ in range(2)]
    D = Discriminator(discriminator_config(**{"camera_dropout": 0.25, **(discriminator or {})}))
    for module in made:
        module.w_avg.normal_(std=0.1)
    return {"G": made[0], "D": D, "G_ema": made[1]}


def pickled(module: nn.Module, cfg: Any, record: type, extra: dict[str, Any]) -> Any:
    """A network as the published code would pickle it."""
    root = nn.Module()
    for name, tensor in module.state_dict(keep_vars=True).items():
        *path, last = published_name(name).split(".")
        owner = root
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner._modules[part]  # type: ignore[assignment]
        if isinstance(tensor, nn.Parameter):
            owner.register_parameter(last, tensor)
        else:
            owner.register_buffer(last, tensor)
    return _persistent(root, cfg, record, extra)


def _persistent(module: nn.Module, cfg: Any, record: type, extra: dict[str, Any]) -> Persistent:
    names = ("training", "_parameters", "_buffers", "_non_persistent_buffers_set", "_backward_hooks")
    state = {name: copy.copy(module.__dict__[name]) for name in names}
    for name in ("_parameters", "_buffers"):
        state[name] = OrderedDict(state[name])
    state["_modules"] = OrderedDict(
        (name, _persistent(part, cfg, record, {})) for name, part in module.named_children()
    )
    return Persistent("Layer", {**state, "cfg": cfg, **extra}, record)


def optimizer(module: nn.Module) -> torch.optim.Adam:
    """A whole optimiser with a state, as these files hold it."""
    parameters = list(module.parameters())[:2]
    made = torch.optim.Adam(parameters, lr=0.0025, betas=(0.0, 0.99))
    made.state = defaultdict(dict, {parameters[0]: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}})
    return made


def write(
    path: Path, modules: dict[str, nn.Module], settings: dict[str, Any] | None = None, protocol: int = 4, **records: Any
) -> Path:
    """A file in the published format; `records` are added to it or replace some of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with published_names() as classes:
        record = classes["EasyDict"]
        root = tree(SETTINGS if settings is None else settings, classes)
        content: dict[str, Any] = {"training_set_kwargs": record(path="/data/things.zip", resolution=16)}
        for name, module in modules.items():
            part = root._content["model"]._content["discriminator" if name == "D" else "generator"]
            extra = {} if name == "D" else {"img_resolution": module.resolution}
            content[name] = pickled(module, part, record, extra)
        content |= {"augment_pipe": None, "stats": record(cur_nimg=1000, cur_tick=2, best_metric_value=float("inf"))}
        content["vis"] = record(
            grid_size=(2, 1), labels=np.zeros([2, 0], dtype=np.float32), grid_z=(torch.zeros(1, 4),)
        )
        if "D" in modules:
            content |= {"G_opt": optimizer(modules["G"]), "D_opt": optimizer(modules["D"])}
        path.write_bytes(pickle.dumps(content | records, protocol=protocol))
    return path
