"""Defines the scenes of EpiGRAF: three planes of features, what decodes them, and what lies behind the cube."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from training.families.epigraf import poses
from training.fields import native_fields
from training.fields.field import RadianceField
from training.fields.triplanes import plane_features
from training.networks.layers import FullyConnected, scaled_parameters


class Decoder(nn.Module):
    """Makes colours, -1..1 and beyond, and raw densities of features."""

    def __init__(self, features: int, hidden: int):
        super().__init__()
        self.model = nn.Sequential(FullyConnected(features, hidden, "lrelu"), FullyConnected(hidden, 4))

    def forward(self, x: Tensor) -> Tensor:
        """Returns [..., 4] for features x [..., F]: RGB, raw density."""
        y: Tensor = self.model(x)
        return y

    def fused(self, x: Tensor) -> Tensor:
        """Returns what `forward` does for x [B, P, F], by native code in one go."""
        layers = [layer for layer in self.model if isinstance(layer, FullyConnected)]
        (weights, bias), (shown, rest) = scaled_parameters([(layer, x.dtype) for layer in layers])
        assert bias is not None and rest is not None
        hidden = native_fields.Layer(weights.t()[None], bias[None], shown.t()[None])
        return native_fields.run(x, [hidden], rest[None], "lrelu")


@dataclass(frozen=True)
class TriPlanes(RadianceField):
    """Holds B fields."""

    cube_scale: float  # half the edge of the cube, units of the field
    gain: float  # factor on the decoder's density
    planes: Tensor  # [B, 3, F, R, R]
    decoder: Decoder
    backdrop: Tensor | None = None  # [B, 3, R, R] RGB in -1..1, or [B, 4, w_dim] ws of the network of a sphere

    def features(self, points: Tensor) -> Tensor:
        """Returns features [B, P, F] at points [B, P, 3] in units of the field."""
        return plane_features(self.planes, poses.to_field(points) / self.cube_scale)

    def sample(self, points: Tensor, directions: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns RGB [B, P, 3], in 0..1 and somewhat beyond, and raw densities [B, P]; directions do not matter."""
        fused = native_fields.usable(points, self.planes)
        values = (self.decoder.fused if fused else self.decoder)(self.features(points))
        density = values[..., 3]
        return (values[..., :3] + 1) / 2, density if self.gain == 1 else density * self.gain
