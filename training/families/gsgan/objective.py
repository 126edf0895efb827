"""Adds to the usual game what is GSGAN's own (Hyun and Heo 2024): cameras that are swapped, varied and contrasted.

The pose branch of D contrasts each image with the cameras of the *whole* step, InfoNCE over the total batch (van den
Oord et al. 2018). All of its cameras are known to every rank (`training.samples.WholeStep`), so nothing is gathered:
each micro-batch embeds all cameras anew, and adds its images' part of the gradient of both embeddings. The sum over
micro-batches is the gradient of the loss over the total batch with weight 1, for any number of ranks and any split.
(The published gather goes back through each rank's own slice only, which makes the weight 1 / ranks.)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gaussian import Cameras
from training.families.anchored import AnchoredConfig, AnchoredObjective
from training.families.base import DiscriminatorOutput, StepContext
from training.families.blurred import check_finite
from training.families.gsgan.discriminator import Discriminator
from training.families.in_parts import EVERY
from training.families.swapping import swap_probability, told_cameras
from training.images import mirror_labels
from training.samples import MicroBatch, RunConfig, WholeStep

TEMPERATURE = 0.1  # of the contrast
# Yaw angle and height of the poses that fakes are varied with, of FFHQ; 3.14 is the published pi.
YAW = (1.57, 3.14 * 16.610813 / 180)  # mean and standard deviation, radians; 1.57 is frontal
HEIGHT = (1.57 - 3.14 * 5.1596148 / 180, 3.14 * 3 * 7.4404313 / 180)  # middle and half-width, pi/2 is level


@dataclass(frozen=True)
class GsganObjectiveConfig(AnchoredConfig):
    """Sets the losses and optimisers. Defaults are the published values for FFHQ."""

    contrastive_weight: float = 1.0  # weight of the contrast of images and cameras
    swap_probability: float = 0.5  # of another sample's camera as the mapping's, once the swap has faded in
    swap_fade_kimg: float = 1000.0  # thousands of images over which that probability goes there from 1
    uniform_poses: float = 0.0  # probability that a generated image gets a pose from a wide range
    style_mixing: float = 0.0  # probability that the later ws are another latent's
    knn_weight: float = 10.0  # weight of the nearest-neighbour term of the anchors

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
        if self.paired:
            raise ValueError(
                "--objective=relativistic: GSGAN's cameras are drawn apart from the real images'; use logistic"
            )
        if config.label_noise:
            raise ValueError(
                f"--disc-c-noise={config.label_noise}: has no effect on GSGAN, whose logit follows no camera"
            )
        for flag, value in (
            ("--gpc-reg-prob", self.swap_probability),
            ("--prob-uniform", self.uniform_poses),
            ("--style-mixing-prob", self.style_mixing),
        ):
            if not 0 <= value <= 1:
                raise ValueError(f"{flag}={value}: must be a probability, 0 to 1")
        check_finite(("--contrastive", self.contrastive_weight), ("--gpc-reg-fade-kimg", self.swap_fade_kimg))

    def swap_probability_at(self, nimg: int) -> float:
        """Returns the probability with which the mapping is told another sample's camera after nimg images."""
        return swap_probability(nimg, self.swap_probability, self.swap_fade_kimg * 1000)


def info_nce(images: Tensor, cameras: Tensor, own: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Returns the cross-entropy of finding each image's own camera among all of them: [b].

    images: [b, C], cameras: [n, C], embeddings of any length; own: [b] the images' rows among the cameras.
    """
    logits = F.normalize(images, dim=1) @ F.normalize(cameras, dim=1).T / temperature
    return F.cross_entropy(logits, own, reduction="none")


def wide_poses(yaw: Tensor, height: Tensor, cameras: Cameras) -> Cameras:
    """Returns cameras [n] that look at the origin from the distance and with the intrinsics of the given ones.

    yaw: [n] radians, pi/2 is frontal and more is towards +x; height: [n] in 0..pi, the camera's y is the distance times
    1 - 2 height / pi, pi/2 is level.
    """
    height = height.clamp(1e-5, math.pi - 1e-5)
    polar = torch.arccos(1 - 2 * height / math.pi)
    direction = torch.stack(
        [polar.sin() * (math.pi - yaw).cos(), polar.cos(), polar.sin() * (math.pi - yaw).sin()], dim=-1
    )
    distance = cameras.positions.norm(dim=-1, keepdim=True)
    return Cameras.look_at(distance * direction, (0.0, 0.0, 0.0), intrinsics=cameras.intrinsics)


class GsganObjective(AnchoredObjective):
    """Runs the phases of the usual game, with contrasted cameras, a fading blur and terms on the coarse anchors."""

    def prepared(self, micro: MicroBatch, at: StepContext) -> MicroBatch:
        """Returns the micro-batch with varied cameras of generated images, and with those that the mapping is told."""
        assert micro.whole is not None and at.nimg is not None
        whole, own = micro.whole, micro.whole.own
        g_labels = self._varied("G", whole.g_labels, whole)
        d_labels = self._varied("D", whole.d_labels, whole)
        share = self.settings.swap_probability_at(at.nimg)
        return dataclasses.replace(
            micro,
            g_cameras=Cameras.from_labels(g_labels[own, None]),
            g_labels=g_labels[own, None],
            d_cameras=Cameras.from_labels(d_labels[own, None]),
            d_labels=d_labels[own],
            g_told=told_cameras(whole, "G", g_labels, share),
            d_told=told_cameras(whole, "D", d_labels, share),
            whole=dataclasses.replace(whole, g_labels=g_labels, d_labels=d_labels),
        )

    def _varied(self, phase: str, labels: Tensor, whole: WholeStep) -> Tensor:
        """Gives some of the labels [n, 25] of the whole step a pose from a wide range."""
        if not self.settings.uniform_poses:
            return labels
        draws = whole.draws
        yaw = YAW[0] + YAW[1] * draws.normal(f"{phase}/pose yaw")
        height = HEIGHT[0] + HEIGHT[1] * (2 * draws.uniform(f"{phase}/pose height") - 1)
        wide = wide_poses(yaw.to(labels), height.to(labels), Cameras.from_labels(labels)).labels
        chosen = draws.uniform(f"{phase}/pose chosen") < self.settings.uniform_poses
        return torch.where(chosen[:, None], wide, labels)

    def mapped(self, z: Tensor, cameras: Cameras, told: Cameras | None, at: StepContext) -> Tensor:
        """Returns ws of z [b, z_dim]; from a random one on they may be those of another latent and the own camera."""
        ws = super().mapped(z, cameras, told, at)
        if not self.settings.style_mixing:
            return ws
        assert at.draws is not None
        other = self.G.mapping(at.draws.normal("mixing/z", (self.G.z_dim,)).to(z), cameras)
        cutoff = 1 + at.draws.integers("mixing/cutoff", self.G.num_ws - 1)
        cutoff = torch.where(at.draws.uniform("mixing") < self.settings.style_mixing, cutoff, self.G.num_ws)
        later = torch.arange(self.G.num_ws, device=z.device) >= cutoff[:, None]
        return torch.where(later[..., None], other, ws)

    def agreement(
        self, output: DiscriminatorOutput, micro: MicroBatch, phase: str, part: slice = EVERY
    ) -> Mapping[str, tuple[float, Tensor]]:
        """Returns the contrast of images with the cameras of the whole step."""
        weight = self.settings.contrastive_weight
        if not weight:
            return {}
        assert micro.whole is not None
        whole, pose = micro.whole, output.extras["pose"]
        assert isinstance(self.D, Discriminator)
        labels = whole.g_labels if phase == "G" else whole.real_labels
        if self.augmentation.acts:  # the camera of an image that was flipped is the mirrored one
            labels = mirror_labels(labels, self.augmentation.flips(whole.draws, phase, labels))
        cameras = self.D.embed_cameras(labels)
        own = torch.arange(whole.own.start, whole.own.stop, device=pose.device)[part]
        return {"contrastive": (weight, info_nce(pose, cameras, own))}
