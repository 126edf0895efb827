"""Describes the field of an EG3D generator in one record: the published members, and members of any other size."""

from __future__ import annotations

from dataclasses import dataclass

from training.families import base
from training.networks import stylegan2


@dataclass(frozen=True)
class GeneratorConfig(base.GeneratorConfig):
    """Holds everything that a Generator is built from; defaults are the published values for FFHQ.

    Raises ValueError for values that cannot be built.
    """

    resolution: int = 128  # pixels of the images that the field itself makes
    z_dim: int = 512  # numbers of a latent
    w_dim: int = 512  # numbers of a w
    map_depth: int = 2  # layers of the mapping network
    plane_resolution: int = 256  # texels of an edge of the planes
    feature_dim: int = 32  # features of a plane, and of a point: of these the first three are RGB
    hidden_dim: int = 64  # width of the decoder's hidden layer
    channel_base: int = 32768  # the network has so many channels / texels of an edge,
    channel_max: int = 512  # and at most so many
    use_noise: bool = True  # add noise to the features
    unit: float = 1.0  # units of the field, those of its labels, per world unit
    box_warp: float = 1.0  # edge of the cube that the planes span, units of the field
    ray_start: float = 2.25  # where rays of a camera begin that is `camera_distance` away, units of the field from it,
    ray_end: float = 3.3  # and end; those of others as much nearer or farther
    camera_distance: float = 2.7  # from the origin, units of the field
    samples: int = 48  # of a ray in the first pass,
    fine_samples: int = 48  # and in the second one
    pose_conditioning: bool = True  # tell the mapping network a camera; otherwise zeros
    pose_scale: float = 1.0  # factor on what it is told
    published_keys: bool = True  # own the tensors of published checkpoints that no formula reads

    def __post_init__(self) -> None:
        for name in ("resolution", "z_dim", "w_dim", "map_depth", "hidden_dim", "channel_base", "channel_max"):
            if getattr(self, name) < 1:
                raise ValueError(f"generator.{name}={getattr(self, name)} must be 1 or more")
        if self.feature_dim < 3:
            raise ValueError(f"generator.feature_dim={self.feature_dim} must be 3 or more")
        if min(self.samples, self.fine_samples) < 4:
            raise ValueError(f"generator.samples={self.samples} and fine_samples={self.fine_samples} must be 4 or more")
        for name in ("unit", "box_warp", "camera_distance"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"generator.{name}={getattr(self, name)} must be finite and greater than 0")
        if not 0 <= self.ray_start < self.ray_end < float("inf"):
            raise ValueError(f"generator.ray_start={self.ray_start} must be 0 or more, and less than {self.ray_end}")
        stylegan2.channel_counts(self.plane_resolution, self.channel_base, self.channel_max)
