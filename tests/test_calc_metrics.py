"""calc_metrics.py from the command line, on a checkpoint of an untrained generator."""

import json

import pytest
import torch
from click.testing import CliRunner

from calc_metrics import main
from gaussian import Cameras
from metrics import compute_metric
from tests.metrics.conftest import write_dataset
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
    """The shared checkpoint, with the path of its data and a metric of its own."""
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
    options = [f"--network={network}", f"--data={data}", "--metrics=fid4_full, fid3d_4_full", "--detector=untrained"]
    result = run(*options, f"--outdir={tmp_path / 'out'}")
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["metric"] for line in lines] == ["fid4_full", "fid3d_4_full"]
    assert all("untrained" in line["note"] for line in lines)
    assert "cache miss" in result.stderr and "cache hit" in result.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "metric-fid3d_4_full.jsonl",
        "metric-fid4_full.jsonl",
    ]
    # This generator reads no camera, so both kinds see the same images.
    values = [line["results"][line["metric"]] for line in lines]
    assert values[0] > 1
    assert values[1] == pytest.approx(values[0], rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metrics=fid2k"], "metric 'fid2k' does not exist; legal are fid<N>_full"),
        (["--metrics=fid20_full"], "needs the weights of the 2015 Inception network"),
        (["--metrics=fid20_full", "--detector=absent.pth"], "no such file: absent.pth"),
        (["--data=absent"], "absent"),
        (["--device=abacus"], "--device=abacus cannot be used"),
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
