"""Published checkpoints: every tensor accounted for, both ways, in files by Python's and torch's own picklers."""

import copy
import dataclasses
import math

import pytest
import torch

from tests.training.published import file_writer as writer
from training import checkpoint
from training.families import FAMILIES
from training.families.base import Option
from training.families.cgs import published as cgs
from training.families.cgs.generator import Generator, GeneratorConfig
from training.networks.discriminator import Discriminator, DiscriminatorConfig
from training.published import discriminator as stylegan2
from training.published import eg3d
from training.published.records import is_published, read_published
from training.published.state_dicts import tensors_of

LAYOUTS = {"G": cgs, "D": stylegan2}
NETWORKS = {"G": Generator, "D": Discriminator}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The networks, and a file that holds them."""
    modules = writer.networks(coarse_log_scale=-7.0)
    path = tmp_path_factory.mktemp("published") / "network-snapshot-001024.pkl"
    return modules, writer.write(path, modules, scale="-7.")


def same(found: dict, module: torch.nn.Module) -> bool:
    expected = module.state_dict()
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


# ---------------------------------------------------------------- state dicts


@pytest.mark.parametrize("resolution", [256, 512, 1024, 2048])
def test_the_published_sizes_are_read_off_the_shapes(resolution):
    counts = {256: (335, 91), 512: (379, 100), 1024: (423, 109), 2048: (467, 118)}
    for kind, config, count in zip(
        "GD", (GeneratorConfig.published(resolution), DiscriminatorConfig.published(resolution)), counts[resolution],
        strict=True,
    ):  # fmt: skip
        names = tensors_of(NETWORKS[kind], config)
        assert len(names) == count
        found = config_from(kind, {name: tuple(value.shape) for name, value in names.items()})
        assert found == config


def config_from(kind, shapes):
    return cgs.config_from(shapes, -5.0) if kind == "G" else stylegan2.config_from(shapes)


def test_level_7_may_be_16_wide():
    widths = (512, 256, 128, 64, 32, 16, 16, 16)
    config = GeneratorConfig(
        **{**GeneratorConfig.published(2048).to_dict(), "widths": widths, "ratios": (1, 4, 4, 4, 2, 2, 2, 2)}
    )
    shapes = {name: tuple(value.shape) for name, value in tensors_of(Generator, config).items()}
    assert config_from("G", shapes) == config


@pytest.mark.parametrize("kind", ["G", "D"])
def test_round_trip(published, kind):
    tensors = published[0][kind].state_dict()
    text = (writer.SOURCE.format(scale="-7."),) if kind == "G" else ()
    config, state = LAYOUTS[kind].from_published(tensors, *text)
    assert config == published[0][kind].config
    NETWORKS[kind](config).load_state_dict(state)
    back = LAYOUTS[kind].to_published(config, state)
    assert back.keys() == tensors.keys() and all(torch.equal(back[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("kind", ["G", "D"])
def test_each_missing_unknown_or_misshapen_tensor_is_named(published, kind):
    tensors = published[0][kind].state_dict()
    config = published[0][kind].config
    layout = LAYOUTS[kind]
    for function in (layout.from_published, lambda t: layout.to_published(config, t)):
        for name in tensors:
            with pytest.raises(ValueError, match=f"missing.*{name}") as caught:
                function({n: v for n, v in tensors.items() if n != name})
            assert "unknown" not in str(caught.value)
        for name in ("extra", "point_gen.gaussians.xyz.7.weight", "b16.conv2.weight", "b4.out.scale"):
            with pytest.raises(ValueError, match=f"unknown: {name}$"):
                function({**tensors, name: torch.zeros(3)})
        for name, value in tensors.items():
            if name not in ("_xyz", "mapping_network.fc0.weight") and value.ndim:  # those state a size of their own
                with pytest.raises(
                    ValueError, match=f"{name} .*\\b{value.shape[0] + 1}\\b|missing or of a wrong shape: .*"
                ):
                    function({**tensors, name: torch.zeros(value.shape[0] + 1, *value.shape[1:], dtype=value.dtype)})
        name = "b4.out.bias" if kind == "D" else "point_gen.conv_in.learnable_pe.ffm.linear.bias"
        with pytest.raises(ValueError, match=f"wrong type: {name} torch.float16"):
            function({**tensors, name: tensors[name].half()})
        with pytest.raises(ValueError, match=f"not a tensor: {name}|{name}"):
            layout.from_published({**tensors, name: None})


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("G", "point_gen.scale_init"),
        ("G", "point_gen.scale_threshold"),
        ("G", "point_gen.rotation_init"),
        ("G", "point_gen.color_init"),
        ("G", "point_gen.opacity_init"),
        ("D", "b32.resample_filter"),
        ("D", "b8.skip.resample_filter"),
    ],
)
def test_a_constant_that_the_configuration_does_not_give_is_named(published, kind, name):
    tensors = dict(published[0][kind].state_dict())
    tensors[name] = tensors[name] + (1 if tensors[name].dtype == torch.int64 else 1e-3)
    with pytest.raises(ValueError, match=f"wrong constant: {name} is off by"):
        LAYOUTS[kind].from_published(tensors)
    tensors[name] = torch.full_like(tensors[name], math.nan) if tensors[name].is_floating_point() else tensors[name]
    with pytest.raises(ValueError, match=f"wrong constant: {name}"):
        LAYOUTS[kind].from_published(tensors)


def test_what_the_published_layout_cannot_hold_is_named(published):
    state = published[0]["G"].state_dict()
    for change in (
        {"camera_embedding": False},
        {"point_encoding": "fourier+code"},
        {"color_rule": "inward"},
        {"start": "surface"},
        {"published_keys": False},
        {"resolution": 64},
    ):
        with pytest.raises(ValueError, match=f"no room for {next(iter(change))}"):
            cgs.to_published(writer.small_generator(**change), state)
        with pytest.raises(ValueError, match="G_ema: the published layout has no room"):
            cgs.PUBLISHED.to_published(writer.small_generator(**change), writer.small_discriminator(), {"G_ema": state})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("f(scale=torch.tensor(-5., device=d))", -5.0),
        ("f(x, scale = torch.tensor( -7.25 , device=d)); g(scale=torch.tensor(-7.25, dtype=e))", -7.25),
        ("log_scale=torch.tensor(-1., d), scale=torch.tensor(-5, d)", -5.0),
        ("scale=torch.tensor(-5., d); scale=torch.tensor(-7., d)", "several coarse start scales"),
        ("scale=torch.tensor(self.start, d)", "no coarse start scale"),
        ("scale=torch.tensor(-5.)", "no coarse start scale"),
        (" " * 200_000 + "scale=" * 50_000, "no coarse start scale"),
    ],
)
def test_coarse_scale_of_a_source_text(text, value):
    if isinstance(value, float):
        assert cgs.coarse_scale_in(text) == value
    else:
        with pytest.raises(ValueError, match=f"{value}.*--coarse-scale"):
            cgs.coarse_scale_in(text)


# ---------------------------------------------------------------- files


def test_every_tensor_of_a_file_arrives(published):
    modules, path = published
    assert is_published(path)
    record = read_published(path)
    for name, module in modules.items():
        assert same(record[name], module)
    state = checkpoint.load_checkpoint(path)
    assert state["progress"]["nimg"] == 1_024_000 and state["progress"]["step"] == 1
    assert state["config"]["generator"] == writer.small_generator(coarse_log_scale=-7.0).to_dict()
    assert state["config"]["discriminator"] == writer.small_discriminator().to_dict()
    assert state["config"]["data"] == "/data/FFHQC/32" and "checksum" not in state


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_all_protocols_and_both_kinds_of_record(published, tmp_path, protocol):
    modules, _ = published
    path = writer.write(tmp_path / "a.pkl", modules, easy=protocol % 2 == 0, protocol=protocol, num_ws=3)
    record = read_published(path, ema_only=True)
    assert same(record["G_ema"], modules["G_ema"]) and not record["D"] and not record["opt"]["G"]
    assert record["config"]["generator"]["coarse_log_scale"] == -5.0


def test_networks_compute_what_the_modules_compute(published):
    modules, path = published
    G, D = checkpoint.load_generator(path), checkpoint.load_discriminator(path)
    z = torch.randn(2, 32)
    with torch.no_grad():
        expected = modules["G_ema"].synthesis(modules["G_ema"].mapping(z))
        found = G.synthesis(G.mapping(z))
        assert torch.equal(found.means, expected.means) and torch.equal(found.log_scales, expected.log_scales)
        other = modules["G"].synthesis(modules["G"].mapping(z))
        assert (found.means - other.means).abs().max() > 0.01  # G_ema, not G
        images, labels = torch.randn(4, 3, 32, 32), torch.randn(4, 25)
        assert torch.equal(D(images, labels), modules["D"](images, labels))
    assert G.geometry == eg3d.geometry() and not G.training


def test_optimiser_state_goes_to_the_parameters_it_came_from(published):
    """The published order has `_xyz` in a group of its own, last; what never had a gradient has no state."""
    modules, path = published
    opt = read_published(path)["opt"]
    for name in ("G", "D"):
        optimizer = writer.published_adam(modules[name])
        expected = checkpoint.optimizer_state(modules[name], optimizer)
        assert opt[name].keys() == expected.keys()
        assert len(expected) < len(list(modules[name].parameters())) and (name == "D" or "_xyz" in expected)
        for key, values in expected.items():
            for what, value in values.items():
                torch.testing.assert_close(opt[name][key][what], value, rtol=0, atol=0)
        fresh = torch.optim.Adam(modules[name].parameters(), lr=0.1)
        checkpoint.load_optimizer_state(modules[name], fresh, opt[name])


def test_a_file_without_optimisers_or_networks(published, tmp_path):
    modules, _ = published
    path = writer.write(tmp_path / "ffhq.pkl", {"G_ema": modules["G_ema"]}, optimizers=False, D=None, G=None)
    state = checkpoint.load_checkpoint(path)
    assert (
        state["progress"]["nimg"] == 0 and not state["G"] and not state["D"] and same(state["G_ema"], modules["G_ema"])
    )
    with pytest.raises(checkpoint.CheckpointError, match=r"ffhq\.pkl: it holds no discriminator"):
        checkpoint.load_discriminator(path)
    path = writer.write(tmp_path / "d.pkl", {"D": modules["D"]}, optimizers=False)
    with pytest.raises(checkpoint.CheckpointError, match="it holds no generator"):
        checkpoint.load_generator(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_ws": 7}, "num_ws of another network; legal are 1 and 3"),
        ({"scale": "start"}, "no coarse start scale.*--coarse-scale"),
        ({"diary": [1, 2]}, "it holds 'diary'; known are .*G_ema"),
        (
            {"Dmain_opt": {"state": {}, "param_groups": [{"params": [0, 1]}]}},
            r"Dmain_opt has groups of \[2\] parameters",
        ),
        ({"Gboth_opt": {"state": {"a": 1}}}, "Gboth_opt is not the state of an optimiser"),
    ],
)
def test_files_of_something_else_are_refused_by_name(published, tmp_path, changes, message):
    path = writer.write(tmp_path / "a.pkl", published[0], **changes)
    with pytest.raises(ValueError, match=f"a.pkl: .*{message}"):
        read_published(path)


class Other(cgs.CgsPublished):
    """A family whose generator has a tensor called `only`, and whose files hold objects of a class of their own."""

    looks_for = "G_ema with a tensor only"
    classes = frozenset({"training.gaussian3d_splatting.renderer.Renderer"})
    options = (Option(("--softness",), "generator.softness", "how soft"),)

    def recognises(self, file):
        network = file.network("G_ema")
        return network is not None and "only" in network.tensors


def test_the_family_that_recognises_a_file_reads_it(published, tmp_path, monkeypatch):
    path = published[1]
    only = torch.nn.Module()
    only.only = torch.nn.Parameter(torch.zeros(3))
    others = writer.write(tmp_path / "a.pkl", {"G_ema": only}, optimizers=False)
    with pytest.raises(ValueError, match=r"a\.pkl: .*known family \(cgs: G_ema with tensors point_gen\.transformer"):
        read_published(others)
    monkeypatch.setitem(FAMILIES, "other", dataclasses.replace(FAMILIES["cgs"], name="other", published=Other()))
    with pytest.raises(ValueError, match=r"a\.pkl: G_ema: its source text holds no coarse start scale"):
        read_published(others)
    assert read_published(path, ema_only=True)["config"]["family"] == "cgs"
    with pytest.raises(ValueError, match="--softness is not for files of the family 'cgs'"):
        read_published(path, {"generator.softness": 1.0})
    monkeypatch.setitem(FAMILIES, "cgs", dataclasses.replace(FAMILIES["cgs"], published=None))
    with pytest.raises(ValueError, match=r"no generator of a known family \(.*other: G_ema with a tensor only\)"):
        read_published(path)


def test_only_classes_that_a_family_names_may_occur(published, monkeypatch):
    for name, family in [(name, family) for name, family in FAMILIES.items() if family.published]:
        layout = copy.copy(family.published)
        layout.classes = frozenset()
        monkeypatch.setitem(FAMILIES, name, dataclasses.replace(family, published=layout))
    with pytest.raises(ValueError, match=r"names training\.gaussian3d_splatting\.renderer\.Renderer, which is not"):
        read_published(published[1])


def test_the_coarse_scale_can_be_stated(published, tmp_path):
    path = writer.write(tmp_path / "a.pkl", published[0], scale="start")
    assert read_published(path, {"generator.coarse_log_scale": -6.0})["config"]["generator"]["coarse_log_scale"] == -6.0


def test_ours_and_others_are_not_taken_for_published(checkpoint_path, tmp_path):
    torch.save({"a": 1}, tmp_path / "old.pkl", _use_new_zipfile_serialization=False)
    for path in (checkpoint_path, tmp_path / "old.pkl", tmp_path / "absent.pkl", tmp_path):
        assert not is_published(path)
