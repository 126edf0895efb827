"""Writes files in the format of published EG3D networks, with a superresolution, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.training.published import file_writer
from training.families.eg3d.generator import Generator, GeneratorConfig
from training.networks.stylegan2 import SynthesisBlock


class Published(nn.Module):
    """A small network of the published layout, with a superresolution."""

    def __init__(self, G: Generator):
        super().__init__()
        self.backbone, self.decoder, self.superresolution = G.backbone, G.decoder, nn.Module()
        self.superresolution.block0 = SynthesisBlock(4, 8, 3, 12, 8, filter_key=True)


def write(path: Path, seed: int = 0, **settings: Any) -> tuple[Path, Generator]:
    """Writes a small network whose settings are those of FFHQ but for `settings`."""
    torch.manual_seed(seed)
    small = {"z_dim": 16, "w_dim": 12, "plane_resolution": 16, "channel_base": 128, "channel_max": 16, "feature_dim": 4}
    G = Generator(
        GeneratorConfig(64, hidden_dim=8, samples=6, fine_samples=5, box_warp=1.6, pose_conditioning=False, **small)
    )
    kwargs = {
        "box_warp": 1.6, "ray_start": 2.25, "ray_end": 3.3, "depth_resolution": 6, "depth_resolution_importance": 5,
        "c_gen_conditioning_zero": True, "c_scale": 1, "white_back": False, "clamp_mode": "softplus", **settings,
    }  # fmt: skip
    root = {"rendering_kwargs": kwargs, "neural_rendering_resolution": 64}
    modules = {"G_ema": Published(G)}
    return file_writer.write(path, modules, optimizers=False, root=root, augment_pipe=None), G
