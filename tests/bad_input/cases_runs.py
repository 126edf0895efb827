"""Resuming, keeping, replaying."""

import json

from tests.bad_input import spoil
from tests.bad_input.case import Case

_SHORT = ("--data={DATA}", "--outdir={TMP}/runs", "--device=cpu", "--kimg=0.016", "--metrics=none", "--no-validate")


def _case(name: str, argv: str, message: str, *more, **attributes) -> Case:
    return Case(name, "train", (*_SHORT, *argv.split()), message, *more, **attributes)


_PART = json.dumps({"step": 3, "nimg": 24, "phase": "D"})

CASES = [
    _case("resume from a file cut in half", "--resume={TMP}/net.pkl", "net.pkl: is damaged or cut short",
          spoil.network(lambda content: content[: len(content) // 2])),
    _case("resume from a file that is not there", "--resume={TMP}/none.pkl", "none.pkl: no such checkpoint"),
    _case("resume from a file that is no checkpoint", "--resume={TMP}/net.pkl", "net.pkl: is no checkpoint", spoil.file("net.pkl", "hello")),
    _case("resume from a folder", "--resume={TMP}", "TMP: is a folder; a file"),
    _case("resume with another network", "--resume={NETWORK} --map-depth=7", "--resume=NETWORK: its generator cannot become another one .map_depth"),
    _case("resume with another preset", "--resume={NETWORK} --preset=small", "--preset=small: the run to be resumed has --preset=micro; leave it out"),
    _case("count the images of the latest state", "--resume=latest --resume-kimg=5", "--resume-kimg is for a file; --resume=latest knows"),
    _case("count the images of a checkpoint of ours", "--resume={NETWORK} --resume-kimg=5000", "--resume-kimg=5000: NETWORK is ours and has seen 0 kimg"),
    _case("keep by an unknown rule", "--keep=newest:3", "--keep=newest:3: 'newest:3' is no rule; legal are last:N"),
    _case("keep no snapshot", "--keep=last:0", "--keep=last:0: 'last:0' is no rule"),
    _case("keep the best of a metric that is not measured", "--keep=best:swd1k:1", "--keep=best:swd1k: the run does not measure it"),
    _case("keep the best of an unknown metric", "--keep=best:beauty:1", "--keep=best:beauty:1: metric 'beauty' does not exist; legal are fid<N>_full"),
    Case("replay what is not there", "train", ("--replay={TMP}/none.json",), "--replay=TMP/none.json: cannot be read: No such file"),
    Case("replay what is no JSON", "train", ("--replay={TMP}/d.json",), "d.json: not a diagnosis: it is not JSON", spoil.file("d.json", "{")),
    Case("replay another JSON", "train", ("--replay={TMP}/d.json",), "not a diagnosis: no JSON object", spoil.file("d.json", "[1]")),
    Case("replay a part of a diagnosis", "train", ("--replay={TMP}/d.json",), "not a diagnosis: missing device", spoil.file("d.json", _PART)),
]  # fmt: skip
