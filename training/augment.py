"""Augments what the discriminator sees, so that few images do not let it learn them by heart (StyleGAN2-ADA).

Karras et al. 2020, "Training generative adversarial networks with limited data": real and generated images go through
the same random transforms, each of which happens with probability p, and p follows from how sure the discriminator is
of real images. Every draw is a function of (seed, stream, sample), p is one of sums over all ranks: so nothing depends
on ranks, micro-batches or resumes, and nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, pi

import torch
import torch.nn.functional as F
from torch import Tensor

from torch_utils import distributed
from torch_utils.constants import kept
from torch_utils.random import Draws

MODES = ("noaug", "ada", "fixed")
USUAL_P, USUAL_TARGET = 0.2, 0.6  # where none is given

# The paper's table 3, in the order in which transforms act. "again" is the second of two rotations.
BLIT = ("xflip", "rotate90", "xint")
GEOM = ("scale", "rotate", "aniso", "again", "xfrac")
COLOR = ("brightness", "contrast", "lumaflip", "hue", "saturation")
PIPES = {"blit": BLIT, "geom": GEOM, "color": COLOR, "bg": BLIT + GEOM, "bgc": BLIT + GEOM + COLOR}
TRANSFORMS = PIPES["bgc"]

# Their strengths, from appendix B of the paper.
XINT_MAX = 0.125  # largest shift by whole pixels, in widths of the image
SCALE_STD = 0.2  # of log2 of a scale
XFRAC_STD = 0.125  # of a shift by any distance, in widths
BRIGHTNESS_STD = 0.2  # images are in -1..1
CONTRAST_STD = 0.5  # of log2 of the factor
SATURATION_STD = 1.0  # of log2 of the factor

INTERVAL = 4  # steps between two moves of p

# The low-pass filter of the symlet of 6 vanishing moments (Daubechies 1992, "Ten lectures on wavelets", 8.1.1): with
# its own transpose it takes an image to twice its size and back without loss, so that images that do not move stay.
SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633,
    0.49105594192674662, 0.787641141030194, 0.3379294217276218, -0.072637522786462516,
    -0.021060292512300564, 0.044724901770665779, 0.0017677118642428036, -0.0078007083250341483,
)  # fmt: skip
_PEAK = 5  # place of the tap that stands for the filter's middle


@dataclass(frozen=True)
class Dice:
    """Holds the random numbers of N images, a row for each of the T `TRANSFORMS`."""

    happens: Tensor  # [N, T] bool
    uniform: Tensor  # [N, T, 2] in [0, 1)
    normal: Tensor  # [N, T, 2]

    def pick(self, name: str, values: Tensor, neutral: float = 0.0) -> Tensor:
        """Returns values [N] or [N, 2] where transform `name` happens, and `neutral` elsewhere."""
        happens = self.happens[:, TRANSFORMS.index(name)]
        return torch.where(happens if values.ndim == 1 else happens[:, None], values, neutral)

    def uniforms(self, name: str) -> Tensor:
        """Returns two numbers in [0, 1) an image for `name`: [N, 2]."""
        return self.uniform[:, TRANSFORMS.index(name)]

    def normals(self, name: str) -> Tensor:
        """Returns two standard normal numbers an image for `name`: [N, 2]."""
        return self.normal[:, TRANSFORMS.index(name)]


def throw(draws: Draws, stream: str, count: int, p: Tensor, enabled: Tensor, dtype: torch.dtype) -> Dice:
    """Draws for `count` images, the same number of each sample, sample by sample.

    p: [] probability of a transform; enabled: [T] bool. Two rotations happen with 1 - sqrt(1 - p) each, so that an
    image is rotated with probability p. Which transforms are enabled changes no other's numbers.
    """
    views, rest = divmod(count, len(draws.indices))
    if rest:
        raise ValueError(f"{count} images cannot be of {len(draws.indices)} samples")
    shape = (views, len(TRANSFORMS))
    uniform = draws.uniform(f"augment/{stream}/uniform", (*shape, 3)).flatten(0, 1)  # [N, T, 3]
    normal = draws.normal(f"augment/{stream}/normal", (*shape, 2)).flatten(0, 1)  # [N, T, 2]
    limits = p.repeat(len(TRANSFORMS))
    for name in ("rotate", "again"):
        limits[TRANSFORMS.index(name)] = 1 - (1 - p).sqrt()
    return Dice((uniform[..., 0] < limits) & enabled, uniform[..., 1:].to(dtype), normal.to(dtype))


# ---------------------------------------------------------------- geometry


def flips(dice: Dice) -> Tensor:
    """Returns whose left and right are swapped, before any other transform: [N] bool."""
    return dice.pick("xflip", (2 * dice.uniforms("xflip")[:, 0]).floor()).bool()


def origins(dice: Dice, size: int) -> tuple[Tensor, Tensor]:
    """Returns where pixels come from, but for `flips`: pixel y of the result shows x = linear y + offset of the image.

    x and y are in pixels from the middle of images `size` wide, x to the right and y downwards. Returns linear
    [N, 2, 2] and offset [N, 2].
    """
    quarter = _rotation(dice.pick("rotate90", (4 * dice.uniforms("rotate90")[:, 0]).floor()) * (pi / 2))
    whole = dice.pick("xint", ((2 * dice.uniforms("xint") - 1) * (XINT_MAX * size)).round())  # [N, 2]
    scale = dice.pick("scale", (SCALE_STD * dice.normals("scale")[:, 0]).exp2(), 1.0)
    first, second = (
        _rotation(dice.pick(name, (2 * dice.uniforms(name)[:, 0] - 1) * pi)) for name in ("rotate", "again")
    )
    aniso = dice.pick("aniso", (SCALE_STD * dice.normals("aniso")[:, 0]).exp2(), 1.0)
    part = dice.pick("xfrac", dice.normals("xfrac") * (XFRAC_STD * size))  # [N, 2]

    # Back through the transforms, from the last to the first.
    shrink = torch.diag_embed(torch.stack([1 / (scale * aniso), aniso / scale], -1))
    within = first.mT @ shrink @ second.mT
    offset = quarter.mT @ (within @ -part[..., None] - whole[..., None])
    return quarter.mT @ within, offset[..., 0]


def _rotation(angle: Tensor) -> Tensor:
    """Returns matrices [N, 2, 2] of angles [N]."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)


def warp(images: Tensor, linear: Tensor, offset: Tensor) -> Tensor:
    """Moves the pixels of images [N, C, R, R], R >= 4, to where `origins` says; an image that stays is left as it is.

    At twice the size, between two wavelet filters, so that neither aliasing nor blur tells a moved image from others.
    Beyond its edges an image goes on mirrored. (The published code pads by as much as a batch needs, for which the host
    waits, and is black beyond one width. It filters the mirrored part with the filter itself, here with its mirror
    image, which is nearly the same.)
    """
    size, dtype = images.shape[-1], images.dtype
    up, down = _filters(size, dtype, images.device)
    place = torch.arange(down.shape[1], device=images.device, dtype=dtype).sub(_PEAK).div(2) - (size - 1) / 2
    x, y = place.expand(len(place), -1), place[:, None].expand(-1, len(place))  # [W, W] pixels from the middle
    pixels = torch.stack([x, y, torch.ones_like(x)], -1).flatten(0, 1)  # [W W, 3]
    came = (
        pixels @ torch.cat([linear, offset[..., None]], 2).mT * (2 / (size - 1))
    )  # -1, 1: middles of the outer pixels
    came = came.unflatten(1, x.shape)  # [N, W, W, 2]
    moved = F.grid_sample(up @ images @ up.T, came, "bilinear", "reflection", align_corners=True)
    stays = (linear == torch.eye(2, dtype=dtype, device=images.device)).flatten(1).all(1) & (offset == 0).all(1)
    return torch.where(stays[:, None, None, None], images, down @ (moved @ down.T))


@kept
def _filters(size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns what doubles the width of an image and what halves it, as matrices: products are fast.

    up [2 R - 1, R]: place m of the result is at pixel m / 2 of an image that goes on mirrored. down [R, 2 R + 10]:
    place m of what it takes is at pixel (m - 5) / 2.
    """
    taps = torch.tensor(SYM6, dtype=torch.float64)
    pixel = torch.arange(-3, size + 3)  # all that reach into the image through the filter
    inside = (size - 1) - ((size - 1) - pixel.abs()).abs()  # the pixel that stands for it
    reach = torch.arange(2 * size - 1)[:, None] - 2 * pixel + _PEAK  # [2 R - 1, P] tap that joins place and pixel
    weight = torch.where((reach >= 0) & (reach < len(taps)), taps[reach.clamp(0, len(taps) - 1)], 0.0)
    up = torch.zeros(2 * size - 1, size, dtype=torch.float64).index_add_(1, inside, weight) * 2**0.5
    reach = torch.arange(2 * size + 10) - 2 * torch.arange(size)[:, None]  # [R, 2 R + 10]
    down = torch.where((reach >= 0) & (reach < len(taps)), taps[reach.clamp(0, len(taps) - 1)], 0.0) / 2**0.5
    return up.to(device, dtype), down.to(device, dtype)


# ---------------------------------------------------------------- colour


def recolor(dice: Dice) -> tuple[Tensor, Tensor]:
    """Returns matrix [N, 3, 3] and offset [N, 3] of the map from the colours of images in -1..1 to new ones."""
    brightness = dice.pick("brightness", BRIGHTNESS_STD * dice.normals("brightness")[:, 0])
    contrast = dice.pick("contrast", (CONTRAST_STD * dice.normals("contrast")[:, 0]).exp2(), 1.0)
    inverted = dice.pick("lumaflip", (2 * dice.uniforms("lumaflip")[:, 0]).floor())  # 0 or 1
    hue = dice.pick("hue", (2 * dice.uniforms("hue")[:, 0] - 1) * pi)
    saturation = dice.pick("saturation", (SATURATION_STD * dice.normals("saturation")[:, 0]).exp2(), 1.0)

    # All of them turn about the axis of greys or scale along or across it.
    eye = torch.eye(3, dtype=hue.dtype, device=hue.device)
    grey = torch.full_like(eye, 1 / 3)  # projects on the axis
    across = (eye.roll(1, 0) - eye.roll(1, 1)) / 3**0.5  # v -> axis x v
    flipped = eye - 2 * inverted[:, None, None] * grey
    cos, sin = hue.cos()[:, None, None], hue.sin()[:, None, None]
    turned = cos * eye + (1 - cos) * grey + sin * across  # Rodrigues' formula
    saturated = eye + (saturation - 1)[:, None, None] * (eye - grey)
    matrix = saturated @ turned @ flipped * contrast[:, None, None]
    return matrix, brightness[:, None] * matrix.sum(2)


def apply_color(images: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """Maps the colours of images [N, 3 or more, R, R]; channels after the third, such as a mask, are left alone."""
    rgb, rest = images[:, :3], images[:, 3:]
    mapped = torch.baddbmm(offset[:, :, None], matrix, rgb.flatten(2)).view_as(rgb)
    return torch.cat([mapped, rest], 1) if rest.shape[1] else mapped


# ---------------------------------------------------------------- the transforms together, and p


def check_options(mode: str, p: float, target: float, kimg: float, pipe: str) -> None:
    """Raises ValueError with the option's name for what `Augmentation` cannot take, and for what would not act."""
    for flag, word, legal in (("--aug", mode, MODES), ("--augpipe", pipe, tuple(PIPES))):
        if word not in legal:
            raise ValueError(f"{flag}={word}: legal are {', '.join(legal)}")
    if not 0 <= p <= 1:
        raise ValueError(f"--p={p}: must be 0 to 1")
    if not 0 < target < 1:
        raise ValueError(f"--target={target}: must be greater than 0 and less than 1")
    if not 0 < kimg < inf:
        raise ValueError(f"--ada-kimg={kimg}: must be finite and greater than 0")
    for flag, value, usual, acts in (("--p", p, USUAL_P, "fixed"), ("--target", target, USUAL_TARGET, "ada")):
        if value != usual and mode != acts:
            raise ValueError(
                f"{flag}={value} acts with --aug={acts}, and this run has --aug={mode}; give --aug={acts}, or "
                f"{flag}={usual}, the default"
            )


class Augmentation:
    """Augments the images of a run, and moves p.

    p rises by the images seen / (1000 kimg) while the mean sign of the logits of real images is above the target, and
    falls while it is below. (The published code lets p exceed 1, where it does nothing but take its time to come back.)
    """

    def __init__(
        self,
        mode: str,  # one of MODES
        pipe: str,  # one of PIPES
        fixed_p: float,  # p of "fixed"
        target: float,  # mean sign of the logits of real images that "ada" steers to
        kimg: float,  # thousands of images in which "ada" takes p from 0 to 1
        device: torch.device,
    ):
        self.mode, self.target, self.kimg = mode, target, kimg
        self.acts = mode != "noaug"
        self.moves_pixels = any(name in PIPES[pipe] for name in (*BLIT, *GEOM))
        self.maps_colors = any(name in PIPES[pipe] for name in COLOR)
        self._enabled = torch.tensor([name in PIPES[pipe] for name in TRANSFORMS], device=device)
        self._fixed_p = torch.tensor(float(fixed_p), device=device)
        self._ada_p = torch.zeros((), device=device)
        self._signs = torch.zeros(2, device=device)  # sum and number of the signs since p moved, over all ranks
        self._own: Tensor | None = None  # the same of this rank, in the step under way

    @property
    def p(self) -> Tensor:
        """The probability of a transform, [] on the device."""
        return self._ada_p if self.mode == "ada" else self._fixed_p

    def state(self) -> dict[str, Tensor]:
        """Returns what changes between steps, equal on all ranks; it can be restored in place."""
        return {"augment.p": self._ada_p, "augment.signs": self._signs}

    def __call__(self, images: Tensor, draws: Draws, stream: str) -> tuple[Tensor, Tensor]:
        """Returns images [N, C, R, R] in -1..1 augmented, and flip [N] bool: whose left and right were swapped.

        N: a multiple of the samples of `draws`, sample by sample; C: 3, or more of which all move and three have
        colours. Differentiable in the images. With p = 0 they come back as they are, to the bit.
        """
        dice = throw(draws, stream, len(images), self.p, self._enabled, images.dtype)
        flip = flips(dice)
        if self.moves_pixels:
            images = warp(
                torch.where(flip[:, None, None, None], images.flip(-1), images), *origins(dice, images.shape[-1])
            )
        if self.maps_colors:
            images = apply_color(images, *recolor(dice))
        return images, flip

    def flips(self, draws: Draws, stream: str, like: Tensor) -> Tensor:
        """Returns which of the images [N, ...] of `draws` and `stream` have left and right swapped: [N] bool."""
        return flips(throw(draws, stream, len(like), self.p, self._enabled, like.dtype))

    def note(self, logits: Tensor) -> None:
        """Takes in the logits of real images of a micro-batch; one that is not a number counts as undecided."""
        signs = logits.detach().sign().nan_to_num(0.0)
        counted = torch.stack([signs.sum(), signs.new_full((), signs.numel())]).to(self._signs)
        self._own = counted if self._own is None else self._own + counted

    def end_step(self, step: int) -> Mapping[str, Tensor]:
        """Moves p after every `INTERVAL`-th step, equally on all ranks.

        Returns statistics: p as it was in the step, and the mean sign. Raises RuntimeError where no logits were noted.
        """
        if not self.acts:
            return {}
        if self._own is None:
            raise RuntimeError("augmentation: the losses of the discriminator note no logits of real images")
        signs, p = distributed.all_reduce_sum(self._own), self.p.clone()
        self._own = None
        self._signs += signs  # whole numbers: exact in any order
        if (step + 1) % INTERVAL == 0:
            if self.mode == "ada":
                total, count = self._signs
                move = (total / count - self.target).sign() * count / (1000 * self.kimg)
                self._ada_p.add_(move).clamp_(0, 1)
            self._signs.zero_()
        return {"Augment/p": p, "Augment/sign": signs[0] / signs[1]}
