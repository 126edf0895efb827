"""Makes what a viewer shows: heads by controls, their pictures, and their files."""

from __future__ import annotations

import dataclasses
import io
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gaussian import Cameras, Gaussians, Scene, Splats, save_splats
from gaussian.export import check_format
from gaussian.rotations import quats_to_matrices
from training.checkpoint import load_generator
from training.families.base import Generator
from training.families.inspection import Inspection
from training.visualization import latents, video
from training.visualization.directions import Directions, network_key, principal, sampled_w

ALL = "all"  # of a latent
DIRECTIONS = 8  # principal ones of w that a viewer offers
DIRECTION_SAMPLES = 1024  # latents that they are measured on
KEPT_NETWORKS = 2  # loaded at a time

# Inspections that a network may refuse, by the names of the controls that ask for them.
PROBES = {
    "levels": Inspection(levels=(0,)),
    "anchors": Inspection(anchors=True),
    "disable_background": Inspection(disable_background=True),
    "opaque": Inspection(opaque=True),
    "scale": Inspection(scale=2.0),
    "color_levels": Inspection(color_levels=True),
    "color_points": Inspection(color_points=True),
    "colors_from": Inspection(colors_from=(0.0,)),
}


@dataclass(frozen=True)
class HeadChoice:
    """Says which head is shown."""

    network: str  # its name in the studio
    seed: int = 0
    other: int = 1  # seed of the head that `mix` leads to
    mix: float = 0.0  # 0: the head of `seed`; 1: that of `other`; between them a straight line through w
    part: str = ALL  # or a named block of the latent, which then moves alone, on a straight line through z
    psi: float = 0.7  # truncation
    told_yaw: float = 0.0  # degrees; of the camera that the mapping is told, where it heeds one
    direction: str = "pca1"  # of w, one of `Studio.direction_names`
    amount: float = 0.0  # standard deviations along it


@dataclass(frozen=True)
class Shown:
    """Says how a head is shown."""

    panel: str = "image"  # of `video.PANELS`
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)  # RGB 0..1
    inspection: Inspection = field(default_factory=Inspection)


class Studio:
    """Holds networks by name and makes pictures and files of their heads. Not for several threads at once."""

    def __init__(
        self,
        networks: Mapping[str, Path],
        device: torch.device,
        found: Sequence[Directions] = (),
        w_file: str | None = None,
    ):
        """Takes networks by name and, for heads in place of those of seeds, a file of ws: seed k shows its row k."""
        self.networks = dict(networks)
        self.w_file = w_file
        self.device = device
        self._found = {one.network: one for one in found}  # from files, each for the network that it was found on
        self._loaded: dict[str, Generator] = {}
        self._directions: dict[str, Directions] = {}
        self._scene: tuple[HeadChoice, Scene] | None = None

    def generator(self, name: str) -> Generator:
        """Returns a network, read at its first use. Raises ValueError, CheckpointError or OSError."""
        if name not in self._loaded:
            while len(self._loaded) >= KEPT_NETWORKS:
                oldest = next(iter(self._loaded))
                del self._loaded[oldest]
                self._directions.pop(oldest, None)
            self._loaded[name] = load_generator(self.networks[name], self.device)
        return self._loaded[name]

    def supported(self, name: str) -> set[str]:
        """Returns the names of the controls of `PROBES` that a network has something to show for."""
        G, found = self.generator(name), set()
        for control, probe in PROBES.items():
            try:
                video.view_of(G, probe)
            except ValueError:
                continue
            found.add(control)
        return found

    @torch.no_grad()
    def kept(self, network: str) -> int | None:
        """Returns how many heads the file of latents holds; None: there is no file, and seeds never end."""
        return None if self.w_file is None else len(latents.load_ws(self.w_file, self.generator(network)))

    def ws(self, head: HeadChoice) -> Tensor:
        """Returns the ws [1, num_ws, w_dim] of a head; of a file, there may be block_ws of them.

        Raises ValueError for a part that latents do not have, and for a file of another network.
        """
        G = self.generator(head.network)
        if self.w_file is not None:
            rows = latents.load_ws(self.w_file, G).to(self.device)
            return self._moved(
                head, torch.lerp(rows[[head.seed % len(rows)]], rows[[head.other % len(rows)]], head.mix)
            )
        z = latents.seed_latents([head.seed, head.other], G.z_dim).to(self.device)
        told = G.geometry.orbit(math.radians(head.told_yaw)).to(self.device).expand(2)
        classes = latents.seed_classes([head.seed, head.other], G.num_classes) if G.num_classes else None
        if head.part != ALL and G.blocks is not None:
            block = torch.lerp(G.blocks.take(z[0], head.part), G.blocks.take(z[1], head.part), head.mix)
            ws = G.mapping(G.blocks.put(z[:1], head.part, block), told[:1], head.psi)
        else:
            ends = G.mapping(z, told, head.psi, **latents.told_classes(classes, self.device))
            ws = torch.lerp(ends[:1], ends[1:], head.mix)
        return self._moved(head, ws)

    def _moved(self, head: HeadChoice, ws: Tensor) -> Tensor:
        """Returns ws moved along a principal direction, as far as the head asks for it."""
        if head.amount:
            ws = ws + head.amount * self.directions(head.network).step(head.direction).to(ws)
        return ws

    def direction_names(self, name: str) -> tuple[str, ...]:
        """Returns the names of the directions in which heads of a network can be moved."""
        if name in self._directions:
            return self._directions[name].names
        files = self._from_files(name)
        principal_ones = (f"pca{k + 1}" for k in range(min(DIRECTIONS, self.generator(name).w_dim)))
        return files.names if files else tuple(principal_ones)

    def _from_files(self, name: str) -> Directions | None:
        """Returns what a file holds for a network, if one does."""
        return self._found.get(network_key(self.generator(name))) if self._found else None

    def directions(self, name: str) -> Directions:
        """Returns the directions that `direction_names` names: those of a file, or else the principal ones."""
        if name not in self._directions:
            files, G = self._from_files(name), self.generator(name)
            self._directions[name] = files or principal(G, sampled_w(G, DIRECTION_SAMPLES), DIRECTIONS)
        return self._directions[name]

    @torch.no_grad()
    def scene(self, head: HeadChoice) -> Scene:
        """Returns the scene of a head; that of the last call again if it is the same head."""
        if self._scene is None or self._scene[0] != head:
            self._scene = head, self.generator(head.network).synthesis(self.ws(head))
        return self._scene[1]

    def picture(self, head: HeadChoice, shown: Shown, camera: Cameras, size: tuple[int, int]) -> np.ndarray:
        """Returns uint8 [H, W, 3] of a head, size (H, W), from a camera of leading shape []."""
        G = self.generator(head.network)
        view = video.view_of(G, shown.inspection)
        look = video.Look(size=size, background=shown.background, show=(shown.panel,), view=view)
        cameras = camera.to(device=self.device, dtype=torch.float32).reshape(1, 1)
        return video.render_panels(G, self.scene(head), cameras, look)[0, 0].permute(1, 2, 0).numpy()

    @torch.no_grad()
    def splats(self, head: HeadChoice, shown: Shown) -> Gaussians:
        """Returns what is shown of a head as splats [1, N]. Raises ValueError for scenes that are none."""
        G = self.generator(head.network)
        if not G.makes_splats:
            raise ValueError("the scenes of this network are no splats")
        scene = video.view_of(G, shown.inspection)(self.scene(head))
        assert isinstance(scene, Splats)
        return scene.as_gaussians(G.geometry.frontal().positions.to(scene.device)[None])

    def file(self, head: HeadChoice, shown: Shown, form: str, up: str = "y") -> bytes:
        """Returns the head as a file in a format of `gaussian.export.FORMATS`, in the units of the data's own labels.

        Raises ValueError for scenes that are no splats, and for what the format cannot hold.
        """
        splats, geometry = self.splats(head, shown), self.generator(head.network).geometry
        check_format(form, splats, up)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"head.{form}"
            save_splats(path, splats.transformed(translation=geometry.origin, scale=geometry.world_scale), up=up)
            return path.read_bytes()


def png(picture: np.ndarray) -> bytes:
    """Returns a picture [H, W, 3] as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def viewing_camera(wxyz: np.ndarray, position: np.ndarray, fov: float, aspect: float) -> Cameras:
    """Returns the camera [] of a page: OpenCV axes, `fov` radians from top to bottom, `aspect` width over height."""
    cam2world = torch.eye(4, dtype=torch.float64)
    cam2world[:3, :3] = quats_to_matrices(
        F.normalize(torch.tensor([float(v) for v in wxyz], dtype=torch.float64), dim=0)
    )
    cam2world[:3, 3] = torch.from_numpy(np.asarray(position, np.float64))
    focal = 0.5 / math.tan(fov / 2)
    intrinsics = torch.tensor([[focal / aspect, 0.0, 0.5], [0.0, focal, 0.5], [0.0, 0.0, 1.0]], dtype=torch.float64)
    return Cameras(cam2world, intrinsics)


def as_data_camera(camera: Cameras, like: Cameras) -> Cameras:
    """Returns a camera with the pose of one and the intrinsics of another: what films see is square, as the data is."""
    return dataclasses.replace(camera, intrinsics=like.intrinsics.to(camera.cam2world))
