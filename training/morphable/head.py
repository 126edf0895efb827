"""Builds a procedural head: a morphable model of ours, so that control can be trained and measured without any asset.

The surface is two joined ellipsoids under a few smooth bumps, on a grid that is dense around eyes and mouth. What a
coefficient does is written down as a field of displacements over the resting head, lengths in HEAD_UNIT. Coefficients
are in standard deviations.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from training.morphable.model import BANDS, MorphableModel

RECIPE = "procedural head 1"  # with another number where a formula changes: its networks and regressors are another's
IDENTITY = ("face width", "face height", "jaw", "nose length", "nose width", "eye spacing", "eye size", "mouth height")
EXPRESSION = ("mouth open", "mouth wide", "smile", "brows up", "brows tilted", "eyes closed", "jaw aside", "lip raised")
TEXTURE = ("tone", "warmth", "lips", "brows", "irises", "beard")

UNIT = 1.12  # world units per length unit of this file, as for the ray-cast heads
SPREAD = 0.8796  # of the coefficients of the synthetic sets, which are normal numbers cut at 2
COLUMNS, ROWS = 120, 104  # of the grid around the head
CENTRE = (0.0, 0.0, 0.0)  # from which the grid's lines go out
CRANIUM = ((0.0, 0.045, -0.02), (0.148, 0.185, 0.178))  # centre and semi-axes
JAW = ((0.0, -0.045, 0.035), (0.112, 0.145, 0.120))
EYE, EYE_AXES, IRIS = (0.056, 0.018), (0.031, 0.019), 0.0125  # centre (mirrored), semi-axes, radius
BROW, BROW_HALF = (0.058, 0.062), (0.034, 0.009)
NOSE_TOP, NOSE_TIP = 0.01, -0.055  # y
MOUTH, LIPS, SEAM = -0.108, (0.046, 0.016), 0.0022  # y; semi-axes of both lips; half the strip between them


@dataclass(frozen=True)
class Grid:
    """Holds the resting head without features, and where its parts are."""

    points: Tensor  # [V, 3] in HEAD_UNIT
    triangles: Tensor  # [F, 3] of all of it
    face: Tensor  # [V] bool, in front of the hairline and above the neck

    @property
    def front(self) -> Tensor:
        """1 on the face's side, 0 behind, [V]."""
        return smoothstep(self.points[:, 2] / 0.05)


def smoothstep(x: Tensor) -> Tensor:
    """Returns 0 below 0, 1 above 1 and smooth values between."""
    x = x.clamp(0, 1)
    return x * x * (3 - 2 * x)


def _lines(count: int, low: float, high: float, dense: list[tuple[float, float, float]]) -> Tensor:
    """Returns `count` ascending places from low to high, denser by `gain` about each (place, width, gain)."""
    fine = torch.linspace(low, high, 4001, dtype=torch.float64)
    density = torch.ones_like(fine)
    for place, width, gain in dense:
        density += gain * torch.exp(-(((fine - place) / width) ** 2))
    total = torch.cumulative_trapezoid(density, fine)
    total = torch.cat([total.new_zeros(1), total])
    targets = torch.linspace(0, float(total[-1]), count, dtype=torch.float64)
    at = torch.searchsorted(total, targets).clamp(1, len(total) - 1)
    part = (targets - total[at - 1]) / (total[at] - total[at - 1])
    return fine[at - 1] + part * (fine[at] - fine[at - 1])


def _radius(ways: Tensor) -> Tensor:
    """Returns how far the two ellipsoids, smoothly joined, reach along directions [V, 3] from CENTRE."""
    reaches = []
    for centre, axes in (CRANIUM, JAW):
        d, o = ways / ways.new_tensor(axes), (ways.new_tensor(CENTRE) - ways.new_tensor(centre)) / ways.new_tensor(axes)
        a, b, c = d.square().sum(-1), (d * o).sum(-1), o.square().sum(-1) - 1
        reaches.append((-b + (b * b - a * c).sqrt()) / a)
    return torch.logsumexp(torch.stack(reaches) / 0.008, 0) * 0.008


@functools.cache
def grid() -> Grid:
    """Builds the grid: columns around the head from behind, rows from the crown down, level on the face."""
    with torch.device("cpu"):
        return _grid()


def _grid() -> Grid:
    mouth, eye = MOUTH / 0.155, EYE[1] / 0.15
    turn = _lines(COLUMNS + 1, -math.pi, math.pi, [(0.0, 0.75, 5.0)])[:-1]
    down = _lines(ROWS, -1.5, 1.5, [(mouth, 0.10, 7.0), (mouth, 0.02, 7.0), (eye, 0.17, 5.0), (-0.2, 0.3, 2.0)])
    lat, lon = torch.meshgrid(down.flip(0), turn, indexing="ij")
    lat = torch.atan(lat.tan() * (0.25 + 0.75 * lon.cos().clamp(min=0)))  # nearly level on the face
    level = _ahead(_along(lat, lon))[:, None]  # y of every row
    on_face = (1 - smoothstep((lon.abs() - 0.9) / 0.5)) * (1 - smoothstep((level.abs() - 0.17) / 0.03))
    for _ in range(12):
        points = _along(lat, lon)
        y, across = points[..., 1], points[..., [0, 2]].norm(dim=-1)
        lat = torch.atan2(torch.lerp(y, level.expand_as(y), on_face), across)
    points = _along(lat, lon).flatten(0, 1)
    index = torch.arange(ROWS * COLUMNS).view(ROWS, COLUMNS)
    a, b = index[:-1], index[1:]
    c, d = a.roll(-1, 1), b.roll(-1, 1)
    triangles = torch.cat([torch.stack([a, b, c], -1).flatten(0, 1), torch.stack([c, b, d], -1).flatten(0, 1)])
    x, y, z = points.unbind(1)
    hairline = (x / 0.135) ** 2 + ((y + 0.035) / 0.175) ** 2 < 1
    return Grid(points, triangles, hairline & (z > 0.0))


def _along(lat: Tensor, lon: Tensor) -> Tensor:
    """Returns the points [..., 3] of the surface in directions from CENTRE."""
    ways = torch.stack([lat.cos() * lon.sin(), lat.sin(), lat.cos() * lon.cos()], -1)
    return ways * _radius(ways.flatten(0, 1)).view(*lat.shape, 1)


def _ahead(points: Tensor) -> Tensor:
    """Returns y of the rows [ROWS] of points [ROWS, COLUMNS, 3], straight ahead."""
    return points[:, points[ROWS // 2, :, 0].abs().argmin(), 1]


# ---------------------------------------------------------------- fields over the grid, [V]


def _spot(g: Grid, centre: tuple[float, float], size: tuple[float, float], mirrored: bool = True) -> Tensor:
    x = g.points[:, 0].abs() if mirrored else g.points[:, 0]
    away = ((x - centre[0]) / size[0]) ** 2 + ((g.points[:, 1] - centre[1]) / size[1]) ** 2
    return torch.exp(-away) * g.front


def _eye(g: Grid) -> tuple[Tensor, Tensor]:
    """Returns where vertices are across an eye and up it, in its semi-axes; the lids are at 1."""
    u = (g.points[:, 0].abs() - EYE[0]) / EYE_AXES[0]
    v = (g.points[:, 1] - EYE[1]) / (EYE_AXES[1] * (1 - u * u).clamp(min=0.05).sqrt())
    return u, v


def _lids(g: Grid) -> Tensor:
    """Returns how far down vertices move as the eyes close: all of an eye to its lower lid, and the lid after it."""
    u, v = _eye(g)
    half = EYE_AXES[1] * (1 - u * u).clamp(min=0).sqrt()
    travel = torch.where(v < 1, v + 1, 2 * (1 - (v - 1) / 1.6)).clamp(min=0)
    return half * travel * g.front


def _below_mouth(g: Grid) -> Tensor:
    """Returns 1 on the lower lip and the chin, 0 above the mouth; between, only the strip between the lips is steep."""
    x, y = g.points[:, 0].abs(), g.points[:, 1]
    half = 0.6 * SEAM + 0.028 * smoothstep((x - 0.038) / 0.02)
    return ((MOUTH - y) / (2 * half) + 0.5).clamp(0, 1)


def _strip(g: Grid) -> Tensor:
    """Returns which vertices are between the lips, 0 or 1."""
    x, y = g.points[:, 0].abs(), g.points[:, 1]
    return ((y - MOUTH).abs() < SEAM).to(x) * (x < 0.043).to(x) * g.front


def _lip(g: Grid) -> Tensor:
    """Returns where the lips are, 0..1."""
    x, y = g.points[:, 0] / LIPS[0], (g.points[:, 1] - MOUTH) / LIPS[1]
    return smoothstep((1.1 - (x * x + y * y)) / 0.25) * g.front


Field = tuple[Tensor | float, Tensor | float, Tensor | float]  # what vertices move by: x, y, z


def _vectors(x: Tensor | float, y: Tensor | float, z: Tensor | float, like: Tensor) -> Tensor:
    return torch.stack([like.new_zeros(len(like)) + part for part in (x, y, z)], dim=-1)


def _features(g: Grid) -> Tensor:
    """Returns what nose, sockets, lips and chin add to the resting head, [V, 3]."""
    y = g.points[:, 1]
    along = ((NOSE_TOP - y) / (NOSE_TOP - NOSE_TIP)).clamp(0, 1)
    nose = _spot(g, (0.0, -0.03), (0.018, 10.0)) * along.square() * smoothstep((y - NOSE_TIP + 0.016) / 0.016)
    wings = _spot(g, (0.016, -0.052), (0.010, 0.012))
    u, v = _eye(g)
    ball = (1 - u.square() - v.square() * 0.8).clamp(min=0).sqrt() * (v.abs() < 1) * g.front
    z = 0.036 * nose + 0.010 * wings - 0.012 * _spot(g, EYE, (0.036, 0.026)) + 0.007 * ball
    z = z + 0.006 * _lip(g) + 0.006 * _spot(g, (0.0, -0.16), (0.03, 0.02)) + 0.004 * _spot(g, BROW, (0.04, 0.012))
    return _vectors(0.0, 0.0, z, g.points)


def _identity(g: Grid) -> Tensor:
    """Returns what one standard deviation of each of IDENTITY adds, [8, V, 3]."""
    x, y, _ = g.points.unbind(1)
    jaw = smoothstep((-0.02 - y) / 0.12)
    nose = _spot(g, (0.0, -0.04), (0.022, 0.035))
    eye, mouth = _spot(g, EYE, (0.045, 0.035)), _spot(g, (0.0, MOUTH), (0.075, 0.035))
    side = x.sign()
    fields: dict[str, Field] = {
        "face width": (0.075 * x, 0.0, 0.0),
        "face height": (0.0, 0.06 * y - 0.010 * jaw, 0.0),
        "jaw": (0.13 * jaw * x, 0.0, 0.0),
        "nose length": (0.0, -0.013 * _spot(g, (0.0, NOSE_TIP), (0.022, 0.020)), 0.004 * nose),
        "nose width": (0.40 * nose * x, 0.0, 0.003 * nose),
        "eye spacing": (0.0075 * eye * side, 0.0, 0.0),
        "eye size": (0.17 * eye * (x - side * EYE[0]), 0.17 * eye * (y - EYE[1]), 0.0),
        "mouth height": (0.0, 0.010 * mouth, 0.0),
    }
    return torch.stack([_vectors(*fields[name], g.points) for name in IDENTITY])


def _expression(g: Grid) -> Tensor:
    """Returns what one standard deviation of each of EXPRESSION adds, [8, V, 3]."""
    x, y, _ = g.points.unbind(1)
    below, strip = _below_mouth(g), _strip(g)
    jaw = below * torch.exp(-((x / 0.088) ** 4)) * g.front * smoothstep((y + 0.235) / 0.05)
    corners = _spot(g, (LIPS[0], MOUTH), (0.026, 0.024))
    mouth = _spot(g, (0.0, MOUTH), (0.07, 0.034))
    upper = (1 - below) * _spot(g, (0.0, MOUTH + 0.012), (0.034, 0.028))
    brow = _spot(g, BROW, (0.05, 0.024))
    fields: dict[str, Field] = {
        "mouth open": (0.0, -0.0125 * jaw, -0.006 * strip - 0.003 * jaw),
        "mouth wide": (0.17 * mouth * x, 0.0, 0.0),
        "smile": (0.0, 0.0105 * corners - 0.002 * mouth, 0.0),
        "brows up": (0.0, 0.009 * brow, 0.0),
        "brows tilted": (0.0, 0.30 * brow * (x.abs() - BROW[0]), 0.0),
        "eyes closed": (0.0, -0.29 * _lids(g), 0.0),
        "jaw aside": (0.010 * torch.maximum(jaw, below * mouth), 0.0, 0.0),
        "lip raised": (0.0, 0.007 * upper, 0.003 * upper),
    }
    return torch.stack([_vectors(*fields[name], g.points) for name in EXPRESSION])


# ---------------------------------------------------------------- colours

SKIN, LIP, INSIDE, WHITE = (0.72, 0.52, 0.41), (0.62, 0.27, 0.26), (0.14, 0.04, 0.05), (0.93, 0.92, 0.90)
TINT = 0.12  # share of the light's variance that is colour
IRIS_COLOUR, HAIR_COLOUR = (0.26, 0.26, 0.24), (0.26, 0.18, 0.12)


def _parts(g: Grid) -> dict[str, Tensor]:
    """Returns how much each part covers every vertex, 0..1 [V], later ones over earlier ones."""
    x, y, _ = g.points.unbind(1)
    u, v = _eye(g)
    eye = ((u.abs() < 1) & (v.abs() < 1)).to(x) * g.front
    lash = ((u.abs() < 1.0) & (v >= 1) & (v < 1.35)).to(x) * g.front
    away = torch.hypot(x.abs() - EYE[0], y - EYE[1])
    brow = smoothstep((1.3 - ((x.abs() - BROW[0]) / BROW_HALF[0]) ** 2 - ((y - BROW[1]) / BROW_HALF[1]) ** 2) / 0.5)
    beard = smoothstep((-0.085 - y) / 0.03) * g.front * (1 - _spot(g, (0.0, MOUTH), (0.05, 0.02)))
    return {
        "beard": beard,
        "lip": _lip(g),
        "inside": _strip(g),
        "brow": brow * g.front,
        "eye": eye,
        "iris": eye * (away < IRIS).to(x),
        "pupil": eye * (away < 0.4 * IRIS).to(x),
        "lash": lash,
    }


def features() -> Tensor:
    """Returns how much of every vertex belongs to the eye at -x, to the other, and to the mouth: [3, V], 0..1."""
    g = grid()
    parts, left = _parts(g), (g.points[:, 0] < 0).to(g.points)
    mouth = torch.maximum(parts["lip"], parts["inside"])
    return torch.stack([parts["eye"] * left, parts["eye"] * (1 - left), mouth]).float()


def _albedo(g: Grid) -> tuple[Tensor, Tensor]:
    """Returns the mean RGB [V, 3], and what one standard deviation of each of TEXTURE adds [6, V, 3]."""
    parts = _parts(g)
    like = g.points
    colour = like.new_tensor(SKIN).expand(len(like), 3)
    painted = {"lip": LIP, "brow": HAIR_COLOUR, "inside": INSIDE, "eye": WHITE, "iris": IRIS_COLOUR}
    painted |= {"pupil": (0.03, 0.03, 0.03), "lash": (0.16, 0.11, 0.09)}
    for name, rgb in painted.items():
        colour = torch.lerp(colour, like.new_tensor(rgb).expand_as(colour), parts[name][:, None])
    bare = 1 - torch.stack([parts[name] for name in ("lip", "inside", "brow", "eye", "lash")]).amax(0)
    lips = parts["lip"] * (1 - parts["inside"])
    amounts = {
        "tone": ((0.13, 0.12, 0.11), bare + 0.6 * lips),
        "warmth": ((0.05, 0.0, -0.05), bare),
        "lips": ((0.14, -0.04, 0.02), lips),
        "brows": ((0.10, 0.08, 0.06), parts["brow"]),
        "irises": ((-0.09, 0.03, 0.14), parts["iris"] * (1 - parts["pupil"])),
        "beard": ((-0.10, -0.09, -0.08), parts["beard"] * bare),
    }
    basis = torch.stack([amount[:, None] * like.new_tensor(rgb) for rgb, amount in (amounts[n] for n in TEXTURE)])
    return colour, basis


def _light() -> tuple[Tensor, Tensor]:
    """Returns the mean of the light's 27 numbers, from above the brow, and the factor of their covariance [27, 27].

    Lights are mostly white: what red, green and blue have in common is most of their variance.
    """
    mean = torch.tensor([0.80, 0.18, 0.24, 0.0, 0.0, 0.04, 0.02, 0.0, 0.0])
    spread = torch.tensor([0.05, 0.06, 0.05, 0.10, 0.02, 0.02, 0.02, 0.02, 0.02])
    assert len(mean) == BANDS
    tints = torch.full((3, 3), 1 - TINT).fill_diagonal_(1.0)
    covariance = torch.kron(tints, torch.diag(spread.square()))
    return mean.repeat(3), torch.linalg.cholesky(covariance)


def _landmarks(g: Grid, shape: Tensor) -> Tensor:
    """Returns the 68 vertices nearest to where each should be, in the usual order: outline, brows, nose, eyes, lips."""
    around = torch.linspace(-1, 1, 17, dtype=torch.float64) * math.pi / 2
    places = [(0.128 * math.sin(a), 0.02 - 0.20 * math.cos(a)) for a in around.tolist()]
    for s in (-1, 1):
        brow = [(s * (BROW[0] + d * BROW_HALF[0]), BROW[1]) for d in (1.0, 0.5, 0.0, -0.5, -1.0)]
        places += brow if s < 0 else brow[::-1]
    places += [(0.0, NOSE_TOP + (NOSE_TIP - NOSE_TOP) * t) for t in (0.0, 0.3, 0.6, 0.95)]
    places += [(x, NOSE_TIP - 0.008) for x in (-0.018, -0.009, 0.0, 0.009, 0.018)]
    ring = [(math.cos(a), math.sin(a)) for a in (math.pi, 2.2, 0.95, 0.0, -0.95, -2.2)]
    for s in (-1, 1):
        places += [(s * EYE[0] + EYE_AXES[0] * c, EYE[1] + EYE_AXES[1] * d) for c, d in ring]
    for scale, count in ((1.0, 12), (0.6, 8)):
        angles = [math.pi - 2 * math.pi * k / count for k in range(count)]
        places += [(scale * LIPS[0] * math.cos(a), MOUTH + scale * LIPS[1] * math.sin(a)) for a in angles]
    flat = torch.tensor(places, dtype=torch.float64)
    away = torch.cdist(flat, g.points[:, :2]) + 10.0 * (g.points[:, 2] < 0)
    return away.argmin(1)


def mirrored_signs() -> Tensor:
    """Returns what becomes of the whitened coefficients [49] of the head, block after block, as it is mirrored."""
    expression = torch.ones(len(EXPRESSION))
    expression[EXPRESSION.index("jaw aside")] = -1
    light = torch.ones(3, BANDS)
    light[:, [3, 4, 7]] = -1  # x, xy and xz
    return torch.cat([torch.ones(len(IDENTITY)), expression, torch.ones(len(TEXTURE)), light.flatten()])


@functools.cache
def procedural_head() -> MorphableModel:
    """Builds the model: 8 modes of identity, 8 of expression, 6 of colour; its surface is the face without the hair."""
    with torch.device("cpu"):  # also where networks are built without numbers, on the meta device
        return _built(grid())


def _built(g: Grid) -> MorphableModel:
    expression = _expression(g)
    # At rest the mouth is open by what -2 standard deviations close, and the eyes are a little closed.
    shape = g.points + _features(g) + 2.0 * expression[EXPRESSION.index("mouth open")]
    shape = shape + 1.2 * expression[EXPRESSION.index("eyes closed")]
    colour, texture = _albedo(g)
    light, spread = _light()
    sizes = {"identity": len(IDENTITY), "expression": len(EXPRESSION), "texture": len(TEXTURE)}
    means = {block: torch.zeros(n) for block, n in sizes.items()} | {"illumination": light}
    factors = {block: SPREAD * torch.eye(n) for block, n in sizes.items()}
    factors |= {"illumination": SPREAD * spread}
    return MorphableModel(
        shape=(UNIT * shape).float(),
        identity=(UNIT * _identity(g)).float(),
        expression=(UNIT * expression).float(),
        albedo=colour.float(),
        texture=texture.float(),
        triangles=g.triangles[g.face[g.triangles].all(1)],
        landmarks=_landmarks(g, shape),
        outline=17,
        means=means,
        factors=factors,
        recipe=RECIPE,
    )
