"""Tests that any bytes in a label file, an image, a zip or a COLMAP model give a result or one line."""

import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.training.data import sets
from tests.training.data.scenes_on_disk import write_colmap
from training.data.image_store import ZipStore
from training.data.label_check import label_problems
from training.data.label_file import LabelError, parse_labels
from training.data.making.colmap import read_model
from training.data.pixels import read_image
from training.data.synthetic.synthesize import sample_cameras, synthesize_heads
from training.dataset import DatasetError, ImageDataset

SIZE = 16
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

_NUMBERS = st.one_of(st.floats(), st.integers(-(10**30), 10**30), st.booleans(), st.none(), st.text(max_size=3))
_VALUES = st.recursive(_NUMBERS, lambda inner: st.lists(inner, max_size=26), max_leaves=40)
_ENTRY = st.tuples(
    st.one_of(st.just("00000.png"), st.text(max_size=8)),
    st.one_of(_VALUES, st.lists(_NUMBERS, min_size=25, max_size=25)),
)
# Places and new bytes of a damage.
_DAMAGE = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6)


def damaged(data: bytes, damage: list, cut: float) -> bytes:
    changed = bytearray(data)
    for place, value in damage:
        changed[int(place * len(changed))] = value
    return bytes(changed[: int(cut * len(changed))]) if cut < 0.9 else bytes(changed)


def one_line(error: Exception) -> None:
    assert str(error) and "\n" not in str(error) and len(str(error)) < 600


@QUICK
@given(
    st.one_of(st.binary(max_size=200), st.lists(_ENTRY, max_size=4).map(lambda e: json.dumps({"labels": e}).encode()))
)
@example(b'{"labels": [["\\n", 0], ["\\n", 0]]}')
def test_label_files(data):
    try:
        labels = parse_labels("dataset.json", data)
    except LabelError as error:
        one_line(error)
        return
    problems = label_problems(list(labels.values()))
    for i, label in enumerate(labels.values()):  # what is not refused can be used
        if not problems:
            assert np.isfinite(np.asarray(label, dtype=np.float64)).all() and len(label) == 25, i


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    return sets.to_ffhqc_zip(synthesize_heads(folder / "heads", 3, SIZE, seed=3).images, folder / "set")


@QUICK
@given(damage=_DAMAGE, cut=st.floats(0, 1))
def test_zips(packed, tmp_path, damage, cut):
    """A damaged zip is refused, or gives what the whole one does."""
    path = tmp_path / "damaged.zip"
    path.write_bytes(damaged(packed.read_bytes(), damage, cut))
    with zipfile.ZipFile(packed) as archive:
        whole = {name: archive.read(name) for name in archive.namelist()}
    try:
        store = ZipStore(path)
        for name in store.listing("").names:
            content = store.read(name)
            assert content == whole.get(name, content)
        ImageDataset(path).load([0])
    except (DatasetError, LabelError) as error:
        one_line(error)


@QUICK
@given(damage=_DAMAGE, cut=st.floats(0, 1), extension=st.sampled_from(["png", "jpeg", "webp"]))
def test_pictures(damage, cut, extension):
    data = damaged(sets.picture(SIZE, extension), damage, cut)
    try:
        pixels, mask = read_image(data, "picture", SIZE, alpha=False)
    except DatasetError as error:
        one_line(error)
        return
    assert pixels.shape == (3, SIZE, SIZE) and pixels.dtype == np.uint8 and mask is None


@pytest.mark.parametrize("binary", [False, True])
@QUICK
@given(damage=_DAMAGE, cut=st.floats(0, 1), name=st.sampled_from(["cameras", "images"]))
def test_colmap_models(tmp_path_factory, binary, damage, cut, name):
    folder = tmp_path_factory.mktemp("model", numbered=True)
    write_colmap(folder, sample_cameras(0, range(2)), (SIZE, SIZE), binary)
    file = folder / "sparse" / "0" / f"{name}.{'bin' if binary else 'txt'}"
    file.write_bytes(damaged(file.read_bytes(), damage, cut))
    try:
        views = read_model(folder / "sparse" / "0")
    except DatasetError as error:
        one_line(error)
        return
    assert all(np.isfinite(view.cam2world).all() and np.isfinite(view.camera.intrinsics).all() for view in views)


def test_a_model_that_promises_too_much_is_refused(tmp_path):
    write_colmap(tmp_path, sample_cameras(0, range(2)), (SIZE, SIZE), True)
    file = tmp_path / "sparse" / "0" / "images.bin"
    file.write_bytes(struct.pack("<Q", 2**62) + file.read_bytes()[8:])
    with pytest.raises(DatasetError, match=r"images\.bin: is damaged"):
        read_model(tmp_path / "sparse" / "0")
