"""Tests the files of meshes and volumes by readers that are not ours."""

import importlib.util
import json
import struct

import mrcfile
import numpy as np
import plyfile
import pytest

from training.meshes import files
from training.meshes.lattice import Lattice
from training.meshes.surface import Mesh

# A tetrahedron, wound outwards, with a corner on each axis.
MESH = Mesh(
    vertices=np.array([[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]], np.float32),
    faces=np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]),
    colors=np.array([[0, 0, 0], [1, 0.5, 0], [0.2, 1, 0], [0, 0.1, 1]], np.float32),
)


def test_the_tetrahedron_is_one():
    assert MESH.volume() == pytest.approx(1) and MESH.areas().sum() == pytest.approx(1 + 1.5 + 3 + 3.5)
    middle = MESH.vertices.mean(0)
    assert (((MESH.vertices - middle) * MESH.normals()).sum(1) > 0).all()


def test_a_ply_holds_the_mesh(tmp_path):
    files.save_mesh(tmp_path / "a.ply", MESH)
    content = plyfile.PlyData.read(tmp_path / "a.ply")
    vertex = content["vertex"]
    np.testing.assert_array_equal(np.stack([vertex[n] for n in "xyz"], axis=1), MESH.vertices)
    np.testing.assert_allclose(np.stack([vertex[n] for n in ("nx", "ny", "nz")], axis=1), MESH.normals(), atol=1e-6)
    colors = np.stack([vertex[n] for n in ("red", "green", "blue")], axis=1)
    np.testing.assert_array_equal(colors, np.rint(255 * MESH.colors))
    np.testing.assert_array_equal(np.stack(content["face"]["vertex_indices"]), MESH.faces)
    assert [p.name for p in tmp_path.iterdir()] == ["a.ply"]


def test_an_obj_holds_the_mesh(tmp_path):
    files.save_mesh(tmp_path / "a.obj", MESH)
    lines = [line.split() for line in (tmp_path / "a.obj").read_text().splitlines()]
    vertices = np.array([line[1:] for line in lines if line[:1] == ["v"]], float)
    np.testing.assert_allclose(vertices, np.hstack([MESH.vertices, MESH.colors]), atol=0.5 / 255 + 1e-6)
    normals = np.array([line[1:] for line in lines if line[:1] == ["vn"]], float)
    np.testing.assert_allclose(normals, MESH.normals(), atol=1e-6)
    faces = np.array([[int(corner.split("/")[0]) for corner in line[1:]] for line in lines if line[:1] == ["f"]])
    np.testing.assert_array_equal(faces - 1, MESH.faces)


def glb_parts(data: bytes) -> tuple[dict, bytes]:
    magic, version, length = struct.unpack("<4sII", data[:12])
    assert (magic, version, length) == (b"glTF", 2, len(data))
    size, kind = struct.unpack("<I4s", data[12:20])
    assert kind == b"JSON"
    return json.loads(data[20 : 20 + size]), data[20 + size + 8 :]


def test_a_glb_holds_the_mesh_in_linear_colours_and_is_not_metal(tmp_path):
    files.save_mesh(tmp_path / "a.glb", MESH)
    tree, binary = glb_parts((tmp_path / "a.glb").read_bytes())
    (primitive,) = tree["meshes"][0]["primitives"]

    def values(accessor: int, kind: str, width: int) -> np.ndarray:
        about = tree["accessors"][accessor]
        view = tree["bufferViews"][about["bufferView"]]
        start = view.get("byteOffset", 0) + about.get("byteOffset", 0)
        return np.frombuffer(binary, kind, about["count"] * width, start).reshape(-1, width)

    where = primitive["attributes"]
    np.testing.assert_array_equal(values(where["POSITION"], "<f4", 3), MESH.vertices)
    np.testing.assert_allclose(values(where["NORMAL"], "<f4", 3), MESH.normals(), atol=1e-6)
    np.testing.assert_array_equal(values(primitive["indices"], "<u4", 1).reshape(-1, 3), MESH.faces)
    about = tree["accessors"][where["COLOR_0"]]
    assert (about["componentType"], about["type"]) == (5126, "VEC3") and set(where) == {"POSITION", "NORMAL", "COLOR_0"}
    colors = values(where["COLOR_0"], "<f4", 3)
    assert colors[1].tolist() == pytest.approx([1, 0.21404, 0], abs=1e-4)  # IEC 61966-2-1
    assert tree["materials"][primitive["material"]]["pbrMetallicRoughness"]["metallicFactor"] == 0
    for node in tree["nodes"]:  # the world of the file is that of the data: y up
        assert node.get("matrix", np.eye(4).ravel().tolist()) == np.eye(4).ravel().tolist()


VOLUME = np.arange(27, dtype=np.float32).reshape(3, 3, 3)
LATTICE = Lattice((1.0, 2.0, 3.0), 0.5, 3)


def test_an_mrc_holds_the_volume_and_says_which_axis_is_which(tmp_path):
    files.save_volume(tmp_path / "a.mrc", VOLUME, LATTICE)
    with mrcfile.open(tmp_path / "a.mrc") as file:
        np.testing.assert_array_equal(file.data, VOLUME)
        assert file.voxel_size.tolist() == (0.5, 0.5, 0.5) and file.header.origin.tolist() == (0.5, 1.5, 2.5)
        assert (file.header.mapc, file.header.mapr, file.header.maps) == (3, 2, 1)  # columns z, rows y, sections x
    assert mrcfile.validate(tmp_path / "a.mrc")
    assert [p.name for p in tmp_path.iterdir()] == ["a.mrc"]


def test_an_npz_holds_the_volume_and_where_it_lies(tmp_path):
    files.save_volume(tmp_path / "a.npz", VOLUME, LATTICE)
    with np.load(tmp_path / "a.npz") as content:
        np.testing.assert_array_equal(content["density"], VOLUME)
        assert content["origin"].tolist() == [0.5, 1.5, 2.5] and content["spacing"] == 0.5


def test_other_suffixes_are_refused_and_nothing_half_written_stays(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"a\.stl: meshes are written as \.obj, \.ply, \.glb"):
        files.save_mesh(tmp_path / "a.stl", MESH)
    with pytest.raises(ValueError, match=r"a\.vdb: volumes are written as \.mrc, \.npz"):
        files.save_volume(tmp_path / "a.vdb", VOLUME, LATTICE)

    def full(path, *arrays, **named):
        path.write_bytes(b"half")
        raise OSError("no space")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space"):
        files.save_volume(tmp_path / "a.npz", VOLUME, LATTICE)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_installed_is_named(monkeypatch):
    files.require_libraries(["glb", "mrc"])
    monkeypatch.setitem(files.LIBRARIES, "no_such_module", "its-name")
    with pytest.raises(ValueError, match="needs its-name: pip install its-name"):
        files.require_libraries(["glb"])


def test_mrcfile_is_wanted_for_mrc_alone(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mrcfile" else found(name))
    files.require_libraries(["glb", "npz"])
    with pytest.raises(ValueError, match="needs mrcfile: pip install mrcfile"):
        files.require_libraries(["glb", "mrc"])
