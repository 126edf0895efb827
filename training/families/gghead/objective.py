"""Adds to the usual game what is GGHead's own (Kirschstein et al. 2024): swapped cameras, terms on maps, growth."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.families.base import Conditioning, StepContext
from training.families.blurred import BlurredConfig, BlurredObjective, check_finite
from training.families.gghead.decoding import UvGaussians, opacities
from training.families.swapping import swap_probability, told_cameras
from training.samples import MicroBatch, RunConfig

BETA_AT_ENDS = 2.20727  # what the beta term adds, so that it is 0 where opacities are 0 or 1
CLEAR = 1e-3  # coverage up to which a pixel shows no surface


@dataclass(frozen=True)
class GgHeadObjectiveConfig(BlurredConfig):
    """Sets the losses and optimisers. Defaults are the published values of the first stage, at 256 px."""

    g_clip: float = math.inf  # the published code clips no gradient
    d_clip: float = math.inf
    swap_probability: float = 0.5  # that a head is made for another sample's camera, in the end; 1 at the start
    swap_fade_kimg: float = 1000.0  # thousands of images over which it falls to that
    position_weight: float = 0.1  # weight of the raw positions' mean norm,
    scale_weight: float = 0.05  # of the raw scales',
    rotation_weight: float = 0.0  # of the raw rotations',
    color_weight: float = 0.0  # of the raw colours',
    opacity_weight: float = 0.0  # and of the raw opacities'
    absolute_scales: bool = False  # the norm of raw scales is the sum of absolute values
    scale_std_weight: float = 0.0  # reward for splats whose raw scales differ
    beta_weight: float = 0.0  # weight of the term that draws opacities to 0 and 1
    tv_weight: float = 0.0  # weight of the total variation of the (u, v) that a picture shows
    tv_opaque: bool = False  # as if all raw opacities were 1
    surface_from_kimg: float = 0.0  # thousands of images from which the last two terms act
    grow_kimg: float = 1000.0  # thousands of images over which a new block of D fades in

    @property
    def whole_step(self) -> bool:
        """Whether losses look at the cameras of all samples of a step: they do."""
        return True

    def warm_start(self) -> dict[str, Any]:
        """Returns values for `changed` without a fade of the swaps."""
        return super().warm_start() | {"swap_fade_kimg": 0.0}

    def check(self, config: RunConfig) -> None:
        """Raises ValueError with the option's name for values that are illegal or contradict the run's."""
        super().check(config)
        if not 0 <= self.swap_probability <= 1:
            raise ValueError(f"--gpc-reg-prob={self.swap_probability}: legal are 0 to 1")
        check_finite(
            ("--lambda-raw-position", self.position_weight),
            ("--lambda-raw-scale", self.scale_weight),
            ("--lambda-beta", self.beta_weight),
            ("--lambda-tv-uv", self.tv_weight),
            ("--swap-fade-kimg", self.swap_fade_kimg),
            *((f"objective.{name}", getattr(self, name)) for name in _CHECKED),
        )
        smallest = min((stage.resolution for stage in config.stages), default=config.generator.resolution)
        if smallest < config.discriminator.starts_at:
            raise ValueError(
                f"discriminator.first_resolution={config.discriminator.starts_at}: a stage has images of {smallest} px"
            )
        if config.discriminator.image_channels != 3:
            raise ValueError(
                f"discriminator.image_channels={config.discriminator.image_channels}: training shows it RGB alone; "
                "other numbers are for published files"
            )


_CHECKED = ("rotation_weight", "color_weight", "opacity_weight", "scale_std_weight", "surface_from_kimg", "grow_kimg")


class GgHeadObjective(BlurredObjective):
    """Runs the phases of the usual game, with what the module names."""

    def compile(self, backend: str = "inductor") -> None:
        """Compiles the network that makes the maps, and a D that does not grow: a fade would compile it every step."""
        self.G.backbone.synthesis.compile(backend=backend)  # type: ignore[union-attr, operator]
        if self.config.discriminator.starts_at == self.config.discriminator.resolution:
            self.outputs = torch.compile(self.D.outputs, backend=backend, dynamic=False)

    def conditioning(self, labels: Tensor, at: StepContext, whose: str) -> Conditioning:
        """Returns the labels, and how far the newest block of D has come."""
        assert at.nimg is not None
        start, length = self.config.stage_at(at.nimg).from_nimg, self.settings.grow_kimg * 1000
        grows = self.config.discriminator.starts_at < self.config.stage_at(at.nimg).resolution and start > 0
        return Conditioning(labels, fade=min((at.nimg - start) / length, 1.0) if grows and length else 1.0)

    def prepared(self, micro: MicroBatch, at: StepContext) -> MicroBatch:
        """Returns the micro-batch with the cameras that the mapping is told, and lets G know how far the run is."""
        assert at.nimg is not None and micro.whole is not None
        settings, whole = self.settings, micro.whole
        self.G.note_progress(at.nimg)  # type: ignore[operator]
        probability = swap_probability(at.nimg, settings.swap_probability, settings.swap_fade_kimg * 1000)
        return dataclasses.replace(
            micro,
            g_told=told_cameras(whole, "G", whole.g_labels, probability),
            d_told=told_cameras(whole, "D", whole.d_labels, probability),
        )

    def regularisers(self, scene: UvGaussians) -> Mapping[str, tuple[float, Tensor]]:
        """Returns the terms on the numbers of the maps that have a weight."""
        settings, raw = self.settings, scene.raw_parts()
        terms = {}
        for name, values in raw.items():
            if weight := getattr(settings, f"{name}_weight"):
                terms[name] = (weight, mean_norm(values, 1 if name == "scale" and settings.absolute_scales else 2))
        if settings.scale_std_weight:
            terms["scale_std"] = (-settings.scale_std_weight, raw["scale"].std(dim=-1).mean(1))
        return terms

    def view_regularisers(
        self, scene: UvGaussians, micro: MicroBatch, at: StepContext
    ) -> Mapping[str, tuple[float, Tensor]]:
        """Returns the beta term and the total variation, from when on they act."""
        settings = self.settings
        assert at.nimg is not None
        if at.nimg < settings.surface_from_kimg * 1000:
            return {}
        terms = {}
        if settings.beta_weight:
            terms["beta"] = (settings.beta_weight, beta(opacities(scene.raw_parts()["opacity"])))
        if settings.tv_weight:
            uv = self.G.render_uv(scene, micro.g_cameras, micro.resolution, settings.tv_opaque)  # type: ignore[operator]
            terms["tv_uv"] = (settings.tv_weight, uv_total_variation(uv[:, 0]))
        return terms


# ---------------------------------------------------------------- pure terms


def mean_norm(raw: Tensor, order: int = 2) -> Tensor:
    """Averages the norms of numbers [B, N, C] over the splats: [B]. The gradient at 0 is 0."""
    return torch.linalg.vector_norm(raw, ord=order, dim=-1).mean(1)


def beta(values: Tensor) -> Tensor:
    """Averages log(0.1 + a) + log(1.1 - a) over opacities a [B, N, 1], so that 0 and 1 give 0: [B]."""
    return ((0.1 + values).log() + (1.1 - values).log() + BETA_AT_ENDS).mean(dim=(1, 2))


def uv_total_variation(rendered: Tensor, pooled: bool = False) -> Tensor:
    """Averages |difference| of the (u, v) that neighbouring pixels show, right and below, where both show any: [B].

    rendered: [B, 3, H, W], what splats of "colours" (u, v, -1) give over 1. The third channel tells the coverage a, and
        u = (rendered - (1 - a)) / a what the surface itself has. It counts in the mean, as published, with a
        difference of 0. Where a is not above 0.001 the divisor is 1: no gradient is NaN.
    pooled: the mean runs over the pairs of all images at once, as published; it depends on how a batch is split.
    """
    coverage = 1 - (rendered[:, 2:] + 1) / 2  # [B, 1, H, W]
    seen = coverage > CLEAR
    uv = (rendered[:, :2] - (1 - coverage)) / torch.where(seen, coverage, 1)
    total = rendered.new_zeros(len(rendered))
    for axis in (2, 3):
        length = seen.shape[axis] - 1
        pairs = seen.narrow(axis, 0, length) & seen.narrow(axis, 1, length)
        difference = (uv.narrow(axis, 1, length) - uv.narrow(axis, 0, length)).abs()
        sums = torch.where(pairs, difference, 0).sum(dim=(1, 2, 3))  # [B]
        counts = 3 * pairs.sum(dim=(1, 2, 3))
        if pooled:
            sums, counts = sums.sum(), counts.sum()
        total = total + sums / counts.clamp_min(1)
    return total
