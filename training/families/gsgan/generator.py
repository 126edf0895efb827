"""Turns a latent and a camera into splats whose colours depend on the view: the generator of GSGAN.

Source: Hyun and Heo 2024, "Adversarial Generation of Hierarchical Gaussians for 3D Generative Model". Modules and
parameters carry the names of the published checkpoints, so that published weights load as they are.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gaussian import Cameras, Gaussians, Rendering, render
from training.families import base
from training.families.base import AT_REST, StepContext
from training.families.gsgan.background import BackgroundGenerator
from training.families.gsgan.config import Conventions, GeneratorConfig, published_constants
from training.families.gsgan.hierarchy import Attributes
from training.families.gsgan.point_generator import PointGenerator
from training.families.gsgan.scene import ViewedGaussians
from training.networks.layers import CAMERA_DIM, MappingNetwork, normalize_second_moment
from training.networks.start import initial_points

__all__ = ["Generator", "GeneratorConfig", "published_constants", "seen_by"]

POINT_RADIUS = 0.5  # rms coordinate of the published initial points, before the tanh
SCENE_HALF_WIDTH = 1.0  # centres of splats are limited to this cube, world units; those of the background are not


def seen_by(cameras: Cameras, conventions: Conventions) -> Cameras:
    """Returns the cameras that a rasteriser must be given to see what the published code shows under `cameras`.

    With a label's rotation R and position t the published code takes [R^T | D R^T t], D = diag(1, -1, -1), for world to
    camera, in place of [R^T | -R^T t]: the offset along x has the wrong sign, which shows unless the camera looks
    exactly at the origin. Its field of view is one constant. Without conventions nothing changes.
    """
    if conventions.flip_view_x:
        rotation = cameras.cam2world[..., :3, :3]
        local = rotation.mT @ cameras.cam2world[..., :3, 3:]  # R^T t
        local = torch.cat([-local[..., :1, :], local[..., 1:, :]], dim=-2)  # -D R^T t
        cam2world = torch.cat([torch.cat([rotation, rotation @ local], dim=-1), cameras.cam2world[..., 3:, :]], dim=-2)
        cameras = Cameras(cam2world, cameras.intrinsics)
    if conventions.tan_half_fov is not None:
        intrinsics = torch.zeros_like(cameras.intrinsics)
        intrinsics[..., 0, 0] = intrinsics[..., 1, 1] = 0.5 / conventions.tan_half_fov
        intrinsics[..., 0, 2] = intrinsics[..., 1, 2] = 0.5
        intrinsics[..., 2, 2] = 1
        cameras = Cameras(cameras.cam2world, intrinsics)
    return cameras


class Generator(base.Generator):
    """Maps latents and cameras to hierarchies of splats and a background of splats."""

    w_avg_buffer, w_avg_batch = "mapping_network.w_avg", 8

    def __init__(self, config: GeneratorConfig):
        super().__init__()
        self.config = config
        self.z_dim, self.w_dim, self.num_ws = config.z_dim, config.w_dim, config.num_ws
        self.resolution = config.resolution
        self.has_background, self.colors_follow_view = bool(config.background_points), True
        self.mapping_follows_camera = config.pose_conditioned
        self._xyz = nn.Parameter(initial_points(config.start, config.num_points, POINT_RADIUS))
        if config.background_points:
            self._xyz_bg = nn.Parameter(_hemisphere(config.background_points))
        self.point_gen = PointGenerator(config)
        if config.background_points:
            self.point_gen_bg = BackgroundGenerator(config)
        self.mapping_network = MappingNetwork(
            config.z_dim, CAMERA_DIM, config.w_dim, config.map_depth, keep_average=True
        )
        if config.published_keys:  # published training stored it and never read it
            self.register_buffer("dataset_label_std", torch.zeros(CAMERA_DIM))

    @property
    def initial_points(self) -> Tensor:
        """Returns where the hierarchy starts, the same for every latent: [num_points, 3] in -1..1."""
        return torch.tanh(self._xyz)

    @property
    def scene_numbers(self) -> int:
        """Returns the splats of a scene, background included."""
        return sum(self.config.level_sizes) + sum(self.config.background_sizes)

    def scene_size(self) -> str:
        """Says how many splats a scene has."""
        background = sum(self.config.background_sizes)
        return f"{self.scene_numbers:,} splats" + (f", {background:,} of them background" if background else "")

    def style_weights(self) -> list[Tensor]:
        """Returns the matrices of the layers that read a w: all that are affine in it, the background's included."""
        behind = self.point_gen_bg.modulation_layers() if self.config.background_points else []
        return [layer.matrix() for layer in (*self.point_gen.modulation_layers(), *behind)]

    def mapping(self, z: Tensor, cameras: Cameras | None = None, psi: float = 1.0, cutoff: int | None = None) -> Tensor:
        """Maps latents z [B, z_dim] and cameras [B] to ws [B, num_ws, w_dim], pulled towards w_avg by psi.

        cutoff: so many ws are pulled; None: all of them.
        Raises ValueError if the generator is conditioned on cameras and is told none.
        """
        if z.ndim != 2 or z.shape[1] != self.z_dim:
            raise ValueError(f"z must have shape [B, {self.z_dim}], got {list(z.shape)}")
        z = z.to(self._xyz.dtype)
        if not self.config.pose_conditioned:
            labels = z.new_zeros(len(z), CAMERA_DIM)
        elif cameras is None:
            raise ValueError(
                "this generator's mapping follows a camera; tell it one per latent, such as G.geometry.frontal()"
            )
        else:
            labels = cameras.labels.to(z)
        ws = self.mapping_network(z, labels)[:, None].expand(-1, self.num_ws, -1)
        if psi == 1:
            return ws
        pulled = self.w_avg.lerp(ws[:, :1], psi)
        count = self.num_ws if cutoff is None else min(cutoff, self.num_ws)
        return torch.cat([pulled.expand(-1, count, -1), ws[:, count:]], dim=1)

    def synthesis(self, ws: Tensor, at: StepContext = AT_REST) -> ViewedGaussians:
        """Makes scenes from ws [B, num_ws, w_dim]. In the first `background_nimg` images there is no background.

        Raises ValueError for another shape.
        """
        if ws.ndim != 3 or ws.shape[1:] != (self.num_ws, self.w_dim):
            raise ValueError(
                f"ws must have shape [B, {self.num_ws}, {self.w_dim}] as mapping() returns it, got {list(ws.shape)}"
            )
        anchors, levels = self.point_gen(self.initial_points, ws[:, :-1], self.low_dtype)
        raw = _as_gaussians(levels, len(ws))
        means = raw.means.clamp(-SCENE_HALF_WIDTH, SCENE_HALF_WIDTH)
        scene = dataclasses.replace(raw, means=means)
        if self.config.background_points and (at.nimg is None or at.nimg >= self.config.background_nimg):
            behind = _as_gaussians(self.point_gen_bg(self._xyz_bg, ws[:, -1]), len(ws))
            scene = _joined(scene, behind)
        encoder, tints = (part.expand(len(ws), *part.shape) for part in self.point_gen.view_layers())
        return ViewedGaussians(
            scene.means,
            scene.log_scales,
            scene.quats,
            scene.opacity_logits,
            scene.sh,
            scene.level_sizes,
            anchors=_as_gaussians(anchors, len(ws)),
            encoder=encoder,
            tints=tints,
            tinted_sizes=raw.level_sizes,
            color_rule=self.config.color_rule,
        )

    def render(
        self,
        scene: Gaussians,
        cameras: Cameras,  # [B, V]
        resolution: int | tuple[int, int] | None = None,  # the generator's own if None
        background: Tensor | None = None,  # RGB 0..1 that broadcasts to [B, V, 3]; white if None
        at: StepContext = AT_REST,  # no schedule depends on it
    ) -> Rendering:
        """Renders scenes in float32, in the colours that each camera sees."""
        scene = scene.to(dtype=torch.float32)
        colors = None
        if isinstance(scene, ViewedGaussians):
            directions = F.normalize(cameras.cam2world[..., :3, 2].to(scene.means), dim=-1)  # [B, V, 3]
            colors = scene.viewed_colors(directions)
        # In training a non-finite gradient skips its step and is counted; a sample for somebody to look at is an error.
        finite = not self.training
        size = resolution or self.resolution
        seen = seen_by(cameras, self.config.conventions)
        return render(
            scene, seen, size, background, colors=colors, check_finite=finite, backend=self.rasterizer,
            low_pass=self.config.low_pass,
        )  # fmt: skip


def _hemisphere(count: int) -> Tensor:
    """Draws points [count, 3] of rms coordinate 1 behind the scene, z < 0."""
    points = torch.randn(count, 3)
    points[:, 2] = -points[:, 2].abs()
    return normalize_second_moment(points)


def _joined(front: Gaussians, behind: Gaussians) -> Gaussians:
    """Puts the splats of two scenes together, level after level."""
    names = ("means", "log_scales", "quats", "opacity_logits", "sh")
    fields = {name: torch.cat([getattr(front, name), getattr(behind, name)], dim=1) for name in names}
    return Gaussians(**fields, level_sizes=front.level_sizes + behind.level_sizes)


def _as_gaussians(levels: list[Attributes], batch: int) -> Gaussians:
    """Joins levels (M = batch P) into one scene per sample."""

    def joined(parts: tuple[Tensor, ...]) -> Tensor:
        rows = parts[0].shape[1]  # of [A, rows, B P]
        # [B, P, A, rows]: the descendants of a first point are consecutive within a level
        return torch.cat(
            [part.unflatten(2, (batch, -1)).permute(2, 3, 0, 1).reshape(batch, -1, rows) for part in parts], dim=1
        )

    means, log_scales, appearance = (joined(parts) for parts in zip(*levels, strict=True))
    quats, colors, opacity_logits = appearance.split((4, 3, 1), dim=-1)
    sizes = tuple(level.xyz.shape[0] * level.xyz.shape[2] // batch for level in levels)
    return Gaussians(means, log_scales, quats, opacity_logits, colors[:, :, None], sizes)
