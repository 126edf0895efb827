"""Films of scenes: panels, frames, and the file that they go to."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import dnnlib
from gaussian import Cameras, Geometry
from training.families.cgs.generator import Generator, HierarchicalGaussians
from training.families.cgs.inspection import Inspection
from training.images import quantize
from training.visualization.grids import color_depth, color_normals, depth_range, image_grid

PANELS = ("image", "alpha", "depth", "normals")
DEPTH_PROBES, DEPTH_PROBE_PIXELS = 6, 64  # frames of a film, and their size, that its depth colours are fitted to
PIXELS_PER_CALL = 1 << 21  # rendered at once; about 0.1 GiB of images, and enough views to fill the cores
SPLATS_PER_CALL = 1 << 21  # synthesised at once where every frame has heads of its own
CRF = 17  # x264's constant rate factor; 18 and below are called visually lossless


def yaw_range(checkpoint: dict[str, Any]) -> tuple[float, float]:
    """Smallest and largest yaw (radians) of the cameras that a checkpoint keeps for its pictures.

    Training takes them from the 5th to the 95th percentile of its data. checkpoint: what `load_checkpoint` returns.
    """
    yaw, _ = Cameras.from_labels(checkpoint["grid"]["labels"]).yaw_pitch(Geometry.from_dict(checkpoint["geometry"]))
    return float(yaw.min()), float(yaw.max())


def shown_background(G: Generator, asked: str | None) -> tuple[float, float, float]:
    """RGB 0..1 behind pictures and films: the colour asked for, or the one of training, white where that was random.

    Raises ValueError for what is no colour.
    """
    if asked is None:
        trained = (getattr(G, "checkpoint_config", None) or {}).get("background", "random")
        asked = "white" if trained == "random" else trained
    return dnnlib.parse_color(asked)


@dataclass(frozen=True)
class Look:
    """How a scene is shown."""

    resolution: int | None = None  # pixels of one panel; the generator's own if None
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)  # RGB 0..1
    show: tuple[str, ...] = ("image",)  # panels from left to right, of PANELS
    inspection: Inspection = field(default_factory=Inspection)
    depth_range: tuple[float, float] | None = None  # world units of the ends of depth's colours; of the call if None


@torch.no_grad()
def render_panels(G: Generator, scene: HierarchicalGaussians, cameras: Cameras, look: Look) -> Tensor:
    """B scenes from V cameras each: uint8 [B, V, 3, R, R * panels] on the CPU. cameras: [B, V]."""
    background = torch.tensor(look.background, device=scene.device)
    out = G.render(look.inspection.apply(scene, G), cameras, look.resolution, background)
    depth, alpha = out.depth.flatten(0, 1), out.alpha.flatten(0, 1)  # [B V, 1, R, R]
    panels = []
    for name in look.show:
        if name == "image":
            panel = quantize(out.image.flatten(0, 1)).cpu()
        elif name == "alpha":
            panel = quantize(2 * alpha - 1).cpu().expand(-1, 3, -1, -1)
        elif name == "depth":
            near, far = look.depth_range or (None, None)
            panel = color_depth(depth, alpha, near, far, background)
        else:
            panel = color_normals(depth, alpha, cameras.intrinsics.flatten(0, 1), background)
        panels.append(panel)
    return torch.cat(panels, dim=-1).unflatten(0, tuple(cameras.shape))


@torch.no_grad()
def render_frames(
    G: Generator,
    ws: Tensor,  # [B, num_ws, w_dim], or [F, B, num_ws, w_dim] for heads that change from frame to frame
    cameras: Cameras,  # [F]
    columns: int,  # of the grid that shows the B scenes
    look: Look = Look(),
) -> Iterator[np.ndarray]:
    """Yields one uint8 frame [rows * R, columns * R * panels, 3] per camera: all scenes seen from it.

    Scenes that stay are synthesised once. Several frames are rendered at a time; that changes none of them.
    """
    moving = ws.ndim == 4
    heads = ws.shape[-3]
    resolution = look.resolution or G.resolution
    chunk = max(1, PIXELS_PER_CALL // (heads * resolution**2))
    if moving:
        chunk = min(chunk, max(1, SPLATS_PER_CALL // (heads * sum(G.config.level_sizes))))
    else:
        scene = G.synthesis(ws)
    if "depth" in look.show and look.depth_range is None:
        look = dataclasses.replace(look, depth_range=_film_depth_range(G, ws, cameras, look.inspection))
    for start in range(0, len(cameras), chunk):
        some = cameras[start : start + chunk].to(ws.device)
        if moving:
            part = ws[start : start + chunk]  # [f, B, num_ws, w_dim]
            each = some.reshape(-1, 1).expand(-1, heads).reshape(-1, 1)  # [f B, 1]
            frames = render_panels(G, G.synthesis(part.flatten(0, 1)), each, look)[:, 0].unflatten(0, part.shape[:2])
        else:
            frames = render_panels(G, scene, some.reshape(1, -1).expand(heads, -1), look).transpose(0, 1)
        for frame in frames:  # [B, 3, R, R * panels]
            yield image_grid(frame, columns).permute(1, 2, 0).numpy()


def _film_depth_range(G: Generator, ws: Tensor, cameras: Cameras, inspection: Inspection) -> tuple[float, float]:
    """Ends of depth's colours for a whole film, from a few of its frames: with ends per frame it would flicker."""
    moments = torch.linspace(0, len(cameras) - 1, DEPTH_PROBES).round().long()
    ranges = []
    for k in moments.unique().tolist():
        scene = inspection.apply(G.synthesis(ws[k] if ws.ndim == 4 else ws), G)
        camera = cameras[k].to(ws.device).reshape(1, 1).expand(ws.shape[-3], 1)
        out = G.render(scene, camera, min(G.resolution, DEPTH_PROBE_PIXELS))
        if found := depth_range(out.depth.flatten(0, 1), out.alpha.flatten(0, 1)):
            ranges.append(found)
    return (min(near for near, _ in ranges), max(far for _, far in ranges)) if ranges else (0.0, 1.0)


class VideoWriter:
    """Writes frames to `path` (.mp4, H.264), or to numbered PNGs in a folder of that name where there is no ffmpeg.

    A context manager. `target` is what exists after it ends well: the file, or the folder. A film that breaks off
    leaves no file. Odd widths and heights gain a white column or row, which H.264's chroma subsampling needs.
    """

    def __init__(self, path: str | Path, fps: float):
        self._path, self._fps = Path(path), fps
        self._partial = self._path.with_name(f".{self._path.stem}.partial{self._path.suffix}")
        self._ffmpeg: Any = None
        self._count = 0
        self.has_ffmpeg = ffmpeg_available()
        self.target = self._path if self.has_ffmpeg else self._path.with_suffix("")

    def __enter__(self) -> "VideoWriter":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if not self.has_ffmpeg:
            self.target.mkdir(exist_ok=True)
            for stale in self.target.glob("frame*.png"):
                stale.unlink()
        return self

    def write(self, frame: np.ndarray) -> None:
        """frame: uint8 [H, W, 3], all of one size. Raises OSError if ffmpeg fails."""
        if not self.has_ffmpeg:
            Image.fromarray(frame).save(self.target / f"frame{self._count:05d}.png")
        else:
            height, width = frame.shape[:2]
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), constant_values=255)
            if self._ffmpeg is None:
                self._ffmpeg = _open_ffmpeg(self._partial, (frame.shape[1], frame.shape[0]), self._fps)
            self._ffmpeg.send(np.ascontiguousarray(frame))
        self._count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ffmpeg is not None:
            self._ffmpeg.close()
        if kind is None and self._ffmpeg is not None:
            self._partial.replace(self._path)
        self._partial.unlink(missing_ok=True)


def ffmpeg_available() -> bool:
    """Whether imageio-ffmpeg is installed and finds a program to run."""
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        return False
    return True


def _open_ffmpeg(path: Path, size: tuple[int, int], fps: float) -> Any:
    """A generator that takes frames; closing it ends the file."""
    import imageio_ffmpeg

    writer = imageio_ffmpeg.write_frames(
        str(path),
        size,
        fps=fps,
        codec="libx264",
        macro_block_size=2,
        output_params=["-crf", str(CRF), "-movflags", "+faststart"],
        ffmpeg_log_level="error",
    )
    writer.send(None)  # starts the program
    return writer
