"""Metrics."""

import json

from tests.bad_input import spoil
from tests.bad_input.case import Case, Place

_HASHED = "pt_inception-2015-12-05-6726825d.pth"


def _case(name: str, argv: str, message: str, make=None, **more) -> Case:
    fixed = ("--network={NETWORK}", "--data={DATA}", "--outdir={TMP}/out", "--device=cpu")
    return Case(name, "calc_metrics", (*fixed, *argv.split()), message, make, **more)


def _train(name: str, argv: str, message: str, make=None, **more) -> Case:
    fixed = ("--data={DATA}", "--outdir={TMP}/runs", "--device=cpu", "--kimg=0.016")
    return Case(name, "train", (*fixed, *argv.split()), message, make, **more)


def _list(items: object):
    return spoil.file("list.json", json.dumps(items))


def _weights(content: object):
    """A file that torch.save wrote, of the wrong content."""

    def make(place: Place) -> None:
        import torch

        torch.save(content, place.tmp / "weights.pth")

    return make


CASES = [
    _case("no such metric", "--metrics=fid2k", "'fid2k' does not exist; legal are fid<N>_full", real=True),
    _case("a metric of one image", "--metrics=fid1_full", "needs a count of at least 2"),
    _case("fewer images than splits", "--metrics=is9", "needs a count of at least 10"),
    _case("as few images as neighbours", "--metrics=pr3k3_full", "needs a count of at least 4"),
    _case("a count of zero", "--metrics=swd0", "'swd0' does not exist"),
    _case("no metric at all", "--metrics=,", "--metrics names no metric"),
    _case("no detector", "--metrics=fid20_full", "--detector=PATH.URL or .SPLATGAN_DETECTOR", real=True),
    _case("no VGG-16", "--metrics=pr20k3_full --detector=tiny", "VGG-16.*--detector-vgg=PATH.URL"),
    _case("no such detector", "--metrics=fid20_full --detector=nowhere.pth", "no such file: nowhere.pth"),
    _case("detector is a folder", "--metrics=kid20_full --detector={TMP}", "no such file: TMP"),
    _case("detector from an unknown place", "--metrics=is20 --detector=ftp://h/w.pth", "must start with http"),
    _case("detector cannot be downloaded", "--metrics=is20 --detector=file:///nowhere/w.pth", "could not download"),
    _case("half a download of the detector", f"--metrics=fid20_full --detector={{TMP}}/{_HASHED}",
          "damaged or not what its name says", spoil.file(_HASHED, "half")),
    _case("detector is text", "--metrics=fid20_full --detector={TMP}/w.pth", "does not load",
          spoil.file("w.pth", "hi")),
    _case("detector is a list", "--metrics=fid20_full --detector={TMP}/weights.pth", "no state dict", _weights([1])),
    _case("detector is another network", "--metrics=fid20_full --detector={TMP}/weights.pth",
          "is not the 2015 Inception network", _weights({})),
    _case("VGG-16 is another network", "--metrics=pr20k3_full --detector-vgg={TMP}/weights.pth",
          "is not the VGG-16 network", _weights({})),
    _case("optional detector is missing", "--metrics=view_drift8 --detector=nowhere.pth", "no such file: nowhere.pth"),
    _case("too few reals for yaw bins", "--metrics=fid_yaw20 --detector=tiny", "8 images do not fill 5 yaw bins"),
    _case("no such device", "--metrics=swd8 --device=abacus", "--device=abacus cannot be used"),
    _case("batches of no images", "--metrics=swd8 --batch-size=0", "--batch-size.*0"),
    _case("a negative seed", "--metrics=swd8 --seed=-1", "--seed.*-1"),
    _case("no processes", "--metrics=swd8 --gpus=0", "--gpus.*0"),
    _case("no such index list", "--metrics=swd8 --index-list={TMP}/no.json", "no.json"),
    _case("index list of other images", "--metrics=swd8 --index-list={TMP}/list.json", "list.json", _list([900])),
    _case("index list of words", "--metrics=swd8 --index-list={TMP}/list.json", "list.json", _list(["a"])),
    _case("index list of one item", "--metrics=swd8 --index-list={TMP}/list.json", "has 1 image", _list([3])),
    _train("detector is missing before training", "--metrics=fid20_full --detector=no.pth", "no such file: no.pth",
           real=True),
    _train("damaged detector before training", f"--metrics=fid20_full --detector={{TMP}}/{_HASHED}",
           "damaged or not what its name says", spoil.file(_HASHED, "half")),
    _train("VGG-16 is missing before training", "--metrics=pr20k3_full --detector-vgg=no.pth", "no such file: no.pth"),
]  # fmt: skip
