"""Defines the field of pi-GAN: layers of sines whose frequencies and phases a mapping network makes of a latent.

Source: Chan et al. 2021 (pi-GAN), sections 3.1 and 3.2; Sitzmann et al. 2020 (SIREN) for the initial weights. Modules
and parameters carry the names of the published checkpoints.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.families.inspection import Inspection, View, inspect_splats
from training.families.pigan.config import WARPS, GeneratorConfig
from training.fields import native_fields
from training.fields.field import RadianceField

FREQUENCY_SCALE, FREQUENCY_MEAN = 15.0, 30.0  # of a layer's frequency, from what the mapping network says
AHEAD = (0.0, 0.0, -1.0)  # direction that stands for all where the view does not matter
SLOPE = 0.2  # of the mapping network's leaky ReLUs


class FilmLayer(nn.Module):
    """Computes sin(frequency (W x + b) + phase), with a frequency and a phase for each of its outputs."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.layer = nn.Linear(in_features, out_features)

    def modulated(self, frequencies: Tensor, phases: Tensor) -> tuple[Tensor, Tensor]:
        """Returns weights [B, in, out] and biases [B, 1, out] that have frequencies and phases [B, out] in them.

        So a layer is one product and one sine, and keeps half of what it would keep for its gradient.
        """
        weights = (frequencies[:, :, None] * self.layer.weight).transpose(1, 2)
        return weights, (frequencies * self.layer.bias + phases)[:, None]


class MappingNetwork(nn.Module):
    """Maps z [B, z_dim] to raw frequencies and phases [B, 2 modulations] by layers with leaky ReLUs."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        sizes = [config.z_dim] + [config.width] * config.map_depth
        layers: list[nn.Module] = []
        for inner, outer in itertools.pairwise(sizes):
            layers += [nn.Linear(inner, outer), nn.LeakyReLU(SLOPE)]
        last = nn.Linear(sizes[-1], 2 * config.modulations)
        self.network = nn.Sequential(*layers, last)
        for layer in self.network:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, a=SLOPE, nonlinearity="leaky_relu")
        with torch.no_grad():
            last.weight.mul_(0.25)

    @property
    def last(self) -> nn.Linear:
        """The layer that makes frequencies and phases of the last features."""
        layer = self.network[-1]
        assert isinstance(layer, nn.Linear)
        return layer

    def forward(self, z: Tensor) -> Tensor:
        result: Tensor = self.network(z)
        return result


class Siren(nn.Module):
    """Holds the layers of the field, and the mapping network."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        width = config.width
        self.warp, self.gain = WARPS[config.variant], config.density_gain
        self.network = nn.ModuleList([FilmLayer(width if i else 3, width) for i in range(config.layers)])
        self.final_layer = nn.Linear(width, 1)
        self.color_layer_sine = FilmLayer(width + 3, width)
        self.color_layer_linear = nn.Sequential(nn.Linear(width, 3))
        self.mapping_network = MappingNetwork(config)
        self._initialise()

    def _initialise(self) -> None:
        """Draws weights evenly, so that all layers' sines see alike distributions at frequencies of about 30."""
        colour = self.color_layer_linear[0]
        assert isinstance(colour, nn.Linear)
        first, *others = (film.layer for film in self.films)
        others += [self.final_layer, self.color_layer_sine.layer, colour]
        nn.init.uniform_(first.weight, -1 / 3, 1 / 3)
        for layer in others:
            bound = math.sqrt(6 / layer.in_features) / 25
            nn.init.uniform_(layer.weight, -bound, bound)

    @property
    def films(self) -> list[FilmLayer]:
        """The layers before the density."""
        return [film for film in self.network if isinstance(film, FilmLayer)]

    def hidden(self, points: Tensor, frequencies: Tensor, phases: Tensor) -> Tensor:
        """Returns the last features [B, P, width] at points [B, P, 3]; frequencies, phases: [B, layers + 1, width]."""
        x = points * self.warp
        for i, film in enumerate(self.films):
            weights, bias = film.modulated(frequencies[:, i], phases[:, i])
            x = _sine(torch.baddbmm(bias, x, weights))
        return x

    def density(self, hidden: Tensor) -> Tensor:
        """Returns raw densities [B, P]."""
        result: Tensor = self.final_layer(hidden)
        return result[..., 0] * self.gain

    def color(self, hidden: Tensor, directions: Tensor, frequencies: Tensor, phases: Tensor) -> Tensor:
        """Returns RGB [B, P, 3] in 0..1, seen along directions [B, P, 3]; frequencies and phases as for `hidden`."""
        weights, bias = self.color_layer_sine.modulated(frequencies[:, -1], phases[:, -1])
        by_view = torch.baddbmm(bias, directions, weights[:, :3])
        x = _sine(torch.baddbmm(by_view, hidden, weights[:, 3:]))
        return torch.sigmoid(self.color_layer_linear(x))

    def fused(self, points: Tensor, directions: Tensor, frequencies: Tensor, phases: Tensor) -> tuple[Tensor, Tensor]:
        """Returns RGB and raw densities as `color` and `density` do, by native code in one go."""
        scenes, colour = len(points), self.color_layer_linear[0]
        assert isinstance(colour, nn.Linear)
        layers = self._layers(frequencies, phases)
        weights, bias = self.color_layer_sine.modulated(frequencies[:, -1], phases[:, -1])
        weights = torch.cat([weights[:, 3:], weights[:, :3]], dim=1)  # directions are read last
        shown = [F.pad(self.final_layer.weight.t() * self.gain, (3, 0)), F.pad(colour.weight.t(), (0, 1))]
        of_density, of_colour = (x.expand(scenes, -1, -1) for x in shown)  # [B, width, 4]
        layers = [
            *layers[:-1],
            layers[-1]._replace(shown=of_density),
            native_fields.Layer(weights, bias[:, 0], of_colour),
        ]
        rest = torch.cat([colour.bias, self.final_layer.bias * self.gain]).expand(scenes, -1)
        values = native_fields.run(points * self.warp, layers, rest, "sine", directions)
        return torch.sigmoid(values[..., :3]), values[..., 3]

    def fused_density(self, points: Tensor, frequencies: Tensor, phases: Tensor) -> Tensor:
        """Returns raw densities as `density` does, by native code in one go."""
        layers, scenes = self._layers(frequencies, phases), len(points)
        shown = (self.final_layer.weight.t() * self.gain).expand(scenes, -1, -1)
        rest = (self.final_layer.bias * self.gain).expand(scenes, -1)
        layers = [*layers[:-1], layers[-1]._replace(shown=shown)]
        return native_fields.run(points * self.warp, layers, rest, "sine")[..., 0]

    def _layers(self, frequencies: Tensor, phases: Tensor) -> list[native_fields.Layer]:
        modulated = [film.modulated(frequencies[:, i], phases[:, i]) for i, film in enumerate(self.films)]
        return [native_fields.Layer(weights, bias[:, 0]) for weights, bias in modulated]


def _sine(x: Tensor) -> Tensor:
    """Returns sin(x), in x's own memory where no gradient needs x."""
    return x.sin() if x.requires_grad else x.sin_()


@dataclass(frozen=True)
class FilmField(RadianceField):
    """Holds B scenes: the frequencies and phases of each, and the layers that all have in common."""

    frequencies: Tensor  # [B, layers + 1, width] of the sines; the last are the colour's
    phases: Tensor  # [B, layers + 1, width] radians
    siren: Siren
    view: tuple[float, float, float] | None = None  # direction that stands for all, so that colours follow no view

    def sample(self, points: Tensor, directions: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns RGB [B, P, 3] and raw densities [B, P]; see `RadianceField.sample`."""
        view = AHEAD if directions is None else self.view
        if view is not None:
            directions = points.new_tensor(view).expand_as(points)
        assert directions is not None
        if native_fields.usable(points, directions, self.frequencies):
            return self.siren.fused(points, directions, self.frequencies, self.phases)
        hidden = self.siren.hidden(points, self.frequencies, self.phases)
        return self.siren.color(hidden, directions, self.frequencies, self.phases), self.siren.density(hidden)

    def raw_density(self, points: Tensor) -> Tensor:
        """Returns raw densities [B, P] without colours."""
        if native_fields.usable(points, self.frequencies):
            return self.siren.fused_density(points, self.frequencies, self.phases)
        return self.siren.density(self.siren.hidden(points, self.frequencies, self.phases))


def inspect_field(G: Any, inspection: Inspection) -> View:
    """Views fields in the colours of one direction, --colors-from. Raises ValueError for every other option."""
    unchanged = inspect_splats(G, dataclasses.replace(inspection, colors_from=None))
    if inspection.colors_from is None:
        return unchanged
    yaw, pitch = (math.radians(angle) for angle in (*inspection.colors_from, 0.0)[:2])
    x, y, z = G.geometry.orbit(yaw, pitch).cam2world[..., :3, 2].flatten().tolist()  # where the camera looks
    return lambda scene: dataclasses.replace(scene, view=(x, y, z))


def sample_reference(siren: Siren, points: Tensor, directions: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
    """Computes what FilmField samples, layer by layer as published: raw [B, 2, layers + 1, width] of the mapping.

    The slow twin of `Siren`.
    """
    frequencies, phases = FREQUENCY_SCALE * raw[:, 0] + FREQUENCY_MEAN, raw[:, 1]
    x = points * siren.warp
    for i, film in enumerate(siren.films):
        x = torch.sin(frequencies[:, i, None] * film.layer(x) + phases[:, i, None])
    sigma = siren.gain * siren.final_layer(x)[..., 0]
    x = siren.color_layer_sine.layer(torch.cat([directions, x], dim=-1))
    x = torch.sin(frequencies[:, -1, None] * x + phases[:, -1, None])
    return F.sigmoid(siren.color_layer_linear(x)), sigma
