"""Image sets, and making them."""

import json
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.bad_input import spoil
from tests.bad_input.case import Case, Place

_TRAIN = ("--outdir={TMP}/runs", "--device=cpu", "--kimg=0.016", "--metrics=none")
_SET = "{TMP}/set/32"


def _train(name: str, message: str, make: spoil.Make | None = None, data: str = _SET, **more) -> Case:
    return Case(name, "train", (f"--data={data}", *_TRAIN), message, make, **more)


def _tool(name: str, argv: str, message: str, make: spoil.Make | None = None, **more) -> Case:
    return Case(name, "dataset_tool", tuple(argv.split()), message, make, **more)


# ---- labels


def _matrices(change: Callable[[np.ndarray, np.ndarray], None], item: int | None = None) -> spoil.Make:
    """A copied set in which `change` writes into pose [4, 4] and intrinsics [3, 3] of one label, or of all."""

    def rewrite(entries: list) -> None:
        for entry in entries if item is None else entries[item : item + 1]:
            values = np.array(entry[1], dtype=np.float64)
            change(values[:16].reshape(4, 4), values[16:].reshape(3, 3))
            entry[1] = values.tolist()

    return spoil.labels(rewrite)


def _set(target: np.ndarray, value: object) -> None:
    target[...] = value


def _json(text: str) -> spoil.Make:
    return spoil.copied_set(lambda root: (root / "dataset.json").write_text(text) and None)


_LABELS = [
    _train("dataset.json is missing", r"dataset\.json: not found", spoil.copied_set(lambda r: (r / "dataset.json").unlink())),
    _train("dataset.json is empty", "dataset.json: is not JSON", _json("")),
    _train("dataset.json is no JSON", "dataset.json: is not JSON", _json("labels: yes")),
    _train("dataset.json ends in the middle", "dataset.json: is not JSON", _json('{"labels": [["00000.png", [1.0, ')),
    _train("10 million nested brackets", "dataset.json: is nested too deeply", _json("[" * 10_000_000)),
    _train("labels are null", 'dataset.json: has no list "labels"', _json('{"labels": null}')),
    _train("labels are NaN", 'has no list "labels"', _json('{"labels": NaN}')),
    _train("labels are a word", 'has no list "labels"', _json('{"labels": "none"}')),
    _train("a label without a name", r"labels\[0\] is not", _json('{"labels": [[1, 2]]}')),
    _train("an image without a label", "00003.png: has no label", spoil.labels(lambda e: e.pop(3) and None)),
    _train("an image with two labels", "00003.png: has two labels", spoil.labels(lambda e: [*e, e[3]])),
    _train("a label 16 long", "00003.png: label: must be 25 numbers.*got 16", spoil.labels(lambda e: _set16(e[3]))),
    _train("a label of words", "holds something that is not a number", spoil.number(4, "one")),
    _train("a label with null", "holds something that is not a number", spoil.number(4, None)),
    _train("NaN in a label", r"label\[7\]: must be finite", spoil.number(7, float("nan"))),
    _train("infinity in a label", r"label\[7\]: must be finite", spoil.number(7, float("inf"))),
    _train("1e308 in a label", r"label\[7\]: must lie within 1e\+06", spoil.number(7, 1e308)),
    _train("a number of 400 digits in a label", "holds something that is not a number", spoil.number(7, 10**400)),
    _train("a transposed pose", "00003.png: pose .*is transposed", _matrices(lambda m, k: _set(m, m.T.copy()), 3)),
    _train("a pose whose last row is not 0 0 0 1", "last row must be 0 0 0 1", spoil.number(15, 2.0)),
    _train("a pose with a scale", "00003.png: rotation .*must be orthonormal", _matrices(lambda m, k: _set(m[:3, :3], 1.1 * m[:3, :3]), 3)),
    _train("a pose with a flipped axis", r"determinant \+1", _matrices(lambda m, k: _set(m[:3, 0], -m[:3, 0]), 3)),
    _train("world-to-camera poses", "is world-to-camera", _matrices(lambda m, k: _set(m, np.linalg.inv(m)))),
    _train("OpenGL axes", "OpenGL axes\\?", _matrices(lambda m, k: _set(m[:, 1:3], -m[:, 1:3]))),
    _train("intrinsics in pixels", "these look like pixels", _matrices(lambda m, k: _set(k[:2], 512 * k[:2]))),
    _train("a negative focal length", "fx and fy must be at least 0.1 image widths", spoil.number(16, -4.0)),
    _train("intrinsics with skew", "no skew", spoil.number(17, 0.1)),
]  # fmt: skip


def _set16(entry: list) -> None:
    entry[1] = entry[1][:16]


# ---- files


def _picture(change: Callable[[Path], object], name: str = "00003.png") -> spoil.Make:
    return spoil.copied_set(lambda root: change(root / "32" / name) and None)


def _mask(change: Callable[[Path], object]) -> spoil.Make:
    return spoil.copied_set(lambda root: change(root / "mask" / "00003.png") and None)


def _masks(change: Callable[[np.ndarray], np.ndarray]) -> spoil.Make:
    """A copied set whose masks hold only 0 and 255, and then were passed through `change`."""

    def rewrite(root: Path) -> None:
        for path in (root / "mask").iterdir():
            whole = (np.asarray(Image.open(path)) > 127).astype(np.uint8) * 255
            Image.fromarray(change(whole).astype(np.uint8)).save(path)

    return spoil.copied_set(rewrite)


def _cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def _promise(path: Path) -> None:
    data = path.read_bytes()
    header = b"IHDR" + struct.pack(">II", 60000, 60000) + data[24:29]
    path.write_bytes(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])


def _link_out(path: Path) -> None:
    path.unlink()
    os.symlink("/etc/hostname", path)


def _latin(path: Path) -> None:
    with open(os.fsencode(path.parent) + b"/caf\xe9.png", "wb") as file:
        file.write(path.read_bytes())


def _empty_folder(root: Path) -> None:
    shutil.rmtree(root / "32")
    (root / "32").mkdir()


def _two_resolutions(root: Path) -> None:
    shutil.copytree(root / "32", root / "64")


_FILES = [
    _train("--data does not exist", "is neither a folder nor a zip", data="{TMP}/none"),
    _train("--data is a text file", "is neither a folder nor a zip", spoil.file("notes.txt"), "{TMP}/notes.txt"),
    _train("--data is an empty folder", "holds no images", spoil.copied_set(_empty_folder), real=True),
    _train("--data is a root with two resolutions", "holds the image folders 32, 64", spoil.copied_set(_two_resolutions), "{TMP}/set"),
    _train("a mask is missing", "mask/00003.png: no such mask", spoil.copied_set(lambda r: (r / "mask" / "00003.png").unlink())),
    _train("two images of one name", "has the name of", _picture(lambda p: shutil.copy(p, p.with_suffix(".jpg")))),
    _train("the first image is not square", "00000.png: is a mask of 32x32 pixels for a picture of 32x16", _picture(lambda p: Image.new("RGB", (32, 16)).save(p), "00000.png")),
    _train("a link out of the set", "is a link out of the set", _picture(_link_out)),
    _train("a link to a folder", "is a link to a folder", _picture(lambda p: os.symlink(".", p.with_name("again")))),
    _train("a file name that is not UTF-8", "caf.*: the file name must be UTF-8", _picture(_latin)),
    _tool("validate: a truncated PNG", f"validate {_SET}", "1 problem in TMP/set/32, the first: .*00003.png: cannot be read: is cut short", _picture(_cut)),
    _tool("validate: an empty PNG", f"validate {_SET}", "1 problem in TMP/set/32, the first: .*00003.png: cannot be read: is no PNG", _picture(lambda p: p.write_bytes(b""))),
    _tool("validate: a GIF called PNG", f"validate {_SET}", "1 problem in TMP/set/32, the first: .*00003.png: cannot be read: is no PNG", _picture(lambda p: Image.new("L", (32, 32)).save(p, "GIF"))),
    _tool("validate: a PNG that promises 60000x60000 pixels", f"validate {_SET}", "1 problem in TMP/set/32, the first: .*00003.png: cannot be read: has more pixels than [0-9,]+, which are legal", _picture(_promise)),
    _tool("validate: an image of another size", f"validate {_SET}", "1 problem in TMP/set/32, the first: .*00003.png: is 8x8 pixels, the set is 32x32", _picture(lambda p: Image.new("RGB", (8, 8)).save(p))),
    _tool("validate: a 16-bit image", f"validate {_SET}", "1 problem in TMP/set/32, the first: .*00003.png: has pixels of 16 bits", _picture(lambda p: Image.fromarray(np.zeros((32, 32), np.uint16)).save(p))),
    _tool("validate: a CMYK image", f"validate {_SET}", "1 problem in TMP/set/32, the first: .*00003.png: has pixels of mode CMYK", _picture(lambda p: Image.new("CMYK", (32, 32)).save(p, "JPEG"))),
    _tool("validate: --fix without --dest", "validate {DATA} --fix", "--fix and --dest go together"),
    _tool("validate: --resolution without --fix", "validate {DATA} --resolution=8", "--resolution goes with --fix"),
    _tool("validate: masks of 0 and 1", f"validate {_SET}", "1 problem in .* the masks reach 1 of 255", _masks(lambda m: m // 255)),
    _tool("validate: inverted masks", f"validate {_SET}", "1 problem in .* the masks look inverted", _masks(lambda m: 255 - m)),
    _tool("validate: empty masks", f"validate {_SET}", "1 problem in .* all 8 masks are empty", _masks(lambda m: 0 * m)),
    _tool("validate: masks of classes' colours", f"validate {_SET}", "mask/00003.png: is a coloured picture and no mask; a mask is grey", _mask(lambda p: Image.new("RGB", (32, 32), (0, 200, 0)).save(p))),
    _tool("validate: a mask of another shape", f"validate {_SET}", "mask/00003.png: is a mask of 32x16 pixels for a picture of 32x32", _mask(lambda p: Image.new("L", (32, 16), 255).save(p))),
    _tool("validate: labels of another place", f"validate {_SET}", "none of its 8 labels .such as '/old/00000.png'. names an image here, such as '32/00000.png'", spoil.labels(lambda e: [["/old/" + n, v] for n, v in e])),
    _tool("convert: masks of 0 and 1", f"convert {_SET} --dest={{TMP}}/out", "the masks reach 1 of 255", _masks(lambda m: m // 255)),
    _train("training on masks of 0 and 1", "the masks reach 1 of 255", _masks(lambda m: m // 255)),
    _train("training on inverted masks", "the masks look inverted", _masks(lambda m: 255 - m)),
    _tool("validate: nothing there", "validate {TMP}/none", "does not exist"),
    _tool("convert: a truncated PNG", f"convert {_SET} --dest={{TMP}}/out", "00003.png: cannot be read", _picture(_cut), real=True),
]  # fmt: skip


# ---- zips


def _packed(spoiled: Callable[[zipfile.ZipFile], object]) -> spoil.Make:
    """The good set as TMP/set.zip, into which `spoiled` has written more."""

    def make(place: Place) -> None:
        root = place.data.parent
        with zipfile.ZipFile(place.tmp / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(root.rglob("*")):
                if path.is_file():
                    archive.write(path, path.relative_to(root))
            spoiled(archive)

    return make


def _archive(change: Callable[[bytes], bytes]) -> spoil.Make:
    def make(place: Place) -> None:
        _packed(lambda archive: None)(place)
        (place.tmp / "set.zip").write_bytes(change((place.tmp / "set.zip").read_bytes()))

    return make


def _link(archive: zipfile.ZipFile) -> None:
    info = zipfile.ZipInfo("32/99999.png")
    info.external_attr = 0o120777 << 16
    archive.writestr(info, "/etc/hostname")


def _twice(archive: zipfile.ZipFile) -> None:
    info = archive.getinfo("32/00001.png")
    archive.filelist.append(info)  # a second entry of the directory


def _zip(name: str, message: str, make: spoil.Make) -> Case:
    return _train(name, message, make, "{TMP}/set.zip")


_BIG = bytes(20 << 20)
_ZIPS = [
    _zip("zip with an absolute path", "is an absolute path", _packed(lambda a: a.writestr("/etc/x.png", b"x"))),
    _zip("zip with a drive letter", "is an absolute path", _packed(lambda a: a.writestr("C:/x.png", b"x"))),
    _zip("zip with '..'", r"leads out of the zip by '\.\.'", _packed(lambda a: a.writestr("32/../../x.png", b"x"))),
    _zip("zip with a member that unpacks to 1000 times its size", "times its size; 200 times are legal", _packed(lambda a: a.writestr("32/9.png", _BIG))),
    _zip("zip with a member compressed 10,000 to 1", "compression method 12", _packed(lambda a: a.writestr("32/9.png", _BIG, zipfile.ZIP_BZIP2))),
    _zip("zip with a member that is there twice", "is in the zip twice", _packed(_twice)),
    _zip("zip with a link", "is a link; files are legal", _packed(_link)),
    _zip("zip with a name that is not UTF-8", "set.zip/32/000.*: the file name must be UTF-8", _archive(lambda data: data.replace(b"32/00003", b"32/000\xe93"))),
    _zip("zip cut in half", "set.zip: is not a whole zip", _archive(lambda data: data[: len(data) // 2])),
    _zip("zip that is empty", "set.zip: is not a whole zip", _archive(lambda data: b"")),
    _zip("zip without labels", "dataset.json: not found", _archive(lambda data: data.replace(b"dataset.json", b"dataset.jsox"))),
]  # fmt: skip


# ---- making sets


def _transforms(**frame: object) -> spoil.Make:
    pose = np.eye(4)
    pose[2, 3] = 3.0  # looks at the origin
    content = {"camera_angle_x": 0.2, "frames": [{"file_path": "a.png", "transform_matrix": pose.tolist(), **frame}]}

    def make(place: Place) -> None:
        shutil.copy(place.data / "00000.png", place.tmp / "a.png")
        (place.tmp / "transforms.json").write_text(json.dumps(content))

    return make


def _colmap(cameras: str, images: str) -> spoil.Make:
    def make(place: Place) -> None:
        spoil.file("cameras.txt", cameras)(place)
        spoil.file("images.txt", images)(place)

    return make


_PINHOLE = "1 PINHOLE 32 32 100 100 16 16\n"
_VIEW = "1 1 0 0 0 0 0 3 1 a.png\n\n"
_FROM = "import {TMP} --dest={TMP}/out --from="
_MAKING = [
    _tool("import: an unknown kind", "import {DATA} --dest={TMP}/out --from=llff", "'llff' is not one of"),
    _tool("import: no COLMAP model", _FROM + "colmap", "holds no COLMAP model"),
    _tool("import: COLMAP with lens distortion", _FROM + "colmap", "the model OPENCV_FISHEYE with lens distortion of a kind", _colmap("1 OPENCV_FISHEYE 32 32 100 100 16 16 0 0 0 0\n", _VIEW)),
    _tool("import: COLMAP with a camera model of the future", _FROM + "colmap", "camera 1: has the model HELIX, which is not known here; PINHOLE", _colmap("1 HELIX 32 32 100\n", _VIEW)),
    _tool("import: COLMAP with a parameter too few", _FROM + "colmap", "camera 1: has 3 parameters; PINHOLE has 4", _colmap("1 PINHOLE 32 32 100 16 16\n", _VIEW)),
    _tool("import: COLMAP with a picture of two poses", _FROM + "colmap", "a.png: is there twice, with two poses", _colmap(_PINHOLE, _VIEW + _VIEW)),
    _tool("import: COLMAP with half a line of points", _FROM + "colmap", "images.txt: .*the line 2, '1 2', is not number", _colmap(_PINHOLE, _VIEW.strip() + "\n1 2\n")),
    _tool("import: COLMAP with a camera of two words", _FROM + "colmap", "cameras.txt: is damaged or no COLMAP file: the line 1, '1 PINHOLE', is not number, model", _colmap("1 PINHOLE\n", "")),
    _tool("import: COLMAP with a camera of words", _FROM + "colmap", "cameras.txt: .*the line 1, '1 PINHOLE wide .*', is not number, model", _colmap("1 PINHOLE wide 32 100 100 16 16\n", "")),
    _tool("import: COLMAP with a pose of words", _FROM + "colmap", "images.txt: .*the line 1, '1 1 0 up .*', is not number, four", _colmap(_PINHOLE, "1 1 0 up 0 0 0 3 1 a.png\n\n")),
    _tool("import: COLMAP without registered pictures", _FROM + "colmap", "holds no registered picture", _colmap(_PINHOLE, "# none\n")),
    _tool("import: COLMAP without the pictures", _FROM + "colmap", "a.png: no such picture", _colmap(_PINHOLE, "1 1 0 0 0 0 0 3 1 a.png\n\n")),
    _tool("import: COLMAP with a camera that is not there", _FROM + "colmap", "has camera 7, which", _colmap(_PINHOLE, "1 1 0 0 0 0 0 3 7 a.png\n\n")),
    _tool("import: COLMAP with a quaternion of zeros", _FROM + "colmap", "holds no rotation", _colmap(_PINHOLE, "1 0 0 0 0 0 0 3 1 a.png\n\n")),
    _tool("import: COLMAP in a zip", "import {TMP}/m.zip --dest={TMP}/out --from=colmap", "TMP/m.zip: is a zip; --from=colmap reads a folder: unpack it", spoil.file("m.zip")),
    _tool("import: no transforms.json", _FROM + "transforms", "transforms.json: not found; --from=transforms reads it"),
    _tool("import: transforms.json is no JSON", _FROM + "transforms", "transforms.json: is not JSON", spoil.file("transforms.json", "{")),
    _tool("import: transforms.json without frames", _FROM + "transforms", 'has no list "frames"', spoil.file("transforms.json", "{}")),
    _tool("import: a frame without its picture", _FROM + "transforms", "b.png: no such picture", _transforms(file_path="b.png")),
    _tool("import: a frame without a matrix", _FROM + "transforms", "transform_matrix must be 4x4", _transforms(transform_matrix=[1, 2])),
    _tool("import: a frame with NaN", _FROM + "transforms", "transform_matrix must be 4x4 finite", _transforms(transform_matrix=[[float("nan")] * 4] * 4)),
    _tool("import: a frame with lens distortion", _FROM + "transforms", r"lens distortion \(k4\) of a kind", _transforms(k4=0.1)),
    _tool("import: distortion that is not wanted", _FROM + "transforms --distortion=refuse", "has distortion, and --distortion=refuse", _transforms(k1=0.1)),
    _tool("import: a frame of a fisheye", _FROM + "transforms", r"frames\[0\]: is_fisheye is True", _transforms(is_fisheye=True)),
    _tool("import: a frame with a rolling shutter", _FROM + "transforms", r"frames\[0\]: rolling_shutter is set", _transforms(rolling_shutter=[0, 0, 0.1])),
    _tool("import: a frame of other axes", _FROM + "transforms", r"frames\[0\]: from_mitsuba is set: its matrices have other axes", _transforms(from_mitsuba=True)),
    _tool("import: a frame of another shape", _FROM + "transforms", "its camera is for 64x32", _transforms(w=64, h=32, fl_x=30)),
    _tool("import: pictures beside an EG3D set", "import {DATA} --dest={TMP}/out --from=eg3d --images={TMP}", "--images goes with --from=colmap"),
    _tool("import: distortion of labels", "import {DATA} --dest={TMP}/out --from=eg3d --distortion=refuse", "--distortion goes with --from=colmap"),
    _tool("convert: --dest is in use", "convert {DATA} --dest={TMP}", "TMP: exists already; choose another --dest", spoil.file("thesis.tex")),
    _tool("convert: --dest below a file", "convert {DATA} --dest={TMP}/thesis.tex/out", "--dest=TMP/thesis.tex/out: .* TMP/thesis.tex is no folder", spoil.file("thesis.tex")),
    _tool("convert: a crop that leaves the picture", "convert {DATA} --dest={TMP}/out --crop=0,0,40,40", "--crop=0,0,40,40 leaves it"),
    _tool("convert: a crop that is not square", "convert {DATA} --dest={TMP}/out --crop=0,0,10,20", "of a square are legal"),
    _tool("convert: a crop of words", "convert {DATA} --dest={TMP}/out --crop=face", "'face': centre, or left,top"),
    _tool("convert: resolution 0", "convert {DATA} --dest={TMP}/out --resolution=0", "'--resolution': 0 is not in the range"),
    _tool("show-cameras: a point of two numbers", "show-cameras {DATA} --out={TMP}/c.png --point=1,2", "'--point': '1,2': three numbers"),
    _tool("show-cameras: an unknown list", f"show-cameras {_SET} --out={{TMP}}/c.png --index-list=mine", "--index-list=mine: not found; put it at", spoil.copied_set(lambda root: None)),
    _tool("show-cameras: a list that is not there", "show-cameras {DATA} --out={TMP}/c.png --index-list={TMP}/l.json", "no such index list"),
    _tool("show-cameras: a list of other images", "show-cameras {DATA} --out={TMP}/c.png --index-list={TMP}/l.json", "l.json: names no image of the set", spoil.file("l.json", "[99999]")),
    _tool("show-cameras: a list of fractions", "show-cameras {DATA} --out={TMP}/c.png --index-list={TMP}/l.json", "l.json: must be a JSON list of whole numbers", spoil.file("l.json", "[1.5]")),
    _tool("show-cameras: a picture that cannot be written", "show-cameras {DATA} --out={TMP}/none/c.png", "'--out': .*the folder TMP/none does not exist"),
    _tool("rebalance: scores below 0", "rebalance {DATA} --out={TMP}/l.json --scores={TMP}/s.json", "s.json: 00000.png: a score must be", spoil.file("s.json", '{"00000.png": -1}')),
    _tool("rebalance: scores that are no JSON", "rebalance {DATA} --out={TMP}/l.json --scores={TMP}/s.json", "s.json: is not JSON", spoil.file("s.json", "smile")),
    _tool("rebalance: a list that cannot be written", "rebalance {DATA} --out={TMP}/none/l.json", "'--out': .*the folder TMP/none does not exist"),
    _tool("rebalance: bins of 0 degrees", "rebalance {DATA} --out={TMP}/l.json --bin-degrees=0", "'--bin-degrees': 0.0 is not in the range"),
    _tool("synthesize: no images", "synthesize --dest={TMP}/h --num=0", "'--num': 0 is not in the range"),
    _tool("synthesize: a camera within the head", "synthesize --dest={TMP}/h --num=1 --radius=0.2", "--radius=0.2: more than 0.45 is legal"),
    _tool("synthesize: a camera within the car", "synthesize --kind=cars --dest={TMP}/h --num=1 --radius=0.2", "--radius=0.2: more than 0.29 is legal"),
    _tool("synthesize: a spread of cameras that are all around", "synthesize --kind=cars --dest={TMP}/h --num=1 --yaw-std=0.3", "--yaw-std does not go with --kind=cars"),
    _tool("synthesize: a kind that does not exist", "synthesize --kind=boats --dest={TMP}/h --num=1", "--kind=boats: legal are heads, expressions, cars"),
    _tool("synthesize: --dest is in use", "synthesize --dest={TMP} --num=1", "TMP is not empty and holds no dataset.json", spoil.file("thesis.tex")),
    _tool("synthesize: --dest below a file", "synthesize --dest={TMP}/thesis.tex/h --num=1", "--dest=TMP/thesis.tex/h: .* TMP/thesis.tex is no folder", spoil.file("thesis.tex")),
]  # fmt: skip

CASES = [*_LABELS, *_FILES, *_ZIPS, *_MAKING]
