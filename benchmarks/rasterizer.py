"""Times the rasterisers that this machine has: `python benchmarks/rasterizer.py --out=rasterizer.json`.

Forward (no gradient) and forward + backward (all of the scene's fields) in ms, beside a 2048x2048x2048 float32 matrix
product on the same device as the yardstick. The cases and the yardstick take turns, and the least time of each counts,
so that other work on the machine disturbs all alike. Prints a table and writes JSON; both name the machine.
"""

from __future__ import annotations

import json
import math
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gaussian import Cameras, Gaussians, render, resolve_backend

YARDSTICK_SIZE = 2048
DISTANCE, FOCAL = 2.7, 4.2647  # of the camera, world units and image sizes: EG3D's FFHQ cameras
BALL_RADIUS = 0.4  # world units, where the splats are


@dataclass(frozen=True)
class Case:
    name: str
    splats: int
    pixels: int  # of the square image's side
    median_scale: float  # world units
    scenes: int = 1
    views: int = 1


CASES = (
    Case("small", 5_440, 64, 0.02),
    Case("medium", 109_056, 256, 0.006),
    Case("large", 240_128, 512, 0.004),
    Case("small, 8x4", 5_440, 64, 0.02, 8, 4),
    Case("small, 16x2", 5_440, 64, 0.02, 16, 2),
)


@dataclass(frozen=True)
class Timing:
    case: str
    backend: str
    forward_ms: float
    both_ms: float  # forward + backward
    yardstick_ms: float
    rounds: int


def make_scene(case: Case, device: str) -> Gaussians:
    """Splats uniform in a ball; log-scales normal(ln s, 0.4), quaternions normal, colours uniform, logits N(-1, 1)."""
    generator = torch.Generator().manual_seed(0)
    shape = (case.scenes, case.splats)

    def normal(width: int) -> torch.Tensor:
        return torch.randn(*shape, width, generator=generator)

    radius = BALL_RADIUS * torch.rand(*shape, 1, generator=generator) ** (1 / 3)
    scene = Gaussians(
        means=radius * F.normalize(normal(3), dim=-1),
        log_scales=math.log(case.median_scale) + 0.4 * normal(3),
        quats=normal(4),
        opacity_logits=normal(1) - 1,
        sh=(torch.rand(*shape, 1, 3, generator=generator) - 0.5) / 0.28209479177387814,
    )
    return scene.to(device)


def make_cameras(case: Case, device: str) -> Cameras:
    """A frontal camera; several are spread over a yaw of +-0.5 rad."""
    count = case.scenes * case.views
    yaw = torch.linspace(-0.5, 0.5, count) if count > 1 else torch.zeros(1)
    position = DISTANCE * torch.stack([yaw.sin(), torch.zeros(count), yaw.cos()], dim=-1)
    intrinsics = torch.tensor([[FOCAL, 0, 0.5], [0, FOCAL, 0.5], [0, 0, 1]])
    cameras = Cameras.look_at(position, (0.0, 0.0, 0.0), intrinsics=intrinsics)
    return cameras.reshape(case.scenes, case.views).to(device)


def runs_of(case: Case, backend: str, device: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """Forward, and forward + backward."""
    scene, cameras = make_scene(case, device), make_cameras(case, device)
    leaves = scene.map(lambda t: t.clone().requires_grad_())
    inputs = [leaves.means, leaves.log_scales, leaves.quats, leaves.opacity_logits, leaves.sh]
    shape = (case.scenes, case.views, 5, case.pixels, case.pixels)
    upstream = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device).split([3, 1, 1], dim=2)
    upstream = [u.contiguous() for u in upstream]

    def forward() -> None:
        with torch.no_grad():
            render(scene, cameras, case.pixels, backend=backend)

    def both() -> None:
        out = render(leaves, cameras, case.pixels, backend=backend)
        torch.autograd.grad([out.rgb, out.alpha, out.depth], inputs, upstream)

    return forward, both


def seconds_of(run: Callable[[], None], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(case: Case, backend: str, device: str, budget: float) -> Timing:
    """Least times over rounds of yardstick, forward, forward + backward that fill `budget` seconds; at least two."""
    a, b = (torch.randn(YARDSTICK_SIZE, YARDSTICK_SIZE, device=device) for _ in range(2))
    runs = (lambda: torch.mm(a, b), *runs_of(case, backend, device))
    least = [math.inf] * len(runs)
    rounds, start = 0, time.perf_counter()
    while rounds < 2 or time.perf_counter() - start < budget:
        least = [min(t, seconds_of(run, device)) for t, run in zip(least, runs, strict=True)]
        rounds += 1
    yardstick, forward, both = (1000 * t for t in least)
    return Timing(case.name, backend, forward, both, yardstick, rounds)


def backends_on(device: str) -> list[str]:
    """The fastest that is there, then the PyTorch one."""
    return list(dict.fromkeys([resolve_backend("auto", device), "torch"]))


def machine() -> dict[str, object]:
    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), processor)
    except OSError:
        pass  # not Linux: what platform says has to do
    return {
        "cpu": processor,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def table_row(case: Case, timing: Timing) -> str:
    size = f"{case.scenes}x{case.views} {case.splats:,} at {case.pixels} px"
    share = timing.both_ms / timing.yardstick_ms
    return (
        f"{timing.backend:7} {size:25} {timing.forward_ms:10.2f} {timing.both_ms:10.2f} "
        f"{timing.both_ms / (case.scenes * case.views):10.2f} {share:10.4f} {timing.yardstick_ms:9.1f}"
    )


@click.command()
@click.option("--out", type=click.Path(dir_okay=False), help="JSON file to write.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: torch's]")
@click.option("--backends", help="Comma-separated.  [default: the fastest of the device, torch]")
@click.option("--cases", help="Comma-separated substrings of case names.  [default: all]")
@click.option("--seconds", default=5.0, show_default=True, help="Time per case and back end.")
def main(
    out: str | None, device: str, threads: int | None, backends: str | None, cases: str | None, seconds: float
) -> None:
    """Times the rasterisers that this machine has."""
    if threads:
        torch.set_num_threads(threads)
    wanted = cases.split(",") if cases else [""]
    chosen = [case for case in CASES if any(part.strip() in case.name for part in wanted)]
    if not chosen:
        raise click.ClickException(f"--cases={cases} fits none of {', '.join(case.name for case in CASES)}")
    facts = machine()
    click.echo(", ".join(f"{key} {value}" for key, value in facts.items() if value is not None))
    columns = f"{'fwd ms':>10} {'fwd+bwd':>10} {'per image':>10} {'/ mm':>10} {'mm ms':>9}"
    click.echo(f"{'':7} {'scenes x views, splats':25} {columns}")
    results = []
    for backend in backends.split(",") if backends else backends_on(device):
        for case in chosen:
            timing = measure(case, backend, device, seconds)
            click.echo(table_row(case, timing))
            results.append(asdict(case) | asdict(timing))
    if out:
        Path(out).write_text(json.dumps({"machine": facts, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
