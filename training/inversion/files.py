"""Writes what an inversion found: latent, cameras, tuned network, pictures, film, splats, figures, and a page."""

from __future__ import annotations

import dataclasses
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gaussian import Gaussians, Splats, save_splats
from gaussian.export import check_format
from training.checkpoint import RECORDS, load_checkpoint, save_checkpoint
from training.families.base import Generator
from training.images import quantize
from training.inversion.cameras import yaw_pitch_degrees
from training.inversion.diagnosis import Finding
from training.inversion.inversion import Inversion, Settings
from training.runs.charts import line_chart
from training.runs.page import grid, page, picture, section, value_table
from training.visualization import latents
from training.visualization.camera_paths import camera_path, write_cameras
from training.visualization.grids import enlarge, image_grid
from training.visualization.video import VideoWriter, checkpoint_info

VIEWS = 7  # beside the pictures, across the data's yaws
SHOWN_PIXELS = 192  # about the size of a picture on the page
FRAMES, FPS = 48, 24  # of the film
DIFFERENCE_GAIN = 4  # of the third column

STYLE = """
.findings td:first-child{font-weight:600}.findings .bad td:first-child{color:#c43}
.findings .good td:first-child{color:#0a7d3b}
"""


@torch.no_grad()
def comparison(found: Inversion) -> Tensor:
    """Returns each picture, what was found and their difference times 4, side by side: [3 V, 3, R, R] in -1..1."""
    shown, _ = found.shown(found.cameras)
    goal = found.target.images
    off = (DIFFERENCE_GAIN * (shown - goal).abs()).clamp(0, 1)
    return torch.stack([goal, shown, off], 1).flatten(0, 1) * 2 - 1


@torch.no_grad()
def around(found: Inversion) -> Tensor:
    """Returns the head from VIEWS sides as the latent alone gives it, then as it was found: [2 VIEWS, 3, R, R]."""
    yaws = torch.linspace(*checkpoint_info(found.G).yaw_limits, VIEWS)
    cameras = found.G.geometry.orbit(yaws).to(found.cameras.device, found.cameras.dtype)
    before = found.original.render(
        found.original.synthesis(found.ws),
        cameras.reshape(1, -1),
        found.target.images.shape[-1],
        found.target.background,
    ).rgb[0]
    return torch.cat([before.clamp(0, 1), found.shown(cameras)[0]]) * 2 - 1


def figures(found: Inversion, findings: Sequence[Finding], settings: Settings, names: Sequence[str]) -> dict[str, Any]:
    """Returns what was measured as JSON-able values."""
    yaw, pitch = yaw_pitch_degrees(found.cameras, found.G.geometry)
    return {
        "pictures": list(names),
        "psnr_db": found.stages[-1].psnr,
        "yaw_deg": yaw.tolist(),
        "pitch_deg": pitch.tolist(),
        "stages": [dataclasses.asdict(stage) for stage in found.stages],
        "findings": [dataclasses.asdict(finding) for finding in findings],
        "settings": dataclasses.asdict(settings),
    }


def save_tuned(path: Path, network: str, found: Inversion) -> None:
    """Writes the tuned network as a checkpoint that every script loads. Raises CheckpointError, OSError.

    G_ema is the tuned one. What a run needs to go on is left out; the discriminator stays.
    """
    state = {name: record for name, record in load_checkpoint(network).items() if name in RECORDS}
    for name in ("format", "revision", "checksum"):
        state.pop(name, None)
    state |= {"G": {}, "G_ema": found.G.state_dict(), "opt": {name: {} for name in state["opt"]}, "best": {}}
    save_checkpoint(path, state)


def save_film(path: Path, found: Inversion) -> Path:
    """Films the head from side to side; returns what was written, a folder of pictures where there is no ffmpeg."""
    limits = checkpoint_info(found.G).yaw_limits
    cameras = camera_path("wiggle", found.G.geometry, FRAMES, limits).to(found.cameras.device)
    factor = max(1, SHOWN_PIXELS // found.target.images.shape[-1])
    with VideoWriter(path, FPS) as film:
        for start in range(0, FRAMES, 8):
            frames = quantize(2 * found.shown(cameras[start : start + 8])[0] - 1).cpu().permute(0, 2, 3, 1).numpy()
            for frame in frames:
                film.write(enlarge(frame, factor))
    return film.target


def _splats(G: Generator, scene: Any) -> Gaussians:
    """Returns the splats of one head, without a background of their own, as the data's frontal camera sees them."""
    scene = scene.foreground() if G.has_background else scene
    assert isinstance(scene, Splats)
    return scene.as_gaussians(G.geometry.frontal().positions.to(scene.device)[None])


@torch.no_grad()
def require_formats(G: Generator, formats: Sequence[str]) -> None:
    """Raises ValueError for the first format that cannot hold the splats of a network."""
    if not G.makes_splats:
        return
    splats = _splats(G, G.synthesis(latents.frontal_ws(G, torch.zeros(1, G.z_dim), psi=0.0)))
    for name in formats:
        try:
            check_format(name, splats, "y")
        except ValueError as error:
            raise ValueError(f"--formats={name}: {error}") from None


def save_splat_file(path: Path, found: Inversion) -> None:
    """Writes the head's splats in the units of the data's labels, in the format of the file's name."""
    geometry = found.G.geometry
    splats = _splats(found.G, found.scene)
    save_splats(path, splats.transformed(translation=geometry.origin, scale=geometry.world_scale))


def write_all(
    found: Inversion,
    findings: Sequence[Finding],
    settings: Settings,
    network: str,  # file of the checkpoint
    names: Sequence[str],  # of the pictures
    outdir: Path,
    formats: Sequence[str] = ("ply",),  # of `gaussian.export.FORMATS`, for the splats
) -> list[Path]:
    """Writes everything into a folder and returns the files. Raises CheckpointError, OSError."""
    paths = [outdir / name for name in ("w.npz", "cameras.json")]
    latents.save_ws(paths[0], found.ws)
    write_cameras(paths[1], found.cameras.to("cpu"), found.G.geometry)
    if found.G is not found.original:
        paths.append(outdir / "network-tuned.pkl")
        save_tuned(paths[-1], network, found)
    if found.G.makes_splats:
        for name in formats:
            paths.append(outdir / f"head.{name}")
            save_splat_file(paths[-1], found)
    pictures = {"fit.png": _png(comparison(found), 3), "views.png": _png(around(found), VIEWS)}
    for name, content in pictures.items():
        paths.append(outdir / name)
        paths[-1].write_bytes(content)
    paths.append(save_film(outdir / "film.mp4", found))
    record = figures(found, findings, settings, names)
    (outdir / "inversion.json").write_text(json.dumps(record, indent=1) + "\n")
    (outdir / "inversion.html").write_text(build_page(record, pictures))
    return [*paths, outdir / "inversion.json", outdir / "inversion.html"]


def _png(images: Tensor, columns: int) -> bytes:
    """Returns a grid of images [N, 3, R, R] in -1..1, enlarged for the eye, as a PNG."""
    tiles: np.ndarray = image_grid(images, columns).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(enlarge(tiles, max(1, SHOWN_PIXELS // images.shape[-1]))).save(buffer, "PNG")
    return buffer.getvalue()


def build_page(record: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """Returns an HTML page that needs no other file. record: of `figures`; pictures: PNGs fit.png and views.png."""
    stages = record["stages"]
    series = {
        name: [(float(k), stage["psnr"][i]) for k, stage in enumerate(stages)]
        for i, name in enumerate(record["pictures"])
    }
    rows = "".join(
        f"<tr class={'good' if f['good'] else 'bad'}><td>{html.escape(f['what'])}<td>{html.escape(f['text'])}"
        for f in record["findings"]
    )
    rows_of_stages = "".join(
        f"<tr><td>{k} {stage['name']}<td>{min(stage['psnr']):.2f} dB<td>{stage['seconds']:.1f} s"
        f"<td>{stage['processor_seconds']:.1f} s of processors"
        for k, stage in enumerate(stages)
    )
    numbered = ", ".join(f"{k} {stage['name']}" for k, stage in enumerate(stages))
    chart = line_chart("PSNR of the pictures, dB", series, numbered)
    sections = [
        f"<h1>Inversion of {html.escape(', '.join(record['pictures']))}</h1>",
        picture(pictures["fit.png"], "picture, what was found, difference times 4"),
        section("How good it is, and why not better", f"<table class=findings>{rows}</table>"),
        section("From other sides", picture(pictures["views.png"], "above before tuning, below after it")),
        section("Stage by stage", f"{grid([chart])}<table>{rows_of_stages}</table>"),
        section("Settings", value_table(dict(record["settings"]))),
    ]
    return page("Inversion", sections, STYLE)
