"""Tests scenes on disk in the 3DGS layout, read back by plyfile and by ourselves."""

import dataclasses

import numpy as np
import pytest
import torch
from plyfile import PlyData, PlyElement

from gaussian import load_ply, render, save_ply
from tests.gaussian.scenes import make_cameras, make_scene

FIELDS = ("means", "log_scales", "quats", "opacity_logits", "sh")


@pytest.mark.parametrize("coefficients", [1, 4, 16])
def test_round_trip_is_exact(tmp_path, coefficients):
    scene = make_scene(3, 17, coefficients=coefficients)
    save_ply(tmp_path / "a.ply", scene, scene=2)
    again = load_ply(tmp_path / "a.ply")
    for name in FIELDS:
        assert torch.equal(getattr(again, name), getattr(scene, name)[2:])


@pytest.mark.parametrize("coefficients", [1, 9])
def test_an_independent_reader_finds_the_3dgs_layout(tmp_path, coefficients):
    scene = make_scene(1, 17, coefficients=coefficients)
    save_ply(tmp_path / "a.ply", scene)
    (vertex,) = PlyData.read(tmp_path / "a.ply").elements
    names = [p.name for p in vertex.properties]
    rest = 3 * (coefficients - 1)
    assert names == ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2",
                     *(f"f_rest_{i}" for i in range(rest)),
                     "opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]  # fmt: skip
    assert all(p.val_dtype == "f4" for p in vertex.properties) and vertex.count == 17

    def columns(*wanted):
        return torch.from_numpy(np.stack([vertex[name] for name in wanted], axis=-1).astype(np.float32))

    assert torch.equal(columns("rot_0", "rot_1", "rot_2", "rot_3"), scene.quats[0])
    assert torch.equal(columns("scale_0", "scale_1", "scale_2"), scene.log_scales[0])
    assert torch.equal(columns("opacity"), scene.opacity_logits[0])
    assert torch.equal(columns("f_dc_0", "f_dc_1", "f_dc_2"), scene.sh[0, :, 0])
    if rest:  # all of red first
        assert torch.equal(columns("f_rest_1", "f_rest_8"), scene.sh[0, :, [2, 1], [0, 1]])
    assert not columns("nx", "ny", "nz").any()


def test_a_file_from_another_writer_is_read_and_rendered_the_same(tmp_path):
    """plyfile rewrites the file with its properties in another order and without normals."""
    scene = make_scene(1, 60)
    save_ply(tmp_path / "a.ply", scene)
    vertex = PlyData.read(tmp_path / "a.ply")["vertex"]
    names = sorted(set(vertex.data.dtype.names) - {"nx", "ny", "nz"})
    table = np.empty(vertex.count, dtype=[(name, "<f4") for name in names])
    for name in names:
        table[name] = vertex[name]
    PlyData([PlyElement.describe(table, "vertex")], byte_order="<").write(tmp_path / "b.ply")
    cameras = make_cameras(1, 2)
    images = [render(s, cameras, 32, backend="torch").rgb for s in (scene, load_ply(tmp_path / "b.ply"))]
    torch.testing.assert_close(*images, rtol=0, atol=2 / 255)  # worst seen 0
    assert images[0].std() > 0.05


def test_opacity_zero_and_one_export_finite(tmp_path):
    logits = torch.tensor([-torch.inf, torch.inf, 0.5]).reshape(1, 3, 1)
    save_ply(tmp_path / "a.ply", dataclasses.replace(make_scene(1, 3), opacity_logits=logits))
    again = load_ply(tmp_path / "a.ply")
    assert again.opacity_logits.isfinite().all() and again.opacity_logits[0, 2, 0] == 0.5
    torch.testing.assert_close(again.opacities()[0, :2, 0], torch.tensor([0.0, 1.0]), rtol=0, atol=1e-6)


def test_nan_is_refused_by_name(tmp_path):
    scene = make_scene(1, 3)
    quats = scene.quats.clone()
    quats[0, 1, 2] = torch.nan
    with pytest.raises(ValueError, match=r"\['rot_2'\]"):
        save_ply(tmp_path / "a.ply", dataclasses.replace(scene, quats=quats))
    assert not (tmp_path / "a.ply").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"ply\n", b"plx\n", "not a ply"),
        (b"binary_little_endian", b"binary_big_endian", "binary_little_endian"),
        (b"property float opacity\n", b"property float opaqueness\n", "opacity"),
        (b"property float x\n", b"property double x\n", "double"),
        (b"element vertex 5", b"element vertex 6", "ends early"),
    ],
)
def test_bad_files_are_named(tmp_path, old, new, message):
    save_ply(tmp_path / "a.ply", make_scene(1, 5))
    data = (tmp_path / "a.ply").read_bytes()
    assert old in data
    (tmp_path / "a.ply").write_bytes(data.replace(old, new))
    with pytest.raises(ValueError, match=message):
        load_ply(tmp_path / "a.ply")


@pytest.mark.parametrize("coefficients", [1, 9, 16])
def test_a_turned_file_shows_the_same_from_turned_cameras(tmp_path, coefficients):
    """Largest difference of a picture seen: 2e-6; of the scene turned back: 3e-7 (by quaternions' sign alike)."""
    scene = make_scene(1, 60, coefficients=coefficients)
    save_ply(tmp_path / "a.ply", scene)
    save_ply(tmp_path / "b.ply", scene, up="-y")
    plain, turned = load_ply(tmp_path / "a.ply"), load_ply(tmp_path / "b.ply")
    half = torch.diag(torch.tensor([-1.0, -1.0, 1.0]))
    assert torch.equal(turned.means, plain.means @ half)
    cameras = make_cameras(1, 3)
    moved = cameras.cam2world.clone()
    moved[..., :3, :] = half @ moved[..., :3, :]
    pictures = render(plain, cameras, 32, backend="torch").rgb
    again = render(turned, type(cameras)(moved, cameras.intrinsics), 32, backend="torch").rgb
    assert (pictures - again).abs().max() < 2 / 255
    back = turned.transformed(rotation=half)
    for name in FIELDS:
        found, wanted = getattr(back, name), getattr(plain, name)
        if name == "quats":
            wanted, found = wanted / wanted.norm(dim=-1, keepdim=True), found / found.norm(dim=-1, keepdim=True)
            found = found * (found * wanted).sum(-1, keepdim=True).sign()
        assert (found - wanted).abs().max() < 1e-6, name


@pytest.mark.parametrize(("up", "said"), [("y", b"comment up is +y\n"), ("-y", b"comment up is -y\n")])
def test_the_header_says_which_axis_is_up(tmp_path, up, said):
    save_ply(tmp_path / "a.ply", make_scene(1, 3), up=up)
    assert said in (tmp_path / "a.ply").read_bytes()[:200]
    with pytest.raises(ValueError, match="y and -y are legal"):
        save_ply(tmp_path / "a.ply", make_scene(1, 3), up="z")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"element vertex 3", b"element vertex x", "number of vertices must be whole, got 'x'"),
        (b"element vertex 3", b"element vertex", "number of vertices must be whole, got ''"),
        (b"element vertex 3", b"element vertex 99999999999999999999", "ends early"),
        (b"property float opacity", b"property float", "a property must have a type and a name"),
        (b"format binary_little_endian 1.0\n", b"", "legal is 'format binary"),
    ],
)
def test_headers_that_make_no_sense_are_named(tmp_path, old, new, message):
    save_ply(tmp_path / "a.ply", make_scene(1, 3))
    (tmp_path / "a.ply").write_bytes((tmp_path / "a.ply").read_bytes().replace(old, new))
    with pytest.raises(ValueError, match=message):
        load_ply(tmp_path / "a.ply")
