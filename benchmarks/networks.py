"""Times the networks of presets: `python -m benchmarks.networks --preset=tiny`.

With several presets, `--preset=cgs512,gsgan-ffhq512 --only="forward and backward"`, the times per million splats
compare them. Cases take turns, and the least time of each counts, so that other work on the machine disturbs all alike.
On a busy machine look at the processor time, with --threads=1. `--parts` says what of it parts of a generator take.
"""

from __future__ import annotations

import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import now
from benchmarks.training_step import FFHQ
from gaussian import Cameras
from gaussian.scene import Scene
from torch_utils import memory
from torch_utils import precision as precisions
from training import presets
from training.families import family
from training.families.base import Discriminator, Generator


def interleaved_minima(
    cases: dict[str, Callable[[], None]], rounds: int, device: str
) -> dict[str, tuple[float, float]]:
    """Returns the least (wall, processor) seconds per case over `rounds` rounds; one round before is not counted."""
    least = dict.fromkeys(cases, (float("inf"), float("inf")))
    for i in range(rounds + 1):
        for name, run in cases.items():
            wall, processor = now(device), time.process_time()
            run()
            spent = now(device) - wall, time.process_time() - processor
            if i:
                least[name] = min(least[name][0], spent[0]), min(least[name][1], spent[1])
    return least


def discriminator_cases(D: Discriminator, size: int, batch: int, device: str) -> dict[str, Callable[[], None]]:
    """Returns what training asks of D for images of `size` px: D's gradient, the images', and R1's double backward."""
    images = torch.randn(batch, 3, size, size, device=device).clamp(-1, 1)
    labels = torch.randn(batch, 25, device=device)
    parameters = list(D.parameters())

    def weights() -> None:
        torch.autograd.grad(D(images, labels).sum(), parameters, allow_unused=True)

    def inputs() -> None:
        x = images.requires_grad_()
        D.requires_grad_(False)
        torch.autograd.grad(D(x, labels).sum(), x)
        D.requires_grad_(True)

    def r1() -> None:
        x = images[: batch // 2].requires_grad_()
        (gradient,) = torch.autograd.grad(D(x, labels[: batch // 2]).sum(), x, create_graph=True)
        torch.autograd.grad(gradient.square().sum(), parameters, allow_unused=True)

    half = batch // 2
    return {f"D, {batch} images, weights": weights, f"D, {batch} images, inputs": inputs, f"D, R1 of {half}": r1}


def generator_cases(G: Generator, batch: int, device: str) -> dict[str, Callable[[], None]]:
    """Returns what training asks of G without the rendering: latents to scenes, and back from a loss on the scenes."""
    z = torch.randn(batch, G.z_dim, device=device)
    cameras = FFHQ.frontal().to(device).expand(batch)
    seeds: list[Tensor] = []

    def forward() -> None:
        with torch.no_grad():
            G.synthesis(G.mapping(z, cameras))

    def backward() -> None:
        outputs = learning_tensors(G.synthesis(G.mapping(z, cameras)))
        if not seeds:
            seeds.extend(torch.randn_like(output) for output in outputs)
        torch.autograd.backward(outputs, seeds)

    return {f"G, {batch} scenes, forward": forward, f"G, {batch} scenes, forward and backward": backward}


def learning_tensors(scene: Scene) -> list[Tensor]:
    """Returns the tensors of a scene of any kind that have a gradient."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    scene.map(keep)
    return [tensor for tensor in found if tensor.requires_grad]


def matrix_flop(make: Callable[[Any], Generator], config: Any, batch: int) -> float:
    """Counts the operations of a generator's matrix products and convolutions, forward and backward, and runs none."""
    with torch.device("meta"):
        G = make(config)
        z, cameras = torch.zeros(batch, G.z_dim), Cameras.from_labels(torch.zeros(batch, 25))
    with FlopCounterMode(display=False) as counter:
        outputs = learning_tensors(G.synthesis(G.mapping(z, cameras)))
        torch.autograd.backward(outputs, [torch.empty_like(output) for output in outputs])
    return float(counter.get_total_flops())


def parts_of(network: nn.Module) -> Iterator[nn.Module]:
    """Yields the parts of a network: what is no container and holds no more than half of all parameters."""

    def size(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    def below(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            whole = isinstance(child, nn.ModuleList | nn.ModuleDict) or 2 * size(child) > size(network)
            yield from below(child) if whole and any(child.children()) else [child]

    return below(network)


def part_times(network: nn.Module, run: Callable[[], None]) -> tuple[float, dict[str, float]]:
    """Returns the processor seconds of `run`, and those that the parts of a network take in it, by their classes.

    Forward and backward; what is in no part, such as functions between them, is left over, and so is the way back
    through a part that returns a list. Autograd must keep to one thread.
    """
    spent: dict[str, float] = defaultdict(float)
    begun: dict[tuple[nn.Module, str], float] = {}
    hooks = []

    def begin(way: str) -> Callable[..., None]:
        return lambda module, *_: begun.__setitem__((module, way), time.process_time())

    def end(way: str) -> Callable[..., None]:
        def add(module: nn.Module, *_: Any) -> None:
            spent[type(module).__name__] += time.process_time() - begun.pop((module, way))

        return add

    for part in parts_of(network):
        hooks.append(part.register_forward_pre_hook(begin("forward")))
        hooks.append(part.register_forward_hook(end("forward")))
        hooks.append(part.register_full_backward_pre_hook(begin("backward")))
        hooks.append(part.register_full_backward_hook(end("backward")))
    start = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Full backward hook|For backward hooks")
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return time.process_time() - start, dict(spent)


def print_parts(name: str, network: nn.Module, run: Callable[[], None]) -> None:
    """Prints the share of each part in the processor time of `run`."""
    total, spent = part_times(network, run)
    print(f"{name}, parts of {total * 1e3:.0f} ms of processor time:")
    for part, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"    {part:32s} {seconds / total:6.1%}")
    print(f"    {'outside of these':32s} {1 - sum(spent.values()) / total:6.1%}")


@click.command()
@click.option("--preset", default="tiny", show_default=True, help="comma list of " + ", ".join(presets.presets()))
@click.option("--only", default="", help="cases with this in their names, such as G or backward")
@click.option("--precision", default="fp32,auto", show_default=True, help="comma list of auto, fp32, bf16, fp16")
@click.option("--batch", default=16, show_default=True, help="scenes; the discriminator sees twice as many images")
@click.option("--rounds", default=20, show_default=True, help="the least time of so many counts")
@click.option("--threads", type=int, help="CPU threads; by default PyTorch's choice")
@click.option("--parts", is_flag=True, help="also the shares of the parts of G, forward and backward")
@click.option("--device", default="cpu", show_default=True)
def main(
    preset: str, only: str, precision: str, batch: int, rounds: int, threads: int | None, parts: bool, device: str
) -> None:
    """Print milliseconds per case and precision."""
    memory.keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    cases: dict[str, Callable[[], None]] = {}
    networks: dict[str, nn.Module] = {}  # of the cases whose parts can be told
    millions: dict[str, float] = {}  # splats of all scenes of a case
    for name in preset.split(","):
        try:
            config = presets.resolve(name, data="")
        except ValueError as error:
            raise click.ClickException(f"--preset: {error}") from error
        of = family(config.family)
        if parts:
            flop = matrix_flop(of.generator, config.generator, batch) / batch
            numbers = of.generator(config.generator).scene_numbers
            print(f"{name}: matrix products of {flop / 1e9:.1f} GFLOP a scene, {flop / numbers / 1e3:.0f} a million")
        for kind in precision.split(","):
            G, D = of.generator(config.generator).to(device), of.discriminator(config.discriminator).to(device)
            G.low_dtype = D.low_dtype = precisions.resolve(kind, device)
            found = generator_cases(G, batch, device)
            label = str(D.low_dtype or torch.float32).removeprefix("torch.")
            networks |= {f"{name}: {case}, {label}": G for case in found if "backward" in case}
            millions |= {f"{name}: {case}, {label}": batch * G.scene_numbers / 1e6 for case in found}
            found |= discriminator_cases(D, config.resolution, 2 * batch, device)
            cases |= {f"{name}: {case}, {label}": run for case, run in found.items() if only in case}
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {device}")
    for case, (wall, processor) in sorted(interleaved_minima(cases, rounds, device).items()):
        print(f"{case:64s} {wall * 1e3:9.2f} ms, {processor * 1e3:9.2f} ms of processor time", end="")
        splats = millions.get(case)
        print("" if splats is None else f"; a million splats: {wall / splats:.2f} s, {processor / splats:.2f} s of it")
    if parts:
        for case, run in cases.items():
            if case in networks:
                print_parts(case, networks[case], run)


if __name__ == "__main__":
    main()
