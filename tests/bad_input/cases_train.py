"""Training."""

import shutil

from tests.bad_input import spoil
from tests.bad_input.case import Case

_SHORT = ("--data={DATA}", "--outdir={TMP}/runs", "--device=cpu", "--kimg=0.016", "--metrics=none")


def _case(name: str, argv: str, message: str, **more) -> Case:
    return Case(name, "train", (*_SHORT, *argv.split()), message, **more)


_BARE = ("--data={TMP}/set/32", "--outdir={TMP}/runs", "--device=cpu")


def _without_masks(root) -> None:
    shutil.rmtree(root / "mask")


def _broken_image(root) -> None:
    (root / "32" / "00005.png").write_bytes(b"no image")


_BARE_SET, _BROKEN_SET = spoil.copied_set(_without_masks), spoil.copied_set(_broken_image)
_GOOD_SET = spoil.copied_set(lambda root: None)

CASES = [
    Case("no --data", "train", (), "Missing option '--data'"),
    Case("an unknown flag of train.py", "train", ("--data={DATA}", "--lr=1"), "No such option '--lr'"),
    _case("batch is not a multiple of batch-gpu", "--batch=6 --batch-gpu=4", "--batch=6 is not a multiple of --gpus x --batch-gpu = 1 x 4"),
    _case("kimg is no number", "--kimg=long", "'--kimg': 'long' is not a valid float"),
    _case("kimg is zero", "--kimg=0", "--kimg=0.0: must be finite and greater than 0"),
    _case("unknown preset", "--preset=huge", "--preset=huge: unknown preset 'huge'; legal are micro"),
    _case("preset of another resolution", "--preset=tiny", "--preset=tiny is for 64 px.* have 32 px"),
    _case("unknown metric", "--metrics=fid", "--metrics=fid: metric 'fid' does not exist; legal are fid<N>_full"),
    _case("batch is not a multiple of the processes", "--batch=6 --gpus=4", "--batch=6 is not a multiple of --gpus"),
    _case("batch of 0", "--batch=0", "'--batch': 0 is not in the range"),
    _case("more frozen layers than there are", "--freezed=99", "--freezed=99: legal are 0 to 10"),
    _case("a bound of activations below 0", "--set=discriminator.conv_clamp=-1", "discriminator.conv_clamp=-1.0: legal are numbers above 0"),
    _case("no channels", "--set=discriminator.channels=8,8,8,0", "discriminator.channels=.* must be 1 or more"),
    _case("a NaN in --set", "--set=generator.coarse_log_scale=nan", "--set=generator.coarse_log_scale=nan: 'nan' is not a number"),
    _case("a blur wider than the image", "--set=objective.blur_sigma=1e9", "--set=objective.blur_sigma=1000000000.0: legal are 0 to 32"),
    _case("a metric twice of train.py", "--metrics=swd8,swd8", "--metrics=swd8,swd8: swd8 is there twice; leave one out"),
    _case("a batch smaller than a group", "--batch=3", "--batch-gpu=3 is not a multiple of the minibatch-std group of 4"),
    _case("no channel left", "--cbase=8", "--cbase=8 leaves no channel at 32 px"),
    _case("a cooldown longer than the run", "--cooldown-kimg=1", "--cooldown-kimg=1.0: legal are 0 to --kimg, 0.016"),
    _case("learning rate is not finite", "--glr=nan", "--glr=nan: must be finite and greater than 0"),
    _case("gamma is negative", "--gamma=-1", "--gamma=-1.0: must be finite and 0 or greater"),
    _case("a published flag that asks for another network", "--start_pe=False", "--start-pe=False is refused: the"),
    _case("a published option that presets stand for", "--cfg=ffhq", "--cfg is refused: presets hold what it chooses"),
    _case("a published option of another name", "--lr_gen=0.002", "--lr-gen is refused: say --glr"),
    _case("another flag that means nothing", "--g_num_fp16_res=4", "--g-num-fp16-res=4 is refused: --precision covers"),
    _case("a discriminator without cameras", "--cond=False", "--cond=False is refused"),
    _case("--set of an unknown name", "--set=objective.size=3", "--set=objective.size=3: there is no value 'objective.size'; legal in objective are gamma"),
    _case("--set of a wrong type", "--set=objective.knn_neighbours=many", "--set=objective.knn_neighbours=many: "),
    _case("--set without a value", "--set=objective.knn_neighbours", "--set=objective.knn_neighbours: write NAME=VALUE"),
    _case("--set of an illegal value", "--set=objective.knn_neighbours=99", "--knn-num-ks=99: legal are 1 to 31"),
    _case("background is no colour", "--background=255,0,0", "--background=255,0,0: '255,0,0' is not a colour"),
    Case("training on an index list that is not there", "train", (*_BARE, "--cam_sample_mode=smiles"), "--index-list=smiles: not found; put it at TMP/set/smiles.json", _GOOD_SET),
    _case("rasterizer of another device", "--rasterizer=gsplat", "--rasterizer=gsplat: backend 'gsplat' does not render .*on cpu"),
    _case("precision of another device", "--precision=fp16", "--precision=fp16: .*needs a GPU"),
    _case("training on a CUDA device that is not there", "--device=cuda", "--device=cuda: this PyTorch sees no CUDA device; use --device=cpu"),
    _case("weights from a file that is not there", "--init-from={TMP}/none.pkl", "none.pkl: no such checkpoint"),
    _case("weights from a file cut in half", "--init-from={TMP}/net.pkl", "net.pkl: is damaged or cut short",
          make=spoil.network(lambda content: content[: len(content) // 2])),
    _case("weights from a file that is no checkpoint", "--init-from={TMP}/net.pkl", "net.pkl: is no checkpoint", make=spoil.file("net.pkl", "hello")),
    _case("too few weights fit", "--init-from={NETWORK} --map-depth=3 --init-share=1", "--init-from=NETWORK: only .* of G's values are in the file, less than --init-share=1"),
    _case("--dry-run with weights from a file that is not there", "--dry-run --init-from={TMP}/none.pkl", "none.pkl: no such checkpoint"),
    _case("--dry-run with too few weights", "--dry-run --init-from={NETWORK} --map-depth=3 --init-share=1", "--init-from=NETWORK: only .* less than --init-share=1"),
    _case("a share of weights of no file", "--init-share=0.9", "--init-share needs --init-from"),
    _case("restarts of a single process", "--max-restarts=2", "--max-restarts needs --gpus=2 or more"),
    _case("resuming and starting from weights", "--resume=a.pkl --init-from=b.pkl", "--init-from starts a run and --resume continues one: give one"),
    _case("images to count from without a checkpoint", "--resume_kimg=5000", "--resume-kimg needs --resume"),
    _case("a measurement that trains", "--measure", "--measure needs --dry-run"),
    _case("run folders below a file", "--outdir={TMP}/file", "--outdir=TMP/file: .* TMP/file is no folder", make=spoil.file("file")),
    Case("a random background without masks", "train", (*_BARE, "--background=random"), "--background=random needs masks", _BARE_SET),
    Case("training on an image that cannot be read", "train", _BARE, "00005.png: cannot be read: is no PNG", _BROKEN_SET),
]  # fmt: skip
