"""Control: the score reacts to leaks, to a block that does nothing and to noise, and follows the published formula."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from gaussian import Cameras, Geometry, Rendering
from metrics.control import VARIATIONS, scores
from metrics.control_surface import chamfer
from metrics.errors import MetricUnavailable
from metrics.registry import compute_metric
from tests.metrics.toys import write_dataset
from training.control.blocks import Blocks
from training.dataset import ImageDataset

NAMES = ("identity", "expression", "texture")
BLOCKS = Blocks({name: slice(2 * i, 2 * i + 2) for i, name in enumerate(NAMES)})


def wall(scene: Tensor, size: int) -> Tensor:
    """Depth [B, R, R] of a wall that identity and expression move."""
    return (2.7 + 0.1 * scene[:, 0] + 0.02 * scene[:, 2])[:, None, None].expand(-1, size, size).clone()


@dataclasses.dataclass
class Painter:
    """Paints its latent, through a matrix, into the pixels of the first row; what reads it looks there."""

    resolution: int
    leak: float = 0.0  # of the expression into the identity
    deaf: bool = False  # to the expression
    blocks: Blocks | None = BLOCKS
    z_dim: int = 6
    device = torch.device("cpu")
    info = None

    num_classes = 0

    def mapping(self, z: Tensor, cameras: Cameras | None = None) -> Tensor:
        z = z.clone()
        z[:, :2] += self.leak * z[:, 2:4]
        z[:, 2:4] *= not self.deaf
        return z[:, None]

    def synthesis(self, ws: Tensor) -> Tensor:
        return ws[:, 0]

    def render(self, scene: Tensor, cameras: Cameras, *, background: Tensor | None = None) -> Rendering:
        size = self.resolution
        rgb = torch.full((len(scene), 1, 3, size, size), 0.5)
        rgb[:, 0, 0, 0, :6] = (0.5 + scene / 10).clamp(0, 1)
        return Rendering(rgb, torch.ones(len(scene), 1, 1, size, size), wall(scene, size)[:, None, None])

    def asked_depth(self, z: Tensor, cameras: Cameras, resolution: int) -> Tensor:
        """A wall where the picture's left half is."""
        depth = wall(z, resolution)
        depth[..., resolution // 2 :] = 0
        return depth

    def reader(self) -> tuple[Any, str]:
        if self.blocks is None:
            raise ValueError("the latents of this network have no named blocks")

        def read(images: Tensor) -> Mapping[str, Tensor]:
            return dict(zip(NAMES, (5 * images[:, 0, 0, :6]).split(2, dim=1), strict=True))

        return read, "painted"


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory: pytest.TempPathFactory, geometry: Geometry) -> ImageDataset:
    """Pictures of clean latents."""
    torch.manual_seed(0)
    cameras = geometry.orbit(torch.rand(40) - 0.5)
    G = Painter(16)
    out = G.render(G.synthesis(G.mapping(torch.randn(40, 6))), cameras.reshape(40, 1))
    images = (out.rgb[:, 0] * 255).round().to(torch.uint8)
    return ImageDataset(write_dataset(tmp_path_factory.mktemp("painted"), images, None, cameras))


def measured(G: Painter, dataset: ImageDataset, **options: Any) -> dict[str, float]:
    return compute_metric("control8", G, dataset, cache=False, background="white", **options).values


def test_the_score_is_the_published_formula() -> None:
    spreads = {name: torch.rand(3, dtype=torch.float64) + 0.1 for name in NAMES}
    data = {"identity": 0.577, "expression": 0.285, "texture": 0.153}
    s = {k: [float(spreads[name][i]) / data[name] for name in NAMES] for i, k in enumerate(NAMES)}
    for i, (name, found) in enumerate(scores(spreads, data).items()):
        own, others = s[name][i], [v for j, v in enumerate(s[name]) if j != i]
        assert found == pytest.approx(own**2 / (others[0] * others[1]), rel=1e-6)


def test_it_reacts(tiny_set: ImageDataset) -> None:
    clean, leaky, deaf = (
        measured(Painter(tiny_set.resolution, **kind), tiny_set) for kind in ({}, {"leak": 0.7}, {"deaf": True})
    )
    assert clean["control8"] > 100 * leaky["control8"] and leaky["score_expression"] < 1e-2 * clean["score_expression"]
    assert clean["correlation_expression"] > 0.99 and abs(deaf["correlation_expression"]) < 0.1
    assert clean["identity_moved_by_expression"] < 0.01 < 0.3 < leaky["identity_moved_by_expression"]
    assert 0.6 < clean["identity_moved_by_identity"] < 1.6 and 0.6 < clean["expression_moved_by_expression"] < 1.6
    assert clean["identity_moved_by_pose"] < 0.01 and deaf["score_expression"] < 1e-3


def test_surfaces_are_compared_in_space(tiny_set: ImageDataset) -> None:
    clean, deaf = (measured(Painter(tiny_set.resolution, deaf=kind), tiny_set) for kind in (False, True))
    assert clean["chamfer_to_asked"] < 1e-5 and clean["chamfer_missing"] == 0
    for factor in ("expression", "identity"):
        assert clean[f"chamfer_{factor}"] == pytest.approx(clean[f"chamfer_{factor}_asked"], rel=1e-3)
    assert 0.1 < clean["chamfer_expression"] / clean["chamfer_identity"] < 0.4
    assert deaf["chamfer_expression"] < 1e-6 and deaf["chamfer_to_asked"] > 0.01


def test_the_chamfer_distance_is_the_mean_of_both_directions() -> None:
    one, other = torch.tensor([[0.0, 0, 0], [1, 0, 0]]), torch.tensor([[0.0, 0, 0.5]])
    assert float(chamfer(one, other)) == pytest.approx((0.5 + (0.5 + 1.25**0.5) / 2) / 2)


def test_the_expression_is_looked_at_from_both_sides(tiny_set: ImageDataset) -> None:
    clean, leaky = (measured(Painter(tiny_set.resolution, leak=leak), tiny_set) for leak in (0.0, 0.7))
    for yaw in ("-0.4", "+0.4"):
        assert clean[f"correlation_expression_at_yaw_{yaw}"] > 0.99
        assert clean[f"identity_moved_by_expression_at_yaw_{yaw}"] < 0.01
        assert leaky[f"identity_moved_by_expression_at_yaw_{yaw}"] > 0.3


def test_the_batch_size_changes_nothing(tiny_set: ImageDataset) -> None:
    found = [measured(Painter(tiny_set.resolution, leak=0.3), tiny_set, batch_size=size) for size in (3, 64)]
    assert found[0] == found[1]


def test_a_network_without_blocks_is_refused(tiny_set: ImageDataset) -> None:
    with pytest.raises(MetricUnavailable, match="have no named blocks"):
        measured(Painter(tiny_set.resolution, blocks=None), tiny_set)


def test_every_subject_is_varied_ten_times(tiny_set: ImageDataset) -> None:
    result = compute_metric("control8", Painter(tiny_set.resolution), tiny_set, cache=False, background="white")
    assert result.protocol["num_fake"] == 8 * VARIATIONS * 6 and result.larger_is_better
