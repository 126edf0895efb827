"""Knows where the eyes, the mouth and the chin of a head with an expression are seen, and how much of them.

What a picture shows is counted in its pixels: of an eye behind the nose, or one that is closed, nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from gaussian import Cameras
from training.data.synthetic.expressions import AT_ONCE, everything, sample_looks, surfaces
from training.data.synthetic.features import FEATURES, MAX_FEATURES, Truths, joined
from training.morphable.head import features, procedural_head
from training.morphable.rasterize import paint, rasterize

KINDS = (0, 0, 1, 2)  # of what is found, indices into FEATURES
LANDMARKS = (slice(36, 42), slice(42, 48), slice(48, 60), slice(8, 9))  # of 68, in whose middle each lies


def render_expression_truths(
    seed: int, indices: Sequence[int], labels: np.ndarray, resolution: int, samples: int = 2
) -> Truths:
    """Renders the pictures `indices` of the set `seed` under labels [N, 25], and reads what they show."""
    parts = [
        _some(seed, indices[i : i + AT_ONCE], labels[i : i + AT_ONCE], resolution, samples)
        for i in range(0, len(indices), AT_ONCE)
    ]
    return joined(*parts)


def _some(seed: int, indices: Sequence[int], labels: np.ndarray, resolution: int, samples: int) -> Truths:
    count, cameras = len(indices), Cameras.from_labels(torch.from_numpy(labels).float())
    vertices, colours = surfaces(sample_looks(seed, indices))
    seen = torch.zeros(count, vertices.shape[1], 3)
    head = features().T
    seen[:, : len(head)] = head
    found = rasterize(vertices, everything(), cameras, resolution * samples)
    painting = paint(found, everything(), torch.cat([colours, seen], dim=2), samples)
    images = torch.where(painting.share[:, None] > 0, painting.values[:, :3].clamp(0, 1), 1.0)
    corners = vertices[:, procedural_head().landmarks]
    points = torch.stack([corners[:, part].mean(1) for part in LANDMARKS], dim=1)
    kinds = np.full((count, MAX_FEATURES), -1, np.int8)
    places = np.zeros((count, MAX_FEATURES, 2), np.float32)
    areas = np.zeros((count, MAX_FEATURES), np.float32)
    kinds[:, : len(KINDS)], places[:, : len(KINDS)] = KINDS, cameras.project(points)[0].numpy()
    areas[:, : len(KINDS)] = np.inf  # of the chin
    areas[:, : KINDS.index(FEATURES.index("chin"))] = (painting.values[:, 3:] * painting.share[:, None]).sum((2, 3))
    pictures, masks = ((255 * values).round().byte().numpy() for values in (images, painting.share[:, None]))
    return Truths(pictures, masks, kinds, places, areas)
