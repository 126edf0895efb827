"""Renders scenes of 3D Gaussians under cameras."""

from gaussian.cameras import Cameras
from gaussian.export import save_splats
from gaussian.gaussians import Gaussians
from gaussian.geometry import Geometry
from gaussian.ply import load_ply, save_ply
from gaussian.rendering import NonFiniteScene, Rendering, render, resolve_backend
from gaussian.scene import Density, Scene, SceneRecord, Splats

__all__ = [
    "Cameras",
    "Density",
    "Gaussians",
    "Geometry",
    "NonFiniteScene",
    "Rendering",
    "Scene",
    "SceneRecord",
    "Splats",
    "load_ply",
    "render",
    "resolve_backend",
    "save_ply",
    "save_splats",
]
