"""Makes every picture of README.md and docs/films.md anew.

    python -m docs.build --network=RUN/network-snapshot-NNNNNN.pkl

Writes film-strip.png, hierarchy.png and panels.png into docs/images. Those of docs/learning.md come from several
runs and are written by benchmarks/learning.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import torch
from torch import Tensor

from gaussian import Splats
from training.checkpoint import CheckpointError, load_generator
from training.families.base import Generator
from training.families.inspection import Inspection
from training.visualization import latents, video
from training.visualization.camera_paths import camera_path
from training.visualization.grids import save_image_grid

IMAGES = Path(__file__).resolve().parent / "images"
ENLARGE = 2  # of panels of 64 px


def film_strip(G: Generator, ws: Tensor) -> Tensor:
    """Renders two heads (rows), every ninth part of a turn (columns)."""
    cameras = camera_path("orbit", G.geometry, 9).reshape(1, 9).expand(2, 9)
    return video.render_panels(G, G.synthesis(ws[:2]), cameras, video.Look(show=("image",))).flatten(0, 1)


def hierarchy(G: Generator, ws: Tensor) -> Tensor:
    """Renders one head: as it is, each level alone and opaque in its colour, and all levels coloured.

    Raises ValueError for a network whose scenes have no levels.
    """
    scene, camera = G.synthesis(ws[:1]), G.geometry.orbit(torch.tensor(0.4)).reshape(1, 1)
    levels = range(len(scene.level_sizes) if isinstance(scene, Splats) else 0)
    inspections = [Inspection(), *(Inspection(levels=(k,), opaque=True, color_levels=True) for k in levels)]
    inspections.append(Inspection(color_levels=True))
    looks = [video.Look(view=video.view_of(G, inspection)) for inspection in inspections]
    return torch.cat([video.render_panels(G, scene, camera, look)[0] for look in looks])


def panels(G: Generator, ws: Tensor) -> Tensor:
    """Renders two heads side by side, each as image, alpha, depth and normals."""
    camera = G.geometry.orbit(torch.tensor(0.4)).reshape(1, 1).expand(2, 1)
    each = [video.render_panels(G, G.synthesis(ws[:2]), camera, video.Look(show=(name,))) for name in video.PANELS]
    return torch.stack([part[:, 0] for part in each], dim=1).flatten(0, 1)


FIGURES: dict[str, tuple[Callable[[Generator, Tensor], Tensor], int | None]] = {
    "film-strip": (film_strip, 9),
    "hierarchy": (hierarchy, None),
    "panels": (panels, 8),
}  # columns; None: one row


@click.command()
@click.option("--network", required=True, metavar="PKL", help="checkpoint of a trained generator")
@click.option("--outdir", default=IMAGES, show_default=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--seeds", default=(0, 1), show_default=True, nargs=2, type=int, help="the two heads")
@click.option("--trunc", default=0.7, show_default=True, help="truncation psi")
@torch.no_grad()
def main(network: str, outdir: Path, seeds: tuple[int, int], trunc: float) -> None:
    """Make every picture of the README from one checkpoint, on the CPU."""
    try:
        G = load_generator(network)
        outdir.mkdir(parents=True, exist_ok=True)
        ws = latents.frontal_ws(G, latents.seed_latents(list(seeds), G.z_dim), trunc)
        for name, (draw, columns) in FIGURES.items():
            pictures = draw(G, ws)
            save_image_grid(pictures, outdir / f"{name}.png", columns or len(pictures), ENLARGE)
            click.echo(outdir / f"{name}.png")
    except (CheckpointError, OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
