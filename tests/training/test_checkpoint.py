"""Checkpoints: tensors and plain values, whole or absent, checksum verified, nothing executed."""

import os
import pickle

import pytest
import torch

from gaussian import Cameras
from training import checkpoint
from training.discriminator import Discriminator
from training.generator import Generator
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
    assert abs(G.geometry.radius - 2.7) < 0.01 and G.checkpoint_config["data"] == "somewhere"
    image, labels = torch.randn(4, 3, 32, 32), torch.randn(4, 25)
    torch.testing.assert_close(checkpoint.load_discriminator(path)(image, labels), D(image, labels), rtol=0, atol=0)

    fresh = torch.optim.Adam(D.parameters(), lr=0.001)
    checkpoint.load_optimizer_state(D, fresh, loaded["opt"]["D"])
    for p in D.parameters():
        for key, value in optimizer.state[p].items():
            assert torch.equal(fresh.state[p][key], value)


def test_any_flipped_byte_is_noticed_or_harmless(tmp_path):
    """A damaged file is refused with one line, or the flip hit padding and every record is the same."""
    state, *_ = make_state()
    path = tmp_path / "a.pkl"
    checkpoint.save_checkpoint(path, state)
    whole = path.read_bytes()
    refused = 0
    for position in torch.randint(0, len(whole), (40,), generator=torch.Generator().manual_seed(0)).tolist():
        broken = bytearray(whole)
        broken[position] ^= 0x10
        (tmp_path / "b.pkl").write_bytes(broken)
        try:
            loaded = checkpoint.load_checkpoint(tmp_path / "b.pkl")
        except checkpoint.CheckpointError as error:
            refused += 1
            assert "\n" not in str(error) and "b.pkl" in str(error)
        else:
            assert checkpoint.checksum(loaded) == checkpoint.checksum({**checkpoint.load_checkpoint(path)})
    assert refused >= 30  # most bytes are weights


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
