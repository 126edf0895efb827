"""Finds the head of a trained generator that pictures show."""

from __future__ import annotations

import dnnlib  # before torch, whose threads wait as it says

# isort: split

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click
import torch
from click.core import ParameterSource
from tqdm import tqdm

from dnnlib.command import CONTEXT, ChoiceList, GroupedCommand, group, option, version
from dnnlib.numbers import FloatRange
from gaussian import Cameras
from gaussian.export import FORMATS
from metrics.detectors import load_detector
from metrics.errors import MetricUnavailable
from metrics.vgg import VGG16
from torch_utils import distributed
from training.checkpoint import CheckpointError, load_discriminator, load_generator
from training.dataset import ImageDataset
from training.families.base import Discriminator, Generator
from training.inversion.diagnosis import diagnose
from training.inversion.encoder import Encoder, EncoderConfig, default_path, read_encoder, save_encoder
from training.inversion.encoder_training import CHECKED, encoder_config, read_pictures
from training.inversion.encoder_training import train_encoder as trained_encoder
from training.inversion.files import require_formats, write_all
from training.inversion.inversion import NoHeadError, Report, Settings, invert
from training.inversion.latents import measure_latents
from training.inversion.pictures import read_target
from training.inversion.similarity import Features, PerceptualFeatures
from training.visualization.camera_paths import read_cameras
from training.visualization.directions import network_key
from training.visualization.video import shown_background

DEFAULT = Settings()
FROM_0, FROM_1 = click.IntRange(min=0), click.IntRange(min=1)


# fmt: off
FILES = group(
    "Files",
    option("--network", required=True, metavar="PKL", help="checkpoint: network-snapshot-NNNNNN.pkl"),
    option("--image", "images", metavar="FILE,...",
           help="pictures of one head, square, cropped as the training pictures were; an alpha channel is their mask"),
    option("--mask", "masks", metavar="FILE,...", help="a mask for each picture, white where the head is"),
    option("--outdir", metavar="DIR", help="where the files go"),
    option("--formats", default="ply", metavar="LIST", type=ChoiceList(tuple(FORMATS)),
           help=f"of the head's splats: {', '.join(FORMATS)}"),
    option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto",
           help="auto: CUDA where there is one"),
)

CAMERA = group(
    "Camera",
    option("--camera", metavar="auto|FILE.json", default="auto",
           help="auto: found with the head; or the pictures' labels, [[25 numbers], ...] as gen_videos.py --path "
           "reads them, one for each, or a dataset.json that names them, which are held"),
    option("--background", metavar="white|black|R,G,B", show_default="the training's, or white",
           help="behind pictures with masks, numbers in 0..1"),
)

ENCODER = group(
    "Encoder",
    option("--encoder", metavar="FILE|none", show_default="NETWORK-encoder.pt beside the network, where there is one",
           help="that says where to begin: a latent and cameras in one pass, in place of trying many"),
    option("--train-encoder", is_flag=True,
           help="first train it, on heads of the network itself, and write it there; without --image nothing else"),
    option("--data", metavar="DIR|ZIP",
           help="labelled pictures, such as the network was trained on: --train-encoder learns the cameras of real "
           "heads from them, beside those of the network's own"),
    option("--encoder-steps", type=FROM_1, default=EncoderConfig.steps, help="of its training"),
)

STAGES = group(
    "Stages",
    option("--heads", type=FROM_1, default=DEFAULT.heads, help="that are tried under every camera at first"),
    option("--starts", type=FROM_1, default=DEFAULT.starts, help="trials that go on from there, of which one is kept"),
    option("--steps", "latent_steps", type=FROM_0, default=DEFAULT.latent_steps, help="of one latent and the camera"),
    option("--part-steps", "block_steps", type=FROM_0, default=DEFAULT.block_steps,
           help="of a latent for each part of the network"),
    option("--tune-steps", "tuning_steps", type=FROM_0, default=DEFAULT.tuning_steps,
           help="of the network's weights around the latent"),
    option("--splat-steps", "splat_steps", type=FROM_0, default=DEFAULT.splat_steps,
           help="of the head's splats, on a leash; of networks that make splats"),
    option("--symmetry", type=FloatRange(min=0), default=DEFAULT.symmetry,
           help="weight of the mirror images of pictures from the side; 0: nothing is taken to be symmetric"),
    option("--perceptual", metavar="PATH",
           help="also compare the features of the VGG-16 network in this file, vgg16-397923af.pth"),
    option("--no-features", is_flag=True, help="do not compare features of the checkpoint's discriminator"),
)
# fmt: on


@click.command(cls=GroupedCommand, context_settings=CONTEXT)
@FILES
@CAMERA
@ENCODER
@STAGES
@version
@click.pass_context
def main(
    ctx: click.Context,
    network: str, images: str | None, masks: str | None, outdir: str | None, formats: tuple[str, ...], device: str,
    camera: str, background: str | None,
    encoder: str | None, train_encoder: bool, data: str | None, encoder_steps: int,
    heads: int, starts: int, latent_steps: int, block_steps: int, tuning_steps: int, splat_steps: int,
    symmetry: float, perceptual: str | None, no_features: bool,
) -> None:  # fmt: skip
    """Find the head that pictures show: its latent, its camera, and a network that is tuned to it.

    Several pictures are several views of one head. The folder gets w.npz (--w-file of other scripts), cameras.json,
    network-tuned.pkl, a film, the splats, and a page, inversion.html, that says how good it is and why not better.

    \b
    python invert.py --outdir=out --image=face.png --network=net.pkl
    python invert.py --outdir=out --image=left.png,front.png --camera=cameras.json --network=net.pkl
    python invert.py --train-encoder --network=net.pkl --data=datasets/heads/64
    """
    ctx.with_resource(dnnlib.stoppable())
    settings = Settings(
        heads=heads, starts=starts, latent_steps=latent_steps, block_steps=block_steps, tuning_steps=tuning_steps,
        splat_steps=splat_steps, symmetry=symmetry, features=not no_features,
    )  # fmt: skip
    if not train_encoder or images:
        _require(images=images, outdir=outdir)
    names = images.split(",") if images else []
    try:
        place = distributed.initialise(device)
        G = load_generator(network, place)
        _require_splats(ctx, G)
        behind, file = shown_background(G, background), _encoder_file(encoder, network, train_encoder, data)
        masked = masks.split(",") if masks else []
        target = read_target(names, masked, G.resolution, behind).to(place) if names else None
        cameras = None if target is None else _cameras(camera, G, names)
        if train_encoder and file is not None:
            _train(G, behind, encoder_steps, data, file)
        if target is None or outdir is None:
            return
        require_formats(G, formats)
        known = None if file is None else _read_encoder(file, G)
        D = _discriminator(network, place, settings)
        features = _perceptual(perceptual, place)
        folder = dnnlib.make_folder(outdir)
        with _bar(settings.steps(G, known is not None), "search") as report:
            found = invert(G, D, target, cameras, settings, features, known, report)
        findings = diagnose(found, D)
        written = write_all(found, findings, settings, network, names, Path(folder), formats)
    except NoHeadError as error:
        raise click.ClickException(
            f"--image={names[error.picture]}: shows no head that this network could make: the nearest one explains "
            f"{error.share:.0%} of it. Is it cropped and lit as the training pictures are, and is a --mask white "
            "where the head is?"
        ) from error
    except (CheckpointError, ValueError, OSError) as error:
        raise click.ClickException(dnnlib.format_error(error)) from error
    for finding in findings:
        click.echo(f"{'' if finding.good else '! '}{finding.what}: {finding.text}", err=True)
    for path in written:
        click.echo(path)


def _require(**options: str | None) -> None:
    """Raises MissingParameter for the first option that was not given."""
    for name, value in options.items():
        if not value:
            raise click.MissingParameter(param_type="option", param_hint=f"'--{name.removesuffix('s')}'")


def _require_splats(ctx: click.Context, G: Generator) -> None:
    """Raises ValueError for options that ask for splats of a network that makes none."""
    for name in ("splat_steps", "formats"):
        asked = ctx.get_parameter_source(name) == ParameterSource.COMMANDLINE and ctx.params[name]
        if asked and not G.makes_splats:
            flag = f"--{name.replace('_', '-')}={asked if name == 'splat_steps' else ','.join(asked)}"
            raise ValueError(f"{flag}: the scenes of this network are no splats; leave it out")


def _encoder_file(asked: str | None, network: str, trains: bool, data: str | None) -> Path | None:
    """Returns the encoder's file, which may have to be trained; None: nobody asks for one, and there is none."""
    if data is not None and not trains:
        raise ValueError(f"--data={data}: is read by --train-encoder alone; give that too, or leave this out")
    if asked == "none":
        if trains:
            raise ValueError("--encoder=none: --train-encoder needs a file to write; leave one of them out")
        return None
    place = default_path(network) if asked is None else Path(asked)
    return place if asked is not None or trains or place.exists() else None


def _train(G: Generator, background: tuple[float, float, float], steps: int, data: str | None, file: Path) -> None:
    """Trains an encoder, writes it, and says how good it is."""
    space = measure_latents(G)
    config, pictures = encoder_config(G, space, background, steps), None
    if data is not None:
        pictures = read_pictures(ImageDataset(data), config, G.geometry)
        config = replace(config, pictures=len(pictures.angles) - CHECKED)
    dnnlib.make_folder(file.parent)
    shown = f"{config.heads:,} heads" + (f" and {config.pictures:,} pictures" if pictures is not None else "")
    click.echo(f"Training an encoder on {shown}, in {config.steps:,} steps", err=True)
    with _bar(config.heads + config.steps, "heads") as report:
        encoder = trained_encoder(G, space, config, report, pictures)
    save_encoder(file, encoder)
    errors = {name: math.degrees(encoder.errors[name]) for name in ("yaw", "pitch")}
    measured = "heads of the network" if pictures is None else f"pictures of {data}"
    click.echo(
        f"The encoder is off by {errors['yaw']:.1f} degrees of yaw and {errors['pitch']:.1f} of pitch (root mean "
        f"square, {measured} that were left out), and tells {encoder.errors['latent']:.0%} of the variance of w",
        err=True,
    )
    click.echo(file)


def _read_encoder(file: Path, G: Generator) -> Encoder:
    """Opens an encoder of a generator, and says so."""
    encoder = read_encoder(file, network_key(G)).to(G.device)
    click.echo(f"Begins where {file} says (--encoder=none: tries cameras instead)", err=True)
    return encoder


def _cameras(source: str, G: Generator, names: Sequence[str]) -> Cameras | None:
    """Returns the cameras [V] that were given for pictures, in model units; None: they are looked for."""
    if source == "auto":
        return None
    cameras = read_cameras(source, G.geometry, names)
    if len(cameras) != len(names):
        counts = f"{len(cameras)} camera(s) for {len(names)} picture(s)"
        raise ValueError(f"--camera={source}: {counts}; give one for each, in their order")
    return cameras.to(G.device)


def _discriminator(network: str, device: torch.device, settings: Settings) -> Discriminator | None:
    """Returns the checkpoint's discriminator; None if it has none, or if nobody asks for it."""
    if not settings.features:
        return None
    try:
        D = load_discriminator(network, device)
    except CheckpointError as error:
        if "it holds no discriminator" not in str(error):
            raise
        click.echo("The checkpoint holds no discriminator, whose features could be compared", err=True)
        return None
    if getattr(D.config, "image_channels", 3) == 3:
        return D
    click.echo("The discriminator looks at more than RGB: its features are not compared", err=True)
    return None


def _perceptual(path: str | None, device: torch.device) -> Features | None:
    """Returns the features of the VGG-16 network in a file. Raises ValueError if it is none."""
    if path is None:
        return None
    try:
        network = load_detector(path, device, "vgg").network
    except MetricUnavailable as error:
        raise ValueError(str(error).replace("--detector-vgg", "--perceptual")) from None
    if not isinstance(network, VGG16):
        raise ValueError(f"--perceptual={path}: is not the VGG-16 network")
    return PerceptualFeatures(network.features)


@contextmanager
def _bar(total: int, first: str) -> Iterator[Report]:
    """Shows how much is done, on a terminal; lends the function that is told stages and their steps."""
    layout = "{desc:8s} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    with tqdm(total=total, desc=first, bar_format=layout, leave=False, disable=None) as bar:

        def report(stage: str, steps: int) -> None:
            bar.set_description_str(stage, refresh=False)
            bar.update(steps)

        yield report


if __name__ == "__main__":
    main()
