"""Chooses the number format of the large convolutions and matrix products, and whether float32 ones use TF32.

This is the only file that touches PyTorch's switches of TF32 (float32 with a mantissa of 10 bits, on GPUs from compute
capability 8.0). They are off at the start of every script. Training in a low precision switches them on, with `set_up`;
cameras, rasterisation, neighbours and metrics stay exact, with `exact_float32`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

PRECISIONS = ("auto", "fp32", "bf16", "fp16")

FLOAT16_LOSS_SCALE = 1024.0  # a power of two, so that it rounds nothing
_BF16_CAPABILITY = (8, 0)  # compute capability from which GPUs multiply bfloat16 in hardware

_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})  # spelled alike by torch and by Linux


def _capability_flags() -> frozenset[str]:
    """Returns the processor's flags as PyTorch reports them; empty where it does not."""
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is None:
        return frozenset()
    return frozenset(name for name, present in capabilities().items() if present is True)


def _cpuinfo_flags(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Returns the processor's flags as Linux reports them; empty on other systems."""
    if not path.exists():
        return frozenset()
    lines = (line for line in path.read_text().splitlines() if line.startswith("flags"))
    return frozenset(next(lines, ":").partition(":")[2].split())


def cpu_has_bfloat16() -> bool:
    """Tells whether the processor multiplies bfloat16 in hardware (AMX or AVX512-BF16) and PyTorch makes use of it."""
    # Otherwise it is an older processor, or the user has restricted its instruction sets.
    if torch.backends.cpu.get_cpu_capability() not in ("AVX512", "AMX"):
        return False
    return bool(_BF16_FLAGS & (_capability_flags() or _cpuinfo_flags()))


def gpu_has_bfloat16(device: torch.device) -> bool:
    """Tells whether a CUDA device multiplies bfloat16 in hardware."""
    return torch.cuda.get_device_capability(device) >= _BF16_CAPABILITY


def resolve(precision: str, device: torch.device | str) -> torch.dtype | None:
    """Returns the low-precision type for convolution blocks and large matrix products, or None for float32.

    precision: "fp32", "bf16", "fp16", or "auto": bfloat16 on processors and GPUs that have it in hardware, float16 on
        older GPUs, float32 elsewhere.
    Raises ValueError for an unknown name, and for fp16 on a CPU, where it is slower than float32 and overflows.
    """
    device = torch.device(device)
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} is unknown; legal are {', '.join(PRECISIONS)}")
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("precision='fp16' needs a GPU; on device 'cpu' use auto, bf16 or fp32")
    if precision == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if gpu_has_bfloat16(device) else torch.float16
        return torch.bfloat16 if device.type == "cpu" and cpu_has_bfloat16() else None
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def set_up(precision: str, device: torch.device | str) -> torch.dtype | None:
    """Returns what `resolve` does, and lets what stays in float32 use TF32 unless that is all: fp32 means fp32."""
    low = resolve(precision, device)
    allow_tf32(low is not None)
    return low


def loss_scale(low: torch.dtype | None) -> float:
    """Returns the factor on a loss that keeps its gradients out of float16's subnormal numbers, below 6e-5.

    The gradient of an image element is about 1e-5 where 32 samples of 4 views share a mean. It is constant: a step that
    overflows is skipped like any other whose gradient is not finite.
    """
    return FLOAT16_LOSS_SCALE if low == torch.float16 else 1.0


def allow_tf32(allowed: bool) -> None:
    """Lets float32 matrix products and convolutions on GPUs use TF32, or forbids both. cuDNN's own default differs."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


@contextmanager
def exact_float32() -> Iterator[None]:
    """Keeps float32 exact inside the block, whatever the precision of training."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    allow_tf32(False)
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before
