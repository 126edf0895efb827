"""Cuts patches out of images and cameras: the windows that a discriminator of patches gets to see, and their law.

A window is (scale, x, y): its width in images, and the distances of its left and of its lower edge from the image's.
Its r x r points include both end points, as do the N x N points of the image itself. Points of an image with N pixels
are its pixel centres, so a patch is an image of a cropped camera (`crop`), exactly.

Source: Skorokhodov et al. 2022 (EpiGRAF), section 3.2: the beta distribution, whose mass moves from 1 to small scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gaussian import Cameras

LAWS = ("beta", "uniform", "discrete", "whole")


@dataclass(frozen=True)
class PatchLaw:
    """Says how windows are drawn after so many images of a run."""

    name: str = "beta"  # one of LAWS; "whole" always shows the whole image
    least: float = 0.125  # smallest scale: pixels of a patch / pixels of an image
    most: float = 1.0  # largest scale
    alpha: float = 1.0  # first parameter of the beta distribution; 1 is the only one with a closed quantile
    beta: tuple[float, float] = (0.001, 0.8)  # its second parameter, at the start and after `fade_nimg`
    fade_nimg: float = 10_000_000  # images over which the law changes
    support: tuple[float, ...] = (0.25, 1.0)  # scales of "discrete"

    def beta_at(self, nimg: int) -> float:
        """Returns the second parameter of the beta distribution."""
        return faded(nimg, *self.beta, self.fade_nimg)

    def windows(self, draws: Tensor, nimg: int) -> Tensor:
        """Returns windows [N, 3] for draws [N, 3], uniform in 0..1: of the scale, x and y."""
        u = draws[:, 0]
        if self.name == "whole":
            scale = torch.ones_like(u)
        elif self.name == "beta":
            # 1 - (1 - u)^(1/beta), the quantile function at alpha = 1; u = 0 gives 0 for every beta.
            share = -torch.expm1(torch.log1p(-u.double()) / self.beta_at(nimg))
            scale = (self.least + (self.most - self.least) * share).to(u.dtype)
        elif self.name == "uniform":
            least = faded(nimg, 1.0, self.least, self.fade_nimg)
            scale = least + (1 - least) * u
        else:
            least = faded(nimg, 1.0, self.least, self.fade_nimg)
            legal = [value for value in self.support if value >= least] or [max(self.support)]
            table = torch.tensor(legal, dtype=u.dtype).to(u.device, non_blocking=True)
            scale = table[(u * len(legal)).long().clamp_max(len(legal) - 1)]
        return torch.cat([scale[:, None], draws[:, 1:] * (1 - scale)[:, None]], dim=1)

    def check(self, flag: str) -> None:
        """Raises ValueError with the option's name for an illegal value."""
        if self.name not in LAWS:
            raise ValueError(f"{flag}={self.name}: legal are {', '.join(LAWS)}")
        if self.alpha != 1:
            raise ValueError(f"objective.patch_alpha={self.alpha}: 1 is legal, whose quantiles have a closed form")
        if not 0 < self.least <= self.most <= 1:
            raise ValueError(f"objective.patch_most={self.most}: legal are {self.least:g} to 1")
        if len(self.beta) != 2 or not all(0 < value < float("inf") for value in self.beta):
            raise ValueError(f"objective.patch_beta={self.beta}: two numbers greater than 0 are legal")
        if self.name == "discrete" and not (self.support and all(self.least <= s <= 1 for s in self.support)):
            raise ValueError(f"objective.patch_support={self.support}: scales of {self.least:g} to 1 are legal")


def faded(nimg: int, start: float, end: float, length: float) -> float:
    """Moves linearly from `start` to `end` over the first `length` images."""
    return start + (end - start) * (min(nimg / length, 1.0) if length > 0 else 1.0)


def leaders(indices: Sequence[int], group: int, micro: int, strided: bool = False) -> list[int]:
    """Returns, for consecutive samples, the sample that draws the window of each: one for every `group` samples.

    They are consecutive; strided: those m, m + micro / group, ... of a micro-batch of `micro` samples, which share a
    minibatch statistic.
    """
    if not strided:
        return [i - i % group for i in indices]
    return [i - i % micro + (i % micro) % (micro // group) for i in indices]


def grid(windows: Tensor, resolution: int) -> Tensor:
    """Returns the points [N, r, r, 2] of windows [N, 3]: x right and y down, -1..1 between the image's end points."""
    ramp = torch.linspace(-1, 1, resolution, dtype=windows.dtype, device=windows.device)
    scale, left, bottom = windows[:, :, None].unbind(1)  # [N, 1] each
    x = (ramp + 1) * scale - 1 + 2 * left  # [N, r]
    y = (1 - ramp) * scale - 1 + 2 * bottom  # upwards, first row on top
    return torch.stack(torch.broadcast_tensors(x[:, None, :], -y[:, :, None]), dim=-1)


def cut(images: Tensor, windows: Tensor, resolution: int) -> Tensor:
    """Returns patches [N, C, r, r] of images [N, C, R, R]: bilinear at the points, without a low-pass filter."""
    return F.grid_sample(images, grid(windows, resolution), mode="bilinear", align_corners=True)


def crop(cameras: Cameras, windows: Tensor, resolution: int, whole: int) -> Cameras:
    """Returns cameras [N, ...] of the patches of r x r pixels that windows [N, 3] cut out of images of `whole` pixels.

    In units of the image the end points of N pixels are 1/(2N) and 1 - 1/(2N).
    """
    shape = (len(windows), *(1,) * (cameras.intrinsics.ndim - 3))
    scale, left, bottom = (value.view(shape).to(cameras.dtype) for value in windows.unbind(1))
    inner = (whole - 1) / whole
    width = scale * (resolution / (resolution - 1) * inner)
    start_x = (left + scale / 2) * inner + 0.5 / whole - width / 2
    start_y = (1 - bottom - scale / 2) * inner + 0.5 / whole - width / 2
    zero, one = torch.zeros_like(width), torch.ones_like(width)
    rows = [[1 / width, zero, -start_x / width], [zero, 1 / width, -start_y / width], [zero, zero, one]]
    return Cameras(cameras.cam2world, torch.stack([torch.stack(row, -1) for row in rows], -2) @ cameras.intrinsics)
