"""Turns a latent into the frequencies and phases of a radiance field, and renders it: the generator of pi-GAN.

Source: Chan et al. 2021 (pi-GAN). Parameters carry the names of the published checkpoints, so that published weights
load as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gaussian import Cameras, Rendering
from torch_utils import random
from training.families import base
from training.families.base import AT_REST, StepContext
from training.families.pigan.config import GeneratorConfig
from training.families.pigan.siren import FREQUENCY_MEAN, FREQUENCY_SCALE, FilmField, Siren
from training.fields import marching

__all__ = ["Generator", "GeneratorConfig"]

MEAN_LATENTS, MEAN_AT_ONCE = 10_000, 1_000  # z whose mean ws are the truncation centre, and how many are mapped at once


class Generator(base.Generator):
    """Maps latents to fields. No call changes the module."""

    makes_splats = False

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        self.z_dim, self.w_dim, self.resolution = config.z_dim, 2 * config.modulations, config.resolution
        self.siren = Siren(config)
        self._mean: tuple[object, Tensor] | None = None  # state of the mapping network, mean ws that it has

    def scene_size(self) -> str:
        """Says what a scene is."""
        return f"a field of {self.config.layers} x {self.config.width} sines"

    def mean_ws(self) -> Tensor:
        """Returns the mean ws [1, w_dim] of 10,000 fixed latents, the truncation centre (pi-GAN, section 3.5).

        The published code draws them anew at every call. The mean is kept until the weights change.
        """
        parameters = list(self.siren.mapping_network.parameters())
        state = [(p.data_ptr(), p._version, p.device) for p in parameters]
        if self._mean is None or self._mean[0] != state:
            total = parameters[0].new_zeros(1, 2 * self.config.modulations)
            with torch.no_grad():
                for start in range(0, MEAN_LATENTS, MEAN_AT_ONCE):
                    z = random.normal(0, "pigan/mean", range(start, start + MEAN_AT_ONCE), (self.z_dim,))
                    total += self.siren.mapping_network(z.to(total)).sum(0, keepdim=True)
            self._mean = state, total / MEAN_LATENTS
        return self._mean[1]

    def mapping(self, z: Tensor, cameras: Cameras | None = None, psi: float = 1.0) -> Tensor:
        """Maps latents z [B, z_dim] to ws [B, 1, w_dim], pulled towards their mean by psi (0: the mean itself).

        ws: raw frequencies, then phases. No camera is listened to.
        """
        if z.ndim != 2 or z.shape[1] != self.z_dim:
            raise ValueError(f"z must have shape [B, {self.z_dim}], got {list(z.shape)}")
        ws: Tensor = self.siren.mapping_network(z.to(next(self.parameters()).dtype))[:, None]
        return ws if psi == 1 else self.mean_ws().lerp(ws, psi)

    def style_weights(self) -> list[Tensor]:
        """Returns what makes frequencies, scaled as they act, and phases of the mapping network's last features.

        ws are these numbers themselves, one for each, so that layers that read them single out no direction. The
        features before them are what the layers of sines have in common.
        """
        weight = self.siren.mapping_network.last.weight
        frequencies, phases = weight.chunk(2)
        return [FREQUENCY_SCALE * frequencies, phases]

    def styles_to_w(self, directions: Tensor) -> Tensor:
        """Returns how raw frequencies and phases [D, w_dim] change along directions [D, width] of the features."""
        w = directions @ self.siren.mapping_network.last.weight.t()
        return torch.nn.functional.pad(w, (0, self.w_dim - w.shape[1]))  # CGOF's blocks of the shape stay

    def synthesis(self, ws: Tensor, at: StepContext = AT_REST) -> FilmField:
        """Makes fields from ws [B, 1, w_dim]. Raises ValueError for another shape."""
        if ws.ndim != 3 or ws.shape[1:] != (1, self.w_dim):
            raise ValueError(f"ws must have shape [B, 1, {self.w_dim}] as mapping() returns it, got {list(ws.shape)}")
        return self.field_of(ws)

    def field_of(self, film: Tensor) -> FilmField:
        """Makes fields of raw frequencies and phases [B, 1, 2 modulations]."""
        config = self.config
        raw = film.reshape(len(film), 2, config.layers + 1, config.width)
        return FilmField(
            half_width=config.half_width / config.unit,
            unit=config.unit,
            activation=config.activation,
            shift=0.0,
            frequencies=FREQUENCY_SCALE * raw[:, 0] + FREQUENCY_MEAN,
            phases=raw[:, 1],
            siren=self.siren,
        )

    def noise_std(self, nimg: int | None) -> float:
        """Returns the standard deviation of the noise on densities after nimg images of a run; 0 at rest."""
        fade = self.config.noise_kimg * 1000
        return 0.0 if nimg is None or nimg >= fade else self.config.density_noise * (1 - nimg / fade)

    def render(
        self,
        scene: FilmField,
        cameras: Cameras,  # [B, V]
        resolution: int | tuple[int, int] | None = None,  # the generator's own if None
        background: Tensor | None = None,  # RGB 0..1 that broadcasts to [B, V, 3]; white if None
        at: StepContext = AT_REST,
    ) -> Rendering:
        """Renders fields. In training the samples along rays are jittered, and at first densities are noisy.

        At rest nothing is random (the published code always jitters), so that a film does not flicker.
        """
        march, size = self.config.march(), resolution or self.resolution
        height, width = (size, size) if isinstance(size, int) else size
        numbers = None
        if at.draws is not None:
            rays = cameras.shape[1] * height * width
            numbers = marching.draw(at.draws, "rays", rays, march, self.noise_std(at.nimg))
        cameras = cameras.to(dtype=scene.frequencies.dtype)
        return marching.render_field(scene, cameras, size, march, background, numbers)
