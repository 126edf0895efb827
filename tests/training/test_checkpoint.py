"""Checkpoints: tensors and plain values, whole or absent, checksum verified, nothing executed."""

import os
import pickle
import warnings

import pytest
import torch

from dnnlib import ROOT
from gaussian import Cameras
from training import checkpoint
from training.config import TrainingConfig
from training.families.cgs.generator import Generator
from training.networks.discriminator import Discriminator
from training.presets import resolve


def make_state(seed=0):
    torch.manual_seed(seed)
    config = resolve("micro", data="somewhere")
    G, D = Generator(config.generator), Discriminator(config.discriminator)
    cameras = Cameras.look_at(
        torch.tensor([[0.0, 0.0, 2.7], [1.0, 0.0, 2.5]]),
        (0.0, 0.0, 0.0),
        intrinsics=torch.diag(torch.tensor([4.26, 4.26, 1])),
    )
    optimizer = torch.optim.Adam(D.parameters(), lr=0.001)
    D(torch.randn(4, 3, 32, 32), torch.randn(4, 25)).sum().backward()
    optimizer.step()
    state = {
        "config": config.to_dict(),
        "geometry": cameras.summary().to_dict(),
        "progress": {"nimg": 123_456, "step": 7, "tick": 3},
        "G": G.state_dict(),
        "D": D.state_dict(),
        "G_ema": G.state_dict(),
        "opt": {"G": {}, "D": checkpoint.optimizer_state(D, optimizer)},
        "grid": {"z": torch.randn(2, 64), "labels": cameras.labels},
        "best": {"swd1k": {"value": 1.5, "nimg": 1000}},
    }
    return state, D, optimizer


def test_round_trip_through_weights_only_loading(tmp_path):
    state, D, optimizer = make_state()
    path = checkpoint.snapshot_path(tmp_path, 123_456)
    assert path.name == "network-snapshot-000123.pkl"
    checkpoint.save_checkpoint(path, state)
    loaded = checkpoint.load_checkpoint(path)
    assert loaded["config"] == state["config"] and loaded["progress"] == state["progress"]
    assert all(torch.equal(loaded["D"][k], v) for k, v in state["D"].items())
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # no temporary file stays
    assert checkpoint.snapshot_path(tmp_path, 123_999).name == "network-snapshot-000123_00123999.pkl"

    G = checkpoint.load_generator(path)
    assert not G.training and not any(p.requires_grad for p in G.parameters())
    assert abs(G.geometry.radius - 2.7) < 0.01 and G.info.config["data"] == "somewhere"
    image, labels = torch.randn(4, 3, 32, 32), torch.randn(4, 25)
    torch.testing.assert_close(checkpoint.load_discriminator(path)(image, labels), D(image, labels), rtol=0, atol=0)

    fresh = torch.optim.Adam(D.parameters(), lr=0.001)
    checkpoint.load_optimizer_state(D, fresh, loaded["opt"]["D"])
    for p in D.parameters():
        for key, value in optimizer.state[p].items():
            assert torch.equal(fresh.state[p][key], value)


def test_any_flipped_byte_is_refused_or_harmless(tmp_path):
    """1,000 random positions of a small file with every kind of record. Seen: 0 loaded otherwise than identical."""
    generator = torch.Generator().manual_seed(0)
    weights = {f"layer{i}.weight": torch.randn(3, 5, generator=generator) for i in range(4)}
    moments = {"step": torch.tensor(3.0), "exp_avg": torch.randn(3, 5, generator=generator)}
    state = {
        "config": {"batch": 8, "gamma": 2.0, "metrics": ["swd1k"], "detector": None, "mirror": True},
        "geometry": {"radius": 2.7, "pivot": [0.0, 0.0, 0.2]},
        "progress": {"nimg": 800, "step": 100, "tick": 3},
        **dict.fromkeys(("G", "D", "G_ema"), weights),
        "opt": {"G": {"layer0.weight": moments}, "D": {}},
        "grid": {"z": torch.randn(2, 4, generator=generator), "count": torch.arange(3)},
        "best": {},
        "statistics": [{"moments": {"Loss/G": torch.tensor([8.0, 1.5], dtype=torch.float64)}, "rows": {}}],
    }
    path, broken = tmp_path / "a.pkl", tmp_path / "b.pkl"
    checkpoint.save_checkpoint(path, state)
    whole, expected = path.read_bytes(), checkpoint.load_checkpoint(path)
    refused = 0
    positions = torch.randint(0, len(whole), (1000,), generator=generator).tolist()
    masks = torch.randint(1, 256, (1000,), generator=generator).tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about files it does not know
        for position, mask in zip(positions, masks, strict=True):
            content = bytearray(whole)
            content[position] ^= mask
            broken.write_bytes(content)
            try:
                loaded = checkpoint.load_checkpoint(broken)
            except checkpoint.CheckpointError as error:
                refused += 1
                assert str(error).startswith(str(broken)) and "\n" not in str(error)
            else:
                assert _identical(loaded, expected), position
    assert refused > 250  # the rest is padding, names of the archive and dates


def _identical(a, b):
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_identical(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_identical, a, b))
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and a == b


def test_files_of_format_1_load_for_ever():
    """A file that the first version wrote, with networks of 8 points. Nobody may ever write it anew."""
    path = ROOT / "tests" / "data" / "checkpoint-format-1.pkl"
    state = checkpoint.load_checkpoint(path)
    assert state["format"] == 2 and state["progress"]["nimg"] == 1000 and state["opt"]["D"]
    G = checkpoint.load_generator(path)
    ws = G.mapping(torch.linspace(-1, 1, G.z_dim)[None])
    expected = torch.tensor([-0.517075, 2.074468, -0.172802, -0.173033, -0.629519, -0.286758, -0.344107, 0.087099])
    torch.testing.assert_close(ws[0, 0], expected, rtol=1e-4, atol=1e-5)
    means = G.synthesis(ws).means
    assert abs(float(means.std()) - 0.223159) < 1e-4
    checkpoint.load_discriminator(path)


def test_a_file_of_format_1_becomes_the_configuration_that_it_meant(tmp_path):
    """What `tiny` of the first version wrote after 640 images, each tensor replaced by its mean to be small."""
    path = ROOT / "tests" / "data" / "checkpoint-format-1-tiny.pkl"
    written = torch.load(path, weights_only=True)["config"]
    state = checkpoint.load_checkpoint(path)
    config = TrainingConfig.from_dict(state["config"])
    assert config.family == "cgs" and config.stages == () and config.preset == "tiny"
    flat = {**config.to_dict(), **config.to_dict()["objective"]}
    for name, value in written.items():
        if name == "generator":  # fields that came later have the value that acts as before
            assert value.items() <= flat[name].items()
            assert flat[name]["color_rule"] == flat[name]["start"] == "published"
        elif name == "discriminator":
            assert flat[name] == {**value, "direction_octaves": 0}
        else:
            assert flat[name] == value, name
    info = checkpoint.load_generator(path).info
    assert info.background == "white" and info.yaw_limits[0] < -0.3 < 0.3 < info.yaw_limits[1]
    checkpoint.save_checkpoint(tmp_path / "upgraded.pkl", _records(state))
    assert checkpoint.load_checkpoint(tmp_path / "upgraded.pkl")["config"] == state["config"]


def _records(state):
    return {key: value for key, value in state.items() if key not in ("format", "revision", "checksum")}


def test_truncated_foreign_and_hostile_files_are_refused(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    state, *_ = make_state()
    checkpoint.save_checkpoint(tmp_path / "good.pkl", state)
    whole = (tmp_path / "good.pkl").read_bytes()
    (tmp_path / "short.pkl").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.pkl").write_bytes(b"")
    (tmp_path / "text.pkl").write_text("hello")
    (tmp_path / "hostile.pkl").write_bytes(pickle.dumps(Hostile()))
    torch.save({**state, "format": 1, "config": Hostile()}, tmp_path / "zipped.pkl")
    torch.save({"format": 99}, tmp_path / "future.pkl")
    torch.save([1, 2], tmp_path / "list.pkl")
    for name in ("short", "empty", "text", "hostile", "zipped", "future", "list", "absent"):
        with pytest.raises(checkpoint.CheckpointError, match=f"{name}.pkl: .+") as caught:
            checkpoint.load_checkpoint(tmp_path / f"{name}.pkl")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    state, *_ = make_state()
    path = tmp_path / "network-snapshot-000000.pkl"
    checkpoint.save_checkpoint(path, state)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save_checkpoint(path, state)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_unknown_configuration_field_is_named(tmp_path):
    state, *_ = make_state()
    state["config"]["gama"] = 1.0
    checkpoint.save_checkpoint(tmp_path / "x.pkl", state)
    with pytest.raises(ValueError, match="unknown field gama"):
        checkpoint.load_generator(tmp_path / "x.pkl")
