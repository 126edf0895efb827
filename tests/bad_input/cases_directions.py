"""Directions of w, and ONNX files."""

from __future__ import annotations

from tests.bad_input import spoil
from tests.bad_input.case import Case

_NETWORK = "--network={NETWORK}"
_TABLE = "seed,smile\n" + "".join(f"{k},{k % 3}\n" for k in range(5))


def _find(name: str, argv: str, message: str, **more) -> Case:
    flags = (_NETWORK, "--dest={TMP}/d.npz", "--device=cpu", *argv.split())
    return Case(f"directions: {name}", "find_directions", flags, message, **more)


CASES = [
    Case("directions: no network", "find_directions", ("--dest={TMP}/d.npz",), "Missing option '--network'", real=True),
    _find("an unknown method", "--method=ica", "'ica' is not one of pca, layers"),
    _find("more than there are", "--count=100000 --samples=50", "--count=100000: 50 heads and w of .* at most"),
    _find("no table of scores", "--scores={TMP}/none.csv", "--scores=.*none.csv: no such file"),
    _find(
        "a table of few heads",
        "--scores={TMP}/s.csv",
        "--scores=.*s.csv: 5 rows, and at least 20 say something",
        make=spoil.file("s.csv", _TABLE),
    ),
    _find("other scores that are not there", "--free", "--free says what other scores do, and there is no --scores"),
    Case(
        "directions: a film along a file that is none",
        "gen_videos",
        (_NETWORK, "--outdir={TMP}/out", "--direction={TMP}/d.npz:3"),
        "d.npz: not a file of directions as find_directions.py writes it",
        make=spoil.file("d.npz", "none"),
    ),
    Case(
        "directions: a page with a file that is none",
        "view",
        (_NETWORK, "--directions={TMP}/none.npz"),
        "none.npz: no such file of directions",
    ),
    Case("onnx: no network", "export_onnx", ("--outdir={TMP}/out",), "Missing option '--network'"),
    Case(
        "onnx: a network that is none",
        "export_onnx",
        ("--network={TMP}/net.pkl", "--outdir={TMP}/out"),
        "net.pkl",
        make=spoil.file("net.pkl", "none"),
    ),
]
