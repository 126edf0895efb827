"""Times the networks of a preset: `python benchmarks/networks.py --preset=tiny`.

Cases take turns, and the least time of each counts, so that other work on the machine disturbs all alike. On a busy
machine look at the processor time, with --threads=1.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torch_utils import memory
from torch_utils import precision as precisions
from training import presets
from training.families.cgs.generator import Generator
from training.networks.discriminator import Discriminator


def interleaved_minima(cases: dict[str, Callable[[], None]], rounds: int) -> dict[str, tuple[float, float]]:
    """Least (wall, processor) seconds per case over `rounds` rounds; one round before is not counted."""
    least = dict.fromkeys(cases, (float("inf"), float("inf")))
    for i in range(rounds + 1):
        for name, run in cases.items():
            wall, processor = time.perf_counter(), time.process_time()
            run()
            spent = time.perf_counter() - wall, time.process_time() - processor
            if i:
                least[name] = min(least[name][0], spent[0]), min(least[name][1], spent[1])
    return least


def discriminator_cases(D: Discriminator, batch: int, device: str) -> dict[str, Callable[[], None]]:
    """Training of D, the gradient that G receives, and the double backward of R1."""
    size = D.config.resolution
    images = torch.randn(batch, 3, size, size, device=device).clamp(-1, 1)
    labels = torch.randn(batch, 25, device=device)
    parameters = [p for n, p in D.named_parameters() if not n.startswith("b8_pose")]

    def weights() -> None:
        torch.autograd.grad(D(images, labels).sum(), parameters)

    def inputs() -> None:
        x = images.requires_grad_()
        for p in parameters:
            p.requires_grad_(False)
        torch.autograd.grad(D(x, labels).sum(), x)
        for p in parameters:
            p.requires_grad_(True)

    def r1() -> None:
        x = images[: batch // 2].requires_grad_()
        (gradient,) = torch.autograd.grad(D(x, labels[: batch // 2]).sum(), x, create_graph=True)
        torch.autograd.grad(gradient.square().sum(), parameters, allow_unused=True)

    half = batch // 2
    return {f"D, {batch} images, weights": weights, f"D, {batch} images, inputs": inputs, f"D, R1 of {half}": r1}


def generator_cases(G: Generator, batch: int, device: str) -> dict[str, Callable[[], None]]:
    """Latents to splats, and back from a loss on the splats."""
    z = torch.randn(batch, G.z_dim, device=device)
    seeds: list[torch.Tensor] = []

    def forward() -> None:
        with torch.no_grad():
            G.synthesis(G.mapping(z))

    def backward() -> None:
        scene = G.synthesis(G.mapping(z))
        outputs = [scene.means, scene.log_scales, scene.quats, scene.opacity_logits, scene.sh]
        if not seeds:
            seeds.extend(torch.randn(t.shape, device=device) for t in outputs)
        torch.autograd.backward(outputs, seeds)

    return {f"G, {batch} scenes, forward": forward, f"G, {batch} scenes, forward and backward": backward}


@click.command()
@click.option("--preset", default="tiny", show_default=True, help="; ".join(presets.PRESETS))
@click.option("--precision", default="fp32,auto", show_default=True, help="comma list of auto, fp32, bf16, fp16")
@click.option("--batch", default=16, show_default=True, help="scenes; the discriminator sees twice as many images")
@click.option("--rounds", default=20, show_default=True, help="the least time of so many counts")
@click.option("--threads", type=int, help="CPU threads; by default PyTorch's choice")
@click.option("--device", default="cpu", show_default=True)
def main(preset: str, precision: str, batch: int, rounds: int, threads: int | None, device: str) -> None:
    """Print milliseconds per case and precision."""
    memory.keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    config = presets.resolve(preset, data="")
    cases: dict[str, Callable[[], None]] = {}
    for name in precision.split(","):
        G, D = Generator(config.generator).to(device), Discriminator(config.discriminator).to(device)
        G.low_dtype = D.low_dtype = precisions.resolve(name, device)
        found = discriminator_cases(D, 2 * batch, device) | generator_cases(G, batch, device)
        label = str(D.low_dtype or torch.float32).removeprefix("torch.")
        cases |= {f"{case}, {label}": _synchronised(run, device) for case, run in found.items()}
    print(f"preset {preset}, {torch.get_num_threads()} threads, torch {torch.__version__}, {device}")
    for case, (wall, processor) in sorted(interleaved_minima(cases, rounds).items()):
        print(f"{case:48s} {wall * 1e3:9.2f} ms, {processor * 1e3:9.2f} ms of processor time")


def _synchronised(run: Callable[[], None], device: str) -> Callable[[], None]:
    if not device.startswith("cuda"):
        return run

    def wrapped() -> None:
        run()
        torch.cuda.synchronize()

    return wrapped


if __name__ == "__main__":
    main()
