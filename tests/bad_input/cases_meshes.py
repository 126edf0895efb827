"""Meshes."""

from tests.bad_input.case import Case

_GOOD = ("--network={NETWORK}", "--outdir={TMP}/out", "--device=cpu")


def _case(name: str, option: str, message: str, real: bool = False) -> Case:
    return Case(name, "extract_mesh", (*_GOOD, option), message, real=real)


CASES = [
    _case("mesh: a format that is not written", "--format=glb,stl", "'stl' is not one of obj, ply, glb, mrc, npz", True),
    _case("mesh: a volume of splats", "--format=mrc", "--format=mrc: splats have no density; obj, ply, glb are legal"),
    _case("mesh: a level of splats", "--level=10", "--level=10: splats have no density"),
    _case("mesh: a level that is no number", "--level=high", "'high': auto, or a density above 0, is legal"),
    _case("mesh: a level of zero", "--level=0", "'0': auto, or a density above 0, is legal"),
    _case("mesh: a resolution of one point", "--resolution=1", "1 is not in the range x>=2"),
    _case("mesh: too few views", "--views=2", "2 is not in the range 4<=x<=10000"),
    _case("mesh: no piece", "--pieces=0", "0 is not in the range x>=1"),
    _case("mesh: seeds that are no numbers", "--seeds=x", "--seeds=x"),
    Case(
        "mesh: a network that is not there", "extract_mesh",
        ("--network={TMP}/none.pkl", "--outdir={TMP}/out"), "none.pkl",
    ),
    Case(
        "mesh: ws and seeds", "extract_mesh",
        (*_GOOD, "--w-file={TMP}/w.npz", "--seeds=1"), "so --seeds means nothing; leave it out",
    ),
]  # fmt: skip
