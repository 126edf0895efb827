"""Measures control<N> of a generator that makes exactly what its latents ask for: the drawn heads themselves.

    python -m benchmarks.control_truth --data=datasets/expressions/64 --count=64

Its figures say what the regressor, and the metric, leave of control that is perfect. They need the file that
fit_regressor.py makes.
"""

from __future__ import annotations

import json

import click
import torch
from torch import Tensor

from gaussian import Cameras, Rendering
from metrics import compute_metric
from training.control.blocks import Blocks, Controllable
from training.control.surface import Surface
from training.data.synthetic import expressions
from training.data.synthetic.expressions import Looks
from training.dataset import ImageDataset
from training.morphable.head import procedural_head
from training.morphable.model import MODEL_BLOCKS

HAIR, COLOURS = 2, 6  # numbers of a latent for what the model does not describe: volume and length; hair and shirt


class Drawn(Controllable):
    """Is a generator whose scenes are the looks that a latent stands for."""

    num_classes, info = 0, None

    blocks: Blocks

    def __init__(self, resolution: int) -> None:
        self.resolution, self.model = resolution, procedural_head()
        self.blocks = Blocks.of(self.model.sizes, HAIR, COLOURS)
        self.surface = Surface(self.model, self.blocks)
        self.z_dim = self.blocks.total

    @property
    def device(self) -> torch.device:
        """Where it draws."""
        return torch.device("cpu")

    def mapping(self, z: Tensor, cameras: Cameras | None = None) -> Tensor:
        """Returns latents [B, z_dim] as they are."""
        return z

    def synthesis(self, ws: Tensor) -> Looks:
        """Returns the looks that latents [B, z_dim] stand for."""
        known = {block: self.model.coefficients(block, self.blocks.take(ws, block)) for block in MODEL_BLOCKS}
        hair, colours = (torch.special.ndtr(self.blocks.take(ws, b)) for b in ("background", "background_texture"))
        return Looks(**known, hair=hair, hair_colour=colours[:, :3], shirt=colours[:, 3:])

    def render(self, scene: Looks, cameras: Cameras, *, background: Tensor | None = None) -> Rendering:
        """Draws looks, each from its own camera [B, 1]."""
        images, mask, depth = expressions.render(scene, cameras.reshape(-1), self.resolution, 2)
        behind = torch.ones(3) if background is None else background[:, 0]
        rgb = mask * images + (1 - mask) * behind[..., None, None]
        return Rendering(rgb[:, None], mask[:, None], (mask * depth)[:, None])


@click.command(help=__doc__.split("\n")[0])
@click.option("--data", required=True, metavar="DIR", help="a set of --kind=expressions")
@click.option("--count", type=click.IntRange(2), default=64, show_default=True, help="subjects")
def main(data: str, count: int) -> None:
    dataset = ImageDataset(data)
    values = compute_metric(f"control{count}", Drawn(dataset.resolution), dataset, background="white").values
    print(json.dumps(values, indent=2))


if __name__ == "__main__":
    main()
