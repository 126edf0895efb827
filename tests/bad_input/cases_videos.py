"""Films and samples."""

import json

from tests.bad_input import spoil
from tests.bad_input.case import Case

_NETWORK = "--network={NETWORK}"
_TO = "--outdir={TMP}/out"


def _film(name: str, *flags: str, message: str, **more) -> Case:
    return Case(name, "gen_videos", (_NETWORK, _TO, *flags), message, **more)


def _samples(name: str, *flags: str, message: str, **more) -> Case:
    return Case(name, "gen_samples", (_NETWORK, _TO, *flags), message, **more)


def _cameras(content: list) -> spoil.Make:
    return spoil.file("path.json", json.dumps(content))


_FRONTAL = [1, 0, 0, 0, 0, -1, 0, 0, 0, 0, -1, 2.7, 0, 0, 0, 1]

# fmt: off
CASES = [
    _film("heads that fill no grid", "--seeds=0-3", "--grid=3x1", message="--grid=3x1 has 3 cells: 4 heads"),
    _film("seeds that are no numbers", "--seeds=x", message="--seeds=x: 'x' is not a list of whole numbers"),
    _film("a block of a network without any", "--control=expression", message="--control=expression: the latents of this network have no"),
    _film("keys without a block", "--key-expressions=keys.json", message="--key-expressions goes with --control=BLOCK"),
    _film("a grid of one number", "--grid=2", message="--grid=2: '2' is not a grid"),
    _film("an unknown path of the camera", "--path=square", message="--path=square: camera path 'square' does not exist"),
    _film("no such file of cameras", "--path={TMP}/none.json", message="none.json: no such file of cameras"),
    _film("cameras that are no JSON", "--path={TMP}/path.json", message="path.json: is not JSON",
          make=spoil.file("path.json", "[[")),
    _film("no camera in the file", "--path={TMP}/path.json", message="path.json: no cameras", make=_cameras([])),
    _film("a camera of 16 numbers", "--path={TMP}/path.json", message="path.json: camera 0: label: must be 25 numbers .*got 16",
          make=_cameras([_FRONTAL])),
    _film("a camera with focal length in pixels", "--path={TMP}/path.json", message="path.json: camera 0: .*pixels",
          make=_cameras([[*_FRONTAL, 2183.5, 0, 256, 0, 2183.5, 256, 0, 0, 1]])),
    _film("an output folder that is a device", "--seeds=0", "--outdir=/dev/null/x", message="--outdir=/dev/null/x: .* /dev/null is no folder"),
    _film("a panel that does not exist", "--show=image,mesh", message="'--show': 'mesh' is not one of"),
    _film("a background that is no colour", "--background=pink", message="--background=pink: 'pink' is not a colour"),
    _film("a level that does not exist", "--levels=7", message="--levels: level 7 does not exist; the splats have levels 0 to"),
    _film("a point that does not exist", "--point=9999", message="--point=9999: the initial points are 0 to"),
    _film("neighbours of no point", "--nearest=3", message="--nearest=3 needs a --point"),
    _film("points that are no numbers", "--point=nose", message="--point=nose: 'nose' is not a list of whole numbers"),
    _film("a direction of three angles", "--colors-from=1,2,3", message="--colors-from=1,2,3 is no yaw"),
    _film("two ways to colour splats", "--color-levels", "--color-points", message="--color-levels and --color-points both say"),
    _film("no background to leave out", "--disable-background", message="--disable-background: the scenes of this network have no background"),
    _film("films of heads in a grid", "--seeds=0-1", "--grid=2x1", "--interpolate=none", message="--interpolate=none makes a film of each head, so --grid=2x1"),
    _film("lines between finished heads", "--w-file={TMP}/ws.npz", "--interpolate=z", message="--w-file=TMP/ws.npz holds finished heads, so --interpolate=z means"),
    _film("a mapping told the film's cameras that is told none", "--mapping-camera=film", message="--mapping-camera=film: the mapping of this network is told no"),
    _film("turns round cameras of a file", "--path={TMP}/path.json", "--turns=2", message="path.json holds one camera per frame, so --turns means nothing",
          make=_cameras([_FRONTAL])),
    _film("ws of no file", "--w-file={TMP}/none.npz", message="none.npz: no such file of ws"),
    _film("ws that are text", "--w-file={TMP}/ws.npz", message="ws.npz: not an .npz of ws",
          make=spoil.file("ws.npz", "hello")),
    _film("seeds beside ws", "--w-file={TMP}/ws.npz", "--seeds=1", message="--w-file=TMP/ws.npz holds finished heads, so --seeds means nothing"),
    _samples("yaws that are no numbers", "--yaws=a,b", message="--yaws=a,b is not a list of degrees"),
    _samples("a yaw that is not finite", "--yaws=nan", message="--yaws=nan: every yaw must be finite"),
    _samples("a range of seeds that runs backwards", "--seeds=3-1", message="--seeds=3-1: the range '3-1' runs backwards"),
    _samples("a level that does not exist, in samples", "--levels=7", message="--levels: level 7 does not exist; the splats have levels 0 to"),
    _samples("pictures of no pixel", "--resolution=0", message="'--resolution': 0 is not in the range x>=1"),
    _samples("two ways to name the heads", "--seeds=1", "--seed=4", message="--seeds and --seed both say which heads"),
    _samples("samples into a file", "--outdir={TMP}/file", message="--outdir=TMP/file: .* TMP/file is no folder", make=spoil.file("file")),
]
# fmt: on
