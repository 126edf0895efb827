"""Published GGHead checkpoints: every tensor accounted for, both ways, in files that Python's own pickler writes."""

import dataclasses
import re

import pytest
import torch
from click.testing import CliRunner

import convert_checkpoint
from gaussian import Cameras
from tests.training.families.gghead import file_writer as writer
from tests.training.published import file_writer as cgs_writer
from training import checkpoint
from training.families.gghead import published as layout
from training.families.gghead.config import STORED
from training.families.gghead.discriminator import Discriminator, DiscriminatorConfig
from training.families.gghead.generator import Generator, GeneratorConfig
from training.networks.discriminator import channel_counts
from training.published import eg3d
from training.published.pickle_file import file_of
from training.published.records import is_published, read_published
from training.published.state_dicts import tensors_of


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The networks, and a run folder with two checkpoints, the newer of which holds them."""
    modules = writer.networks()
    folder = tmp_path_factory.mktemp("runs") / "GGHEAD-1_test"
    writer.write(folder / "checkpoints" / "checkpoint-900.pkl", writer.networks(seed=1))
    return modules, writer.write(folder / "checkpoints" / "checkpoint-23200.pkl", modules)


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("resolution", "keys", "parameters"), [(256, 83, 31_240_832), (512, 93, 31_351_872), (1024, 103, 31_379_744)]
)
def test_the_published_sizes_of_discriminators_are_read_off_the_shapes(resolution, keys, parameters):
    first = 256 if resolution > 256 else 0
    config = DiscriminatorConfig(resolution, channel_counts(resolution), conv_clamp=256.0, first_resolution=first)
    names = tensors_of(Discriminator, config)
    assert len(names) == keys
    assert sum(t.numel() for n, t in names.items() if not n.endswith("filter")) == parameters
    assert layout.discriminator_config({name: tuple(value.shape) for name, value in names.items()}) == config


@pytest.mark.parametrize("changes", [{}, {"background_channels": 3}, {"sh_degree": 2}, {"use_noise": False}])
def test_the_sizes_of_generators_are_read_off_the_shapes(changes):
    config = GeneratorConfig(512, samples=300, **changes)
    names = tensors_of(Generator, config)
    found = layout.generator_config(
        {name: tuple(value.shape) for name, value in names.items()}, 512, {"n_uniform_flame_vertices": 300}
    )
    splats = (names["_flame_vertices"].shape[1],)
    assert found == dataclasses.replace(config, template=STORED, splats=splats)
    assert changes or len(names) == 140


def test_every_tensor_of_a_file_arrives(published):
    modules, path = published
    record = read_published(path)
    for name, module in modules.items():
        assert same(record[name], module.state_dict())
    assert record["progress"]["nimg"] == 23_200_000 and record["config"]["family"] == "gghead"
    assert record["config"]["data"] == "/data/FFHQ_png_512.zip" and record["config"]["background"] == "white"
    expected = writer.small_generator(template=STORED, splats=(len(modules["G"].grid()[0]),))
    assert record["config"]["generator"] == expected.to_dict()
    assert record["config"]["discriminator"] == writer.small_discriminator().to_dict()


@pytest.mark.parametrize("protocol", [3, 5])
def test_all_protocols(published, tmp_path, protocol):
    path = writer.write(tmp_path / "a.pkl", published[0], protocol)
    assert same(read_published(path)["G_ema"], published[0]["G_ema"].state_dict())


def test_a_transposed_tensor_is_read(published, tmp_path):
    """As a map of positions may be that was made with its channels last."""
    modules = writer.networks()
    for name in ("G", "G_ema"):
        positions = modules[name]._uv_position_map
        modules[name]._uv_position_map = positions.permute(1, 2, 0).contiguous().permute(2, 0, 1)
        assert not modules[name]._uv_position_map.is_contiguous()
    record = read_published(writer.write(tmp_path / "a.pkl", modules))
    assert same(record["G"], published[0]["G"].state_dict()) and record["G"]["_uv_position_map"].is_contiguous()


def test_a_run_folder_stands_for_its_newest_checkpoint(published):
    modules, path = published
    folder = path.parent.parent
    assert file_of(folder) == path and is_published(folder) and not is_published(path.parent)
    G = checkpoint.load_generator(folder)
    assert same(G.state_dict(), modules["G_ema"].state_dict())


def test_networks_compute_what_the_modules_compute(published):
    modules, path = published
    G, D = checkpoint.load_generator(path), checkpoint.load_discriminator(path)
    z, cameras = torch.randn(2, 16), Cameras.from_labels(G.geometry.orbit(torch.tensor([0.1, -0.2])).labels)
    with torch.no_grad():
        expected = modules["G_ema"].synthesis(modules["G_ema"].mapping(z, cameras, psi=0.7))
        found = G.synthesis(G.mapping(z, cameras, psi=0.7))
        assert all(torch.equal(getattr(found, f), getattr(expected, f)) for f in ("means", "quats", "sh", "raw"))
        images, labels = torch.randn(4, 3, 32, 32), torch.randn(4, 25)
        assert torch.equal(D(images, labels), modules["D"](images, labels))
        assert torch.isfinite(G(z, cameras[:, None]).rgb).all()
    assert G.geometry == eg3d.geometry() and not G.training


def test_tensors_that_nobody_reads_are_dropped_and_listed(published, tmp_path):
    modules = writer.networks()
    for name in ("G", "G_ema"):
        modules[name].register_buffer("_subdivisions", torch.zeros(3))
    record = read_published(writer.write(tmp_path / "a.pkl", modules))
    assert same(record["G"], published[0]["G"].state_dict())
    assert record["progress"]["imported"]["dropped"] == [
        "training_set_kwargs",
        "G._subdivisions",
        "G_ema._subdivisions",
    ]


@pytest.mark.parametrize("kind", ["G", "D"])
def test_each_missing_or_misshapen_tensor_is_named(published, kind):
    tensors = published[0][kind].state_dict()
    read = layout.discriminator_from_published if kind == "D" else lambda t: layout.generator_from_published(t, 32)
    for name, value in tensors.items():
        last = name.rpartition(".")[2]
        with pytest.raises(ValueError, match=re.escape(last) + "|first block|channels|width of w|texels"):
            read({key: tensor for key, tensor in tensors.items() if key != name})
        if value.ndim and name not in ("_flame_vertices", "backbone.mapping.fc0.weight"):  # those state a size
            with pytest.raises(ValueError, match=re.escape(last) + "|texels"):
                read({**tensors, name: torch.zeros(value.shape[0] + 1, *value.shape[1:])})
    name = "b32.resample_filter" if kind == "D" else "backbone.synthesis.b8.resample_filter"
    with pytest.raises(ValueError, match=f"wrong constant: {name}"):
        read({**tensors, name: tensors[name] + 1e-3})


def test_discriminators_have_no_tensors_to_spare(published):
    with pytest.raises(ValueError, match="unknown: extra"):
        layout.discriminator_from_published({**published[0]["D"].state_dict(), "extra": torch.zeros(3)})


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"use_rodriguez": False}, "its settings use_rodriguez=False are not supported"),
        (
            {"use_background_upsampler": True, "clamp_opacity": True},
            "clamp_opacity=True, use_background_upsampler=True",
        ),
        ({"position_range": -1.0}, "position_range=-1.0 must be greater than 0"),
    ],
)
def test_settings_that_make_another_function_are_refused(published, tmp_path, extra, message):
    path = writer.write(tmp_path / "a.pkl", published[0], extra=extra)
    with pytest.raises(ValueError, match=f"a.pkl: G_ema: .*{message}|a.pkl: G: .*{message}"):
        read_published(path)


def test_settings_of_a_file_count(published, tmp_path):
    path = writer.write(tmp_path / "a.pkl", published[0], extra={"position_range": 0.5, "gen_pose_cond": False})
    config = read_published(path)["config"]["generator"]
    assert config["position_range"] == 0.5 and config["pose_conditioning"] is False


def test_a_file_without_a_discriminator_needs_a_size(published, tmp_path):
    path = writer.write(tmp_path / "a.pkl", {"G_ema": published[0]["G_ema"]})
    with pytest.raises(ValueError, match=r"a\.pkl: G_ema: it holds no D.*--image-size"):
        read_published(path)
    assert read_published(path, {"generator.resolution": 128})["config"]["generator"]["resolution"] == 128


def test_a_file_of_another_family_is_not_taken(tmp_path):
    path = cgs_writer.write(tmp_path / "a.pkl", cgs_writer.networks())
    assert read_published(path)["config"]["family"] == "cgs"
    with pytest.raises(ValueError, match="--image-size is not for files of the family 'cgs'"):
        read_published(path, {"generator.resolution": 64})


# ---------------------------------------------------------------- conversion


def convert(*arguments, code=0):
    result = CliRunner().invoke(convert_checkpoint.main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_conversion_both_ways(published, tmp_path):
    modules, path = published
    output = convert(path.parent.parent, tmp_path / "ours.pkl")
    assert "23200 kimg" in output
    for name, module in modules.items():
        assert same(checkpoint.load_checkpoint(tmp_path / "ours.pkl")[name], module.state_dict())
    convert(tmp_path / "ours.pkl", tmp_path / "back.pkl", "--to=published")
    content = torch.load(tmp_path / "back.pkl", weights_only=True)
    assert content["resolution"] == 32 and content["n_uniform_flame_vertices"] == 10
    for name, module in modules.items():
        assert same(content[name], module.state_dict())


def test_of_two_grids_the_one_in_use_is_written():
    config = writer.small_generator(first_samples=6, refined_nimg=1000)
    G, D = Generator(config), Discriminator(writer.small_discriminator()).state_dict()
    for nimg, samples in ((0, 6), (1000, 10)):
        G.note_progress(nimg)
        networks = {"G": G.state_dict(), "D": D}  # in any order
        content = layout.PUBLISHED.to_published(config, writer.small_discriminator(), networks)
        anchors, uv = G.grid()
        assert torch.equal(content["G"]["_flame_vertices"][0], anchors)
        assert torch.equal(content["G"]["_uv_grid"][0, :, 0], uv) and content["n_uniform_flame_vertices"] == samples
        assert not any(name.startswith(("_first", "_refined")) for name in content["G"])


def test_what_the_published_layout_cannot_hold_is_named():
    for change in ({"use_noise": False}, {"published_keys": False}, {"log_scale_offset": -4.0}):
        config = writer.small_generator(**change)
        with pytest.raises(ValueError, match=f"G: the published layout has no room for {next(iter(change))}"):
            layout.PUBLISHED.to_published(config, writer.small_discriminator(), {"G": Generator(config).state_dict()})
