"""Leads from w to the anchors and splats of all levels: a transformer over points, and heads that read its features.

Sources: Hyun and Heo 2024 (GSGAN), Barthel et al. 2025 (CGS-GAN). Modules and parameters carry the names of the
published checkpoints, so that official weights load as they are.
"""

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn

from training.families.cgs import hierarchy
from training.families.cgs.config import GeneratorConfig, published_constants
from training.families.cgs.hierarchy import Attributes
from training.networks.layers import FullyConnected, TransformerBlock, stacked_linear
from training.networks.point_encoding import PointEncoding
from training.networks.start import Start


class PointTransformer(nn.Module):
    """Runs the blocks over the points; each block from the last of the first ones on gives a level its features."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()

        def blocks(count: int) -> nn.ModuleList:
            return nn.ModuleList(
                TransformerBlock(config.widths[0], config.w_dim, config.num_heads) for _ in range(count)
            )

        self.resblocks = blocks(config.num_levels - 1)
        self.first_layers = blocks(config.first_blocks)

    def modulation_layers(self) -> list[FullyConnected]:
        """Returns the layers that read w, in the order of the blocks."""
        blocks: list[Any] = [*self.first_layers, *self.resblocks]
        return [layer for block in blocks for layer in block.modulation_layers()]

    def forward(self, x: Tensor, w: Tensor, low_dtype: torch.dtype | None = None) -> list[Tensor]:
        """Returns the features [B, P, C] of every level for x [B, P, C] and w [B, w_dim], or [B, blocks, w_dim]."""
        blocks = [*self.first_layers, *self.resblocks]
        layers = [block.modulation_layers() for block in blocks]
        if w.ndim == 2:
            modulation = iter(stacked_linear(w, [layer for group in layers for layer in group]))
        else:
            own = (stacked_linear(w[:, i], group) for i, group in enumerate(layers))
            modulation = itertools.chain.from_iterable(own)
        features = []
        for i, (block, group) in enumerate(zip(blocks, layers, strict=True)):
            x = block(x, [next(modulation)[:, None] for _ in group], low_dtype)
            if i >= len(self.first_layers) - 1:
                features.append(x)
        return features


class LevelUpsample(nn.Module):
    """Makes features of a level's splats from those of the points, straight from the transformer's width.

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
        """Returns own [A, d, M] in low_dtype and shared [d, M] for x [M, C]."""
        gain = math.sqrt(0.5)
        own = self.subpixel.transposed(x.to(low_dtype or x.dtype), gain).unflatten(0, (self.num_children, -1))
        shared = self.res_fc.transposed(x, gain) if hasattr(self, "res_fc") else x.t() * gain
        return own, shared


# Name, rows and initial values of the five heads of a level, in the order of hierarchy's rows.
_HEADS = (("xyz", 3, 1.0, 0.0), ("scale", 3, 0.1, -1.0), ("rotation", 4, 0.1, 0.0), ("color", 3, 1.0, 0.0),
          ("opacity", 1, 1.0, 0.0))  # fmt: skip


def _head_set(widths: tuple[int, ...], start: Start) -> nn.ModuleDict:
    """Makes the heads of all levels, by name and level."""
    heads = {}
    for name, rows, weight, bias in _HEADS:
        first = weight * start.weight_of(name)
        heads[name] = nn.ModuleList(FullyConnected(d, rows, weight_init=first, bias_init=bias) for d in widths)
    return nn.ModuleDict(heads)


class PointGenerator(nn.Module):
    """Makes the raw hierarchy from w and the initial points, by the rule of hierarchy.py."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        if config.published_keys:
            for name, value in published_constants(config).items():
                self.register_buffer(name, value)
        self.conv_in = PointEncoding(config.widths[0], config.point_encoding, config.num_points)
        self.transformer = PointTransformer(config)
        self.upsample_layers = nn.ModuleList(
            LevelUpsample(config.widths[0], children, width, shared_layer=i > 0)
            for i, (children, width) in enumerate(zip(config.children_per_point, config.widths, strict=True))
        )
        # The last level has no anchors; published checkpoints nevertheless hold heads for them, never evaluated.
        start = config.start_rule
        self.anchors = _head_set(config.widths if config.published_keys else config.widths[:-1], start)
        self.gaussians = _head_set(config.widths, start)
        coarse: Any = self.anchors["xyz"]
        start.place(coarse[0], hierarchy.COARSE_REACH)

    def raw_outputs(self, level: int, features: Tensor, low_dtype: torch.dtype | None) -> list[Attributes]:
        """Returns the heads' outputs of a level: for anchors and splats or, at the last level, for splats alone."""
        own, shared = self.upsample_layers[level](features.flatten(0, 1), low_dtype)  # [A, d, M], [d, M]
        sets = (self.anchors, self.gaussians) if level < self.config.num_levels - 1 else (self.gaussians,)
        heads = [getattr(heads, name)[level] for heads in sets for name, *_ in _HEADS]
        weight = torch.cat([head.weight for head in heads]) * heads[0].weight_gain  # [14 S, d]
        bias = torch.cat([head.bias for head in heads])
        shared = torch.addmm(bias[:, None], weight, shared)  # [14 S, M]
        raw = torch.bmm(weight.to(own.dtype).expand(len(own), -1, -1), own) + shared  # [A, 14 S, M]
        rows = raw.split(hierarchy.ATTRIBUTE_ROWS * len(sets), dim=1)
        return [Attributes(*rows[i : i + 3]) for i in range(0, len(rows), 3)]

    def forward(
        self, points: Tensor, w: Tensor, low_dtype: torch.dtype | None = None
    ) -> tuple[list[Attributes], list[Attributes]]:
        """Returns anchors and splats by level (M = B P) for points [P, 3] and w [B, w_dim], or one w per block."""
        rule, start = self.config.scale_rule, self.config.start_rule
        origins = start.origins(points, len(w))
        encoding = self.conv_in(points).expand(w.shape[0], -1, -1)
        features = self.transformer(encoding, w, low_dtype)

        coarse, splats_0 = self.raw_outputs(0, features[0], low_dtype)
        anchors = [hierarchy.coarse_anchors(coarse, rule, origins, start.opacity_logit)]
        frame = hierarchy.frame_of(anchors[0], rule)
        splats = [hierarchy.children(splats_0, frame)]
        for level in range(1, self.config.num_levels):
            *next_anchors, raw = self.raw_outputs(level, features[level], low_dtype)
            splats.append(hierarchy.children(raw, frame))
            if next_anchors:
                anchors.append(hierarchy.children(next_anchors[0], frame))
                frame = hierarchy.frame_of(anchors[-1], rule)
        return anchors, splats
