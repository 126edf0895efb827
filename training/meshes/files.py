"""Writes meshes as .obj, .ply and .glb, and volumes as .mrc and .npz, each file whole or not at all."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from training.meshes.lattice import Lattice
from training.meshes.surface import Mesh

MESHES, VOLUMES = ("obj", "ply", "glb"), ("mrc", "npz")
LIBRARIES = {"skimage": "scikit-image", "trimesh": "trimesh", "mrcfile": "mrcfile"}  # module -> name for pip


def require_libraries(formats: Collection[str]) -> None:
    """Raises ValueError, with what to install, if a library of the extra `mesh` is missing that formats need."""
    needed = {module: name for module, name in LIBRARIES.items() if module != "mrcfile" or "mrc" in formats}
    missing = [name for module, name in needed.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ValueError(f"extract_mesh.py needs {', '.join(missing)}: pip install {' '.join(missing)}")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Lends the name of a file that becomes `path` when all is written."""
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def save_mesh(path: Path, mesh: Mesh) -> None:
    """Writes a mesh with colours and normals as its suffix says. Raises ValueError for another suffix, and OSError.

    Up is +y in all of them, as in the data. Colours are RGB bytes as images have them in .ply, numbers in 0..1 behind
    the coordinates in .obj, and linear in .glb, as glTF 2.0 asks, with a material that is not metallic.
    """
    import trimesh

    suffix = path.suffix.removeprefix(".")
    if suffix not in MESHES:
        raise ValueError(f"{path}: meshes are written as {', '.join('.' + name for name in MESHES)}")
    assert mesh.colors is not None
    shape: Any = trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_normals=mesh.normals(), process=False)
    options: dict[str, Any] = {"include_normals": True}
    if suffix == "glb":
        shape.vertex_attributes["color"] = trimesh.visual.color.srgb_to_linear(mesh.colors).astype(np.float32)
        options["tree_postprocessor"] = _matt
    else:
        shape.visual.vertex_colors = np.rint(255 * mesh.colors).astype(np.uint8)
    if suffix == "ply":
        options = {"vertex_normal": True}
    content: bytes | str = shape.export(file_type=suffix, **options)
    with _whole(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def _matt(tree: dict[str, Any]) -> None:
    """Makes a custom attribute the colours of a glTF, and the material matt: where none is given it is metal."""
    tree["materials"] = [{"pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0}}]
    for primitive in (p for mesh in tree["meshes"] for p in mesh["primitives"]):
        primitive["attributes"]["COLOR_0"] = primitive["attributes"].pop("_color")
        primitive["material"] = 0


def save_volume(path: Path, volume: np.ndarray, lattice: Lattice) -> None:
    """Writes densities [R, R, R] over a lattice as its suffix says. Raises ValueError for another suffix, and OSError.

    Axes are x, y, z in both, as in published .mrc files. An .mrc says so in its header (MAPC, MAPR, MAPS), with the
    spacing and the first point's place as Angstroms; an .npz has the arrays density, origin and spacing.
    """
    suffix = path.suffix.removeprefix(".")
    corner = np.asarray(lattice.centre) - lattice.half_width
    if suffix not in VOLUMES:
        raise ValueError(f"{path}: volumes are written as {', '.join('.' + name for name in VOLUMES)}")
    with _whole(path) as partial:
        if suffix == "npz":
            np.savez(partial, density=volume, origin=corner, spacing=lattice.spacing)
            return
        import mrcfile

        with mrcfile.new(partial, volume) as file:
            file.header.mapc, file.header.mapr, file.header.maps = 3, 2, 1  # the array's last axis is z
            file.voxel_size = lattice.spacing
            file.header.origin = tuple(corner)
