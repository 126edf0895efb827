"""Published files open by their names, classes and shapes, and nothing in them is run."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.families.pigan.file_writer import published_names, write
from training.checkpoint import CheckpointError, load_generator
from training.families.pigan.config import GeneratorConfig
from training.families.pigan.discriminator import Discriminator, DiscriminatorConfig
from training.families.pigan.generator import Generator
from training.published.records import is_published, read_published

SMALL = GeneratorConfig(128, z_dim=6, width=8, layers=3, map_depth=2)


def networks(variant: str = "spatial", kind: str = "ccs") -> tuple[Generator, Generator, Discriminator]:
    torch.manual_seed(0)
    config = SMALL.changed(variant=variant)
    latent = 0 if kind == "strided" else 6
    return Generator(config), Generator(config), Discriminator(DiscriminatorConfig(kind, (3, 4, 5), latent))


@pytest.mark.parametrize(
    ("variant", "kind", "preset"),
    [("spatial", "ccs", "celeba"), ("spatial", "strided", "cats"), ("tall", "progressive", "carla")],
)
def test_a_folder_of_files_is_read(variant: str, kind: str, preset: str, tmp_path: Path) -> None:
    G, average, D = networks(variant, kind)
    path = write(tmp_path, G, average, D, prefix="20200101_")
    optimizer = torch.optim.Adam(G.parameters())
    sum(p.square().sum() for p in G.parameters()).backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "20200101_optimizer_G.pth")
    assert is_published(path)
    record = read_published(path)
    config = record["config"]
    assert (config["family"], config["generator"]["variant"]) == ("pigan", variant)
    assert config["generator"]["samples"] == {"celeba": 12, "cats": 24, "carla": 48}[preset]
    assert config["generator"]["grid"] == "corners" and config["generator"]["last_back"] == (preset != "carla")
    assert config["discriminator"]["kind"] == kind and config["discriminator"]["widths"] == [3, 4, 5]
    for name, module in (("G_ema", average), ("D", D)):
        assert record[name].keys() == module.state_dict().keys()
        assert all(torch.equal(value, record[name][key]) for key, value in module.state_dict().items())
    moments = record["opt"]["G"]["siren.final_layer.weight"]
    torch.testing.assert_close(moments["exp_avg"], optimizer.state[G.siren.final_layer.weight]["exp_avg"])
    loaded = load_generator(path)
    seen = loaded.geometry.frontal().reshape(1, 1)
    z = torch.randn(1, 6)
    expected = Generator(loaded.config)
    expected.load_state_dict(average.state_dict())
    with torch.no_grad():
        small = [G.render(G.synthesis(G.mapping(z)), seen, 8).rgb for G in (loaded, expected)]
    assert torch.equal(*small)


def test_without_a_discriminator_the_variant_tells_the_curriculum(tmp_path: Path) -> None:
    G, average, _ = networks("tall")
    record = read_published(write(tmp_path, G, average))
    assert record["D"] == {} and record["config"]["generator"]["samples"] == 48
    assert record["config"]["discriminator"]["kind"] == "progressive"


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    G, average, _ = networks()
    path = write(tmp_path, G, average)
    (tmp_path / "ema.pth").rename(tmp_path / "elsewhere.pth")
    with pytest.raises(CheckpointError, match=r"ema\.pth must lie beside it"):
        load_generator(path)
    with pytest.raises(CheckpointError, match="the file of a generator is called"):
        load_generator(tmp_path / "elsewhere.pth")
    other = Generator(SMALL.changed(width=4))
    write(tmp_path, G, other)
    with pytest.raises(CheckpointError, match=r"ema\.pth is the average of another generator"):
        load_generator(path)


class Call:
    """Pickles as a call of what it is given."""

    def __init__(self, function: Any, *arguments: Any):
        self.what = function, arguments

    def __reduce__(self):
        return self.what


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    G, average, _ = networks()
    path, trace = write(tmp_path, G, average), tmp_path / "executed"
    with published_names() as make:
        cls = make("generators.generators.ImplicitGenerator3d", torch.nn.Module)
        module = cls()
        module.trap = Call(os.system, f"touch {trace}")
        torch.save(module, path)
    with pytest.raises(CheckpointError, match=r"refused as a published checkpoint: generator\.pth: it names"):
        load_generator(path)
    assert not trace.exists()
    with published_names() as make:
        torch.save(make("generators.generators.PoseImplicitGenerator3d", torch.nn.Module)(), path)
    with pytest.raises(CheckpointError, match=r"it names generators\.generators\.PoseImplicitGenerator3d"):
        load_generator(path)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    G, average, _ = networks()
    path = write(tmp_path, G, average)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}

    def rewrite(compression: int = zipfile.ZIP_STORED, **changes: bytes | None) -> None:
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, data in entries.items():
                kept = next((value for key, value in changes.items() if name.endswith(f"/data/{key[1:]}")), data)
                if kept is not None:
                    archive.writestr(name, kept)

    for damage, message in (
        (lambda: rewrite(zipfile.ZIP_DEFLATED), "a compressed entry"),
        (lambda: rewrite(_0=None), "the numbers of storage 0 are missing"),
        (lambda: rewrite(_0=b"1234"), "a storage that declares"),
        (lambda: path.write_bytes(whole[: len(whole) // 2]), "damaged or cut short"),
    ):
        damage()
        with pytest.raises(CheckpointError, match=message):
            load_generator(path)
    for position in range(0, len(whole), len(whole) // 80):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x41]) + whole[position + 1 :])
        try:
            load_generator(path)
        except CheckpointError as error:
            assert "\n" not in str(error)
    state = tmp_path / "generator2.pth"
    torch.save(G.state_dict(), state)
    assert not is_published(state)
