"""The generator of GSGAN and CGS-GAN: a latent becomes a hierarchy of Gaussian splats through a point transformer.

Sources: Hyun and Heo 2024 (GSGAN), Barthel et al. 2025 (CGS-GAN). Modules and parameters carry the names of the
published checkpoints, so that official weights load as they are.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from gaussian import Cameras, Gaussians, Geometry, Rendering, render
from training.families.cgs import hierarchy
from training.families.cgs.hierarchy import Attributes
from training.networks.layers import (
    CAMERA_DIM,
    FullyConnected,
    MappingNetwork,
    NetworkConfig,
    TransformerBlock,
    normalize_second_moment,
    stacked_linear,
)

W_AVG_DECAY = 0.998  # per W_AVG_BATCH images
W_AVG_BATCH = 8
POINT_RADIUS = 0.3  # rms coordinate of the initial points, before the tanh
SCENE_HALF_WIDTH = 0.5  # splat centres are limited to this cube, world units

_PUBLISHED_LEVELS = {256: 5, 512: 6, 1024: 7, 2048: 8}
_PUBLISHED_RATIOS = (1, 4, 4, 4, 2, 2, 2, 2)
_PUBLISHED_WIDTHS = (512, 256, 128, 64, 32, 16, 16, 8)
POINT_ENCODINGS = ("fourier+table", "fourier+code")


@dataclass(frozen=True)
class GeneratorConfig(NetworkConfig):
    """Everything a Generator is built from. Raises ValueError for values that cannot be built."""

    resolution: int  # pixels; sets the smallest splat
    z_dim: int
    w_dim: int
    num_points: int  # tokens of the transformer = splats of level 0
    ratios: tuple[int, ...]  # children per anchor of the level before; the first is 1
    widths: tuple[int, ...]  # features per splat and level; the first is the transformer's width
    first_blocks: int  # transformer blocks before level 0; one more before each further level
    num_heads: int
    map_depth: int = 2
    point_encoding: str = "fourier+table"  # second half: a table read at the point (published), or a code per point
    coarse_log_scale: float = -5.0  # where the ln scale of a coarse anchor starts, world units
    camera_embedding: bool = True  # keep the mapping's (published, always zero) camera input
    published_keys: bool = True  # own the tensors of published checkpoints that no formula reads

    def __post_init__(self) -> None:
        if len(self.ratios) != len(self.widths) or len(self.ratios) < 2 or self.ratios[0] != 1:
            raise ValueError(
                f"ratios {self.ratios} and widths {self.widths} need one entry per level, two or more levels, and "
                "a first ratio of 1"
            )
        if self.widths[0] % self.num_heads or self.widths[0] % 2:
            raise ValueError(
                f"widths[0] = {self.widths[0]} must be even and a multiple of num_heads = {self.num_heads}"
            )
        if self.point_encoding not in POINT_ENCODINGS:
            raise ValueError(f"point_encoding={self.point_encoding!r}; legal are {', '.join(POINT_ENCODINGS)}")

    @classmethod
    def published(cls, resolution: int) -> Self:
        """The member of the published family for 256, 512, 1024 or 2048 pixels."""
        if resolution not in _PUBLISHED_LEVELS:
            raise ValueError(f"no published generator for resolution {resolution}; legal are {list(_PUBLISHED_LEVELS)}")
        levels = _PUBLISHED_LEVELS[resolution]
        return cls(
            resolution=resolution,
            z_dim=512,
            w_dim=512,
            num_points=512,
            ratios=_PUBLISHED_RATIOS[:levels],
            widths=_PUBLISHED_WIDTHS[:levels],
            first_blocks=6,
            num_heads=8,
        )

    @property
    def num_levels(self) -> int:
        return len(self.ratios)

    @property
    def children_per_point(self) -> tuple[int, ...]:
        """Splats per transformer point and level."""
        return tuple(math.prod(self.ratios[: i + 1]) for i in range(self.num_levels))

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Splats per level."""
        return tuple(self.num_points * a for a in self.children_per_point)

    @property
    def scale_rule(self) -> hierarchy.ScaleRule:
        """Coarse splats at most half the spacing of num_points on a unit square; fine ones down to half a pixel."""
        largest = math.log(0.5 / math.sqrt(self.num_points))
        smallest = math.log(0.5 / self.resolution)
        split = (largest - smallest) / (self.num_levels - 1)
        return hierarchy.ScaleRule(self.coarse_log_scale, largest, smallest, split)


@dataclass(frozen=True, kw_only=True)
class HierarchicalGaussians(Gaussians):
    """Splats of all levels, coarse first, with the anchors they hang on (level 0 first, one level fewer)."""

    anchors: Gaussians


class _Fourier(nn.Module):
    """sin(W p + b) of points p [P, 3]."""

    def __init__(self, features: int):
        super().__init__()
        self.ffm = nn.Module()
        self.ffm.linear = nn.Linear(3, features)
        nn.init.uniform_(self.ffm.linear.weight, -math.sqrt(3), math.sqrt(3))

    def forward(self, points: Tensor) -> Tensor:
        return torch.sin(self.ffm.linear(points))


class _Table(nn.Module):
    """The published constant encoding, of which only two columns are ever read (its sampling axes are swapped)."""

    def __init__(self, features: int, columns: int):
        super().__init__()
        self.const_pe = nn.Parameter(torch.randn(3, features, 1, columns))

    def forward(self, points: Tensor) -> Tensor:
        middle = self.const_pe.shape[-1] // 2
        planes = self.const_pe[:, :, 0, middle - 1 : middle + 1].mean(dim=-1)  # [3, F]
        return (1 - points.abs() / 2) @ planes / math.sqrt(3)


class _Code(nn.Module):
    """A learned code per point, in place of the table; its rms is that of the sines beside it."""

    def __init__(self, features: int, num_points: int):
        super().__init__()
        self.code = nn.Parameter(torch.randn(num_points, features) * math.sqrt(0.5))

    def forward(self, points: Tensor) -> Tensor:
        return self.code


class PointEncoding(nn.Module):
    """Points [P, 3] to transformer inputs [P, C], the same for every sample."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        features = config.widths[0] // 2
        self.learnable_pe = _Fourier(features)
        if config.point_encoding == "fourier+table":
            self.const_pe = _Table(features, columns=config.widths[0])
        else:
            self.point_code = _Code(features, config.num_points)

    def forward(self, points: Tensor) -> Tensor:
        identity = self.const_pe if hasattr(self, "const_pe") else self.point_code
        return torch.cat([self.learnable_pe(points), identity(points)], dim=-1)


class PointTransformer(nn.Module):
    """The blocks; yields the features of one level after the other."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()

        def blocks(count: int) -> nn.ModuleList:
            return nn.ModuleList(
                TransformerBlock(config.widths[0], config.w_dim, config.num_heads) for _ in range(count)
            )

        self.resblocks = blocks(config.num_levels - 1)
        self.first_layers = blocks(config.first_blocks)

    def forward(self, x: Tensor, w: Tensor, low_dtype: torch.dtype | None = None) -> list[Tensor]:
        """x [B, P, C], w [B, w_dim] -> features [B, P, C] of every level."""
        blocks = [*self.first_layers, *self.resblocks]
        layers = [block.modulation_layers() for block in blocks]
        modulation = iter(stacked_linear(w, [layer for group in layers for layer in group]))
        features = []
        for i, (block, group) in enumerate(zip(blocks, layers, strict=True)):
            x = block(x, [next(modulation)[:, None] for _ in group], low_dtype)
            if i >= len(self.first_layers) - 1:
                features.append(x)
        return features


class LevelUpsample(nn.Module):
    """Features of the points to features of a level's splats, straight from the transformer's width.

    The features of a splat are (own part + part shared by the splats of its point) / sqrt(2). The two are returned
    apart, since the heads are linear, and with the points last, as hierarchy has them.
    """

    def __init__(self, in_features: int, num_children: int, out_features: int, shared_layer: bool):
        super().__init__()
        self.num_children = num_children
        self.subpixel = FullyConnected(in_features, num_children * out_features, "lrelu")
        if shared_layer:
            self.res_fc = FullyConnected(in_features, out_features)

    def forward(self, x: Tensor, low_dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """x [M, C] -> own [A, d, M] in low_dtype, shared [d, M]."""
        gain = math.sqrt(0.5)
        own = self.subpixel.transposed(x.to(low_dtype or x.dtype), gain).unflatten(0, (self.num_children, -1))
        shared = self.res_fc.transposed(x, gain) if hasattr(self, "res_fc") else x.t() * gain
        return own, shared


# Name, rows and initial values of the five heads of a level, in the order of hierarchy's rows.
_HEADS = (("xyz", 3, 1.0, 0.0), ("scale", 3, 0.1, -1.0), ("rotation", 4, 0.1, 0.0), ("color", 3, 1.0, 0.0),
          ("opacity", 1, 1.0, 0.0))  # fmt: skip


def _head_set(widths: tuple[int, ...]) -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            name: nn.ModuleList(FullyConnected(d, rows, weight_init=weight, bias_init=bias) for d in widths)
            for name, rows, weight, bias in _HEADS
        }
    )


def published_constants(config: GeneratorConfig) -> dict[str, Tensor]:
    """Constants that published checkpoints have on record; the values in use follow from the config."""
    largest = config.scale_rule.largest
    return {
        "scale_init": torch.full((3,), largest),
        "scale_threshold": torch.full((3,), largest),
        "rotation_init": torch.tensor([1, 0, 0, 0]),
        "color_init": torch.zeros(3),
        "opacity_init": torch.full((1,), hierarchy.INITIAL_OPACITY_LOGIT),
    }


class PointGenerator(nn.Module):
    """w and the initial points to anchors and splats."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        if config.published_keys:
            for name, value in published_constants(config).items():
                self.register_buffer(name, value)
        self.conv_in = PointEncoding(config)
        self.transformer = PointTransformer(config)
        self.upsample_layers = nn.ModuleList(
            LevelUpsample(config.widths[0], children, width, shared_layer=i > 0)
            for i, (children, width) in enumerate(zip(config.children_per_point, config.widths, strict=True))
        )
        # The last level has no anchors; published checkpoints nevertheless hold heads for them, never evaluated.
        self.anchors = _head_set(config.widths if config.published_keys else config.widths[:-1])
        self.gaussians = _head_set(config.widths)

    def raw_outputs(self, level: int, features: Tensor, low_dtype: torch.dtype | None) -> list[Attributes]:
        """Head outputs of a level: for anchors and splats or, at the last level, for splats alone."""
        own, shared = self.upsample_layers[level](features.flatten(0, 1), low_dtype)  # [A, d, M], [d, M]
        sets = (self.anchors, self.gaussians) if level < self.config.num_levels - 1 else (self.gaussians,)
        heads = [heads[name][level] for heads in sets for name, *_ in _HEADS]
        weight = torch.cat([head.weight for head in heads]) * heads[0].weight_gain  # [14 S, d]
        bias = torch.cat([head.bias for head in heads])
        shared = torch.addmm(bias[:, None], weight, shared)  # [14 S, M]
        raw = torch.bmm(weight.to(own.dtype).expand(len(own), -1, -1), own) + shared  # [A, 14 S, M]
        rows = raw.split(hierarchy.ATTRIBUTE_ROWS * len(sets), dim=1)
        return [Attributes(*rows[i : i + 3]) for i in range(0, len(rows), 3)]

    def forward(
        self, points: Tensor, w: Tensor, low_dtype: torch.dtype | None = None
    ) -> tuple[list[Attributes], list[Attributes]]:
        """points [P, 3], w [B, w_dim] -> anchors and splats per level, M = B P."""
        rule = self.config.scale_rule
        encoding = self.conv_in(points).expand(w.shape[0], -1, -1)
        features = self.transformer(encoding, w, low_dtype)

        coarse, splats_0 = self.raw_outputs(0, features[0], low_dtype)
        anchors = [hierarchy.coarse_anchors(coarse, rule)]
        frame = hierarchy.frame_of(anchors[0], rule)
        splats = [hierarchy.children(splats_0, frame)]
        for level in range(1, self.config.num_levels):
            *next_anchors, raw = self.raw_outputs(level, features[level], low_dtype)
            splats.append(hierarchy.children(raw, frame))
            if next_anchors:
                anchors.append(hierarchy.children(next_anchors[0], frame))
                frame = hierarchy.frame_of(anchors[-1], rule)
        return anchors, splats


def _as_gaussians(levels: list[Attributes], batch: int) -> dict[str, Tensor | tuple[int, ...]]:
    """Fields of Gaussians from the levels, M = batch P."""

    def joined(parts: tuple[Tensor, ...]) -> Tensor:
        rows = parts[0].shape[1]  # of [A, rows, B P]
        return torch.cat([part.flatten(0, 1).t().reshape(batch, -1, rows) for part in parts], dim=1)

    means, log_scales, appearance = (joined(parts) for parts in zip(*levels, strict=True))
    quats, color, opacity = appearance.split((4, 3, 1), dim=-1)
    return {
        "means": means,
        "log_scales": log_scales,
        "quats": quats,
        "opacity_logits": opacity,
        "sh": color[:, :, None],
        "level_sizes": tuple(level.xyz.shape[0] * level.xyz.shape[2] // batch for level in levels),
    }


class Generator(nn.Module):
    """Latents to scenes, scenes to images. No call changes the module; w_avg moves through update_w_avg only."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        self.z_dim, self.w_dim, self.num_ws, self.resolution = config.z_dim, config.w_dim, 1, config.resolution
        self.geometry: Geometry | None = None  # of the data it was trained on; set by the owner
        self.rasterizer = "auto"  # back end of render()
        self.low_dtype: torch.dtype | None = None  # of the transformer's matrix products; None is the parameters' type
        self._xyz = nn.Parameter(POINT_RADIUS * normalize_second_moment(torch.randn(config.num_points, 3)))
        self.point_gen = PointGenerator(config)
        self.mapping_network = MappingNetwork(
            config.z_dim,
            CAMERA_DIM if config.camera_embedding else 0,
            config.w_dim,
            config.map_depth,
            keep_average=True,
        )
        if config.published_keys:  # published training stored it and never read it
            self.register_buffer("dataset_label_std", torch.zeros(CAMERA_DIM))

    @property
    def initial_points(self) -> Tensor:
        """Where the hierarchy starts from, the same for every head: [num_points, 3] in -1..1."""
        return torch.tanh(self._xyz)

    @property
    def w_avg(self) -> Tensor:
        """Running mean of w, [w_dim]."""
        return self.mapping_network.w_avg

    @torch.no_grad()
    def update_w_avg(self, mean_w: Tensor, batch: int) -> None:
        """Move w_avg towards mean_w [w_dim], the mean over `batch` samples, with decay 0.998^(batch/8)."""
        self.w_avg.lerp_(mean_w.to(self.w_avg.dtype), 1 - W_AVG_DECAY ** (batch / W_AVG_BATCH))

    def mapping(self, z: Tensor, cameras: Cameras | None = None, psi: float = 1.0) -> Tensor:
        """Latents z [B, z_dim] to ws [B, num_ws, w_dim], pulled towards w_avg by psi (0: all w_avg, 1: not at all).

        cameras are ignored, as published: identity does not depend on the viewpoint.
        """
        if z.ndim != 2 or z.shape[1] != self.z_dim:
            raise ValueError(f"z must have shape [B, {self.z_dim}], got {list(z.shape)}")
        z = z.to(self._xyz.dtype)
        camera = z.new_zeros(len(z), CAMERA_DIM) if self.config.camera_embedding else None
        w = self.mapping_network(z, camera)
        if psi != 1:
            w = self.w_avg.lerp(w, psi)
        return w[:, None].expand(-1, self.num_ws, -1)

    def synthesis(self, ws: Tensor) -> HierarchicalGaussians:
        """ws [B, num_ws, w_dim] to scenes of sum(level_sizes) splats.

        Raises ValueError for a two-dimensional ws: latents and ws may be equally long, and a latent mapped twice or
        not at all would go unnoticed.
        """
        if ws.ndim != 3 or ws.shape[1:] != (self.num_ws, self.w_dim):
            raise ValueError(
                f"ws must have shape [B, {self.num_ws}, {self.w_dim}] as mapping() returns it, got {list(ws.shape)}"
            )
        anchors, splats = self.point_gen(self.initial_points, ws[:, 0], self.low_dtype)
        fields = _as_gaussians(splats, len(ws))
        fields["means"] = fields["means"].clamp(-SCENE_HALF_WIDTH, SCENE_HALF_WIDTH)
        return HierarchicalGaussians(**fields, anchors=Gaussians(**_as_gaussians(anchors, len(ws))))

    def render(
        self,
        scene: Gaussians,
        cameras: Cameras,  # [B, V]
        resolution: int | tuple[int, int] | None = None,  # the generator's own if None
        background: Tensor | None = None,  # [B, V, 3] RGB 0..1, white if None
    ) -> Rendering:
        """Images of scenes, in float32."""
        scene = scene.to(dtype=torch.float32)
        # In training a non-finite gradient skips its step and is counted; a sample for somebody to look at is an error.
        finite = not self.training
        size = resolution or self.resolution
        return render(scene, cameras, size, background, check_finite=finite, backend=self.rasterizer)

    def forward(self, z: Tensor, cameras: Cameras, psi: float = 1.0, background: Tensor | None = None) -> Rendering:
        """z [B, z_dim], cameras [B, V] -> images at the generator's resolution."""
        return self.render(self.synthesis(self.mapping(z, psi=psi)), cameras, background=background)
