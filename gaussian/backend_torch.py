"""Implements the reference rasteriser: 3D Gaussian splatting in PyTorch, on any device, in float32 or float64.

Follows Kerbl et al. 2023 (3D Gaussian Splatting, sections 4 to 6) and Zwicker et al. 2001 (EWA Splatting), with one
difference to the published rasteriser: a splat reaches exactly the pixels where its alpha is at least 1/255, not a
box of three standard deviations.

    project    every splat into every view: centre, inverse of the 2D covariance, reach, depth       [B, V, N]
    bin        one (tile, splat) pair per tile that a splat may reach, sorted by tile, then by depth  [P]
    blend      per tile a padded list of splats: the exponent of alpha is a polynomial of degree 2 in the pixel's
               offset from the tile's centre, so one matrix product gives it for all pixels; then a cumulative
               product of 1 - alpha. Tiles go in chunks of similar list length. The backward recomputes each chunk,
               so that memory stays bounded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from gaussian.cameras import Cameras
from gaussian.gaussians import LOW_PASS, Gaussians
from gaussian.rotations import quats_to_matrices

SHAPE_WIDTH = 6  # columns of a splat's row before its features, see `Projection.rows`
MAX_DEVIATION = 1e4  # pixels; wider splats are scaled down inside formulas that would overflow
REACH_MARGIN = 1e-4  # relative widening of a splat's box, so that rounding cannot lose a pixel
NEVER = -1e30  # log alpha of the padding


@dataclass(frozen=True)
class Settings:
    """Holds the rasteriser's constants; the defaults of the first six are those of Kerbl et al.'s implementation.

    Raises ValueError for an alpha_cap at which a splat would hide everything, which the gradient divides by.
    """

    alpha_cap: float = 0.99  # alpha is limited to this
    alpha_min: float = 1 / 255  # fainter contributions are left out
    near: float = 0.2  # camera z, world units, at or below which a splat is dropped
    low_pass: float = LOW_PASS  # square pixels added to both variances
    transmittance_min: float = 1e-4  # a pixel stops before the splat that would take it below
    extent_limit: float = 0.3  # the local affine map is taken at most this far outside the image, in half images
    tile: int = 8  # pixels
    chunk: int = 1 << 19  # (splat, pixel) evaluations held at a time, about 40 bytes each in float32

    def __post_init__(self) -> None:
        if not 0 < self.alpha_cap < 1:
            raise ValueError(f"alpha_cap must be between 0 and 1, got {self.alpha_cap}")


def available() -> bool:
    return True


def reason() -> str:
    """Returns why this back end cannot be used: "", since it always can."""
    return ""


def rasterize(
    scene: Gaussians,  # B scenes
    cameras: Cameras,  # [B, V]
    height: int,
    width: int,
    background: Tensor,  # [B, V, C]
    colors: Tensor | None,  # [B, N, C] or [B, V, N, C]; None takes the scene's SH
    scale_modifier: float,
    settings: Settings = Settings(),
    low_pass: float | None = None,  # square pixels, in place of the settings'
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns rgb [B, V, C, H, W], alpha [B, V, 1, H, W] and depth [B, V, 1, H, W]; see `gaussian.render`."""
    if low_pass is not None:
        settings = replace(settings, low_pass=low_pass)
    if colors is None:
        colors = scene.colors() if scene.sh_degree == 0 else scene.colors(cameras.positions)
    if colors.ndim == 3:
        colors = colors[:, None].expand(-1, cameras.shape[1], -1, -1)
    projection = project(scene, cameras, height, width, scale_modifier, settings)
    num_images, num_splats = math.prod(cameras.shape), scene.num_splats
    ones = torch.ones_like(projection.depth)
    rows = torch.cat([projection.rows, colors, projection.depth[..., None], ones[..., None]], dim=-1)  # [B, V, N, D]
    with torch.no_grad():
        boxes = _tile_boxes(projection, height, width, settings).reshape(num_images, num_splats, 4)
        tiles = _bin(projection.depth.reshape(num_images, num_splats), boxes, height, width, settings.tile)
    sums = _Blend.apply(rows.flatten(0, 2), tiles, settings)  # [images * tiles, C + 2, pixels]
    images = _assemble(sums, cameras.shape, height, width, settings.tile)  # [B, V, C + 2, H, W]
    rgb, depth, alpha = images.split([colors.shape[-1], 1, 1], dim=2)
    return rgb + (1 - alpha) * background[..., None, None], alpha, depth


class Projection(NamedTuple):
    """Holds the splats as the views see them. With x, y the offset of a pixel from the splat's centre,

    log alpha = log_opacity - (stretch (x + shear y)^2 + height y^2) / 2,

    which is the quadratic form of the inverse covariance written so that nothing cancels for needles.
    """

    rows: Tensor  # [B, V, N, 6] centre x, y in pixels; stretch, shear, height; log opacity
    depth: Tensor  # [B, V, N] camera z in world units, 1 for hidden splats
    reach: Tensor  # [B, V, N, 2] half width and height in pixels of the box where alpha >= alpha_min, -1 for none


def project(
    scene: Gaussians, cameras: Cameras, height: int, width: int, scale_modifier: float, settings: Settings
) -> Projection:
    """Projects every splat into every view: the centre by perspective, the covariance by its local affine map (EWA)."""
    size = torch.tensor([width, height], dtype=scene.dtype, device=scene.device)
    focal = cameras.intrinsics[..., None, [0, 1], [0, 1]]  # [B, V, 1, 2] units of the image
    principal = cameras.intrinsics[..., None, :2, 2]
    world2cam = cameras.world2cam
    rotation, translation = world2cam[..., :3, :3], world2cam[..., None, :3, 3]
    local = scene.means[:, None] @ rotation.transpose(-1, -2) + translation  # [B, V, N, 3]

    # Hidden splats get harmless values before anything divides by z: 0 * nan in the backward would poison the sums.
    visible = (local[..., 2] > settings.near) & (local.abs() < torch.finfo(scene.dtype).max ** 0.25).all(-1)
    z = torch.where(visible, local[..., 2], 1.0)
    slope = torch.where(visible[..., None], local[..., :2], 0.0) / z[..., None]  # x/z and y/z
    centre = (focal * slope + principal) * size

    margin = settings.extent_limit / (2 * focal)
    limited = slope.clamp(-principal / focal - margin, (1 - principal) / focal + margin)
    frame = quats_to_matrices(scene.unit_quats()) * (scale_modifier * scene.scales())[..., None, :]  # [B, N, 3, 3]
    # Row i of the affine map's Jacobian times world-to-camera: pixels per world unit, [B, V, N, 3]
    gain = focal * size / z[..., None]
    jacobian = [gain[..., i, None] * (rotation[..., None, i, :] - limited[..., i, None] * rotation[..., None, 2, :])
                for i in (0, 1)]  # fmt: skip
    b0, b1 = ((row[..., None] * frame[:, None]).sum(-2) for row in jacobian)  # [B, V, N, 3] the axes, in pixels
    stretch, shear, tall, variance = _inverse_covariance(b0, b1, settings.low_pass)

    log_opacity = F.logsigmoid(scene.opacity_logits)[:, None, :, 0].expand_as(z)  # [B, V, N]
    rows = torch.stack([*centre.unbind(-1), stretch, shear, tall, log_opacity], dim=-1)
    with torch.no_grad():
        level = 2 * (log_opacity - math.log(settings.alpha_min))
        seen = visible & (level >= 0)
        reach = torch.where(seen[..., None], (level.clamp(min=0)[..., None] * variance).sqrt(), -1.0)
    return Projection(rows, z, reach)


def _inverse_covariance(b0: Tensor, b1: Tensor, low_pass: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns stretch, shear, height (see `Projection`) and the variances [..., 2] of b b^T + low_pass I.

    With S = [[s00, s01], [s01, s11]]: stretch = s11 / det S, shear = -s01 / s11, height = 1 / s11. The determinant is
    |b0 x b1|^2 + low_pass (|b0|^2 + |b1|^2) + low_pass^2, a sum of positive terms.
    """
    with torch.no_grad():  # a common factor that cancels out: it keeps fourth powers of huge splats in range
        shrink = (torch.maximum(b0.norm(dim=-1), b1.norm(dim=-1)) / MAX_DEVIATION).clamp(min=1)
    b0, b1 = b0 / shrink[..., None], b1 / shrink[..., None]
    area = shrink.square()
    low = low_pass / area
    n0, n1 = b0.square().sum(-1), b1.square().sum(-1)
    det = torch.linalg.cross(b0, b1).square().sum(-1) + low * (n0 + n1) + low.square()
    s00, s11 = n0 + low, n1 + low
    stretch, shear, tall = s11 / det / area, -(b0 * b1).sum(-1) / s11, 1 / (s11 * area)
    return stretch, shear, tall, torch.stack([s00 * area, s11 * area], dim=-1)


class _Tiles(NamedTuple):
    """Lists the splats that each tile blends, front to back. Tiles are numbered image by image, row by row."""

    splats: Tensor  # [P] index into the images' splats, sorted by tile, then by depth
    starts: Tensor  # [images * tiles] where a tile's list begins in `splats`
    counts: Tensor  # [images * tiles] length of a tile's list
    centres: Tensor  # [images * tiles, 2] x, y of a tile's centre in pixels


def _tile_boxes(projection: Projection, height: int, width: int, settings: Settings) -> Tensor:
    """Returns the first tile column and row, columns and rows [B, V, N, 4] a splat may reach; 0 columns for none."""
    tile, columns, rows = settings.tile, _num_tiles(width, settings.tile), _num_tiles(height, settings.tile)
    centre, reach = projection.rows[..., :2], projection.reach * (1 + REACH_MARGIN) + REACH_MARGIN
    limit = torch.tensor([width, height], dtype=centre.dtype, device=centre.device)
    first = (centre - reach - 0.5).ceil().clamp(min=0).minimum(limit).long()  # pixels whose centres lie in the box
    end = ((centre + reach - 0.5).floor() + 1).clamp(min=0).minimum(limit).long()
    tiles = torch.tensor([columns, rows], device=centre.device)
    first_tile = torch.div(first, tile, rounding_mode="floor")
    span = torch.div(end + tile - 1, tile, rounding_mode="floor").minimum(tiles) - first_tile
    reached = ((projection.reach > 0) & (end > first)).all(-1, keepdim=True)
    return torch.cat([first_tile, span * reached], dim=-1)


def _bin(depth: Tensor, boxes: Tensor, height: int, width: int, tile: int) -> _Tiles:
    """Pairs every splat with every tile of its box, by depth [images, N] and boxes [images, N, 4]."""
    num_images, num_splats = depth.shape
    columns, rows = _num_tiles(width, tile), _num_tiles(height, tile)
    device = depth.device
    order = depth.sort(dim=1, stable=True).indices + num_splats * torch.arange(num_images, device=device)[:, None]
    order = order.flatten()
    areas = boxes[..., 2:].prod(dim=-1).flatten()[order]
    splats = order.repeat_interleave(areas)  # [P] front to back within an image
    left, top, across, _ = boxes.flatten(0, 1)[splats].unbind(-1)
    step = torch.arange(len(splats), device=device) - (areas.cumsum(0) - areas).repeat_interleave(areas)
    row = torch.div(step, across, rounding_mode="floor")
    image = torch.div(splats, num_splats, rounding_mode="floor")
    ids = (image * rows + top + row) * columns + left + step - row * across
    by_tile = ids.sort(stable=True).indices
    counts = ids.bincount(minlength=num_images * rows * columns)
    y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    centres = (torch.stack([x, y], dim=-1).flatten(0, 1) + 0.5) * tile
    return _Tiles(splats[by_tile], counts.cumsum(0) - counts, counts, centres.to(depth).repeat(num_images, 1))


def _num_tiles(length: int, tile: int) -> int:
    return (length + tile - 1) // tile


def _assemble(sums: Tensor, shape: torch.Size, height: int, width: int, tile: int) -> Tensor:
    """Reorders blended tiles [images * tiles, D, pixels] into images [B, V, D, H, W]."""
    rows, columns = _num_tiles(height, tile), _num_tiles(width, tile)
    grid = sums.reshape(*shape, rows, columns, sums.shape[1], tile, tile)
    images = grid.permute(0, 1, 4, 2, 5, 3, 6).reshape(*shape, sums.shape[1], rows * tile, columns * tile)
    return images[..., :height, :width]


class _Blend(torch.autograd.Function):
    """Sums alpha T feature over the splats of each tile, T being the transmittance in front of the splat.

    rows: [images * N, 6 + D], a splat's shape (see `Projection`) and its features. Returns [images * tiles, D, pixels].
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, tiles: _Tiles, settings: Settings) -> Tensor:
        kept = torch.zeros_like(tiles.splats, dtype=torch.bool)
        sums = rows.new_zeros(len(tiles.counts), rows.shape[1] - SHAPE_WIDTH, settings.tile**2)
        basis = _pixel_basis(settings.tile, rows)
        for chunk in _chunks(tiles, settings):
            positions, padding = _lists(tiles, chunk)
            shape, features = _gather(rows, tiles.splats[positions])
            blend = _weights(_polynomial(shape, tiles.centres[chunk], padding), basis, settings)
            sums[chunk] = features @ blend.weight.transpose(1, 2)  # [T, D, pixels]
            if ctx.needs_input_grad[0]:
                kept[positions[_contributing(blend)]] = True
        ctx.save_for_backward(rows, *_shortened(tiles, kept))
        ctx.settings = settings
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_sums: Tensor) -> tuple[Tensor, None, None]:
        rows, *saved = ctx.saved_tensors
        tiles, settings = _Tiles(*saved), ctx.settings
        grad_rows = torch.zeros_like(rows)
        basis = _pixel_basis(settings.tile, rows)
        for chunk in _chunks(tiles, settings):
            positions, padding = _lists(tiles, chunk)
            splats = tiles.splats[positions]
            shape, features = _gather(rows, splats)
            with torch.enable_grad():
                polynomial = _polynomial(shape.requires_grad_(), tiles.centres[chunk], padding)
            blend = _weights(polynomial.detach(), basis, settings)
            upstream = grad_sums[chunk]  # [T, D, pixels]
            grad_log_alpha = _grad_log_alpha(blend, upstream.transpose(1, 2) @ features, settings)  # [T, pixels, L]
            (grad_shape,) = torch.autograd.grad(polynomial, shape, basis.T @ grad_log_alpha)
            grads = torch.cat([grad_shape, upstream @ blend.weight], dim=1)  # [T, 6 + D, L]
            grad_rows.index_add_(0, splats.flatten(), grads.transpose(1, 2).flatten(0, 1))
        return grad_rows, None, None


def _chunks(tiles: _Tiles, settings: Settings) -> list[Tensor]:
    """Groups tiles by list length, with at most `settings.chunk` (splat, pixel) pairs each; drops empty ones."""
    counts, ids = tiles.counts.sort(descending=True, stable=True)
    lengths = counts.tolist()
    groups, start = [], 0
    while start < len(lengths) and lengths[start] > 0:
        size = max(1, settings.chunk // (lengths[start] * settings.tile**2))
        groups.append(ids[start : start + size])
        start += size
    return groups


def _lists(tiles: _Tiles, chunk: Tensor) -> tuple[Tensor, Tensor]:
    """Returns where in `tiles.splats` the lists of a chunk's tiles are, padded to [T, L], and what is padding."""
    counts = tiles.counts[chunk]
    slots = torch.arange(int(counts[0]), device=chunk.device)
    padding = slots >= counts[:, None]
    return (tiles.starts[chunk][:, None] + slots).masked_fill(padding, 0), padding


def _contributing(blend: _Weights) -> Tensor:
    """Marks the entries [T, L] that the backward needs: what hits a pixel, up to the last one that any pixel blends.

    In between even a splat with no weight matters: it may be the one before which a pixel has stopped.
    """
    slots = torch.arange(blend.weight.shape[2], device=blend.weight.device)
    last = torch.where(blend.weight.amax(dim=1) > 0, slots, -1).amax(dim=1, keepdim=True)
    return (blend.alpha.amax(dim=1) > 0) & (slots <= last)


def _shortened(tiles: _Tiles, kept: Tensor) -> _Tiles:
    """Returns the same tiles with only the entries where `kept` [P] is true."""
    running = F.pad(kept.cumsum(0), (1, 0))
    starts = running[tiles.starts]
    return _Tiles(tiles.splats[kept], starts, running[tiles.starts + tiles.counts] - starts, tiles.centres)


def _gather(rows: Tensor, splats: Tensor) -> tuple[Tensor, Tensor]:
    """Returns shapes [T, 6, L] and features [T, D, L] of the splats [T, L], the layout that suits matrix products."""
    gathered = rows.index_select(0, splats.flatten()).unflatten(0, splats.shape).transpose(1, 2).contiguous()
    return gathered[:, :SHAPE_WIDTH].detach(), gathered[:, SHAPE_WIDTH:]


def _pixel_basis(tile: int, like: Tensor) -> Tensor:
    """Returns the monomials 1, x, y, x^2, x y, y^2 of the pixels' offsets from their tile's centre, [pixels, 6]."""
    offset = torch.arange(tile, dtype=like.dtype, device=like.device) + 0.5 - tile / 2
    y, x = (axis.flatten() for axis in torch.meshgrid(offset, offset, indexing="ij"))
    return torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y], dim=-1)


def _polynomial(shape: Tensor, centres: Tensor, padding: Tensor) -> Tensor:
    """Returns coefficients [T, 6, L] of log alpha over `_pixel_basis`, for splats [T, 6, L], tile centres [T, 2]."""
    x, y, stretch, shear, tall, log_opacity = shape.unbind(1)
    dx, dy = centres[:, :1] - x, centres[:, 1:] - y
    slant, cross = dx + shear * dy, stretch * shear
    constant = log_opacity - 0.5 * (stretch * slant.square() + tall * dy.square())
    coefficients = [
        constant.masked_fill(padding, NEVER),
        -stretch * slant,
        -cross * slant - tall * dy,
        -0.5 * stretch,
        -cross,
        -0.5 * (cross * shear + tall),
    ]
    return torch.stack(coefficients, dim=1)


class _Weights(NamedTuple):
    """Holds the blending weights of a chunk; all tensors are [T, pixels, L]."""

    alpha: Tensor  # not yet capped; 0 where it is below alpha_min
    odds: Tensor  # alpha / (1 - alpha) of the capped alpha, 0 from where the pixel has stopped
    weight: Tensor  # alpha times the transmittance in front


def _weights(polynomial: Tensor, basis: Tensor, settings: Settings) -> _Weights:
    """Computes the blending weights of the splats in order, from the polynomials [T, 6, L] of their log alpha."""
    alpha = (basis @ polynomial).exp_()  # [T, pixels, L]
    torch.threshold_(alpha, math.nextafter(settings.alpha_min, 0), 0.0)
    capped = alpha.clamp(max=settings.alpha_cap)
    passing = 1 - capped
    behind = passing.cumprod(dim=2)
    torch.threshold_(behind, math.nextafter(settings.transmittance_min, 0), 0.0)
    odds = capped.div_(passing).mul_(behind.sign())
    return _Weights(alpha, odds, behind.mul_(odds))


def _grad_log_alpha(blend: _Weights, grad_weight: Tensor, settings: Settings) -> Tensor:
    """Returns the gradient [T, pixels, L] of log alpha, given that of the weights w = alpha T (which it overwrites).

    alpha dL/dalpha_i = w_i g_i - alpha_i / (1 - alpha_i) sum over j behind i of w_j g_j, and 0 where alpha is capped.
    """
    share = grad_weight.mul_(blend.weight)  # w g
    behind = share.sum(dim=2, keepdim=True) - share.cumsum(dim=2)
    uncapped = (settings.alpha_cap - blend.alpha).sign_().clamp_(min=0)  # 0 or 1; masked_fill_ is far slower
    return share.sub_(behind.mul_(blend.odds)).mul_(uncapped)
