"""Adds to the usual game what is CGS-GAN's own (Barthel et al. 2025): several views, two terms on anchors, a blur."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gaussian import Rendering
from training import losses
from training.control.regressor import Regressor, regressor_for
from training.families.anchored import AnchoredConfig, AnchoredObjective
from training.families.base import StepContext
from training.families.blurred import check_finite
from training.morphable.models import morphable_model
from training.samples import MicroBatch, RunConfig

OTHERWISE = "name one with --regressor=FILE, or do without it: --recon=0"
CLEAR = 0.1  # world units that light counts as away which passes the surface


@dataclass(frozen=True)
class CgsObjectiveConfig(AnchoredConfig):
    """Sets the losses and optimisers. Defaults are the published values for 512 px."""

    multiview: bool = True  # average the generator's gradient over several views of one scene
    num_views: int = 4  # views of a scene where multiview is on
    recon_weight: float = 0.0  # of the difference of coefficients asked and read off the pictures; needs controls
    recon_from_kimg: float = 0.0  # images, in thousands, after which that weight grows, see `losses.late_share`
    surface_weight: float = 0.0  # of the distance of pictures' depth from the surface that was asked for; likewise
    photo_weight: float = 0.0  # of the difference of colours from those of that surface; likewise
    regressor: str = ""  # file of the network that reads coefficients; "": the one that fit_regressor.py keeps

    @property
    def views(self) -> range:
        """Offsets v: scene b is seen from the camera of sample (b - v) mod batch, or mod the views where `paired`."""
        return range(1, self.num_views + 1) if self.multiview else range(1)

    def check(self, config: RunConfig) -> None:
        """Raises ValueError with the option's name for values that are illegal or contradict the run's."""
        super().check(config)
        if self.num_views < 1:
            raise ValueError(f"--num-multiview={self.num_views}: at least 1 view is needed")
        self._check_control(config)
        starts = [0, *(stage.from_nimg for stage in config.stages)]
        if self.multiview and any(config.stage_at(nimg).batch == 1 for nimg in starts):
            raise ValueError(
                "--batch=1 leaves multi-view regularisation only the scene's own camera; use --batch=2 or more"
            )

    def _check_control(self, config: RunConfig) -> None:
        weights = (("--recon", self.recon_weight), ("--surface", self.surface_weight), ("--photo", self.photo_weight))
        check_finite(*weights, ("--recon-from-kimg", self.recon_from_kimg))
        for flag, weight in weights:
            if weight and not config.generator.controls:
                raise ValueError(f"{flag}={weight}: needs a latent of named blocks, --controls=procedural or a file")
        if config.generator.controls and not any(weight for _, weight in weights):
            raise ValueError(
                f"--controls={config.generator.controls}: nothing asks for its blocks; give --photo, --surface or "
                "--recon a weight"
            )
        if self.recon_weight:
            regressor_for(self.regressor, morphable_model(config.generator.controls, flag="--controls"), OTHERWISE)


class CgsObjective(AnchoredObjective):
    """Runs the phases of the usual game, with a fading blur and the geometry terms of the coarse anchors.

    Where a latent has named blocks, what is seen has to be what they ask for, as in CGOF (Sun et al. 2022). No
    published generator of splats does this.
    """

    def __init__(self, config: RunConfig, G: Any, D: Any):
        super().__init__(config, G, D)
        self.regressor: Regressor | None = None
        if self.settings.recon_weight:
            self.regressor = regressor_for(self.settings.regressor, G.surface.morphable, OTHERWISE).to(G.device)

    def picture_terms(
        self, rendering: Rendering, micro: MicroBatch, at: StepContext
    ) -> Mapping[str, tuple[float, Tensor]]:
        """Returns what pictures of a latent of named blocks lack of what it asks for, means over views."""
        settings = self.settings
        terms: dict[str, tuple[float, Tensor]] = {}
        if self.regressor is not None:
            images, views, blocks = rendering.image, rendering.image.shape[1], self.G.blocks
            assert blocks is not None
            share = losses.late_share(at.nimg, 1000 * settings.recon_from_kimg)
            with torch.set_grad_enabled(share > 0 and torch.is_grad_enabled()):
                read = self.regressor.blocks(images.flatten(0, 1))
            z = micro.g_z.repeat_interleave(views, dim=0)
            errors = [(values - blocks.take(z, name)).abs().mean(1) for name, values in read.items()]
            terms["recon"] = share * settings.recon_weight, torch.stack(errors).sum(0).view(-1, views).mean(1)
        weights = {"surface": settings.surface_weight, "photo": settings.photo_weight}
        if any(weights.values()):
            values = self._off_surface(rendering, micro)
            terms |= {name: (weight, values[name]) for name, weight in weights.items() if weight}
        return terms

    def _off_surface(self, rendering: Rendering, micro: MicroBatch) -> dict[str, Tensor]:
        """Returns what pictures lack of the surface that was asked for, means over the pixels that it covers, [b].

        "surface": how far from it their light comes, world units; "photo": how much their colours differ from its.
        """
        batch, views, _, *size = rendering.depth.shape
        surface: Any = self.G.surface
        with torch.no_grad():
            found = surface.painted(micro.g_z, micro.g_cameras, tuple(size))
        alpha, depth = rendering.alpha[:, :, 0].flatten(0, 1), rendering.depth[:, :, 0].flatten(0, 1)
        away = (depth - alpha * found.depth).abs() + CLEAR * (1 - alpha)
        values = {
            "surface": losses.masked_mean(away, found.share > losses.WHOLE),
            "photo": losses.off_colour(rendering.image.flatten(0, 1), found.values, found.share),
        }
        return {name: value.view(batch, views).mean(1) for name, value in values.items()}
