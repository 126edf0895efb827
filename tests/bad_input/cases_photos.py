"""Portraits and their landmarks."""

import json

import numpy as np
from PIL import Image

from tests.bad_input import spoil
from tests.bad_input.case import Case, Place

_IMPORT = "import {TMP}/in --from=photos --dest={TMP}/out --resolution=32"
_POINTS = [[10.0 * (i % 8), 10.0 * (i // 8)] for i in range(68)]  # a grid: no face


def _tool(name: str, argv: str, message: str, make: spoil.Make | None = None, words: tuple[str, ...] = (), **more) -> Case:  # fmt: skip
    return Case(name, "dataset_tool", (*argv.split(), *words), message, make, **more)


def _folder(content: object = None, text: str | None = None) -> spoil.Make:
    """TMP/in with one picture, a.png, and landmarks.json, unless `content` is None."""

    def make(place: Place) -> None:
        (place.tmp / "in").mkdir()
        noise = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)
        Image.fromarray(noise).save(place.tmp / "in" / "a.png")
        if text is not None or content is not None:
            (place.tmp / "in" / "landmarks.json").write_text(text if text is not None else json.dumps(content))

    return make


def _faces(*faces: object, order: object = "dlib68", name: str = "a.png", **more: object) -> spoil.Make:
    return _folder({"order": order, "pictures": {name: {"faces": list(faces), **more}}})


_POINT = [[1.0], *_POINTS[1:]]

CASES = [
    _tool("photos: a folder without pictures", _IMPORT, "TMP/in: holds no pictures", spoil.file("in/landmarks.json", "{}")),
    _tool("photos: no landmarks", _IMPORT, "landmarks.json: not found; docs/photographs.md has its layout", _folder()),
    _tool("photos: landmarks that are no JSON", _IMPORT, "landmarks.json: is not JSON", _folder(text="{")),
    _tool("photos: landmarks without pictures", _IMPORT, 'landmarks.json: has no object "pictures"', _folder({"order": "dlib68"})),
    _tool("photos: an unknown order", _IMPORT, '"order": \'wflw98\': dlib68, 3ddfa68, mediapipe468, mediapipe478 are legal', _faces(order="wflw98")),
    _tool("photos: an unknown word about EXIF", _IMPORT, '"exif": 7: "applied" and "ignored" are legal', _folder({"order": "dlib68", "exif": 7, "pictures": {"a.png": {"faces": []}}})),
    _tool("photos: a picture without a list of faces", _IMPORT, 'a.png: has no list "faces"', _folder({"order": "dlib68", "pictures": {"a.png": [[1, 2]]}})),
    _tool("photos: a face of 478 points as dlib's", _IMPORT, r"a.png: faces\[0\]: must be 68 points, got 478 points", _faces([[1.0, 2.0]] * 478)),
    _tool("photos: a point of one number", _IMPORT, r"a.png: faces\[0\]\[0\]: must be \[x, y\] in pixels", _faces(_POINT)),
    _tool("photos: a point that is NaN", _IMPORT, r"must be \[x, y\] in pixels, got \[nan", _faces([[float("nan"), 1.0], *_POINTS[1:]])),
    _tool("photos: landmarks in shares of the picture", _IMPORT, "no coordinate is above 0.8; pixels are legal", _faces((np.array(_POINTS) / 100).tolist())),
    _tool("photos: a size of zero", _IMPORT, r'"size": \[0, 5\]: \[width, height\] in pixels is legal', _faces(_POINTS, size=[0, 5])),
    _tool("photos: landmarks of other pictures", _IMPORT, "names none of the 1 pictures: it has b.png, the folder a.png", _faces(_POINTS, name="b.png")),
    _tool("photos: no face in any picture", _IMPORT, r"none of 1 pictures can be used: 1 without a face \(a.png\)", _faces()),
    _tool("photos: landmarks of no face", _IMPORT, '"order" of the landmarks right.: none of 1 pictures .* whose landmarks fit no face', _faces(_POINTS)),
    _tool("photos: without --resolution", "import {DATA} --from=photos --dest={TMP}/out", "--from=photos needs --resolution"),
    _tool("photos: a file instead of a folder", "import {NETWORK} --from=photos --dest={TMP}/out --resolution=32", "reads a folder of pictures"),
    _tool("photos: a dest in use", f"{_IMPORT.replace('TMP}/out', 'TMP}/in')}", "TMP/in: exists already; choose another --dest", _folder()),
    _tool("photos: a picture that is named twice", _IMPORT, 'landmarks.json: has the key "a.png" twice in one object', _folder(text='{"pictures": {"a.png": {}, "a.png": {}}}')),
    _tool("photos: --crop", _IMPORT + " --crop=centre", "--crop does not go with --from=photos", _folder()),
    _tool("photos: --up", _IMPORT + " --up=z", "--up does not go with --from=photos", _folder()),
    _tool("photos: --zoom for another importer", "import {DATA} --from=eg3d --dest={TMP}/out --zoom=0.9", "--zoom goes with --from=photos"),
    _tool("photos: two sources of landmarks", _IMPORT + " --landmarks={DATA}/00000.png --landmarks-command=x", "--landmarks and --landmarks-command exclude", _folder()),
    _tool("photos: a detector that is not there", _IMPORT, "--landmarks-command=no-such-program .*: cannot be run: No such file", _folder(), ("--landmarks-command=no-such-program {in} {out}",)),
    _tool("photos: a detector that fails", _IMPORT, "--landmarks-command=false .*: ended with exit code 1", _folder(), ("--landmarks-command=false {in} {out}",)),
    _tool("photos: a detector that writes nothing", _IMPORT, "wrote no file {out}", _folder(), ("--landmarks-command=true {in} {out}",)),
    _tool("photos: a detector without places for its files", _IMPORT + " --landmarks-command=true", "--landmarks-command=true: must hold {in} and {out}", _folder()),
    _tool("validate: --like a folder that is no set", "validate {DATA} --like={TMP}/in", "TMP/dataset.json: not found", spoil.file("in/notes.txt")),
    _tool("validate: --like with --fix", "validate {DATA} --like={DATA} --fix --dest={TMP}/out", "--fix and --like exclude each other"),
]  # fmt: skip
