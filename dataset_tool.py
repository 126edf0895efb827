"""Make and check posed data sets."""

import click
from tqdm import tqdm

from training.head_traits import CameraSpread

_SPREAD = CameraSpread()


@click.group(context_settings={"show_default": True})
def main() -> None:
    """Make and check posed data sets in the FFHQC layout.

    DEST/dataset.json holds one label of 25 numbers per image (camera-to-world 4x4 with OpenCV axes, then intrinsics 3x3
    normalised by the image size), DEST/mask the masks, DEST/<resolution> the images; --data of train.py takes the last.
    """


@main.command()
@click.option("--dest", required=True, type=click.Path(file_okay=False), help="Folder to make.")
@click.option("--num", required=True, type=click.IntRange(min=1), help="Number of images.")
@click.option("--resolution", default=64, type=click.IntRange(min=4), help="Width and height of an image in pixels.")
@click.option("--seed", default=0, type=click.IntRange(min=0), help="The same seed gives the same set.")
@click.option(
    "--yaw-std", default=_SPREAD.yaw_std, help="Spread of the cameras to the sides, radians (cut at two std)."
)
@click.option("--pitch-std", default=_SPREAD.pitch_std, help="Spread up and down, radians (cut at two std).")
@click.option("--roll-std", default=_SPREAD.roll_std, help="Spread about the viewing axis, radians (cut at two std).")
@click.option("--radius", default=_SPREAD.radius, help="Distance of the cameras from the head's middle, world units.")
@click.option("--focal", default=_SPREAD.focal, help="Focal length in image widths.")
@click.option("--cx", default=_SPREAD.cx, help="Principal point, in image widths from the left.")
@click.option("--cy", default=_SPREAD.cy, help="Principal point, in image heights from the top.")
@click.option("--samples", default=2, type=click.IntRange(min=2), help="Rays per pixel and axis.")
@click.option("--workers", type=click.IntRange(min=1), show_default="the number of cores", help="Processes.")
def synthesize(
    dest: str, num: int, resolution: int, seed: int, samples: int, workers: int | None, **spread: float
) -> None:
    """Ray-cast a set of procedural heads with masks; nothing happens if DEST holds exactly this set already."""
    from training.synthetic import synthesize_heads

    try:
        with tqdm(total=num, unit="img", desc="synthesize", delay=0.1) as bar:
            made = synthesize_heads(
                dest, num, resolution, seed, CameraSpread(**spread), samples, workers, progress=bar.update
            )
    except (ValueError, FileExistsError) as error:
        raise click.ClickException(str(error)) from error
    if made.fresh:
        click.echo(f"{num} images in {made.seconds:.1f} s ({num / made.seconds:.0f} images/s): {made.images}")
    else:
        click.echo(f"up to date: {made.images}")


@main.command()
@click.argument("path", type=click.Path(exists=True))
def validate(path: str) -> None:
    """Check the labels, images and masks of the set whose images lie in PATH, and list every offending file."""
    from training.validation import validate_set

    problems = validate_set(path)
    for problem in problems:
        click.echo(problem)
    if problems:
        raise click.ClickException(f"{len(problems)} problems in {path}")
    click.echo(f"no problems in {path}")


if __name__ == "__main__":
    main()
