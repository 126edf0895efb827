"""Makes posed data sets of procedural heads and cars: `raycast` and `convex` cast the rays, `heads` and `cars` paint.

Other kinds of sets have rows of their own in KINDS. Shares with `gaussian/` only `Cameras`. Image i has identity
i and camera i of the seed, so a larger set starts with the images of a smaller one.
"""

import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import dnnlib
from gaussian import Cameras
from training.data.synthetic import cars, expressions, heads
from training.data.synthetic.car_traits import Hemisphere
from training.data.synthetic.raycast import EMPTY, Solids, cast, resolve_samples
from training.data.synthetic.traits import CameraSpread

FORMAT = 1  # version of the images; raise it with any change that changes a pixel
_CHUNK = 32  # images a worker takes at a time
_IMAGES_PER_WORKER = 100  # fewer images than this are rendered before another process has started


@dataclass(frozen=True)
class Kind:
    """Says how the pictures of a kind of set are made, and what its list of labels keeps besides."""

    title: str  # a few words for people
    write: Callable[[Path, int, Sequence[int], np.ndarray, int, int], int]  # see `heads.write_pictures`
    format: int  # version of the images; raise it with any change that changes a pixel
    beside: Callable[[int, range], dict[str, Any]] = lambda seed, indices: {}  # JSON-able, of (seed, pictures)
    spread: type[CameraSpread] = CameraSpread  # law of the cameras


KINDS = {
    "heads": Kind("ray-cast heads", heads.write_pictures, FORMAT),
    "expressions": Kind(
        "heads with expressions, whose parameters are written", expressions.write_pictures, 1, expressions.parameters
    ),
    "cars": Kind("ray-cast cars, seen from all around and above", cars.write_pictures, 1, spread=Hemisphere),
}


def spread_of(kind: str, options: Mapping[str, float | None]) -> CameraSpread:
    """Returns the law of a kind's cameras, with those of its fields that are not None. Raises ValueError."""
    if kind not in KINDS:
        raise ValueError(f"--kind={kind}: legal are {', '.join(KINDS)}")
    return KINDS[kind].spread(**{name: value for name, value in options.items() if value is not None})


class Pictures(NamedTuple):
    """Holds N ray-cast images."""

    images: Tensor  # uint8 [N, 3, R, R], not premultiplied: composite it over a background with the mask
    masks: Tensor  # uint8 [N, 1, R, R], share of the pixel that is covered, times 255
    depth: Tensor  # float32 [N, 1, R, R] mean camera z of the covered part in world units; 0 where nothing is


def sample_cameras(seed: int, indices: Sequence[int], spread: CameraSpread | None = None) -> Cameras:
    """Returns the cameras [N] of the images `indices` of the set `seed`, float32."""
    spread = spread or CameraSpread()
    angles = torch.tensor([spread.angles(seed, i) for i in indices], dtype=torch.float64).reshape(-1, 3)
    yaw, pitch, roll = angles.unbind(-1)
    way = torch.stack([yaw.sin() * pitch.cos(), pitch.sin(), yaw.cos() * pitch.cos()], dim=-1)
    intrinsics = [[spread.focal, 0.0, spread.cx], [0.0, spread.focal, spread.cy], [0.0, 0.0, 1.0]]
    level = Cameras.look_at(
        spread.radius * way, (0.0, 0.0, 0.0), intrinsics=torch.tensor(intrinsics, dtype=torch.float64)
    )
    turn = torch.eye(4, dtype=torch.float64).repeat(len(angles), 1, 1)
    turn[:, :2, :2] = torch.stack([roll.cos(), -roll.sin(), roll.sin(), roll.cos()], dim=-1).unflatten(-1, (2, 2))
    return Cameras(level.cam2world @ turn, level.intrinsics).to(dtype=torch.float32)


def render_heads(seed: int, indices: Sequence[int], cameras: Cameras, resolution: int, samples: int = 2) -> Pictures:
    """Renders the heads `indices` of the set `seed`, each under its own camera of `cameras` [N].

    samples: rays per pixel and axis.

    Raises ValueError if there is not one camera per head, or if a camera has skew.
    """
    return _stack(heads.render(seed, indices, _checked_labels(cameras, len(indices)), resolution, samples))


def render_cars(seed: int, indices: Sequence[int], cameras: Cameras, resolution: int, samples: int = 2) -> Pictures:
    """Renders the cars `indices` of the set `seed`, each under its own camera [N]; the rest is as of `render_heads`."""
    return _stack(cars.render(seed, indices, _checked_labels(cameras, len(indices)), resolution, samples))


def render_sphere(
    cameras: Cameras, centre: Sequence[float], radius: float, resolution: int, samples: int = 4
) -> Pictures:
    """Renders a black sphere under cameras [N]; its place in the image shows the camera convention."""
    eye, nothing = np.eye(3)[None], np.zeros((1, 4))
    sphere = Solids(np.array([centre], dtype=np.float64), np.full((1, 3), radius), eye, nothing)
    results = []
    for label in _checked_labels(cameras, len(cameras)):
        hits = cast(sphere, label[:16].reshape(4, 4), label[16:].reshape(3, 3), resolution, samples)
        results.append(resolve_samples(hits, np.zeros((int((hits.owner != EMPTY).sum()), 3)), resolution))
    return _stack(results)


def _stack(results: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Pictures:
    images, masks, depth = (torch.from_numpy(np.stack(column)) for column in zip(*results, strict=True))
    return Pictures(images, masks, depth)


def _checked_labels(cameras: Cameras, count: int) -> np.ndarray:
    if tuple(cameras.shape) != (count,):
        raise ValueError(f"cameras must have the leading shape [{count}], got {list(cameras.shape)}")
    labels = cameras.labels.to(device="cpu", dtype=torch.float64).numpy()  # [N, 25]
    if labels[:, [17, 19]].any():
        raise ValueError("cameras with skew (intrinsics [0, 1] or [1, 0] not 0) cannot be ray-cast")
    return labels


class Synthesis(NamedTuple):
    """Describes a synthetic set."""

    images: Path  # <dest>/<resolution>, the argument of `ImageDataset` and `--data`
    num: int  # images
    seconds: float  # spent on rendering and writing
    fresh: bool  # False if the set was there already


@dataclass(frozen=True)
class _Recipe:
    """Holds everything that the images of a set depend on."""

    num: int  # images
    resolution: int  # pixels
    seed: int
    samples: int  # rays per pixel and axis
    cameras: CameraSpread
    format: int = FORMAT
    kind: str = "heads"  # one of KINDS

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON-able values; sets of ray-cast heads are from before there were kinds."""
        values = asdict(self)
        return values if self.kind != "heads" else {k: v for k, v in values.items() if k != "kind"}


def synthesize_heads(
    dest: str | os.PathLike[str],
    num: int,
    resolution: int,
    seed: int = 0,
    spread: CameraSpread | None = None,  # the kind's if None
    samples: int = 2,  # per pixel and axis
    workers: int | None = None,  # processes; the number of cores if None
    progress: Callable[[int], None] | None = None,  # called with the number of images added since its last call
    kind: str = "heads",  # one of KINDS
) -> Synthesis:
    """Writes `num` pictures in the FFHQC layout: dest/dataset.json, dest/mask/00000.png, dest/<resolution>/00000.png.

    The set is made beside `dest` and renamed when it is whole. If `dest` holds exactly this set already, nothing
    happens.
    Raises ValueError for numbers that are out of range, FileExistsError if `dest` holds anything else.
    """
    dest = Path(dest)
    for name, value, low in (
        ("num", num, 1),
        ("resolution", resolution, 4),
        ("seed", seed, 0),
        ("samples", samples, 2),
    ):
        if value < low:
            raise ValueError(f"{name} = {value}: at least {low} is legal")
    recipe = _Recipe(num, resolution, seed, samples, spread or spread_of(kind, {}), KINDS[kind].format, kind)
    images = dest / str(resolution)
    if _holds(dest, recipe):
        return Synthesis(images, num, 0.0, fresh=False)
    started = time.perf_counter()
    dnnlib.require_place(dest, "--dest")
    dest.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f"{dest.name}.partial-", dir=dest.parent))
    try:
        building.chmod(0o755)  # mkdtemp keeps everybody else out
        _write_set(building, recipe, workers, progress or (lambda done: None))
        os.replace(building, dest)  # an empty `dest` is replaced, a full one is not
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return Synthesis(images, num, time.perf_counter() - started, fresh=True)


def _holds(dest: Path, recipe: _Recipe) -> bool:
    """Tells whether `dest` holds the recipe's set; raises FileExistsError if it holds something else."""
    if not dest.exists() or (dest.is_dir() and not any(dest.iterdir())):
        return False
    if not (dest / "dataset.json").is_file():
        raise FileExistsError(f"{dest} is not empty and holds no dataset.json: choose another folder or remove it")
    with open(dest / "dataset.json") as file:
        found = json.load(file).get("synthetic")
    if found != recipe.to_dict():
        raise FileExistsError(
            f"{dest} holds another data set ({found or 'not a synthetic one'}): choose another folder"
        )
    expected = {f"{i:05d}.png" for i in range(recipe.num)}
    for folder in (dest / "mask", dest / str(recipe.resolution)):
        missing = expected - {path.name for path in folder.glob("*.png")}
        if missing:
            raise FileExistsError(f"{folder} lacks {len(missing)} files of its set ({min(missing)}): remove {dest}")
    return True


def _write_set(folder: Path, recipe: _Recipe, workers: int | None, progress: Callable[[int], None]) -> None:
    labels = sample_cameras(recipe.seed, range(recipe.num), recipe.cameras).labels.numpy()  # [N, 25]
    (folder / "mask").mkdir()
    (folder / str(recipe.resolution)).mkdir()
    chunks = [np.arange(start, min(start + _CHUNK, recipe.num)) for start in range(0, recipe.num, _CHUNK)]
    workers = min(workers or os.cpu_count() or 1, max(recipe.num // _IMAGES_PER_WORKER, 1))
    jobs = [
        partial(KINDS[recipe.kind].write, folder, recipe.seed, c.tolist(), labels[c], recipe.resolution, recipe.samples)
        for c in chunks
    ]
    if workers == 1:
        for job in jobs:
            progress(job())
    else:
        # Not fork: this process may hold locks of torch's threads.
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            try:
                for future in [pool.submit(job) for job in jobs]:
                    progress(future.result())
            except BaseException:  # a stop signal must not wait for the whole set
                pool.shutdown(cancel_futures=True)
                raise
    entries = [[f"{i:05d}.png", label.tolist()] for i, label in enumerate(labels.astype(np.float64))]
    with open(folder / "dataset.json", "w") as file:
        beside = KINDS[recipe.kind].beside(recipe.seed, range(recipe.num))
        json.dump({"labels": entries, "synthetic": recipe.to_dict(), **beside}, file)
