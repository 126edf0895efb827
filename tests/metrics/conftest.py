"""A data set on disk, a generator made of a few lines, and the small detector."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from gaussian import Rendering
from metrics import Detector, load_detector

RESOLUTION = 32


class ToyGenerator:
    """A disc on the background: its colour is the identity, its place follows the rendering camera.

    leak: how much of the conditioning camera's x position goes into the colour.
    """

    z_dim, resolution = 4, RESOLUTION

    def __init__(self, leak: float = 0.0, background: tuple[float, ...] | None = None, brightness: float = 0.5):
        self.leak, self.background, self.brightness = leak, background, brightness

    def mapping(self, z, cameras=None, psi=1.0):
        ws = z[:, None].clone()  # [B, 1, 4]
        ws[:, :, 0] = ws[:, :, 0] + self.leak * cameras.positions[:, None, 0]
        return ws

    def synthesis(self, ws):
        assert ws.ndim == 3
        return SimpleNamespace(ws=ws)

    def render(self, scene, cameras, resolution=None, background=None):
        assert cameras.shape[1] == 1
        if self.background is not None:
            background = torch.tensor(self.background)
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


def write_dataset(root, images, masks, cameras):
    """The FFHQC layout: images uint8 [N, 3, R, R], masks uint8 [N, 1, R, R] or None. Returns the image folder."""
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
def make_dataset(geometry):
    """make(root, count=48, seed=1, **toy) writes images of a toy generator with masks; returns their folder."""

    def make(root, count=48, seed=1, masked=True, **toy):
        G, random = ToyGenerator(**toy), torch.Generator().manual_seed(seed)
        cameras = geometry.orbit(torch.rand(count, generator=random) - 0.5)
        ws = G.mapping(torch.randn(count, G.z_dim, generator=random), cameras)
        out = G.render(G.synthesis(ws), cameras.reshape(count, 1), background=torch.ones(3))
        images, masks = ((t[:, 0] * 255).round().to(torch.uint8) for t in (out.rgb, out.alpha))
        return write_dataset(root, images, masks if masked else None, cameras)

    return make


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory, make_dataset):
    return make_dataset(tmp_path_factory.mktemp("data") / "discs", brightness=0.6)


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("SPLATGAN_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("SPLATGAN_DETECTOR", "SPLATGAN_DETECTOR_VGG"):
        monkeypatch.delenv(name, raising=False)
