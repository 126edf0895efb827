"""Published GSGAN files: every tensor accounted for, both ways, opened as ours are."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import convert_checkpoint
from gaussian import Cameras
from tests.training.families.gsgan.small import awaken, generator_config
from tests.training.published import file_writer as writer
from training import checkpoint
from training.families.gsgan import published as layout
from training.families.gsgan.config import PUBLISHED_CONVENTIONS, Conventions, GeneratorConfig
from training.families.gsgan.discriminator import Discriminator, DiscriminatorConfig
from training.families.gsgan.generator import Generator
from training.families.gsgan.presets import PRESETS
from training.published.records import read_published
from training.published.state_dicts import tensors_of

SMALL = generator_config(
    num_heads=8, neighbours=16, num_points=20, point_encoding="fourier+table", published_keys=True,
    conventions=PUBLISHED_CONVENTIONS, background_nimg=50_000,
)  # fmt: skip
D_SMALL = DiscriminatorConfig(32, (8, 12, 16, 16), conv_clamp=256.0, pose_width=16, pose_features=8)
AFHQ = {"img_resolution": 32, "num_ws": 9, "rendering_kwargs": {"avg_camera_pivot": [0, 0, -0.06], "c_scale": 1}}


@pytest.fixture(scope="module")
def modules() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    found = {"G": Generator(SMALL), "D": Discriminator(D_SMALL), "G_ema": Generator(SMALL)}
    for network in found.values():
        awaken(network)
    return found


def write(path: Path, modules: dict[str, nn.Module], root: dict[str, Any] | None = None, **records: Any) -> Path:
    return writer.write(path, modules, num_ws=9, optimizers=False, root=AFHQ | (root or {}), **records)


def same(found: dict[str, torch.Tensor], module: nn.Module) -> bool:
    expected = module.state_dict()
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("resolution", "keys"), [(256, (417, 81)), (512, (457, 90))])
def test_the_published_sizes_are_read_off_the_shapes(resolution: int, keys: tuple[int, int]) -> None:
    G, D = GeneratorConfig.published(resolution, PUBLISHED_CONVENTIONS), DiscriminatorConfig.published(resolution)
    shapes = {name: tuple(value.shape) for name, value in tensors_of(Generator, G).items()}
    assert layout.config_from(shapes) == G and len(shapes) == keys[0]
    tensors = {
        name: torch.zeros(value.shape, dtype=value.dtype) for name, value in tensors_of(Discriminator, D).items()
    }
    filters = {name for name in tensors if name.endswith("resample_filter")}
    with pytest.raises(ValueError, match=r"wrong constant: b\d+"):
        layout.discriminator_from_published(tensors)
    tensors |= {name: Discriminator(D_SMALL).b8.get_buffer("resample_filter") for name in filters}
    assert layout.discriminator_from_published(tensors)[0] == D and len(tensors) == keys[1]


def test_a_file_opens_wherever_ours_do(modules: dict[str, nn.Module], tmp_path: Path) -> None:
    path = write(tmp_path / "network-snapshot-001024.pkl", modules, augment_pipe=None)
    state = checkpoint.load_checkpoint(path)
    assert all(same(state[name], module) for name, module in modules.items())
    assert state["config"]["family"] == "gsgan" and state["config"]["background"] == "black"
    assert GeneratorConfig.from_dict(state["config"]["generator"]) == SMALL.changed(background_nimg=0)  # seen at once
    schedules = {name: state["config"]["objective"][name] for name in ("blur_sigma", "swap_fade_kimg", "augment_kimg")}
    assert schedules == {"blur_sigma": 0, "swap_fade_kimg": 0, "augment_kimg": 100}  # a run that goes on starts warm
    assert state["config"]["objective"]["swap_probability"] == 0.8  # the pivot is AFHQ's
    assert state["config"]["objective"]["center_weight"] == 10.0 and state["progress"]["nimg"] == 1_024_000
    G, D = checkpoint.load_generator(path), checkpoint.load_discriminator(path)
    assert G.geometry.pivot == (0.0, 0.0, -0.06) and G.info is not None and G.info.background == "black"
    cameras = G.geometry.orbit(torch.tensor([[0.2], [-0.3]]))
    z = torch.randn(2, 16)
    with torch.no_grad():
        expected = modules["G_ema"](z, cameras).rgb  # type: ignore[operator]
        torch.testing.assert_close(G(z, cameras).rgb, expected, rtol=0, atol=0)
        images, labels = torch.randn(4, 3, 32, 32), torch.randn(4, 25)
        assert torch.equal(D(images, labels), modules["D"](images, labels))
    assert not (tmp_path / "executed").exists()


def test_sizes_of_published_files_have_their_presets(modules: dict[str, nn.Module], tmp_path: Path) -> None:
    file = layout.PUBLISHED
    for data, size in (("ffhq", 256), ("afhq", 512)):
        preset = PRESETS[f"gsgan-{data}{size}"]
        stored: Any = _StoredFile(layout.PIVOTS[data])
        run = file.run(stored, GeneratorConfig.published(size), None)
        assert run.preset == f"gsgan-{data}{size}" and run.objective == preset.objective
        assert run.discriminator == preset.discriminator and run.fields == preset.run


class _StoredFile:
    """A file whose network says nothing but its pivot."""

    def __init__(self, pivot: tuple[float, ...]):
        self.pivot = pivot

    def network(self, name: str) -> _StoredFile:
        return self

    def attribute(self, path: str, name: str, default: Any) -> Any:
        return {"avg_camera_pivot": list(self.pivot)} if name == "rendering_kwargs" else default


@pytest.mark.parametrize(
    ("root", "records", "message"),
    [
        ({"num_ws": 17}, {}, "num_ws of another network; legal is 9"),
        ({"img_resolution": "big"}, {}, "img_resolution is 'big'"),
        ({"img_resolution": 64}, {}, "its G makes 64 px, its D reads 32 px"),
        ({"rendering_kwargs": {"avg_camera_pivot": [1, 0, 0]}}, {}, "avg_camera_pivot is .*known are"),
        ({"rendering_kwargs": {"c_scale": 2}}, {}, "c_scale is 2"),
        ({}, {"diary": [1]}, "it holds 'diary'; known are .*G_ema"),
    ],
)
def test_files_of_something_else_are_refused_by_name(
    modules: dict[str, nn.Module], tmp_path: Path, root: dict[str, Any], records: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "a.pkl", modules, root, **records)
    with pytest.raises(ValueError, match=f"a.pkl: .*{message}"):
        read_published(path)


def test_files_of_the_other_family_are_that_family_s(tmp_path: Path) -> None:
    path = writer.write(tmp_path / "cgs.pkl", writer.networks())
    assert read_published(path, ema_only=True)["config"]["family"] == "cgs"


def test_every_tensor_must_be_there(modules: dict[str, nn.Module]) -> None:
    state = dict(modules["G"].state_dict())
    for change, message in (
        ({"point_gen.extra": torch.zeros(1)}, "unknown: point_gen.extra"),
        ({"_xyz_bg": torch.zeros(7, 3, dtype=torch.float64)}, r"wrong type: _xyz_bg torch.float64"),
        ({"point_gen.scale_init": torch.zeros(3)}, "wrong constant: point_gen.scale_init"),
        ({"mapping_network.fc1.bias": torch.zeros(9)}, r"wrong shape: mapping_network.fc1.bias \[9\] for \[24\]"),
    ):
        with pytest.raises(ValueError, match=message):
            layout.from_published(state | change, 32)
    del state["point_gen.blocks.block_32.2.ls"]
    with pytest.raises(ValueError, match=r"missing: point_gen\.blocks\.block_32\.2\.ls"):
        layout.from_published(state, 32)


def test_conversion_both_ways(modules: dict[str, nn.Module], tmp_path: Path) -> None:
    def run(*arguments: object, code: int = 0) -> str:
        result = CliRunner().invoke(convert_checkpoint.main, [str(argument) for argument in arguments])
        assert result.exit_code == code, result.output
        return result.output

    source, ours, back = (tmp_path / name for name in ("source.pkl", "ours.pkl", "back.pkl"))
    write(source, modules)
    run(source, ours)
    run(ours, back, "--to=published")
    content = torch.load(back, weights_only=True)
    assert content["conventions"] == PUBLISHED_CONVENTIONS.to_dict() and content["resolution"] == 32
    assert all(same(content[name], module) for name, module in modules.items())
    config, state = layout.from_published(content["G_ema"], 32)
    assert dataclasses.replace(config, background_nimg=50_000) == SMALL and same(state, modules["G_ema"])
    small = PRESETS["gsgan-tiny"].generator
    assert isinstance(small, GeneratorConfig)
    with pytest.raises(ValueError, match=r"no room for num_heads = 4 .*color_rule = inward"):
        layout.to_published(small, {})


def test_what_is_read_is_shown_under_the_published_conventions(modules: dict[str, nn.Module]) -> None:
    config, state = layout.from_published(modules["G"].state_dict(), 32)
    assert config.conventions == PUBLISHED_CONVENTIONS
    G, plain = Generator(config), Generator(dataclasses.replace(config, conventions=Conventions()))
    for network in (G, plain):
        network.load_state_dict(state)
    label = torch.tensor(
        [1, 0, 0, 0.1, 0, -1, 0, 0, 0, 0, -1, 2.7, 0, 0, 0, 1, 4.2647, 0, 0.5, 0, 4.2647, 0.5, 0, 0, 1]
    )
    cameras = Cameras.from_labels(label.view(1, 1, 25))
    with torch.no_grad():
        assert (G(torch.zeros(1, 16) + 1, cameras).rgb - plain(torch.zeros(1, 16) + 1, cameras).rgb).abs().max() > 0.05
