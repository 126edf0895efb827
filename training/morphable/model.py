"""Defines morphable models: meshes whose vertices and colours are linear in a few coefficients (Blanz and Vetter 1999).

The world is that of the generators: y up, the face looks along +z from about the origin, and cameras are 2.7 units away
in sets with EG3D's labels. `read_model` opens the files of those who hold a licence for one, `head.procedural_head`
needs no file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

SHAPE_BLOCKS = ("identity", "expression")  # of a latent, from which the vertices follow
MODEL_BLOCKS = (*SHAPE_BLOCKS, "texture", "illumination")  # all that a model gives a meaning
BANDS = 9  # spherical harmonics of the light, of degrees 0 to 2
PROCEDURAL = "procedural"  # names the model that needs no file


@dataclass(frozen=True)
class MorphableModel:
    """Holds a model of V vertices. Coefficients of a block are mean + factor z, with z standard normal ("whitening").

    A factor is the Cholesky factor of the covariance of a data set's coefficients, as CGOF whitens them.
    """

    shape: Tensor  # [V, 3] mean vertices, world units
    identity: Tensor  # [I, V, 3] what a coefficient adds
    expression: Tensor  # [E, V, 3] likewise
    albedo: Tensor  # [V, 3] mean RGB, 0..1
    texture: Tensor  # [T, V, 3] likewise
    triangles: Tensor  # [F, 3] int64, counter-clockwise as seen from outside: the surface that guides
    landmarks: Tensor  # [L] int64 vertices, the outline of the face first
    outline: int  # how many landmarks are the outline's
    means: dict[str, Tensor]  # block -> [n]
    factors: dict[str, Tensor]  # block -> [n, n]
    recipe: str = ""  # of formulas and their version, for a model that no file holds

    @property
    def sizes(self) -> dict[str, int]:
        """Returns the numbers of the model's blocks."""
        return {block: len(mean) for block, mean in self.means.items()}

    @property
    def key(self) -> str:
        """Returns a hash of all that is in the model: what was made with another model does not fit this one.

        A model that no file holds has that of its recipe, as processors round its formulas otherwise. Denormal numbers
        count as 0: training on a CPU makes them so.
        """
        if self.recipe:
            return hashlib.sha256(self.recipe.encode()).hexdigest()[:16]
        digest = hashlib.sha256()
        for name, tensor in sorted(self._tensors().items()):
            digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
            values = tensor.cpu().contiguous().numpy()
            if tensor.is_floating_point():
                values = np.where(np.abs(values) < np.finfo(values.dtype).tiny, values.dtype.type(0), values)
            digest.update(values.tobytes())
        return digest.hexdigest()[:16]

    def _tensors(self) -> dict[str, Tensor]:
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        tensors = {name: value for name, value in own.items() if isinstance(value, Tensor)}
        for table in ("means", "factors"):
            tensors |= {f"{table}/{block}": value for block, value in own[table].items()}
        return tensors

    def to(self, like: Tensor) -> MorphableModel:
        """Returns the model on a tensor's device, in its type."""

        def moved(value: object) -> object:
            if isinstance(value, dict):
                return {name: moved(part) for name, part in value.items()}
            if isinstance(value, Tensor):
                return value.to(like) if value.is_floating_point() else value.to(like.device)
            return value

        values = {f.name: moved(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return MorphableModel(**values)  # type: ignore[arg-type]

    def coefficients(self, block: str, z: Tensor) -> Tensor:
        """Returns the coefficients [..., n] that latents z [..., n] of a block stand for."""
        return self.means[block] + z @ self.factors[block].T

    def whitened(self, block: str, coefficients: Tensor) -> Tensor:
        """Inverts `coefficients`."""
        away = (coefficients - self.means[block]).unsqueeze(-1)
        return torch.linalg.solve_triangular(self.factors[block], away, upper=False).squeeze(-1)

    def vertices(self, identity: Tensor, expression: Tensor) -> Tensor:
        """Returns the vertices [B, V, 3] of coefficients [B, I] and [B, E]."""
        return self.shape + _sum(identity, self.identity) + _sum(expression, self.expression)

    def colours(self, texture: Tensor) -> Tensor:
        """Returns the albedo [B, V, 3] of coefficients [B, T], within 0..1."""
        return (self.albedo + _sum(texture, self.texture)).clamp(0, 1)

    def looks(self, vertices: Tensor, texture: Tensor, illumination: Tensor) -> Tensor:
        """Returns the lit colours [B, V, 3], within 0..1, of vertices [B, V, 3] and coefficients [B, T] and [B, 27]."""
        return lit(self.colours(texture), vertex_normals(vertices, self.triangles), illumination)


def _sum(coefficients: Tensor, basis: Tensor) -> Tensor:
    return (coefficients @ basis.flatten(1)).unflatten(-1, basis.shape[1:])


def vertex_normals(vertices: Tensor, triangles: Tensor) -> Tensor:
    """Returns unit normals [B, V, 3] of vertices [B, V, 3], the mean of their triangles' by area."""
    a, b, c = (vertices[:, triangles[:, i]] for i in range(3))
    face = torch.linalg.cross(b - a, c - a)
    total = torch.zeros_like(vertices)
    for i in range(3):
        total.index_add_(1, triangles[:, i], face)
    return torch.nn.functional.normalize(total, dim=-1)


def harmonics(normals: Tensor) -> Tensor:
    """Returns the values [..., 9] of real spherical harmonics up to degree 2 at unit normals [..., 3].

    They are scaled so that a light of coefficient 1 in the first band alone leaves colours as they are (Ramamoorthi and
    Hanrahan 2001).
    """
    x, y, z = normals.unbind(-1)
    first, second = (torch.ones_like(x), y, z, x), (x * y, y * z, (3 * z * z - 1) / 2, x * z, (x * x - y * y) / 2)
    return torch.stack([*first, *second], dim=-1)


def lit(colours: Tensor, normals: Tensor, illumination: Tensor) -> Tensor:
    """Returns colours [B, V, 3] under lights [B, 27], 9 bands for each of red, green and blue; within 0..1."""
    light = torch.einsum("bvk,bck->bvc", harmonics(normals), illumination.unflatten(-1, (3, BANDS)))
    return (colours * light).clamp(0, 1)


# ---------------------------------------------------------------- files

_ARRAYS = {  # name -> shape, in which a letter stands for one number throughout, and "3" for itself
    "shape": "V3",
    "identity": "IV3",
    "expression": "EV3",
    "albedo": "V3",
    "texture": "TV3",
    "triangles": "F3",
    "landmarks": "L",
    "identity_mean": "I",
    "identity_factor": "II",
    "expression_mean": "E",
    "expression_factor": "EE",
    "texture_mean": "T",
    "texture_factor": "TT",
    "illumination_mean": "G",
    "illumination_factor": "GG",
}
_INDICES = ("triangles", "landmarks")
OUTLINE = 17  # landmarks of the usual 68 that are the outline of the face


def read_model(path: str | os.PathLike[str], flag: str = "--morphable") -> MorphableModel:
    """Opens an .npz with the arrays of docs/control.md; `write_model` writes one, and nothing in it is run.

    Raises ValueError, with the flag and the file's name, for one that cannot be read, lacks an array or has one of a
    wrong shape.
    """
    name = str(path)
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {key: content[key] for key in _ARRAYS if key in content}
    except FileNotFoundError:
        raise ValueError(f"{flag}={name}: no such file") from None
    except (ValueError, OSError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{flag}={name}: not an .npz of a morphable model (docs/control.md)") from error
    try:
        return _checked(arrays)
    except ValueError as error:
        raise ValueError(f"{flag}={name}: {error}") from None


def _checked(arrays: dict[str, np.ndarray]) -> MorphableModel:
    if missing := [key for key in _ARRAYS if key not in arrays]:
        raise ValueError(f"the array {missing[0]!r} is missing; legal are {', '.join(_ARRAYS)}")
    known = {"3": 3, "G": 3 * BANDS}
    for key, form in _ARRAYS.items():
        array = arrays[key]
        expected = [known.setdefault(letter, size) for letter, size in zip(form, array.shape, strict=False)]
        if array.ndim != len(form) or list(array.shape) != expected:
            wanted = [known.get(letter, letter) for letter in form]
            raise ValueError(f"{key} must have shape {wanted}, got {list(array.shape)}")
        kinds = "iu" if key in _INDICES else "f"
        if array.dtype.kind not in kinds or not np.isfinite(array).all():
            raise ValueError(f"{key} must hold finite numbers of kind {kinds}, got {array.dtype}")
    for key in _INDICES:
        if arrays[key].size and not 0 <= arrays[key].min() <= arrays[key].max() < known["V"]:
            raise ValueError(f"{key} must name vertices 0 to {known['V'] - 1}")
    for block in MODEL_BLOCKS:
        factor = arrays[f"{block}_factor"]
        if np.triu(factor, 1).any() or not (np.diagonal(factor) > 0).all():
            raise ValueError(f"{block}_factor must be lower triangular with a positive diagonal")
    tensors = {k: torch.from_numpy(v.astype(np.int64 if k in _INDICES else np.float32)) for k, v in arrays.items()}
    tables = {kind: {b: tensors.pop(f"{b}_{kind[:-1]}") for b in MODEL_BLOCKS} for kind in ("means", "factors")}
    return MorphableModel(**tensors, outline=min(OUTLINE, known["L"]), **tables)  # type: ignore[arg-type]


def write_model(path: str | os.PathLike[str], model: MorphableModel) -> None:
    """Writes a model in the layout that `read_model` opens."""
    arrays = {k: v.cpu().numpy() for k, v in model._tensors().items() if "/" not in k}
    for kind in ("means", "factors"):
        arrays |= {f"{block}_{kind[:-1]}": value.cpu().numpy() for block, value in getattr(model, kind).items()}
    with open(Path(path), "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
