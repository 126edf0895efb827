"""Gives a data set on disk and the small detector, and keeps the user's cache out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gaussian import Geometry
from metrics import Detector, load_detector
from tests.metrics.toys import ToyGenerator, write_dataset


@pytest.fixture(scope="session")
def tiny_detector() -> Detector:
    return load_detector("tiny")


@pytest.fixture(scope="session")
def make_dataset(geometry: Geometry) -> Callable[..., Path]:
    """Returns make(root, count=48, seed=1, **toy), which writes images of a toy generator and returns their folder."""

    def make(root: Path, count: int = 48, seed: int = 1, masked: bool = True, **toy: Any) -> Path:
        G, random = ToyGenerator(**toy), torch.Generator().manual_seed(seed)
        cameras = geometry.orbit(torch.rand(count, generator=random) - 0.5)
        ws = G.mapping(torch.randn(count, G.z_dim, generator=random), cameras)
        out = G.render(G.synthesis(ws), cameras.reshape(count, 1), background=torch.ones(3))
        images, masks = ((t[:, 0] * 255).round().to(torch.uint8) for t in (out.rgb, out.alpha))
        return write_dataset(root, images, masks if masked else None, cameras)

    return make


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory, make_dataset: Callable[..., Path]) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "discs", brightness=0.6)


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps every test away from the user's cache."""
    monkeypatch.setenv("SPLATGAN_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("SPLATGAN_DETECTOR", "SPLATGAN_DETECTOR_VGG"):
        monkeypatch.delenv(name, raising=False)
