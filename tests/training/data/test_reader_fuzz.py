"""Fuzzes the importers: an input gives every picture that it states, or a line that says which are left out.

`test_data_fuzz.py` damages bytes; here the inputs are well formed and their contents are odd.
"""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.training.data import dots
from training.data.image_store import DatasetError
from training.data.label_file import LabelError
from training.data.making.colmap import read_largest
from training.data.making.importers import import_colmap, import_transforms
from training.data.making.lens import read_lens
from training.data.names import stem_of, tidy
from training.data.validation import inspect_set

SIZE, NUM = 16, 5
SOME = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
POSES = dots.arc(NUM)

_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 400), st.floats(), st.sampled_from(["", "x", "OPENCV", "true"]),
    st.lists(st.floats(-1, 300), max_size=9), st.just([[20, 0, 8], [0, 20, 8], [0, 0, 1]]), st.just(10**400),
)  # fmt: skip
_KEYS = st.sampled_from([
    "fl_x", "fl_y", "camera_angle_x", "camera_angle_y", "cx", "cy", "w", "h", "K", "k1", "k2", "p1", "p2", "k3", "k4",
    "is_fisheye", "camera_model", "distortion_params", "rolling_shutter", "mask_path", "aabb_scale",
])  # fmt: skip
_GOOD = st.sampled_from([{"fl_x": 20}, {"camera_angle_x": 0.8}, {"fl_x": 20, "cx": 8, "cy": 8, "w": 16, "h": 16}])
_NAME = st.text(st.sampled_from("ab/.\\ 1\ufeff\u0301é"), max_size=10)


def one_line(error: Exception) -> None:
    text = str(error)
    assert text and "\n" not in text and len(text) < 900, text
    for word in ("Error(", "Traceback", "codec", "invalid literal", "could not convert", "unpack", "NoneType"):
        assert word not in text, text


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """A folder of pictures with a transforms.json, whose content is returned too."""
    folder = tmp_path_factory.mktemp("frames")
    dots.write_frames(folder, POSES, {}, lens=lambda i: (20.0, (SIZE, SIZE)))
    return folder, json.loads((folder / "transforms.json").read_text())["frames"]


@SOME
@given(
    shared=st.dictionaries(_KEYS, _VALUES, max_size=4),
    good=_GOOD,
    own=st.dictionaries(st.integers(0, NUM - 1), st.dictionaries(_KEYS, _VALUES, max_size=3), max_size=2),
    kept=st.lists(st.integers(0, NUM - 1), min_size=2, max_size=NUM, unique=True),
)
def test_transforms(frames, tmp_path_factory, shared, good, own, kept):
    """Every frame is written, and pictures without a frame are counted."""
    folder, plain = frames
    place = tmp_path_factory.mktemp("out")
    content = {**shared, **good, "frames": [{**plain[i], **own.get(i, {})} for i in kept]}
    (folder / "transforms.json").write_text(json.dumps(content))
    try:
        report = import_transforms(folder, place / "set", resolution=8)
    except DatasetError as error:
        one_line(error)
        assert not (place / "set").exists()
        return
    assert report.count == len(kept)
    assert any(f"{len(kept)} used of {NUM} pictures" in note for note in report.notes) == (len(kept) < NUM)
    _, labels = dots.labels_of(report.images)
    assert np.isfinite(labels).all() and (labels[:, [16, 20]] > 0).all()


@settings(SOME, max_examples=300)
@given(
    own=st.dictionaries(_KEYS, _VALUES, max_size=5),
    shared=st.dictionaries(_KEYS, _VALUES, max_size=5),
    real=st.tuples(st.integers(1, 300), st.integers(1, 300)),
)
def test_lenses(own, shared, real):
    try:
        lens = read_lens("t.json: frames[0]", own, shared, real, real[::-1])
    except DatasetError as error:
        one_line(error)
        return
    assert np.isfinite(lens.intrinsics).all() and lens.intrinsics[0, 0] > 0 and min(lens.size) >= 1
    if any(own.get(name) is not None for name in ("fl_x", "camera_angle_x", "fl_y", "camera_angle_y", "K")):
        again = read_lens(
            "t.json: frames[0]", own, {k: v for k, v in shared.items() if k[:2] in ("k1", "k2")}, real, real
        )
        if not lens.remarks and not again.remarks and shared.get("w") is None and shared.get("h") is None:
            assert again.intrinsics[0, 0] == lens.intrinsics[0, 0]  # nothing of the file's lens is mixed in


@SOME
@given(
    points=st.lists(
        st.sampled_from(["", "\n", "1.0 2.0 -1\n", "1 2 3 4 5 6 7 8 9 1 2 3\n"]), min_size=NUM, max_size=NUM
    ),
    blanks=st.lists(st.sampled_from(["", "\n", "# a comment\n", "\r\n"]), min_size=NUM, max_size=NUM),
    names=st.sampled_from(["img_{}.png", "a b {}.png", "sub/{}.png", "./{}.png", "sub\\{}.png"]),
    stated=st.integers(NUM - 1, NUM + 1),
)
def test_text_models_keep_every_picture(tmp_path_factory, points, blanks, names, stated):
    """Blank lines are those of points, or none; points are optional for each picture."""
    folder = tmp_path_factory.mktemp("model")
    model = dots.write_model(folder, POSES, names=[names.format(i) for i in range(NUM)], points="")
    rows = (model / "images.txt").read_text().splitlines()
    text = f"# Number of images: {stated}\n"
    text += "".join(f"{row}\n{p}{b}" for row, p, b in zip(rows, points, blanks, strict=True))
    (model / "images.txt").write_text(text)
    _, views, notes = read_largest(folder)
    assert len(views) == NUM and bool(notes) == (stated != NUM)


@SOME
@given(
    counts=st.lists(st.integers(1, NUM), min_size=1, max_size=3),
    lost=st.sets(st.integers(0, NUM - 1), max_size=1),
    extra=st.integers(0, 2),
)
def test_colmap_projects_count_everything(tmp_path_factory, counts, lost, extra):
    folder = tmp_path_factory.mktemp("project")
    (folder / "images").mkdir()
    for i in range(NUM + extra):
        if i not in lost:
            Image.new("RGB", (SIZE, SIZE)).save(folder / "images" / f"img_{i:03d}.png")
    for i, count in enumerate(counts):
        dots.write_model(folder, POSES[:count], "PINHOLE 16 16 20 20 8 8", model=f"sparse/{i}")
    most = max(counts)
    try:
        report = import_colmap(folder, folder / "set", up="y")
    except DatasetError as error:
        one_line(error)
        assert (lost and min(lost) < most) or most == 1  # one camera alone has no middle
        return
    present = NUM + extra - len(lost)
    assert report.count == most
    assert any(f"holds {len(counts)} models" in note for note in report.notes) == (len(counts) > 1)
    assert any(f"{most} used of {present} pictures" in note for note in report.notes) == (present > most)


@SOME
@given(
    entries=st.lists(
        st.tuples(st.one_of(st.sampled_from([f"{i:05d}.png" for i in range(7)]), _NAME), st.booleans()), max_size=8
    ),
)
def test_label_files_lose_nothing_in_silence(tmp_path_factory, entries):
    """Each picture has its label or a line, and each label its picture or a place in the count."""
    folder = tmp_path_factory.mktemp("set")
    images = dots.write_set(folder, POSES, SIZE)
    good = json.loads((folder / "dataset.json").read_text())["labels"][2][1]
    labels = [[name, good if fine else good[:16]] for name, fine in entries]
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    try:
        found = inspect_set(images)
    except LabelError as error:
        one_line(error)
        return
    for line in (*found.problems, *found.notes):
        one_line(ValueError(line))
    stems = [stem_of(name, [str(folder), str(images)]) for name, _ in entries]
    pictures = {f"{i:05d}" for i in range(NUM)}
    known = {stem.removeprefix(f"{SIZE}/") for stem in stems} & pictures
    if len(set(stems)) < len(stems):
        assert any("two labels" in line for line in found.problems)
    elif not known:
        assert len(found.problems) == 1 and "names an image here" in found.problems[0]
    else:
        bad = {s.removeprefix(f"{SIZE}/") for s, (_, fine) in zip(stems, entries, strict=True) if not fine} & pictures
        assert len(found.problems) == NUM - len(known) + len(bad)
        unused = len(stems) - len(known)
        assert any(f"{len(stems)} labels, {unused} of them name no picture" in n for n in found.notes) == (unused > 0)


@settings(SOME, max_examples=300)
@given(_NAME)
def test_tidying_twice_is_tidying_once(name):
    once = tidy(name, ["/r/s"])
    assert tidy(once, ["/r/s"]) == once
    assert "\\" not in once and not {"", ".", ".."} & set(once.lstrip("./").split("/")[:-1])
