"""Makes a set of posed crops from a folder of portraits: landmarks to poses, poses to crops, crops to masks.

`photos_landmarks` reads what a detector found, `photos_face` is the face that it is compared with, `photos_pose`
finds the camera, `photos_crop` cuts, `photos_masks` asks for masks. What is skipped has a reason, and every reason is
counted.
"""

import os
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from training.data.image_store import DatasetError, FolderStore, printable
from training.data.label_check import require_labels
from training.data.making import photos_masks
from training.data.making.mask_files import find_masks, unused_masks
from training.data.making.photos_crop import Crop, Framing, cut, encoded, find_crops, inside, sharpness
from training.data.making.photos_landmarks import FILE, Landmarks, find_landmarks, read_landmarks
from training.data.making.reshape import TRANSPOSING, Size, Turn
from training.data.making.set_writer import Item, Report, require_free, write_set
from training.data.names import PICTURE_ENDINGS, Folder, roots_of, tidy
from training.data.pixels import EXTENSIONS, eight_bits, has_alpha, open_image, orientation

MASKS = "masks"  # folder of masks beside the pictures
MAX_MISFIT, MIN_INLIERS = 6.0, 0.6  # millimetres on the face, share of the landmarks: beyond, they are no face's
_SHOWN = 3  # names in a line about skipped pictures
_SHARPNESS = 0.004  # least of a crop that may have been enlarged twice
_NO_FIT, _UNREADABLE = "whose landmarks fit no face", "that cannot be read"
MaskKind = Literal["command", "files", "alpha"]
_OUTSIDE_POINTS = 0.5  # share of landmarks outside the picture from which on they belong to another one


@dataclass(frozen=True)
class Rules:
    """Describes how portraits become crops, and which are skipped."""

    framing: Framing = field(default_factory=Framing)
    focal: float | None = None  # in longer sides of a picture; None: that of the crop, as in EG3D
    max_yaw: float = 60.0  # degrees
    max_pitch: float = 40.0  # degrees
    max_enlarge: float = 2.0  # times that a crop may have to be enlarged
    max_outside: float = 0.15  # share of a crop that may lie outside its picture

    @property
    def min_sharpness(self) -> float:
        """Returns the least `photos_crop.sharpness`: what enlarging the picture before by half as much again leaves."""
        return _SHARPNESS * (2.0 / self.max_enlarge) ** 3


@dataclass
class PhotoReport:
    """Describes what became of a folder of portraits."""

    written: Report
    total: int  # pictures in the folder
    skipped: dict[str, list[str]]  # reason -> names of pictures
    notes: list[str] = field(default_factory=list)

    @property
    def line(self) -> str:
        """Says "N used of M; the others ..."."""
        said = [f"{len(names)} {reason} ({_some(names)})" for reason, names in self.skipped.items()]
        others = f"; the others: {'; '.join(said)}" if said else ""
        return f"{self.written.count} used of {self.total}{others}"


def _some(names: list[str]) -> str:
    shown = ", ".join(map(printable, names[:_SHOWN]))
    return shown if len(names) <= _SHOWN else f"{shown}, ..."


@dataclass
class _Photo:
    """Holds a picture on its way to a crop."""

    name: str  # tidied, below the folder
    path: Path
    mask: Path | None = None  # file of its mask
    stem: str = ""  # name of its crop while it is in work
    stored: Size = (0, 0)  # width and height of the file's pixels
    size: Size = (0, 0)  # the same as the landmarks count
    turn: Turn | None = None  # what its orientation tag asks for
    turned: bool = False  # the landmarks are for the turned picture
    alpha: bool = False
    crop: Crop | None = None
    shape: np.ndarray | None = None  # uint8 [R, R], mask of the crop


class _Photos:
    """Keeps the pictures that are still in work, and the reasons of those that are not."""

    def __init__(self, photos: Iterable[_Photo]):
        self.left = list(photos)
        self.total = len(self.left)
        self.skipped: dict[str, list[str]] = {}

    def skip(self, name: str, reason: str) -> None:
        self.skipped.setdefault(reason, []).append(name)

    def sift(self, reason_of: Callable[[int], str | None]) -> list[int]:
        """Drops pictures for which there is a reason; returns the places of the others."""
        reasons = [reason_of(i) for i in range(len(self.left))]
        for photo, reason in zip(self.left, reasons, strict=True):
            if reason is not None:
                self.skip(photo.name, reason)
        kept = [i for i, reason in enumerate(reasons) if reason is None]
        self.left = [self.left[i] for i in kept]
        return kept

    def require(self, what: str) -> None:
        """Raises DatasetError if no picture is left."""
        if not self.left:
            said = [f"{len(names)} {reason} ({_some(names)})" for reason, names in self.skipped.items()]
            raise DatasetError(f"{what}: none of {self.total} pictures can be used: {'; '.join(said)}")


def import_photos(
    source: Path,
    dest: Path,
    resolution: int,
    landmarks: Path | None = None,  # None: <source>/landmarks.json, or what landmarks_command writes
    landmarks_command: str | None = None,
    mask_command: str | None = None,
    rules: Rules | None = None,
    progress: Callable[[int], None] | None = None,
) -> PhotoReport:
    """Writes crops, labels and, if there are any, masks of the portraits in `source`, as a whole or not at all.

    Masks come from `mask_command`, from <source>/masks/<name>.png, or from the pictures' alpha channels.
    Raises DatasetError if no picture can be used, if landmarks or masks as a whole cannot, or if `dest` exists.
    """
    rules = rules or Rules()
    require_free(dest)
    listed, notes = _find(source)
    photos = _Photos(listed)
    photos.require(str(source))
    with tempfile.TemporaryDirectory(prefix="photos-") as scratch:
        work = Path(scratch)
        file = landmarks or source / FILE
        if landmarks_command is not None:
            file = find_landmarks(source, landmarks_command, work)
        found = read_landmarks(file, roots_of(source))
        notes += _unknown(found, photos)
        points = _choose(photos, found)
        sizes = np.array([photo.size for photo in photos.left], dtype=np.float64)
        crops, poses = find_crops(points, sizes, rules.framing, rules.focal)
        for photo, crop in zip(photos.left, crops, strict=True):
            photo.crop = crop
        photos.sift(lambda i: _fault(photos.left[i], poses.misfits[i], poses.inliers[i], resolution, rules))
        photos.require(_hint(source, photos))
        kind = _mask_kind(photos.left, mask_command, notes)
        folder = work / "crops"
        folder.mkdir()
        _cut_all(photos, folder, resolution, kind == "alpha", rules, progress)
        if kind is not None:
            notes += _add_masks(photos, kind, mask_command, work, resolution)
        written = _write(photos, folder, dest, resolution, rules)
    return PhotoReport(written, photos.total, photos.skipped, notes)


def _find(source: Path) -> tuple[list[_Photo], list[str]]:
    """Lists the pictures with the masks beside them; returns them and a line if there are other masks."""
    masks = source / MASKS
    folder = Folder(source)
    folder.require_distinct()
    files = [p for p in folder.files() if masks not in p.parents and p.suffix.lower() in PICTURE_ENDINGS]
    if not files:
        raise DatasetError(f"{printable(str(source))}: holds no pictures ({', '.join(EXTENSIONS)})")
    names = [tidy(path.relative_to(source).as_posix()) for path in files]
    beside = Folder(masks)
    found = find_masks(beside, names)
    return [_Photo(*each) for each in zip(names, files, found, strict=True)], unused_masks(beside, found)


def _unknown(found: Landmarks, photos: _Photos) -> list[str]:
    names = {photo.name for photo in photos.left}
    unknown = sorted(found.faces.keys() - names)
    if len(unknown) == len(found.faces):
        raise DatasetError(
            f"{found.source}: names none of the {len(names)} pictures: it has {_some(unknown)}, "
            f"the folder {_some(sorted(names))}"
        )
    return [f"{found.source}: {len(unknown)} entries name no picture ({_some(unknown)})"] if unknown else []


def _choose(photos: _Photos, found: Landmarks) -> np.ndarray:
    """Reads the pictures' headers and returns the landmarks [N, 51, 2] of those with exactly one face."""
    chosen: list[np.ndarray] = []

    def look(index: int) -> str | None:
        photo = photos.left[index]
        if photo.path.suffix.lower() not in EXTENSIONS:
            return f"of another format than {', '.join(e[1:] for e in EXTENSIONS)}"
        if photo.name not in found.faces:
            return "not in the landmarks"
        faces = found.faces[photo.name]
        if len(faces) != 1:
            return "with several faces" if len(faces) else "without a face"
        try:
            picture = open_image(_read(photo.path), str(photo.path), decode=False)
        except DatasetError:
            return _UNREADABLE
        points = _scaled(photo, picture, faces[0], found)
        if points is None:
            return "whose landmarks are for a picture of another shape"
        if ((points < 0) | (points > np.array(photo.size))).any(-1).mean() > _OUTSIDE_POINTS:
            return "whose landmarks lie outside the picture"
        chosen.append(points)
        return None

    photos.sift(look)
    photos.require(found.source)
    return np.stack(chosen)


def _read(path: Path) -> bytes:
    return FolderStore(path.parent).read(path.name)


def _scaled(photo: _Photo, picture: Image.Image, points: np.ndarray, found: Landmarks) -> np.ndarray | None:
    """Fills in the picture's facts; returns the landmarks in its pixels, None if they are for another shape."""
    photo.alpha, photo.stored, photo.size = has_alpha(picture), picture.size, picture.size
    tag = orientation(picture)
    if tag > 1:
        photo.turn = Turn(tag)
        if found.exif is None:
            raise DatasetError(
                f'{found.source}: {printable(photo.name)} carries an EXIF orientation; "exif": "applied" says that '
                'pictures were turned upright before the detector saw them, "ignored" that they were not'
            )
        photo.turned = found.exif == "applied"
        if photo.turned and tag in TRANSPOSING:
            photo.size = picture.height, picture.width
    seen = found.sizes.get(photo.name, photo.size)
    scale = np.array(photo.size) / np.array(seen)
    # Half a pixel more or less comes of rounding when a picture was made smaller for the detector.
    if abs(scale[0] / scale[1] - 1) > 1.0 / min(seen):
        return None
    return points * scale


def _fault(photo: _Photo, misfit: float, inliers: float, resolution: int, rules: Rules) -> str | None:
    crop = photo.crop
    assert crop is not None
    if misfit > MAX_MISFIT or inliers < MIN_INLIERS:
        return _NO_FIT
    if abs(np.degrees(crop.yaw)) > rules.max_yaw:
        return f"turned further than {rules.max_yaw:g} degrees to a side"
    if abs(np.degrees(crop.pitch)) > rules.max_pitch:
        return f"turned further than {rules.max_pitch:g} degrees up or down"
    if crop.side * rules.max_enlarge < resolution:
        return f"too small (to be enlarged more than {rules.max_enlarge:g} times)"
    if crop.outside(photo.size) > rules.max_outside:
        return f"whose crop lies outside the picture by more than {rules.max_outside:.0%}"
    return None


def _hint(source: Path, photos: _Photos) -> str:
    unfit = len(photos.skipped.get(_NO_FIT, []))
    return f'{source}: is "order" of the landmarks right?' if unfit > photos.total / 2 else str(source)


def _mask_kind(photos: list[_Photo], command: str | None, notes: list[str]) -> MaskKind | None:
    """Decides where the masks of all pictures come from; what is there and not used is said."""
    files, alphas = [[p.name for p in photos if getattr(p, kind)] for kind in ("mask", "alpha")]
    if files and command is None and len(files) < len(photos):
        bare = [p.name for p in photos if p.mask is None]
        raise DatasetError(f"{MASKS}: {len(bare)} of {len(photos)} pictures have no mask there ({_some(bare)})")
    kind: MaskKind | None = "command" if command is not None else "files" if files else None
    if kind is None and len(alphas) == len(photos):
        kind = "alpha"
    if files and kind != "files":
        notes.append(f"{MASKS}: {len(files)} masks are not used; --mask-command makes all")
    if alphas and kind != "alpha":
        notes.append(f"{len(alphas)} pictures have an alpha channel that is not used ({_some(alphas)})")
    return kind


def _cut_all(
    photos: _Photos,
    folder: Path,
    resolution: int,
    alpha: bool,
    rules: Rules,
    progress: Callable[[int], None] | None,
) -> None:
    """Writes the crops of all pictures that are sharp, as `_file` names them."""

    def one(photo: _Photo) -> str | None:
        assert photo.crop is not None
        try:
            picture = eight_bits(open_image(_read(photo.path), str(photo.path)))
        except DatasetError:
            return _UNREADABLE
        if photo.turned and photo.turn is not None:
            picture = photo.turn.apply(picture)
        cropped = cut(picture.convert("RGBA" if alpha else "RGB"), photo.crop, resolution)
        if progress is not None:
            progress(1)
        if sharpness(cropped) < rules.min_sharpness:
            return "blurred, as if enlarged"
        if alpha:
            photo.shape = np.asarray(cropped.getchannel("A"))
        cropped.convert("RGB").save(_file(folder, photo))
        return None

    for i, photo in enumerate(photos.left):
        photo.stem = f"{i:05d}"
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reasons = list(pool.map(one, photos.left))
    photos.sift(lambda i: reasons[i])
    photos.require("--from=photos")


def _file(folder: Path, photo: _Photo) -> Path:
    return folder / f"{photo.stem}.png"


def _add_masks(photos: _Photos, kind: MaskKind, command: str | None, work: Path, resolution: int) -> list[str]:
    """Fills in the masks of all pictures, drops those whose mask cannot be right, and returns notes."""
    title = "masks of the crops"
    if command is not None:
        title = "--mask-command"
        out = work / MASKS
        photos_masks.run_mask_command(command, work / "crops", out)
        for photo in photos.left:
            photo.shape = photos_masks.read_program_mask(out, photo.stem, resolution)
    elif kind == "files":
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(partial(_read_mask, resolution=resolution), photos.left))
        photos.sift(lambda i: photos_masks.UNCLEAR if photos.left[i].shape is None else None)
        photos.require(title)
    masks = [photo.shape for photo in photos.left if photo.shape is not None]
    wrong, remarks = photos_masks.faults(masks, [photo.name for photo in photos.left], title)
    photos.sift(lambda i: wrong.get(photos.left[i].name))
    photos.require(title)
    for photo in photos.left:
        assert photo.crop is not None and photo.shape is not None
        photo.shape = np.where(inside(photo.crop, photo.size, resolution), photo.shape, np.uint8(0))
    return remarks


def _read_mask(photo: _Photo, resolution: int) -> None:
    """Cuts the mask of a picture out of its file; leaves none where it is not clear which way up the file is."""
    assert photo.mask is not None and photo.crop is not None
    where = printable(str(photo.mask))
    mask = photos_masks.read_file(_read(photo.mask), where, photo.stored, photo.turn)
    if mask is None:
        return
    if photo.turned and photo.turn is not None:
        mask = photo.turn.apply(mask)
    if mask.size != photo.size:
        mask = mask.resize(photo.size, Image.Resampling.BILINEAR)
    photo.shape = np.asarray(cut(mask, photo.crop, resolution))


def _write(photos: _Photos, folder: Path, dest: Path, resolution: int, rules: Rules) -> Report:
    """Writes the set from the crops of `folder`."""
    items = []
    for i, photo in enumerate(photos.left):
        assert photo.crop is not None
        mask = None if photo.shape is None else partial(encoded, Image.fromarray(photo.shape))
        file = _file(folder, photo)
        items.append(Item(f"{i:05d}", photo.name, partial(_read, file), photo.crop.label, mask))
    names = [photo.name for photo in photos.left]
    require_labels("labels of the crops", names, [item.label.tolist() for item in items])
    extra = {"sources": names, "skipped": photos.skipped, "rules": asdict(rules)}
    return write_set(items, dest, resolution, extra=extra)
