"""A generator whose scenes are balls of visible splats, and studios that hold it."""

import math

import torch

from gaussian import Gaussians, render
from tests.gaussian.scenes import make_scene
from tests.training.visualization import toys
from training.families import FAMILIES
from training.viewer import studio


class BallGenerator(toys.FogGenerator):
    """The same 60 splats for every w, moved and coloured by it. Its mapping heeds the camera that it is told."""

    makes_splats, mapping_follows_camera = True, True

    def __init__(self, geometry):
        super().__init__(geometry)
        self.resolution = 32

    def mapping(self, z, cameras=None, psi=1.0):
        return super().mapping(z, cameras, psi) + 0.1 * cameras.positions[:, None, :1]

    def synthesis(self, ws, at=toys.AT_REST):
        self.batches.append(len(ws))
        ball = make_scene(1, 60, size=0.04).map(lambda t: t.expand(len(ws), *t.shape[1:]))
        w = ws[:, :1]
        return Gaussians(ball.means + 0.2 * (w - 0.5), ball.log_scales, ball.quats, ball.opacity_logits + 2,
                         0.3 * ball.sh + w[:, :, None])  # fmt: skip

    def render(self, scene, cameras, resolution=None, background=None, at=toys.AT_REST):
        return render(scene, cameras, resolution or self.resolution, background)


def make_studio(monkeypatch, geometry, kind=BallGenerator, names=("a", "b"), found=()):
    """A studio whose networks are of a class for tests, each of its own; studio.read lists what was read."""
    monkeypatch.setitem(FAMILIES, toys.NAME, toys.FAMILY)
    read = []

    def load(path, device):
        read.append(path)
        return kind(geometry)

    monkeypatch.setattr(studio, "load_generator", load)
    made = studio.Studio(dict.fromkeys(names, "unused.pkl"), torch.device("cpu"), found)
    made.read = read
    return made


def psnr(a, b):
    """In dB, of pictures of bytes."""
    return -10 * math.log10(max(((a / 255.0 - b / 255.0) ** 2).mean(), 1e-12))
