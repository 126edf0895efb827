"""Image operations of the discriminator: bias and activation in one step, FIR blur and downsampling.

Every function takes [N, C, H, W] in any floating type and memory format, and is differentiable twice (R1 needs it).
The `_reference` functions are the slow, readable twins; they have the same signatures.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LRELU_SLOPE = 0.2
LRELU_GAIN = math.sqrt(2)  # keeps the second moment of a unit normal at about 1

FIR = (1.0, 3.0, 3.0, 1.0)  # one axis of the resampling filter, to be divided by its sum


def fir_filter(dtype: torch.dtype | None = None, device: torch.device | None = None) -> Tensor:
    """The 4x4 resampling filter; sums to 1."""
    taps = torch.tensor(FIR, dtype=dtype, device=device)
    return torch.outer(taps, taps) / taps.sum().square()


def lrelu_clamp(x: Tensor, clamp: float | None = None) -> Tensor:
    """Leaky ReLU without gain, then a limit to +-clamp."""
    x = F.leaky_relu(x, LRELU_SLOPE)
    return x if clamp is None else x.clamp(-clamp, clamp)


def bias_act(
    x: Tensor, bias: Tensor | None = None, activation: str = "linear", gain: float = 1.0, clamp: float | None = None
) -> Tensor:
    """Add bias [C], activate ("linear", or "lrelu": slope 0.2, then times sqrt(2)), scale by gain, limit to +-clamp."""
    if activation not in ("linear", "lrelu"):
        raise ValueError(f"activation={activation!r} is unknown; legal are linear, lrelu")
    if bias is not None:
        x = x + bias.to(x.dtype)[:, None, None]
    if activation == "lrelu":
        x = F.leaky_relu(x, LRELU_SLOPE) * (LRELU_GAIN * gain)
    elif gain != 1:
        x = x * gain
    return x if clamp is None else x.clamp(-clamp, clamp)


def blur_reference(x: Tensor, padding: int) -> Tensor:
    """Zero-pad all sides, then convolve each channel with the 4x4 filter: H becomes H + 2 padding - 3."""
    channels = x.shape[1]
    weight = fir_filter(x.dtype, x.device).expand(channels, 1, 4, 4).contiguous()
    return F.conv2d(x, weight, padding=padding, groups=channels)


def downsample_reference(x: Tensor) -> Tensor:
    """Half the size: blur with one pixel of padding, keep every second pixel."""
    return blur_reference(x, padding=1)[:, :, ::2, ::2]


def conv2d_downsample_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """3x3 convolution to half the size, low-passed before: blur with two pixels of padding, then stride 2."""
    return F.conv2d(blur_reference(x, padding=2), weight, bias, stride=2)


blur = blur_reference
downsample = downsample_reference
conv2d_downsample = conv2d_downsample_reference
