"""Describes an EpiGRAF generator in one record: the published members, and members of any other size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from gaussian import Cameras
from training.families import base
from training.fields.rays import camera_rays
from training.networks import stylegan2

BACKDROPS = ("none", "plane", "sphere")
DENSITIES = ("softplus", "relu")
INFINITE = 1e10  # interval of the last sample where nothing lies behind it
SHORT = 1e-3  # and where something does


@dataclass(frozen=True)
class GeneratorConfig(base.GeneratorConfig):
    """Holds everything that a Generator is built from; defaults are the published values.

    Lengths are in units of the field, of which the cameras are 1 away from the origin.
    Raises ValueError for values that cannot be built.
    """

    resolution: int  # pixels of the images
    z_dim: int = 512  # numbers of a latent
    w_dim: int = 512  # numbers of a w
    map_depth: int = 2  # layers of the mapping network
    plane_resolution: int = 512  # texels of an edge of the planes
    feature_dim: int = 32  # features of a plane
    hidden_dim: int = 64  # width of the decoder's hidden layer
    channel_base: int = 32768  # the network has so many channels / texels of an edge,
    channel_max: int = 512  # and at most so many
    use_noise: bool = True  # add noise to the features
    unit: float = 1.0  # units of the field per world unit
    cube_scale: float = 0.2  # half the edge of the cube that the planes span
    ray_start: float = 0.88  # where rays of a camera begin that is 1 away from the origin,
    ray_end: float = 1.12  # and where they end; those of others as much nearer or farther
    samples: int = 48  # of a ray in each of two passes
    density: str = "softplus"  # what makes a raw density a density: softplus or relu
    density_gain: float = 1.0  # factor on what the decoder says of density: how fast it becomes opaque, and learns
    density_shift: float = 0.0  # added to raw densities
    density_noise: float = 1.0  # standard deviation of the noise on raw densities at the start of a run,
    noise_fade_kimg: float = 5000.0  # and thousands of images over which it fades
    opaque: bool = True  # without a backdrop: the last sample of a ray hides all behind it; else the background shows
    backdrop: str = "none"  # what the network paints behind the cube: none, plane or sphere
    backdrop_samples: int = 8  # of a ray, from the sphere of the cameras to infinity
    backdrop_start: float = 1.0  # inverse radius of the first of them
    backdrop_base: int = 32768  # the sphere's network has so many channels / 4, then / 8
    backdrop_max: int = 128  # and at most so many
    camera_conditioning: bool = False  # tell the mapping network yaw and pitch of the camera
    camera_dropout: float = 0.0  # probability in training that it is not told one of these numbers
    num_classes: int = 0  # of images; 0: they have none
    published_keys: bool = True  # own the tensors of published checkpoints that no formula reads

    def __post_init__(self) -> None:
        for name in ("resolution", "z_dim", "w_dim", "map_depth", "feature_dim", "hidden_dim", "channel_base",
                     "channel_max", "backdrop_samples", "backdrop_max"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"generator.{name}={getattr(self, name)} must be 1 or more")
        if self.samples < 4:
            raise ValueError(f"--num-ray-steps={self.samples}: must be 4 or more")
        for flag, length in (("generator.unit", self.unit), ("--cube-scale", self.cube_scale)):
            if not 0 < length < float("inf"):
                raise ValueError(f"{flag}={length}: must be finite and greater than 0")
        if not 0 <= self.ray_start < self.ray_end < float("inf"):
            raise ValueError(f"--ray-start={self.ray_start}: must be 0 or more, and less than --ray-end={self.ray_end}")
        if max(1 - self.ray_start, self.ray_end - 1) > self.cube_scale + 1e-9:
            raise ValueError(
                f"--ray-start={self.ray_start}, --ray-end={self.ray_end}: the frustum lies outside of the cube, which "
                f"reaches from {1 - self.cube_scale:g} to {1 + self.cube_scale:g} for --cube-scale={self.cube_scale}"
            )
        for flag, value, legal in (("--clamp-mode", self.density, DENSITIES), ("--bg-model", self.backdrop, BACKDROPS)):
            if value not in legal:
                raise ValueError(f"{flag}={value}: legal are {', '.join(legal)}")
        if not 0 < self.density_gain < float("inf"):
            raise ValueError(f"generator.density_gain={self.density_gain}: must be finite and greater than 0")
        for name in ("density_noise", "noise_fade_kimg"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"generator.{name}={getattr(self, name)}: must be finite and 0 or greater")
        if not 0 <= self.camera_dropout < 1:
            raise ValueError(f"generator.camera_dropout={self.camera_dropout}: must be 0 or more and less than 1")
        if self.num_classes < 0:
            raise ValueError(f"generator.num_classes={self.num_classes}: must be 0 or more")
        if not 0 < self.backdrop_start <= 1:
            raise ValueError(f"generator.backdrop_start={self.backdrop_start}: must be greater than 0, at most 1")
        if self.backdrop == "sphere" and self.backdrop_base < 8:
            raise ValueError(f"generator.backdrop_base={self.backdrop_base}: must be 8 or more")
        stylegan2.channel_counts(self.plane_resolution, self.channel_base, self.channel_max)

    @property
    def last_interval(self) -> float:
        """Returns the length that the last sample of a ray stands for."""
        return INFINITE if self.opaque and self.backdrop == "none" else SHORT

    @property
    def plane_channels(self) -> int:
        """Returns the channels that the network makes: of three planes, and of a painted backdrop."""
        return 3 * self.feature_dim + (3 if self.backdrop == "plane" else 0)

    @property
    def backdrop_widths(self) -> tuple[int, int]:
        """Returns the widths of the two blocks of the sphere's network."""
        first, second = (min(self.backdrop_base // 2 ** (i + 2), self.backdrop_max) for i in range(2))
        return first, second

    @property
    def condition_dim(self) -> int:
        """Returns how many numbers the mapping network is told besides the latent."""
        return self.num_classes + (2 if self.camera_conditioning else 0)

    def check_cameras(self, cameras: Cameras) -> None:
        """Raises ValueError if rays of a data set's cameras [N] leave the cube between their ends."""
        if not len(cameras):
            return
        found = reach(self, cameras)
        if not found <= self.cube_scale + 1e-6:
            raise ValueError(
                f"--cube-scale={self.cube_scale:g}: the frustum of the data's cameras lies outside of the cube: its "
                f"corners are {found:.4g} from the origin, in distances of the camera; use --cube-scale="
                f"{math.ceil(found * 1000) / 1000:g}, or bring --ray-start={self.ray_start:g} and "
                f"--ray-end={self.ray_end:g} closer to 1"
            )


def reach(config: GeneratorConfig, cameras: Cameras) -> float:
    """Returns how far from the origin rays of cameras [N] get, units of the field: in a corner, at one of their ends.

    Rays go through the middles of pixels, also those of patches (`patches.crop`). The planes hold nothing beyond
    `cube_scale`. The longest distance does not depend on how the cameras turn.
    """
    edge = 0.5 / config.resolution if config.resolution > 1 else 0.0
    inner = cameras[:, None].to(dtype=torch.float64).crop((edge, edge, 1 - edge, 1 - edge))
    corners = camera_rays(inner, 2, grid="corners")
    origins = corners.origins * config.unit
    away = origins.norm(dim=-1) - 1
    ends = [origins + (away + t)[..., None] * corners.directions for t in (config.ray_start, config.ray_end)]
    return max(float(point.norm(dim=-1).max()) for point in ends)
