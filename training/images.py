"""Takes real and generated images through the same three functions: backgrounds, mirror flips and 8 bits."""

import torch
from torch import Tensor

from gaussian import Cameras
from torch_utils import native_ops


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


def mirror(images: Tensor, masks: Tensor | None, flip: Tensor) -> tuple[Tensor, Tensor | None]:
    """Swaps left and right in the images and masks where flip [B] (bool) is set; nothing changes in place.

    images [B, 3, H, W], masks [B, 1, H, W] or None. `mirror_labels` does the same to their cameras.
    """
    wide = flip[:, None, None, None]
    return (
        torch.where(wide, images.flip(-1), images),
        None if masks is None else torch.where(wide, masks.flip(-1), masks),
    )


def mirror_labels(labels: Tensor, flip: Tensor) -> Tensor:
    """Returns labels [B, 25] with the cameras mirrored where flip [B] (bool) is set.

    The pose becomes F M F with F = diag(-1, 1, 1, 1), and the principal point moves to 1 - cx (the published code
    leaves it).
    """
    return torch.where(flip[:, None], Cameras.from_labels(labels).mirror().labels, labels)


def quantize(image: Tensor) -> Tensor:
    """Images in -1..1 as uint8: (x + 1) 127.5, rounded to the nearest and clamped to 0..255.

    Undoes x / 127.5 - 1 exactly. The published code truncates in some places and rounds in others; metrics and pictures
    here use this function only.
    """
    return (image + 1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def quantize_rgb(rgb: Tensor) -> Tensor:
    """Images [N, 3, H, W] in 0..1 as uint8 in channels last: bit for bit quantize(2 rgb - 1), in one pass on CPUs."""
    if rgb.device.type == "cpu" and rgb.dtype == torch.float32 and not rgb.requires_grad and native_ops.available():
        return native_ops.pixels(rgb.contiguous())
    return quantize(2 * rgb - 1).contiguous(memory_format=torch.channels_last)
