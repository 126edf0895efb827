"""Chooses the heads that a script shows: latents from seeds, paths through ws, and the files that keep ws."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from training.families.base import Generator


def seed_latents(seeds: list[int], z_dim: int) -> Tensor:
    """Draws one latent per seed, [len(seeds), z_dim], as StyleGAN's scripts draw theirs: RandomState(seed).randn."""
    return torch.from_numpy(np.stack([np.random.RandomState(seed).randn(z_dim) for seed in seeds]).astype(np.float32))


def published_latents(seed: int, count: int, z_dim: int) -> Tensor:
    """Draws `count` latents from one seed, [count, z_dim], as the sample script of CGS-GAN draws them."""
    return torch.from_numpy(np.random.RandomState(seed).randn(count, z_dim).astype(np.float32))


def frontal_ws(G: Generator, z: Tensor, psi: float) -> Tensor:
    """Maps latents z [B, z_dim] to ws [B, num_ws, w_dim] on G's device.

    A mapping that is told a camera is told the frontal one of the data, for every picture of a film or grid alike: what
    changes from picture to picture is the rendering camera, not the head.
    """
    cameras = G.geometry.frontal().to(G.device).expand(len(z))
    return G.mapping(z.to(G.device), cameras, psi)


def interpolate(keys: Tensor, num_frames: int) -> Tensor:
    """Lays a smooth closed path through keyframes: ws [K, ...] to [num_frames, ...], keyframe j at j num_frames / K.

    The path is a periodic cubic spline in every coordinate, so that position, velocity and acceleration close.
    """
    count = len(keys)
    if count == 1:
        return keys.expand(num_frames, *keys.shape[1:])
    closed = torch.cat([keys, keys[:1]]).double().cpu().numpy()
    spline = CubicSpline(np.arange(count + 1), closed, axis=0, bc_type="periodic")
    return torch.from_numpy(spline(np.arange(num_frames) * (count / num_frames))).to(keys)


def save_ws(path: str | Path, ws: Tensor) -> None:
    """Writes ws [B, num_ws, w_dim] as an .npz with the one array `ws`. Raises OSError."""
    with open(path, "wb") as file:  # given a name, savez would append .npz
        np.savez(file, ws=ws.cpu().numpy())


def load_ws(path: str | Path, G: Generator) -> Tensor:
    """Reads ws [B, num_ws, w_dim] from an .npz with an array `ws` (or `w`), float32, on the CPU.

    Raises ValueError if the file is no such thing, or if its ws are of another generator's shape or not finite.
    """
    name = str(path)
    try:
        with np.load(path, allow_pickle=False) as content:
            key = next((k for k in ("ws", "w") if k in content), None)
            ws = None if key is None else content[key]
    except FileNotFoundError:
        raise ValueError(f"{name}: no such file of ws") from None
    except (ValueError, OSError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{name}: not an .npz of ws as gen_samples.py --w-out writes it") from error
    if ws is None:
        raise ValueError(f"{name}: holds no array ws; gen_samples.py --w-out writes one")
    if ws.ndim != 3 or ws.shape[1:] != (G.num_ws, G.w_dim) or len(ws) == 0:
        raise ValueError(
            f"{name}: ws must have shape [B, {G.num_ws}, {G.w_dim}] for this network, got {list(ws.shape)}"
        )
    if ws.dtype.kind != "f" or not np.isfinite(ws).all():
        raise ValueError(f"{name}: ws must be finite floating-point numbers")
    return torch.from_numpy(ws.astype(np.float32))
