"""Counts a training step's kernels, memory traffic and peak memory on PyTorch's meta device, where nothing is computed.

    python -m benchmarks.counts --preset=cgs512 --batch-gpu=32 --precision=bf16
    python -m benchmarks.counts --preset=cgs512 --batch-gpu=8 --published

A whole step runs without a GPU, for any size that a GPU could hold, in seconds: the renderer is a stub that reads the
scene and writes images, Adam one that does nothing. Counted is every operator that is no view and no allocation, and of
each the bytes of its inputs and outputs. The operators of torch_utils/triton_ops.py count as on CUDA, and those on
lists of tensors as the launches that 320 blocks of 65,536 numbers allow. What remains: a GPU runs a few kernels more
inside an operator (a convolution's backward, attention), which this does not see.

The peak is of all tensors that live at once, networks and Adam's moments among them, and of what gsplat keeps of each
splat and pixel of a view. Lists of the splats of each tile, and the libraries' work space, are not in it: docs/gpu.md
has it beside what a GPU used.
"""

from __future__ import annotations

import contextlib
import copy
import math
import weakref
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from unittest import mock

import click
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.published_loop import as_published
from benchmarks.training_step import FFHQ, ITEMS, random_batch
from gaussian import Rendering
from torch_utils.training_stats import Collector
from training import checkpoint, presets
from training.config import TrainingConfig
from training.families import adversarial, family
from training.families.base import Phase
from training.samples import MicroBatch, SampleStream
from training.step import GanStep

META = torch.device("meta")
LOW_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
FREE = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "detach", "_unsafe_view", "alias")
BLOCKS, BLOCK_NUMBERS = 320, 65536  # of one launch of PyTorch's kernels on lists of tensors
ALLOCATED = 512  # bytes: CUDA's allocator gives multiples
SPLAT_BYTES, PIXEL_BYTES = 44, 8  # that gsplat 1.5.3 keeps of each splat and each pixel of a view, besides the image
SPLAT_GRADIENT_BYTES = 36  # that its backward makes of each splat of a view on the way


@dataclass
class Count:
    """Holds what a part of a step launches and moves."""

    kernels: int = 0
    bytes: int = 0
    peak: int = 0  # bytes of everything that lives at once
    by_name: Counter[str] = field(default_factory=Counter)  # kernels of each operator
    bytes_by_name: Counter[str] = field(default_factory=Counter)


class Counting(TorchDispatchMode):
    """Counts the operators that run inside it, and what lives, under the name of the part of the step under way."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: defaultdict[str, Count] = defaultdict(Count)
        self.part = "rest"
        self.living: dict[int, int] = {}  # bytes of each storage
        self.lives = 0  # bytes of all

    def hold(self, x: Tensor) -> None:
        """Counts what a tensor lies in among what lives, for as long as anything lies there."""
        storage = x.untyped_storage()
        key = storage._cdata
        if x.device == META and key not in self.living:
            self.living[key] = math.ceil(storage.nbytes() / ALLOCATED) * ALLOCATED
            self.lives += self.living[key]
            weakref.finalize(storage, self._freed, key).atexit = False

    def _freed(self, key: int) -> None:
        self.lives -= self.living.pop(key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operator and counts it."""
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                self.hold(x)
        self.parts[self.part].peak = max(self.parts[self.part].peak, self.lives)
        name = func.name().partition("::")[2].partition(".")[0]
        if not _is_view(func) and name not in FREE:
            read = _read(name, args)
            tensors = [t for t in tree_leaves((read, kwargs, result)) if isinstance(t, Tensor) and t.device == META]
            if tensors:
                part = self.parts[self.part]
                launches, moved = _launches(name, args), sum(_stored_bytes(t) for t in tensors)
                part.kernels += launches
                part.bytes += moved
                part.by_name[name] += launches
                part.bytes_by_name[name] += moved
        return result

    @contextlib.contextmanager
    def named(self, part: str) -> Iterator[None]:
        """Counts under another name inside the block."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before


def _is_view(func: Any) -> bool:
    infos = [value.alias_info for value in func._schema.returns]
    return bool(infos) and any(info is not None and not info.is_write for info in infos)


def _read(name: str, args: Sequence[Any]) -> Sequence[Any]:
    """Returns the arguments that an operator reads: a gradient of the input alone needs no input, and so on."""
    if name == "convolution_backward":
        grad, x, weight, *_, (to_input, to_weight, _bias) = args
        return [grad, x if to_weight else None, weight if to_input else None]
    return args


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attends as on CUDA: one kernel, in place of the eleven that PyTorch takes where it knows no better."""
    if q.dtype == torch.float32:
        out: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, q.requires_grad)[0]
        return out
    out = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
    return out


def _launches(name: str, args: Sequence[Any]) -> int:
    if not name.startswith("_foreach"):
        return 1
    blocks = sum(math.ceil(t.numel() / BLOCK_NUMBERS) for t in args[0])
    return max(math.ceil(blocks / BLOCKS), 1)


def _stored_bytes(x: Tensor) -> int:
    """Returns the bytes that a tensor's numbers take in memory: an expanded one is read once."""
    shared = math.prod(size for size, stride in zip(x.shape, x.stride(), strict=True) if stride == 0)
    return x.numel() // max(shared, 1) * x.element_size()


class CountedStep(GanStep):
    """Counts every phase under its name."""

    counting: Counting

    def accumulate(self, phase: Phase, nimg: int, micro_batches: Sequence[MicroBatch]) -> None:
        """Does what GanStep does."""
        with self.counting.named(phase.name):
            super().accumulate(phase, nimg, micro_batches)


class StillAdam(torch.optim.Adam):
    """Steps nowhere: the fused step does not run on the meta device."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Does nothing."""


def _still_adam(module: nn.Module, lr: float, betas: tuple[float, float]) -> torch.optim.Adam:
    optimizer = StillAdam(module.parameters(), lr=lr, betas=betas)
    optimizer.defaults["fused"] = True
    return optimizer


class StubRender(torch.autograd.Function):
    """Reads all fields of the scenes and writes images, channels last as gsplat does; and back."""

    @staticmethod
    def forward(ctx: Any, shape: tuple[int, ...], splats: int, *fields: Tensor) -> Tensor:
        batch, views, channels, *size = shape
        splats, pixels = batch * views * splats, batch * views * math.prod(size)
        kept = fields[0].new_empty(splats * SPLAT_BYTES + pixels * PIXEL_BYTES, dtype=torch.uint8)
        ctx.save_for_backward(kept, *fields)
        ctx.splats = splats
        return fields[0].new_empty(batch, views, *size, channels).movedim(-1, 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        _, *fields = ctx.saved_tensors
        _on_the_way = grad.new_empty(ctx.splats * SPLAT_GRADIENT_BYTES, dtype=torch.uint8)
        return None, None, *(torch.empty_like(t) for t in fields)


def _stub_render(
    splats: int, scene: Any, cameras: Any, resolution: int, background: Any = None, at: Any = None
) -> Rendering:
    fields: list[Tensor] = []

    def collect(values: Tensor) -> Tensor:
        fields.append(values)
        return values

    scene.map(collect)
    shape = (*cameras.shape, 3, resolution, resolution)
    rgb = StubRender.apply(shape, splats, *(t.float() for t in fields if t.is_floating_point()))
    return Rendering(rgb=rgb, alpha=rgb[:, :, :1], depth=rgb[:, :, :1])


def make_step(config: TrainingConfig, precision: str) -> CountedStep:
    """Builds the step of a configuration on the meta device. Raises ValueError for scenes that are no splats."""
    of = family(config.family)
    labels = FFHQ.orbit(torch.linspace(-0.8, 0.8, ITEMS)).labels
    with META:
        G, D = of.generator(config.generator), of.discriminator(config.discriminator)
    if not G.makes_splats:
        raise ValueError(
            f"--preset={config.preset}: a network is asked while its scenes are drawn, which a stub does not count; "
            "legal are presets whose scenes are splats"
        )
    G.info = checkpoint.run_info(config, FFHQ, labels)
    G.render = partial(_stub_render, G.scene_numbers)  # type: ignore[method-assign,assignment]
    if hasattr(G, "render_uv"):  # GGHead's second rendering
        G.render_uv = lambda scene, cameras, size, opaque=False: G.render(scene, cameras, size).rgb  # type: ignore[assignment]
    D.low_dtype = LOW_DTYPES[precision]
    G.low_dtype = D.low_dtype if D.low_dtype == torch.bfloat16 else None
    with mock.patch.object(adversarial, "_adam", _still_adam):
        objective = of.objective(config, G, D)
    averages = {name: copy.deepcopy(G).eval() for name in objective.averages()}
    for network in (G, D, *averages.values()):
        network.requires_grad_(False)
    return CountedStep(config, G, objective, averages, Collector())


def count_step(config: TrainingConfig, precision: str, nimg: int, published: bool = False) -> dict[str, Count]:
    """Returns what each phase of a step launches, moves and holds; the rest of it under "rest", R1 as one whole.

    published: of the published loop, see `published_loop.as_published`.
    """
    step = make_step(config, precision)
    if published:
        as_published(step, config.batch_gpu)
    run(step, config, nimg)
    return dict(step.counting.parts)


def run(step: CountedStep, config: TrainingConfig, nimg: int) -> None:
    """Runs a step of all phases after `nimg` images, and counts it."""
    labels = FFHQ.orbit(torch.linspace(-0.8, 0.8, ITEMS)).labels
    stream = SampleStream(config, labels, step.G.z_dim, META)
    micro_batches = stream.micro_batches(nimg, random_batch(config, labels))
    step.counting = Counting()
    trained = {network for network, _ in step.optimized().values()}
    for network in (*trained, *step.averaged.values()):
        for x in (*network.parameters(), *network.buffers()):
            step.counting.hold(x)
    step.counting.lives += sum(2 * p.nbytes for network in trained for p in network.parameters())  # Adam's moments
    with step.counting, mock.patch.object(nn.functional, "scaled_dot_product_attention", _attention):
        step.run(0, nimg, micro_batches)


def per_step(config: TrainingConfig, parts: dict[str, Count]) -> tuple[float, float]:
    """Returns kernels and bytes of an average step: a lazy penalty counts with its share."""
    interval = getattr(config.objective, "r1_interval", 1)
    shares = {name: 1 / interval if name in ("R1", "R2") else 1.0 for name in parts}
    kernels = sum(count.kernels * shares[name] for name, count in parts.items())
    return kernels, sum(count.bytes * shares[name] for name, count in parts.items())


@click.command()
@click.option("--preset", default="cgs512", show_default=True)
@click.option("--batch", type=int, help="default: the preset's")
@click.option("--batch-gpu", type=int, help="default: the preset's")
@click.option("--precision", type=click.Choice(list(LOW_DTYPES)), help="default: bf16")
@click.option("--nimg", default=1_000_000, show_default=True, help="images seen before: the blur of the start is over")
@click.option("--judged-at-once", type=int, help="images that D judges at once while G learns; default: the preset's")
@click.option("--published", is_flag=True, help="of the published loop of CGS-GAN on our kernels, in float16")
@click.option("--top", default=0, show_default=True, help="also list that many operators of each phase")
@click.option("--by-bytes", is_flag=True, help="order them by bytes")
def main(
    preset: str,
    batch: int | None,
    batch_gpu: int | None,
    precision: str | None,
    nimg: int,
    judged_at_once: int | None,
    published: bool,
    top: int,
    by_bytes: bool,
) -> None:
    """Print kernels, bytes and the peak memory of a training step."""
    if published and (precision or judged_at_once is not None):
        raise click.UsageError("--published is in float16 and calls D for each view: leave the other two options out")
    precision = "fp16" if published else precision or "bf16"
    try:
        config = presets.resolve(preset, data="")
        config = replace(config, batch=batch or config.batch, batch_gpu=batch_gpu or config.batch_gpu, stages=())
        if judged_at_once is not None:
            config = replace(config, objective=config.objective.changed(judged_at_once=judged_at_once))
        config.check()
        if published and config.family != "cgs":
            raise ValueError(f"--published is the loop of CGS-GAN; --preset={preset} is of {config.family}")
        parts = count_step(config, precision, nimg, published)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    kernels, moved = per_step(config, parts)
    loop = ", the published loop" if published else ""
    print(f"{preset}, batch {config.batch}, {config.batch_gpu} at a time, {precision}{loop}")
    for name, count in parts.items():
        print(f"{name:6} {count.kernels:7,} kernels {count.bytes / 1e9:8.1f} GB, peak {count.peak / 2**30:5.1f} GiB")
        for operator, _ in (count.bytes_by_name if by_bytes else count.by_name).most_common(top):
            print(f"       {count.by_name[operator]:7,} {count.bytes_by_name[operator] / 1e9:16.1f}    {operator}")
    peak = max(count.peak for count in parts.values())
    print(f"a step {kernels:7,.0f} kernels {moved / 1e9:8.1f} GB, peak {peak / 2**30:5.1f} GiB")


if __name__ == "__main__":
    main()
