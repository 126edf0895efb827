"""Describes a pi-GAN generator in one record: the published members, and members of any other size."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gaussian.geometry import REFERENCE_HALF_EXTENT
from training.families import base
from training.fields.marching import March
from training.fields.rays import GRIDS
from training.fields.volume import ACTIVATIONS, ENDLESS

WARPS = {"spatial": 2 / 0.24, "tall": 1.0}  # variant -> factor on points: a cube of 0.24 becomes -1..1, or nothing does
CAMERA_DISTANCE = 1.0  # of the published cameras from the origin, units of the field


def unit_of(fov: float) -> float:
    """Returns the units of the field per world unit, for cameras whose images are `fov` degrees wide.

    What such cameras see of the plane through the origin is as wide in the field, at a distance of 1, as it is in the
    world that labels are brought to (`Geometry.world_scale`).
    """
    return CAMERA_DISTANCE * math.tan(math.radians(fov) / 2) / REFERENCE_HALF_EXTENT


@dataclass(frozen=True)
class GeneratorConfig(base.GeneratorConfig):
    """Holds everything that a Generator is built from; defaults are the published values for CelebA.

    Lengths are in units of the field, in which published cameras are at a distance of 1 from the origin. Raises
    ValueError for values that cannot be built.
    """

    resolution: int  # pixels of the images
    z_dim: int = 256  # numbers of a latent
    width: int = 256  # sines of a layer, and of a hidden layer of the mapping network
    layers: int = 8  # of sines before the density; one more makes the colour
    map_depth: int = 3  # hidden layers of the mapping network
    variant: str = "spatial"  # one of WARPS
    unit: float = unit_of(12.0)  # units of the field per world unit
    half_width: float = 0.15  # half the edge of the cube in which meshes are sought
    near: float = 0.88  # distance along a ray at which samples begin, for a camera at a distance of 1,
    far: float = 1.12  # and end; for other cameras both move along
    samples: int = 12  # along a ray in the first pass
    fine_samples: int = 12  # in the second, where the first found something; 0: there is no second pass
    activation: str = "relu"  # of the density: relu or softplus
    density_gain: float = 1.0  # factor on what the layers say of density: how fast it becomes opaque, and learns
    last_delta: float = ENDLESS  # that the last sample stands for: without end it is a wall where its density is not 0
    last_back: bool = False  # the last sample takes all light that is left
    grid: str = "centres"  # where rays go through pixels; "corners" as published
    density_noise: float = 1.0  # standard deviation of the noise on densities at the start of a run,
    noise_kimg: float = 280.0  # which fades within so many thousands of images
    points: int = 2**17  # that are computed at once where no gradient is kept
    recompute: bool = False  # the same in training, where each part is then computed twice

    def __post_init__(self) -> None:
        for name in ("resolution", "z_dim", "width", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"generator.{name}={getattr(self, name)} must be 1 or more")
        for name in ("map_depth", "density_noise", "noise_kimg"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"generator.{name}={getattr(self, name)} must be finite and 0 or more")
        for name in ("unit", "half_width", "density_gain", "last_delta"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"generator.{name}={getattr(self, name)} must be finite and greater than 0")
        for name, legal in (("variant", WARPS), ("activation", ACTIVATIONS), ("grid", GRIDS)):
            if getattr(self, name) not in legal:
                raise ValueError(f"generator.{name}={getattr(self, name)}: legal are {', '.join(legal)}")
        if not 0 <= self.near < self.far:
            raise ValueError(
                f"--ray-start={self.near} and --ray-end={self.far}: the first must be 0 or more, and be less"
            )
        try:
            self.march()
        except ValueError as error:
            raise ValueError(f"generator: {error}") from None

    @property
    def modulations(self) -> int:
        """Returns the frequencies of a scene, and the phases."""
        return (self.layers + 1) * self.width

    def march(self) -> March:
        """Returns how rays are sampled."""
        return March(
            near=self.near,
            far=self.far,
            samples=self.samples,
            fine_samples=self.fine_samples,
            jitter="centred",
            grid=self.grid,
            last_delta=self.last_delta,
            last_back=self.last_back,
            distance=CAMERA_DISTANCE,
            points=self.points,
            recompute=self.recompute,
        )
