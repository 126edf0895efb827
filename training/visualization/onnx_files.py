"""Writes the mapping and the synthesis of a generator as ONNX, so that heads are made without PyTorch.

Two graphs: latents to ws, and ws to splats. Between them w can be moved, as `find_directions.py` says. The batch is
free; all is float32.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gaussian import Cameras
from training.families.base import Generator
from training.networks.layers import CAMERA_DIM
from training.visualization.directions import network_key

SPLATS = ("means", "log_scales", "quats", "opacity_logits", "sh")  # outputs of the synthesis, as `Gaussians` has them
OPSET = 18


class Mapping(nn.Module):
    """Maps z [B, z_dim] and psi [] to ws [B, num_ws, w_dim]; one that heeds a camera takes its labels [B, 25] too."""

    def __init__(self, G: Generator) -> None:
        super().__init__()
        self.G = G

    def forward(self, z: Tensor, psi: Tensor, camera: Tensor | None = None) -> Tensor:
        told = None
        if camera is not None:
            told = Cameras(camera[:, :16].unflatten(1, (4, 4)), camera[:, 16:].unflatten(1, (3, 3)))
        ws = self.G.mapping(z, told)
        return self.G.w_avg + psi * (ws - self.G.w_avg)


class Synthesis(nn.Module):
    """Makes splats of ws [B, num_ws, w_dim]; colours that follow the view are those that the data's front sees."""

    def __init__(self, G: Generator) -> None:
        super().__init__()
        self.G = G
        self.register_buffer("viewpoint", G.geometry.frontal().positions.float()[None])

    def forward(self, ws: Tensor) -> tuple[Tensor, ...]:
        scene: Any = self.G.synthesis(ws)
        splats = scene.as_gaussians(self.get_buffer("viewpoint").expand(len(ws), 3))
        quats = nn.functional.normalize(splats.quats, dim=-1)
        return splats.means, splats.log_scales, quats, splats.opacity_logits, splats.sh


def require_libraries() -> None:
    """Raises ValueError if a package is missing."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(f"ONNX files need the package {error.name}: pip install onnx onnxscript") from None


def save_onnx(stem: str | Path, G: Generator) -> list[Path]:
    """Writes <stem>-mapping.onnx and <stem>-synthesis.onnx of a generator on the CPU, and returns their paths.

    Raises ValueError for a generator whose scenes are no splats, and for one without a truncation centre.
    """
    if not G.makes_splats:
        raise ValueError("the scenes of this network are no splats: what a field needs to be seen is its renderer")
    if not G.w_avg_buffer:
        raise ValueError("this network has no mean w, which truncation pulls to")
    G = copy.deepcopy(G).requires_grad_(False).eval()
    z, ws = torch.randn(2, G.z_dim), torch.randn(2, G.num_ws, G.w_dim)
    told = (torch.rand(2, CAMERA_DIM),) if G.mapping_follows_camera else ()
    names = ["z", "psi", *(["camera"] if told else [])]
    free = {"z": {0: "batch"}, "psi": {}, **({"camera": {0: "batch"}} if told else {})}
    notes = _notes(G)
    return [
        _export(Path(f"{stem}-mapping.onnx"), Mapping(G), (z, torch.tensor(0.7), *told), names, ["ws"], free, notes),
        _export(Path(f"{stem}-synthesis.onnx"), Synthesis(G), (ws,), ["ws"], list(SPLATS), {"ws": {0: "batch"}}, notes),
    ]


def _notes(G: Generator) -> dict[str, str]:
    """Returns what the files say of themselves."""
    return {
        "network": network_key(G),
        "family": str(G.info.config["family"]) if G.info else "",
        "geometry": json.dumps(G.geometry.to_dict()),
        "splats": "means in world units; log_scales: ln of standard deviations; unit quats wxyz; logits of opacities; "
        "spherical harmonics, degree 0 first",
    }


@torch.no_grad()
def _export(
    path: Path,
    module: nn.Module,
    example: tuple[Tensor, ...],
    inputs: list[str],
    outputs: list[str],
    free: dict[str, Any],
    notes: dict[str, str],
) -> Path:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it names packages that no graph of ours asks for
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        program = torch.onnx.export(
            module.eval(), example, input_names=inputs, output_names=outputs, opset_version=OPSET, dynamo=True,
            dynamic_shapes=free, verbose=False,
        )  # fmt: skip
    assert program is not None
    program.model.metadata_props.update(notes)
    program.save(path)
    return path
