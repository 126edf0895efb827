"""Measures the cameras that `import --from=photos` finds, on ray-cast heads: `python -m benchmarks.photos`.

Each head is photographed off-centre and rolled; its landmarks get noise, given in distances of the eyes' outer corners
per axis, and one in twenty is an outlier. The error is the angle between the true and the found rotation of the head
against the camera, roll included.

What counts as level is a convention: these heads are flatter than people, so that the same face looks up by several
degrees. A calibration finds that one angle (--tilt, as `validate --like` advises it) on heads of another seed, from the
median pitch of frontal cameras alone. Both errors are printed. --portraits=DIR writes photographs with landmarks.json,
to try the import.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np

from benchmarks.machine import facts
from training.data.making.photos_crop import Crop, Framing, find_crops
from training.data.synthetic.portraits import JAW, Photographer, Portrait, take, write_portraits

BINS = ((0, 15), (15, 30), (30, 45), (0, 45), (45, 60), (60, 80))  # degrees of yaw
YAW_STD = 0.7  # radians; cut at two, so within 80 degrees


def photograph(seed: int, num: int, photographer: Photographer) -> list[Portrait]:
    """Returns portraits without their pictures."""
    return [take(seed, i, photographer, picture=False) for i in range(num)]


def find(portraits: list[Portrait], photographer: Photographer, tilt: float, focal: float | None) -> list[Crop]:
    """Returns the crops that the import would make."""
    points = np.stack([portrait.landmarks[JAW:] for portrait in portraits])
    sizes = np.full((len(points), 2), (photographer.width, photographer.height), dtype=np.float64)
    return find_crops(points, sizes, Framing(tilt=tilt), focal)[0]


def errors(portraits: list[Portrait], crops: list[Crop]) -> np.ndarray:
    """Returns the angles [N] between true and found rotations, in degrees."""
    true = np.stack([portrait.rotation for portrait in portraits])
    level = np.stack([np.reshape(crop.label[:16], (4, 4))[:3, :3].T for crop in crops])
    roll = np.array([crop.roll for crop in crops])
    turn = np.zeros((len(crops), 3, 3))
    turn[:, 0, 0] = turn[:, 1, 1] = np.cos(roll)
    turn[:, 1, 0], turn[:, 0, 1], turn[:, 2, 2] = np.sin(roll), -np.sin(roll), 1.0
    traces = np.einsum("nij,nij->n", turn @ level, true)
    return np.degrees(np.arccos(np.clip((traces - 1) / 2, -1, 1)))


def calibrate(photographer: Photographer, num: int = 200, seed: int = 1) -> float:
    """Returns the tilt in degrees that gives the heads of another seed their true median pitch."""
    portraits = photograph(seed, num, photographer)
    crops = find(portraits, photographer, 0.0, None)
    true = np.degrees([np.arcsin(-portrait.rotation[2, 1]) for portrait in portraits])
    found = np.degrees([crop.pitch for crop in crops])
    front = [np.abs(np.degrees([each.yaw for each in side])) <= 20 for side in (portraits, crops)]
    return float(np.median(true[front[0]]) - np.median(found[front[1]]))


def row(found: np.ndarray, yaw: np.ndarray) -> list[dict[str, float]]:
    """Returns count, median and 90 % quantile of the errors in every bin of yaw."""
    rows = []
    for low, high in BINS:
        inside = found[(np.abs(yaw) >= low) & (np.abs(yaw) < high)]
        if len(inside):
            quantiles = np.quantile(inside, (0.5, 0.9)).round(2).tolist()
            rows.append({"from": low, "to": high, "heads": len(inside), "median": quantiles[0], "p90": quantiles[1]})
    return rows


def cases() -> list[tuple[str, Photographer, bool]]:
    """Returns title, photographer and whether the focal length is given."""
    plain = [(f"noise {noise:.1%}", Photographer(noise=noise, yaw_std=YAW_STD), False) for noise in
             (0.0, 0.01, 0.015, 0.02, 0.03)]  # fmt: skip
    wide = Photographer(yaw_std=YAW_STD, focal=1.0, shift=0.25, distance=(1.6, 3.2))
    return [*plain, ("wide angle, off-centre, near", wide, False), ("the same, focal length given", wide, True)]


@click.command(context_settings={"show_default": True})
@click.option("--num", default=300, type=click.IntRange(min=1), help="Heads.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="JSON to write.")
@click.option("--portraits", type=click.Path(file_okay=False, path_type=Path), help="Write 30 photographs instead.")
def main(num: int, out: Path | None, portraits: Path | None) -> None:
    """Print the table of docs/photographs.md."""
    if portraits is not None:
        write_portraits(portraits, 30)
        click.echo(f"30 photographs and landmarks.json: {portraits}")
        return
    results = []
    tilt = calibrate(Photographer(yaw_std=YAW_STD))
    click.echo(f"tilt {tilt:.1f} degrees; median (90 % quantile) of the error in degrees, by yaw")
    for title, photographer, given in cases():
        heads = photograph(0, num, photographer)
        yaw = np.degrees([portrait.yaw for portrait in heads])
        focal = photographer.focal if given else None
        for name, angle in (("as it is", 0.0), ("calibrated", tilt)):
            bins = row(errors(heads, find(heads, photographer, angle, focal)), yaw)
            results.append({"case": title, "tilt": name, "bins": bins})
            cells = [f"{b['from']:g}-{b['to']:g}: {b['median']:.1f} ({b['p90']:.1f})" for b in bins]
            click.echo(f"{title:30s} {name:10s} {'  '.join(cells)}")
    if out is not None:
        out.write_text(json.dumps({"machine": facts(), "heads": num, "tilt": tilt, "results": results}, indent=1))


if __name__ == "__main__":
    main()
