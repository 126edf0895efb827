"""Comparing."""

import json

import numpy as np
from PIL import Image

from tests.bad_input import spoil
from tests.bad_input.case import Case, Place
from training.checkpoint import load_checkpoint, save_checkpoint


def _case(name: str, argv: str, message: str, make=None, **more) -> Case:
    fixed = ("--data={DATA}", "--outdir={TMP}/out", "--device=cpu")
    return Case(name, "compare", (*fixed, *argv.split()), message, make, **more)


def _network(**config: object):
    """The good checkpoint as TMP/net.pkl with other values in its configuration."""

    def make(place: Place) -> None:
        state = load_checkpoint(place.network)
        kept = {name: record for name, record in state.items() if name not in ("format", "revision", "checksum")}
        save_checkpoint(place.tmp / "net.pkl", kept | {"config": state["config"] | config})

    return make


def _of_other_data(place: Place) -> None:
    state = load_checkpoint(place.network)
    kept = {name: record for name, record in state.items() if name not in ("format", "revision", "checksum")}
    mark = {"items": 5, "labels": "0" * 64}
    own = {
        "progress": state["progress"] | {"data": mark},
        "config": state["config"] | {"data": "/other/32", "index_list": "all"},
    }
    save_checkpoint(place.tmp / "net.pkl", kept | own)


def _larger_images(root) -> None:
    for path in (root / "32").iterdir():
        Image.fromarray(np.asarray(Image.open(path)).repeat(2, axis=0).repeat(2, axis=1)).save(path)
    for path in (root / "mask").iterdir():
        path.unlink()
    (root / "mask").rmdir()
    (root / "32").rename(root / "64")


def _copy(place: Place) -> None:
    (place.tmp / "net.pkl").write_bytes(place.network.read_bytes())


def _quoted(content: object):
    return spoil.file("q.json", json.dumps(content))


_ENTRY = {"system": "A", "data": "B", "source": "C", "values": {"FID": 1.0}}
_ONE = "--networks={NETWORK} --metrics=swd8"

CASES = [
    _case("nothing to compare", "--metrics=swd8", "nothing to compare: give --networks, --runs or --train", real=True),
    _case("compare what is not there", "--networks={NETWORK},{TMP}/none.pkl", "none.pkl: no such checkpoint"),
    _case("compare a network cut in half", "--networks={NETWORK},{TMP}/net.pkl", "net.pkl: is damaged or cut short",
          spoil.network(lambda content: content[: len(content) // 2])),
    _case("compare a network named twice", "--networks={NETWORK},{NETWORK}", "--networks=.*: NETWORK is there twice"),
    _case("compare a network with its copy", "--networks={NETWORK},{TMP}/net.pkl", "TMP/net.pkl: is the same network as NETWORK", _copy),
    _case("compare by no such metric", "--networks={NETWORK} --metrics=swd8,beauty", "--metrics=swd8,beauty: metric 'beauty' does not exist; legal are fid<N>_full"),
    _case("compare by a metric named twice", "--networks={NETWORK} --metrics=swd8,swd8", "--metrics=swd8,swd8: swd8 is there twice"),
    _case("compare without the detector", "--networks={NETWORK} --metrics=swd8,fid8_full", "fid8_full: it needs the weights of the 2015 Inception network: --detector"),
    _case("compare with a detector that is not there", "--networks={NETWORK} --metrics=kid8_full --detector=no.pth", "kid8_full: --detector=no.pth: no such file"),
    _case("compare networks of another resolution", "--networks={NETWORK} --data={TMP}/set/64", "NETWORK: makes images of 32 px, the images in --data=TMP/set/64 have 64 px",
          spoil.copied_set(_larger_images)),
    _case("compare networks of other data", "--networks={NETWORK},{TMP}/net.pkl", "TMP/net.pkl: was trained on other data ./other/32, 5 items. than --data=DATA .8 items",
          _of_other_data),
    _case("compare over two backgrounds", "--networks={NETWORK},{TMP}/net.pkl --background=white", "net.pkl: was trained over black, .* over white; --background=own",
          _network(background="black")),
    _case("compare over no colour", "--networks={NETWORK} --background=mauve", "--background=mauve: 'mauve' is not a colour; .* .or auto, own"),
    _case("compare what is no run", "--runs={TMP}", "--runs: TMP: is no run folder"),
    _case("compare a run without a checkpoint", "--runs={TMP}/run", "--runs: TMP/run: has no checkpoint yet", spoil.file("run/training_options.json", "{}")),
    _case("too few names", "--networks={NETWORK} --names=a,b", "--names: 2 names for 1 networks"),
    _case("compare heads of no seeds", "--networks={NETWORK} --seeds=a", "--seeds=a: 'a' is not a list of whole numbers"),
    _case("train without a time", "--train=micro", "--train needs --minutes"),
    _case("a time without training", "--networks={NETWORK} --minutes=3", "--minutes is the time that presets of --train train"),
    _case("train an unknown preset", "--train=micro,nano --minutes=1", "--train=nano: unknown preset 'nano'; legal are micro, tiny"),
    _case("train a preset of other images", "--train=tiny --minutes=1", "--train=tiny: the preset is for 64 px, the images in --data=DATA have 32 px"),
    _case("train beside a network that is not there", "--train=micro --minutes=1 --networks={TMP}/none.pkl", "none.pkl: no such checkpoint"),
    _case("train for a metric without its detector", "--train=micro --minutes=1 --metrics=fid8_full", "fid8_full: it needs the weights of the 2015 Inception network"),
    _case("quote what is not there", f"{_ONE} --quoted={{TMP}}/q.json", "--quoted=TMP/q.json: cannot be read: No such file or directory; shipped are cgsgan"),
    _case("quote what is no JSON", f"{_ONE} --quoted={{TMP}}/q.json", "--quoted=TMP/q.json: is not JSON", spoil.file("q.json", "{")),
    _case("quote nothing", f"{_ONE} --quoted={{TMP}}/q.json", "q.json: has no list of entries", _quoted({"entries": []})),
    _case("quote without a source", f"{_ONE} --quoted={{TMP}}/q.json", "q.json: entry 2: lacks source", _quoted({"entries": [_ENTRY, _ENTRY | {"source": ""}]})),
    _case("quote words", f"{_ONE} --quoted={{TMP}}/q.json", "q.json: entry 1: the value of FID is no number", _quoted({"entries": [_ENTRY | {"values": {"FID": "4"}}]})),
    _case("a comparison into a file", "--networks={NETWORK} --outdir={TMP}/file", "--outdir=TMP/file: .* TMP/file is no folder", spoil.file("file")),
]  # fmt: skip
