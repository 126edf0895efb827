"""invert.py: pictures without a head, masks that mask nothing, cameras that are none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.bad_input.case import Case, Place

_GOOD = ("--network={NETWORK}", "--outdir={TMP}/out", "--device=cpu", "--heads=2", "--starts=1", "--steps=2")
_QUICK = (*_GOOD, "--part-steps=0", "--tune-steps=0", "--no-features")
_IMAGE, _MASK = "--image={TMP}/a.png", "--mask={TMP}/m.png"


def _case(name: str, argv: str, message: str, make: Callable[[Path], object] | None = None, **more) -> Case:
    def place(where: Place) -> None:
        if make is not None:
            make(where.tmp)

    return Case(f"invert: {name}", "invert", (*_QUICK, *argv.split()), message, place, **more)


def _save(path: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(path)


def _blob(size: int = 32) -> np.ndarray:
    """A grey disc on white, RGB."""
    y, x = np.mgrid[:size, :size] - size / 2
    return np.where((x**2 + y**2 < size**2 / 9)[..., None], 90, 255).repeat(3, -1).astype(np.uint8)


def _picture(folder: Path) -> None:
    _save(folder / "a.png", _blob())


def _noise(folder: Path) -> None:
    _save(folder / "a.png", np.random.RandomState(0).randint(0, 256, (32, 32, 3), np.uint8))


def _with_alpha(value: int) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        _save(folder / "a.png", np.dstack([_blob(), np.full((32, 32), value, np.uint8)]))

    return make


def _with_mask(value: int, size: int = 32) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        _picture(folder)
        _save(folder / "m.png", np.full((size, size), value, np.uint8))

    return make


def _colored_mask(folder: Path) -> None:
    _picture(folder)
    _save(
        folder / "m.png", np.dstack([_blob()[..., 0], np.full((32, 32), 200, np.uint8), np.zeros((32, 32), np.uint8)])
    )


def _with_cameras(content: object) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        _picture(folder)
        (folder / "c.json").write_text(json.dumps(content))

    return make


_FRONT = [1, 0, 0, 0, 0, -1, 0, 0, 0, 0, -1, 2.7, 0, 0, 0, 1, 4.26, 0, 0.5, 0, 4.26, 0.5, 0, 0, 1]


CASES = [
    _case("no picture", "", "Missing option '--image'"),
    _case("a picture that is not there", _IMAGE, "--image=TMP/a.png: no such file", real=True),
    _case("a folder", "--image={TMP}", "--image=TMP: is a folder; a picture is legal"),
    _case(
        "a picture of words", _IMAGE, "--image=TMP/a.png: is no picture", lambda f: (f / "a.png").write_text("a head")
    ),
    _case(
        "a picture that is not square", _IMAGE, "has 48 x 32 px, and a square is needed",
        lambda f: _save(f / "a.png", np.pad(_blob(), ((0, 0), (8, 8), (0, 0)))),
    ),
    _case("a picture too small", _IMAGE, "has 8 px; at least 16", lambda f: _save(f / "a.png", _blob(8))),
    _case("a picture of one colour", _IMAGE, "shows nothing", lambda f: _save(f / "a.png", np.full_like(_blob(), 90))),
    _case("no face in the picture", _IMAGE, "shows no head that this network could make", _noise, leaves="out"),
    _case("alpha without content", _IMAGE, "its alpha channel hides the picture", _with_alpha(0)),
    _case("a mask that covers all", f"{_IMAGE} {_MASK}", "covers the whole picture", _with_mask(255)),
    _case("a mask that hides all", f"{_IMAGE} {_MASK}", "--mask=TMP/m.png hides the picture", _with_mask(0)),
    _case("a mask of another size", f"{_IMAGE} {_MASK}", "has 16 x 16 px, its picture 32 x 32", _with_mask(9, 16)),
    _case("fewer masks than pictures", f"{_IMAGE},{{TMP}}/a.png {_MASK}", "1 mask\\(s\\) for 2 picture", _with_mask(9)),
    _case("a camera file that is not there", f"{_IMAGE} --camera={{TMP}}/c.json", "no such file of cameras", _picture),
    _case(
        "cameras of 16 numbers", f"{_IMAGE} --camera={{TMP}}/c.json", "must be 25 numbers.*got 16",
        _with_cameras([_FRONT[:16]]),
    ),
    _case(
        "more cameras than pictures", f"{_IMAGE} --camera={{TMP}}/c.json", "2 camera\\(s\\) for 1 picture",
        _with_cameras([_FRONT, _FRONT]),
    ),
    _case("a mask in colours", f"{_IMAGE} {_MASK}", "--mask=TMP/m.png: is a picture in colours", _colored_mask),
    _case("perceptual weights that are none", f"{_IMAGE} --perceptual={{TMP}}/a.png", "--perceptual=TMP/a.png", _picture),
    Case("invert: no folder", "invert", ("--network={NETWORK}", "--image={TMP}/a.png"), "Missing option '--outdir'"),
    _case("an encoder that is not there", f"{_IMAGE} --encoder={{TMP}}/e.pt", "--encoder=TMP/e.pt: no such file", _picture),
    _case("an encoder that is none", f"{_IMAGE} --encoder={{TMP}}/a.png", "not an encoder as --train-encoder", _picture),
    _case("an encoder to train in no file", "--train-encoder --encoder=none", "needs a file to write"),
    _case("labelled pictures for no encoder", f"{_IMAGE} --data={{DATA}}", "is read by --train-encoder alone", _picture),
    _case("labelled pictures too few", "--train-encoder --data={DATA}", "pictures; an encoder needs at least 400"),
    _case("background of words", f"{_IMAGE} --background=pink", "'pink' is not a colour", _picture),
]  # fmt: skip
