"""Checkpoints."""

from tests.bad_input import spoil
from tests.bad_input.case import Case

CALC, SAMPLES, VIDEOS = "calc_metrics", "gen_samples", "gen_videos"
_TO = "--outdir={TMP}/out"


def _flip_middle(content: bytes) -> bytes:
    spot = len(content) // 2
    return content[:spot] + bytes([content[spot] ^ 0x10]) + content[spot + 1 :]


CASES = [
    Case("no such checkpoint", SAMPLES, (_TO, "--network={TMP}/none.pkl"), "none.pkl: no such checkpoint", real=True),
    Case("checkpoint is empty", SAMPLES, (_TO, "--network={TMP}/net.pkl"), "net.pkl: not a readable", spoil.file("net.pkl", "")),
    Case("checkpoint is text", VIDEOS, (_TO, "--network={TMP}/net.pkl"), "net.pkl: ", spoil.file("net.pkl", "hello\n")),
    Case("checkpoint is a folder", VIDEOS, (_TO, "--network={TMP}/net"), "net: ", spoil.file("net/file")),
    Case("checkpoint cut in half", CALC, ("--network={TMP}/net.pkl",), "net.pkl: not a readable", spoil.network(lambda c: c[: len(c) // 2])),
    Case("one bit of a checkpoint flipped", SAMPLES, (_TO, "--network={TMP}/net.pkl"), "net.pkl: ", spoil.network(_flip_middle)),
]  # fmt: skip
