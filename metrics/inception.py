"""Builds the 2015 Inception network (Szegedy et al. 2016, "Rethinking the Inception Architecture"), 2048 features.

FID is defined on the TensorFlow graph `inception-2015-12-05`. Its weights circulate as a PyTorch state dict whose names
are the ones below. Three points differ from later Inception-v3 networks and change FID: the graph resizes with the
bilinear rule of TensorFlow 1, its average pools leave the padding out, and the last block pools by maximum.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INPUT = 299  # px
NUM_FEATURES = 2048
NUM_CLASSES = 1008
BATCH_NORM_EPS = 1e-3
UNTRAINED_GAIN = 12.0  # measured standard deviation between images without it: 0.05 to 0.06

Size = int | tuple[int, int]
ConvSpec = tuple[str, int, Size] | tuple[str, int, Size, int]  # name, output channels, kernel, stride
Step = ConvSpec | list[ConvSpec] | str  # a list forks and ends its branch; "avg", "max" (stride 1) and "halve" pool 3x3
Branch = list[Step]


class ConvUnit(nn.Module):
    """Applies a convolution without bias, batch normalisation with fixed statistics, ReLU."""

    def __init__(self, c_in: int, c_out: int, kernel: Size, stride: int = 1, padding: Size = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps=BATCH_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class MixedBlock(nn.Module):
    """Concatenates the outputs of branches. Convolutions of stride 1 keep the size, those of stride 2 do not pad."""

    def __init__(self, c_in: int, branches: list[Branch]) -> None:
        super().__init__()
        self.branches = branches
        self.c_out = sum(self._add_branch(c_in, branch) for branch in branches)

    def _add_branch(self, c_in: int, branch: Branch) -> int:
        channels = c_in
        for step in branch:
            if isinstance(step, list):
                channels = sum(self._add_conv(channels, spec) for spec in step)
            elif not isinstance(step, str):
                channels = self._add_conv(channels, step)
        return channels

    def _add_conv(self, c_in: int, spec: ConvSpec) -> int:
        name, c_out, kernel, stride = spec if len(spec) == 4 else (*spec, 1)
        high, wide = (kernel, kernel) if isinstance(kernel, int) else kernel
        self.add_module(name, ConvUnit(c_in, c_out, kernel, stride, (high // 2, wide // 2) if stride == 1 else 0))
        return c_out

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([out for branch in self.branches for out in self._run(x, branch)], dim=1)

    def _run(self, x: Tensor, branch: Branch) -> Iterable[Tensor]:
        for step in branch:
            if step == "avg":
                x = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
            elif step == "max":
                x = F.max_pool2d(x, 3, stride=1, padding=1)
            elif step == "halve":
                x = F.max_pool2d(x, 3, stride=2)
            elif isinstance(step, list):
                return [self.get_submodule(spec[0])(x) for spec in step]
            else:
                x = self.get_submodule(step[0])(x)
        return [x]


def _grid_35(pool_channels: int) -> list[Branch]:
    return [
        [("branch1x1", 64, 1)],
        [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)],
        [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)],
        ["avg", ("branch_pool", pool_channels, 1)],
    ]


def _reduce_to_17() -> list[Branch]:
    return [
        [("branch3x3", 384, 3, 2)],
        [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3, 2)],
        ["halve"],
    ]


def _grid_17(c: int) -> list[Branch]:
    row, column = (1, 7), (7, 1)
    return [
        [("branch1x1", 192, 1)],
        [("branch7x7_1", c, 1), ("branch7x7_2", c, row), ("branch7x7_3", 192, column)],
        [
            ("branch7x7dbl_1", c, 1),
            ("branch7x7dbl_2", c, column),
            ("branch7x7dbl_3", c, row),
            ("branch7x7dbl_4", c, column),
            ("branch7x7dbl_5", 192, row),
        ],
        ["avg", ("branch_pool", 192, 1)],
    ]


def _reduce_to_8() -> list[Branch]:
    return [
        [("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3, 2)],
        [
            ("branch7x7x3_1", 192, 1),
            ("branch7x7x3_2", 192, (1, 7)),
            ("branch7x7x3_3", 192, (7, 1)),
            ("branch7x7x3_4", 192, 3, 2),
        ],
        ["halve"],
    ]


def _grid_8(pool: str) -> list[Branch]:
    return [
        [("branch1x1", 320, 1)],
        [("branch3x3_1", 384, 1), [("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1))]],
        [
            ("branch3x3dbl_1", 448, 1),
            ("branch3x3dbl_2", 384, 3),
            [("branch3x3dbl_3a", 384, (1, 3)), ("branch3x3dbl_3b", 384, (3, 1))],
        ],
        [pool, ("branch_pool", 192, 1)],
    ]


def resize_tf1(images: Tensor, size: int = INPUT) -> Tensor:
    """Resizes [B, C, H, W] to [B, C, size, size] as TensorFlow 1 does: output i reads input i H / size, bilinearly."""
    for dim in (-1, -2):
        length = images.shape[dim]
        position = torch.arange(size, device=images.device, dtype=torch.float32) * (length / size)
        low = position.floor().long().clamp_max(length - 1)
        high = (low + 1).clamp_max(length - 1)
        share = (position - low).unsqueeze(-1) if dim == -2 else position - low
        first, second = images.index_select(dim, low), images.index_select(dim, high)
        images = first + (second - first) * share
    return images


class Inception2015(nn.Module):
    """Maps uint8 images [B, 3, H, W] of any size to features float32 [B, 2048]; evaluation mode, no gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvUnit(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvUnit(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvUnit(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = ConvUnit(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvUnit(80, 192, 3)
        channels = 192
        blocks = {
            "Mixed_5b": _grid_35(32),
            "Mixed_5c": _grid_35(64),
            "Mixed_5d": _grid_35(64),
            "Mixed_6a": _reduce_to_17(),
            "Mixed_6b": _grid_17(128),
            "Mixed_6c": _grid_17(160),
            "Mixed_6d": _grid_17(160),
            "Mixed_6e": _grid_17(192),
            "Mixed_7a": _reduce_to_8(),
            "Mixed_7b": _grid_8("avg"),
            "Mixed_7c": _grid_8("max"),
        }
        self.mixed = list(blocks)
        for name, branches in blocks.items():
            block = MixedBlock(channels, branches)
            self.add_module(name, block)
            channels = block.c_out
        self.fc = nn.Linear(NUM_FEATURES, NUM_CLASSES)
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        x = (resize_tf1(images.float()) - 128) / 128  # [B, 3, 299, 299]
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # [B, 64, 147, 147]
        x = self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2))
        x = F.max_pool2d(self.Conv2d_4a_3x3(x), 3, stride=2)  # [B, 192, 35, 35]
        for name in self.mixed:
            x = self.get_submodule(name)(x)
        return x.mean(dim=(2, 3))  # [B, 2048, 8, 8] -> [B, 2048]


def untrained(seed: int = 0) -> Inception2015:
    """Makes the network with seeded random weights, for smoke tests without the weights file.

    They are those of He et al. 2015 with one change: each filter sums to 0 and is scaled for the variance
    1/2 - 1/(2 pi) of a rectified standard normal. Plain He weights pass the common mean of all activations on, and
    after 48 layers the features of any two images agree to a few per cent (standard deviation 0.005 to 0.009 at a mean
    of 0.1 to 0.2).
    """
    network = Inception2015()
    generator = torch.Generator().manual_seed(seed)
    gain = (0.5 - 0.5 / torch.pi) ** -0.5
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            weight = torch.empty(module.weight.shape).normal_(generator=generator)
            weight -= weight.mean(dim=(1, 2, 3), keepdim=True)
            module.weight.copy_(weight * gain / weight[0].numel() ** 0.5)
    # The classifier, which only the Inception score reads.
    network.fc.weight.normal_(std=NUM_FEATURES**-0.5, generator=generator)
    network.fc.bias.zero_()
    # All that follows scales with its input, so this one factor brings the features' deviation between images to O(1).
    network.Conv2d_4a_3x3.bn.weight.fill_(UNTRAINED_GAIN)
    return network
