"""Chooses the number format of the large convolutions and matrix products."""

from pathlib import Path

import torch

PRECISIONS = ("auto", "fp32", "bf16", "fp16")

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


def resolve(precision: str, device: torch.device | str) -> torch.dtype | None:
    """Returns the low-precision type for convolution blocks and large matrix products, or None for float32.

    precision: "fp32", "bf16", "fp16", or "auto": float16 on CUDA, bfloat16 on processors that have it in hardware,
        float32 elsewhere.
    Raises ValueError for an unknown name, and for fp16 on a CPU, where it is slower than float32 and overflows.
    """
    kind = torch.device(device).type
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} is unknown; legal are {', '.join(PRECISIONS)}")
    if precision == "fp16" and kind == "cpu":
        raise ValueError("precision='fp16' needs a GPU; on device 'cpu' use auto, bf16 or fp32")
    if precision == "auto":
        if kind == "cuda":
            return torch.float16
        return torch.bfloat16 if kind == "cpu" and cpu_has_bfloat16() else None
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
