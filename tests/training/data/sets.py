"""Makes small posed image sets in every layout from one synthetic set."""

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image


def labels_of(images: Path) -> list:
    """Returns the entries [name, numbers] of an FFHQC set whose images lie in `images`."""
    return json.loads((images.parent / "dataset.json").read_text())["labels"]


def pack(folder: Path, file: Path) -> Path:
    """Writes a zip with everything below `folder`."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder))
    return file


def to_eg3d(images: Path, dest: Path, masks: str = "mask") -> Path:
    """Writes EG3D's layout: dataset.json inside, images one folder deeper. masks: "mask" (inside), "alpha", "none"."""
    entries = []
    for i, (name, label) in enumerate(labels_of(images)):
        own = f"{i // 8:05d}/img{i:08d}.png"
        picture, mask = Image.open(images / name), Image.open(images.parent / "mask" / name)
        (dest / own).parent.mkdir(parents=True, exist_ok=True)
        if masks == "alpha":
            picture.putalpha(mask)
        if masks == "mask":
            (dest / "mask" / own).parent.mkdir(parents=True, exist_ok=True)
            mask.save(dest / "mask" / own)
        picture.save(dest / own)
        entries.append([own, label])
    (dest / "dataset.json").write_text(json.dumps({"labels": entries}))
    return dest


def to_ffhqc_zip(images: Path, dest: Path) -> Path:
    return pack(images.parent, dest.with_suffix(".zip"))


def to_eg3d_zip(images: Path, dest: Path) -> Path:
    return pack(to_eg3d(images, dest), dest.with_suffix(".zip"))


def to_alpha(images: Path, dest: Path) -> Path:
    return to_eg3d(images, dest, "alpha")


def to_zips_with_labels_outside(images: Path, dest: Path) -> Path:
    """Writes <root>/16.zip and <root>/mask.zip beside dataset.json."""
    dest.mkdir(parents=True)
    shutil.copy(images.parent / "dataset.json", dest)
    pack(images.parent / "mask", dest / "mask.zip")
    return pack(images, dest / f"{images.name}.zip")


def to_gghead(images: Path, dest: Path) -> Path:
    """Writes a zip of EG3D's layout, and the masks in a zip beside it."""
    folder = to_eg3d(images, dest / "unpacked")
    pack(folder / "mask", dest / "heads_mask.zip")
    shutil.rmtree(folder / "mask")
    return pack(folder, dest / "heads.zip")


def to_root(images: Path, dest: Path) -> Path:
    """Returns the root of an FFHQC set with one resolution."""
    return Path(shutil.copytree(images.parent, dest))


def to_zip_within_a_folder(images: Path, dest: Path) -> Path:
    """Writes a zip all of whose files lie in one folder."""
    shutil.copytree(images.parent, dest / "up" / "heads")
    return pack(dest / "up", dest / "set.zip")


LAYOUTS: dict[str, Callable[[Path, Path], Path]] = {
    "FFHQC root": to_root,
    "FFHQC zip": to_ffhqc_zip,
    "EG3D folder": to_eg3d,
    "EG3D zip": to_eg3d_zip,
    "alpha": to_alpha,
    "labels outside": to_zips_with_labels_outside,
    "GGHead": to_gghead,
    "zip in a folder": to_zip_within_a_folder,
}


def png(size: tuple[int, int] = (16, 16), mode: str = "RGB") -> bytes:
    data = io.BytesIO()
    Image.new(mode, size).save(data, "PNG")
    return data.getvalue()


def picture(size: int, extension: str) -> bytes:
    """Returns an image file with a gradient, so that damage anywhere changes something."""
    data = io.BytesIO()
    Image.linear_gradient("L").resize((size, size)).convert("RGB").rotate(30).save(data, extension.upper())
    return data.getvalue()
