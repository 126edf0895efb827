"""Gives a data set on disk, a generator made of a few lines, and the small detector."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gaussian import Cameras, Geometry, Rendering
from metrics import Detector, load_detector
from metrics.generators import TrainingFacts

RESOLUTION = 32


class ToyGenerator:
    """Shows a disc on the background: its colour is the identity, its place follows the rendering camera.

    leak: how much of the conditioning camera's x position goes into the colour.
    """

    z_dim, resolution = 4, RESOLUTION
    device = torch.device("cpu")
    info: TrainingFacts | None = None

    def __init__(self, leak: float = 0.0, background: tuple[float, ...] | None = None, brightness: float = 0.5) -> None:
        self.leak, self.background, self.brightness = leak, background, brightness

    def mapping(self, z: Tensor, cameras: Cameras | None = None, psi: float = 1.0) -> Tensor:
        ws = z[:, None].clone()  # [B, 1, 4]
        assert cameras is not None
        ws[:, :, 0] = ws[:, :, 0] + self.leak * cameras.positions[:, None, 0]
        return ws

    def synthesis(self, ws: Tensor) -> SimpleNamespace:
        assert ws.ndim == 3
        return SimpleNamespace(ws=ws)

    def render(
        self,
        scene: SimpleNamespace,
        cameras: Cameras,
        resolution: int | None = None,
        background: Tensor | None = None,
    ) -> Rendering:
        assert cameras.shape[1] == 1
        if self.background is not None:
            background = torch.tensor(self.background)
        assert background is not None
        background = background.expand(*cameras.shape, 3)[:, 0, :, None, None]  # [B, 3, 1, 1]
        colour = self.brightness + 0.15 * scene.ws[:, 0, :3].tanh()  # [B, 3]
        across = (torch.arange(RESOLUTION) + 0.5) / RESOLUTION - 0.5
        x = cameras.positions[:, 0, 0, None, None] / 10
        alpha = ((across - x).square() + across[:, None].square() < 0.09).float()[:, None]  # [B, 1, R, R]
        rgb = alpha * colour[..., None, None] + (1 - alpha) * background
        return Rendering(rgb[:, None], alpha[:, None], alpha[:, None])


@pytest.fixture(scope="session")
def tiny_detector() -> Detector:
    return load_detector("tiny")


def write_dataset(root: Path, images: Tensor, masks: Tensor | None, cameras: Cameras) -> Path:
    """Writes the FFHQC layout: images uint8 [N, 3, R, R], masks uint8 [N, 1, R, R]. Returns the image folder."""
    folder = root / str(images.shape[-1])
    folder.mkdir(parents=True)
    if masks is not None:
        (root / "mask").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(np.asarray(image).transpose(1, 2, 0)).save(folder / f"{i:05d}.png")
        if masks is not None:
            Image.fromarray(np.asarray(masks[i, 0])).save(root / "mask" / f"{i:05d}.png")
    labels = [[f"{i:05d}.png", row] for i, row in enumerate(cameras.labels.tolist())]
    (root / "dataset.json").write_text(json.dumps({"labels": labels}))
    return folder


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
