"""Published checkpoints and their conversion."""

import os
import pickle

import torch

from tests.bad_input import spoil
from tests.bad_input.case import Case

CONVERT, VIDEOS, TRAIN = "convert_checkpoint", "gen_videos", "train"


class _Runs:
    def __reduce__(self):
        return os.system, ("touch executed",)


_RUNS = spoil.file("net.pkl", pickle.dumps(_Runs(), protocol=4))
_EMPTY = spoil.file("net.pkl", pickle.dumps({}, protocol=4))


def _module(place):
    torch.save(torch.nn.Linear(1, 1), place.tmp / "generator.pth")


CASES = [
    Case("pickle that runs a command", VIDEOS, ("--outdir={TMP}/out", "--network={TMP}/net.pkl"), "names (posix|nt).system", _RUNS, real=True),
    Case("pickle that runs a command, to be resumed", TRAIN, ("--outdir={TMP}/out", "--data={DATA}", "--resume={TMP}/net.pkl"), "names (posix|nt).system", _RUNS),
    Case("published file without networks", CONVERT, ("{TMP}/net.pkl", "{TMP}/out.pkl"), "holds no generator", _EMPTY),
    Case("pickled module without its average", VIDEOS, ("--outdir={TMP}/out", "--network={TMP}/generator.pth"), "ema.pth must lie beside it", _module),
    Case("conversion over an existing file", CONVERT, ("{NETWORK}", "{TMP}/net.pkl"), "net.pkl exists already", spoil.file("net.pkl")),
    Case("conversion into a folder that is not there", CONVERT, ("{NETWORK}", "{TMP}/none/out.pkl"), "'OUT': .*the folder TMP/none does not exist"),
    Case("conversion of nothing", CONVERT, ("{TMP}/none.pkl", "{TMP}/out.pkl"), "'IN': Path 'TMP/none.pkl' does not exist"),
    Case("small preset in the published layout", CONVERT, ("{NETWORK}", "{TMP}/out.pkl", "--to=published"), "--to=published: G: the published layout has no room for resolution"),
    Case("coarse scale for a file of ours", CONVERT, ("{NETWORK}", "{TMP}/out.pkl", "--coarse-scale=-5"), "--coarse-scale: NETWORK is ours"),
]  # fmt: skip
