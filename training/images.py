"""Takes real and generated images through the same three functions: backgrounds, mirror flips and 8 bits."""

import torch
from torch import Tensor

from gaussian import Cameras


def composite(images: Tensor, masks: Tensor | None, background: Tensor) -> Tensor:
    """Images over backgrounds: float32 [B, 3, H, W] in -1..1, on the images' device.

    images: uint8 [B, 3, H, W], not premultiplied; masks: uint8 [B, 1, H, W], or None to leave the images as they are;
    background: [B, 3] RGB in 0..1. Unlike the published code, the result is not rounded to 8 bits.
    """
    image = images.to(torch.float32) / 127.5 - 1
    if masks is None:
        return image
    colour = (2 * background.to(image) - 1)[:, :, None, None]
    return colour + (masks.to(torch.float32) / 255) * (image - colour)


def mirror(images: Tensor, masks: Tensor | None, labels: Tensor, flip: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """Swaps left and right in the items where flip [B] (bool) is set, cameras included; nothing changes in place.

    images [B, 3, H, W], masks [B, 1, H, W] or None, labels [B, 25]. The pose becomes F M F with F = diag(-1, 1, 1, 1),
    and the principal point moves to 1 - cx (the published code leaves it).
    """
    wide, mirrored = flip[:, None, None, None], Cameras.from_labels(labels).mirror().labels
    return (
        torch.where(wide, images.flip(-1), images),
        None if masks is None else torch.where(wide, masks.flip(-1), masks),
        torch.where(flip[:, None], mirrored, labels),
    )


def quantize(image: Tensor) -> Tensor:
    """Images in -1..1 as uint8: (x + 1) 127.5, rounded to the nearest and clamped to 0..255.

    Undoes x / 127.5 - 1 exactly. The published code truncates in some places and rounds in others; metrics and pictures
    here use this function only.
    """
    return ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
