"""Films of scenes: paths of the camera, frames, and the file that they go to."""

import math
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gaussian import Cameras, Geometry
from training.dataset import quantize
from training.generator import Generator
from training.visualize import image_grid

PATHS = ("orbit", "front")
FRONT_PITCH_SHARE = 0.25  # of the yaw: heads are photographed from far more yaws than pitches
PIXELS_PER_CALL = 1 << 21  # rendered at once; about 0.1 GiB of images, and enough views to fill the cores
CRF = 17  # x264's constant rate factor; 18 and below are called visually lossless


def camera_path(
    kind: str,  # orbit: a full turn; front: once round an ellipse before the face
    geometry: Geometry,
    num_frames: int,
    max_yaw: float = math.pi / 6,  # radians; of "front" only
) -> Cameras:
    """Cameras [num_frames] about the centre. The path closes: the camera after the last one would be the first.

    An orbit starts at the front and moves towards world +x at pitch 0.
    Raises ValueError for an unknown kind or no frame.
    """
    if num_frames < 1:
        raise ValueError(f"a film needs at least 1 frame, got {num_frames}")
    phase = torch.arange(num_frames, dtype=torch.float64) * (2 * math.pi / num_frames)
    if kind == "orbit":
        yaw, pitch = phase, torch.zeros_like(phase)
    elif kind == "front":
        yaw, pitch = max_yaw * phase.sin(), FRONT_PITCH_SHARE * max_yaw * phase.cos()
    else:
        raise ValueError(f"camera path {kind!r} does not exist; legal are {', '.join(PATHS)}")
    return geometry.orbit(yaw, pitch).to(dtype=torch.float32)


def seed_latents(seeds: list[int], z_dim: int) -> Tensor:
    """One latent per seed, [len(seeds), z_dim], drawn as StyleGAN's scripts draw theirs: RandomState(seed).randn."""
    return torch.from_numpy(np.stack([np.random.RandomState(seed).randn(z_dim) for seed in seeds]).astype(np.float32))


def yaw_range(checkpoint: dict[str, Any]) -> tuple[float, float]:
    """Smallest and largest yaw (radians) of the cameras that a checkpoint keeps for its pictures.

    Training takes them from the 5th to the 95th percentile of its data. checkpoint: what `load_checkpoint` returns.
    """
    yaw, _ = Cameras.from_labels(checkpoint["grid"]["labels"]).yaw_pitch(Geometry.from_dict(checkpoint["geometry"]))
    return float(yaw.min()), float(yaw.max())


@torch.no_grad()
def render_frames(
    G: Generator,
    ws: Tensor,  # [B, num_ws, w_dim]
    cameras: Cameras,  # [F]
    columns: int,  # of the grid that shows the B scenes
    resolution: int | None = None,  # of one cell; the generator's own if None
) -> Iterator[np.ndarray]:
    """Yields one uint8 frame [rows * R, columns * R, 3] per camera: all scenes seen from it, over white.

    The scenes are synthesised once; views are rendered several at a time.
    """
    resolution = resolution or G.resolution
    scene = G.synthesis(ws)
    views = max(1, PIXELS_PER_CALL // (len(ws) * resolution**2))
    for start in range(0, len(cameras), views):
        some = cameras[start : start + views].to(ws.device)
        images = quantize(G.render(scene, some.reshape(1, -1).expand(len(ws), -1), resolution).image)
        for frame in images.unbind(1):  # [B, 3, R, R]
            yield image_grid(frame, columns).permute(1, 2, 0).numpy()


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
