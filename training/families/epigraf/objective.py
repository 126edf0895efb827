"""Plays the usual game over patches: what D gets to see, and is told, is a window of an image (EpiGRAF)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gaussian import Cameras, Rendering
from torch_utils.random import Draws
from training.families.base import Conditioning, Loss, StepContext
from training.families.blurred import BlurredConfig, BlurredObjective, check_finite
from training.families.epigraf import patches, poses
from training.families.epigraf.discriminator import CAMERA_CODES, dropped
from training.families.epigraf.patches import PatchLaw
from training.families.posed import PosedConfig
from training.families.swapping import swap_probability, told_cameras
from training.samples import MicroBatch, RunConfig


@dataclass(frozen=True)
class EpigrafObjectiveConfig(BlurredConfig, PosedConfig):
    """Sets the losses and optimisers. Defaults are the published values, gamma that of FFHQ."""

    gamma: float = 0.1
    g_clip: float = math.inf  # the published code clips no gradient
    d_clip: float = math.inf
    ema_halflife_kimg: float = 20.0
    augment: str = "ada"
    patch_law: str = "beta"  # one of patches.LAWS
    patch_beta: tuple[float, ...] = (0.001, 0.8)  # second parameter of the beta distribution, at the start and later
    patch_alpha: float = 1.0  # first parameter; 1 is the only one
    patch_least: float = 0.0  # smallest scale; 0: pixels of a patch / pixels of an image
    patch_most: float = 1.0  # largest scale
    patch_support: tuple[float, ...] = (0.25, 1.0)  # scales of the law "discrete"
    anneal_kimg: float = 10000.0  # thousands of images over which the law changes
    strided_windows: bool = False  # samples share a window that share a minibatch statistic, not consecutive ones
    swap_probability: float = 0.5  # that the mapping is told another sample's camera, in the end; 1 at the start
    swap_fade_kimg: float = 1000.0  # thousands of images over which it falls to that
    use_labels: bool = True  # tell both networks the classes of images, where the data have any

    @property
    def whole_step(self) -> bool:
        """Whether losses look at the cameras of all samples of a step: they do, for swaps."""
        return self.swap_probability > 0 or self.swap_fade_kimg > 0

    @property
    def tells_classes(self) -> bool:
        """Whether networks are told the classes of images."""
        return self.use_labels

    def law(self, resolution: int, patch_resolution: int) -> PatchLaw:
        """Returns the law of the windows for images and patches of so many pixels."""
        least = self.patch_least or patch_resolution / resolution
        start, end = self.patch_beta if len(self.patch_beta) == 2 else (math.nan, math.nan)
        return PatchLaw(
            self.patch_law, least, self.patch_most, self.patch_alpha, (start, end), self.anneal_kimg * 1000,
            self.patch_support,
        )  # fmt: skip

    def check(self, config: RunConfig) -> None:
        """Raises ValueError with the option's name for values that are illegal or contradict the run's."""
        super().check(config)
        G, D = config.generator, config.discriminator
        smallest = D.patch_resolution / G.resolution
        if self.patch_least and not smallest <= self.patch_least <= 1:
            raise ValueError(
                f"objective.patch_least={self.patch_least}: legal are {smallest:g}, where a patch has the pixels of "
                "the image, to 1"
            )
        self.law(G.resolution, D.patch_resolution).check("--patch-law")
        if self.patch_law != "whole" and D.patch_resolution == G.resolution:
            raise ValueError(
                f"--patch-law={self.patch_law}: a patch of {D.patch_resolution} px is the whole image; use "
                "--patch-law=whole, or a smaller --patch-resolution"
            )
        check_finite(("--anneal-kimg", self.anneal_kimg), ("--swap-fade-kimg", self.swap_fade_kimg))
        if not 0 <= self.swap_probability <= 1:
            raise ValueError(f"--camera-cond-spoof-p={self.swap_probability}: legal are 0 to 1")
        self.check_pose()
        if self.pose_law is not None and D.camera != "none":
            raise ValueError(
                f"--disc-camera={D.camera}: with --pose={self.pose} nobody knows the cameras of real images; use "
                "--disc-camera=none"
            )
        if G.num_classes != D.num_classes:
            raise ValueError(
                f"discriminator.num_classes={D.num_classes}: both networks have the classes of the data, and this "
                f"generator has {G.num_classes}"
            )
        if any(stage.resolution != G.resolution for stage in config.stages):
            raise ValueError("stages: the discriminator of patches takes images of one resolution")


class EpigrafObjective(BlurredObjective):
    """Runs the phases of the usual game over windows of images, drawn anew for each phase and for reals."""

    def __init__(self, config: RunConfig, G: Any, D: Any):
        super().__init__(config, G, D)
        self.pixels: int = config.discriminator.patch_resolution
        self.law: PatchLaw = config.objective.law(config.generator.resolution, self.pixels)

    # ------------------------------------------------------------ windows

    def windows(self, at: StepContext, whose: str) -> Tensor:
        """Returns the windows [b, 3] of a micro-batch's samples; as many of them share one as share a statistic."""
        assert at.draws is not None and at.nimg is not None
        group = self.config.discriminator.minibatch_std_group
        micro = self.config.stage_at(at.nimg).batch_gpu
        owners = patches.leaders(list(at.draws.indices), group, micro, self.settings.strided_windows)
        draws = Draws(at.draws.seed, owners, at.draws.device)
        return self.law.windows(draws.uniform(f"{whose}/window", (3,)), at.nimg)

    def conditioning(self, labels: Tensor, at: StepContext, whose: str) -> Conditioning:
        """Returns what D is told of patches: camera, some numbers of it withheld, window and class."""
        settings, dropout = self.config.discriminator, None
        if settings.camera != "none" and settings.camera_dropout > 0:
            assert at.draws is not None
            draws = at.draws.uniform(f"{whose}/camera dropout", (CAMERA_CODES[settings.camera],))
            dropout = dropped(draws, settings.camera_dropout)
        return Conditioning(labels, self.windows(at, whose), classes=at.classes.get(whose), dropout=dropout)

    def seen(self, images: Tensor, told: Conditioning, at: StepContext, whose: str) -> tuple[Tensor, Conditioning]:
        """Returns patches as D gets to see them: real images are cut here, generated ones are patches already."""
        if whose == "real":
            assert told.patch is not None
            images = patches.cut(images, told.patch, self.pixels)
        return super().seen(images, told, at, whose)

    def generate(
        self,
        z: Tensor,
        cameras: Cameras,
        background: Tensor,
        resolution: int,
        at: StepContext,
        told: Cameras | None = None,
        whose: str = "G",
    ) -> tuple[Tensor, Any, Rendering]:
        """Renders windows alone of what z [b, z_dim] becomes: patches of cameras [b, V]."""
        ws = self.mapped(z, cameras[:, 0], told, at, at.classes.get(whose))
        scene = self.G.synthesis(ws, at)
        windows = self.windows(at, whose)
        cropped = patches.crop(cameras, windows, self.pixels, resolution)
        G: Any = self.G
        return ws, scene, G.render(scene, cropped, self.pixels, background, at, windows=windows)

    # ------------------------------------------------------------ what else changes in a run

    def mapped(
        self,
        z: Tensor,
        cameras: Cameras,
        told: Cameras | None,
        at: StepContext,
        classes: Tensor | None = None,  # [b] int64
    ) -> Tensor:
        """Returns ws of z [b, z_dim], some numbers of their cameras withheld where the mapping is told any."""
        G: Any = self.G
        config, code = G.config, None
        if config.camera_conditioning:
            code = poses.camera_code(poses.angles_of((cameras if told is None else told).positions))
        if code is not None and config.camera_dropout > 0:
            assert at.draws is not None
            code = code * dropped(at.draws.uniform("G/camera dropout", (2,)), config.camera_dropout)
        ws: Tensor = G.mapped(z, code, classes=classes)
        return ws

    def generator_losses(self, micro: MicroBatch, at: StepContext) -> Iterator[Loss]:
        """Does what the usual game does, and reports how large the windows are."""
        for loss in super().generator_losses(micro, at):
            scales = {"Patch/scale": self.windows(at, "G")[:, 0]} if loss.report else {}  # once, with the whole
            yield dataclasses.replace(loss, report={**loss.report, **scales})

    def prepared(self, micro: MicroBatch, at: StepContext) -> MicroBatch:
        """Returns the micro-batch with the cameras that the mapping is told: own ones, or those of the samples before.

        Published code rolls the chosen ones among themselves; here a sample's neighbour does not depend on the split.
        """
        assert at.nimg is not None and at.draws is not None
        if not self.config.generator.camera_conditioning or micro.whole is None:
            return micro
        share = swap_probability(at.nimg, self.settings.swap_probability, self.settings.swap_fade_kimg * 1000)
        whole = micro.whole
        return dataclasses.replace(
            micro,
            g_told=told_cameras(whole, "G", whole.g_labels, share),
            d_told=told_cameras(whole, "D", whole.d_labels, share),
        )

    def compile(self, backend: str = "inductor") -> None:
        """Compiles the network that makes the planes, and D where first derivatives suffice."""
        network: Any = self.G.network
        network.tri_plane_decoder.compile(backend=backend)
        self.outputs = torch.compile(self.D.outputs, backend=backend, dynamic=False)
