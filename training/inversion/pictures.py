"""Reads the pictures of a head that is looked for, and refuses what no head can be found in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from training.inversion.fitting import Target

LEAST_SHARE, MOST_SHARE = 0.01, 0.995  # of a picture that its mask may show
LEAST_CONTRAST = 2 / 255  # standard deviation of the values of a picture, below which it shows nothing
LEAST_PIXELS = 16
MOST_COLOR = 0.05  # mean difference between the channels of a mask; grey has 0


def read_target(
    images: Sequence[str],  # files
    masks: Sequence[str],  # files, one for each picture, or none
    resolution: int,  # pixels that pictures are brought to: the network's
    background: tuple[float, float, float],  # RGB 0..1 that is put behind masked pictures
) -> Target:
    """Reads pictures of one head, each with its mask: of a file, or of its own alpha channel.

    Raises ValueError, with the option and what is legal, for what cannot be read or shows nothing, and where some
    pictures have masks and some have none.
    """
    if masks and len(masks) != len(images):
        raise ValueError(
            f"--mask: {len(masks)} mask(s) for {len(images)} picture(s); give one for each, in their order"
        )
    behind = torch.tensor(background)
    pictures, shown = [], []
    for i, path in enumerate(images):
        flag = f"--image={path}"
        with _open(flag, path) as file:
            _require_square(flag, file)
            has_alpha = file.mode in ("RGBA", "LA", "PA") or "transparency" in file.info
            values = _tensor(file.convert("RGBA"))
        color, alpha = values[:3], values[3:]
        mask = _read_mask(masks[i], color.shape[1:]) if masks else None
        if mask is None and has_alpha and float(alpha.min()) < 1:
            _require_content(f"{flag}: its alpha channel", alpha)
            mask = alpha
        if mask is not None:
            color = behind[:, None, None].lerp(color, mask)
        if float(color.std()) < LEAST_CONTRAST:
            raise ValueError(f"{flag}: shows nothing, all of it has one colour; a picture of one head is legal")
        pictures.append(_resized(color, resolution))
        shown.append(None if mask is None else _resized(mask, resolution))
    found = [mask for mask in shown if mask is not None]
    if found and len(found) < len(shown):
        bare = images[next(i for i, mask in enumerate(shown) if mask is None)]
        raise ValueError(f"--image={bare}: has no alpha channel, and others have one; give --mask for all")
    return Target(torch.stack(pictures), torch.stack(found) if found else None, behind)


def _open(flag: str, path: str) -> Image.Image:
    """Opens a picture, turned as its camera was held. Raises ValueError with the reason."""
    if Path(path).is_dir():
        raise ValueError(f"{flag}: is a folder; a picture is legal")
    try:
        with Image.open(path) as file:
            file.load()
            return ImageOps.exif_transpose(file)
    except FileNotFoundError:
        raise ValueError(f"{flag}: no such file") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise ValueError(f"{flag}: is no picture, or a damaged one") from None


def _require_square(flag: str, file: Image.Image) -> None:
    width, height = file.size
    if width != height:
        raise ValueError(
            f"{flag}: has {width} x {height} px, and a square is needed, cropped as the training pictures were "
            "(dataset_tool.py import portraits does that)"
        )
    if width < LEAST_PIXELS:
        raise ValueError(f"{flag}: has {width} px; at least {LEAST_PIXELS} are needed")


def _tensor(file: Image.Image) -> Tensor:
    values = np.asarray(file, np.float32) / 255
    return torch.from_numpy(values if values.ndim == 3 else values[..., None]).permute(2, 0, 1)


def _read_mask(path: str, size: torch.Size) -> Tensor:
    """Returns a mask [1, H, W] in 0..1. Raises ValueError for another size, for colours, and for nothing or all."""
    flag = f"--mask={path}"
    with _open(flag, path) as file:
        if (file.height, file.width) != tuple(size):
            raise ValueError(f"{flag}: has {file.width} x {file.height} px, its picture {size[1]} x {size[0]}")
        shown, mask = _tensor(file.convert("RGB")), _tensor(file.convert("L"))
    if float((shown.amax(0) - shown.amin(0)).mean()) > MOST_COLOR:
        raise ValueError(f"{flag}: is a picture in colours; legal is one that is white where the head is, else black")
    _require_content(flag, mask)
    if float(mask.mean()) > MOST_SHARE:
        raise ValueError(f"{flag}: covers the whole picture, so that nothing is background; leave --mask out")
    return mask


def _require_content(what: str, mask: Tensor) -> None:
    if float(mask.mean()) < LEAST_SHARE:
        raise ValueError(f"{what} hides the picture; it must be white where the head is")


def _resized(values: Tensor, size: int) -> Tensor:
    """Returns values [C, H, H] at `size` pixels: averaged where there are more, smoothed where there are fewer."""
    if values.shape[-1] == size:
        return values
    return F.interpolate(values[None], (size, size), mode="bilinear", antialias=True, align_corners=False)[0]
