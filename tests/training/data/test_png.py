"""Tests that the native PNG decoder gives Pillow's pixels, and leaves unusual files to Pillow."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from training.data import pixels, png

COLOURS = {1: (0, "L"), 2: (4, "LA"), 3: (2, "RGB"), 4: (6, "RGBA")}  # channels -> colour type, Pillow's mode
QUICK = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def library():
    if png._load() is None:
        pytest.skip("there is no C++ compiler")


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def write(rows: np.ndarray, channels: int, parts: int = 1, before: bytes = b"", after: bytes = b"", **header) -> bytes:
    """Writes a PNG of coded rows uint8 [H, 1 + W * channels], filters first."""
    fields = {"depth": 8, "colour": COLOURS[channels][0], "packing": 0, "filter": 0, "interlace": 0} | header
    size = ((rows.shape[1] - 1) // channels, len(rows))
    packed = zlib.compress(rows.tobytes())
    step = -(-len(packed) // parts)
    data = [chunk(b"IDAT", packed[i : i + step]) for i in range(0, len(packed), step)]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, *fields.values()))
    return b"".join([b"\x89PNG\r\n\x1a\n", head, before, *data, after, chunk(b"IEND", b"")])


def coded(height: int, width: int, channels: int, filters, seed: int = 0) -> np.ndarray:
    """Draws random rows; any bytes after a filter are an image."""
    rows = np.random.default_rng(seed).integers(0, 256, (height, 1 + width * channels), dtype=np.uint8)
    rows[:, 0] = np.resize(np.asarray(filters, np.uint8), height)
    return rows


def by_pillow(data: bytes) -> np.ndarray:
    return pixels.planes(Image.open(io.BytesIO(data)))


@QUICK
@given(
    st.integers(1, 9),
    st.integers(1, 40),
    st.integers(1, 4),
    st.lists(st.integers(0, 4), min_size=1, max_size=9),
    st.integers(0, 2**32 - 1),
    st.integers(1, 4),
)
def test_every_filter_and_mode_gives_the_pixels_of_pillow(height, width, channels, filters, seed, parts):
    data = write(coded(height, width, channels, filters, seed), channels, parts)
    found = png.decode(data, (width, height))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, by_pillow(data))


@pytest.mark.parametrize("channels", COLOURS)
@pytest.mark.parametrize("alpha", [False, True])
def test_pictures_and_masks_are_the_slow_path_s(channels, alpha, monkeypatch):
    data = write(coded(16, 16, channels, range(5)), channels, before=chunk(b"gAMA", bytes(4)))
    assert png.decode(data) is not None

    def read():
        try:
            return *pixels.read_image(data, "picture", 16, alpha), pixels.read_mask(data, "mask", 16)
        except pixels.DatasetError as error:
            return (str(error),)

    quick = read()
    monkeypatch.setattr(png, "decode", lambda *_: None)
    for one, other in zip(quick, read(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_not_regular_is_left_to_pillow():
    rows = coded(8, 8, 3, range(5))
    whole = write(rows, 3)
    assert png.decode(whole, (8, 8)) is not None
    bomb = np.zeros((4000, 25), np.uint8)
    end = whole.index(b"IEND")
    others = {
        "another size": (whole, (8, 9)),
        "more rows than declared": (whole.replace(write(rows, 3)[:33], write(rows[:4], 3)[:33]), None),
        "fewer rows than declared": (write(bomb, 3)[:33] + whole[33:], None),
        "a bomb": (whole[:33] + write(bomb, 3)[33:], (8, 8)),
        "16 bits": (write(rows, 3, depth=16), None),
        "palette": (write(rows, 3, colour=3), None),
        "interlaced": (write(rows, 3, interlace=1), None),
        "unknown filter": (write(coded(8, 8, 3, [5]), 3), None),
        "transparent colour": (write(rows, 3, before=chunk(b"tRNS", bytes(6))), None),
        "short gamma": (write(rows, 3, before=chunk(b"gAMA", bytes(3))), None),
        "text that sets transparency": (write(rows, 3, before=chunk(b"tEXt", b"transparency\x001")), None),
        "bytes after the end": (whole + b"x", None),
        "no end": (whole[: end - 4], None),
        "no pixels": (whole[:33] + whole[end - 4 :], None),
        "nothing": (b"", None),
        "no PNG": (b"\xff\xd8" + whole, None),
    }
    assert {name for name, (data, size) in others.items() if png.decode(data, size) is not None} == set()
    assert png.decode(whole, (8, 8), channels=(1, 2)) is None


def test_no_flipped_bit_and_no_cut_passes():
    whole = write(coded(8, 8, 3, range(5)), 3, parts=2, before=chunk(b"tEXt", b"Title\0heads"))
    assert png.decode(whole) is not None
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        assert png.decode(bytes(flipped)) is None, place
        assert png.decode(whole[:place]) is None, place


@pytest.mark.parametrize("missing", ["isal", "library"])
def test_pictures_are_read_without_isal_and_without_a_library(missing, monkeypatch):
    data = write(coded(8, 8, 3, range(5)), 3)
    if missing == "isal":
        monkeypatch.setattr(png, "inflater", zlib)
        assert png.decode(data) is not None and png.decode(data[:60] + b"x" + data[61:]) is None
    else:
        monkeypatch.setenv("SPLATGAN_NATIVE", "0")
        monkeypatch.setattr(png, "_load", png._load.__wrapped__)  # as in a new process
        assert png.decode(data) is None
    np.testing.assert_array_equal(pixels.read_image(data, "picture", 8, alpha=False)[0], by_pillow(data))
