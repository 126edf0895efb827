"""Checkpoints."""

from tests.bad_input import spoil
from tests.bad_input.case import Case

CALC, SAMPLES, VIDEOS = "calc_metrics", "gen_samples", "gen_videos"
_TO = "--outdir={TMP}/out"
_NET = (_TO, "--network={TMP}/net.pkl")


def _flip_middle(content: bytes) -> bytes:
    spot = len(content) // 2
    return content[:spot] + bytes([content[spot] ^ 0x10]) + content[spot + 1 :]


def _half(content: bytes) -> bytes:
    return content[: len(content) // 2]


CASES = [
    Case("no such checkpoint", SAMPLES, (_TO, "--network={TMP}/none.pkl"), "none.pkl: no such checkpoint", real=True),
    Case("checkpoint is empty", SAMPLES, _NET, "net.pkl: not a readable", spoil.file("net.pkl", "")),
    Case("checkpoint is text", VIDEOS, _NET, "net.pkl: ", spoil.file("net.pkl", "hello\n")),
    Case("checkpoint is a folder", VIDEOS, (_TO, "--network={TMP}/net"), "net: ", spoil.file("net/file")),
    Case("checkpoint cut in half", CALC, _NET[1:], "net.pkl: not a readable", spoil.network(_half)),
    Case("one bit of a checkpoint flipped", SAMPLES, _NET, "net.pkl: ", spoil.network(_flip_middle)),
]  # fmt: skip
