"""Scenes of 3D Gaussians, cameras, and the renderer that turns one into pictures of the other."""

from gaussian.cameras import Cameras
from gaussian.gaussians import Gaussians
from gaussian.geometry import Geometry
from gaussian.ply import load_ply, save_ply
from gaussian.rendering import Rendering, render, resolve_backend

__all__ = ["Cameras", "Gaussians", "Geometry", "Rendering", "load_ply", "render", "resolve_backend", "save_ply"]
