"""Times the networks of presets: `python -m benchmarks.networks --preset=tiny`.

With several presets, `--preset=cgs512,gsgan-ffhq512 --only=backward`, the time per million splats compares them. Cases
take turns, and the least time of each counts, so that other work on the machine disturbs all alike. On a busy
machine look at the processor time, with --threads=1.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import click
import torch
from torch import Tensor

from benchmarks.machine import now
from benchmarks.training_step import FFHQ
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


@click.command()
@click.option("--preset", default="tiny", show_default=True, help="comma list of " + ", ".join(presets.presets()))
@click.option("--only", default="", help="cases with this in their names, such as G or backward")
@click.option("--precision", default="fp32,auto", show_default=True, help="comma list of auto, fp32, bf16, fp16")
@click.option("--batch", default=16, show_default=True, help="scenes; the discriminator sees twice as many images")
@click.option("--rounds", default=20, show_default=True, help="the least time of so many counts")
@click.option("--threads", type=int, help="CPU threads; by default PyTorch's choice")
@click.option("--device", default="cpu", show_default=True)
def main(preset: str, only: str, precision: str, batch: int, rounds: int, threads: int | None, device: str) -> None:
    """Print milliseconds per case and precision."""
    memory.keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    cases: dict[str, Callable[[], None]] = {}
    millions: dict[str, float] = {}  # splats of all scenes of a case
    for name in preset.split(","):
        try:
            config = presets.resolve(name, data="")
        except ValueError as error:
            raise click.ClickException(f"--preset: {error}") from error
        of = family(config.family)
        for kind in precision.split(","):
            G, D = of.generator(config.generator).to(device), of.discriminator(config.discriminator).to(device)
            G.low_dtype = D.low_dtype = precisions.resolve(kind, device)
            found = generator_cases(G, batch, device)
            label = str(D.low_dtype or torch.float32).removeprefix("torch.")
            millions |= {f"{name}: {case}, {label}": batch * G.scene_numbers / 1e6 for case in found}
            found |= discriminator_cases(D, config.resolution, 2 * batch, device)
            cases |= {f"{name}: {case}, {label}": run for case, run in found.items() if only in case}
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {device}")
    for case, (wall, processor) in sorted(interleaved_minima(cases, rounds, device).items()):
        each = f", {wall / millions[case]:6.2f} s for a million splats" if case in millions else ""
        print(f"{case:64s} {wall * 1e3:9.2f} ms, {processor * 1e3:9.2f} ms of processor time{each}")


if __name__ == "__main__":
    main()
