"""Published EpiGRAF snapshots: every tensor accounted for, both ways, in files that Python's own pickler writes."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import convert_checkpoint
from tests.training.families.epigraf import file_writer as writer
from training import checkpoint
from training.families.epigraf import published as layout
from training.families.epigraf.config import GeneratorConfig
from training.families.epigraf.discriminator import Discriminator, DiscriminatorConfig
from training.families.epigraf.generator import Generator
from training.families.epigraf.presets import PRESETS
from training.families.epigraf.settings import Settings
from training.published.records import read_published
from training.published.restricted_pickle import Instance
from training.published.state_dicts import tensors_of


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, nn.Module], Path]:
    modules = writer.networks()
    return modules, writer.write(tmp_path_factory.mktemp("run") / "network-snapshot-025000.pkl", modules)


def same(found: dict, expected: dict) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_networks_and_settings_are_read(published, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    modules, path = published
    record = read_published(path)
    for name, module in modules.items():
        assert same(record[name], module.state_dict()), name
    config = record["config"]
    assert config["family"] == "epigraf" and config["background"] == "white" and config["data"] == "/data/things.zip"
    found = modules["G"].config.to_dict() | {"backdrop_max": 128}  # no sphere: the published value
    assert config["generator"] == found and config["discriminator"] == modules["D"].config.to_dict()
    assert record["progress"]["nimg"] == 25_000_000
    assert set(record["progress"]["imported"]["dropped"]) == {
        "training_set_kwargs",
        "augment_pipe",
        "G_opt",
        "D_opt",
        "vis",
        "stats",
    }
    focal, radius = record["geometry"]["intrinsics"][0][0], record["geometry"]["radius"]
    assert focal == pytest.approx(0.5 / math.tan(math.radians(15)) * 15 / 16)
    assert radius * modules["G"].config.unit == pytest.approx(1)
    assert not (tmp_path / "executed").exists()


def test_networks_compute_what_the_modules_compute(published) -> None:
    modules, path = published
    G, D = checkpoint.load_generator(path), checkpoint.load_discriminator(path)
    z, seen = torch.randn(2, 16), G.geometry.orbit(torch.tensor([[0.1], [-0.2]]))
    modules["G_ema"].eval()
    with torch.no_grad():
        images = [g.render(g.synthesis(g.mapping(z, seen[:, 0], 0.7)), seen, 8).rgb for g in (G, modules["G_ema"])]
        assert torch.equal(*images) and images[0].isfinite().all()
        labels, patches = seen[:, 0].labels.repeat(2, 1), torch.randn(4, 3, 16, 16)
        assert torch.equal(D(patches, labels), modules["D"](patches, labels))


@pytest.mark.parametrize(
    ("generator", "discriminator"),
    [
        ({"backdrop": "sphere"}, {"camera": "fourier"}),
        ({"backdrop": "sphere", "backdrop_base": 64, "backdrop_max": 16}, {"camera": "raw"}),
        ({"backdrop": "plane"}, {"num_classes": 5}),
        ({"num_classes": 7}, {"patch_conditioning": False}),
        ({"plane_resolution": 32, "map_depth": 3, "feature_dim": 6}, {"channel_max": 4}),
    ],
)
def test_other_members(generator: dict, discriminator: dict, tmp_path: Path) -> None:
    modules = writer.networks(0, generator, discriminator)
    settings = copy.deepcopy(writer.SETTINGS)
    settings["dataset"]["white_back"] = "backdrop" not in generator
    settings["model"]["discriminator"]["camera_cond"] = discriminator.get("camera") == "raw"
    record = read_published(writer.write(tmp_path / "a.pkl", modules, settings))
    for name, module in modules.items():
        assert same(record[name], module.state_dict()), name
    for name, value in {**generator}.items():
        assert record["config"]["generator"][name] == value
    for name, value in discriminator.items():
        assert record["config"]["discriminator"][name] == value


@pytest.mark.parametrize(
    "config", [{}, {"camera_conditioning": True}, {"backdrop": "sphere"}, {"backdrop": "plane"}, {"num_classes": 198}]
)
def test_published_sizes_are_read_off_the_shapes(config: dict) -> None:
    preset = PRESETS["epigraf-ffhq512"].generator
    assert isinstance(preset, GeneratorConfig)
    wanted = dataclasses.replace(preset, **config)
    shapes = {layout.published_name(n): tuple(t.shape) for n, t in tensors_of(Generator, wanted).items()}
    assert layout.generator_config(shapes, Settings(None), 512) == wanted
    assert config or len(shapes) == 156


@pytest.mark.parametrize(("config", "keys"), [({}, 119), ({"camera": "fourier"}, 120), ({"resolution": 256}, 105)])
def test_published_sizes_of_discriminators_are_read_off_the_shapes(config: dict, keys: int) -> None:
    wanted = DiscriminatorConfig(**config)
    shapes = {n: tuple(t.shape) for n, t in tensors_of(Discriminator, wanted).items()}
    assert layout.discriminator_config(shapes, Settings(None)) == wanted and len(shapes) == keys


@pytest.mark.parametrize("kind", ["G", "D"])
def test_each_missing_or_misshapen_tensor_is_named(published, kind: str) -> None:
    module = published[0][kind]
    state = module.state_dict()
    tensors = state if kind == "D" else {layout.published_name(n): t for n, t in state.items()}
    settings = Settings(None)

    def read(values: dict) -> None:
        if kind == "D":
            layout.discriminator_from_published(values, Settings(_patch_of_8()))
        else:
            layout.generator_from_published(values, settings, 16)

    for name, value in tensors.items():
        words = re.escape(name) + "|width of w|block|texels|embed.weight|fc0.weight|bias|channels|features|must be"
        with pytest.raises(ValueError, match=words):
            read({key: tensor for key, tensor in tensors.items() if key != name})
        if value.ndim and name != "mapping.fc0.weight":  # that one states the size of a latent
            with pytest.raises(ValueError, match=words + "|no channel"):
                read({**tensors, name: torch.zeros(value.shape[0] + 1, *value.shape[1:])})
    constant = next(name for name in tensors if name.endswith("resample_filter"))
    with pytest.raises(ValueError, match=f"wrong constant: {constant}"):
        read({**tensors, constant: tensors[constant] + 1e-3})
    with pytest.raises(ValueError, match="unknown: extra"):
        read({**tensors, "extra": torch.zeros(3)})


def _patch_of_8() -> Instance:
    value = Instance("omegaconf.nodes.AnyNode", {"_val": 1})
    return Instance("omegaconf.dictconfig.DictConfig", {"_content": {"num_additional_start_blocks": value}})


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("dataset.last_back", True, "settings are not supported: dataset.last_back"),
        ("dataset.camera.radius", 2.0, "a camera radius that is not 1"),
        ("dataset.camera.ray_end", 1.6, "the frustum lies outside of the cube"),
        ("dataset.camera.fov", 190, "fov=190.0: must be between 0 and 180"),
        ("model.generator.clamp_mode", "elu", "--clamp-mode=elu: legal are"),
        ("model.generator.num_ray_steps", 2, "--num-ray-steps=2"),
    ],
)
def test_settings_that_make_another_function_are_refused(
    path: str, value: object, message: str, tmp_path: Path
) -> None:
    settings = copy.deepcopy(writer.SETTINGS)
    node = settings
    *way, last = path.split(".")
    for name in way:
        node = node[name]
    node[last] = value
    with pytest.raises(ValueError, match=rf"a\.pkl: .*{message}"):
        read_published(writer.write(tmp_path / "a.pkl", writer.networks(), settings))


@pytest.mark.parametrize("backdrop", ["sphere", "plane"])
def test_white_over_a_painted_background_is_refused(backdrop: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not supported: dataset\.white_back with a background"):
        read_published(writer.write(tmp_path / "a.pkl", writer.networks(0, {"backdrop": backdrop})))


def test_references_that_go_in_circles_end(tmp_path: Path) -> None:
    settings = copy.deepcopy(writer.SETTINGS)
    settings["dataset"] = "${model.generator.dataset}"
    record = read_published(writer.write(tmp_path / "a.pkl", writer.networks(), settings))
    assert record["config"]["generator"]["cube_scale"] == 0.2  # as where the file says nothing


def test_conversion_both_ways(published, tmp_path: Path) -> None:
    modules, path = published

    def convert(*arguments: object) -> str:
        result = CliRunner().invoke(convert_checkpoint.main, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        return result.output

    assert "25000 kimg" in convert(path, tmp_path / "ours.pkl")
    convert(tmp_path / "ours.pkl", tmp_path / "back.pkl", "--to=published")
    content = torch.load(tmp_path / "back.pkl", weights_only=True)
    assert content["cube_scale"] == 0.475 and content["num_additional_start_blocks"] == 1
    assert content["disc_camera_cond"] is content["disc_camera_cond_raw"] is False
    assert content["fov"] == pytest.approx(30)
    assert same(content["D"], modules["D"].state_dict())
    names = {layout.published_name(name): tensor for name, tensor in modules["G"].state_dict().items()}
    assert same(content["G"], names)


@pytest.mark.parametrize("change", [{"use_noise": False}, {"published_keys": False}, {"density_gain": 2.0}])
def test_what_the_published_layout_cannot_hold_is_named(change: dict) -> None:
    G = writer.networks(0, change)["G"]
    with pytest.raises(ValueError, match=f"G: the published layout has no room for {next(iter(change))}"):
        layout.PUBLISHED.to_published(G.config, writer.discriminator_config(), {"G": G.state_dict()})
