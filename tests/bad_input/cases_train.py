"""Training."""

from tests.bad_input.case import Case

_SHORT = ("--data={DATA}", "--outdir={TMP}/runs", "--device=cpu", "--kimg=0.016", "--metrics=none")


def _case(name: str, argv: str, message: str, **more) -> Case:
    return Case(name, "train", (*_SHORT, *argv.split()), message, **more)


CASES = [
    Case("no --data", "train", (), "Missing option '--data'", real=True),
    Case("an unknown flag of train.py", "train", ("--data={DATA}", "--lr=1"), "No such option.*--lr"),
    _case("batch is not a multiple of batch-gpu", "--batch=6 --batch-gpu=4", "--batch=6 is not a multiple"),
    _case("kimg is no number", "--kimg=long", "'--kimg'.*'long'"),
    _case("kimg is zero", "--kimg=0", "--kimg=0.0: must be finite and greater than 0"),
    _case("unknown preset", "--preset=huge", "unknown preset 'huge'; legal are micro", real=True),
    _case("preset of another resolution", "--preset=tiny", "tiny is for 64 px.* have 32 px"),
    _case("unknown metric", "--metrics=fid", "fid"),
]  # fmt: skip
