"""Times the drawing of surfaces that latents ask for, by native code and by tensors, in turns: medians and ratios.

    python -m benchmarks.meshes

16 procedural heads, each from its own camera, as a step of cgs-control-tiny draws them: 64 px, and with 2 x 2 rays a
pixel 128. Processor seconds, so that other work disturbs less.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from unittest import mock

import click
import torch

from benchmarks import machine
from training.data.synthetic.synthesize import sample_cameras
from training.morphable import native_mesh
from training.morphable.head import procedural_head
from training.morphable.rasterize import rasterize

HEADS, ROUNDS = 16, 15


@click.command(help=__doc__.split("\n")[0])
def main() -> None:
    torch.set_num_threads(1)
    model, cameras = procedural_head(), sample_cameras(0, range(HEADS))
    torch.manual_seed(0)
    sizes = model.sizes
    shapes = (model.coefficients(name, torch.randn(HEADS, sizes[name])) for name in ("identity", "expression"))
    vertices = model.vertices(*shapes)
    print(machine.in_one_line())
    for pixels in (64, 128):
        times: dict[str, list[float]] = {"native": [], "tensors": []}
        for _ in range(ROUNDS):
            for name in times:
                with contextlib.ExitStack() as stack:
                    if name == "tensors":
                        stack.enter_context(mock.patch.object(native_mesh, "usable", lambda xy: False))
                    start = time.process_time()
                    rasterize(vertices, model.triangles, cameras, pixels)
                    times[name].append(1000 * (time.process_time() - start))
        native, tensors = (statistics.median(values[1:]) for values in times.values())
        ratio = statistics.median(b / a for a, b in zip(*(values[1:] for values in times.values()), strict=True))
        print(f"{pixels} px: native {native:.1f} ms, tensors {tensors:.1f} ms, ratio {ratio:.1f}")


if __name__ == "__main__":
    main()
