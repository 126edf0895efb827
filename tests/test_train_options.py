"""Every published option of train.py as it is written: what it resolves to, and whole runs of published commands."""

import dataclasses
import json
import re

import pytest
import torch
from click.testing import CliRunner

import train
from training import presets
from training.checkpoint import load_checkpoint
from training.config import settable
from training.data.synthetic.synthesize import synthesize_heads
from training.dataset import ImageDataset
from training.families import FAMILIES
from training.runs import launch
from training.runs.their_options import THEIRS
from training.training_loop import Options

# What the published commands get, and nothing else, so that they end within seconds.
SHORT = ["--kimg=0.064", "--metrics=none"]


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """A 32-px set of the published layout; the folder of its images is called 512, as in the published commands."""
    root = tmp_path_factory.mktemp("heads")
    images = synthesize_heads(root / "FFHQC", 16, 32, seed=0, workers=1).images
    return images.rename(images.with_name("512"))


@pytest.fixture
def bare(heads, tmp_path):
    """The same set without its masks."""
    (tmp_path / "set" / "512").mkdir(parents=True)
    (tmp_path / "set" / "dataset.json").write_text((heads.parent / "dataset.json").read_text())
    for image in heads.iterdir():
        (tmp_path / "set" / "512" / image.name).write_bytes(image.read_bytes())
    return tmp_path / "set" / "512"


def invoke(*arguments):
    return CliRunner().invoke(train.main, [str(a) for a in arguments])


def resolved(*arguments) -> dict:
    result = invoke(*arguments, "--dry-run")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_dry_run_says_what_the_networks_cost_and_where_gamma_comes_from(heads):
    said = invoke(f"--data={heads}", "--preset=micro", "--dry-run").stderr
    assert re.search(r"Generator +0\.3 M parameters, 0\.0166 GFLOP a scene", said), said
    assert re.search(r"Discriminator +0\.9 M parameters, 0\.0884 GFLOP an image of 32 px", said), said
    assert "0.5, the weight of R1, from preset micro" in said
    assert "from the command line" in invoke(f"--data={heads}", "--preset=micro", "--gamma=3", "--dry-run").stderr


def succeed(*arguments) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def published_run(heads, tmp_path_factory):
    """The published training command; its output and its run folder."""
    outdir = tmp_path_factory.mktemp("runs")
    command = (
        f"--data={heads} --gamma=1 --gpus=1 --batch_gpu=4 --use_multivew_reg=True --num_multiview=3 --desc=ffhqc "
        "--cam_sample_mode=ffhq_default"
    )
    output = succeed(*command.split(), *SHORT, f"--outdir={outdir}")
    return output, outdir / "00000-ffhqc"


# ---------------------------------------------------------------- whole runs


def test_published_command(published_run):
    output, folder = published_run
    config = json.loads((folder / "training_options.json").read_text())
    losses = config["objective"]
    assert (losses["gamma"], config["batch_gpu"], losses["num_views"], losses["multiview"]) == (1, 4, 3, True)
    (snapshot,) = folder.glob("network-snapshot-*_00000064.pkl")
    assert load_checkpoint(snapshot)["progress"]["nimg"] == 64
    assert "16 samples a step = 1 process x 4 accumulation rounds x 4 at once, 3 views a scene" in output
    assert "minibatch standard deviation over 1 x 4 samples" in output
    assert re.search(r"Index list +all 16 labelled images \(ffhq_default", output)
    assert re.search(r"Background +white", output) and re.search(r"rasterizer (cpu|torch)", output)
    assert (folder / "log.txt").read_text().startswith("Preset")
    assert (folder / "cameras.png").stat().st_size > 1000  # the yaw/pitch histogram


def test_a_checkpoint_of_ours_knows_its_images(heads, published_run, tmp_path):
    """--resume-kimg beside it must agree; with nothing left to do a line says so, and no folder is made."""
    network = next(published_run[1].glob("network-snapshot-*_00000064.pkl"))
    common = [f"--data={heads}", f"--resume={network}", *SHORT, f"--outdir={tmp_path}"]
    result = invoke(*common, "--resume_kimg=5000")
    assert result.exit_code == 1
    assert f"Error: --resume-kimg=5000: {network} is ours and has seen 0.064 kimg" in result.output
    said = succeed(*common, "--resume_kimg=0.064")
    assert said == f"Nothing to do: {network} has seen 0.064 kimg, and --kimg is 0.064\n"
    assert not list(tmp_path.iterdir())


def test_the_configuration_of_a_resumed_run_is_printed(heads, published_run):
    """What is not given comes from the file (here 3 views), not from the preset."""
    network = next(published_run[1].glob("network-snapshot-*_00000064.pkl"))
    found = resolved(f"--data={heads}", f"--resume={network}", "--gamma=7")
    stored = json.loads((published_run[1] / "training_options.json").read_text())
    assert found == stored | {"objective": stored["objective"] | {"gamma": 7.0}}
    assert found["objective"]["num_views"] == 3


def test_init_from_takes_weights_only(heads, published_run, tmp_path):
    network = next(published_run[1].glob("network-snapshot-*_00000064.pkl"))
    common = [f"--data={heads}", f"--init-from={network}", *SHORT, "--kimg=0.016", f"--outdir={tmp_path}"]
    output = succeed(*common, "--glr=1e-12", "--dlr=1e-12", "--desc=same")
    assert "G: loaded" in output and "100.0% of the values" in output
    assert "Warm start: objective.ema_rampup=1000000.0, objective.augment_kimg=2.0, objective.blurred=False" in output
    (path,) = tmp_path.glob("00000-same/network-snapshot-*.pkl")
    before, after = load_checkpoint(network), load_checkpoint(path)
    assert after["progress"]["nimg"] == 16  # no progress came with the weights
    for name, value in before["G"].items():
        if name != "mapping_network.w_avg":  # moves by averaging
            torch.testing.assert_close(after["G"][name], value, rtol=0, atol=1e-9)

    refused = invoke(*common, "--gaussian-num-pts=16", "--map-depth=3", "--init-share=0.99")
    assert refused.exit_code == 1 and re.search(
        r"Error: --init-from=.*: only \d+\.\d% of G's values .* less than --init-share=0.99", refused.output
    )
    accepted = succeed(*common, "--map-depth=3", "--knn-num-ks=4")
    assert "skipped (not in the file) 2: mapping_network.fc2.weight, mapping_network.fc2.bias" in accepted


def test_every_other_option_at_once(heads, tmp_path):
    options = (
        "--preset=micro --cond=True --mirror=False --freezed=3 --cbase=512 --cmax=64 --glr=0.001 --dlr=0.001 "
        "--map-depth=1 --mbstd_group=2 --batch=4 --batch-gpu=2 --tick=0.004 --img_snap=2 --network-snap=9 --seed=3 "
        "--nobench=True --workers=0 --blur_fade_kimg=0.01 --disc_c_noise=0.1 --d_num_fp16_res=0 "
        "--gaussian_num_pts=16 --center_dists=0.5 --knn-dists=10 --knn_num_ks=3 --job_id=7 --resume_blur=True "
        "--background=0.2,0.4,0.6 --precision=fp32 --rasterizer=torch --use_multiview_reg=False --device=cpu "
        "--cooldown-kimg=0.003"
    )
    output = succeed(f"--data={heads}", *options.split(), *SHORT, "--kimg=0.012", "--desc=all", f"--outdir={tmp_path}")
    assert "Cooldown    from 0.009 kimg on both learning rates fall to 0 at 0.012\n" in output
    state = load_checkpoint(next(tmp_path.glob("00000-all_jobid-7/network-snapshot-*_00000012.pkl")))
    assert state["config"]["background"] == "0.2,0.4,0.6" and state["config"]["seed"] == 3
    frozen = {name.rsplit(".", 1)[0] for name in state["D"]} - {name.rsplit(".", 1)[0] for name in state["opt"]["D"]}
    assert {"b32.fromrgb", "b32.conv0", "b32.conv1"} <= frozen and "b32.skip" not in frozen


# ---------------------------------------------------------------- what options resolve to


@pytest.mark.parametrize(
    ("argument", "place", "value"),
    [
        ("--mirror=False", "mirror", False),
        ("--freezed=2", "freeze_d", 2),
        ("--cbase=512", "discriminator.channels", [16, 32, 64, 128]),
        ("--cmax=64", "discriminator.channels", [32, 64, 64, 64]),
        ("--cmax=64", "discriminator.embedding_dim", 64),
        ("--map_depth=3", "generator.map_depth", 3),
        ("--mbstd-group=2", "discriminator.minibatch_std_group", 2),
        ("--d_num_fp16_res=4", "discriminator.conv_clamp", 256),
        ("--d_num_fp16_res=0", "discriminator.num_fp16_blocks", 0),
        ("--gaussian_num_pts=64", "generator.num_points", 64),
        ("--metrics=fid20k_full,swd1k", "metrics", ["fid20k_full", "swd1k"]),
        ("--img_snap=7", "image_ticks", 7),
        ("--network_snap=7", "snapshot_ticks", 7),
        ("--disc_c_noise=0.5", "label_noise", 0.5),
        ("--cooldown-kimg=2.5", "cooldown_kimg", 2.5),
        ("--use_multivew_reg=False", "objective.multiview", False),
        ("--use-multiview-reg=False", "objective.multiview", False),
        ("--resume_blur=False", "objective.blur_sigma", 0),
        ("--rasterizer=torch", "rasterizer", "torch"),
        ("--batch=8", "batch_gpu", 8),  # the preset's 16 shrinks
        ("--gpus=4", "batch_gpu", 4),
        ("--background=black", "background", "black"),
        ("--background=auto", "background", "white"),
    ],
)
def test_an_option_sets_its_field(heads, argument, place, value):
    found = resolved(f"--data={heads}", argument)
    for key in place.split("."):
        found = found[key]
    assert found == value


def test_dry_run_prints_the_configuration_and_nothing_else(heads, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = resolved(f"--data={heads}", "--gpus=4")
    assert found["data"] == str(heads) and found["index_list"] == "all" and list(tmp_path.iterdir()) == []
    expected = presets.resolve("micro", data=str(heads)).to_dict() | {"index_list": "all", "batch_gpu": 4}
    assert found == expected


def test_published_cgs512_on_512_px(tmp_path):
    """The published values are the defaults at the published size."""
    images = synthesize_heads(tmp_path / "set", 3, 512, seed=0, samples=2, workers=1).images
    assert images.name == "512"
    found = resolved(f"--data={images}", "--gpus=4")
    wanted = {"family": "cgs", "preset": "cgs512", "batch": 32, "batch_gpu": 8, "g_lr": 0.0025, "d_lr": 0.002,
              "total_kimg": 15000, "metrics": ["fid20k_full"], "image_ticks": 50, "snapshot_ticks": 500,
              "mirror": True}  # fmt: skip
    losses = {"gamma": 1, "num_views": 4, "knn_weight": 20, "knn_neighbours": 64, "blur_fade_kimg": 200}
    assert {name: found[name] for name in wanted} == wanted
    assert {name: found["objective"][name] for name in losses} == losses


@pytest.mark.parametrize(
    "spelling", ["--start_pe=False", "--g-num-fp16-res=4", "--cond=False", "--res_end=256", "--snap=5"]
)
def test_an_option_of_other_programs_is_refused_by_name_with_what_to_do(heads, spelling):
    result = invoke(f"--data={heads}", spelling, "--dry-run")
    name = spelling.split("=")[0].replace("_", "-")
    assert result.exit_code == 2 and re.search(rf"Error: {name}(=\w+)? is refused: \S+", result.output)


def test_values_of_theirs_that_ask_for_what_happens_anyway_are_taken(heads):
    taken = [f"{name}={same}" for name, (_, same) in THEIRS.items() if same is not None]
    assert len(taken) > 9 and resolved(f"--data={heads}", *taken) == resolved(f"--data={heads}")


@pytest.mark.parametrize("name", FAMILIES)
def test_an_option_of_a_family_is_not_refused(name):
    names = [flag for p in train.main.of(FAMILIES[name]).params for flag in p.opts]
    assert len(set(names)) == len(names)


def test_no_option_is_without_a_place():
    """Each names a field of the request, of the loop's options, or of the configuration."""
    known = {f.name for record in (train.Request, Options) for f in dataclasses.fields(record)} | {"settings"}
    known |= {p.name for p in train.main.params if not p.expose_value}
    for of in FAMILIES.values():
        targets = {name.replace(".", "__") for name in settable(of)}
        own = {option.target.replace(".", "__") for option in of.options}
        assert own <= targets and {p.name for p in train.main.params} <= known | targets


@pytest.mark.parametrize(
    ("setting", "place", "value"),
    [
        ("objective.knn_weight=0", "objective.knn_weight", 0.0),
        ("objective.multiview=false", "objective.multiview", False),
        ("generator.map_depth=3", "generator.map_depth", 3),
        ("discriminator.channel_max=64", "discriminator.channels", [32, 64, 64, 64]),
        ("discriminator.conv_clamp=none", "discriminator.conv_clamp", None),
        ("ema=1", None, "there is no value 'ema'; legal are mirror, "),
        ("objective.knn=1", None, "there is no value 'objective.knn'; legal in objective are gamma, "),
        ("objective.gamma=much", None, "--set=objective.gamma=much: 'much' is not a number"),
        ("objective.num_views=1.5", None, "'1.5' is not a whole number"),
        ("objective.multiview=maybe", None, "'maybe' is not true or false"),
        ("mirror", None, "--set=mirror: write NAME=VALUE"),
    ],
)
def test_set_reaches_every_value_with_its_type(heads, setting, place, value):
    if place is None:
        result = invoke(f"--data={heads}", f"--set={setting}", "--dry-run")
        assert result.exit_code == 2 and value in " ".join(result.output.split()), result.output
        return
    found = resolved(f"--data={heads}", f"--set={setting}")
    for key in place.split("."):
        found = found[key]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--set=image_ticks=0", "--img-snap=0: must be 1 or greater"),
        ("--set=snapshot_ticks=-1", "--network-snap=-1: must be 1 or greater"),
        ("--set=max_bad_steps=0", "--max-bad-steps=0: must be 1 or greater"),
        ("--set=seed=-1", "--seed=-1: must be 0 or greater"),
        ("--set=batch_gpu=0", "--batch-gpu=0: must be 1 or greater"),
        ("--set=objective.r1_interval=0", "--r1-interval=0: must be 1 or greater"),
        ("--set=objective.beta2=1", "objective.beta2=1.0: must be 0 or greater and less than 1"),
        ("--set=objective.blur_sigma=inf", "objective.blur_sigma=inf: must be finite and 0 or greater"),
        ("--set=generator.z_dim=0", "generator.z_dim=0 must be 1 or more"),
        ("--set=generator.num_heads=0", "generator.num_heads=0 must be 1 or more"),
        ("--set=generator.first_blocks=-1", "generator.first_blocks=-1 must be 1 or more"),
        ("--set=generator.widths=64,0,16", "ratios (1, 4, 4) and widths (64, 0, 16) must be 1 or more"),
        ("--set=discriminator.embedding_dim=0", "discriminator.embedding_dim=0 must be 1 or more"),
        ("--batch=8 --glr=-1", "--glr=-1.0: must be finite and greater than 0"),  # --batch-gpu shrinks besides
        ("--batch=8 --knn-num-ks=99", "--knn-num-ks=99: legal are 1 to 31"),
    ],
)
def test_a_setting_that_cannot_be_trained_with_is_refused(heads, arguments, message):
    result = invoke(f"--data={heads}", *arguments.split(), "--dry-run")
    assert result.exit_code == 1 and f"Error: {message}" in result.output, result.output


# ---------------------------------------------------------------- backgrounds and lists


def test_without_masks_the_background_is_white_and_a_warning_says_so(bare, tmp_path):
    assert resolved(f"--data={bare}")["background"] == "white"
    output = succeed(f"--data={bare}", *SHORT, "--kimg=0.008", "--batch=8", f"--outdir={tmp_path / 'runs'}")
    assert output.count("Warning: the set has no masks, so the scene must explain the background") == 1
    result = invoke(f"--data={bare}", "--background=random")
    assert result.exit_code == 1 and "--background=random needs masks" in result.output


def test_a_run_that_goes_on_without_masks_gives_up_random_backgrounds(bare, heads):
    """Published weights were trained over random backgrounds; their record says so to any data."""
    base = launch.resolve_config(ImageDataset(heads), str(heads), 1, background="random")
    assert base.background == "random"
    assert launch.resolve_config(ImageDataset(heads), str(heads), 1, base=base).background == "random"
    assert launch.resolve_config(ImageDataset(bare), str(bare), 1, base=base).background == "white"


def test_an_index_list_by_name_and_by_file(heads, tmp_path, monkeypatch):
    (tmp_path / "mine.json").write_text("[3, 3, 5]")
    monkeypatch.chdir(tmp_path)
    assert resolved(f"--data={heads}", "--index-list=mine.json")["index_list"] == str(tmp_path / "mine.json")
    assert resolved(f"--data={heads}", "--cam_sample_mode=ffhq_default")["index_list"] == "all"
    result = invoke(f"--data={heads}", "--cam_sample_mode=nothing", "--dry-run")
    assert result.exit_code == 1 and "nothing.json" in result.output
