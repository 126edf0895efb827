"""view.py: networks, ports and pages that there cannot be."""

from __future__ import annotations

from tests.bad_input.case import Case

_STATIC = ("--network={NETWORK}", "--static={TMP}/heads.html", "--device=cpu")


def _view(name: str, argv: str, message: str, **more) -> Case:
    return Case(f"view: {name}", "view", tuple(argv.split()), message, **more)


CASES = [
    _view("no network", "--port=8123", "Missing option '--network'", real=True),
    _view("no such network", "--network={TMP}/none.pkl", "--network=.*none.pkl: no such file or folder"),
    _view("a folder without a snapshot", "--network={TMP}", "a folder without a network-snapshot-NNNNNN.pkl"),
    _view(
        "a port of others", "--network={NETWORK} --port=8123 --host=192.0.2.1", "--host=192.0.2.1 --port=8123: .*give"
    ),
    Case("view: heads of words", "view", (*_STATIC, "--heads=abc"), "--heads=abc: .*is not a list of whole numbers"),
    Case("view: too many heads", "view", (*_STATIC, "--heads=0-99999"), "heads of .* splats do not fit on a page"),
    Case(
        "view: a page in no folder",
        "view",
        ("--network={NETWORK}", "--static={TMP}/none/heads.html"),
        "the folder .*none does not exist",
    ),
]
