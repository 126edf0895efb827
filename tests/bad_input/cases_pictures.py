"""Pictures and films."""

from tests.bad_input import spoil
from tests.bad_input.case import Case, Place

SAMPLES, VIDEOS = "gen_samples", "gen_videos"
_GOOD = ("--network={NETWORK}", "--outdir={TMP}/out", "--device=cpu")
_FILE = ("--network={NETWORK}", "--outdir={TMP}/file", "--device=cpu")
_BELOW = ("--network={NETWORK}", "--outdir={TMP}/file/out", "--device=cpu")


def _loop(place: Place) -> None:
    (place.tmp / "loop").symlink_to(place.tmp / "loop")


def _samples(name: str, argv: str, message: str, **more) -> Case:
    return Case(f"samples: {name}", SAMPLES, (*_GOOD, *argv.split()), message, **more)


def _videos(name: str, argv: str, message: str, **more) -> Case:
    return Case(f"film: {name}", VIDEOS, (*_GOOD, *argv.split()), message, **more)


CASES = [
    Case("samples: no network", SAMPLES, _GOOD[1:], "Missing option '--network'"),
    Case(
        "samples: outdir is a file",
        SAMPLES,
        _FILE,
        "--outdir=TMP/file: .* TMP/file is no folder",
        make=spoil.file("file"),
    ),
    Case(
        "samples: outdir below a file",
        SAMPLES,
        _BELOW,
        "--outdir=TMP/file/out: .* TMP/file is no folder",
        make=spoil.file("file"),
    ),
    Case(
        "samples: outdir is a link to itself",
        SAMPLES,
        (_GOOD[0], "--outdir={TMP}/loop"),
        "--outdir=TMP/loop: .* TMP/loop is no folder",
        make=_loop,
    ),
    _samples("seeds of words", "--seeds=many", "--seeds=many: .*'many' is not a list of whole numbers"),
    _samples("seeds run backwards", "--seeds=5-2", "--seeds=5-2: .*'5-2' runs backwards; write 2-5"),
    _samples("no seeds", "--seeds=", "--seeds=: .*is not a list of whole numbers"),
    _samples("ten billion seeds", "--seeds=0-9999999999", "--seeds=0-9999999999: '9999999999' is too large"),
    _samples("a million seeds", "--seeds=0-999999", "--seeds=0-999999: '0-999999' makes more than 100,000 numbers"),
    _samples(
        "an axis of no file",
        "--splats=none --up=-y",
        "--up says how splats are written, and --splats=none that none are; leave out one",
    ),
    _samples("splats in an unknown format", "--formats=ply,obj", "'obj' is not one of ply, compressed.ply, splat, spz"),
    _samples(
        "an axis that a format rules out", "--formats=spz --up=-y", r"--formats=spz: up='-y': in a .spz \+y is up"
    ),
    _samples("negative seed", "--seeds=-1", "--seeds=-1: .*is not a list of whole numbers"),
    _samples("fractional seed", "--seeds=1.5", "--seeds=1.5: .*is not a list of whole numbers"),
    _samples("yaws of words", "--yaws=left", "--yaws=left is not a list of degrees"),
    _samples("infinite yaw", "--yaws=0,inf", "--yaws=0,inf: every yaw must be finite"),
    _samples("yaw that is no number", "--yaws=nan", "--yaws=nan: every yaw must be finite"),
    _samples(
        "ws into a folder that is not there",
        "--w-out={TMP}/none/ws.npz",
        "'--w-out': .*the folder TMP/none does not exist",
    ),
    _samples("background of words", "--background=pink", "--background=pink: 'pink' is not a colour"),
    _samples("unknown flag", "--colour=red", "No such option '--colour'"),
    _samples("an argument too many", "more", "unexpected extra argument"),
    Case("film: no network", VIDEOS, _GOOD[1:], "Missing option '--network'"),
    Case(
        "film: outdir is a file",
        VIDEOS,
        _FILE,
        "--outdir=TMP/file: .* TMP/file is no folder",
        make=spoil.file("file"),
    ),
    Case(
        "film: outdir below a file",
        VIDEOS,
        _BELOW,
        "--outdir=TMP/file/out: .* TMP/file is no folder",
        make=spoil.file("file"),
    ),
    _videos("grid of words", "--grid=square", "--grid=square: 'square' is not a grid"),
    _videos("grid of no columns", "--grid=0x2", "--grid=0x2: '0x2' is not a grid"),
    _videos(
        "grid larger than the seeds",
        "--seeds=0-2 --grid=2x2",
        "--grid=2x2 has 4 cells: 3 heads are no multiple",
    ),
    _videos("a million seeds", "--seeds=0-999999", "--seeds=0-999999: '0-999999' makes more than 100,000 numbers"),
    _videos("seeds of words", "--seeds=a-b", "--seeds=a-b: 'a-b' is not a list"),
    _videos("unknown flag", "--colour=red", "No such option '--colour'"),
]
