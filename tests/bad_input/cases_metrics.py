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
    _case("a metric twice", "--metrics=swd8,swd8", "--metrics=swd8,swd8: swd8 is there twice; leave one out"),
    _case("a device without numbers", "--device=meta", "--device=meta: there is no such device here; auto, cpu"),
    _case("an option of the published script", "--mirror=True", "--mirror=True is refused: the images are measured as they are"),
    _case("no such metric", "--metrics=fid2k", "--metrics=fid2k: metric 'fid2k' does not exist; legal are fid<N>_full"),
    _case("a metric of one image", "--metrics=fid1_full", "--metrics=fid1_full: .*needs a count of at least 2"),
    _case("fewer images than splits", "--metrics=is9", "--metrics=is9: .*needs a count of at least 10"),
    _case("as few images as neighbours", "--metrics=pr3k3_full", "--metrics=pr3k3_full: .*needs a count of at least 4"),
    _case("a count of zero", "--metrics=swd0", "--metrics=swd0: metric 'swd0' does not exist"),
    _case("no metric at all", "--metrics=,", "--metrics names no metric"),
    _case("no detector", "--metrics=fid20_full", "fid20_full: it needs the weights of the 2015 Inception network: --detector=PATH.URL or .SPLATGAN_DETECTOR", real=True),
    _case("no VGG-16", "--metrics=pr20k3_full --detector=tiny", "pr20k3_full: it needs the weights of the VGG-16 network: --detector-vgg=PATH.URL"),
    _case("no such detector", "--metrics=fid20_full --detector=nowhere.pth", "--detector=nowhere.pth: no such file"),
    _case("detector is a folder", "--metrics=kid20_full --detector={TMP}", "--detector=TMP: is a folder"),
    _case("detector from an unknown place", "--metrics=is20 --detector=ftp://h/w.pth", "--detector=ftp://h/w.pth: .*the address must start with http"),
    _case("detector cannot be downloaded", "--metrics=is20 --detector=file:///nowhere/w.pth", "--detector=file:.*: could not download .*: No such file"),
    _case("half a download of the detector", f"--metrics=fid20_full --detector={{TMP}}/{_HASHED}",
          f"--detector=TMP/{_HASHED}: is damaged or not what its name says", spoil.file(_HASHED, "half")),
    _case("detector is text", "--metrics=fid20_full --detector={TMP}/w.pth", "--detector=TMP/w.pth: does not load as a PyTorch state dict",
          spoil.file("w.pth", "hi")),
    _case("detector is a list", "--metrics=fid20_full --detector={TMP}/weights.pth", "weights.pth: holds no state dict", _weights([1])),
    _case("detector is another network", "--metrics=fid20_full --detector={TMP}/weights.pth",
          "--detector=.*: is not the 2015 Inception network: it lacks Conv2d", _weights({})),
    _case("VGG-16 is another network", "--metrics=pr20k3_full --detector-vgg={TMP}/weights.pth",
          "--detector-vgg=.*: is not the VGG-16 network: it lacks features", _weights({})),
    _case("optional detector is missing", "--metrics=view_drift8 --detector=nowhere.pth",
          "view_drift8: --detector=nowhere.pth: no such file"),
    _case("too few reals for yaw bins", "--metrics=fid_yaw20 --detector=tiny", "fid_yaw20: 8 images do not fill 5 yaw bins"),
    _case("no such device", "--metrics=swd8 --device=abacus", "--device=abacus: there is no such device here; auto, cpu"),
    _case("batches of no images", "--metrics=swd8 --batch-size=0", "'--batch-size': 0 is not in the range"),
    _case("a negative seed", "--metrics=swd8 --seed=-1", "'--seed': -1 is not in the range"),
    _case("no processes", "--metrics=swd8 --gpus=0", "'--gpus': 0 is not in the range"),
    _case("no such index list", "--metrics=swd8 --index-list={TMP}/no.json", "no.json: no such index list"),
    _case("index list of other images", "--metrics=swd8 --index-list={TMP}/list.json", "list.json: names no image of the set",
          _list([900])),
    _case("index list of words", "--metrics=swd8 --index-list={TMP}/list.json", "list.json: names no image of the set",
          _list(["a"])),
    _case("index list of one item", "--metrics=swd8 --index-list={TMP}/list.json", "swd8: the data set .* has 1 image", _list([3])),
    Case("metrics into a file", "calc_metrics",
         ("--network={NETWORK}", "--data={DATA}", "--metrics=swd8", "--device=cpu", "--outdir={TMP}/file"),
         "--outdir=TMP/file: .* TMP/file is no folder", spoil.file("file")),
    _train("detector is missing before training", "--metrics=fid20_full --detector=no.pth",
           "--detector=no.pth: no such file"),
    _train("damaged detector before training", f"--metrics=fid20_full --detector={{TMP}}/{_HASHED}",
           f"--detector=TMP/{_HASHED}: is damaged or not what its name says", spoil.file(_HASHED, "half")),
    _train("VGG-16 is missing before training", "--metrics=pr20k3_full --detector-vgg=no.pth",
           "--detector-vgg=no.pth: no such file"),
]  # fmt: skip
