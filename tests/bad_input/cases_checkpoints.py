"""Checkpoints."""

from tests.bad_input import spoil
from tests.bad_input.case import Case, Place
from training.checkpoint import load_checkpoint, save_checkpoint

CALC, CONVERT, SAMPLES, VIDEOS = "calc_metrics", "convert_checkpoint", "gen_samples", "gen_videos"
_TO = "--outdir={TMP}/out"
_NET = (_TO, "--network={TMP}/net.pkl")
_TRAIN = ("--data={DATA}", "--outdir={TMP}/runs", "--device=cpu", "--kimg=0.016", "--metrics=none")
_UNKNOWN = "net.pkl: unknown family 'meshes'; legal are cgs"


def _flip_middle(content: bytes) -> bytes:
    spot = len(content) // 2
    return content[:spot] + bytes([content[spot] ^ 0x10]) + content[spot + 1 :]


def _half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _another_family(place: Place) -> None:
    state = load_checkpoint(place.network)
    own = ("format", "revision", "checksum")  # written by save_checkpoint itself
    kept = {name: record for name, record in state.items() if name not in own}
    save_checkpoint(place.tmp / "net.pkl", kept | {"config": state["config"] | {"family": "meshes"}})


CASES = [
    Case("no such checkpoint", SAMPLES, (_TO, "--network={TMP}/none.pkl"), "none.pkl: no such checkpoint", real=True),
    Case("checkpoint is empty", SAMPLES, _NET, "net.pkl: is an empty file", spoil.file("net.pkl", "")),
    Case("checkpoint is text", VIDEOS, _NET, "net.pkl: is no checkpoint", spoil.file("net.pkl", "hello\n")),
    Case("checkpoint is a folder", VIDEOS, (_TO, "--network={TMP}/net"), "net: is a folder; a file", spoil.file("net/file")),
    Case("checkpoint cut in half", CALC, _NET[1:], "net.pkl: is damaged or cut short", spoil.network(_half)),
    Case("checkpoint of an unknown family", SAMPLES, _NET, _UNKNOWN, _another_family),
    Case("film of an unknown family", VIDEOS, _NET, _UNKNOWN, _another_family),
    Case("metrics of an unknown family", CALC, (*_NET[1:], "--metrics=swd8"), _UNKNOWN, _another_family),
    Case("unknown family to be resumed", "train", (*_TRAIN, "--resume={TMP}/net.pkl"), _UNKNOWN, _another_family),
    Case("unknown family in the published layout", CONVERT, ("{TMP}/net.pkl", "{TMP}/out.pkl", "--to=published"), _UNKNOWN, _another_family),
    Case("one bit of a checkpoint flipped", SAMPLES, _NET, "net.pkl: damaged, its checksum does not match", spoil.network(_flip_middle)),
]  # fmt: skip
