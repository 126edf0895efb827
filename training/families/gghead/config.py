"""Describes a GGHead generator in one record: the published members, and members of any other size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from gaussian.gaussians import LOW_PASS
from gaussian.rendering import check_low_pass
from gaussian.spherical_harmonics import NUM_COEFFICIENTS
from training.families import base
from training.families.gghead import template
from training.networks import stylegan2

STORED = "stored"  # name of a template that only a checkpoint holds


@dataclass(frozen=True)
class GeneratorConfig(base.GeneratorConfig):
    """Holds everything that a Generator is built from; defaults are the published values.

    Raises ValueError for values that cannot be built.
    """

    resolution: int  # pixels of the images
    z_dim: int = 512  # numbers of a latent
    w_dim: int = 512  # numbers of a w
    map_depth: int = 2  # layers of the mapping network
    plane_resolution: int = 256  # texels of an edge of the maps that the network makes
    channel_base: int = 32768  # the network has so many channels / texels of an edge,
    channel_max: int = 512  # and at most so many
    template: str = "head"  # head, sphere, plane, a mesh in FLAME's frame (*.obj), or stored
    samples: int = 256  # of the template along each edge; each that lies on it is a splat
    first_samples: int = 0  # the same, for the first `refined_nimg` images of a run; 0: `samples` from the start
    refined_nimg: int = 0  # images seen when a run goes over to `samples`
    splats: tuple[int, ...] = ()  # on the surface of a template that is a file: [of `first_samples` and] of `samples`
    pose_conditioning: bool = True  # tell the mapping network a camera; otherwise zeros
    use_noise: bool = True  # add noise to the features
    sh_degree: int = 1  # of the splats' colours
    position_range: float = 0.25  # largest distance of a splat from its anchor along each axis, world units
    log_scale_offset: float = -5.0  # added to the raw ln of a splat's size,
    largest_log_scale: float = -3.0  # which stays below this, softly
    low_pass: float = LOW_PASS  # square pixels that splats are wider by in an image, see `gaussian.render`
    background_channels: int = 0  # channels of a backdrop image that the network makes as well: 0 or 3
    exact_backdrop: bool = False  # blend it exactly; published runs let some white through at soft edges
    initial_maps: float = 1.0  # standard deviation of the first weights of the layers that make the maps
    published_keys: bool = True  # own the tensors of published checkpoints that no formula reads

    def __post_init__(self) -> None:
        for name in ("resolution", "z_dim", "w_dim", "map_depth", "channel_base", "channel_max"):
            if getattr(self, name) < 1:
                raise ValueError(f"generator.{name}={getattr(self, name)} must be 1 or more")
        if min(self.samples, self.first_samples or 2) < 2:
            raise ValueError(
                f"generator.samples={self.samples} and first_samples={self.first_samples} must be 2 or more"
            )
        if bool(self.first_samples) != (self.refined_nimg > 0):
            raise ValueError("generator.first_samples and generator.refined_nimg need each other")
        if self.sh_degree not in range(len(NUM_COEFFICIENTS)):
            raise ValueError(f"generator.sh_degree={self.sh_degree}: legal are 0 to {len(NUM_COEFFICIENTS) - 1}")
        check_low_pass(self.low_pass, "generator.low_pass")
        if self.background_channels not in (0, 3):
            raise ValueError(f"generator.background_channels={self.background_channels}: legal are 0 and 3")
        if not self.position_range > 0:
            raise ValueError(f"generator.position_range={self.position_range} must be greater than 0")
        is_mesh = self.template.lower().endswith(template.MESH_SUFFIX)
        if not is_mesh and self.template not in (*template.BUILT_IN, STORED):
            legal = ", ".join(template.BUILT_IN)
            raise ValueError(
                f"--gghead-template={self.template}: legal are {legal}, and a mesh *{template.MESH_SUFFIX}"
            )
        if self.template == STORED and not self.splats:
            raise ValueError(f"--gghead-template={STORED} is for checkpoints whose template is nowhere else")
        if self.splats and (len(self.splats) != len(self.sample_counts) or min(self.splats) < 1):
            counts = f"a number of 1 or more for each of {self.sample_counts} samples"
            raise ValueError(f"generator.splats={self.splats}: legal is {counts}")
        stylegan2.channel_counts(self.plane_resolution, self.channel_base, self.channel_max)

    def changed(self, **values: Any) -> Self:
        """Returns the record with other values; a template that is a file is read and counted.

        Raises ValueError for a file that cannot be used.
        """
        if "splats" not in values and {"template", "samples", "first_samples", "plane_resolution"} & set(values):
            values["splats"] = ()
        config = super().changed(**values)
        if config.template in template.BUILT_IN or config.splats:
            return config
        try:
            counts = tuple(len(config.anchors(i)[1]) for i in range(len(config.sample_counts)))
        except ValueError as error:
            raise ValueError(f"--gghead-template: {error}") from None
        return super(GeneratorConfig, config).changed(splats=counts)

    def anchors(self, grid: int) -> tuple[Any, Any, Any]:
        """Returns what `template.anchors` has for one of `sample_counts`. Raises ValueError for an unusable file."""
        return template.anchors(self.template, self.plane_resolution, self.sample_counts[grid])

    @property
    def sample_counts(self) -> tuple[int, ...]:
        """Returns the samples along an edge of each grid that a run uses, in their order."""
        return (self.first_samples, self.samples) if self.first_samples else (self.samples,)

    @property
    def sh_coefficients(self) -> int:
        """Returns the coefficients of a splat's colour, per channel."""
        return NUM_COEFFICIENTS[self.sh_degree]

    @property
    def attributes(self) -> tuple[int, ...]:
        """Returns the channels of position, scale, rotation, colour and opacity, in the order of the map."""
        return (3, 3, 3, 3 * self.sh_coefficients, 1)
