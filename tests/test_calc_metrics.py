"""Tests calc_metrics.py from the command line, on a checkpoint of an untrained generator."""

import json
import os
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner

import calc_metrics
from calc_metrics import main
from gaussian import Cameras
from metrics import MetricUnavailable, compute_metric
from tests.metrics.toys import write_dataset
from training.checkpoint import load_checkpoint, load_generator, save_checkpoint
from training.dataset import ImageDataset


@pytest.fixture(scope="module")
def data(tmp_path_factory, geometry):
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8, generator=random)
    masks = torch.zeros(12, 1, 32, 32, dtype=torch.uint8)
    masks[:, :, 8:24, 8:24] = 255
    cameras: Cameras = geometry.orbit(torch.rand(12, generator=random) - 0.5)
    return write_dataset(tmp_path_factory.mktemp("heads"), images, masks, cameras)


@pytest.fixture(scope="module")
def network(tmp_path_factory, checkpoint_path, data):
    """Writes the shared checkpoint with the path of its data and a metric of its own."""
    state = load_checkpoint(checkpoint_path)
    # The PyTorch rasteriser, because a private cache folder would have the native one built anew.
    state["config"] = {**state["config"], "data": str(data), "metrics": ["swd12"], "rasterizer": "torch"}
    path = tmp_path_factory.mktemp("run") / "network-snapshot-000003.pkl"
    save_checkpoint(path, {key: value for key, value in state.items() if key != "checksum"})
    return path


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLATGAN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("SPLATGAN_DETECTOR", raising=False)


def run(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments), "--device=cpu"])


def test_defaults_come_from_the_checkpoint(network, data):
    result = run(f"--network={network}")
    assert result.exit_code == 0, result.output
    assert f"--data not given: measuring against the training data, {data}" in result.stderr
    printed = json.loads(result.stdout)
    assert printed == json.loads((network.parent / "metric-swd12.jsonl").read_text().splitlines()[-1])
    assert printed["snapshot_pkl"] == network.name and printed["metric"] == "swd12"
    assert printed["protocol"]["num_fake"] == 12

    inside = compute_metric("swd12", load_generator(network), ImageDataset(data), batch_size=5)
    assert inside.value > 1
    assert printed["results"]["swd12"] == pytest.approx(inside.value, rel=1e-4)


def test_untrained_detector_marks_the_line(network, data, tmp_path):
    few = tmp_path / "few.json"  # an image takes half a second
    few.write_text("[0, 1, 2, 3]")
    options = [f"--network={network}", f"--data={data}", f"--index-list={few}", "--detector=untrained"]
    result = run(*options, "--metrics=fid2_full, fid3d_2_full", f"--outdir={tmp_path / 'out'}")
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["metric"] for line in lines] == ["fid2_full", "fid3d_2_full"]
    assert all("untrained" in line["note"] for line in lines)
    assert "cache miss" in result.stderr and "cache hit" in result.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "metric-fid2_full.jsonl",
        "metric-fid3d_2_full.jsonl",
    ]
    # This generator reads no camera, so both kinds see the same images.
    values = [line["results"][line["metric"]] for line in lines]
    assert values[0] > 1
    assert values[1] == pytest.approx(values[0], rel=1e-6)


def changed(network, path, **config):
    """Writes `network` to `path` with other fields in its configuration."""
    state = load_checkpoint(network)
    state["config"] = {**state["config"], **config}
    save_checkpoint(path, {key: value for key, value in state.items() if key != "checksum"})
    return path


def test_the_index_list_of_the_training_holds_for_other_data(network, data, tmp_path):
    (tmp_path / "list.json").write_text("[3, 3, 5, 7, 9]")
    listed = changed(network, tmp_path / "network-snapshot-000004.pkl", index_list=str(tmp_path / "list.json"))
    options = [f"--network={listed}", f"--data={data}", "--metrics=fid8_full", "--detector=tiny"]
    counts = []
    for more in ([], ["--index-list=all"]):
        result = run(*options, *more)
        assert result.exit_code == 0, result.output
        protocol = json.loads(result.stdout)["protocol"]
        counts.append(protocol["num_real"])
        assert protocol["index_list"] == ("all" if more else str(tmp_path / "list.json"))
    assert counts == [5, 12]


def test_the_background_of_the_training(network, data, tmp_path):
    values = []
    for background, colour in (("random", "white"), ("black", "black"), ("0.25,0.5,1", "0.25,0.5,1")):
        path = changed(network, tmp_path / "network-snapshot-000005.pkl", background=background)
        result = run(f"--network={path}", f"--data={data}", "--metrics=fid8_full", "--detector=tiny")
        assert result.exit_code == 0, result.output
        line = json.loads(result.stdout)
        assert line["protocol"]["background"] == colour
        values.append(line["results"]["fid8_full"])
    assert len(set(values)) == 3 and min(values) > 1
    G = load_generator(path)
    with pytest.raises(MetricUnavailable, match=r"trained over 0.25,0.5,1, the metric asks for white"):
        compute_metric("swd8", G, ImageDataset(data), background="white")


def test_two_processes(network, data, tmp_path):
    """--gpus starts them, one prints and writes, and the value is that of one."""
    names = "swd12,fid12_full"
    options = [f"--network={network}", f"--data={data}", f"--metrics={names}", "--detector=tiny", "--batch-size=4"]
    command = [
        sys.executable,
        calc_metrics.__file__,
        *options,
        "--device=cpu",
        "--gpus=2",
        f"--outdir={tmp_path / '2'}",
    ]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    both = [json.loads(line) for line in done.stdout.splitlines()]
    one = [json.loads(line) for line in run(*options, f"--outdir={tmp_path / '1'}").stdout.splitlines()]
    assert [line["num_processes"] for line in both] == [2, 2] and [line["num_processes"] for line in one] == [1, 1]
    for a, b in zip(both, one, strict=True):
        assert min(b["results"].values()) > 1
        assert a["results"] == pytest.approx(b["results"], rel=1e-6)
    assert len((tmp_path / "2" / "metric-swd12.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics=fid2k"], "metric 'fid2k' does not exist; legal are fid<N>_full"),
        (["--metrics=fid20_full"], "needs the weights of the 2015 Inception network"),
        (["--metrics=fid20_full", "--detector=absent.pth"], "fid20_full: --detector=absent.pth: no such file"),
        (["--data=absent"], "absent"),
        (["--device=abacus"], "--device=abacus: there is no such device here"),
        (["--metrics=,"], "--metrics names no metric"),
        (["--network=absent.pkl"], "absent.pkl"),
    ],
)
def test_bad_input_is_one_line(network, arguments, message):
    result = CliRunner().invoke(main, [f"--network={network}", *arguments])
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert message in line
    assert result.stdout == ""
