"""Holds the Triton kernels of torch_utils/triton_ops.py, and launches them. Importing this file needs triton.

All are bound by memory on a GPU: each reads its input once and writes its result once. Values are computed in float32,
or in float64 for tensors of that type, and rounded once. Images lie channels last in memory; a contiguous image of C
channels is C images of one. With TRITON_INTERPRET=1 at the import the kernels run on CPU tensors, for tests.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

FLAT_BLOCK = (
    2048  # numbers that a program of the pointwise kernels works on: two loads of 16 bytes a thread in bfloat16
)
FIR_ROWS = 8  # rows that a program of the filters walks down: a row is then read 11/8 times on the way to its filter
FIR_TILE = 1024  # columns times channels of such a program
FIR_CHANNELS = 64


# ---------------------------------------------------------------- bias, leaky ReLU and clamp


@triton.jit
def lrelu_clamp_kernel(
    x: tl.tensor,  # [n] any float, overwritten
    bias: tl.tensor,  # [CHANNELS], read if HAS_BIAS
    n: tl.int64,  # "int" would mean 32 bits
    inner: int,  # numbers between one channel and the next where channels do not come last
    CHANNELS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SLOPE: tl.constexpr,
    CLAMP: tl.constexpr,  # 0: none
    WIDE: tl.constexpr,  # type of the arithmetic
    BLOCK: tl.constexpr,
) -> None:
    start = tl.program_id(0).to(tl.int64) * BLOCK  # a batch can hold 2^31 numbers
    offsets = tl.arange(0, BLOCK)
    inside = start + offsets < n
    value = tl.load(x + start + offsets, mask=inside).to(WIDE)
    if HAS_BIAS:
        if CHANNELS_LAST and BLOCK % CHANNELS == 0:  # said apart, so that the bias too is loaded 16 bytes at a time
            channel = offsets % CHANNELS
        elif CHANNELS_LAST:
            channel = ((start % CHANNELS).to(tl.int32) + offsets) % CHANNELS
        else:
            channel = (((start % (CHANNELS * inner)).to(tl.int32) + offsets) // inner) % CHANNELS
        value += tl.load(bias + channel, mask=inside).to(WIDE)
    value = tl.where(value > 0, value, value * SLOPE)
    if CLAMP > 0:
        # Comparisons, which are false for NaN, so that a NaN comes through.
        value = tl.where(value > CLAMP, CLAMP, tl.where(value < -CLAMP, -CLAMP, value))
    tl.store(x + start + offsets, value, mask=inside)


@triton.jit
def lrelu_clamp_grad_kernel(
    grad: tl.tensor,  # [n]
    y: tl.tensor,  # [n] the activation's result
    out: tl.tensor,  # [n]
    n: tl.int64,
    SLOPE: tl.constexpr,
    CLAMP: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < n
    result = tl.load(y + offsets, mask=inside).to(WIDE)
    value = tl.load(grad + offsets, mask=inside).to(WIDE)
    value = tl.where(result > 0, value, value * SLOPE)
    if CLAMP > 0:
        value = tl.where(tl.abs(result) >= CLAMP, 0.0, value)
    tl.store(out + offsets, value, mask=inside)


# ---------------------------------------------------------------- the 4x4 filter


@triton.jit
def _filtered_row(
    x: tl.tensor,
    row: tl.tensor,
    height: int,
    width: int,
    channels: int,
    place: tl.tensor,
    first: tl.tensor,
    second: tl.tensor,
    third: tl.tensor,
    fourth: tl.tensor,
    WIDE: tl.constexpr,
) -> tl.tensor:
    """Filters a row of image x with (1, 3, 3, 1), from the first tap at `place` of it on, one mask for each tap."""
    start = x + row * width * channels
    there = (row >= 0) & (row < height)
    outer = tl.load(start + place, mask=first & there, other=0.0).to(WIDE)
    outer += tl.load(start + (place + 3 * channels), mask=fourth & there, other=0.0).to(WIDE)
    inner = tl.load(start + (place + channels), mask=second & there, other=0.0).to(WIDE)
    inner += tl.load(start + (place + 2 * channels), mask=third & there, other=0.0).to(WIDE)
    return outer + 3 * inner


@triton.jit
def _place(
    rows: int, columns: int, channels: int, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Returns this program's image, first row, columns [COLUMNS, 1] and channels [1, CHANNELS]; channels go fastest."""
    rest = tl.program_id(0)
    blocks = (channels + CHANNELS - 1) // CHANNELS
    channel = (rest % blocks) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    rest = rest // blocks
    blocks = (columns + COLUMNS - 1) // COLUMNS
    column = (rest % blocks) * COLUMNS + tl.arange(0, COLUMNS)[:, None]
    rest = rest // blocks
    blocks = (rows + ROWS - 1) // ROWS
    return (rest // blocks).to(tl.int64), (rest % blocks) * ROWS, column, channel


@triton.jit
def fir_kernel(
    x: tl.tensor,  # [N, height, width, channels]
    y: tl.tensor,  # [N, rows, columns, channels]
    height: int,
    width: int,
    channels: int,
    rows: int,
    columns: int,
    padding: int,
    STRIDE: tl.constexpr,  # 1 or 2
    WHOLE: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    image, row, column, channel = _place(rows, columns, channels, ROWS, COLUMNS, CHANNELS)
    x += image * height * width * channels
    left, top = column * STRIDE - padding, row * STRIDE - padding
    inside = column < columns
    if not WHOLE:
        inside = inside & (channel < channels)
    place = left * channels + channel
    first = inside & (left >= 0) & (left < width)
    second = inside & (left >= -1) & (left < width - 1)
    third = inside & (left >= -2) & (left < width - 2)
    fourth = inside & (left >= -3) & (left < width - 3)
    y += image * rows * columns * channels + row * columns * channels
    written = column * channels + channel
    # The filtered rows a, b and c are kept for the next row of the result.
    a = _filtered_row(x, top, height, width, channels, place, first, second, third, fourth, WIDE)
    b = _filtered_row(x, top + 1, height, width, channels, place, first, second, third, fourth, WIDE)
    c = _filtered_row(x, top + 2, height, width, channels, place, first, second, third, fourth, WIDE)
    for i in tl.static_range(ROWS):
        last = top + 3 + i * STRIDE
        d = _filtered_row(x, last, height, width, channels, place, first, second, third, fourth, WIDE)
        value = (a + 3 * (b + c) + d) * 0.015625
        tl.store(y + i * columns * channels + written, value, mask=inside & (row + i < rows))
        if STRIDE == 1:
            a, b, c = b, c, d
        elif i < ROWS - 1:
            a, b = c, d
            c = _filtered_row(x, last + 1, height, width, channels, place, first, second, third, fourth, WIDE)


@triton.jit
def _spread_row(
    x: tl.tensor,
    row: tl.tensor,
    height: int,
    width: int,
    channels: int,
    place: tl.tensor,
    left: tl.tensor,
    middle: tl.tensor,
    right: tl.tensor,
    WIDE: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Returns what a row of image x gives to the even and to the odd columns of the finer grid, times 8."""
    start = x + row * width * channels
    there = (row >= 0) & (row < height)
    centre = 3 * tl.load(start + place, mask=middle & there, other=0.0).to(WIDE)
    before = tl.load(start + (place - channels), mask=left & there, other=0.0).to(WIDE)
    behind = tl.load(start + (place + channels), mask=right & there, other=0.0).to(WIDE)
    return centre + before, centre + behind


@triton.jit
def fir_transpose_kernel(
    x: tl.tensor,  # [N, height, width, channels]
    y: tl.tensor,  # [N, 2 height, 2 width, channels]
    height: int,
    width: int,
    channels: int,
    WHOLE: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    image, row, column, channel = _place(height, width, channels, ROWS, COLUMNS, CHANNELS)
    x += image * height * width * channels
    inside = column < width
    if not WHOLE:
        inside = inside & (channel < channels)
    left, right = inside & (column > 0), inside & (column < width - 1)
    place = column * channels + channel
    y += image * 4 * height * width * channels + row * 4 * width * channels
    written = 2 * column * channels + channel
    even_above, odd_above = _spread_row(x, row - 1, height, width, channels, place, left, inside, right, WIDE)
    even, odd = _spread_row(x, row, height, width, channels, place, left, inside, right, WIDE)
    for i in tl.static_range(ROWS):
        below = row + i + 1
        even_below, odd_below = _spread_row(x, below, height, width, channels, place, left, inside, right, WIDE)
        mask = inside & (row + i < height)
        upper = y + i * 4 * width * channels + written
        tl.store(upper, (3 * even + even_above) * 0.015625, mask=mask)
        tl.store(upper + channels, (3 * odd + odd_above) * 0.015625, mask=mask)
        lower = upper + 2 * width * channels
        tl.store(lower, (3 * even + even_below) * 0.015625, mask=mask)
        tl.store(lower + channels, (3 * odd + odd_below) * 0.015625, mask=mask)
        even_above, odd_above, even, odd = even, odd, even_below, odd_below


# ---------------------------------------------------------------- launches


def lrelu_clamp_(x: Tensor, bias: Tensor | None, slope: float, clamp: float) -> None:
    """Adds bias [C] to x [N, C, H, W], dense in either layout, then leaky ReLU and clamp (0: none), all in place."""
    n, channels = x.numel(), x.shape[1]
    lrelu_clamp_kernel[(triton.cdiv(n, FLAT_BLOCK),)](
        x,
        x if bias is None else bias,
        n,
        n // (len(x) * channels),
        CHANNELS=channels,
        CHANNELS_LAST=channels_last(x),
        HAS_BIAS=bias is not None,
        SLOPE=slope,
        CLAMP=clamp,
        WIDE=wide(x),
        BLOCK=FLAT_BLOCK,
    )


def lrelu_clamp_grad(grad: Tensor, y: Tensor, out: Tensor, slope: float, clamp: float) -> None:
    """Writes grad times the activation's derivative, read off its result y, to out: all laid out alike and dense."""
    n = y.numel()
    grid = (triton.cdiv(n, FLAT_BLOCK),)
    lrelu_clamp_grad_kernel[grid](grad, y, out, n, SLOPE=slope, CLAMP=clamp, WIDE=wide(y), BLOCK=FLAT_BLOCK)


def fir(x: Tensor, y: Tensor, padding: int, stride: int) -> None:
    """Filters x [N, C, H, W] into y, padded with zeros and at every `stride`-th pixel; laid out alike and dense."""
    images, channels = _images(x)
    height, width, rows, columns = *x.shape[2:], *y.shape[2:]
    block = fir_block(columns, channels)
    fir_kernel[_grid(images, rows, columns, channels, block)](
        x, y, height, width, channels, rows, columns, padding, STRIDE=stride, WIDE=wide(x), **block
    )


def fir_transpose(x: Tensor, y: Tensor) -> None:
    """Writes the transpose of `fir` with padding 1 and stride 2, from [N, C, H, W] to [N, C, 2 H, 2 W]."""
    images, channels = _images(x)
    height, width = x.shape[2:]
    block = fir_block(width, channels)
    grid = _grid(images, height, width, channels, block)
    fir_transpose_kernel[grid](x, y, height, width, channels, WIDE=wide(x), **block)


def channels_last(x: Tensor) -> bool:
    """Whether x [N, C, H, W] is dense with its channels last; one that is also contiguous counts as such."""
    return x.is_contiguous(memory_format=torch.channels_last)


def wide(x: Tensor) -> tl.dtype:
    """Returns the type of the arithmetic for a tensor."""
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def fir_block(columns: int, channels: int) -> dict[str, int | bool]:
    """Returns the shape of the part of an image that a program of the filters works on."""
    wide = min(triton.next_power_of_2(channels), FIR_CHANNELS)
    return {
        "WHOLE": channels % wide == 0,
        "ROWS": FIR_ROWS,
        "COLUMNS": min(triton.next_power_of_2(columns), FIR_TILE // wide),
        "CHANNELS": wide,
    }


def _images(x: Tensor) -> tuple[int, int]:
    """Returns how many images with how many channels x is, as it lies in memory."""
    return (len(x), x.shape[1]) if channels_last(x) else (len(x) * x.shape[1], 1)


def _grid(images: int, rows: int, columns: int, channels: int, block: dict[str, int | bool]) -> tuple[int]:
    tiles = triton.cdiv(columns, block["COLUMNS"]) * triton.cdiv(channels, block["CHANNELS"])
    return (images * triton.cdiv(rows, block["ROWS"]) * tiles,)
