"""Films scenes: panels, frames, and the file that they go to."""

from __future__ import annotations

import dataclasses
from collections import abc, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import dnnlib
from gaussian import Cameras
from gaussian.scene import Scene
from training.families import family
from training.families.base import CheckpointInfo, Generator
from training.families.inspection import Inspection, View
from training.images import quantize, quantize_rgb
from training.visualization.grids import color_depth, color_normals, depth_range, image_grid

PANELS = ("image", "alpha", "depth", "normals")
DEPTH_PROBES, DEPTH_PROBE_PIXELS = 6, 64  # frames of a film, and their size, that its depth colours are fitted to
PIXELS_PER_CALL = 1 << 21  # rendered at once; about 0.1 GiB of images, and enough views to fill the cores
NUMBERS_PER_CALL = 1 << 21  # splats, or values of like cost, synthesised at once where heads change in every frame
FRAMES_WAITING = 8  # frames that are made before the writer has done with the first of them
FrameSink = abc.Generator[None, np.ndarray | None, None]  # is sent one frame after the other
CRF = 17  # x264's constant rate factor; 18 and below are called visually lossless
EFFORT = "superfast"  # x264's preset: larger files than "medium" makes, in less than half the time (docs/rendering.md)


def checkpoint_info(G: Generator) -> CheckpointInfo:
    """Returns what the generator's checkpoint knows. Raises ValueError for a generator that comes from none."""
    if G.info is None:
        raise ValueError("this generator comes from no checkpoint, so it knows neither its family nor its data")
    return G.info


def shown_background(G: Generator, asked: str | None) -> tuple[float, float, float]:
    """Returns the RGB 0..1 behind pictures and films: the colour asked for, or the one that the run's pictures have.

    Raises ValueError, naming the option, for what is no colour.
    """
    if asked is None:
        return dnnlib.parse_color(checkpoint_info(G).background)
    return dnnlib.parse_flag("--background", asked, dnnlib.parse_color)


def view_of(G: Generator, inspection: Inspection) -> View:
    """Makes the view that an inspection asks for. Raises ValueError, naming the option, for what G's family lacks."""
    return family(checkpoint_info(G).config["family"]).inspect(G, inspection)


def whole_scene(scene: Scene) -> Scene:
    """Shows the scene as it is: the default of `Look.view`."""
    return scene


@dataclass(frozen=True)
class Look:
    """Says how a scene is shown."""

    resolution: int | None = None  # pixels of one panel; the generator's own if None
    background: tuple[float, float, float] = (1.0, 1.0, 1.0)  # RGB 0..1
    show: tuple[str, ...] = ("image",)  # panels from left to right, of PANELS
    view: View = whole_scene  # from a scene to what is shown of it, see `view_of`
    depth_range: tuple[float, float] | None = None  # world units of the ends of depth's colours; of the call if None
    size: tuple[int, int] | None = None  # height and width of a panel, in place of `resolution`; not in films


@torch.no_grad()
def render_panels(G: Generator, scene: Scene, cameras: Cameras, look: Look) -> Tensor:
    """Renders B scenes from cameras [B, V] as uint8 [B, V, 3, R, R * panels] on the CPU."""
    background = torch.tensor(look.background, device=scene.device)
    out = G.render(look.view(scene), cameras, look.size or look.resolution, background)
    depth, alpha = out.depth.flatten(0, 1), out.alpha.flatten(0, 1)  # [B V, 1, R, R]
    panels = []
    for name in look.show:
        if name == "image":
            panel = quantize_rgb(out.rgb.flatten(0, 1)).cpu()
        elif name == "alpha":
            panel = quantize(2 * alpha - 1).cpu().expand(-1, 3, -1, -1)
        elif name == "depth":
            near, far = look.depth_range or (None, None)
            panel = color_depth(depth, alpha, near, far, background)
        else:
            panel = color_normals(depth, alpha, cameras.reshape(-1), background)
        panels.append(panel)
    joined = panels[0] if len(panels) == 1 else torch.cat(panels, dim=-1)
    return joined.unflatten(0, tuple(cameras.shape))


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
        chunk = min(chunk, max(1, NUMBERS_PER_CALL // (heads * G.scene_numbers)))
    else:
        scene = G.synthesis(ws).map(Tensor.contiguous)  # once; a rasteriser would copy it in every call
    if "depth" in look.show and look.depth_range is None:
        look = dataclasses.replace(look, depth_range=_film_depth_range(G, ws, cameras, look.view))
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


def _film_depth_range(G: Generator, ws: Tensor, cameras: Cameras, view: View) -> tuple[float, float]:
    """Returns the ends of depth's colours for a whole film: with ends for each frame, it would flicker."""
    moments = torch.linspace(0, len(cameras) - 1, DEPTH_PROBES).round().long()
    ranges = []
    for k in moments.unique().tolist():
        scene = view(G.synthesis(ws[k] if ws.ndim == 4 else ws))
        camera = cameras[k].to(ws.device).reshape(1, 1).expand(ws.shape[-3], 1)
        out = G.render(scene, camera, min(G.resolution, DEPTH_PROBE_PIXELS))
        if found := depth_range(out.depth.flatten(0, 1), out.alpha.flatten(0, 1)):
            ranges.append(found)
    return (min(near for near, _ in ranges), max(far for _, far in ranges)) if ranges else (0.0, 1.0)


class VideoWriter:
    """Writes frames to `path` (.mp4, H.264), or to numbered PNGs in a folder of that name where there is no ffmpeg.

    A context manager. `target` is what exists after it ends well: the file, or the folder. A film that breaks off
    leaves no file. Odd widths and heights gain a white column or row, which H.264's chroma subsampling needs. A thread
    does the work, while the caller makes the next frames.
    """

    def __init__(self, path: str | Path, fps: float) -> None:
        self._path, self._fps = Path(path), fps
        self._partial = self._path.with_name(f".{self._path.stem}.partial{self._path.suffix}")
        self._ffmpeg: FrameSink | None = None
        self._count = 0
        self._thread = ThreadPoolExecutor(1, "film")
        self._under_way: deque[Future[None]] = deque()
        self.has_ffmpeg = ffmpeg_available()
        self.target = self._path if self.has_ffmpeg else self._path.with_suffix("")

    def __enter__(self) -> VideoWriter:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if not self.has_ffmpeg:
            self.target.mkdir(exist_ok=True)
            for stale in self.target.glob("frame*.png"):
                stale.unlink()
        return self

    def write(self, frame: np.ndarray) -> None:
        """Adds a frame, uint8 [H, W, 3], all of one size, not to be changed from then on.

        Raises OSError if ffmpeg, or a file, failed over one of the frames so far; leaving the context does so too.
        """
        if len(self._under_way) == FRAMES_WAITING:
            self._under_way.popleft().result()
        self._under_way.append(self._thread.submit(self._write, frame, self._count))
        self._count += 1

    def _write(self, frame: np.ndarray, number: int) -> None:
        if not self.has_ffmpeg:
            Image.fromarray(frame).save(self.target / f"frame{number:05d}.png")
            return
        height, width = frame.shape[:2]
        if height % 2 or width % 2:
            frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), constant_values=255)
        if self._ffmpeg is None:
            self._ffmpeg = _open_ffmpeg(self._partial, (frame.shape[1], frame.shape[0]), self._fps)
        self._ffmpeg.send(np.ascontiguousarray(frame))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._thread.shutdown(cancel_futures=kind is not None)
            try:
                for frame in self._under_way if kind is None else ():
                    frame.result()
            finally:
                if self._ffmpeg is not None:
                    self._ffmpeg.close()
            if kind is None and self._ffmpeg is not None:
                self._partial.replace(self._path)
        finally:
            self._partial.unlink(missing_ok=True)


def ffmpeg_available() -> bool:
    """Tells whether imageio-ffmpeg is installed and finds a program to run."""
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        return False
    return True


def _open_ffmpeg(path: Path, size: tuple[int, int], fps: float) -> FrameSink:
    """Starts ffmpeg and returns what is sent the frames; closing it ends the file."""
    import imageio_ffmpeg

    writer: FrameSink = imageio_ffmpeg.write_frames(
        str(path),
        size,
        fps=fps,
        codec="libx264",
        macro_block_size=2,
        output_params=["-crf", str(CRF), "-preset", EFFORT, "-movflags", "+faststart"],
        ffmpeg_log_level="error",
    )
    writer.send(None)  # starts the program
    return writer
