"""train.py from the shell: a run's folder, resuming, equal runs, and one line for every mistake."""

import json
import os
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import calc_metrics
import train
from training.checkpoint import load_checkpoint, load_generator
from training.data.synthetic.synthesize import synthesize_heads

COMMON = [
    "--kimg=0.064",
    "--tick=0.032",
    "--batch=8",
    "--batch-gpu=8",
    "--metrics=none",
    "--device=cpu",
    "--precision=fp32",
]


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """A 32-px data set of the published layout: the folder of its images."""
    root = tmp_path_factory.mktemp("heads")
    synthesize_heads(root / "set", 24, 32, seed=0)
    return root / "set" / "32"


def run(*arguments):
    return CliRunner().invoke(train.main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def finished(heads, tmp_path_factory):
    """One whole run of 64 images, with both kinds of spelling."""
    outdir = tmp_path_factory.mktemp("runs")
    arguments = [f"--data={heads}", f"--outdir={outdir}", "--network_snap=1", "--img-snap=1", "--desc=a b"]
    result = run(
        *arguments,
        *(a for a in COMMON if a != "--metrics=none"),
        "--metrics=swd16,fid16_full,kid16_full,pr16k3_full",
        "--detector=tiny",
    )
    assert result.exit_code == 0, result.output
    return outdir / "00000-a-b"


def test_run_folder(finished):
    names = {p.name for p in finished.iterdir()}
    assert {
        "training_options.json",
        "log.txt",
        "stats.jsonl",
        "reals.png",
        "cameras.png",
        "metric-swd16.jsonl",
    } <= names
    options = json.loads((finished / "training_options.json").read_text())
    assert options["preset"] == "micro" and options["total_kimg"] == 0.064 and options["generator"]["num_points"] == 32
    assert Image.open(finished / "fakes000000.png").size == (7 * 32, 6 * 32)
    assert "sec/kimg" in (finished / "log.txt").read_text()


def test_statistics(finished):
    lines = [json.loads(line) for line in (finished / "stats.jsonl").read_text().splitlines()]
    assert [line["nimg"] for line in lines] == [8, 40, 64]  # a tick after the first step, as published
    wanted = {"Loss/G/adversarial", "Loss/G/knn", "Loss/G/center", "Loss/D/real", "Loss/D/fake", "Loss/D/r1_penalty",
              "Logits/G", "Logits/real/sign", "Gradient/G/norm", "Gradient/R1/norm", "Gaussians/level2/opacity",
              "Gaussians/visible", "Gaussians/near_transparent", "Gaussians/flatness"}  # fmt: skip
    assert wanted <= set(lines[0])
    assert all(value is not None for line in lines for value in line.values())
    assert lines[0]["Gradient/G/skipped"] == 0 and "sec_per_kimg" in lines[0]["timing"]


def test_checkpoints_load(finished):
    paths = sorted(finished.glob("network-snapshot-*.pkl"))
    progress = {load_checkpoint(p)["progress"]["nimg"] for p in paths}
    assert progress == {8, 40, 64}  # three files within one kimg
    G = load_generator(paths[0])
    out = G(torch.randn(2, G.z_dim), G.geometry.orbit(torch.tensor([[0.0, 0.5]] * 2)))
    assert out.rgb.shape == (2, 2, 3, 32, 32)


@pytest.mark.parametrize("name", ["swd16", "fid16_full", "kid16_full"])
def test_the_metric_offline_is_the_metric_of_training(finished, tmp_path, name):
    last = sorted(finished.glob("network-snapshot-*.pkl"), key=lambda p: load_checkpoint(p)["progress"]["nimg"])[-1]
    trained = json.loads((finished / f"metric-{name}.jsonl").read_text().splitlines()[-1])
    assert trained["snapshot_pkl"] == last.name
    arguments = [f"--network={last}", f"--metrics={name}", f"--outdir={tmp_path}", "--device=cpu", "--no-cache"]
    result = CliRunner().invoke(calc_metrics.main, arguments)
    assert result.exit_code == 0, result.output
    offline = json.loads((tmp_path / f"metric-{name}.jsonl").read_text())
    value = trained["results"][name]
    assert value > 50 and abs(offline["results"][name] - value) < 1e-6 * value  # far from 0, and equal
    assert offline["protocol"] == trained["protocol"] and offline.get("note") == trained.get("note")


def test_a_metric_that_cannot_run_is_left_out(finished):
    """pr16k3_full has no VGG-16 here: said before the first step and once per snapshot, and the run went on."""
    log = (finished / "log.txt").read_text()
    assert log.count("pr16k3_full will be left out: it needs the weights of the VGG-16 network") == 1
    assert log.count("pr16k3_full left out: it needs the weights of the VGG-16 network") == 2
    assert log.index("will be left out") < log.index("tick 0") and not list(finished.glob("metric-pr*"))


def test_trains_without_native_code(heads, tmp_path):
    """No compiler, no CUDA: the twin renders, one line says so, and the run ends well."""
    environment = os.environ | {"SPLATGAN_NATIVE": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, train.__file__, f"--data={heads}", f"--outdir={tmp_path}", *COMMON, "--kimg=0.008"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "rasterizer torch" in done.stdout and done.stderr.count("slow back end 'torch'") == 1
    assert list(tmp_path.glob("*/network-snapshot-*.pkl"))


def test_two_ranks_train_like_one_process(heads, tmp_path):
    """gloo: same samples, same micro-batches, so the first step's statistics agree to rounding."""
    lines = []
    for ranks in (1, 2):
        options = [f"--data={heads}", f"--outdir={tmp_path / str(ranks)}", *COMMON, "--kimg=0.008", "--batch-gpu=4"]
        if ranks == 1:
            result = run(*options)
            assert result.exit_code == 0, result.output
        else:
            command = [sys.executable, train.__file__, *options, f"--gpus={ranks}"]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        lines.append(json.loads(next((tmp_path / str(ranks)).glob("*/stats.jsonl")).read_text().splitlines()[0]))
    for name in ("Loss/G/adversarial", "Loss/D/fake", "Loss/D/real", "Loss/D/r1_penalty", "Gradient/G/norm"):
        one, two = (line[name] for line in lines)
        assert abs(one - two) <= 1e-4 * abs(one), name  # D's logits after a step of G feel the order of sums


def test_resume_continues_bit_equal(heads, finished, tmp_path):
    """A run continued from the middle ends with the same weights, optimiser state and statistics."""
    paths = {load_checkpoint(p)["progress"]["nimg"]: p for p in finished.glob("network-snapshot-*.pkl")}
    result = run(f"--data={heads}", f"--outdir={tmp_path}", f"--resume={paths[40]}", *COMMON)
    assert result.exit_code == 0, result.output
    (continued,) = (load_checkpoint(p) for p in tmp_path.glob("*/network-snapshot-*.pkl"))
    whole = load_checkpoint(paths[64])
    assert continued["progress"]["nimg"] == 64
    for network in ("G", "D", "G_ema"):
        for name, value in whole[network].items():
            assert torch.equal(value, continued[network][name]), name
    for network in ("G", "D"):
        for name, state in whole["opt"][network].items():
            assert all(torch.equal(v, continued["opt"][network][name][k]) for k, v in state.items()), name
    last = [
        json.loads(p.read_text().splitlines()[-1])
        for p in (finished / "stats.jsonl", next(tmp_path.glob("*/stats.jsonl")))
    ]
    for line in last:
        line.pop("timing")
    assert last[0] == last[1]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--preset=huge"], "unknown preset 'huge'; legal are micro, tiny"),
        (["--preset=tiny"], "--preset=tiny is for 64 px"),
        (["--batch=10", "--batch-gpu=4"], "--batch=10 is not a multiple"),
        (["--batch=6", "--batch-gpu=6"], "minibatch-std group of 4"),
        (["--metrics=fid"], "fid<N>_full"),
        (["--kimg=-1"], "--kimg=-1.0: must be finite and greater than 0"),
        (["--knn-num-ks=32"], "--knn-num-ks=32: legal are 1 to 31"),
        (["--resume=nothing.pkl"], "nothing.pkl: no such checkpoint"),
        (["--device=cuda"], "sees no CUDA device"),
    ],
)
def test_mistakes_end_in_one_line(heads, tmp_path, arguments, line):
    result = run(f"--data={heads}", f"--outdir={tmp_path}", "--device=cpu", *arguments)
    errors = [text for text in result.output.splitlines() if text.startswith("Error:")]
    assert result.exit_code != 0 and len(errors) == 1 and line in errors[0], result.output
    assert "Traceback" not in result.output


def test_missing_data_is_one_line(tmp_path):
    result = run(f"--data={tmp_path / 'nowhere'}", f"--outdir={tmp_path}")
    assert result.exit_code != 0 and "nowhere" in result.output.splitlines()[-1]
