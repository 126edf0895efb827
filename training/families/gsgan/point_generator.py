"""Leads from ws to the anchors and splats of all levels: a transformer over points, then levels that divide them.

Source: Hyun and Heo 2024 (GSGAN). Modules and parameters carry the names of the published checkpoints. Features are
laid out [A, B, P, C]: A splats per first point (a splat's children are consecutive), B scenes, P first points.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torch_utils.ops import LRELU_GAIN, add_product
from training.families.gsgan import hierarchy
from training.families.gsgan.config import CHILD_CLAMP, RATIO, GeneratorConfig, published_constants
from training.families.gsgan.edges import NeighbourEdges, SiblingEdges
from training.families.gsgan.hierarchy import Attributes
from training.families.gsgan.point_mlp import read_mlp, residual_mlp
from training.families.gsgan.pointwise import divided
from training.networks.layers import AdaptiveNorm, FullyConnected, Mlp, TransformerBlock
from training.networks.point_encoding import PointEncoding


class PointTransformer(nn.Module):
    """Runs the blocks over the first points; each of a block's two halves follows a w of its own."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.resblocks = nn.ModuleList(
            TransformerBlock(config.widths[0], config.w_dim, config.num_heads) for _ in range(config.blocks)
        )

    def forward(self, x: Tensor, ws: Tensor, low_dtype: torch.dtype | None = None) -> Tensor:
        """Returns the features [B, P, C] for x [B, P, C] and ws [B, 2 blocks, w_dim]."""
        for block, modulation in zip(self.resblocks, self._modulation(ws), strict=True):
            x = block(x, modulation, low_dtype)
        return x

    def _modulation(self, ws: Tensor) -> Tensor:
        """Returns [blocks, 6, B, 1, C], what each block's layers make of their w, as one batched product."""
        blocks: Any = self.resblocks
        layers = [layer for block in blocks for layer in block.modulation_layers()]
        weight = torch.stack([layer.weight for layer in layers]) * layers[0].weight_gain  # [6 blocks, C, w_dim]
        bias = torch.stack([layer.bias for layer in layers])
        told = ws.transpose(0, 1).repeat_interleave(3, dim=0)  # [6 blocks, B, w_dim]: three layers share a w
        y = torch.baddbmm(bias[:, None], told, weight.transpose(1, 2))  # [6 blocks, B, C]
        return y.unflatten(0, (len(self.resblocks), 6))[:, :, :, None]


class Upsample(nn.Module):
    """Divides every point into RATIO: (its own features + what is new in each child) / sqrt(2)."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.subpixel = FullyConnected(in_features, RATIO * out_features, "lrelu")
        if in_features != out_features:
            self.res_fc = FullyConnected(in_features, out_features)

    def forward(self, x: Tensor, low_dtype: torch.dtype | None = None) -> Tensor:
        """Returns [4 A, B, P, C_out] in x's type for x [A, B, P, C]."""
        gain = math.sqrt(0.5)
        low, layer = x.to(low_dtype or x.dtype), self.subpixel
        weight = layer.weight * (layer.weight_gain * LRELU_GAIN * gain)
        shared = self.res_fc(low, gain).to(x.dtype) if hasattr(self, "res_fc") else x * gain
        return divided(low, shared, weight, layer.bias * (LRELU_GAIN * gain))


class ModulatedMlp(nn.Module):
    """Adds a scaled MLP, normalised over the points, with norm and scale from w."""

    def __init__(self, features: int, w_dim: int):
        super().__init__()
        self.norm = AdaptiveNorm(features, w_dim)
        self.mlp = Mlp(features)
        self.ls = FullyConnected(w_dim, features, weight_init=0.0)

    def forward(self, x: Tensor, w: Tensor, low_dtype: torch.dtype | None = None) -> Tensor:
        """Returns [A, B, P, C] for x of the same shape and w [B, w_dim]."""
        a, batch, points, _ = x.shape
        rows = x.transpose(0, 1).flatten(1, 2)  # [B, A P, C]: the norm is over all points of a scene
        y = self.norm(rows, self.norm.gamma(w)[:, None], self.norm.beta(w)[:, None])
        rows = add_product(rows, self.mlp(y.to(low_dtype or x.dtype)).to(x.dtype), self.ls(w)[:, None])
        return rows.view(batch, a, points, -1).transpose(0, 1).contiguous()


class PlainMlp(nn.Module):
    """Adds a scaled MLP."""

    def __init__(self, features: int):
        super().__init__()
        self.mlp = Mlp(features)
        self.ls = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor, heads: Tensor | None = None) -> Tensor:
        """Returns [..., C] for x of the same shape, in its type, or what heads [S, C] make of it: [S, M]."""
        inner, outer = self.mlp.c_fc, self.mlp.c_proj
        scaled = outer.weight * (outer.weight_gain * self.ls[:, None])  # goes into the weights: no pass over the points
        weights = inner.weight * inner.weight_gain, inner.bias, scaled, outer.bias * self.ls
        return residual_mlp(x, *weights) if heads is None else read_mlp(x, *weights, heads)


class Level(NamedTuple):
    """Holds what heads say of a level before the hierarchy's rule is applied."""

    anchors: Attributes | None  # None of the last level
    splats: Attributes


class PointGenerator(nn.Module):
    """Makes the hierarchy from ws and the initial points, by the rule of hierarchy.py."""

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        if config.published_keys:  # constants on record; the values in use follow from the config
            for name, value in published_constants(config).items():
                owner, _, key = name.partition(".")
                if owner == "point_gen":
                    self.register_buffer(key, value)
        self.conv_in = PointEncoding(config.widths[0], config.point_encoding, config.num_points)
        levels: dict[str, nn.Module] = {"block_4": nn.ModuleList([PointTransformer(config)])}
        for i in range(1, config.num_levels):
            levels[f"block_{config.level_names[i]}"] = self._level(i)
        self.blocks = nn.ModuleDict(levels)
        self.out_layers = nn.ModuleDict(
            {
                name: self._heads(name, rows, weight * config.start_rule.weight_of(name))
                for name, rows, weight in hierarchy.HEADS
            }
        )
        config.start_rule.place(self.heads_of(0, splats=False)[0], hierarchy.POSITION_SCALE)
        self.encoder_camera_cond = FullyConnected(3, config.view_features, "lrelu")
        if config.published_keys:  # the published code stores it and never reads it
            self.camera_dep_affine = FullyConnected(config.view_features, config.w_dim)

    def _level(self, i: int) -> nn.ModuleList:
        config = self.config
        before, features = config.widths[i - 1], config.widths[i]
        modulated = i <= config.modulated_levels
        if modulated:
            edges = NeighbourEdges(before, config.w_dim, config.neighbours, config.published_keys)
            return nn.ModuleList([edges, Upsample(before, features), ModulatedMlp(features, config.w_dim)])
        siblings = SiblingEdges(before, config.published_keys)
        return nn.ModuleList([siblings, Upsample(before, features), PlainMlp(features)])

    def _heads(self, name: str, rows: int, weight_init: float) -> nn.ModuleDict:
        """Makes the heads of one attribute for all levels: for anchors and, second, for splats."""
        config = self.config
        bias = config.scale_bias if name == "scale" else 0.0
        heads = {}
        for i, (level, width) in enumerate(zip(config.level_names, config.widths, strict=True)):
            seen = width + config.view_features if name == "color" else width
            anchored = i < config.num_levels - 1 or config.published_keys  # the last level has no anchors
            inputs = [width, seen] if anchored else [seen]
            heads[f"block_{level}"] = nn.ModuleList(
                FullyConnected(features, rows, weight_init=weight_init, bias_init=bias) for features in inputs
            )
        return nn.ModuleDict(heads)

    def modulation_layers(self) -> list[FullyConnected]:
        """Returns the layers that read a w, in the order in which they run."""
        found: list[FullyConnected] = []
        for module in self.blocks.modules():
            if isinstance(module, TransformerBlock):
                found += module.modulation_layers()
            elif isinstance(module, NeighbourEdges | ModulatedMlp):
                found += [module.norm.gamma, module.norm.beta, module.ls]
        return found

    def heads_of(self, level: int, splats: bool) -> list[FullyConnected]:
        """Returns the five heads of a level in the order of hierarchy.HEADS."""
        name = f"block_{self.config.level_names[level]}"
        layers: Any = self.out_layers
        found = [layers[attribute][name] for attribute, *_ in hierarchy.HEADS]
        return [heads[-1 if splats else 0] for heads in found]

    def forward(
        self, points: Tensor, ws: Tensor, low_dtype: torch.dtype | None = None
    ) -> tuple[list[Attributes], list[Attributes]]:
        """Returns anchors and splats by level (M = B P) for points [P, 3] and ws [B, num_ws - 1, w_dim].

        The splats' colours lack what the viewing direction adds.
        """
        config = self.config
        rule = hierarchy.ScaleRule(config.smallest_log_scale, config.split, CHILD_CLAMP)
        encoding = self.conv_in(points).expand(len(ws), -1, -1)
        first: Any = self.blocks["block_4"]
        x = first[0](encoding, ws[:, : 2 * config.blocks], low_dtype)[None]  # [1, B, P, C]

        raw = self._raw(0, x)
        assert raw.anchors is not None
        start = config.start_rule
        origins, logit = start.origins(points, len(ws)), start.opacity_logit
        anchors = [hierarchy.first_anchors(raw.anchors, config.coarse_log_scale, origins, logit)]
        frame = hierarchy.frame_of(anchors[0], rule)
        xyz = hierarchy.placed(raw.splats.xyz, frame)
        splats = [hierarchy.first_splats(raw.splats, config.coarse_log_scale, xyz, logit)]
        for i in range(1, config.num_levels):
            x, mlp = self._advance(i, x, ws, low_dtype)
            raw = self._raw(i, x, mlp)
            splats.append(hierarchy.children(raw.splats, frame, rule))
            if raw.anchors is not None:
                anchors.append(hierarchy.children(raw.anchors, frame, rule))
                frame = hierarchy.frame_of(anchors[-1], rule)
        return anchors, splats

    def _advance(self, i: int, x: Tensor, ws: Tensor, low_dtype: torch.dtype | None) -> tuple[Tensor, PlainMlp | None]:
        """Returns the features [4 A, B, P, C_out] of level i for those of the level before, x [A, B, P, C].

        On the last level only heads read the features. If a plain MLP comes before them, it is returned, not run.
        """
        config = self.config
        if config.rounds_to_half(i):
            x = x.half().to(x.dtype)
        layers: Any = self.blocks[f"block_{config.level_names[i]}"]
        edges, upsample, mlp = layers
        if i > config.modulated_levels:  # many points: all of it in the low type
            x = upsample(edges(x.to(low_dtype or x.dtype)))
            return (x, mlp) if i == config.num_levels - 1 else (mlp(x), None)
        w_edges, w_mlp = ws[:, 2 * config.blocks + 2 * (i - 1) :][:, :2].unbind(1)
        return mlp(upsample(edges(x, w_edges, low_dtype), low_dtype), w_mlp, low_dtype), None

    def _raw(self, level: int, x: Tensor, mlp: PlainMlp | None = None) -> Level:
        """Returns the heads' outputs of a level, M = B P, for features x [A, B, P, C] or what an MLP makes of them."""
        sets = [True] if level == self.config.num_levels - 1 else [False, True]
        heads = [head for splats in sets for head in self.heads_of(level, splats)]
        features = x.shape[-1]
        weight = torch.cat([head.weight[:, :features] * head.weight_gain for head in heads])  # [14 S, C]
        bias = torch.cat([head.bias for head in heads])
        if mlp is None:
            flat = x.flatten(1, 2)  # [A, M, C]
            raw = torch.bmm(weight.to(x.dtype).expand(len(flat), -1, -1), flat.transpose(1, 2))  # [A, 14 S, M]
        else:
            raw = mlp(x, weight).unflatten(1, (len(x), -1)).transpose(0, 1)
        raw = raw + bias[:, None]  # in float32 or better
        rows = raw.split(hierarchy.ROWS * len(sets), dim=1)
        found = [Attributes(*rows[i : i + 3]) for i in range(0, len(rows), 3)]
        return Level(found[0] if len(found) > 1 else None, found[-1])

    def view_layers(self) -> tuple[Tensor, Tensor]:
        """Returns what turns directions into colours: the encoder [E, 4] (weight, bias), heads' parts [L, 3, E]."""
        encoder = self.encoder_camera_cond
        weight = encoder.weight * (encoder.weight_gain * LRELU_GAIN)
        color = [self.heads_of(level, splats=True)[3] for level in range(self.config.num_levels)]
        tints = torch.stack([head.weight[:, -self.config.view_features :] * head.weight_gain for head in color])
        return torch.cat([weight, encoder.bias[:, None] * LRELU_GAIN], dim=1), tints
