"""Makes, checks, converts and imports posed data sets."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource
from tqdm import tqdm

import dnnlib
from dnnlib.command import in_a_folder, version
from dnnlib.numbers import SEED, FloatRange
from training.data.synthetic.spread_options import spread_options

if TYPE_CHECKING:  # imported by the commands that use them: --help waits for no torch
    from training.data.making.set_writer import Box, Report

Written = TypeVar("Written")
_UPS = ("auto", "x", "y", "z", "-x", "-y", "-z", "keep")


@click.group(context_settings={"show_default": True})
@version
@click.pass_context
def main(ctx: click.Context) -> None:
    """Make, check, convert and import posed data sets; docs/data.md tells about layouts and labels.

    What is written has the FFHQC layout: DEST/dataset.json holds one label of 25 numbers per image (camera-to-world 4x4
    with OpenCV axes, then intrinsics 3x3 normalised by the image size), DEST/mask the masks, DEST/<resolution> the
    images; --data of train.py takes the last.
    """
    ctx.with_resource(dnnlib.stoppable())  # a stop signal leaves no half-written set


@main.command()
@click.option("--dest", required=True, type=click.Path(file_okay=False), help="Folder to make.")
@click.option("--kind", default="heads", metavar="heads|expressions|cars", help="What it shows; see docs/data.md.")
@click.option("--num", required=True, type=click.IntRange(min=1), help="Number of images.")
@click.option("--resolution", default=64, type=click.IntRange(min=4), help="Width and height of an image in pixels.")
@click.option("--seed", default=0, type=SEED, help="The same seed gives the same set.")
@spread_options
@click.option("--samples", default=2, type=click.IntRange(min=2), help="Rays per pixel and axis.")
@click.option("--workers", type=click.IntRange(min=1), show_default="the number of cores", help="Processes.")
def synthesize(
    dest: str, kind: str, num: int, resolution: int, seed: int, samples: int, workers: int | None, **spread: Any
) -> None:
    """Draw a set of procedural heads or cars with masks; nothing happens if DEST holds exactly this set already."""
    from training.data.synthetic.synthesize import spread_of, synthesize_heads

    try:
        with tqdm(total=num, unit="img", desc="synthesize", delay=0.1, disable=None) as bar:
            made = synthesize_heads(
                dest, num, resolution, seed, spread_of(kind, spread), samples, workers, bar.update, kind
            )
    except (ValueError, OSError) as error:
        raise click.ClickException(dnnlib.format_error(error)) from error
    if made.fresh:
        click.echo(f"{num} images in {made.seconds:.1f} s ({num / made.seconds:.0f} images/s): {made.images}")
    else:
        click.echo(f"up to date: {made.images}")


@main.command()
@click.argument("path", type=click.Path(exists=True))
@click.option("--fix", is_flag=True, help="Write a copy without the problems to --dest; PATH stays as it is.")
@click.option("--dest", type=click.Path(), help="New folder, or new file that ends in .zip, for --fix.")
@click.option("--resolution", type=click.IntRange(min=4), show_default="the commonest", help="Of --fix, in pixels.")
@click.option(
    "--like",
    type=click.Path(exists=True),
    metavar="SET",
    help="Compare framing and cameras with those of SET, and say what to do where they differ.",
)
def validate(path: str, fix: bool, dest: str | None, resolution: int | None, like: str | None) -> None:
    """Check the labels, images and masks of the set in PATH, and list every offending file.

    --fix writes 8-bit RGB images and masks, square and of one size, mends masks of 0 and 1 and inverted ones, and
    leaves out what cannot be read, has no mask or no legal label.
    """
    from training.data.validation import inspect_set
    from training.dataset import ImageDataset

    if fix != (dest is not None):
        raise click.UsageError("--fix and --dest go together")
    if resolution is not None and not fix:
        raise click.UsageError("--resolution goes with --fix")
    if fix and like is not None:
        raise click.UsageError("--fix and --like exclude each other: compare the copy")
    with tqdm(unit="img", desc="validate", delay=0.5, disable=None) as bar:
        found = inspect_set(path, bar.update)
    problems = found.problems
    for problem in problems:
        click.echo(problem)
    if dest is None:
        _say(found.notes)
    if dest is not None:
        from training.data.making.convert import fix_set

        report = _written(lambda progress: fix_set(path, dest, resolution, progress))
        for line in report.dropped:
            click.echo(f"left out: {line}")
        _say(report.notes)
        click.echo(f"{report.count} images of {report.resolution} px, {len(report.dropped)} left out: {report.images}")
    elif problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in {path}, the first: {problems[0]}"
        raise click.ClickException(f"{count}{'; --fix --dest=... writes a copy without them' if found.fixable else ''}")
    else:
        dataset = ImageDataset(path, "all")
        masks = "with masks" if dataset.has_masks else "without masks"
        click.echo(f"no problems in {path}: {len(dataset)} images of {dataset.resolution} px, {masks}")
    if like is not None:
        _say_likeness(path, like)


def _say(notes: list[str]) -> None:
    for note in notes:
        click.echo(f"note: {note}")


def _say_likeness(path: str, like: str) -> None:
    from training.data.likeness import compare

    with tqdm(unit="img", desc="compare", delay=0.5, disable=None) as bar:
        try:
            facts, advice = compare(path, like, bar.update)
        except (ValueError, OSError) as error:
            raise click.ClickException(dnnlib.format_error(error)) from error
    for line in facts:
        click.echo(line)
    for line in advice:
        click.echo(f"off: {line}")
    differences = f"{len(advice)} difference{'s' if len(advice) > 1 else ''}"
    click.echo(f"{differences} from {like}" if advice else f"framed like {like}")


def _written(write: Callable[[Callable[[int], None]], Written]) -> Written:
    """Calls `write` with the function that moves a progress bar, and turns its errors into one line for the user."""
    try:
        with tqdm(unit="img", desc="write", delay=0.5, disable=None) as bar:
            return write(bar.update)
    except (ValueError, OSError) as error:
        raise click.ClickException(dnnlib.format_error(error)) from error


class Crop(click.ParamType):
    """Parses `centre`, or left,top,right,bottom in pixels."""

    name = "centre|L,T,R,B"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | Box:
        """Parses the word or the four numbers; called by click."""
        if value == "centre" or isinstance(value, tuple):
            return value  # type: ignore[no-any-return]
        try:
            left, top, right, bottom = (float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r}: centre, or left,top,right,bottom in pixels, is legal", param, ctx)
        return left, top, right, bottom


_dest = click.option(
    "--dest", required=True, type=click.Path(path_type=Path), help="New folder, or new file that ends in .zip."
)
_size = click.option(
    "--resolution", type=click.IntRange(4, 16_384), show_default="of the pictures", help="Width and height in pixels."
)
_crop = click.option("--crop", type=Crop(), help="Cut out the middle square, or a square box; intrinsics follow.")


@main.command()
@click.argument("path", type=click.Path(exists=True))
@_dest
@_size
@_crop
def convert(path: str, dest: Path, resolution: int | None, crop: str | Box | None) -> None:
    """Write the set in PATH (a folder or zip of any layout) anew: resized, cropped, in another container."""
    from training.data.making.convert import convert_set

    report = _written(lambda progress: convert_set(path, dest, resolution, crop, progress=progress))
    _say(report.notes)
    click.echo(f"{report.count} images of {report.resolution} px: {report.images}")


def _photo_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of --from=photos."""
    file = click.Path(exists=True, dir_okay=False, path_type=Path)
    options = [
        click.option("--landmarks", type=file, help="Landmarks of photos.", show_default="SOURCE/landmarks.json"),
        click.option("--landmarks-command", metavar="CMD", help="Writes them: a program, folder {in}, file {out}."),
        click.option("--mask-command", metavar="CMD", help="Masks of photos: a program, folders {in} and {out}."),
        click.option(
            "--focal",
            type=FloatRange(min=0.2),
            help="Focal length of all photos in longer sides (35 mm equivalent over 36).",
            show_default="the crop's, as in EG3D",
        ),
        click.option("--zoom", type=FloatRange(0.3, 2.0), default=1.0, help="Size of heads over EG3D's."),
        click.option("--shift", type=FloatRange(-0.5, 0.5), default=0.0, help="Heads lower by so many heights."),
        click.option("--tilt", type=FloatRange(-45, 45), default=0.0, help="Degrees that level faces look up."),
        click.option("--max-yaw", type=FloatRange(0, 90), default=60.0, help="Skip photos turned further."),
        click.option("--max-enlarge", type=FloatRange(min=0.1), default=2.0, help="Skip photos enlarged more."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


_KINDS = ("colmap", "transforms", "eg3d", "epigraf", "photos")
_GOES_WITH = {"images": ("colmap",), "distortion": ("colmap", "transforms"), "fov": ("epigraf",)}


@main.command("import")
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option("--from", "kind", required=True, type=click.Choice(_KINDS), help="What it is.")
@_dest
@_size
@_crop
@click.option(
    "--images",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of COLMAP's pictures.",
    show_default="SOURCE/images",
)
@click.option(
    "--up",
    type=click.Choice(_UPS),
    show_default="auto; eg3d: keep",
    help="Axis of the given world that points up; auto: as the cameras say; keep: leave the world as it is.",
)
@click.option(
    "--distortion",
    type=click.Choice(["undistort", "refuse"]),
    show_default="undistort",
    help="Of lenses: resample such pictures to a pinhole's, or end with an error.",
)
@click.option("--fov", type=FloatRange(0.1, 170), show_default="12", help="Degrees that an EpiGRAF set's cameras see.")
@_photo_options
@click.pass_context
def import_(
    context: click.Context,
    source: Path,
    kind: str,
    dest: Path,
    resolution: int | None,
    crop: str | Box | None,
    images: Path | None,
    up: str | None,
    distortion: str | None,
    fov: float | None,
    **photo_options: Any,
) -> None:
    """Make a set of posed pictures: a COLMAP project, a transforms.json, an EG3D or EpiGRAF set, a folder of portraits.

    The world is turned, moved and scaled by what the cameras say (docs/data.md); that of an EG3D set is turned if --up
    is given. Portraits are cropped as in EG3D, and their cameras found from landmarks (docs/photographs.md). Images are
    called 00000.png, ...
    """
    from training.data.making import camera_angles, importers
    from training.data.making.convert import convert_set

    for name, kinds in _GOES_WITH.items():
        if context.params[name] is not None and kind not in kinds:
            raise click.UsageError(f"--{name} goes with {' and '.join(f'--from={k}' for k in kinds)}")
    if kind in ("colmap", "transforms") and source.is_file() and source.suffix.lower() == ".zip":
        raise click.UsageError(f"{source}: is a zip; --from={kind} reads a folder: unpack it")
    if up is not None and kind == "epigraf":
        raise click.UsageError("--up does not go with --from=epigraf, whose angles say what is up")
    unwanted = ("crop", "up") if kind == "photos" else tuple(photo_options)
    foreign = [n for n in unwanted if context.get_parameter_source(n) != ParameterSource.DEFAULT]
    if foreign:
        name = foreign[0].replace("_", "-")
        raise click.UsageError(f"--{name} {'does not go' if kind == 'photos' else 'goes'} with --from=photos")
    if kind == "photos":
        return _import_photos(source, dest, resolution, photo_options)

    def write(progress: Callable[[int], None]) -> Report:
        if kind == "eg3d":
            return convert_set(source, dest, resolution, crop, rename=True, progress=progress, up=up or "keep")
        if kind == "epigraf":
            return camera_angles.import_angles(source, dest, resolution, crop, fov or 12.0, progress)
        world, lenses = up or "auto", distortion or "undistort"
        if kind == "colmap":
            return importers.import_colmap(source, dest, images, resolution, crop, world, progress, lenses)
        return importers.import_transforms(source, dest, resolution, crop, world, progress, lenses)

    report = _written(write)
    _say(report.notes)
    click.echo(f"{report.count} images of {report.resolution} px: {report.images}")


def _import_photos(source: Path, dest: Path, resolution: int | None, options: dict[str, Any]) -> None:
    from training.data.making.photos import Rules, import_photos
    from training.data.making.photos_crop import Framing

    if resolution is None:
        raise click.UsageError("--from=photos needs --resolution")
    if not source.is_dir():
        raise click.UsageError(f"{source}: --from=photos reads a folder of pictures")
    if options["landmarks"] is not None and options["landmarks_command"] is not None:
        raise click.UsageError("--landmarks and --landmarks-command exclude each other")
    framing = Framing(options["zoom"], options["shift"], options["tilt"])
    rules = Rules(framing, options["focal"], options["max_yaw"], max_enlarge=options["max_enlarge"])
    programs = {name: options[name] for name in ("landmarks", "landmarks_command", "mask_command")}
    report = _written(lambda shown: import_photos(source, dest, resolution, **programs, rules=rules, progress=shown))
    _say(report.notes)
    click.echo(report.line)
    written = report.written
    click.echo(f"{written.count} images of {written.resolution} px: {written.images}")


class Point(click.ParamType):
    """Parses x,y,z."""

    name = "X,Y,Z"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, float, float]:
        """Parses and checks the three numbers; called by click."""
        if isinstance(value, tuple):
            return value  # type: ignore[return-value]
        try:
            x, y, z = (float(part) for part in value.split(","))
        except ValueError:
            x = y = z = math.nan
        if not all(map(math.isfinite, (x, y, z))):
            self.fail(f"{value!r}: three numbers x,y,z are legal", param, ctx)
        return x, y, z


@main.command("show-cameras")
@click.argument("path", type=click.Path(exists=True))
@click.option(
    "--out", default="cameras.png", type=click.Path(dir_okay=False), callback=in_a_folder, help="PNG to write."
)
@click.option("--point", type=Point(), help="Point to project, in label units.", show_default="the pivot")
@click.option("--index-list", metavar="FILE|NAME", help="As in train.py.")
def show_cameras(path: str, out: str, point: tuple[float, float, float] | None, index_list: str | None) -> None:
    """Draw the cameras of the set in PATH: frusta, mean image per yaw, histograms, a known point in some images."""
    from training.dataset import ImageDataset
    from training.visualization.camera_views import save_camera_overview

    try:
        dataset = ImageDataset(path, index_list)
        _say(dataset.notes)
        spots = save_camera_overview(dataset, out, point)
    except (ValueError, OSError) as error:
        raise click.ClickException(dnnlib.format_error(error)) from error
    click.echo(f"{out}: the point lies at {'; '.join(f'{x:.2f}, {y:.2f}' for x, y in spots)} px of the images shown")


@main.command()
@click.argument("path", type=click.Path(exists=True))
@click.option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False),
    callback=in_a_folder,
    help="List to write: <root>/<name>.json beside dataset.json is found by its name.",
)
@click.option("--num", type=click.IntRange(min=1), show_default="the number of images", help="Length of the list.")
@click.option("--bin-degrees", default=5.0, type=FloatRange(min=0.1), help="Width of a bin of yaw and pitch.")
@click.option("--max-repeat", default=32, type=click.IntRange(min=1), help="Of one image.")
@click.option("--scores", type=click.Path(exists=True, dir_okay=False), help="JSON of image names and weights.")
@click.option("--seed", default=0, type=SEED, help="Of the rounding.")
def rebalance(
    path: str, out: str, num: int | None, bin_degrees: float, max_repeat: int, scores: str | None, seed: int
) -> None:
    """Write an index list under which the cameras of the set in PATH spread evenly over yaw and pitch."""
    from training.data.making.rebalance import rebalance as balance

    try:
        found = balance(path, num, bin_degrees, max_repeat, None if scores is None else Path(scores), seed)
        _say(found.notes)
        Path(out).write_text(json.dumps(found.entries))
    except (ValueError, OSError) as error:
        raise click.ClickException(dnnlib.format_error(error)) from error
    click.echo(
        f"{out}: {len(found.entries)} items, {found.images} images; evenness over yaw and pitch {found.before:.2f} -> "
        f"{found.after:.2f} (1: all bins equally full)"
    )


if __name__ == "__main__":
    main()
