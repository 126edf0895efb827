"""Measures a back end's error against its PyTorch twin in float64: `python -m tests.gaussian.exactness`.

Every scene is drawn from its seed: its size, how stretched, dense and opaque its splats are, where its cameras stand,
their lenses, and what its colours are. The error of a tensor is max |fast - twin| / max |twin|, outputs and gradients
alike; the gradients belong to a random upstream gradient of rgb, alpha and depth together.

The image is discontinuous in the scene: a splat is drawn or not. Pixels where the twin comes within a relative
TOLERANCE of such a decision are left out of the comparison and of the upstream gradient. Their share is reported.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from types import ModuleType

import click
import torch
import torch.nn.functional as F
from torch import Tensor

from gaussian import Cameras, Gaussians, backend_torch
from gaussian.backend_torch import Settings
from gaussian.rendering import BACKENDS, _module

TOLERANCE = 2e-5  # relative distance from a decision below which a pixel is not compared
FIELDS = ("means", "log_scales", "quats", "opacity_logits")
PUBLISHED = Settings()
OUTPUTS = ("rgb", "alpha", "depth")
KINDS = ("plain", "needles", "opaque", "faint", "inside", "off-screen", "deep")


@dataclass(frozen=True)
class Problem:
    """Holds the arguments of one call of `rasterize`, float32."""

    kind: str
    scene: Gaussians  # B scenes
    cameras: Cameras  # [B, V]
    height: int
    width: int
    background: Tensor  # [B, V, C]
    colors: Tensor | None  # [B, N, C], [B, V, N, C], or None for the scene's SH
    scale_modifier: float
    upstream: tuple[Tensor, Tensor, Tensor]  # gradients of rgb, alpha and depth

    def map(self, fn) -> Problem:
        """Returns the same problem with `fn` applied to every tensor."""
        return dataclasses.replace(
            self,
            scene=self.scene.map(fn),
            cameras=self.cameras.map(fn),
            background=fn(self.background),
            colors=None if self.colors is None else fn(self.colors),
            upstream=tuple(fn(u) for u in self.upstream),
        )


class _Dice:
    """Draws random numbers of one seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def integer(self, low: int, high: int) -> int:
        """Draws from low .. high, both included."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)


def draw(seed: int) -> Problem:
    """Draws the problem of a seed; its kind is KINDS[seed % 7]."""
    dice, kind = _Dice(seed), KINDS[seed % len(KINDS)]
    batch, views, splats = dice.integer(1, 2), dice.integer(1, 3), dice.integer(1, 90)
    height, width = dice.integer(1, 40), dice.integer(1, 40)
    scene = _draw_scene(dice, kind, batch, splats)
    cameras = _draw_cameras(dice, kind, batch, views)
    colors = None
    if dice.integer(0, 2) == 0:
        channels = dice.integer(1, 16)
        lead = (batch, views) if dice.integer(0, 1) else (batch,)
        colors = 0.5 + 0.3 * dice.normal(*lead, splats, channels)
    channels = 3 if colors is None else colors.shape[-1]
    return Problem(
        *(kind, scene, cameras, height, width, 0.5 + 0.3 * dice.normal(batch, views, channels), colors),
        dice.uniform(0.3, 1.5) if dice.integer(0, 3) == 0 else 1.0,
        tuple(dice.normal(batch, views, c, height, width) for c in (channels, 1, 1)),
    )


def _draw_scene(dice: _Dice, kind: str, batch: int, splats: int) -> Gaussians:
    spread = {"inside": 2.0, "off-screen": 3.0, "deep": 0.1}.get(kind, 0.6)  # world units
    means = spread * F.normalize(dice.normal(batch, splats, 3), dim=-1) * dice.uniform(0.5, 1)
    means = means * torch.rand(batch, splats, 1, generator=dice.generator) ** (1 / 3)
    if kind == "deep":  # behind each other: along the axis of the frontal camera
        means[..., 2] = 1.5 * torch.rand(batch, splats, generator=dice.generator) - 0.7
    log_scales = math.log(dice.uniform(0.02, 0.15)) + 0.5 * dice.normal(batch, splats, 3)
    if kind == "needles":
        log_scales = math.log(dice.uniform(0.01, 0.1)) + math.log(10) * torch.tensor([1.0, -1.0, 0.0])
        log_scales = (log_scales + 0.1 * dice.normal(batch, splats, 3)).clamp(max=0)
    opacity = {"opaque": 5.0, "faint": -4.0}.get(kind, 0.0)
    coefficients = (1, 4, 9, 16)[dice.integer(0, 3)]
    return Gaussians(
        means,
        log_scales,
        dice.normal(batch, splats, 4) * torch.exp(dice.normal(batch, splats, 1)),
        opacity + 1.5 * dice.normal(batch, splats, 1),
        dice.normal(batch, splats, coefficients, 3),
    )


def _draw_cameras(dice: _Dice, kind: str, batch: int, views: int) -> Cameras:
    distance = 0.7 if kind == "inside" else dice.uniform(2.0, 3.5)
    turn = 0.05 if kind == "deep" else 3.0
    position = distance * F.normalize(torch.tensor([0.0, 0, 1]) + turn * dice.normal(batch, views, 3), dim=-1)
    up = F.normalize(torch.tensor([0.0, 1, 0]) + 0.4 * dice.normal(batch, views, 3), dim=-1)
    intrinsics = torch.eye(3).repeat(batch, views, 1, 1)
    for name, (row, column, low, high) in {
        "fx": (0, 0, 1.0, 4.5), "fy": (1, 1, 1.0, 4.5), "cx": (0, 2, 0.1, 0.9), "cy": (1, 2, 0.1, 0.9)
    }.items():  # fmt: skip
        value = dice.uniform(low, high)
        off = kind != "off-screen" or name[0] == "f"
        intrinsics[..., row, column] = value if off else 2 * value - 0.5
    return Cameras.look_at(position, 0.1 * dice.normal(batch, views, 3), up, intrinsics=intrinsics)


def undecided(problem: Problem, settings: Settings) -> Tensor:
    """Marks the pixels [B, V, 1, H, W] where a float64 twin of `problem` is near a decision, relative to its threshold.

    The decisions: alpha at alpha_min and at alpha_cap, the transmittance at its minimum, the order of two splats that
    both show, the near cut. All pixels against all splats: for small problems only.
    """
    exact = problem.map(Tensor.double)
    near = settings.near
    lenient = dataclasses.replace(settings, near=near * (1 - TOLERANCE))  # also draws what lies just before the cut
    size = problem.height, problem.width
    projection = backend_torch.project(exact.scene, exact.cameras, *size, exact.scale_modifier, lenient)
    drawn = projection.reach[..., 0] > 0  # [B, V, N]
    order = torch.where(drawn, projection.depth, math.inf).argsort(dim=-1, stable=True)
    z = torch.where(drawn, projection.depth, math.inf).gather(-1, order)
    rows = projection.rows.gather(2, order[..., None].expand_as(projection.rows))
    alpha = torch.where(torch.isfinite(z)[..., None, None], _alpha(rows, *size), 0.0)  # [B, V, N, H, W]

    def close(value: Tensor, threshold: float) -> Tensor:
        return (value / threshold - 1).abs() < TOLERANCE

    shows = alpha >= settings.alpha_min * (1 - TOLERANCE)
    capped = torch.where(shows, alpha, 0.0).clamp(max=settings.alpha_cap)
    behind = (1 - capped).cumprod(dim=2)
    before = torch.cat([torch.ones_like(behind[:, :, :1]), behind[:, :, :-1]], dim=2)
    looked_at = before >= settings.transmittance_min * (1 - TOLERANCE)
    shows &= looked_at
    doubtful = (close(alpha, settings.alpha_min) | close(alpha, settings.alpha_cap)) & looked_at
    doubtful |= shows & (close(behind, settings.transmittance_min) | close(z, near)[..., None, None])
    for step in range(1, z.shape[-1]):
        tied = z[..., step:] - z[..., :-step] < TOLERANCE * z[..., step:]  # False for inf - inf, which is nan
        if not tied.any():
            break
        doubtful[:, :, step:] |= tied[..., None, None] & shows[:, :, step:] & shows[:, :, :-step]
    return doubtful.any(dim=2, keepdim=True)


def _alpha(rows: Tensor, height: int, width: int) -> Tensor:
    """Returns alpha [..., H, W] before cap and threshold of projected splats (rows of `Projection`)."""
    u, v, stretch, shear, tall, log_opacity = (column[..., None, None] for column in rows.unbind(-1))
    y = torch.arange(height, dtype=rows.dtype)[:, None] + 0.5 - v
    x = torch.arange(width, dtype=rows.dtype) + 0.5 - u
    return (log_opacity - 0.5 * (stretch * (x + shear * y).square() + tall * y.square())).exp()


def run(problem: Problem, backend: ModuleType, **options: Settings) -> dict[str, Tensor]:
    """Returns outputs and gradients by name."""
    leaves = problem.map(lambda t: t.detach().clone().requires_grad_())
    fields = {name: getattr(leaves.scene, name) for name in FIELDS}
    fields |= {"sh": leaves.scene.sh} if leaves.colors is None else {"colors": leaves.colors}
    fields |= {"background": leaves.background}
    size, rest = (problem.height, problem.width), (leaves.background, leaves.colors, problem.scale_modifier)
    outputs = backend.rasterize(leaves.scene, leaves.cameras.map(Tensor.detach), *size, *rest, **options)
    gradients = torch.autograd.grad(outputs, list(fields.values()), problem.upstream)
    result = dict(zip(OUTPUTS, (o.detach() for o in outputs), strict=True))
    return result | {f"d{name}": g for name, g in zip(fields, gradients, strict=True)}


@dataclass(frozen=True)
class Comparison:
    errors: dict[str, float]  # by tensor
    left_out: int  # pixels
    pixels: int


def compare(problem: Problem, backend: ModuleType, settings: Settings = PUBLISHED, device: str = "cpu") -> Comparison:
    """Compares `backend` in float32 on `device` with the twin in float64 under its constants `settings`."""
    left_out = undecided(problem, settings)
    upstream = tuple(torch.where(left_out, 0.0, u) for u in problem.upstream)
    problem = dataclasses.replace(problem, upstream=upstream)
    fast = run(problem.map(lambda t: t.to(device)), backend)
    slow = run(problem.map(Tensor.double), backend_torch, settings=settings)
    errors = {}
    for name, exact in slow.items():
        difference = fast[name].cpu().double() - exact
        if name in OUTPUTS:
            difference = torch.where(left_out, 0.0, difference)
        largest = difference.abs().max().nan_to_num(math.inf)
        errors[name] = float(largest / exact.abs().max().clamp(min=1e-30)) if largest > 0 else 0.0
    return Comparison(errors, int(left_out.sum()), left_out.numel())


@dataclass
class Worst:
    """Collects the largest errors of many comparisons."""

    errors: dict[str, float] = dataclasses.field(default_factory=dict)
    seeds: dict[str, int] = dataclasses.field(default_factory=dict)
    left_out: int = 0
    pixels: int = 0

    def add(self, seed: int, comparison: Comparison) -> None:
        self.left_out += comparison.left_out
        self.pixels += comparison.pixels
        for name, error in comparison.errors.items():
            if error >= self.errors.get(name, 0.0):
                self.errors[name], self.seeds[name] = error, seed

    @property
    def share(self) -> float:
        """Returns the share of the pixels left out."""
        return self.left_out / self.pixels


@click.command()
@click.option("--scenes", default=2000, show_default=True, help="Seeds 0 .. this.")
@click.option("--backend", default="cpu", show_default=True, type=click.Choice([b for b in BACKENDS if b != "auto"]))
@click.option("--device", default="cpu", show_default=True)
def main(scenes: int, backend: str, device: str) -> None:
    """Prints the largest error of every tensor over random scenes."""
    worst = Worst()
    for seed in range(scenes):
        worst.add(seed, compare(draw(seed), _module(backend), device=device))
    click.echo(f"{scenes} scenes, {worst.pixels} pixels, {100 * worst.share:.2f} % of them left out")
    for name, error in worst.errors.items():
        click.echo(f"{name:16} {error:.1e}  (seed {worst.seeds[name]})")


if __name__ == "__main__":
    main()
