"""Turns a step into the published loop of CGS-GAN, on our networks and kernels.

The published code calls the rasteriser once for each scene and view, and D once for each view, for the generated images
and for the real ones; everything that G learns from goes back at once. Its generator runs in float32.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gaussian import Cameras, Rendering
from training.networks.base import Conditioning, DiscriminatorOutput
from training.step import GanStep

PARTS_OF_A_RENDERING = ("rgb", "alpha", "depth")


def as_published(step: GanStep, samples: int) -> None:
    """Makes a step draw each image alone, and judge `samples` at a time: those of a micro-batch."""
    objective: Any = step.objective
    batched, judge = step.G.render, objective.D.outputs

    def render(
        scene: Any, cameras: Cameras, resolution: int, background: Tensor, *rest: Any, **named: Any
    ) -> Rendering:
        def alone(b: int, v: int) -> Rendering:
            one = slice(b, b + 1), slice(v, v + 1)
            return batched(scene.scene(b), cameras[one], resolution, background[one], *rest, **named)

        views = [joined([alone(b, v) for b in range(len(cameras))], 0) for v in range(cameras.shape[1])]
        return joined(views, 1)

    def outputs(images: Tensor, told: Conditioning, num_groups: int) -> DiscriminatorOutput:
        calls = len(images) // samples  # one for each view, or for each kind of image
        logits = [
            judge(images[i::calls], told.of(slice(i, None, calls)), num_groups // calls).logits for i in range(calls)
        ]
        return DiscriminatorOutput(torch.stack(logits, 1).flatten(0, 1))

    step.G.low_dtype = None
    step.G.render, objective.outputs = render, outputs  # type: ignore[method-assign,assignment]
    objective.settings = replace(objective.settings, judged_at_once=0)


def joined(renderings: list[Rendering], dim: int) -> Rendering:
    """Returns renderings as one, along the scenes (0) or the views (1)."""
    return Rendering(*(torch.cat([getattr(r, name) for r in renderings], dim) for name in PARTS_OF_A_RENDERING))
