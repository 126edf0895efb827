"""Training: what contradicts itself, and folders that cannot be used."""

from tests.bad_input import spoil
from tests.bad_input.case import Case

_SHORT = ("--data={DATA}", "--device=cpu", "--kimg=0.016", "--metrics=none")
_FILE = spoil.file("runs")


def _case(name: str, argv: str, message: str, outdir: str = "{TMP}/runs", **more) -> Case:
    return Case(name, "train", (*_SHORT, f"--outdir={outdir}", *argv.split()), message, **more)


CASES = [
    _case("kimg is not a number that ends", "--kimg=inf", "--kimg=inf: must be finite"),
    _case("kimg is NaN", "--kimg=nan", "--kimg=nan: must be finite"),
    _case("colours of a surface without one", "--photo=1", "--photo=1.0: needs a latent of named blocks"),
    _case("blocks that nothing asks for", "--controls=procedural", "nothing asks for its blocks; give --photo"),
    _case("a model that is not there", "--controls=none.npz --photo=1", "--controls=none.npz: no such file"),
    _case("kimg is negative", "--kimg=-3", "--kimg=-3.0: must be finite and greater than 0"),
    _case("tick of nothing", "--tick=0", "--tick=0.0: must be finite and greater than 0"),
    _case("learning rate is negative", "--glr=-0.1", "--glr=-0.1: must be finite and greater than 0"),
    _case("learning rate is NaN", "--dlr=nan", "--dlr=nan: must be finite and greater than 0"),
    _case("gamma is NaN", "--gamma=nan", "--gamma=nan: must be finite and 0 or greater"),
    _case("objective that does not exist", "--objective=hinge", "--objective=hinge: legal are logistic, relativistic"),
    _case("pairs that a micro-batch splits", "--objective=relativistic --batch=9 --batch-gpu=9 --mbstd-group=1", "--batch-gpu=9 is not a multiple of the 2 views"),
    _case("augmentation that does not exist", "--aug=on", "--aug=on: legal are noaug, ada, fixed"),
    _case("transforms that do not exist", "--aug=ada --augpipe=bgcfnc", "--augpipe=bgcfnc: legal are blit, geom, color, bg, bgc"),
    _case("probability beyond 1", "--aug=fixed --p=2", "--p=2.0: must be 0 to 1"),
    _case("probability that nothing reads", "--aug=ada --p=0.5", "--p=0.5 acts with --aug=fixed, and this run has --aug=ada"),
    _case("target that nothing reads", "--target=0.5", "--target=0.5 acts with --aug=ada, and this run has --aug=noaug"),
    _case("target that no sign reaches", "--aug=ada --target=1", "--target=1.0: must be greater than 0 and less than 1"),
    _case("augmentation that never moves", "--aug=ada --ada-kimg=inf", "--ada-kimg=inf: must be finite and greater than 0"),
    _case("micro-batch splits a minibatch-std group", "--batch=6 --batch-gpu=6", "--batch-gpu=6 is not a multiple of the minibatch-std group of 4"),
    _case("batch does not divide among two ranks", "--gpus=2 --batch=12 --batch-gpu=12", "--batch=12 is not a multiple of --gpus x --batch-gpu = 2 x 12"),
    _case("several views of a batch of one", "--batch=1 --batch-gpu=1 --mbstd-group=1", "--batch=1 leaves multi-view regularisation only"),
    _case("more neighbours than points", "--knn-num-ks=32", "--knn-num-ks=32: legal are 1 to 31"),
    _case("preset of another family, for data of another size", "--preset=gsgan-tiny", "--preset=gsgan-tiny is for 64 px, the images in DATA have 32 px"),
    _case("option of another family", "--preset=micro --contrastive=0.5", "--contrastive is an option of the family gsgan"),
    _case("law of cameras that does not exist", "--preset=pigan-tiny --pose=normal", "--pose=normal: legal are gaussian, uniform, spherical, truncated_gaussian, hybrid, and labels"),
    _case("law of cameras with labels that contradict it", "--preset=pigan-tiny --pose=gaussian --fov=40", "--pose=gaussian contradicts the labels of DATA: their field of view is 13.4 degrees, the law's 40"),
    _case("angle that is no angle of a camera", "--preset=pigan-tiny --pose=uniform --v-mean=90", "--pose: phi 90 is out of range; legal are 0 to pi radians"),
    _case("law of cameras with a spread below 0", "--preset=pigan-tiny --pose=truncated_gaussian --h-stddev=-0.3", "--h-stddev=-0.3: must be finite and 0 or greater"),
    _case("hybrid law with labels that contradict it", "--preset=pigan-tiny --pose=hybrid --v-mean=0.5", "--pose=hybrid contradicts the labels of DATA: their mean phi is"),
    _case("field of view beyond a half circle", "--preset=pigan-tiny --pose=spherical --fov=180", "--fov=180: must be greater than 0 and less than 180"),
    _case("device that is not there", "--device=cuda", "--device=cuda: this PyTorch sees no CUDA device"),
    _case("--init-from beside --resume", "--init-from={NETWORK} --resume={NETWORK}", "--init-from starts a run and --resume continues one"),
    _case("--resume-kimg without --resume", "--resume-kimg=3", "--resume-kimg needs --resume"),
    _case("--measure without --dry-run", "--measure", "--measure needs --dry-run"),
    _case("outdir is a file", "", "--outdir=TMP/runs: .* TMP/runs is no folder", make=_FILE),
    _case("outdir below a file", "", "--outdir=TMP/runs/deep: .* TMP/runs is no folder", "{TMP}/runs/deep", make=_FILE),
    _case("outdir on a file system that takes no folders", "", "--outdir=/proc/runs: no folder can be made there", "/proc/runs"),
    _case("background of words", "--background=pink", "--background=pink: 'pink' is not a colour"),
    _case("background of two numbers", "--background=0,1", "--background=0,1: '0,1' is not a colour"),
    _case("background beyond white", "--background=0,0,7", "--background=0,0,7: '0,0,7' is not a colour"),
]  # fmt: skip
