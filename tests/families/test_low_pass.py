"""How much wider splats are in an image than they say is a choice of every family that has splats."""

import pytest
import torch

from gaussian import Geometry
from training import presets
from training.families import family


@pytest.mark.parametrize("preset", ["micro", "gsgan-tiny", "gghead-tiny"])
def test_the_low_pass_is_the_config_s(preset: str, geometry: Geometry) -> None:
    config = presets.resolve(preset, data="")
    covered = []
    for low_pass in (0.01, 2.0):
        torch.manual_seed(0)
        G = family(config.family).generator(config.generator.changed(low_pass=low_pass)).eval()
        camera = geometry.orbit(torch.zeros(1, 1))
        scene = G.synthesis(G.mapping(torch.ones(1, G.z_dim), camera[:, 0]))
        covered.append(G.render(scene, camera).alpha.sum().item())
    assert covered[1] > covered[0] > 0
    with pytest.raises(ValueError, match=r"generator\.low_pass must be positive and finite, got 0"):
        config.generator.changed(low_pass=0.0)
