"""`validate --like` on ray-cast sets whose framing is known to differ."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from dataset_tool import main
from training.data.likeness import compare, register
from training.data.synthetic.synthesize import CameraSpread, synthesize_heads

COUNT, SIDE = 60, 32


def make(folder, seed: int = 1, **spread):
    return synthesize_heads(folder, COUNT, SIDE, seed, CameraSpread(**spread), workers=1).images


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return make(tmp_path_factory.mktemp("reference") / "set", seed=2)


def relabelled(images, change):
    """Writes labels [N, 25] that went through `change` over those of the set."""
    path = images.parent / "dataset.json"
    content = json.loads(path.read_text())
    values = change(np.array([label for _, label in content["labels"]]))
    content["labels"] = [[name, v.tolist()] for (name, _), v in zip(content["labels"], values, strict=True)]
    path.write_text(json.dumps(content))
    return images


def test_other_heads_of_the_same_framing_are_alike(reference, tmp_path):
    images = make(tmp_path / "set")
    assert compare(images, reference)[1] == []
    result = CliRunner().invoke(main, ["validate", str(images), f"--like={reference}"])
    assert result.exit_code == 0 and f"framed like {reference}" in result.output
    for word in ("head height", "centre", "focal length", "mean picture", "yaw", "brightness"):
        assert f"\n{word}" in result.output


def test_larger_heads_are_found_and_the_zoom_that_mends_them(reference, tmp_path):
    """Seen through a longer lens, and labelled as if not: heads 1.25 times as large."""
    images = make(tmp_path / "set", focal=1.25 * 4.2647)

    def pretend(labels):
        labels[:, [16, 20]] = 4.2647
        return labels

    facts, advice = compare(relabelled(images, pretend), reference)
    line = next(line for line in advice if "larger" in line)
    assert float(line.rpartition("--zoom=")[2]) == pytest.approx(0.8, abs=0.03)
    assert len(advice) == 1 and facts


def test_lower_heads_are_found_and_the_shift_that_mends_them(reference, tmp_path):
    images = make(tmp_path / "set", cy=0.58)
    line = next(line for line in compare(images, reference)[1] if "lower" in line)
    assert float(line.rpartition("--shift=")[2]) == pytest.approx(-0.08, abs=0.015)


def test_another_focal_length_and_another_level_are_found(reference, tmp_path):
    images = make(tmp_path / "set", focal=1.1 * 4.2647, radius=1.1 * 2.7)
    assert any(line.startswith("focal length is 1.10") for line in compare(images, reference)[1])

    def tip(labels):
        poses = labels[:, :16].reshape(-1, 4, 4)
        c, s = np.cos(np.radians(10)), np.sin(np.radians(10))
        turn = np.array([[1, 0, 0, 0], [0, c, s, 0], [0, -s, c, 0], [0, 0, 0, 1]])
        labels[:, :16] = (turn @ poses).reshape(-1, 16)
        return labels

    images = relabelled(make(tmp_path / "tipped", seed=2), tip)
    line = next(line for line in compare(images, reference)[1] if "degrees higher" in line)
    assert float(line.rpartition("--tilt=")[2]) == pytest.approx(-10, abs=0.7)


def test_a_narrow_set_and_a_mirrored_one_are_found(reference, tmp_path):
    narrow = compare(make(tmp_path / "narrow", yaw_std=0.1), reference)[1]
    assert any("side views are rarer" in line for line in narrow)

    def mirror(labels):
        flip = np.diag([-1.0, 1.0, 1.0, 1.0])
        labels[:, :16] = (flip @ labels[:, :16].reshape(-1, 4, 4) @ flip).reshape(-1, 16)
        return labels

    mirrored = compare(relabelled(make(tmp_path / "mirrored"), mirror), reference)[1]
    assert any("turn against their yaw" in line for line in mirrored)


def test_registers_a_moved_and_enlarged_blob():
    y, x = np.mgrid[:64, :64] / 64

    def blob(cx, cy, size):
        return np.exp(-(((x - cx) / (0.15 * size)) ** 2 + ((y - cy) / (0.2 * size)) ** 2))

    size, right, down, alike = register(blob(0.53, 0.44, 1.2), blob(0.5, 0.5, 1.0))
    assert size == pytest.approx(1.2, abs=0.02) and alike > 0.999
    assert right == pytest.approx(0.03, abs=0.005) and down == pytest.approx(-0.06, abs=0.005)
