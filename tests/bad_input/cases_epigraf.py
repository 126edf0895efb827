"""Fields along rays, and sets whose labels are angles."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from tests.bad_input import spoil
from tests.bad_input.case import Case


def _angles(entries: object) -> spoil.Make:
    """A copied set with angles in place of labels."""
    return spoil.copied_set(
        lambda root: (root / "dataset.json").write_text(json.dumps({"camera_angles": entries})) and None
    )


def enlarged(root: Path) -> None:
    """Makes pictures of 64 px, and no others."""
    for folder in ("32", "mask"):
        for path in sorted((root / folder).glob("*.png")):
            with Image.open(path) as picture:
                made = picture.resize((64, 64))
            path.unlink()
            made.save(path)
    (root / "32").rename(root / "64")


def _import(name: str, entries: object, message: str, options: str = "") -> Case:
    argv = ("import", "{TMP}/set", "--from=epigraf", "--dest={TMP}/out", *options.split())
    return Case(name, "dataset_tool", argv, message, _angles(entries))


def _train(name: str, options: str, message: str) -> Case:
    argv = ("--data={TMP}/set/64", "--outdir={TMP}/runs", "--device=cpu", "--preset=epigraf-tiny", *options.split())
    return Case(name, "train", argv, message, spoil.copied_set(enlarged))


CASES = [
    _import("angles: there are none", None, 'dataset.json: has no "camera_angles"'),
    _import(
        "angles: a yaw of more than half a turn",
        {"32/00000.png": [3.5, 1.5, 0]},
        "camera_angles of 32/00000.png: yaw=3.5: -pi to pi are legal, radians",
    ),
    _import(
        "angles: a pitch in degrees", {"32/00000.png": [0.5, 90, 0]}, r"pitch=90: 0 \(from above\) to pi are legal"
    ),
    _import("angles: all 0", {"32/00000.png": [0, 0, 0]}, "every yaw is 0: they say nothing of the cameras"),
    _import("angles: two numbers", {"32/00000.png": [0.5, 1.5]}, "three numbers are legal: yaw, pitch, roll"),
    _import(
        "angles: of no picture",
        {"99999.png": [0.5, 1.5, 0]},
        "none of its 1 camera_angles, such as 99999, names a picture here",
    ),
    _import(
        "angles: a field of view of a whole turn",
        {"32/00000.png": [0.5, 1.5, 0]},
        "'--fov': 360.0 is not in the range",
        "--fov=360",
    ),
    Case(
        "angles: --fov of labels",
        "dataset_tool",
        ("import", "{DATA}", "--from=eg3d", "--dest={TMP}/out", "--fov=12"),
        "--fov goes with --from=epigraf",
    ),
    _train(
        "frustum of the data outside of the cube",
        "--cube-scale=0.2",
        "--cube-scale=0.2: the frustum of the data's cameras lies outside of the cube: its corners are 0.2089 from the origin",
    ),
    _train(
        "rays outside of the cube",
        "--cube-scale=0.1",
        "the frustum lies outside of the cube, which reaches from 0.9 to 1.1",
    ),
    _train(
        "rays that end before they begin",
        "--ray-start=1.2",
        "--ray-start=1.2: must be 0 or more, and less than --ray-end=1.12",
    ),
    _train("patches larger than the images", "--patch-resolution=128", "--patch-resolution=128: images have 64 px"),
    _train(
        "patches of whole images, and a law of patches",
        "--patch-resolution=64",
        "--patch-law=beta: a patch of 64 px is the whole image",
    ),
    _train(
        "law of patches that does not exist",
        "--patch-law=gamma",
        "--patch-law=gamma: legal are beta, uniform, discrete, whole",
    ),
    _train("backdrop that does not exist", "--bg-model=cylinder", "--bg-model=cylinder: legal are none, plane, sphere"),
    _train(
        "camera code that does not exist", "--disc-camera=euler", "--disc-camera=euler: legal are none, raw, fourier"
    ),
]
