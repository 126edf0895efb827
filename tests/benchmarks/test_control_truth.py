"""The drawn heads are what their latents ask for: coefficients come back, and so does the surface."""

from __future__ import annotations

import torch

from benchmarks.control_truth import Drawn
from gaussian import Geometry
from metrics.control_surface import chamfer, surface_points
from training.morphable.model import MODEL_BLOCKS


def test_heads_have_the_coefficients_and_the_surface_that_a_latent_asks_for(geometry: Geometry) -> None:
    G, z = Drawn(32), torch.randn(2, 57, generator=torch.Generator().manual_seed(0))
    assert G.z_dim == z.shape[1]
    scene = G.synthesis(G.mapping(z))
    for block in MODEL_BLOCKS:
        found = G.model.whitened(block, getattr(scene, block))
        torch.testing.assert_close(found, G.blocks.take(z, block), rtol=1e-4, atol=1e-4)
    cameras = geometry.frontal().reshape(1).expand(2)
    out = G.render(scene, cameras.reshape(2, 1), background=torch.zeros(2, 1, 3))
    asked = G.asked_depth(z, cameras, 32)
    depth, alpha = out.depth[:, 0, 0], out.alpha[:, 0, 0]
    made = surface_points(depth / alpha.clamp(min=1e-6), (alpha > 0.5) & (asked > 0), cameras)
    wanted = surface_points(asked, asked > 0, cameras)
    assert all(float(chamfer(one, other)) < 2e-3 for one, other in zip(made, wanted, strict=True))
    assert float(chamfer(wanted[0], wanted[1])) > 3e-3
    assert float((out.rgb * (1 - out.alpha.round())).max()) < 0.5  # nothing behind them but what was asked for
