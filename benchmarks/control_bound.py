"""Bounds what any reader of pictures can tell of the procedural head's coefficients.

    python -m benchmarks.control_bound                 # a minute of one thread

A picture is taken as linear about a head, and its pixels as off by independent normal noise. Coefficients, light, hair,
shirt, and the camera's angles are all unknown, with the spread that they have in the data. The variance of each that is
left (the inverse of the posterior's precision, Bishop 2006, section 3.3) bounds the share of it that can be explained.
Derivatives are differences of renders of 16 samples a pixel.
"""

from __future__ import annotations

import click
import torch
import torch.nn.functional as F
from torch import Tensor

from gaussian import Cameras
from training.data.synthetic import expressions
from training.data.synthetic.traits import CameraSpread
from training.morphable.head import EXPRESSION, IDENTITY, TEXTURE, procedural_head
from training.morphable.model import MODEL_BLOCKS

RESOLUTION, SAMPLES, AT_ONCE = 64, 4, 16
POOLED = (1, 2, 4)  # pixels that become one: 64, 32 and 16 px
YAWS = (0.0, 0.4, 0.8)  # radians
UNIFORM = 12.0  # precision of a number between 0 and 1
LOOKS = 8  # numbers of hair and shirt, each between 0 and 1
STEPS = (0.4, 0.3, 0.07, 0.03)  # of shape, of colours and light, of looks, of angles in radians
GREY = 0.5  # background


def cameras(angles: Tensor) -> Cameras:
    """Returns cameras [N] of the data at yaw and pitch [N, 2]."""
    spread, (yaw, pitch) = CameraSpread(), angles.unbind(1)
    way = torch.stack([yaw.sin() * pitch.cos(), pitch.sin(), yaw.cos() * pitch.cos()], dim=-1)
    lens = torch.tensor([[spread.focal, 0.0, spread.cx], [0.0, spread.focal, spread.cy], [0.0, 0.0, 1.0]])
    return Cameras.look_at(spread.radius * way, (0.0, 0.0, 0.0), intrinsics=lens)


def pictures(numbers: Tensor) -> Tensor:
    """Draws heads [N, 3, R, R] in 0..1 of numbers [N, P]: whitened coefficients, looks, angles."""
    model = procedural_head()
    sizes = [model.sizes[block] for block in MODEL_BLOCKS]
    *blocks, hair, hair_colour, shirt, angles = numbers.split([*sizes, 2, 3, 3, 2], dim=1)
    known = {block: model.coefficients(block, part) for block, part in zip(MODEL_BLOCKS, blocks, strict=True)}
    looks = expressions.Looks(**known, hair=hair, hair_colour=hair_colour, shirt=shirt)
    images, masks, _ = expressions.render(looks, cameras(angles), RESOLUTION, SAMPLES)
    return images * masks + GREY * (1 - masks)


def derivatives(numbers: Tensor) -> Tensor:
    """Returns what one of each number [P] adds to a picture, [P, 3, R, R]."""
    shape, coloured = 16, len(numbers) - 16 - LOOKS - 2
    steps = torch.repeat_interleave(torch.tensor(STEPS), torch.tensor([shape, coloured, LOOKS, 2]))
    both = torch.cat([numbers + torch.diag(steps), numbers - torch.diag(steps)])
    drawn = torch.cat([pictures(some) for some in both.split(AT_ONCE)])
    more, less = drawn.chunk(2)
    return (more - less) / (2 * steps)[:, None, None, None]


def told(rows: Tensor, noise: float) -> Tensor:
    """Returns the share of the variance [P] of every number that pictures tell, of derivatives [P, 3, R, R]."""
    spread = CameraSpread()
    angles = rows.new_tensor([spread.yaw_std**-2, spread.pitch_std**-2])
    prior = torch.cat([rows.new_ones(len(rows) - LOOKS - 2), rows.new_full((LOOKS,), UNIFORM), angles])
    flat = rows.flatten(1)
    left = torch.linalg.inv(flat @ flat.T / noise**2 + torch.diag(prior)).diagonal()
    return 1 - left * prior


@click.command()
@click.option("--heads", type=click.IntRange(min=1), default=4, show_default=True, help="for each yaw")
@click.option("--noise", type=float, default=0.03, show_default=True, help="of pixels, of which 1 is white")
@click.option("--seed", type=int, default=0, show_default=True, help="of the heads")
def main(heads: int, noise: float, seed: int) -> None:
    """Print the mean bound of every coefficient of shape and colour, by resolution and yaw."""
    draws = torch.Generator().manual_seed(seed)
    names = IDENTITY + EXPRESSION + TEXTURE
    columns: dict[tuple[int, float], Tensor] = {}
    for yaw in YAWS:
        found: dict[int, list[Tensor]] = {pooled: [] for pooled in POOLED}
        for _ in range(heads):
            z = torch.randn(sum(procedural_head().sizes.values()), generator=draws).clamp(-2, 2)
            looks = 0.1 + 0.8 * torch.rand(LOOKS, generator=draws)
            rows = derivatives(torch.cat([z, looks, torch.tensor([yaw, 0.0])]))
            for pooled in POOLED:
                found[pooled].append(told(F.avg_pool2d(rows, pooled).double(), noise))
        columns |= {(pooled, yaw): torch.stack(shares).mean(0) for pooled, shares in found.items()}
    order = [(pooled, yaw) for pooled in POOLED for yaw in YAWS]
    click.echo(" " * 14 + "".join(f"  {f'{RESOLUTION // p} px {y:g}':>9}" for p, y in order))
    for k, name in enumerate(names):
        click.echo(f"{name:14}" + "".join(f"  {float(columns[key][k]):9.3f}" for key in order))


if __name__ == "__main__":
    main()
