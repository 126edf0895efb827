"""Decodes PNGs of the usual kinds by a native library, in about a third of Pillow's time. Imports no torch.

`decode` returns None for a file that is unusual or damaged; Pillow then decodes it or reports the error. What is
decoded here has Pillow's pixels, bit for bit. Inflating and undoing filters release the interpreter lock.
"""

import ctypes
import functools
import importlib
import struct
import zlib
from collections.abc import Container
from pathlib import Path
from types import ModuleType

import numpy as np

from torch_utils import native

inflater: ModuleType
try:
    inflater = importlib.import_module("isal.isal_zlib")  # Intel's ISA-L: inflates at twice the speed of zlib
except ImportError:
    inflater = zlib

_SOURCE = Path(__file__).parent / "csrc" / "unfilter.cpp"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # colour type -> channels: grey, RGB, grey and alpha, RGBA
_MAX_PIXELS = 1 << 26  # limit on width times height where no size is given
_PADDING = 8  # bytes after a row; PAD of unfilter.cpp
# Chunks that change no pixel, with their lengths in bytes; files with others are left to Pillow.
_HARMLESS = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9, b"tIME": 7}
_MAX_TEXT = 1 << 16  # largest text chunk in bytes


def decode(
    data: bytes, size: tuple[int, int] | None = None, channels: Container[int] = (1, 2, 3, 4)
) -> np.ndarray | None:
    """Decodes a PNG with 8 bits per channel, not interlaced (grey, grey and alpha, RGB or RGBA), as uint8 [C, H, W].

    size: width and height that it must have; channels: numbers of channels that it may have. Both are checked before
    anything is inflated, and no more is inflated than the size needs. Returns None if the file is anything else or is
    damaged, or if there is no library.
    """
    library = _load()
    if library is None:
        return None
    try:
        found = _parse(data)
        if found is None:
            return None
        (width, height), count, packed = found
        if count not in channels or (width * height > _MAX_PIXELS if size is None else size != (width, height)):
            return None
        expected = height * (1 + width * count)
        stream = inflater.decompressobj()
        rows = stream.decompress(packed, expected + 1)
    except (struct.error, zlib.error, inflater.error):
        return None
    if len(rows) != expected or not stream.eof or stream.unused_data:
        return None
    planes = np.empty((count, height, width), np.uint8)
    room = np.empty(3 * (width * count + _PADDING), np.uint8)
    failed = library.png_unfilter(rows, planes.ctypes.data, height, width, count, room.ctypes.data)
    return None if failed else planes


def _parse(data: bytes) -> tuple[tuple[int, int], int, bytes] | None:
    """Returns (width, height), channels and the zlib stream of a file that is whole and holds nothing unusual.

    Raises struct.error if the file ends early.
    """
    if data[:8] != _SIGNATURE or data[8:16] != b"\0\0\0\rIHDR":
        return None
    width, height, depth, colour, *methods = struct.unpack_from(">IIBBBBB", data, 16)
    if not width or not height or depth != 8 or colour not in _CHANNELS or any(methods):
        return None
    view, place, parts, ended = memoryview(data), 8, [], False  # ended: another chunk has followed the pixels
    while True:
        length, kind = struct.unpack_from(">I4s", data, place)
        (crc,) = struct.unpack_from(">I", data, place + 8 + length)
        if inflater.crc32(view[place + 4 : place + 8 + length]) != crc:
            return None
        if kind == b"IDAT" and not ended:
            parts.append(view[place + 8 : place + 8 + length])
        elif kind == b"IEND":
            place += 12 + length
            break
        elif kind == b"IHDR" if place == 8 else _is_harmless(kind, view[place + 8 : place + 8 + length]):
            ended = bool(parts)
        else:
            return None
        place += 12 + length
    if not parts or place != len(data):
        return None
    return (width, height), _CHANNELS[colour], b"".join(parts)


def _is_harmless(kind: bytes, content: memoryview) -> bool:
    # A text whose keyword has a small first letter could set what Pillow keeps beside it, such as "transparency".
    if kind == b"tEXt":
        return len(content) <= _MAX_TEXT and content[:1].tobytes().isupper()
    return _HARMLESS.get(kind) == len(content)


@functools.cache
def _load() -> ctypes.CDLL | None:
    """Returns the library, built at the first call; None where it cannot be built."""
    try:
        library = native.load_library("unfilter", [_SOURCE])
    except native.BuildError:
        return None
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    library.png_unfilter.argtypes = [ctypes.c_char_p, pointer, count, count, ctypes.c_int, pointer]
    library.png_unfilter.restype = ctypes.c_int
    return library
