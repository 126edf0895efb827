"""Reads published CGS-GAN checkpoints into our classes, and writes them back.

Our modules and parameters carry the published names, so reading is: find the configuration that the shapes tell, then
account for every name, shape and type. Nothing is skipped and nothing is filled in.

Two generations of the published code exist. The older one hands the same w to every transformer block (`num_ws` is the
number of blocks), the newer one hands out one w: the same function, read as one w. Level 7 is 16 or 8 wide, and a
coarse anchor's log scale starts at -5 or -7: the shapes tell the width, only the source text in a file the scale.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from training.families.base import Option, PublishedFormat, PublishedRun
from training.families.cgs.config import GeneratorConfig, published_constants
from training.families.cgs.generator import Generator
from training.families.cgs.objective import CgsObjectiveConfig
from training.networks.discriminator import (
    PUBLISHED_CLAMP,
    PUBLISHED_RESOLUTIONS,
    DiscriminatorConfig,
    channel_counts,
)
from training.published import discriminator as published_discriminator
from training.published import eg3d
from training.published.pickle_file import StoredFile, StoredNetwork
from training.published.state_dicts import (
    Shapes,
    check_room,
    check_tensors,
    commonest,
    converted,
    count_entries,
    lengths,
    shapes_of,
    tensors_of,
)

PUBLISHED_YAW = 0.3 * math.pi  # radians to either side, as far as the published samples turn
PUBLISHED_COARSE_SCALE = -5.0  # of the published code as it stands (Barthel et al. 2025)
NUM_HEADS = 8  # of the published transformer, at every size
RESOLUTION_PER_LEVELS = 3  # a published generator of n levels makes images of 2^(n + 3) px
MAX_LEVELS = 8  # 2048 px

PHASES = {"G": ("Gboth", "Gmain", "Greg"), "D": ("Dmain", "Dreg", "Dboth")}  # the first with a record counts
_TRANSFORMER = "point_gen.transformer."  # GSGAN, whose other names are alike, has point_gen.blocks.
_STATED_SCALE = "generator.coarse_log_scale"
_COARSE_SCALE = re.compile(r"\bscale\s{0,8}=\s{0,8}torch\.tensor\(\s{0,80}([-+]?[0-9]{1,4}(?:\.[0-9]{0,20})?)\s{0,80},")


# ---------------------------------------------------------------- state dicts of generators


def from_published(
    tensors: Mapping[str, Tensor], source_text: str = "", coarse_log_scale: float | None = None
) -> tuple[GeneratorConfig, dict[str, Tensor]]:
    """Returns the configuration and our state dict of a published generator's state dict, with which it shares memory.

    source_text: of the module that defines the published point generator; the coarse start scale is read from it. Empty
        where there is none at hand: then coarse_log_scale decides, and the published code's -5 without it.
    coarse_log_scale: ln of world units; beats the source text.
    Raises ValueError that names every unknown or missing tensor, every wrong shape or type, and every constant that
    does not fit the sizes; and for a source text without one start scale.
    """
    shapes = shapes_of(tensors)
    if coarse_log_scale is None:
        coarse_log_scale = coarse_scale_in(source_text) if source_text else PUBLISHED_COARSE_SCALE
    config = config_from(shapes, coarse_log_scale)
    _check(config, tensors)
    return config, dict(tensors)


def to_published(config: GeneratorConfig, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the published state dict of one of our generators, sharing memory with ours; inverts `from_published`.

    The coarse start scale is not among the tensors; pass `config.coarse_log_scale` on to whoever reads them.
    Raises ValueError for a network that the published layout cannot hold, and as `from_published` does for its tensors.
    """
    legal = dataclasses.replace(
        config,
        resolution=2 ** (config.num_levels + RESOLUTION_PER_LEVELS),
        num_heads=NUM_HEADS,
        point_encoding="fourier+table",
        color_rule="published",
        start="published",
        camera_embedding=True,
        published_keys=True,
    )
    check_room(config.to_dict(), legal.to_dict())
    _check(config, state_dict)
    return dict(state_dict)


def _check(config: GeneratorConfig, tensors: Mapping[str, Tensor]) -> None:
    constants = {f"point_gen.{name}": value for name, value in published_constants(config).items()}
    check_tensors(tensors, tensors_of(Generator, config), constants)


def coarse_scale_in(source_text: str) -> float:
    """Finds where a coarse anchor's log scale starts in the source of the published point generator, which is not run.

    Raises ValueError where the text holds no such number, or several that differ.
    """
    values = {float(number) for number in _COARSE_SCALE.findall(source_text)}
    if len(values) != 1:
        found = f"several coarse start scales ({sorted(values)[:4]})" if values else "no coarse start scale"
        raise ValueError(
            f"its source text holds {found}; state it with convert_checkpoint.py --coarse-scale (published: -5 or -7)"
        )
    return values.pop()


def config_from(shapes: Shapes, coarse_log_scale: float) -> GeneratorConfig:
    """Returns the configuration that the shapes of a published generator tell."""
    heads = r"point_gen\.(?:anchors|gaussians)\.\w+"
    levels = count_entries(shapes, rf"{heads}\.(\d+)\.\w+")
    if not 2 <= levels <= MAX_LEVELS:
        raise ValueError(f"not a published generator: it has heads for {levels} levels, legal are 2 to {MAX_LEVELS}")
    widths = tuple(
        commonest(lengths(shapes, rf"{heads}\.{level}\.weight", 1), f"the width of level {level}")
        for level in range(levels)
    )
    rows = [
        commonest(
            lengths(shapes, rf"point_gen\.upsample_layers\.{level}\.subpixel\.(?:weight|bias)", 0),
            f"point_gen.upsample_layers.{level}.subpixel.weight",
        )
        for level in range(levels)
    ]
    children = [row // width for row, width in zip(rows, widths, strict=True)]
    if 0 in children:
        raise ValueError("a point_gen.upsample_layers.*.subpixel has fewer rows than its level is wide")
    ratios = tuple(a // b for a, b in zip(children, [1, *children], strict=False))
    w_dim = commonest(lengths(shapes, r"point_gen\.transformer\.\w+\.\d+\.ln_\d\.\w+\.weight", 1), "the width of w")
    latent = commonest(lengths(shapes, r"mapping_network\.fc0\.weight", 1), "mapping_network.fc0.weight")
    first_blocks = count_entries(shapes, r"point_gen\.transformer\.first_layers\.(\d+)\..*")
    if not first_blocks or latent <= w_dim:
        raise ValueError(f"not a published generator: {first_blocks} first layers, a latent of {latent - w_dim}")
    try:
        return GeneratorConfig(
            resolution=2 ** (levels + RESOLUTION_PER_LEVELS),
            z_dim=latent - w_dim,
            w_dim=w_dim,
            num_points=commonest(lengths(shapes, "_xyz", 0), "_xyz"),
            ratios=ratios,
            widths=widths,
            first_blocks=first_blocks,
            num_heads=NUM_HEADS,
            map_depth=count_entries(shapes, r"mapping_network\.fc(\d+)\.\w+"),
            coarse_log_scale=coarse_log_scale,
        )
    except ValueError as error:
        raise ValueError(f"not a published generator: {error}") from None


# ---------------------------------------------------------------- files


class CgsPublished(PublishedFormat):
    """Describes the files that the published CGS-GAN code writes."""

    looks_for = f"G_ema with tensors {_TRANSFORMER}*"
    # For every phase <P> of the training loop there are <P>_opt, <P>_interval and <P>_module.
    records = frozenset({"G", "D", "G_ema", "training_set_kwargs", "augment_pipe", "pl_mean"}) | {
        f"{phase}_{what}" for phases in PHASES.values() for phase in phases for what in ("interval", "module", "opt")
    }
    classes = frozenset({"training.gaussian3d_splatting.renderer.Renderer"})
    options = (
        Option(
            ("--coarse-scale",),
            _STATED_SCALE,
            "start of the coarse splats' log scale (CGS-GAN); by default as the published source says",
        ),
    )

    def recognises(self, file: StoredFile) -> bool:
        """Looks for the transformer of points in G_ema."""
        network = file.network("G_ema")
        return network is not None and any(name.startswith(_TRANSFORMER) for name in network.tensors)

    def generator(
        self, stored: StoredNetwork, tensors: Mapping[str, Tensor], stated: Mapping[str, Any]
    ) -> tuple[GeneratorConfig, dict[str, Tensor]]:
        """Returns configuration and state dict; the source text tells the coarse start scale where none is stated."""
        coarse = stated.get(_STATED_SCALE)
        if coarse is None:
            texts = [m.source for m in stored.modules.values() if m.class_name == "PointGenerator"]
            coarse = coarse_scale_in("\n".join(texts))
        config, state_dict = from_published(tensors, coarse_log_scale=coarse)
        blocks = config.first_blocks + config.num_levels - 1
        if any(stored.attribute(path, "num_ws", 1) not in (1, blocks) for path in ("", "mapping_network")):
            raise ValueError(f"num_ws of another network; legal are 1 and {blocks}, one per block")
        return config, state_dict

    def discriminator(
        self, stored: StoredNetwork, tensors: Mapping[str, Tensor]
    ) -> tuple[DiscriminatorConfig, dict[str, Tensor]]:
        """Returns configuration and state dict; the modules tell the clamp and the minibatch-std group."""
        return published_discriminator.from_stored(stored, tensors)

    def run(
        self, file: StoredFile, generator: GeneratorConfig, discriminator: DiscriminatorConfig | None
    ) -> PublishedRun:
        """Returns the published cameras, losses and defaults; files say nothing of theirs."""
        size = generator.resolution
        default = DiscriminatorConfig(size, channel_counts(size), conv_clamp=PUBLISHED_CLAMP)
        return PublishedRun(
            preset=f"cgs{size}" if size in PUBLISHED_RESOLUTIONS else "published",
            discriminator=published_discriminator.fitting(discriminator, default),
            objective=CgsObjectiveConfig(),
            geometry=eg3d.geometry(),  # as the published sample script has it
            yaw_limit=PUBLISHED_YAW,
        )

    def optimizer_record(self, file: StoredFile, network: str) -> str | None:
        """Names the record of the first phase of the network that has one; all of its phases share an optimiser."""
        names = (f"{phase}_opt" for phase in PHASES[network])
        return next((name for name in names if file.records.get(name) is not None), None)

    def optimizer_order(self, parameters: Sequence[str], sizes: Sequence[int]) -> Sequence[str] | None:
        """Returns all parameters of a single group, or those of the generator's two, `_xyz` alone and last."""
        if list(sizes) == [len(parameters)]:
            return parameters
        if "_xyz" in parameters and list(sizes) == [len(parameters) - 1, 1]:
            return [name for name in parameters if name != "_xyz"] + ["_xyz"]
        return None

    def to_published(
        self,
        generator: GeneratorConfig,
        discriminator: DiscriminatorConfig,
        networks: Mapping[str, Mapping[str, Tensor]],
    ) -> dict[str, Any]:
        """Returns `resolution`, `coarse_log_scale` and the state dicts."""
        written = converted(
            networks,
            partial(to_published, generator),
            partial(published_discriminator.to_published, discriminator),
        )
        return {"resolution": generator.resolution, "coarse_log_scale": generator.coarse_log_scale, **written}


PUBLISHED = CgsPublished()
