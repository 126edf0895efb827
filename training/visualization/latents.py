"""Chooses the heads that a script shows: latents from seeds, paths through ws, and the files that keep ws."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

import dnnlib
from gaussian import Cameras
from training.families.base import Generator

MAPPED_AT_ONCE = 4096  # latents; bounds the memory of the mapping's results


@dataclass(frozen=True)
class Heads:
    """Holds the K heads of a film: latents that are mapped when the cameras are known, or finished ws."""

    names: list[str]  # of the heads, as parts of file names
    z: Tensor | None = None  # [K, z_dim]
    ws: Tensor | None = None  # [K, num_ws, w_dim], in place of z
    psi: float = 1.0  # truncation of heads from z
    classes: Tensor | None = None  # [K] int64 of heads from z, where the network knows any

    def repeated(self, count: int) -> Heads:
        """Returns the first head, so many times."""
        z, ws, classes = (
            None if x is None else x[:1].repeat_interleave(count, 0) for x in (self.z, self.ws, self.classes)
        )
        return Heads(self.names[:1] * count, z, ws, self.psi, classes)

    def __iter__(self) -> Iterator[Heads]:
        """Yields every head alone."""
        for k in range(len(self.names)):
            z, ws, classes = (None if part is None else part[k : k + 1] for part in (self.z, self.ws, self.classes))
            yield Heads(self.names[k : k + 1], z, ws, self.psi, classes)


def seed_latents(seeds: list[int], z_dim: int) -> Tensor:
    """Draws one latent per seed, [len(seeds), z_dim], as StyleGAN's scripts draw theirs: RandomState(seed).randn."""
    return torch.from_numpy(np.stack([np.random.RandomState(seed).randn(z_dim) for seed in seeds]).astype(np.float32))


def published_latents(seed: int, count: int, z_dim: int) -> Tensor:
    """Draws `count` latents from one seed, [count, z_dim], as the sample script of CGS-GAN draws them."""
    return torch.from_numpy(np.random.RandomState(seed).randn(count, z_dim).astype(np.float32))


def seed_classes(seeds: list[int], num_classes: int) -> Tensor:
    """Draws one class per seed, int64 [len(seeds)], as EpiGRAF's scripts draw theirs: RandomState(seed).choice."""
    return torch.tensor([int(np.random.RandomState(seed).choice(num_classes)) for seed in seeds])


def seed_heads(G: Generator, seeds: list[int], psi: float, classes: str | None = None) -> Heads:
    """Returns the heads of seeds; of a network of classes, every seed in each of `classes`, as in "1,2,5-10".

    None draws a class per seed. Raises ValueError for a class that G does not have.
    """
    names, z = [f"seed{seed:04d}" for seed in seeds], seed_latents(seeds, G.z_dim)
    if not G.num_classes:
        if classes is not None:
            raise ValueError(f"--class={classes}: this network knows no classes; leave it out")
        return Heads(names, z, psi=psi)
    if classes is None:
        return Heads(names, z, psi=psi, classes=seed_classes(seeds, G.num_classes))
    chosen = dnnlib.parse_flag("--class", classes, dnnlib.parse_ints)
    if wrong := [number for number in chosen if not 0 <= number < G.num_classes]:
        raise ValueError(f"--class={classes}: {wrong[0]} is out of range; this network has 0 to {G.num_classes - 1}")
    names = [f"{name}-class{number:03d}" for name in names for number in chosen]
    z = z.repeat_interleave(len(chosen), dim=0)
    return Heads(names, z, psi=psi, classes=torch.tensor(chosen * len(seeds)))


def frontal_ws(G: Generator, z: Tensor, psi: float, classes: Tensor | None = None) -> Tensor:
    """Maps latents z [B, z_dim] to ws [B, num_ws, w_dim] on G's device; classes: int64 [B], if G knows any.

    A mapping that is told a camera is told the frontal one of the data, for every picture of a film or grid alike: what
    changes from picture to picture is the rendering camera, not the head.
    """
    cameras = G.geometry.frontal().to(G.device).expand(len(z))
    return G.mapping(z.to(G.device), cameras, psi, **told_classes(classes, G.device))


def still_ws(G: Generator, heads: Heads) -> Tensor:
    """Returns the ws [K, num_ws, w_dim] of heads on G's device, mapped as by `frontal_ws` where they are latents."""
    if heads.z is not None:
        return frontal_ws(G, heads.z, heads.psi, heads.classes)
    assert heads.ws is not None  # heads have z or ws
    return heads.ws.to(G.device)


def film_ws(
    G: Generator,
    heads: Heads,
    cells: int,  # of the film's grid; each has its share of the heads
    num_frames: int,
    space: str = "w",  # in which heads change into each other: smoothly through "w", or straight through "z"
    told: Cameras | None = None,  # [F], what the mapping is told in each frame; the data's frontal camera if None
) -> Tensor:
    """Returns ws of a film on G's device: [cells, num_ws, w_dim] if they stay, else [F, cells, num_ws, w_dim].

    Straight lines between latents are not brought back to the length of latents, as in GGHead's film.
    Raises ValueError if the heads do not divide into the cells.
    """
    per_cell, rest = divmod(len(heads.names), cells)
    if rest or not per_cell:
        raise ValueError(f"{len(heads.names)} heads are no multiple of {cells}")
    if heads.z is None or (told is None and (space == "w" or per_cell == 1)):
        ws = still_ws(G, heads)
        return ws if per_cell == 1 else interpolate(ws.unflatten(0, (cells, -1)).transpose(0, 1), num_frames)
    z = heads.z.to(G.device).unflatten(0, (cells, -1))  # [cells, k, z_dim]
    classes = None if heads.classes is None else heads.classes.unflatten(0, (cells, -1))  # [cells, k]
    if told is None:
        told = G.geometry.frontal().reshape(1).expand(num_frames)
    if space == "z":
        if classes is not None and not bool((classes == classes[:, :1]).all()):
            raise ValueError(
                "--interpolate=z goes from head to head of one class; give one --class, or --interpolate=w"
            )
        held = None if classes is None else classes[:, 0]
        return along(G, straight(z.transpose(0, 1), num_frames), heads.psi, told, held)
    # A spline is linear in its keyframes, so that those of every frame, told another camera, have these weights.
    weights = interpolate(torch.eye(per_cell, dtype=torch.float64), num_frames)  # [F, k]
    return _mapped(G, z.expand(num_frames, -1, -1, -1), weights, told, heads.psi, classes)


def along(G: Generator, z: Tensor, psi: float, told: Cameras | None = None, classes: Tensor | None = None) -> Tensor:
    """Maps latents z [F, cells, z_dim] of a film to ws [F, cells, num_ws, w_dim] on G's device.

    told: [F], what the mapping is told in each frame; the data's frontal camera if None. classes: int64 [cells].
    """
    if told is None:
        told = G.geometry.frontal().reshape(1).expand(len(z))
    return _mapped(
        G, z.to(G.device)[:, :, None], torch.ones(len(z), 1), told, psi, None if classes is None else classes[:, None]
    )


def _mapped(
    G: Generator, z: Tensor, weights: Tensor, told: Cameras, psi: float, classes: Tensor | None = None
) -> Tensor:
    """Returns the weighted sums [F, cells, num_ws, w_dim] of what z [F, cells, k, z_dim] become under cameras [F].

    classes: int64 [cells, k].
    """
    cells, count = z.shape[1:3]
    parts = []
    for start in range(0, len(z), max(1, MAPPED_AT_ONCE // (cells * count))):
        some = slice(start, start + max(1, MAPPED_AT_ONCE // (cells * count)))
        cameras = told[some].to(G.device).reshape(-1, 1).expand(-1, cells * count).reshape(-1)
        same = None if classes is None else classes.repeat(len(z[some]), 1).flatten()
        ws = G.mapping(z[some].flatten(0, 2), cameras, psi, **told_classes(same, G.device)).unflatten(
            0, (-1, cells, count)
        )
        parts.append(torch.einsum("fk,fck...->fc...", weights[some].to(ws), ws))
    return torch.cat(parts)


def told_classes(classes: Tensor | None, device: torch.device) -> dict[str, Any]:
    """Returns the arguments of a mapping that says what class latents have: none, of one that knows no classes."""
    return {} if classes is None else {"classes": classes.to(device)}


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


def straight(keys: Tensor, num_frames: int) -> Tensor:
    """Lays straight lines from keyframe to keyframe and back to the first: [K, ...] to [num_frames, ...].

    Keyframe j is at j num_frames / K, as in `interpolate`.
    """
    count = len(keys)
    place = torch.arange(num_frames, dtype=torch.float64) * (count / num_frames)
    before = place.long()
    share = (place - before).to(keys).reshape(-1, *(1 for _ in keys.shape[1:]))
    return torch.lerp(keys[before], keys[(before + 1) % count], share)


def save_ws(path: str | Path, ws: Tensor) -> None:
    """Writes ws [B, num_ws, w_dim] as an .npz with the one array `ws`. Raises OSError."""
    with open(path, "wb") as file:  # given a name, savez would append .npz
        np.savez(file, ws=ws.cpu().numpy())


def load_ws(path: str | Path, G: Generator) -> Tensor:
    """Reads ws [B, num_ws, w_dim] (or block_ws of them) from an .npz with an array `ws` (or `w`), float32, on the CPU.

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
    counts = sorted({G.num_ws, G.block_ws or G.num_ws})
    if ws.ndim != 3 or ws.shape[1] not in counts or ws.shape[2] != G.w_dim or len(ws) == 0:
        legal = " or ".join(f"[B, {count}, {G.w_dim}]" for count in counts)
        raise ValueError(f"{name}: ws must have shape {legal} for this network, got {list(ws.shape)}")
    if ws.dtype.kind != "f" or not np.isfinite(ws).all():
        raise ValueError(f"{name}: ws must be finite floating-point numbers")
    return torch.from_numpy(ws.astype(np.float32))
