"""Holds the parts of benchmarks/gpu.py that time single operations: machine, kernels, rasteriser."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import rasterizer
from benchmarks.gpu import Job
from torch_utils import foreach, ops, triton_ops

BUILD_ALONE = "from gaussian import backend_gsplat; print(backend_gsplat.reason() or 'gsplat is built')"


def milliseconds(run: Callable[[], Any], job: Job, rounds: int = 20) -> float:
    """Returns the mean time of a call: by events on a GPU, where calls follow one another without a wait."""
    if job.device == "cpu":
        run()
        begun = time.perf_counter()
        run()
        return (time.perf_counter() - begun) * 1e3
    for _ in range(3):
        run()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(rounds):
        run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / rounds


# ---------------------------------------------------------------- machine


def machine(job: Job) -> None:
    """States what there is, and the two ceilings."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    for name in ("triton", "gsplat", "numpy", "pytest"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    card = "no GPU"
    if job.device == "cuda":
        card = torch.cuda.get_device_name()
        free, total = torch.cuda.mem_get_info()
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
        driver = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"],
            capture_output=True,
            text=True,
        ).stdout.strip()
        card += f", capability {capability}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free, driver {driver}"
    said = ", ".join(f"{name} {version}" for name, version in versions.items())
    job.say(f"{card}; {os.cpu_count()} cores; {said}", card=card, **versions)
    job.say(f"triton kernels: {triton_ops.reason() or 'ready'}")
    job.attempt("ceilings", _ceilings, job)
    if job.device == "cuda":
        job.attempt("gsplat", _first_splat, job)


def _ceilings(job: Job) -> None:
    numbers, size = (2**20, 256) if job.small else (2**29, 8192)
    a = torch.ones(numbers, dtype=torch.bfloat16, device=job.device)
    b = torch.empty_like(a)
    copy = milliseconds(lambda: b.copy_(a), job)
    x, y = (torch.randn(size, size, device=job.device).bfloat16() for _ in range(2))
    product = milliseconds(lambda: x @ y, job)
    bandwidth, rate = 2 * a.nbytes / copy / 1e9, 2 * size**3 / product / 1e9
    text = f"copy {bandwidth:.3f} TB/s; bf16 product of {size}^3 {rate:.1f} TFLOP/s"
    job.say(text, copy_tb_s=bandwidth, bf16_tflop_s=rate)


def _first_splat(job: Job) -> None:
    """Draws a splat with the library that was carried; without it starts to build one, and does not wait for it."""
    if importlib.util.find_spec("gsplat") is None:
        return job.say("gsplat is not installed: everything is rendered by the PyTorch back end", gsplat=False)
    try:
        importlib.import_module("gsplat.csrc")
    except ImportError as error:
        with open(job.out / "log.txt", "ab") as log:  # it outlives this part, in a session of its own
            subprocess.Popen([sys.executable, "-c", BUILD_ALONE], stdout=log, stderr=log, start_new_session=True)
        return job.say(f"gsplat has no library that loads here ({error}); it is being built beside", gsplat=False)
    from gaussian import backend_gsplat

    begun = time.monotonic()
    reason = backend_gsplat.reason()
    job.say(reason or f"gsplat draws its first splat after {time.monotonic() - begun:.1f} s", gsplat=not reason)


# ---------------------------------------------------------------- kernels


def kernels(job: Job) -> None:
    """Times every operation of a step that is not a network by itself."""
    images, size = (1, 16) if job.small else (32, 512)
    dtypes = (torch.float32,) if job.device == "cpu" else (torch.bfloat16, torch.float16)
    for dtype in dtypes:
        for layout in (torch.channels_last, torch.contiguous_format):
            x = torch.randn(images, 64 if not job.small else 4, size, size, device=job.device).to(dtype)
            job.attempt("filters", _filters, job, x.contiguous(memory_format=layout))
            if layout == torch.channels_last:
                job.attempt("activation", _activation, job, x.contiguous(memory_format=layout))
    for channels, pixels in ((4, 16),) if job.small else ((64, 512), (128, 256), (256, 128)):
        job.attempt("convolution", _convolution, job, channels, pixels, images, dtypes[0])
    job.attempt("attention", _attention, job, dtypes[0])
    job.attempt("lists of tensors", _lists, job)


def _name(x: Tensor) -> str:
    layout = "channels last" if x.is_contiguous(memory_format=torch.channels_last) else "contiguous"
    return f"{str(x.dtype).removeprefix('torch.')} {layout}"


def _compare(job: Job, name: str, x: Tensor, cases: dict[str, Callable[[], Tensor]], moved: int) -> None:
    """Times cases that compute the same, with GB/s of `moved` bytes and the largest difference to the first."""
    twin = next(iter(cases.values()))().float()
    parts: list[str] = []
    figures: dict[str, dict[str, float]] = {}
    for case, run in cases.items():
        difference = float((run().float() - twin).abs().max())
        spent = milliseconds(run, job)
        parts.append(
            f"{case} {spent:.2f} ms {moved / spent / 1e6:.0f} GB/s" + (f" +-{difference:.0e}" if parts else "")
        )
        figures[case] = {"ms": spent, "gb_s": moved / spent / 1e6, "difference": difference}
    job.say(f"{name}, {list(x.shape)} {_name(x)}: {'; '.join(parts)}", figures=figures)


def _triton(job: Job, run: Callable[[], Tensor]) -> dict[str, Callable[[], Tensor]]:
    return {"Triton": run} if job.device == "cuda" and triton_ops.reason() == "" else {}


@contextlib.contextmanager
def _without_cudnn() -> Iterator[None]:
    with torch.backends.cudnn.flags(enabled=False):
        yield


def _filters(job: Job, x: Tensor) -> None:
    def native() -> Tensor:
        with _without_cudnn():
            return ops._depthwise_fir(x, 2, 1)

    moved = 2 * x.nbytes
    cases = {"cuDNN": lambda: ops._depthwise_fir(x, 2, 1), "native": native}
    _compare(job, "blur", x, cases | _triton(job, lambda: torch.ops.splatgan.fir(x, 2, 1)), moved)
    cases = {"cuDNN": lambda: ops._depthwise_fir(x, 1, 2)}
    _compare(job, "downsample", x, cases | _triton(job, lambda: torch.ops.splatgan.fir(x, 1, 2)), moved * 5 // 8)
    small = F.avg_pool2d(x, 2)
    cases = {"interpolate": lambda: ops.downsample_transpose_reference(small)}
    run = _triton(job, lambda: torch.ops.splatgan.fir_transpose(small))
    _compare(job, "downsample's transpose", x, cases | run, moved * 5 // 8)


def _activation(job: Job, x: Tensor) -> None:
    bias = torch.randn(x.shape[1], device=x.device, dtype=x.dtype)
    y, clamp = F.hardtanh(F.leaky_relu(x, 0.2), -1, 1), 1.0

    def eager() -> Tensor:
        return F.hardtanh(F.leaky_relu_(x + bias[:, None, None], 0.2), -clamp, clamp)

    def fused() -> Tensor:
        z = x.clone()
        torch.ops.splatgan.lrelu_clamp_(z, bias, 0.2, clamp)
        return z

    _compare(job, "bias, lrelu, clamp (Triton's with a copy)", x, {"eager": eager} | _triton(job, fused), 2 * x.nbytes)
    slope = torch.where(y > 0, 1.0, 0.2).to(x.dtype)
    cases = {"eager": lambda: torch.where(y.abs() >= clamp, 0, x * slope)}
    run = _triton(job, lambda: torch.ops.splatgan.lrelu_clamp_grad(x, y, 0.2, clamp))
    _compare(job, "its backward", x, cases | run, 3 * x.nbytes)


def _convolution(job: Job, channels: int, pixels: int, images: int, dtype: torch.dtype) -> None:
    torch.backends.cudnn.benchmark = True
    x = torch.randn(images, channels, pixels, pixels, device=job.device).to(dtype, memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3, device=job.device).to(dtype)
    x.requires_grad_()
    weight.requires_grad_()
    y = F.conv2d(x, weight, padding=1)
    forward = milliseconds(lambda: F.conv2d(x.detach(), weight.detach(), padding=1), job)
    both = milliseconds(lambda: torch.autograd.grad(F.conv2d(x, weight, padding=1), (x, weight), y.detach()), job)
    flops = 2 * images * pixels**2 * channels**2 * 9
    rates = flops / forward / 1e9, 3 * flops / both / 1e9
    kept = y.is_contiguous(memory_format=torch.channels_last)
    text = f"3x3 of {channels} channels at {pixels} px: forward {forward:.2f} ms {rates[0]:.0f} TFLOP/s, and backward "
    text += f"{both:.2f} ms {rates[1]:.0f} TFLOP/s; result {'channels last' if kept else 'CONTIGUOUS'}"
    job.say(text, forward_ms=forward, both_ms=both, tflop_s=rates)


def _attention(job: Job, dtype: torch.dtype) -> None:
    shape = (2, 2, 16, 8) if job.small else (32, 8, 512, 64)
    q, k, v = (torch.randn(shape, device=job.device).to(dtype).requires_grad_() for _ in range(3))
    run = F.scaled_dot_product_attention
    both = milliseconds(lambda: torch.autograd.grad(run(q, k, v).sum(), (q, k, v)), job)
    job.say(f"attention {list(shape)}, forward and backward: {both:.3f} ms", ms=both)


def _lists(job: Job) -> None:
    """Times what works on all weights of a network of the published discriminator's size."""
    count, width = (5, 16) if job.small else (40, 512)
    weights = [torch.randn(width, width, 3, 3, device=job.device) for _ in range(count)]
    gains, low = [0.1] * count, [torch.bfloat16] * count
    scaled = milliseconds(lambda: foreach.scale_and_cast(weights, gains, low), job)
    apart = milliseconds(lambda: [(w * 0.1).bfloat16() for w in weights], job)
    parameters = [w.clone().requires_grad_() for w in weights]
    for parameter, grad in zip(parameters, weights, strict=True):
        parameter.grad = grad
    adam = torch.optim.Adam(parameters, fused=True)
    stepped = milliseconds(adam.step, job)
    averaged = milliseconds(lambda: torch._foreach_lerp_(weights, [p.detach() for p in parameters], 0.01), job)
    millions = sum(w.numel() for w in weights) / 1e6
    text = f"{millions:.0f} million numbers: scaled and cast {scaled:.2f} ms (one by one {apart:.2f}), Adam "
    job.say(f"{text}{stepped:.2f} ms, average {averaged:.2f} ms", scaled=scaled, apart=apart, adam=stepped)


# ---------------------------------------------------------------- rasteriser


def rasteriser(job: Job) -> None:
    """Times the renderer, and gsplat's own settings."""
    large = replace(rasterizer.LARGE, name="8x4", scenes=8, views=4)
    case = replace(rasterizer.SMALL, splats=200, pixels=16, scenes=2, views=2) if job.small else large
    leaves = ("means", "log_scales", "quats", "opacity_logits", "sh")
    for varied in (case, replace(case, looped=True)) + (
        () if job.small else (replace(case, pixels=256), replace(case, pixels=1024))
    ):
        job.attempt("render", _render, job, varied)
    if job.device == "cuda" and importlib.util.find_spec("gsplat") is not None:
        scene, cameras = rasterizer.make_scene(case, "cuda"), rasterizer.make_cameras(case, "cuda")
        inputs = [getattr(scene, name).clone().requires_grad_() for name in leaves]
        job.attempt("gsplat's settings", _gsplat_settings, job, case, inputs, cameras)


def _render(job: Job, case: rasterizer.Case) -> None:
    from gaussian import resolve_backend

    backend = resolve_backend("auto", job.device)
    forward, both = rasterizer.runs_of(case, backend, job.device)
    rounds = 2 if case.looped else 5
    one, two = milliseconds(forward, job, rounds), milliseconds(both, job, rounds)
    images = case.scenes * case.views
    how = "one image a call" if case.looped else "one call"
    size = f"{backend}, {images} images of {case.pixels} px, {case.splats:,} splats, {how}"
    text = f"{size}: forward {one:.1f} ms, and backward {two:.1f} ms ({two / images:.2f} an image)"
    job.say(text, forward_ms=one, both_ms=two, pixels=case.pixels, looped=case.looped)


def _both_ways(job: Job, draw: Callable[[], Any], inputs: list[Tensor], seed: Tensor) -> tuple[float, float]:
    """Returns the ms of forward, and of forward and backward."""
    with torch.no_grad():
        forward = milliseconds(draw, job, 5)
    return forward, milliseconds(lambda: torch.autograd.grad(draw()[0], inputs, seed), job, 5)


def _gsplat_settings(job: Job, case: rasterizer.Case, inputs: list[Tensor], cameras: Any) -> None:
    """Calls gsplat itself: tiles of 8 and 16 px, with and without depth."""
    rasterization = importlib.import_module("gsplat").rasterization
    means, log_scales, quats, logits, sh = inputs
    pixels = torch.tensor([[case.pixels], [case.pixels], [1.0]], device="cuda")

    def draw(tile: int, mode: str) -> tuple[Tensor, dict[str, Any]]:
        images, _, found = rasterization(
            means=means,
            quats=quats,
            scales=log_scales.exp(),
            opacities=logits[..., 0].sigmoid(),
            colors=(sh[:, :, 0] * 0.28209479177387814 + 0.5).clamp(min=0),
            viewmats=cameras.world2cam.contiguous(),
            Ks=(cameras.intrinsics * pixels).contiguous(),
            width=case.pixels,
            height=case.pixels,
            near_plane=0.2,
            packed=False,
            render_mode=mode,
            tile_size=tile,
        )
        return images, found

    reference: list[Tensor] = []
    for tile, mode in ((16, "RGB+D"), (16, "RGB"), (8, "RGB")):
        images, found = draw(tile, mode)
        seed = torch.ones_like(images)
        result = [images[..., :3].detach(), *torch.autograd.grad(images, inputs, seed, retain_graph=False)]
        forward, both = _both_ways(job, functools.partial(draw, tile, mode), inputs, seed)
        intersections = next((found[k].numel() for k in ("flatten_ids", "isect_ids") if k in found), 0)
        text = f"gsplat {mode}, tiles of {tile} px: {intersections / 1e6:.2f} million intersections, forward "
        text += f"{forward:.1f} ms, and backward {both:.1f} ms"
        if mode == "RGB":
            errors = [float((a - b).norm() / b.norm()) for a, b in zip(result, reference or result, strict=True)]
            text += (
                f"; images {errors[0]:.0e}, gradients {max(errors[1:]):.0e} from those of 16 px" if reference else ""
            )
            reference = reference or result
        job.say(text, forward_ms=forward, both_ms=both, tile=tile, mode=mode, intersections=intersections)
