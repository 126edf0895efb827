"""Names the parts of a latent that mean something of their own, so that one can be changed while the others stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gaussian import Cameras

ORDER = ("identity", "expression", "background", "texture", "illumination", "background_texture")  # as in CGOF


@dataclass(frozen=True)
class Blocks:
    """Holds where the blocks of a latent are. Latents are normal numbers; a model's coefficients follow from them."""

    slices: Mapping[str, slice]

    @classmethod
    def of(cls, model_sizes: Mapping[str, int], background: int, background_texture: int) -> Blocks:
        """Returns the blocks of CGOF for a model, with so many numbers for what the model does not describe."""
        sizes = {**model_sizes, "background": background, "background_texture": background_texture}
        slices, start = {}, 0
        for name in ORDER:
            slices[name] = slice(start, start + sizes[name])
            start += sizes[name]
        return cls(slices)

    @property
    def total(self) -> int:
        """Numbers of a latent."""
        return max(part.stop for part in self.slices.values())

    def __getitem__(self, name: str) -> slice:
        """Returns where a block is. Raises ValueError that lists the legal names."""
        if name not in self.slices:
            raise ValueError(f"there is no block {name!r}; legal are {', '.join(self.slices)}")
        return self.slices[name]

    def take(self, z: Tensor, name: str) -> Tensor:
        """Returns a block [..., n] of latents [..., total]."""
        return z[..., self[name]]

    def put(self, z: Tensor, name: str, values: Tensor) -> Tensor:
        """Returns latents with a block from elsewhere, [..., n] or what broadcasts to it."""
        part = self[name]
        values = values.expand(*z.shape[:-1], part.stop - part.start)
        return torch.cat([z[..., : part.start], values, z[..., part.stop :]], dim=-1)


class Controllable:
    """Is the base of generators: whose latents may have named blocks, and whose layers may be asked for directions."""

    blocks: Blocks | None = None  # parts of a latent that can be changed one by one; None: it is one piece
    surface: Any = None  # `training.control.surface.Surface`, what the blocks of the shape ask for

    @property
    def device(self) -> torch.device:
        """Where it is; every generator says."""
        raise NotImplementedError

    def reader(self) -> tuple[Callable[[Tensor], Mapping[str, Tensor]], str]:
        """Returns what reads whitened blocks [N, n], by name, off images [N, 3, R, R] in -1..1; and its model's key.

        Raises ValueError for a generator whose latents have no blocks, or where nothing that reads them is at hand.
        """
        found: tuple[Callable[[Tensor], Mapping[str, Tensor]], str] = self._asked().reader(self.device)
        return found

    def asked_depth(self, z: Tensor, cameras: Cameras, resolution: int) -> Tensor:
        """Returns the camera z [B, R, R], world units, of the surfaces that latents [B, z_dim] ask for; 0 beside them.

        cameras: [B]. Raises ValueError for a generator whose latents have no blocks.
        """
        surface = self._asked()
        depth: Tensor = surface.drawn(surface.vertices(surface.shape(z)), cameras, (resolution, resolution)).depth
        return depth

    def _asked(self) -> Any:
        if self.surface is None:
            raise ValueError("the latents of this network have no named blocks")
        return self.surface

    def style_weights(self) -> list[Tensor]:
        """Returns the matrices [out, K], as they act, of the layers that read a style [K] in which they are affine.

        The style is w itself, unless `styles_to_w` says otherwise. SeFa (Shen and Zhou 2021) decomposes them.
        Raises ValueError for a generator that names no such layers.
        """
        raise ValueError("this network names no layers that are affine in w, so directions have no closed form")

    def styles_to_w(self, directions: Tensor) -> Tensor:
        """Returns how w [D, w_dim] changes along directions [D, K] of the style that `style_weights` act on."""
        return directions
