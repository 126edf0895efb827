"""Decodes the images and masks of a set, and caches them. Imports no torch."""

import io
import os
import warnings
from collections.abc import Callable

import numpy as np
import psutil
from PIL import Image, ImageChops

from training.data import mask_check, png
from training.data.image_store import DatasetError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp")
_FORMATS = ("PNG", "JPEG", "WEBP")
_MODES = {"RGB", "RGBA", "L", "LA", "P", "PA", "1"}
_MEMORY_SHARE = 0.25  # share of the memory free at the start that all ranks of a machine together may fill
_GREY = 8  # largest difference of the channels of a grey picture; JPEG leaves a few
_ORIENTATION = 0x0112  # EXIF tag
_PNG_DEPTH_BYTE = 24  # offset of the bit depth in a PNG: signature, length, IHDR, width, height come before

# Pixels uint8 [3, H, W], and mask uint8 [1, H, W] or None.
Decoded = tuple[np.ndarray, np.ndarray | None]
# The same of several files: [B, 3, H, W] and [B, 1, H, W] or None.
DecodedBatch = tuple[np.ndarray, np.ndarray | None]


def open_image(data: bytes, source: str, size: tuple[int, int] | None = None, decode: bool = True) -> Image.Image:
    """Opens the image in a file's bytes. Raises DatasetError, one line that begins with `source`.

    size: width and height that it must have; checked before anything is unpacked. decode=False reads the header alone.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        if size is not None and image.size != size:
            raise DatasetError(wrong_size(source, image.size, size))
        if decode:
            image.load()
    except DatasetError:
        raise
    except Image.UnidentifiedImageError:
        raise DatasetError(f"{source}: cannot be read: is no {', '.join(_FORMATS)} file") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        most = f"{Image.MAX_IMAGE_PIXELS or 0:,}"
        raise DatasetError(f"{source}: cannot be read: has more pixels than {most}, which are legal") from None
    except Exception as error:  # Pillow's readers raise whatever a damaged file leads them to
        cut = "truncated" in str(error) or isinstance(error, EOFError)
        what = "is cut short" if cut else f"is damaged, or of a kind of {_kind(data)} that is not known here"
        raise DatasetError(f"{source}: cannot be read: {what}") from error
    return image


def _kind(data: bytes) -> str:
    """Names the format that a file's first bytes promise."""
    starts = {b"\x89PNG": "PNG", b"\xff\xd8": "JPEG", b"RIFF": "WEBP"}
    return next((name for start, name in starts.items() if data.startswith(start)), "picture")


def orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 to 8; 1, upright as stored, where there is no tag or a damaged one."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow's reader of tags raises whatever damaged ones lead it to
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def check_depth(image: Image.Image, data: bytes, source: str) -> None:
    """Raises DatasetError unless the picture is 8-bit RGB, RGBA or grey."""
    # Pillow reads 16-bit colour PNGs as 8-bit images without a warning.
    deep = image.format == "PNG" and data[_PNG_DEPTH_BYTE] > 8
    if deep or image.mode not in _MODES:
        what = "16 bits per channel" if deep or image.mode.startswith("I") else f"mode {image.mode}"
        raise DatasetError(
            f"{source}: has pixels of {what}; 8 bits per channel, RGB, RGBA or grey, are legal "
            "(dataset_tool.py validate --fix converts)"
        )


def has_alpha(image: Image.Image) -> bool:
    return "A" in image.getbands() or "transparency" in image.info


def read_image(data: bytes, source: str, resolution: int | None, alpha: bool | None) -> Decoded:
    """Decodes an image, square unless `resolution` is None.

    alpha: True, if the alpha channel is the mask; False, if there must be none, or an opaque one; None, if it is not
    looked at. Raises DatasetError.
    """
    size = None if resolution is None else (resolution, resolution)
    quick = png.decode(data, size, (2, 4) if alpha else (1, 2, 3, 4))
    if quick is not None:
        if alpha is False and len(quick) in (2, 4):
            _require_opaque(quick[-1], source)
        colours = quick[:3] if len(quick) > 2 else np.repeat(quick[:1], 3, axis=0)
        return colours, quick[-1:] if alpha else None
    image = open_image(data, source, size)
    check_depth(image, data, source)
    return split_alpha(image, source, alpha)


def split_alpha(image: Image.Image, source: str, alpha: bool | None) -> Decoded:
    """Returns pixels [3, H, W] and, with `alpha`, mask [1, H, W] of an 8-bit picture; raises as `read_image` does."""
    if alpha is None or not (alpha or has_alpha(image)):
        return planes(image if image.mode == "RGB" else image.convert("RGB")), None
    if not has_alpha(image):
        raise DatasetError(f"{source}: has no alpha channel, unlike other pictures of the set")
    channels = planes(image if image.mode == "RGBA" else image.convert("RGBA"))
    if not alpha:
        _require_opaque(channels[3], source)
    return channels[:3], channels[3:] if alpha else None


def _require_opaque(alpha: np.ndarray, source: str) -> None:
    if alpha.min() < 255:
        raise DatasetError(f"{source}: has transparent pixels, and other pictures of the set have no alpha channel")


def read_mask(data: bytes, source: str, resolution: int | None) -> np.ndarray:
    """Decodes a mask, uint8 [1, R, R]; resizes one of another size unless `resolution`, R, is None.

    Raises DatasetError, also for a mask that is to be resized and is not square.
    """
    quick = png.decode(data, None if resolution is None else (resolution, resolution), (1,))
    if quick is not None:
        return quick
    image = open_image(data, source)
    check_depth(image, data, source)
    mask = mask_of(image, source)
    if resolution is not None and mask.size != (resolution, resolution):
        if not mask_check.fits(mask.size, (resolution, resolution)):
            raise DatasetError(wrong_shape(source, mask.size, (resolution, resolution)))
        mask = mask.resize((resolution, resolution), Image.Resampling.BILINEAR)
    return np.asarray(mask)[None]


def mask_of(image: Image.Image, source: str) -> Image.Image:
    """Returns the mask that an 8-bit picture holds, grey: its alpha channel if anything is transparent, else its grey.

    Raises DatasetError, one line that begins with `source`, for a coloured picture: neither the brightness of a
    photograph nor a class's colour says how much of the subject a pixel shows.
    """
    if has_alpha(image):
        alpha = image.convert("RGBA").getchannel("A")
        if alpha.getextrema()[0] < 255:  # type: ignore[operator]
            return alpha
    if image.mode in ("L", "LA", "1"):
        return image.convert("L")
    red, green, blue = image.convert("RGB").split()
    for one, other in ((red, green), (green, blue), (blue, red)):
        if ImageChops.difference(one, other).getextrema()[1] > _GREY:  # type: ignore[operator]
            raise DatasetError(
                f"{source}: is a coloured picture and no mask; a mask is grey, 255 on the subject and 0 behind it, or "
                "the alpha channel of the cut-out subject"
            )
    return image.convert("L")


def eight_bits(image: Image.Image) -> Image.Image:
    """Returns a picture of 16 bits per channel, or of fractions from 0 to 1, with 8 bits."""
    if image.mode == "F":
        return Image.fromarray((np.asarray(image) * 255).round().clip(0, 255).astype(np.uint8))
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8))
    return image


def planes(image: Image.Image) -> np.ndarray:
    """Returns [channels, H, W]; copies plane by plane, in a sixth of the time of transposing an array."""
    channels = np.empty((len(image.getbands()), image.height, image.width), np.uint8)
    for channel, band in zip(channels, image.split(), strict=True):
        channel[:] = np.asarray(band)
    return channels


def wrong_size(source: str, size: tuple[int, int], expected: tuple[int, int]) -> str:
    return f"{source}: is {size[0]}x{size[1]} pixels, the set is {expected[0]}x{expected[1]}"


def wrong_shape(source: str, mask: tuple[int, int], picture: tuple[int, int]) -> str:
    return f"{source}: is a mask of {mask[0]}x{mask[1]} pixels for a picture of {picture[0]}x{picture[1]}"


def memory_limit() -> int:
    """Returns the bytes that this process may keep decoded."""
    return int(_MEMORY_SHARE * psutil.virtual_memory().available / int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class PixelMemory:
    """Caches decoded pixels from their first use on. Of a set that does not fit, the first files are kept.

    A copy in another process (a pickled one) starts empty.
    """

    def __init__(self, count: int, resolution: int, has_masks: bool, limit: int):
        self._shape, self._has_masks = (resolution, resolution), has_masks
        self._room = min(count, limit // ((3 + has_masks) * resolution**2))
        self._forget()

    def _forget(self) -> None:
        self._store = self._empty(self._room)
        self._filled = np.zeros(self._room, dtype=bool)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_store", "_filled")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _empty(self, count: int) -> DecodedBatch:
        masks = np.empty((count, 1, *self._shape), np.uint8) if self._has_masks else None
        return np.empty((count, 3, *self._shape), np.uint8), masks

    def take(self, wanted: np.ndarray, decode: Callable[[int], Decoded]) -> DecodedBatch:
        """Returns images [B, 3, H, W] and masks [B, 1, H, W] of the files `wanted`; decodes what is not in memory.

        Two threads may decode the same file; both write the same bytes, and a file counts as filled after its bytes.
        """
        kept = wanted < self._room
        absent = np.unique(wanted[kept][~self._filled[wanted[kept]]])
        _decode_into(self._store, absent, absent, decode)
        self._filled[absent] = True
        if kept.all():
            return _pick(self._store, wanted)
        passing, place = np.unique(wanted[~kept], return_inverse=True)
        fresh = self._empty(len(passing))
        _decode_into(fresh, passing, np.arange(len(passing)), decode)
        taken = self._empty(len(wanted))
        for whole, old, new in zip(taken, self._store, fresh, strict=True):
            if whole is not None and old is not None and new is not None:
                whole[kept], whole[~kept] = old[wanted[kept]], new[place]
        return taken


def _pick(arrays: DecodedBatch, rows: np.ndarray) -> DecodedBatch:
    images, masks = arrays
    return images[rows], None if masks is None else masks[rows]


def _decode_into(arrays: DecodedBatch, files: np.ndarray, rows: np.ndarray, decode: Callable[[int], Decoded]) -> None:
    images, masks = arrays
    # Not in threads: `iterate` works on several batches at once.
    for file, row in zip(files.tolist(), rows.tolist(), strict=True):
        images[row], mask = decode(file)
        if masks is not None:
            masks[row] = mask
