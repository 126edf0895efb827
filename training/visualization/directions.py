"""Finds directions in which w changes heads, and keeps them in files that films, pictures and the viewer read.

Principal directions of w: GANSpace (Haerkoenen et al. 2020). Closed form of the first layers: SeFa (Shen and Zhou 2021,
equation 4). By scores: linear regression on w, and of w on several scores where the others are to stay, which is what
InterFaceGAN's conditional manipulation (Shen et al. 2020) wants for pairs.
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from torch_utils import random
from training.families.base import Generator
from training.visualization import latents

METHODS = ("pca", "layers")  # those that need no scores
SAMPLES = 4096  # heads that the spread of w is measured on
RIDGES = 10.0 ** np.arange(-8, 1.1, 0.5)  # strengths that are tried, over the largest variance of w
LEAST_SCORES = 20  # rows of a table


@dataclass(frozen=True)
class Directions:
    """Holds directions of one network's w."""

    network: str  # its `network_key`
    names: tuple[str, ...]
    axes: Tensor  # [D, w_dim] of unit length, float32
    deviations: Tensor  # [D] standard deviation of w along each
    shares: Tensor  # [D] of the variance of w (pca), of what the layers heed (layers), of the score's variance (scores)

    def __len__(self) -> int:
        return len(self.names)

    def step(self, name: str) -> Tensor:
        """Returns one standard deviation along a direction, [w_dim]. Raises ValueError that lists the names."""
        if name not in self.names:
            raise ValueError(f"there is no direction {name!r}; legal are {', '.join(self.names)}")
        k = self.names.index(name)
        return self.axes[k] * self.deviations[k]

    def joined(self, other: Directions) -> Directions:
        """Returns both together. Raises ValueError if a name is in both."""
        if twice := set(self.names) & set(other.names):
            raise ValueError(f"two directions are called {min(twice)!r}")
        axes, deviations = torch.cat([self.axes, other.axes]), torch.cat([self.deviations, other.deviations])
        return Directions(
            self.network, self.names + other.names, axes, deviations, torch.cat([self.shares, other.shares])
        )


def network_key(G: Generator) -> str:
    """Returns what tells a generator from others: a hash of its parameters and buffers, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, value in sorted(G.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


@torch.no_grad()
def sampled_w(G: Generator, count: int = SAMPLES) -> Tensor:
    """Returns w [count, w_dim] of heads without truncation, float64 on the CPU.

    A mapping that heeds a camera is told the data's frontal one. Where ws of a head differ, these are the first.
    """
    z = random.normal(0, "directions/z", range(count), (G.z_dim,))
    return w_of(G, z)


@torch.no_grad()
def w_of(G: Generator, z: Tensor, classes: Tensor | None = None) -> Tensor:
    """Returns w [N, w_dim] of latents z [N, z_dim], as `sampled_w` does; classes: int64 [N], if G knows any."""
    rows = torch.arange(len(z)).split(latents.MAPPED_AT_ONCE)
    told = [None if classes is None else classes[some] for some in rows]
    parts = [latents.frontal_ws(G, z[some], 1.0, own)[:, 0] for some, own in zip(rows, told, strict=True)]
    return torch.cat([part.cpu().double() for part in parts])


# ---------------------------------------------------------------- finding


def principal(G: Generator, w: Tensor, count: int) -> Directions:
    """Returns the directions along which w [N, w_dim] spreads most, pca1 the most."""
    centred = w - w.mean(0)
    _, sizes, axes = torch.linalg.svd(centred, full_matrices=False)
    shares = sizes.square() / sizes.square().sum()
    return _made(G, "pca", axes[:count], w, shares[:count])


@torch.no_grad()
def closed_form(G: Generator, w: Tensor, count: int) -> Directions:
    """Returns the directions that the layers which read w heed most: eigenvectors of the sum of A^T A.

    Shares are those of the sum of all eigenvalues; deviations are measured on w [N, w_dim].
    Raises ValueError for a network whose family names no such layers.
    """
    matrices = [matrix.cpu().double() for matrix in G.style_weights()]
    gram = torch.stack([matrix.t() @ matrix for matrix in matrices]).sum(0)
    values, vectors = torch.linalg.eigh(gram)  # ascending
    axes = G.styles_to_w(vectors.t().flip(0)[:count].to(G.style_weights()[0])).cpu().double()
    return _made(G, "layers", axes, w, (values.flip(0) / values.sum())[:count])


def _made(G: Generator, kind: str, axes: Tensor, w: Tensor, shares: Tensor) -> Directions:
    """Gives directions unit length, names, and signs that do not depend on the library that found them."""
    axes = axes / axes.norm(dim=1, keepdim=True)
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    axes = axes * largest.sign()
    names = tuple(f"{kind}{k + 1}" for k in range(len(axes)))
    return Directions(network_key(G), names, axes.float(), (w @ axes.t()).std(0).float(), shares.float())


@dataclass(frozen=True)
class Scores:
    """Holds a table: a row a seed, a column a score."""

    seeds: tuple[int, ...]
    names: tuple[str, ...]
    values: np.ndarray  # [N, T] float64, finite


def by_scores(G: Generator, scores: Scores, hold: bool = True) -> Directions:
    """Returns a direction for each score, along which it grows, as a ridge regression on w of the seeds has it.

    hold: each direction is the change of w where its score grows and the others of the table stay, of a linear
    regression of w on the scores; else the mean change where its score grows, and whatever goes along with it in the
    seeds goes along. Shares are those of the scores' variances that w explains on seeds that were left out, one by
    one; the strength of the ridge makes them largest.
    """
    seeds = list(scores.seeds)
    classes = latents.seed_classes(seeds, G.num_classes) if G.num_classes else None
    w = w_of(G, latents.seed_latents(seeds, G.z_dim), classes)
    told, shares = regressed(w.numpy(), scores.values)  # [N, T]
    centred = w - w.mean(0)
    changes = told.t() @ centred  # [T, w_dim] covariances times N - 1; what w does not tell of scores adds noise alone
    if hold:
        y = torch.from_numpy(_standardised(scores.values))
        changes = torch.linalg.pinv(y.t() @ y, hermitian=True) @ changes
    axes = changes / changes.norm(dim=1, keepdim=True).clamp(min=1e-30)
    return Directions(network_key(G), scores.names, axes.float(), (centred @ axes.t()).std(0).float(), shares.float())


def _standardised(scores: np.ndarray) -> np.ndarray:
    """Gives every column [N, T] the mean 0 and the standard deviation 1."""
    result: np.ndarray = (scores - scores.mean(0)) / scores.std(0)
    return result


def regressed(w: np.ndarray, scores: np.ndarray) -> tuple[Tensor, Tensor]:
    """Returns what a ridge regression on w [N, w_dim] tells of standardised scores [N, T], and the shares [T].

    Shares of the variance are those of predictions for rows that were left out, in closed form.
    """
    x = w - w.mean(0)
    y = _standardised(scores)
    left, sizes, _ = np.linalg.svd(x, full_matrices=False)
    projected = left.T @ y
    best = np.full(y.shape[1], -np.inf)
    told = np.zeros_like(y)
    for ridge in RIDGES * sizes.max() ** 2:
        kept = sizes**2 / (sizes**2 + ridge)
        fitted = left @ (kept[:, None] * projected)
        leverage = (left**2 @ kept + 1 / len(y)).clip(max=1 - 1e-6)
        share = 1 - np.square((y - fitted) / (1 - leverage[:, None])).mean(0)
        better = share > best
        best[better], told[:, better] = share[better], fitted[:, better]
    return torch.from_numpy(told), torch.from_numpy(best)


# ---------------------------------------------------------------- files


def save_directions(path: str | Path, found: Directions) -> None:
    """Writes an .npz with `names`, `axes`, `deviations`, `shares` and `network`. Raises OSError."""
    with open(path, "wb") as file:  # given a name, savez would append .npz
        np.savez(
            file,
            names=np.array(found.names),
            axes=found.axes.numpy(),
            deviations=found.deviations.numpy(),
            shares=found.shares.numpy(),
            network=np.array(found.network),
        )


def read_directions(path: str | Path, G: Generator | None = None) -> Directions:
    """Reads what `save_directions` wrote.

    Raises ValueError if the file is no such thing, or if its directions are not those of G.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            names = tuple(str(name) for name in content["names"])
            axes, deviations, shares = (
                torch.from_numpy(content[key].astype(np.float32)) for key in ("axes", "deviations", "shares")
            )
            found = Directions(str(content["network"]), names, axes, deviations, shares)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file of directions; find_directions.py writes one") from None
    except (ValueError, OSError, EOFError, KeyError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a file of directions as find_directions.py writes it") from error
    count = len(names)
    whole = axes.ndim == 2 and len(axes) == count > 0 and deviations.shape == shares.shape == (count,)
    if not whole or not (axes.isfinite().all() and deviations.isfinite().all()):
        raise ValueError(f"{path}: not a file of directions as find_directions.py writes it")
    if G is not None and found.network != network_key(G):
        raise ValueError(
            f"{path}: directions of another network ({found.network}, and this one is {network_key(G)}); "
            "find_directions.py --network finds those of this one"
        )
    return found


def read_scores(path: str | Path) -> Scores:
    """Reads a table with a column `seed` (.npz: an array `seed` or `seeds`) and a column for each score.

    Raises ValueError for another file, for fewer than LEAST_SCORES rows, and for scores that are not finite or all
    equal.
    """
    try:
        columns = _npz_columns(path) if str(path).endswith(".npz") else _csv_columns(path)
    except FileNotFoundError:
        raise ValueError(f"--scores={path}: no such file") from None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"--scores={path}: legal is a .csv with the columns seed,score,... or an .npz of them"
        ) from error
    seeds = columns.pop("seed", columns.pop("seeds", None))
    if seeds is None or not columns or any(c.shape != seeds.shape or c.ndim != 1 for c in columns.values()):
        raise ValueError(f"--scores={path}: legal are a column seed and at least one of scores, all equally long")
    if len(seeds) < LEAST_SCORES:
        raise ValueError(f"--scores={path}: {len(seeds)} rows, and at least {LEAST_SCORES} say something")
    if not (np.isfinite(seeds).all() and (seeds == np.floor(seeds)).all() and (seeds >= 0).all()):
        raise ValueError(f"--scores={path}: seeds must be whole numbers from 0 on")
    for name, values in columns.items():
        if not np.isfinite(values).all() or values.std() == 0:
            raise ValueError(f"--scores={path}: the scores of {name} must be finite, and not all equal")
    return Scores(tuple(int(s) for s in seeds), tuple(columns), np.stack(list(columns.values()), axis=1))


def _npz_columns(path: str | Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as content:
        return {name: content[name].astype(np.float64) for name in content.files}


def _csv_columns(path: str | Path) -> dict[str, np.ndarray]:
    with open(path, encoding="utf-8") as file:
        names = [name.strip() for name in file.readline().split(",")]
        rows = np.loadtxt(file, delimiter=",", ndmin=2, dtype=np.float64)
    if rows.shape[1] != len(names) or len(set(names)) != len(names):
        raise ValueError("the head of the table does not fit its rows")
    return {name: rows[:, k] for k, name in enumerate(names)}
