"""Makes masks of crops by any program, and judges them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from training.data.image_store import DatasetError
from training.data.making.mask_files import UnclearTurn, read_mask_as_stored
from training.data.making.photos_landmarks import run_program
from training.data.making.reshape import Size, Turn
from training.data.mask_check import judge, look_at
from training.data.pixels import EXTENSIONS, eight_bits, mask_of, open_image

EMPTY, UPSIDE_DOWN = "with an empty mask", "with a mask that looks inverted or does not reach 255"
UNCLEAR = "with an orientation tag and a mask that may be for the pixels as stored or upright"


def run_mask_command(command: str, crops: Path, out: Path) -> None:
    """Runs a program that writes a mask for each picture of the folder `{in}` into the folder `{out}`."""
    out.mkdir()
    run_program("--mask-command", command, crops, out)
    if not any(out.iterdir()):
        raise DatasetError(f"--mask-command={command}: wrote nothing into {{out}}")


def read_program_mask(folder: Path, stem: str, resolution: int) -> np.ndarray:
    """Returns the mask, uint8 [R, R], that a program wrote for a crop: its alpha channel if it has one, else its grey.

    Raises DatasetError if there is none, if it has another shape, or if it is a coloured picture without alpha.
    """
    path = next((p for p in (folder / f"{stem}{e}" for e in EXTENSIONS) if p.is_file()), None)
    if path is None:
        raise DatasetError(f"--mask-command: wrote no {stem}.png into {{out}}; a mask is called like its picture")
    where = f"--mask-command: {path.name}"
    image = open_image(path.read_bytes(), where)
    if image.width != image.height:
        raise DatasetError(f"{where} is {image.width}x{image.height} pixels, its picture square")
    mask = mask_of(eight_bits(image), where)
    return np.asarray(mask.resize((resolution, resolution), Image.Resampling.BILINEAR))


def read_file(data: bytes, where: str, stored: Size, turn: Turn | None) -> Image.Image | None:
    """Returns the mask of a whole picture as `read_mask_as_stored` does, None where it may be either way up."""
    try:
        return read_mask_as_stored(data, where, stored, turn)
    except UnclearTurn:
        return None


def faults(masks: Sequence[np.ndarray], names: Sequence[str], title: str) -> tuple[dict[str, str], list[str]]:
    """Returns what is wrong with single masks, by their names, and what a user should know, a line each.

    Raises DatasetError for what is wrong with all.
    """
    looks = [look_at(mask) for mask in masks]
    verdict = judge(looks, names, title)
    problems = verdict.problems
    common = [problem for problem in problems if problem.startswith(f"{title}: ")]
    if common:
        raise DatasetError(common[0])
    wrong = {name: UPSIDE_DOWN for name in names if any(problem.startswith(f"{name}: ") for problem in problems)}
    return wrong | {n: EMPTY for n, look in zip(names, looks, strict=True) if look.most == 0}, verdict.notes
